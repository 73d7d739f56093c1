"""Float32 products in float32.

MLX rounds the factors of a float32 product to TF32 (10 bits) by default on hardware that has it: M5 and
newer from macOS 26.2 on, NVIDIA from Ampere on. A product is off by 8e-4 then instead of 3e-7; seven
stages of a vocoder make that audible. The vocoder, spectrograms and the fusing of LoRAs are float32
products here; rotation tables, noise levels and positions are computed on the host, where no such
thing happens, and everything else computes in the type of the weights.
There is one switch for the whole process, which MLX reads once, at the first product that it is about.
Sources: mlx 0.32, `mlx/utils.h` (`enable_tf32`) and its page "Numerical precision"
(ml-explore/mlx#3894); measurements: ml-explore/mlx#3860, #3534.
"""

from __future__ import annotations

import os
from collections.abc import Callable

import mlx.core as mx

SWITCH = "MLX_ENABLE_TF32"
"""Environment variable; MLX takes 1 where it is not set."""

_SIDE = 256
"""Rows and columns of the product that is tried: enough for every device's matrix kernels."""


def keep_float32(say: Callable[[str], None] = lambda text: None) -> None:
    """Ask MLX for full float32 products, unless the user has chosen; `say` is told if there are none.

    Comes too late in a process that had MLX multiply float32 matrices before.
    """
    os.environ.setdefault(SWITCH, "0")
    if mx.default_device() != mx.Device(mx.cpu) and not products_are_exact():
        say(
            f"float32 products are rounded to TF32 on this device, which the sound suffers from: set "
            f"{SWITCH}=0 before this program starts."
        )


def products_are_exact(multiply: Callable[[mx.array, mx.array], mx.array] = mx.matmul) -> bool:
    """Whether a product of float32 matrices keeps what TF32 would round away."""
    fine = mx.full((_SIDE, _SIDE), 1 + 2.0**-20)
    return mx.array_equal(multiply(fine, mx.eye(_SIDE)), fine).item() is True
