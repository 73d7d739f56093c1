"""Timestep embeddings: float32 sinusoids, then a two-layer perceptron in the weights' dtype."""

from __future__ import annotations

import math

import mlx.core as mx
import numpy as np
from mlx import nn

SINUSOID_CHANNELS = 256


def sinusoidal_embedding(timesteps: np.ndarray | mx.array, channels: int = SINUSOID_CHANNELS) -> mx.array:
    """(...,) timesteps in 0..1000 -> (..., channels) float32: cosines, then sines, of t*10000^(-i/half)."""
    half = channels // 2
    frequencies = mx.exp(mx.arange(half, dtype=mx.float32) * (-math.log(10000.0) / half))
    angles = mx.array(timesteps, dtype=mx.float32)[..., None] * frequencies
    return mx.concatenate([mx.cos(angles), mx.sin(angles)], axis=-1)


class TimestepMLP(nn.Module):
    """Linear, SiLU, Linear; checkpoint names linear_1 and linear_2."""

    def __init__(self, dims: int, in_channels: int = SINUSOID_CHANNELS):
        super().__init__()
        self.linear_1 = nn.Linear(in_channels, dims)
        self.linear_2 = nn.Linear(dims, dims)

    def __call__(self, x: mx.array) -> mx.array:
        return self.linear_2(nn.silu(self.linear_1(x)))


class TimestepEmbedder(nn.Module):
    """Sinusoid and perceptron; checkpoint name timestep_embedder."""

    def __init__(self, dims: int):
        super().__init__()
        self.timestep_embedder = TimestepMLP(dims)

    def __call__(self, timesteps: np.ndarray | mx.array, dtype: mx.Dtype) -> mx.array:
        """(...,) timesteps in 0..1000 -> (..., dims) in `dtype`."""
        return self.timestep_embedder(sinusoidal_embedding(timesteps).astype(dtype))
