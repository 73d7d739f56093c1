"""mlx-ltx2 doctor"""

from __future__ import annotations

import platform
import shutil
import sys
from importlib.metadata import version

import click


@click.command("doctor", context_settings={"help_option_names": ["-h", "--help"]})
def command() -> None:
    """Check this machine and say what it can run."""
    import mlx.core as mx

    from mlx_ltx2.library import cache_folder
    from mlx_ltx2.memory import default_budget
    from mlx_ltx2.version import VERSION

    info = mx.device_info()
    memory = int(info.get("memory_size", 0))
    working = int(info.get("max_recommended_working_set_size", 0))
    folder = cache_folder()
    there = next(p for p in (folder, *folder.parents) if p.exists())
    facts = {
        "mlx-ltx2": VERSION,
        "Python": sys.version.split()[0],
        "mlx": version("mlx"),
        "machine": f"{platform.system()} {platform.machine()}",
        "device": f"{mx.default_device()} {info.get('device_name', info.get('architecture', ''))}",
        "memory": f"{memory / 1e9:.1f} GB" if memory else "not reported by this backend",
        "working set": f"{working / 1e9:.1f} GB" if working else "not reported by this backend",
        "budget": f"{default_budget() / 1e9:.1f} GB for a run, unless --memory-limit says otherwise",
        "model cache": f"{folder} ({shutil.disk_usage(there).free / 1e9:.0f} GB free)",
    }
    for name, value in facts.items():
        click.echo(f"{name:<14}{value}")
    for line in what_fits():
        click.echo(line)
    click.echo(f"{'arithmetic':<14}{self_test()}")


TRANSFORMER = {"around": 0.8e9, "block": 0.772e9}
"""Bytes in bfloat16 of the 48-block transformer that LTX-2 (19B) and LTX-2.3 (22B) share."""

QUANTIZED = {"bf16": 1.0, "8-bit": 8.5 / 16, "6-bit": 6.5 / 16, "4-bit": 4.5 / 16}
"""Share of a block's bytes; scales and offsets of groups of 64 cost half a bit each."""

ROOM = 1.4e9
"""Beside the weights: activations of 1280x704 pixels with 121 frames."""


def what_fits(budget: int | None = None) -> list[str]:
    """Which form of the 19B and 22B transformers a budget holds whole, and how much of it otherwise."""
    from mlx_ltx2.memory import default_budget

    budget = budget or default_budget()
    lines = []
    for form, share in QUANTIZED.items():
        block = TRANSFORMER["block"] * share
        whole = TRANSFORMER["around"] + 48 * block + ROOM
        least = TRANSFORMER["around"] + 2 * block + ROOM
        stay = int((budget - least) // block)
        if whole <= budget:
            said = f"whole ({whole / 1e9:.0f} GB)"
        elif stay >= 0:
            said = f"streamed, {min(stay, 45)} of 48 blocks stay (whole: {whole / 1e9:.0f} GB)"
        else:
            said = f"not at 1280x704; it needs {least / 1e9:.1f} GB streamed"
        lines.append(f"{'22B ' + form:<14}{said}")
    return lines


def self_test() -> str:
    """Compare a few kernels with numpy; some chips had wrong ones."""
    import mlx.core as mx
    import numpy as np

    from mlx_ltx2.errors import ResourceError

    rng = np.random.default_rng(0)
    x, w = (rng.standard_normal(shape).astype(np.float32) for shape in ((64, 256), (128, 256)))
    want = x @ w.T
    faults = []
    for bits in (4, 8):
        packed = mx.quantize(mx.array(w), group_size=64, bits=bits)
        plain = mx.dequantize(*packed, group_size=64, bits=bits)
        got = mx.quantized_matmul(mx.array(x), *packed, transpose=True, group_size=64, bits=bits)
        if np.abs(np.array(got) - np.array(mx.array(x) @ plain.T)).max() > 1e-2 * np.abs(want).max():
            faults.append(f"{bits}-bit matrix products")
    if np.abs(np.array(mx.array(x) @ mx.array(w).T) - want).max() > 1e-2 * np.abs(want).max():
        faults.append("matrix products")
    if faults:
        raise ResourceError(f"this device computes {', '.join(faults)} wrongly; update mlx and macOS.")
    return "matrix products agree with numpy"
