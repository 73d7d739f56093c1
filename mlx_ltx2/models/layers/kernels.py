"""Fused kernels and copies, written so that the graph of a function shows them.

MLX's graph of a function that is traced does not say which primitives will run as one fused kernel,
and it cannot describe `mx.contiguous` at all. While `shown()` is on, and only for the thread that
switched it on, compiled functions carry marks at their ends and copies take another form. Other
threads compute as always.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from functools import wraps

import mlx.core as mx
from mlx import nn

Kernel = Callable[..., mx.array]

_shown: ContextVar[bool] = ContextVar("shown", default=False)


@contextlib.contextmanager
def shown() -> Iterator[None]:
    """Marks and copies become part of the graphs that this thread builds; never evaluate those."""
    before = _shown.set(True)
    try:
        yield
    finally:
        _shown.reset(before)


def fused(function: Kernel) -> Kernel:
    """The function as one kernel, compiled for the shapes it meets. It takes arrays and gives one."""
    return visible(mx.compile(function))


def visible(compiled: Kernel) -> Kernel:
    """A compiled function whose ends are marked where the graph is shown."""

    @wraps(compiled)
    def call(*args: mx.array | float) -> mx.array:
        if not _shown.get():
            return compiled(*args)
        ends = (mx.stop_gradient(a) if isinstance(a, mx.array) else a for a in args)
        return mx.stop_gradient(compiled(*ends))

    return call


silu = visible(nn.silu)
gelu_approx = visible(nn.gelu_approx)
leaky_relu = visible(nn.leaky_relu)


def contiguous(array: mx.array) -> mx.array:
    """A copy in the order of the axes, unless the array has it already."""
    if not _shown.get():
        return mx.contiguous(array)
    return array.reshape(-1).reshape(array.shape)  # copies in the same cases
