"""Adaptive layer norm: rows of scale, shift and gate from a noise level, and how they lie over the tokens.

A clip has few distinct noise levels (one in text-to-video, two when an image is given), so rows are computed
once per level and never per token.
Paper: PixArt-alpha (2310.00426), section 2.3. Reference: ltx_core.model.transformer.adaln.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import mlx.core as mx
import numpy as np
from mlx import nn

from mlx_ltx2.models.layers.kernels import fused, silu
from mlx_ltx2.models.layers.timestep import TimestepEmbedder

MAX_RUNS = 16
"""With more stretches than this, one gather is cheaper than a kernel for each stretch."""


class AdaLayerNormSingle(nn.Module):
    """Timestep -> `rows` rows of modulation. Checkpoint names emb and linear."""

    def __init__(self, dim: int, rows: int):
        super().__init__()
        self.rows = rows
        self.emb = TimestepEmbedder(dim)
        self.linear = nn.Linear(dim, rows * dim)

    def __call__(self, timesteps: np.ndarray, dtype: mx.Dtype) -> tuple[mx.array, mx.array]:
        """(B, K) timesteps in 0..1000 -> rows (B, K, rows, dim) and the embedding behind them (B, K, dim)."""
        embedded = self.emb(timesteps, dtype)
        return self.linear(silu(embedded)).reshape(*timesteps.shape, self.rows, -1), embedded


@dataclass(frozen=True)
class Levels:
    """Noise levels of a stream and which tokens they hold for.

    values: (B, K) float32. runs: lengths of K consecutive stretches of tokens, or None for K == 1.
    index: (B, N) int32 into the values of batch row 0 instead, where stretches would be too many.
    """

    values: np.ndarray
    runs: tuple[int, ...] | None = None
    index: np.ndarray | None = None

    @classmethod
    def of(cls, timesteps: np.ndarray, runs: tuple[int, ...] | None, tokens: int) -> Levels:
        """Shortest form of `Modality.timesteps` and `Modality.runs` for a stream of `tokens` tokens.

        Raises ValueError if they do not fit each other.
        """
        timesteps = np.asarray(timesteps, np.float32)
        if timesteps.ndim != 2 or timesteps.shape[1] not in (1, len(runs) if runs else tokens):
            raise ValueError(f"timesteps {timesteps.shape} with runs {runs} do not fit {tokens} tokens")
        if runs is not None and sum(runs) != tokens:
            raise ValueError(f"runs {runs} cover {sum(runs)} tokens of {tokens}")
        if runs is not None and timesteps.shape[1] == len(runs):
            timesteps = np.repeat(timesteps, runs, axis=1)
        starts = np.flatnonzero(np.append(True, (timesteps[:, 1:] != timesteps[:, :-1]).any(axis=0)))
        if len(starts) == 1:
            return cls(timesteps[:, :1])
        if len(starts) <= MAX_RUNS:
            return cls(timesteps[:, starts], tuple(np.diff(np.append(starts, tokens)).tolist()))
        values, index = np.unique(timesteps, return_inverse=True)
        return cls(values[None], index=index.reshape(timesteps.shape).astype(np.int32))


def over_tokens(
    function: Callable[..., mx.array], levels: Levels, tokens: list[mx.array], rows: list[mx.array]
) -> mx.array:
    """function(*tokens, *rows) with each row of modulation on the tokens that it holds for.

    tokens: arrays (B, N, dim). rows: arrays (B, K, dim), as many rows as `levels` has values.
    """
    if levels.index is not None:
        index = mx.array(levels.index)
        return function(*tokens, *(row[0][index] for row in rows))
    if levels.runs is None:
        return function(*tokens, *rows)
    # The longest stretch decides for all tokens, the others are written over it: that costs as much as they are long,
    # where joining all stretches would copy every token.
    longest = int(np.argmax(levels.runs))
    out = function(*tokens, *(row[:, longest : longest + 1] for row in rows))
    start = 0
    for k, length in enumerate(levels.runs):
        here = slice(start, start + length)
        if k != longest:
            out[:, here] = function(*(t[:, here] for t in tokens), *(row[:, k : k + 1] for row in rows))
        start += length
    return out


def norm_modulate(x: mx.array, weight: mx.array, shift: mx.array, levels: Levels, eps: float) -> mx.array:
    """rms(x) * weight + shift. x: (B, N, dim), weight (1 + scale) and shift: (B, K, dim)."""

    def modulate(x: mx.array, weight: mx.array, shift: mx.array) -> mx.array:
        if weight.shape[:2] == (1, 1):
            # One row for all tokens is a norm with a weight: one kernel less and no normed copy of x.
            return mx.fast.rms_norm(x, weight[0, 0], eps) + shift
        return scale_shift(mx.fast.rms_norm(x, None, eps), weight, shift)

    return over_tokens(modulate, levels, [x], [weight, shift])


def add_gated(x: mx.array, update: mx.array, gate: mx.array, levels: Levels) -> mx.array:
    """x + update * gate. x, update: (B, N, dim), gate: (B, K, dim)."""
    return over_tokens(_add_scaled, levels, [x, update], [gate])


# Each of these is one fused kernel. They are compiled for the shapes they meet, never `shapeless`, and hold no number
# of their own that depends on a shape.


@fused
def add_table(rows: mx.array, table: mx.array) -> mx.array:
    """rows + table in the type of the rows: files may hold tables in float32, which would widen all activations."""
    return rows + table.astype(rows.dtype)


@fused
def scale_shift(x: mx.array, weight: mx.array, shift: mx.array) -> mx.array:
    """x * weight + shift."""
    return x * weight + shift


@fused
def _add_scaled(x: mx.array, update: mx.array, gate: mx.array) -> mx.array:
    return x + update * gate
