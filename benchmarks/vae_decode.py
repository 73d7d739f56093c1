"""Video decode: streamed over time against whole and against the release's temporal tiles.

    python benchmarks/vae_decode.py [--rounds 3] [--frames 17 33 65] [--channels 32] [--chunk 4] [--output FILE]

Real block lists, 4x4 latents (128x128 pixels), a quarter of the channels, random weights, float32, OpenBLAS on one
thread. Clock: CPU time of the process. Peaks are the allocator's; those of the CPU backend hold every convolution's
input unfolded 27 times, which Metal does not do.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.blas import with_fast_blas
from benchmarks.bounds import judged

ROWS, COLUMNS = 4, 4
TILES = (16, 8)
"""Frames and overlap of the temporal tiles: small, so that short clips have several."""

BOUNDS = {
    "peak, 33 / 17 frames": 1.1,
    "peak beyond weights, longest / 33 frames": 1.1,
    "time, streamed / whole": 1.1,
    "PSNR, streamed": 60.0,
}


def network(generation: str, channels: int) -> Any:
    import mlx.core as mx
    from mlx.utils import tree_map

    from mlx_ltx2.models.video_vae import VideoDecoder, VideoVAEConfig
    from tests.cases.video_vae import VAES

    section = {**VAES[generation], "latent_channels": 128, "decoder_base_channels": channels}
    module = VideoDecoder(VideoVAEConfig.from_dict(section))
    mx.random.seed(0)

    def drawn(x: Any) -> Any:
        return mx.random.normal(x.shape) / math.sqrt(math.prod(x.shape[1:])) if x.ndim > 1 else x

    module.update(tree_map(drawn, module.parameters()))
    mx.eval(module.parameters())
    return module


def arms(module: Any, latents: int, chunk: int) -> dict[str, Callable[[], Iterator[Any]]]:
    """Name -> iterator of pixels of one decode."""
    import mlx.core as mx

    from mlx_ltx2.diffusion.tiles import TileSize, decode_plan, run_tiles
    from mlx_ltx2.models.video_vae.streaming import stream_decode
    from mlx_ltx2.shapes import LatentShape

    latent = mx.random.normal((1, latents, ROWS, COLUMNS, 128))
    noise = mx.random.normal(latent.shape) if module.timestep_conditioned else None
    mx.eval(latent)
    plan = decode_plan(LatentShape(latents, ROWS, COLUMNS), TileSize(frames=TILES[0], frame_overlap=TILES[1]))

    def tile(part: Any) -> Any:
        where = (slice(None), *part.source)
        return module(latent[where], noise=None if noise is None else noise[where])

    return {
        "whole": lambda: iter([module(latent, noise=noise)]),
        "streamed": lambda: stream_decode(module, latent, evaluate=mx.eval, noise=noise, chunk=chunk),
        "tiled": lambda: run_tiles(plan, tile),
    }


def drained(arm: Callable[[], Iterator[Any]]) -> list[Any]:
    import mlx.core as mx

    for part in arm():
        mx.eval(part)
        del part
    return []


def peak(arm: Callable[[], Iterator[Any]]) -> int:
    """Allocator peak beyond what lives before, in bytes."""
    import mlx.core as mx

    mx.synchronize()
    mx.clear_cache()
    before = mx.get_active_memory()
    mx.reset_peak_memory()
    drained(arm)
    return mx.get_peak_memory() - before


def psnr(got: Any, want: Any) -> float:
    """dB of pixels in [-1, 1], clipped as they are for the file; 200 stands for no difference at all."""
    import numpy as np

    difference = np.clip(got, -1, 1).astype(np.float64) - np.clip(want, -1, 1)
    error = float(np.mean(difference**2))
    return round(min(200.0, 10 * math.log10(4 / error)) if error else 200.0, 1)


def measure(module: Any, generation: str, frames: int, chunk: int, rounds: int) -> dict[str, Any]:
    import mlx.core as mx
    import numpy as np
    from mlx.utils import tree_flatten

    from benchmarks.machine import interleaved, ratio, summary
    from mlx_ltx2.models.video_vae.streaming import streaming_decode_bytes

    ways = arms(module, (frames - 1) // 8 + 1, chunk)
    pixels = {name: np.concatenate([np.array(part) for part in way()], axis=1) for name, way in ways.items()}
    peaks = {name: peak(way) for name, way in ways.items()}
    times = interleaved({n: lambda w=w: drained(w) for n, w in ways.items()}, rounds, time.process_time)
    unfolds = mx.default_device() == mx.cpu
    return {
        "generation": generation,
        "frames": frames,
        "weights_mb": round(sum(x.nbytes for _, x in tree_flatten(module.parameters())) / 1e6, 1),
        "peak_mb": {name: round(value / 1e6, 1) for name, value in peaks.items()},
        "predicted_mb": round(streaming_decode_bytes(module.config, ROWS, COLUMNS, 4, chunk, unfolds=unfolds) / 1e6, 1),
        "time": {name: summary(values) for name, values in times.items()},
        "time_ratio": {name: ratio(times, name, "whole") for name in ("streamed", "tiled")},
        "psnr": {name: psnr(pixels[name], pixels["whole"]) for name in ("streamed", "tiled")},
        "largest_difference": float(np.abs(pixels["streamed"] - pixels["whole"]).max()),
    }


def verdicts(result: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """What of a result is bounded, and whether it holds."""
    rows = result["rows"]
    found: dict[str, list[float]] = {name: [] for name in BOUNDS}
    for generation in {row["generation"] for row in rows}:
        own = {row["frames"]: row for row in rows if row["generation"] == generation}
        beyond = {frames: row["peak_mb"]["streamed"] for frames, row in own.items()}
        if {17, 33} <= beyond.keys():
            weights = own[33]["weights_mb"]
            found["peak, 33 / 17 frames"].append((weights + beyond[33]) / (weights + beyond[17]))
        if 33 in beyond:
            found["peak beyond weights, longest / 33 frames"].append(beyond[max(beyond)] / beyond[33])
        found["time, streamed / whole"] += [row["time_ratio"]["streamed"]["paired_median"] for row in own.values()]
        found["PSNR, streamed"] += [row["psnr"]["streamed"] for row in own.values()]
    return judged(found, BOUNDS, least=("PSNR, streamed",))


def table(result: dict[str, Any]) -> str:
    lines = [
        "generation frames | peak MB beyond weights: whole streamed (predicted) tiled"
        " | time / whole: streamed tiled | PSNR: streamed tiled"
    ]
    for row in result["rows"]:
        p, t, q = row["peak_mb"], row["time_ratio"], row["psnr"]
        lines.append(
            f"{row['generation']:>13} {row['frames']:4} | {p['whole']:8} {p['streamed']:8} "
            f"({row['predicted_mb']}) {p['tiled']:8} | "
            f"{t['streamed']['paired_median']:6} {t['tiled']['paired_median']:6} | {q['streamed']:6} {q['tiled']:6}"
        )
    for name, entry in result["bounds"].items():
        lines.append(f"{name}: {entry['worst']} (bound {entry['bound']}) {'ok' if entry['holds'] else 'MISSED'}")
    return "\n".join(lines)


def main() -> None:
    with_fast_blas()
    from benchmarks.machine import machine

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--frames", type=int, nargs="+", default=[17, 33, 65], help="8k+1")
    parser.add_argument("--generations", nargs="+", default=["22B", "19B"], choices=["19B", "19B distilled", "22B"])
    parser.add_argument("--channels", type=int, default=32, help="base channels; 128 in the released decoders")
    parser.add_argument("--chunk", type=int, default=4)
    parser.add_argument("--output", type=Path, default=None)
    arguments = parser.parse_args()
    rows = []
    for generation in arguments.generations:
        module = network(generation, arguments.channels)
        rows += [measure(module, generation, n, arguments.chunk, arguments.rounds) for n in arguments.frames]
    result: dict[str, Any] = {"benchmark": "vae_decode", "machine": machine(), "rows": rows}
    result["bounds"] = verdicts(result)
    text = json.dumps(result, indent=1)
    if arguments.output:
        arguments.output.write_text(text + "\n")
    print(text)
    print(table(result), file=sys.stderr)


if __name__ == "__main__":
    main()
