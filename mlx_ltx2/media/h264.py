"""x264's settings: the official ones, and such that the same pictures always give the same bytes."""

from __future__ import annotations

import platform

THREADS = 1
"""x264 cuts a picture into as many slices as it has threads, so their number shows in the result."""

LOSSLESS = (
    "crf below 1 is lossless H.264 in the profile High 4:4:4 Predictive, which QuickTime, browsers on Macs and most "
    "players in hardware cannot show; use crf 1 or more for them."
)

_X86 = ("x86_64", "amd64", "i386", "i686")


def is_lossless(crf: float) -> bool:
    """Whether x264 keeps every pixel at this rate factor: it cuts the fraction off to see whether 0 is meant."""
    return crf < 1


def encoder_options(crf: float) -> dict[str, str]:
    """Options of ffmpeg's libx264 for a constant rate factor from 0 to 51.

    The preset is that of ltx-pipelines 1.2.0 (media_io/encode.py, media_io/decode.py). Chroma lies between
    the four pixels that it was averaged from.
    """
    parameters = ["chromaloc=1"]
    if platform.machine().lower() in _X86:
        # With AVX-512, x264 165 coded one clip in 200 differently from run to run; with AVX2 none in 2,000.
        parameters.append("asm=AVX2")
    return {"crf": str(crf), "preset": "veryfast", "x264-params": ":".join(parameters)}
