"""Tensor layout: the official files are channels-first, MLX convolutions are channels-last.

The rule stands here once and serves loading, conversion, LoRA and the tests. Names never change, so a layout is a
permutation decided by the tensor's name and rank alone.
"""

from __future__ import annotations

import re
from typing import Any

_TRANSPOSED_CONV = re.compile(r"(^|\.)ups\.\d+\.weight$")
_CONV_1D = (".weight", ".filter", "_basis")
_NOT_A_CONV = re.compile(r"(^|\.)(per_channel_scale[12]|mel_basis)$")


def permutation(name: str, ndim: int) -> tuple[int, ...] | None:
    """Axes that turn the official tensor `name` into MLX's layout, or None if it stays as it is."""
    if _NOT_A_CONV.search(name) or ndim < 3:
        return None
    if ndim == 3:
        if _TRANSPOSED_CONV.search(name):
            return (1, 2, 0)  # (in, out, k) -> (out, k, in)
        return (0, 2, 1) if name.endswith(_CONV_1D) else None
    return (0, *range(2, ndim), 1)  # (out, in, ...) -> (out, ..., in)


def mlx_shape(name: str, shape: tuple[int, ...]) -> tuple[int, ...]:
    """Shape of the official tensor `name` after conversion."""
    axes = permutation(name, len(shape))
    return tuple(shape) if axes is None else tuple(shape[a] for a in axes)


def official_shape(name: str, shape: tuple[int, ...]) -> tuple[int, ...]:
    """Inverse of `mlx_shape`."""
    axes = permutation(name, len(shape))
    if axes is None:
        return tuple(shape)
    return tuple(shape[axes.index(i)] for i in range(len(shape)))


def to_mlx_layout(name: str, array: Any) -> Any:
    """Official layout -> MLX layout, for numpy and MLX arrays alike."""
    axes = permutation(name, array.ndim)
    return array if axes is None else array.transpose(*axes)
