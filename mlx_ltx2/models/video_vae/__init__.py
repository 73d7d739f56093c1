"""The convolutional video autoencoder of LTX-2 and LTX-2.3."""

from mlx_ltx2.models.video_vae.config import Block, VideoVAEConfig
from mlx_ltx2.models.video_vae.decoder import VideoDecoder
from mlx_ltx2.models.video_vae.encoder import VideoEncoder
from mlx_ltx2.models.video_vae.statistics import PerChannelStatistics

__all__ = ["Block", "PerChannelStatistics", "VideoDecoder", "VideoEncoder", "VideoVAEConfig"]
