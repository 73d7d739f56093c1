"""Mean and deviation of each latent channel over the training data."""

from __future__ import annotations

import mlx.core as mx
from mlx import nn


class PerChannelStatistics(nn.Module):
    """Moves latents between the encoder's scale and zero mean, unit variance.

    Checkpoint names `mean-of-means` and `std-of-means`, both (C,). Computes in the latent's dtype.
    Source: `ltx_core.model.video_vae.ops.PerChannelStatistics`.
    """

    def __init__(self, channels: int):
        super().__init__()
        setattr(self, "mean-of-means", mx.zeros((channels,)))
        setattr(self, "std-of-means", mx.ones((channels,)))

    def normalize(self, latent: mx.array) -> mx.array:
        """(...,C) latents of the encoder's scale -> zero mean, unit variance."""
        mean, deviation = self._vectors(latent.dtype)
        return (latent - mean) / deviation

    def denormalize(self, latent: mx.array) -> mx.array:
        """Inverse of `normalize`."""
        mean, deviation = self._vectors(latent.dtype)
        return latent * deviation + mean

    def _vectors(self, dtype: mx.Dtype) -> tuple[mx.array, mx.array]:
        return self["mean-of-means"].astype(dtype), self["std-of-means"].astype(dtype)
