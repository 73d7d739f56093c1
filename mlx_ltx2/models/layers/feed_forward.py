"""Feed-forward layer: Linear to four times the width, tanh-approximated GELU, Linear back.

Reference: ltx_core.model.transformer.feed_forward; config key activation_fn "gelu-approximate".
"""

from __future__ import annotations

import mlx.core as mx
from mlx import nn

from mlx_ltx2.models.layers.kernels import fused

ROWS = 4096
"""Longer sequences go in pieces of at most so many rows: the same numbers, a smaller inner activation."""


@fused
def gelu_tanh(x: mx.array) -> mx.array:
    """GELU in its tanh approximation, computed in float32 and rounded once, as the reference does."""
    # (1 + tanh z)/2 is sigmoid(2z). Written so, and without a power, it becomes one fused kernel: the float32
    # values never reach memory. `shapeless` would split it and write the widest activation out in float32.
    y = x.astype(mx.float32)
    return (y * mx.sigmoid(y * (1.5957691216057308 + 0.07135481627260025 * (y * y)))).astype(x.dtype)


class GELUProjection(nn.Module):
    """Linear and GELU; checkpoint name proj."""

    def __init__(self, dim: int, inner: int):
        super().__init__()
        self.proj = nn.Linear(dim, inner)

    def __call__(self, x: mx.array) -> mx.array:
        return gelu_tanh(self.proj(x))


class FeedForward(nn.Module):
    """(B, N, dim) -> (B, N, dim). Checkpoint names net.0.proj and net.2."""

    def __init__(self, dim: int):
        super().__init__()
        self.net = [GELUProjection(dim, 4 * dim), nn.Identity(), nn.Linear(4 * dim, dim)]

    def __call__(self, x: mx.array) -> mx.array:
        rows = x.shape[1]
        if rows <= ROWS:
            out: mx.array = self.net[2](self.net[0](x))
            return out
        pieces = mx.split(x, range(ROWS, rows, ROWS), axis=1)
        return mx.concatenate([self.net[2](self.net[0](piece)) for piece in pieces], axis=1)
