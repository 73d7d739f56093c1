"""Weightless normalisations shared by the networks."""

from __future__ import annotations

import mlx.core as mx


def rms_norm(x: mx.array, eps: float = 1e-6) -> mx.array:
    """x / sqrt(mean(x^2) + eps) over the last axis, accumulated in float32, result in x's dtype."""
    return mx.fast.rms_norm(x, None, eps)


def pixel_norm(x: mx.array, eps: float) -> mx.array:
    """RMS norm over channels as the VAEs use it (eps 1e-8 for video, 1e-6 for audio)."""
    return mx.fast.rms_norm(x, None, eps)
