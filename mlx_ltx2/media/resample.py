"""Change of sampling rate by a windowed sinc: the arithmetic of `torchaudio.functional.resample`'s defaults.

Only the taps inside the window are ever computed, so memory depends on neither the rates' common divisor nor,
beyond one padded copy, the length of the sound.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view

from mlx_ltx2.errors import ShapeError

ZERO_CROSSINGS = 6
ROLLOFF = 0.99
_TABLE_PHASES = 4096
_BLOCK_ELEMENTS = 1 << 20


def resample(samples: np.ndarray, from_hz: int, to_hz: int) -> np.ndarray:
    """Resample a sound.

    samples: (N, channels) float. from_hz, to_hz: whole positive rates.
    Returns float32 (ceil(N * to_hz / from_hz), channels); the input's own values if the rates are equal.

    Raises: ShapeError for a rate that is no positive whole number or samples that are not two-dimensional.
    """
    for name, rate in (("from_hz", from_hz), ("to_hz", to_hz)):
        if int(rate) != rate or rate <= 0:
            raise ShapeError(
                f"{name} {rate} is not a sampling rate; use a positive whole number of samples per second."
            )
    if samples.ndim != 2:
        raise ShapeError(f"samples have shape {samples.shape}; use (N, channels).")
    samples = np.asarray(samples, np.float32)
    if from_hz == to_hz or not len(samples):
        return samples
    divisor = math.gcd(int(from_hz), int(to_hz))
    old, new = int(from_hz) // divisor, int(to_hz) // divisor

    cutoff = min(old, new) * ROLLOFF / old
    reach = math.ceil(ZERO_CROSSINGS / cutoff)
    taps = 2 * reach + 1
    total = -(-len(samples) * new // old)
    windows = sliding_window_view(np.pad(samples, ((reach, reach), (0, 0))), taps, axis=0)
    table = _taps(np.arange(new), new, reach, cutoff) if new <= _TABLE_PHASES else None

    output = np.empty((total, samples.shape[1]), np.float32)
    block = max(1, _BLOCK_ELEMENTS // (taps * samples.shape[1]))
    for start in range(0, total, block):
        # Output n sits at input position n * old / new = centre + phase / new, in whole numbers.
        centre, phase = np.divmod(np.arange(start, min(start + block, total), dtype=np.int64) * old, new)
        weights = _taps(phase, new, reach, cutoff) if table is None else table[phase]
        output[start : start + len(centre)] = np.einsum("nct,nt->nc", windows[centre], weights)
    return output


def _taps(phase: np.ndarray, new: int, reach: int, cutoff: float) -> np.ndarray:
    """(len(phase), 2 * reach + 1) weights of the input samples around the one at or before each output."""
    offsets = np.arange(-reach, reach + 1, dtype=np.float64)
    crossings = np.clip((offsets - phase[:, None] / new) * cutoff, -ZERO_CROSSINGS, ZERO_CROSSINGS)
    window = np.cos(crossings * (np.pi / ZERO_CROSSINGS / 2)) ** 2
    return np.asarray((np.sinc(crossings) * window * cutoff).astype(np.float32))
