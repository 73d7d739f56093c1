"""mlx-ltx2 doctor"""

from __future__ import annotations

import platform
import shutil
import sys

import click


@click.command("doctor", context_settings={"help_option_names": ["-h", "--help"]})
def command() -> None:
    """Check this machine and say what it can run."""
    import mlx.core as mx

    from mlx_ltx2.library import cache_folder
    from mlx_ltx2.version import VERSION

    info = mx.device_info()
    memory = int(info.get("memory_size", 0))
    working = int(info.get("max_recommended_working_set_size", 0))
    folder = cache_folder()
    there = next(p for p in (folder, *folder.parents) if p.exists())
    facts = {
        "mlx-ltx2": VERSION,
        "Python": sys.version.split()[0],
        "mlx": mx.__version__,
        "machine": f"{platform.system()} {platform.machine()}",
        "device": f"{mx.default_device()} {info.get('device_name', info.get('architecture', ''))}",
        "memory": f"{memory / 1e9:.1f} GB" if memory else "not reported by this backend",
        "working set": f"{working / 1e9:.1f} GB" if working else "not reported by this backend",
        "model cache": f"{folder} ({shutil.disk_usage(there).free / 1e9:.0f} GB free)",
    }
    for name, value in facts.items():
        click.echo(f"{name:<14}{value}")
    click.echo(f"{'arithmetic':<14}{self_test()}")


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
