"""Exact frame rates, and how many samples of sound belong to so many frames."""

from __future__ import annotations

import math
from fractions import Fraction

from mlx_ltx2.errors import RequestError

_NTSC_TOLERANCE = 0.005
"""23.98, 29.97 and 59.94 are spellings of n * 1000 / 1001; 24, 30 and 60 lie at least 0.02 away."""


def exact_fps(fps: float | Fraction | str) -> Fraction:
    """The frame rate that a number stands for, as a fraction.

    Whole numbers and fractions stay what they are; floats near n * 1000 / 1001 become that broadcast rate
    (23.976 -> 24000/1001); every other float becomes the nearest fraction with a denominator up to 1001.
    A string may be "24", "29.97" or "30000/1001".

    Raises RequestError for anything that is not a finite number in (0, 1000].
    """
    try:
        value = Fraction(fps) if not isinstance(fps, float) or math.isfinite(fps) else None
    except (ValueError, TypeError, ZeroDivisionError):
        value = None
    if value is None or not 0 < value <= 1000:
        raise RequestError(f"fps {fps!r} is not a frame rate; use a number above 0 and at most 1000, or 30000/1001.")
    if value.denominator <= 1001:
        written_as_fraction = isinstance(fps, Fraction) or (isinstance(fps, str) and "/" in fps)
        if written_as_fraction or value.denominator == 1:
            return value
    broadcast = Fraction(round(value * Fraction(1001, 1000)) * 1000, 1001)
    if abs(value - broadcast) < _NTSC_TOLERANCE and broadcast.numerator % 1000 == 0 and broadcast > 0:
        return broadcast
    return value.limit_denominator(1001)


def samples_for_frames(num_frames: int, fps: float | Fraction | str, rate_hz: int) -> int:
    """Samples of sound that last exactly as long as `num_frames` pictures, rounded to the nearest sample."""
    return round(num_frames / exact_fps(fps) * rate_hz)
