"""How much room a file may take: never less than what is written, for the noisiest pictures that there are."""

from __future__ import annotations

import math

from mlx_ltx2.media.files import AUDIO_SUFFIXES, VIDEO_SUFFIXES
from mlx_ltx2.media.h264 import is_lossless

_BASE_BYTES = 50_000
"""Tables of the container and the record of the run."""

_PIXEL_BYTES = {".gif": 1.5, ".webp": 1.0, ".png": 3.1, ".jpg": 2.7, ".jpeg": 2.7}
"""Noise of 8 bits in three channels takes 1.39, 0.86, 3.01 and 2.45 bytes a pixel as this program writes it."""

_LOSSLESS_BYTES = 2.0
"""Bytes a pixel of lossless H.264; noise takes 1.75."""

_AAC_BYTES_PER_SECOND = 26_000
_WAV_BYTES_PER_SECOND = 4 * 96_000


def clip_bytes(
    suffix: str, num_frames: int, height: int, width: int, fps: float, crf: float = 19, sound: bool = True
) -> int:
    """An upper bound of the bytes of a clip that is encoded: real clips take a small part of it.

    suffix: kind of file; for .png and .jpg, of a folder of them. crf: of .mp4 and .mov.
    """
    suffix = suffix.lower()
    seconds = num_frames / fps
    if suffix in AUDIO_SUFFIXES:
        return _BASE_BYTES + math.ceil(seconds * _WAV_BYTES_PER_SECOND)
    if suffix in VIDEO_SUFFIXES:
        pixel = _LOSSLESS_BYTES if is_lossless(crf) else _h264_pixel_bytes(crf)
        track = seconds * _AAC_BYTES_PER_SECOND if sound else 0
    else:
        pixel, track = _PIXEL_BYTES.get(suffix, 3.1), 0
    return _BASE_BYTES + math.ceil(num_frames * (height * width * pixel + 500) + track)


def _h264_pixel_bytes(crf: float) -> float:
    """A line above what noise takes: 1.31 bytes a pixel at crf 1, 0.61 at 19, 0.31 at 30, 0.12 at 40 and beyond."""
    return max(0.15, 1.45 * (1 - crf / 42))
