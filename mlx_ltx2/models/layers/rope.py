"""Rotary position embeddings from real-valued positions.

Tables are computed on the host: angles reach 15708 rad, where one float32 step is 1e-3 rad, so the order of
operations and an exact sine decide the result, and a GPU's fast trigonometry would not do.
Reference: ltx_core.model.transformer.rope; config keys rope_type, frequencies_precision and
positional_embedding_theta.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import mlx.core as mx
import numpy as np

from mlx_ltx2.models.layers.kernels import fused

RopeLayout = Literal["split", "interleaved"]
FrequenciesPrecision = Literal["float64", "float32"]


@dataclass(frozen=True)
class RopeConfig:
    """theta: ratio of the highest frequency to the lowest. layout: which channels of a head form a pair,
    i and i + half ("split") or neighbours ("interleaved"). frequencies_precision: of the frequency grid."""

    theta: float = 10000.0
    layout: RopeLayout = "split"
    frequencies_precision: FrequenciesPrecision = "float64"


@dataclass(frozen=True)
class Rope:
    """Rotation of one set of tokens, shared by all layers.

    cos: (B, N, H, 1, D/2), sin: (B, N, H, 2, D/2) with the sign of the rotation in it ("split"); the last two
    axes are exchanged for "interleaved". B is 1 where all samples have the same positions.
    """

    cos: mx.array
    sin: mx.array
    layout: RopeLayout = "split"

    def __call__(self, x: mx.array) -> mx.array:
        """Rotate (B, N, H, D); the result has x's dtype if the tables have it."""
        pairs = x.reshape(*x.shape[:3], *self.sin.shape[-2:])
        partner = pairs[..., ::-1, :] if self.layout == "split" else pairs[..., ::-1]
        return _rotate(pairs, partner, self.cos, self.sin).reshape(x.shape)


@fused
def _rotate(pairs: mx.array, partner: mx.array, cos: mx.array, sin: mx.array) -> mx.array:
    # One kernel instead of three. Compiled for the shapes it meets: `shapeless` would not fuse the broadcast.
    return pairs * cos + partner * sin


def midpoints(bounds: np.ndarray) -> np.ndarray:
    """(B, axes, N, 2) [start, end) bounds -> (B, axes, N) float32 centres."""
    bounds = np.asarray(bounds, np.float32)
    result: np.ndarray = (bounds[..., 0] + bounds[..., 1]) / np.float32(2)
    return result


def frequencies(theta: float, count: int, precision: FrequenciesPrecision = "float64") -> np.ndarray:
    """`count` angular frequencies from pi/2 to theta*pi/2 in geometric steps, as float32."""
    if precision == "float64":
        exponents = np.linspace(0.0, 1.0, count, dtype=np.float64)
        return (np.power(float(theta), exponents) * np.pi / 2).astype(np.float32)
    step, index = np.float64(np.float32(1 / max(count - 1, 1))), np.arange(count)
    # A float32 grid is laid from both ends towards the middle, as torch.linspace does it.
    exponents = np.where(index < count // 2, step * index, 1 - step * (count - 1 - index))
    exponents = exponents.astype(np.float32) if count > 1 else np.zeros(1, np.float32)
    grid = np.power(float(theta), exponents.astype(np.float64)).astype(np.float32)
    return grid * np.float32(np.pi) / np.float32(2)


def build_rope(
    positions: np.ndarray,
    *,
    dim: int,
    heads: int,
    max_positions: Sequence[float],
    config: RopeConfig,
    dtype: mx.Dtype = mx.float32,
) -> Rope:
    """Tables for tokens at `positions`, (B, axes, N) float32.

    dim: width of queries over all heads. max_positions: per axis, the position that maps to 1; 0 maps to -1.
    Pairs that the axes do not share evenly stay unrotated and stand in front, so they belong to the first
    head; each head has its own stretch of the frequency list.
    """
    positions = np.asarray(positions, np.float32)
    if len(positions) > 1 and (positions == positions[:1]).all():
        positions = positions[:1]
    batch, axes, tokens = positions.shape
    if axes != len(max_positions):
        raise ValueError(f"positions have {axes} axes, max_positions {len(max_positions)}")
    grid = frequencies(config.theta, dim // (2 * axes), config.frequencies_precision)
    cosines, sines = [], []
    for axis, limit in enumerate(max_positions):
        # Positions of one axis repeat across the grid: sines once per distinct value, spread on the device.
        distinct, index = np.unique(positions[:, axis], return_inverse=True)
        fractions = distinct / np.float32(limit)
        angles = grid * (fractions[:, None] * np.float32(2) - np.float32(1))
        spread = mx.array(index.reshape(batch, tokens).astype(np.int32))
        cosines.append(mx.array(np.cos(angles)).astype(dtype)[spread])
        sines.append(mx.array(np.sin(angles)).astype(dtype)[spread])
    pair_axis = -2 if config.layout == "split" else -1
    unrotated = dim // 2 - axes * len(grid)

    def per_head(parts: list[mx.array], padding: float) -> mx.array:
        table = mx.stack(parts, axis=-1).reshape(batch, tokens, -1)
        table = mx.pad(table, [(0, 0), (0, 0), (unrotated, 0)], constant_values=padding)
        return mx.expand_dims(table.reshape(batch, tokens, heads, -1), pair_axis)

    sin = per_head(sines, 0)
    return Rope(per_head(cosines, 1), mx.concatenate([-sin, sin], axis=pair_axis), config.layout)
