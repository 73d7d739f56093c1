"""Which way up a picture is shown: a display matrix -> one of the eight ways to lay a rectangle."""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import Any

import numpy as np

_NEGLIGIBLE = 0.01
"""Share of a matrix's turning part below which it is rounding, about half a degree."""


@dataclass(frozen=True)
class Orientation:
    """How a stored picture becomes the shown one: sides exchanged first, then mirrored left-right and top-bottom.

    exact: False where the matrix asked for something in between, of which this is the nearest.
    """

    transposed: bool = False
    mirrored_x: bool = False
    mirrored_y: bool = False
    exact: bool = True

    @property
    def upright(self) -> bool:
        return not (self.transposed or self.mirrored_x or self.mirrored_y)

    @property
    def degrees(self) -> int:
        """Counter-clockwise turn: 0, 90, 180, 270; of a mirrored one, the turn that follows a left-right mirroring."""
        if self.transposed:
            return 90 if self.mirrored_y else 270
        return 180 if self.mirrored_y else 0

    def applied(self, picture: np.ndarray) -> np.ndarray:
        """(H, W, C) as stored -> as shown, contiguous."""
        if self.upright:
            return picture
        shown = picture.swapaxes(0, 1) if self.transposed else picture
        shown = shown[:, ::-1] if self.mirrored_x else shown
        return np.ascontiguousarray(shown[::-1] if self.mirrored_y else shown)


def orientation_of(frame: Any) -> Orientation:
    """The orientation of a decoded frame, from the whole display matrix of its side data.

    Source: ISO/IEC 14496-12, 8.3.2: x' = a x + c y, y' = b x + d y, y downwards; FFmpeg stores a, b, u, c, d, v, ....
    """
    matrix = next((data for data in frame.side_data if data.type.name == "DISPLAYMATRIX"), None)
    if matrix is None:
        return Orientation()
    a, b, _, c, d, *_ = struct.unpack("=9i", bytes(matrix)[:36])
    straight, across = abs(a) + abs(d), abs(b) + abs(c)
    exact = min(straight, across) <= _NEGLIGIBLE * max(straight, across, 1)
    if across > straight:
        return Orientation(True, c < 0, b < 0, exact)
    return Orientation(False, a < 0, d < 0, exact)
