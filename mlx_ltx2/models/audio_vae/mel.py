"""Log-mel front end of the audio encoder (reference: `ltx_core.model.audio_vae.ops.AudioProcessor`)."""

from __future__ import annotations

from functools import lru_cache

import mlx.core as mx
import numpy as np

from mlx_ltx2.errors import ShapeError
from mlx_ltx2.models.audio_vae.autoencoder import AudioVAEConfig

LOG_FLOOR = 1e-5
_LINEAR_HZ = 200 / 3
_KNEE_HZ = 1000.0
_LOG_STEP = np.log(6.4) / 27


def log_mel(samples: mx.array, config: AudioVAEConfig) -> mx.array:
    """Natural logarithm of Slaney mel magnitudes.

    samples: (B, N, channels) float32 at config.rate_hz, N > n_fft / 2.
    Returns (B, N // hop_length + 1, mel_bins, channels) float32. Frames are centred: frame i looks n_fft / 2
    samples to either side of sample i * hop_length, with the signal mirrored at its ends; window periodic
    Hann, magnitude (power 1), floor 1e-5.

    Raises: ShapeError if there are too few samples to mirror.
    """
    half = config.n_fft // 2
    if samples.ndim != 3 or samples.shape[1] <= half:
        raise ShapeError(
            f"samples have shape {samples.shape}; log_mel takes (B, N, channels) with N > {half} "
            f"({half / config.rate_hz:.3f} s). Use a longer sound."
        )
    b, n, channels = samples.shape
    x = samples.astype(mx.float32).transpose(0, 2, 1).reshape(b * channels, n)
    x = mx.concatenate([x[:, half:0:-1], x, x[:, ::-1][:, 1 : half + 1]], axis=1)
    frames = n // config.hop_length + 1
    x = mx.as_strided(x, (b * channels, frames, config.n_fft), (x.shape[1], config.hop_length, 1))
    magnitude = mx.abs(mx.fft.rfft(x * mx.array(_hann(config.n_fft))))
    mel = magnitude @ mx.array(mel_bank(config.rate_hz, config.n_fft, config.mel_bins))
    mel = mx.log(mx.maximum(mel, LOG_FLOOR))
    return mel.reshape(b, channels, frames, config.mel_bins).transpose(0, 2, 3, 1)


@lru_cache(maxsize=4)
def _hann(size: int) -> np.ndarray:
    return (0.5 - 0.5 * np.cos(2 * np.pi * np.arange(size) / size)).astype(np.float32)


@lru_cache(maxsize=4)
def mel_bank(rate_hz: int, n_fft: int, bins: int) -> np.ndarray:
    """Triangular filters (n_fft / 2 + 1, bins) from 0 Hz to rate_hz / 2: Slaney's scale, each of area 1.

    Source: Slaney, Auditory Toolbox (1998): linear below 1 kHz, then 27 steps per factor of 6.4.
    """
    top = _hz_to_mel(rate_hz / 2)
    edges = _mel_to_hz(np.linspace(0.0, top, bins + 2))
    offsets = edges[None, :] - np.linspace(0, rate_hz / 2, n_fft // 2 + 1)[:, None]
    widths = np.diff(edges)
    rising, falling = -offsets[:, :-2] / widths[:-1], offsets[:, 2:] / widths[1:]
    triangles = np.maximum(0, np.minimum(rising, falling))
    result: np.ndarray = (triangles * (2 / (edges[2:] - edges[:-2]))).astype(np.float32)
    return result


def _hz_to_mel(hz: float) -> float:
    if hz < _KNEE_HZ:
        return hz / _LINEAR_HZ
    return float(_KNEE_HZ / _LINEAR_HZ + np.log(hz / _KNEE_HZ) / _LOG_STEP)


def _mel_to_hz(mel: np.ndarray) -> np.ndarray:
    knee = _KNEE_HZ / _LINEAR_HZ
    return np.where(mel < knee, mel * _LINEAR_HZ, _KNEE_HZ * np.exp(_LOG_STEP * (np.maximum(mel, knee) - knee)))
