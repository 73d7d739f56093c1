"""Stops a run whose numbers went wrong, before a broken clip is written.

Damaged weights of the right shape and an overflow of float16 load without complaint and show only in what they compute.
"""

from __future__ import annotations

import mlx.core as mx
import numpy as np

from mlx_ltx2.errors import LTX2Error

_ADVICE = (
    "The weights are damaged, or overflow in their type: compare them with their hashes (`mlx-ltx2 info MODEL "
    "--verify`), and use bfloat16 rather than float16."
)


def refuse_non_finite(array: mx.array, who: str) -> None:
    """Raise LTX2Error if `array` holds a NaN or an infinity. who: what computed it, for the message."""
    if not mx.all(mx.isfinite(array)).item():
        raise LTX2Error(f"{who} produced values that are no numbers (NaN or infinite). {_ADVICE}")


class Flatness:
    """Watches a picture that arrives in stretches: one single value throughout is no picture."""

    def __init__(self) -> None:
        self._low = float("inf")
        self._high = float("-inf")

    def look(self, pixels: mx.array) -> None:
        """pixels: any shape, before they are clipped to a picture's range."""
        self._low = min(self._low, float(np.array(mx.min(pixels).astype(mx.float32))))
        self._high = max(self._high, float(np.array(mx.max(pixels).astype(mx.float32))))

    def refuse_flat(self, who: str) -> None:
        """Raise LTX2Error if every value seen was the same."""
        if self._low == self._high:
            raise LTX2Error(f"{who} produced the same value {self._low:g} for every pixel. {_ADVICE}")
