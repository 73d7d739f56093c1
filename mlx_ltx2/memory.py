"""Who owns memory, and when: the only module that touches MLX's limits and caches.

A phase materialises what it needs, runs, and frees it. Peaks are read from MLX's allocator, per phase.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import os
import re
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Generic, TypeVar

import mlx.core as mx
from mlx import nn

from mlx_ltx2.errors import RequestError
from mlx_ltx2.precision import keep_float32

T = TypeVar("T")
DEFAULT_CACHE_BYTES = 2 << 30
"""MLX keeps freed buffers for reuse; beyond this many bytes that only inflates the footprint."""


@dataclass
class PeakReport:
    """Highest allocator use of each phase in bytes, in the order in which the phases ran."""

    peaks: dict[str, int] = field(default_factory=dict)

    def note(self, phase: str, peak_bytes: int) -> None:
        self.peaks[phase] = max(self.peaks.get(phase, 0), peak_bytes)

    @property
    def highest(self) -> int:
        return max(self.peaks.values(), default=0)


def machine_bytes() -> int:
    """Memory that this machine's device can use, bytes."""
    info = mx.device_info()
    return int(info.get("memory_size", 0)) or os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def default_budget() -> int:
    """Memory that a run may use: the working set that Metal recommends, or 70 % of the machine's memory."""
    return int(mx.device_info().get("max_recommended_working_set_size", 0)) or int(0.7 * machine_bytes())


def parse_bytes(text: str) -> int:
    """ "12GB", "800 MB", "2GiB" or plain bytes.

    Raises: RequestError if it is none of these.
    """
    found = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([kKmMgGtT]?)(i?)[bB]?\s*", text)
    if found is None or float(found[1]) <= 0:
        raise RequestError(f"{text!r} is no amount of memory; write 12GB, 800MB or a number of bytes.")
    power = " kmgt".index(found[2].lower() or " ")
    return int(float(found[1]) * (1024 if found[3] else 1000) ** power)


SHORT_SHARE = 0.05
"""Of the machine's memory: with less than this available, Linux is about to swap or to kill."""

_DARWIN_WARNING = 2
"""kern.memorystatus_vm_pressure_level: 1 normal, 2 warning, 4 critical."""


def memory_is_short() -> bool:
    """Whether the system says that memory runs short; False where it does not say."""
    if sys.platform == "darwin":
        return _darwin_pressure() >= _DARWIN_WARNING
    try:
        lines = dict(line.split(":", 1) for line in Path("/proc/meminfo").read_text().splitlines())
        available, total = (int(lines[name].split()[0]) for name in ("MemAvailable", "MemTotal"))
    except (OSError, KeyError, ValueError):
        return False
    return available < SHORT_SHARE * total


def _darwin_pressure() -> int:
    level = ctypes.c_int(0)
    size = ctypes.c_size_t(ctypes.sizeof(level))
    system = ctypes.CDLL(None)
    failed = system.sysctlbyname(
        b"kern.memorystatus_vm_pressure_level", ctypes.byref(level), ctypes.byref(size), None, ctypes.c_size_t(0)
    )
    return 0 if failed else level.value


class PressureWatch:
    """Asked between steps; once memory runs short, MLX's cache is emptied and kept empty for the rest of the run.

    short: the reading, a seam for tests. say: is told once. Used inside `limits`, which restores the cache.
    """

    def __init__(self, short: Callable[[], bool] = memory_is_short, say: Callable[[str], None] = lambda text: None):
        self._short = short
        self._say = say
        self.seen = False

    def __call__(self) -> bool:
        """True from the first reading on that says that memory is short."""
        if not self.seen and self._short():
            self.seen = True
            mx.set_cache_limit(0)
            release()
            self._say(
                "memory is running short on this machine: MLX's cache is emptied and every block is evaluated by "
                "itself from now on. The result is the same; closing other programs helps."
            )
        return self.seen


def release() -> None:
    """Return every buffer that nobody references to the system."""
    gc.collect()
    mx.clear_cache()


@contextlib.contextmanager
def limits(
    cache_bytes: int = DEFAULT_CACHE_BYTES,
    memory_bytes: int | None = None,
    say: Callable[[str], None] = lambda text: None,
) -> Iterator[None]:
    """Cap MLX's buffer cache, and its memory if a limit is given, for the duration of a run.

    On Metal as much is wired as the system recommends; if it refuses, `say` is told and the run goes on. Float32
    products are kept in float32 (see `precision`).
    """
    keep_float32(say)
    if mx.default_device() == mx.cpu:
        # Its queue is a hundred kernels long otherwise, each with its own buffers; under a limit it is ten.
        memory_bytes = 1
    previous_cache = mx.set_cache_limit(cache_bytes)
    previous_memory = mx.set_memory_limit(memory_bytes) if memory_bytes else None
    wired = _wire(memory_bytes, say) if mx.default_device() == mx.gpu else None
    try:
        yield
    finally:
        if wired is not None:
            mx.set_wired_limit(wired)
        mx.set_cache_limit(previous_cache)
        if previous_memory is not None:
            mx.set_memory_limit(previous_memory)


def _wire(memory_bytes: int | None, say: Callable[[str], None]) -> int | None:
    """Keep the weights from being paged out; returns the limit of before, None if nothing was changed."""
    most = int(mx.device_info().get("max_recommended_working_set_size", 0))
    if not most:
        return None
    try:
        return mx.set_wired_limit(most if memory_bytes is None else min(most, memory_bytes))
    except (RuntimeError, ValueError) as error:
        say(f"memory is not wired ({error}); under pressure the system may page weights out, which is slower.")
        return None


@contextlib.contextmanager
def phase(name: str, report: PeakReport) -> Iterator[None]:
    """Measure the allocator's peak while the block runs, and free what it leaves behind."""
    mx.reset_peak_memory()
    try:
        yield
    finally:
        report.note(name, mx.get_peak_memory())
        release()


def materialised(network: T) -> T:
    """The network with its weights read; one that comes from disk in parts stays as it is."""
    module = getattr(network, "model", network)  # a text encoder has its network beside a tokenizer
    if isinstance(module, nn.Module):
        mx.eval(module.parameters())
    return network


class Resident(Generic[T]):
    """A network that is loaded on first use and freed on request, so that two stages can share one loading.

    Call it to get the network; `free()` drops it. Nothing else may keep a reference to the network.
    """

    def __init__(self, load: Callable[[], T]):
        self._load = load
        self._network: T | None = None

    def __call__(self) -> T:
        if self._network is None:
            self._network = materialised(self._load())
        return self._network

    def take(self) -> T:
        """The network, which is no longer kept here: whoever takes it frees it by letting go."""
        network, self._network = self(), None
        return network

    def free(self) -> None:
        self._network = None
        release()


@contextlib.contextmanager
def resident(load: Callable[[], T]) -> Iterator[T]:
    """Load a network with its weights, hand it to the block, free it afterwards."""
    network = materialised(load())
    try:
        yield network
    finally:
        del network
        release()
