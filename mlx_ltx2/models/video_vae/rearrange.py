"""Moves between channels and the grid, channels last."""

from __future__ import annotations

import mlx.core as mx


def space_to_depth(x: mx.array, stride: tuple[int, int, int]) -> mx.array:
    """(B,F,H,W,C) -> (B,F/s,H/s,W/s,C*s*s*s); channel order c, frame, row, column."""
    b, f, h, w, c = x.shape
    sf, sh, sw = stride
    x = x.reshape(b, f // sf, sf, h // sh, sh, w // sw, sw, c)
    return x.transpose(0, 1, 3, 5, 7, 2, 4, 6).reshape(b, f // sf, h // sh, w // sw, c * sf * sh * sw)


def depth_to_space(x: mx.array, stride: tuple[int, int, int]) -> mx.array:
    """Inverse of `space_to_depth`."""
    b, f, h, w, c = x.shape
    sf, sh, sw = stride
    x = x.reshape(b, f, h, w, c // (sf * sh * sw), sf, sh, sw)
    return x.transpose(0, 1, 5, 2, 6, 3, 7, 4).reshape(b, f * sf, h * sh, w * sw, c // (sf * sh * sw))


def patchify_pixels(x: mx.array, size: int) -> mx.array:
    """(B,F,H,W,C) -> (B,F,H/size,W/size,C*size*size); channel order c, column, row (columns before rows)."""
    b, f, h, w, c = x.shape
    x = x.reshape(b, f, h // size, size, w // size, size, c)
    return x.transpose(0, 1, 2, 4, 6, 5, 3).reshape(b, f, h // size, w // size, c * size * size)


def unpatchify_pixels(x: mx.array, size: int) -> mx.array:
    """Inverse of `patchify_pixels`."""
    b, f, h, w, c = x.shape
    x = x.reshape(b, f, h, w, c // (size * size), size, size)
    return x.transpose(0, 1, 2, 6, 3, 5, 4).reshape(b, f, h * size, w * size, c // (size * size))
