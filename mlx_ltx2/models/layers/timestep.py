"""Timestep embeddings: float32 sinusoids, then a two-layer perceptron in the weights' dtype."""

from __future__ import annotations

import math

import mlx.core as mx
import numpy as np
from mlx import nn

from mlx_ltx2.models.layers.kernels import silu

SINUSOID_CHANNELS = 256


def _frequencies(half: int) -> np.ndarray:
    """10000^(-i/half), i = 0..half-1; the float32 exponent is part of the official arithmetic."""
    exponents = np.float32(-math.log(10000.0)) * np.arange(half, dtype=np.float32) / np.float32(half)
    return np.exp(exponents.astype(np.float64)).astype(np.float32)


def sinusoidal_embedding(timesteps: np.ndarray | mx.array, channels: int = SINUSOID_CHANNELS) -> mx.array:
    """(...,) timesteps in 0..1000 -> (..., channels) float32: cosines, then sines, of t*10000^(-i/half).

    Timesteps on the host are embedded there, with an exact sine and one transfer.
    """
    frequencies = _frequencies(channels // 2)
    if isinstance(timesteps, mx.array):
        angles = timesteps.astype(mx.float32)[..., None] * mx.array(frequencies)
        return mx.concatenate([mx.cos(angles), mx.sin(angles)], axis=-1)
    phases = np.asarray(timesteps, np.float32)[..., None] * frequencies
    return mx.array(np.concatenate([np.cos(phases), np.sin(phases)], axis=-1))


class TimestepMLP(nn.Module):
    """Linear, SiLU, Linear; checkpoint names linear_1 and linear_2."""

    def __init__(self, dims: int, in_channels: int = SINUSOID_CHANNELS):
        super().__init__()
        self.linear_1 = nn.Linear(in_channels, dims)
        self.linear_2 = nn.Linear(dims, dims)

    def __call__(self, x: mx.array) -> mx.array:
        return self.linear_2(silu(self.linear_1(x)))


class TimestepEmbedder(nn.Module):
    """Sinusoid and perceptron; checkpoint name timestep_embedder."""

    def __init__(self, dims: int):
        super().__init__()
        self.timestep_embedder = TimestepMLP(dims)

    def __call__(self, timesteps: np.ndarray | mx.array, dtype: mx.Dtype) -> mx.array:
        """(...,) timesteps in 0..1000 -> (..., dims) in `dtype`."""
        return self.timestep_embedder(sinusoidal_embedding(timesteps).astype(dtype))
