"""Audio VAE: log-mel spectrogram <-> audio latents, and the log-mel front end."""

from mlx_ltx2.models.audio_vae.autoencoder import (
    AudioDecoder,
    AudioEncoder,
    AudioVAEConfig,
    PerChannelStatistics,
)
from mlx_ltx2.models.audio_vae.mel import log_mel

__all__ = ["AudioDecoder", "AudioEncoder", "AudioVAEConfig", "PerChannelStatistics", "log_mel"]
