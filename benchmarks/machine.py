"""What a measurement must say about where it was made, and how arms are timed side by side."""

from __future__ import annotations

import os
import platform
import statistics
import subprocess
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import mlx.core as mx

from benchmarks.blas import blas_name


def machine() -> dict[str, Any]:
    """Chip, system, versions, commit and load; no name of a host or a user."""
    info = mx.device_info() if hasattr(mx, "device_info") else {}
    return {
        "chip": info.get("device_name", platform.processor()),
        "architecture": info.get("architecture", platform.machine()),
        "memory_gb": round(int(info.get("memory_size", _memory())) / 1e9, 1),
        "cores": os.cpu_count(),
        "system": f"{platform.system()} {platform.release() if platform.system() == 'Darwin' else ''}".strip(),
        "device": str(mx.default_device()),
        "python": platform.python_version(),
        "mlx": mx.__version__,
        "blas": blas_name(),
        "commit": _commit(),
        "load": [round(x, 1) for x in os.getloadavg()],
    }


def _memory() -> int:
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def _commit() -> str:
    here = Path(__file__).parent
    command = ["git", "rev-parse", "--short", "HEAD"]
    found = subprocess.run(command, cwd=here, capture_output=True, text=True, check=False)
    return found.stdout.strip() or "unknown"


def interleaved(
    arms: Mapping[str, Callable[[], Any]],
    rounds: int,
    clock: Callable[[], float] = time.perf_counter,
    *,
    warm: bool = False,
) -> dict[str, list[float]]:
    """Seconds per arm: all arms in turn, in the opposite order every second round.

    A first round is not counted, unless the arms are `warm`, that is have run before.
    """
    times: dict[str, list[float]] = {name: [] for name in arms}
    order = list(arms)
    for number in range(int(warm), rounds + 1):
        for name in order if number % 2 else reversed(order):
            start = clock()
            mx.eval(arms[name]())
            if number:
                times[name].append(clock() - start)
    return times


def summary(times: list[float]) -> dict[str, float]:
    """Median, least and spread ((max - min) / median) in milliseconds."""
    median = statistics.median(times)
    return {
        "median_ms": round(median * 1e3, 2),
        "min_ms": round(min(times) * 1e3, 2),
        "spread": round((max(times) - min(times)) / median, 3),
    }


def ratio(times: Mapping[str, list[float]], arm: str, base: str) -> dict[str, float]:
    """Of medians and of minima; the median over rounds of the ratio within a round bears load best."""
    paired = [a / b for a, b in zip(times[arm], times[base], strict=True)]
    return {
        "paired_median": round(statistics.median(paired), 3),
        "median": round(statistics.median(times[arm]) / statistics.median(times[base]), 3),
        "min": round(min(times[arm]) / min(times[base]), 3),
    }
