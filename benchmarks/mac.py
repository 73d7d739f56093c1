"""Measure this Mac: one JSON to send with an issue.

    python benchmarks/mac.py [--quick] [--file FILE] [--clip CLIP.mp4] [--output mac.json]

GEMM rate at the model's shapes, attention, 8-bit products, convolutions with their error, passes at full width as a
share of the GEMM rate, the rate at which weights come from the disk, and three runs in a row for the heat. The report
names the chip and the versions, no host and no user. Close other programs; a laptop belongs on its charger.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import mlx.core as mx

from benchmarks.device import attention, convolutions, passes, products, with_shares
from benchmarks.machine import machine


def disk(file: Path, limit: int = 4 << 30) -> dict[str, float]:
    """GB/s of reading tensors of a safetensors file, twice; the first is the disk's if the file has not been read."""
    rates = {}
    for kind in ("first", "again"):
        stored: Any = mx.load(str(file))
        read, start = 0, time.perf_counter()
        for name in list(stored):
            array = stored.pop(name)
            mx.eval(array)
            read += array.nbytes
            del array
            if read >= limit:
                break
        rates[kind] = round(read / (time.perf_counter() - start) / 1e9, 2)
    return rates


def sustained(rounds: int) -> list[float]:
    """Seconds of the same pass, again and again: what heat takes away."""
    return [passes((3120,), 4, (None,))[0]["seconds"] for _ in range(rounds)]


def clip_record(clip: Path) -> dict[str, Any]:
    """What a finished clip says about its size, times and peaks; no prompt, no path."""
    from mlx_ltx2.media.metadata import read_metadata

    stored = read_metadata(clip)
    plan = json.loads(stored.get("plan", "{}"))
    kept = {name: plan[name] for name in ("pipeline", "shape", "memory", "peaks", "seconds") if name in plan}
    return {"tool": stored.get("tool"), **kept}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="small sizes only, about a minute")
    parser.add_argument("--file", type=Path, default=None, help="a safetensors file on the disk to measure")
    parser.add_argument("--clip", type=Path, default=None, help="a clip made on this Mac")
    parser.add_argument("--output", type=Path, default=Path("mac.json"))
    arguments = parser.parse_args()
    if not mx.metal.is_available():
        sys.exit("this program is for a Mac with Metal; on Linux see benchmarks/report.py and benchmarks/cuda.py")
    rows = (320, 1280) if arguments.quick else (320, 1280, 3520, 6144, 14080)
    sizes = (1280,) if arguments.quick else (1280, 3120, 6144, 14080)
    report: dict[str, Any] = {"benchmark": "mac", "machine": machine(), "products": products(rows)}
    report |= {"attention": attention(rows), "convolutions": convolutions(), "passes": passes(sizes)}
    report["sustained_s"] = sustained(1 if arguments.quick else 3)
    report["environment"] = {k: v for k, v in os.environ.items() if k.startswith("MLX_")}
    if arguments.file:
        report["disk_gb_per_s"] = disk(arguments.file)
    if arguments.clip:
        report["clip"] = clip_record(arguments.clip)
    arguments.output.write_text(json.dumps(with_shares(report), indent=1) + "\n")
    print(f"wrote {arguments.output}; please attach it to an issue")


if __name__ == "__main__":
    main()
