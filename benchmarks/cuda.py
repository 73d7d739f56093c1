"""The same measurements through mlx[cuda] on an NVIDIA GPU, attention beside PyTorch's on the same shapes.

    python benchmarks/cuda.py [--quick] [--toy] [--blocks 4] [--output cuda.json]

Full width, random weights. PyTorch is optional; without it only MLX is measured. --toy shrinks everything and runs
anywhere: it only shows that the program works.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import mlx.core as mx

from benchmarks.device import SHAPES, TOY, attention, convolutions, passes, products, with_shares
from benchmarks.machine import machine


def torch_attention() -> Callable[[int], float] | None:
    """tokens -> seconds of PyTorch's attention, 32 heads of 128, bfloat16; None without a PyTorch with CUDA."""
    if importlib.util.find_spec("torch") is None:
        return None
    import torch

    if not torch.cuda.is_available():
        return None

    def measure(tokens: int, repeats: int = 5) -> float:
        q, k, v = (torch.randn(1, 32, tokens, 128, device="cuda", dtype=torch.bfloat16) for _ in range(3))
        times = []
        for number in range(repeats + 1):
            torch.cuda.synchronize()
            start = time.perf_counter()
            torch.nn.functional.scaled_dot_product_attention(q, k, v)
            torch.cuda.synchronize()
            if number:
                times.append(time.perf_counter() - start)
        return sorted(times)[len(times) // 2]

    return measure


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """The whole report."""
    rows: tuple[int, ...] = (320, 1280, 3520, 6144, 14080)
    sizes: tuple[int, ...] = (1280, 3120, 6144, 14080)
    if options.quick or options.toy:
        rows, sizes = ((8,), (12,)) if options.toy else ((320, 1280), (1280,))
    report: dict[str, Any] = {"benchmark": "cuda", "machine": machine(), "products": products(rows)}
    report["attention"] = attention(rows, torch_attention())
    report["convolutions"] = convolutions()
    report["passes"] = passes(sizes, 1 if options.toy else options.blocks)
    return with_shares(report)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="small sizes only")
    parser.add_argument("--toy", action="store_true", help="see that the program works, on any machine")
    parser.add_argument("--blocks", type=int, default=4)
    parser.add_argument("--output", type=Path, default=Path("cuda.json"))
    options = parser.parse_args()
    if options.toy:
        SHAPES.update(TOY)
    elif mx.default_device().type != mx.gpu or mx.metal.is_available():
        sys.exit("mlx sees no NVIDIA GPU: install mlx[cuda] on a Linux machine that has one")
    options.output.write_text(json.dumps(measure(options), indent=1) + "\n")
    print(f"wrote {options.output}")


if __name__ == "__main__":
    main()
