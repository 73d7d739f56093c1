"""Latent upsamplers: twice or one and a half times the size, or twice the frame rate."""

from mlx_ltx2.models.upsampler.model import LatentUpsampler, UpsamplerConfig

__all__ = ["LatentUpsampler", "UpsamplerConfig"]
