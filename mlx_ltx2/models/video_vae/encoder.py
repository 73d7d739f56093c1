"""Pixels -> normalised latents."""

from __future__ import annotations

import mlx.core as mx
from mlx import nn

from mlx_ltx2.errors import ShapeError, WeightsError
from mlx_ltx2.models.video_vae.blocks import Downsample, ResGroup, activate
from mlx_ltx2.models.video_vae.config import STRIDES, Block, VideoVAEConfig
from mlx_ltx2.models.video_vae.convolution import CausalConv3d
from mlx_ltx2.models.video_vae.rearrange import patchify_pixels
from mlx_ltx2.models.video_vae.statistics import PerChannelStatistics
from mlx_ltx2.shapes import check_multiple


def _down_block(block: Block, channels: int, padding: str) -> nn.Module:
    if block.kind == "res_x":
        return ResGroup(channels, block.num_layers, padding=padding)
    if block.kind in STRIDES or block.kind == "compress_all_x_y":
        return CausalConv3d(channels, channels * block.multiplier, stride=block.stride, padding=padding)
    return Downsample(channels, channels * block.multiplier, block.stride, padding=padding)


class VideoEncoder(nn.Module):
    """Causal encoder; the latent is the distribution's mean, its variance is not used.

    Source: `ltx_core.model.video_vae.video_vae.VideoEncoder`.
    """

    def __init__(self, config: VideoVAEConfig):
        super().__init__()
        if not config.encoder_blocks:
            raise WeightsError("vae config: encoder_blocks is absent or empty; use a file that holds a video encoder.")
        self.config = config
        self.per_channel_statistics = PerChannelStatistics(config.latent_channels)
        channels, padding = config.encoder_base_channels, config.encoder_padding
        self.conv_in = CausalConv3d(config.in_channels * config.patch_size**2, channels, padding=padding)
        self.down_blocks: list[nn.Module] = []
        for block in config.encoder_blocks:
            self.down_blocks.append(_down_block(block, channels, padding))
            channels *= block.multiplier
        latent = config.latent_channels
        self.conv_out = CausalConv3d(
            channels, 2 * latent if config.latent_log_var == "per_channel" else latent + 1, padding=padding
        )

    def __call__(self, pixels: mx.array) -> mx.array:
        """Encode a clip.

        Args:
            pixels: (B,F,H,W,3) in [-1,1]. Height and width are multiples of 32. Frames beyond the last of the
                form 8k+1 are left out, as the reference does.
        Returns: (B,(F-1)//8+1,H/32,W/32,C) in the weights' dtype, zero mean and unit variance per channel.
        Raises: ShapeError for other shapes.
        """
        scale = self.config.scale
        if pixels.ndim != 5 or pixels.shape[-1] != self.config.in_channels or pixels.shape[1] < 1:
            raise ShapeError(
                f"pixels of shape {pixels.shape} cannot be encoded; use (batch, frames, height, width, "
                f"{self.config.in_channels})."
            )
        check_multiple("height", pixels.shape[2], scale.space, "video VAE")
        check_multiple("width", pixels.shape[3], scale.space, "video VAE")
        frames = (pixels.shape[1] - 1) // scale.time * scale.time + 1
        x = pixels[:, :frames].astype(self.conv_in.conv.weight.dtype)
        x = self.conv_in(patchify_pixels(x, self.config.patch_size), causal=True)
        for block in self.down_blocks:
            x = block(x, causal=True)
        x = self.conv_out(activate(x), causal=True)
        return self.per_channel_statistics.normalize(x[..., : self.config.latent_channels])
