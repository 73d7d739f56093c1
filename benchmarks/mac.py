"""Measure this Mac: one JSON to send with an issue.

    python benchmarks/mac.py [--quick] [--toy] [--file FILE] [--model MODEL] [--clip CLIP.mp4] [--output mac.json]

GEMM rate at the model's shapes, attention, 8-bit products, convolutions with their error, passes at full width as a
share of the GEMM rate, seconds and peaks of every phase of one clip, the rate at which the disk reads, three runs in a
row for the heat, and what the fast modes cost in accuracy. The report names the chip and the versions, no host and no
user. Close other programs; a laptop belongs on its charger. --toy shrinks everything and runs anywhere: it only shows
that the program works.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import mlx.core as mx

from benchmarks.device import SHAPES, TOY, attention, convolutions, passes, phases, products, quality, with_shares
from benchmarks.machine import machine

_F_NOCACHE = 48
"""fcntl command of macOS: read past the page cache."""
_PIECE = 32 << 20


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
        rates[kind] = round(read / (time.perf_counter() - start) / 1e9, 3)
    return rates


def raw_disk(folder: Path, nbytes: int) -> float:
    """GB/s of reading a new file of `nbytes` past the page cache, on the disk of `folder`."""
    with tempfile.NamedTemporaryFile(dir=folder) as file:
        piece = os.urandom(min(_PIECE, nbytes))
        for _ in range(max(1, nbytes // len(piece))):
            file.write(piece)
        file.flush()
        os.fsync(file.fileno())
        source = os.open(file.name, os.O_RDONLY)
        try:
            _past_the_cache(source)
            start = time.perf_counter()
            read = sum(map(len, _pieces(source)))
            return round(read / (time.perf_counter() - start) / 1e9, 3)
        finally:
            os.close(source)


def _past_the_cache(source: int) -> None:
    if sys.platform == "darwin":
        import fcntl

        fcntl.fcntl(source, _F_NOCACHE, 1)
    else:
        os.posix_fadvise(source, 0, 0, os.POSIX_FADV_DONTNEED)


def _pieces(source: int) -> Iterator[bytes]:
    while piece := os.read(source, _PIECE):
        yield piece


def sustained(rounds: int, tokens: int = 3120, blocks: int = 4) -> list[float]:
    """Seconds of the same pass, again and again: what heat takes away."""
    return [passes((tokens,), blocks, (None,))[0]["seconds"] for _ in range(rounds)]


def clip_record(clip: Path) -> dict[str, Any]:
    """What a finished clip says about its size, times and peaks; no prompt, no path."""
    from mlx_ltx2.media.metadata import read_metadata

    stored = read_metadata(clip)
    plan = json.loads(stored.get("plan", "{}"))
    kept = {name: plan[name] for name in ("pipeline", "shape", "memory", "peaks", "seconds") if name in plan}
    return {"tool": stored.get("tool"), **kept}


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """The whole report."""
    small = options.quick or options.toy
    rows: tuple[int, ...] = (320, 1280, 3520, 6144, 14080)
    sizes: tuple[int, ...] = (1280, 3120, 6144, 14080)
    if small:
        rows, sizes = ((8,), (12,)) if options.toy else ((320, 1280), (1280,))
    blocks = 1 if options.toy else 4
    clip = {"height": 64, "width": 64, "num_frames": 9} if options.toy else {}
    report: dict[str, Any] = {"benchmark": "mac", "machine": machine(), "products": products(rows)}
    report |= {"attention": attention(rows), "convolutions": convolutions(), "passes": passes(sizes, blocks)}
    report["phases"] = phases(options.model, **clip)
    report["raw_disk_gb_per_s"] = raw_disk(options.file.parent if options.file else Path(), 1 << (20 if small else 32))
    report["sustained_s"] = sustained(1 if small else 3, sizes[-1] if options.toy else 3120, blocks)
    report["quality"] = quality(1 if options.toy else 6)
    report["environment"] = {k: v for k, v in os.environ.items() if k.startswith("MLX_")}
    if options.file:
        report["disk_gb_per_s"] = disk(options.file)
    if options.clip:
        report["clip"] = clip_record(options.clip)
    return with_shares(report)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="small sizes only, about a minute")
    parser.add_argument("--toy", action="store_true", help="see that the program works, on any machine")
    parser.add_argument("--file", type=Path, default=None, help="a safetensors file on the disk to measure")
    parser.add_argument("--model", default="demo", help="the model of the clip that is timed phase by phase")
    parser.add_argument("--clip", type=Path, default=None, help="a clip made on this Mac")
    parser.add_argument("--output", type=Path, default=Path("mac.json"))
    options = parser.parse_args()
    if options.toy:
        SHAPES.update(TOY)
    elif not mx.metal.is_available():
        sys.exit("this program is for a Mac with Metal; on Linux see benchmarks/report.py and benchmarks/cuda.py")
    options.output.write_text(json.dumps(measure(options), indent=1) + "\n")
    print(f"wrote {options.output}; please attach it to an issue")


if __name__ == "__main__":
    main()
