"""Grey pictures of 12, 16 and 32 bits and of floats -> 8 bits: which number is black and which is white."""

from __future__ import annotations

from typing import Any

import numpy as np

NUMBER_MODES = ("I", "F", "I;16", "I;16B", "I;16L", "I;16N")
"""Pillow's modes of one channel that are no bytes."""

_BITS, _PHOTOMETRIC, _PLANAR, _FORMAT = 258, 262, 284, 339  # tags of TIFF 6.0
_SIGNED, _WHITE_IS_ZERO = 2, 0


def eight_bit(values: np.ndarray, opened: Any) -> tuple[np.ndarray, list[str]]:
    """Numbers (H, W) of a picture -> uint8 (H, W), and what has to be said about it.

    opened: Pillow's picture, for what its file says. Integers of up to 16 bits span their type. Of floats, 0 to 1 is
    black to white; whole floats and integers of 32 bits up to 255 or 65535 are taken for 8 or 16 bits; any other range
    is scaled from its lowest (at most 0) to its highest number, which is said. What is no number is black.
    """
    bits, signed, inverted = _described(opened)
    if signed and bits == 8:
        values = values.view(np.int8)
    elif bits == 32 and values.dtype == np.int32 and not signed:
        values = values.view(np.uint32)
    notes: list[str] = []
    if values.dtype.kind == "f":
        finite = np.isfinite(values)
        if not finite.all():
            notes.append(f"{np.count_nonzero(~finite)} pixels that are no finite numbers were read as black")
            values = np.where(finite, values, 0)
    if bits < 32:
        black, white = (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1) if signed else (0, 2**bits - 1)
    else:
        black, white = _range(values)
        if white != 1 or black:
            name = "float" if values.dtype.kind == "f" else "integer"
            notes.append(f"32-bit {name} values were scaled from the range {black:g} to {white:g}")
    span = np.float32(255 / (float(white) - float(black)))
    grey = values.astype(np.float32)
    grey -= np.float32(black)
    grey *= span
    pixels = np.clip(np.rint(grey, out=grey), 0, 255, out=grey).astype(np.uint8)
    return (255 - pixels if inverted else pixels), notes


def unreadable_layout(opened: Any) -> str | None:
    """What about a TIFF's samples Pillow would misread, in words; None if nothing."""
    if opened.format != "TIFF":
        return None
    bits = opened.tag_v2.get(_BITS, (1,))
    if opened.tag_v2.get(_PLANAR, 1) == 2 and len(bits) > 1 and max(bits) > 8:
        return f"its {max(bits)}-bit colours lie in separate planes"
    return None


def _described(opened: Any) -> tuple[int, bool, bool]:
    """Bits of a number, whether it has a sign, whether white is the lowest."""
    if opened.format == "TIFF":
        tags = opened.tag_v2
        inverted = tags.get(_PHOTOMETRIC) == _WHITE_IS_ZERO
        return tags.get(_BITS, (1,))[0], tags.get(_FORMAT, (1,))[0] == _SIGNED, inverted
    return (32 if opened.mode == "F" else 16), False, False  # PNG, PPM and JPEG 2000 hold 16 bits at most


def _range(values: np.ndarray) -> tuple[float, float]:
    lowest, highest = float(values.min()), float(values.max())
    if lowest >= 0:
        if values.dtype.kind == "f" and highest <= 1:
            return 0, 1
        for white in (255, 65535):
            if highest <= white and (values.dtype.kind != "f" or np.array_equal(values, np.rint(values))):
                return 0, white
    return min(lowest, 0), max(highest, min(lowest, 0) + 1e-6)
