"""One pass of a small transformer against its plain form, time against FLOPs, and the graph of one block.

    python benchmarks/denoise_step.py [--rounds 5] [--tokens 384 1024 2048] [--generations 22B 19B] [--output FILE]

4 blocks, video 1024 wide, audio 512 wide, 8 heads, 256 text tokens, random weights, float32, OpenBLAS on one thread.
Ours is a step in the middle of a run: rotation tables are there, and in LTX-2, whose text does not change from step to
step, so are the text's keys and values. Clock: CPU time of the process, in which waiting for a core that another
program has does not count.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.blas import with_fast_blas
from benchmarks.bounds import judged

GRIDS = {384: (6, 8, 8), 1024: (4, 16, 16), 2048: (8, 16, 16)}
AUDIO, TEXT = 64, 256

BOUNDS = {
    "time, ours / plain, T2V": 0.85,
    "time, I2V / T2V, ours": 1.03,
    "largest residual of the fit": 0.10,
    "kernels of a block, LTX-2.3 T2V": 130,
    "casts in a bfloat16 block": 0,
}


def network(generation: str) -> Any:
    """4 blocks of random weights."""
    import mlx.core as mx
    from mlx.utils import tree_map

    from mlx_ltx2.models.transformer import Transformer, TransformerConfig
    from tests.cases.transformer import FIXED, GENERATION_KEYS

    section = {
        **FIXED,
        **GENERATION_KEYS[generation],
        "num_layers": 4,
        "num_attention_heads": 8,
        "attention_head_dim": 128,
        "audio_num_attention_heads": 8,
        "audio_attention_head_dim": 64,
        "in_channels": 128,
        "out_channels": 128,
        "audio_out_channels": 128,
        "cross_attention_dim": 1024,
        "audio_cross_attention_dim": 512,
        "caption_channels": 1024,
    }
    mx.random.seed(0)
    module = Transformer(TransformerConfig.from_dict(section))
    module.update(tree_map(lambda x: x if x.any() else 0.1 * mx.random.normal(x.shape), module.parameters()))
    mx.eval(module.parameters())
    return module


def inputs(module: Any, tokens: int, kept: int = 0) -> tuple[Any, Any]:
    """A clip of `tokens` video tokens, the first `kept` of which hold an image."""
    import mlx.core as mx
    import numpy as np

    from mlx_ltx2.states import Modality
    from tests.cases.transformer import audio_positions, video_positions

    level, key = np.array([0.7], np.float32), mx.random.split(mx.random.key(1), 4)
    c = module.config
    width = [s.caption_channels or s.context_dim for s in (c.video, c.audio)]
    arrays = [mx.random.normal((1, n, d), key=k) for n, d, k in zip((tokens, AUDIO), (128, 128), key[:2], strict=True)]
    texts = [mx.random.normal((1, TEXT, d), key=k) for d, k in zip(width, key[2:], strict=True)]
    mx.eval(arrays, texts)
    positions = [video_positions(GRIDS[tokens], 24.0), audio_positions(AUDIO)]
    times, runs = (np.array([[0, 0.7]], np.float32), (kept, tokens - kept)) if kept else (level[:, None], None)
    video = Modality(arrays[0], level, times, positions[0], texts[0], runs)
    return video, Modality(arrays[1], level, level[:, None], positions[1], texts[1])


def measure(generation: str, tokens: int, rounds: int) -> dict[str, Any]:
    """All arms at one size."""
    from dataclasses import replace

    import mlx.core as mx
    import numpy as np

    from benchmarks.formulas import pass_flops, total
    from benchmarks.machine import interleaved, ratio, summary
    from benchmarks.plain import plain_pass
    from mlx_ltx2.models.transformer.kept import Kept

    module = network(generation)
    text_kept = not module.config.modulated_text
    frame = GRIDS[tokens][1] * GRIDS[tokens][2]
    t2v, i2v = inputs(module, tokens), inputs(module, tokens, frame)
    rope = module.rope(t2v[0].positions, t2v[1].positions)
    if text_kept:
        rope = replace(rope, kept=Kept("clip"))
    mx.eval([getattr(rope, n).cos for n in ("video", "audio")])
    arms = {
        "ours T2V": lambda: module(*t2v, rope=rope),
        "ours I2V": lambda: module(*i2v, rope=rope),
        "plain T2V": lambda: plain_pass(module, *t2v),
        "plain I2V": lambda: plain_pass(module, *i2v),
    }
    peaks, results = {}, {}
    for name, arm in arms.items():
        mx.clear_cache()
        before = mx.get_active_memory()
        mx.reset_peak_memory()
        results[name] = arm()
        mx.eval(results[name])
        peaks[name] = round((mx.get_peak_memory() - before) / 2**20, 1)
    difference = max(
        float(mx.abs(a - b).max()) / float(mx.abs(b).max())
        for kind in ("T2V", "I2V")
        for a, b in zip(results[f"ours {kind}"], results[f"plain {kind}"], strict=True)
    )
    cpu = interleaved(arms, rounds, time.process_time, warm=True)
    # The arms that bounds compare come once more: a median of ten pairs, since one pair varies by a tenth.
    bound = {name: arms[name] for name in ("ours I2V", "ours T2V", "plain T2V")}
    again = interleaved(bound, rounds, time.process_time, warm=True)
    pairs = {name: cpu[name] + again[name] for name in bound}
    flops = total(pass_flops(module.config, tokens, AUDIO, TEXT, text_cached=text_kept))
    assert np.isfinite(difference)
    return {
        "generation": generation,
        "tokens": tokens,
        "gflop": round(flops / 1e9, 1),
        "largest_difference": difference,
        "peak_mib": peaks,
        "cpu_time": {name: summary(t) for name, t in cpu.items()},
        "ours / plain, T2V": ratio(pairs, "ours T2V", "plain T2V"),
        "ours / plain, I2V": ratio(cpu, "ours I2V", "plain I2V"),
        "I2V / T2V, ours": ratio(pairs, "ours I2V", "ours T2V"),
    }


def fit(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Line t = a + b * FLOPs through the smallest times, by least squares of the residuals' shares of the time."""
    import numpy as np

    x = np.array([row["gflop"] for row in rows])
    y = np.array([row["cpu_time"]["ours T2V"]["min_ms"] for row in rows])
    (slope, start), _, _, _ = np.linalg.lstsq(np.stack([x, np.ones_like(x)], 1) / y[:, None], y / y, rcond=None)
    residuals = (start + slope * x) / y - 1
    return {
        "gflop_per_s": round(1e3 / slope, 1),
        "fixed_ms": round(float(start), 1),
        "largest_residual": round(float(np.abs(residuals).max()), 3),
    }


def graphs() -> dict[str, Any]:
    """One block's kernels, casts and copies in bfloat16."""
    from tests.unit.test_graph import block_graph

    found = {}
    for generation in ("19B", "22B"):
        for kind, kept in (("T2V", 0), ("I2V", 16)):
            graph = block_graph(generation, kept)
            found[f"{generation} {kind}"] = {
                "nodes": graph.nodes,
                "kernels": graph.kernels,
                "casts": graph.casts,
                "copies": graph.copies,
            }
    return found


def run(tokens: list[int], generations: list[str], rounds: int) -> dict[str, Any]:
    from benchmarks.machine import machine

    rows = [measure(generation, n, rounds) for generation in generations for n in tokens]
    fits = {g: fit([row for row in rows if row["generation"] == g]) for g in generations if len(tokens) > 2}
    result = {"benchmark": "denoise_step", "machine": machine(), "fit": fits, "rows": rows, "graph": graphs()}
    return {**result, "bounds": verdicts(result)}


def verdicts(result: Mapping[str, Any]) -> dict[str, Any]:
    """What of a result is bounded, and whether it holds."""
    rows = result["rows"]
    found = {
        "time, ours / plain, T2V": [row["ours / plain, T2V"]["paired_median"] for row in rows],
        "time, I2V / T2V, ours": [row["I2V / T2V, ours"]["paired_median"] for row in rows],
        "largest residual of the fit": [fit["largest_residual"] for fit in result["fit"].values()],
        "kernels of a block, LTX-2.3 T2V": [result["graph"]["22B T2V"]["kernels"]],
        "casts in a bfloat16 block": [graph["casts"] for graph in result["graph"].values()],
    }
    return judged(found, BOUNDS)


def main() -> None:
    with_fast_blas()
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--tokens", type=int, nargs="+", default=list(GRIDS), choices=list(GRIDS))
    parser.add_argument("--generations", nargs="+", default=["22B", "19B"], choices=["19B", "22B"])
    parser.add_argument("--output", type=Path, default=None)
    arguments = parser.parse_args()
    result = json.dumps(run(arguments.tokens, arguments.generations, arguments.rounds), indent=1)
    if arguments.output:
        arguments.output.write_text(result + "\n")
    print(result)


if __name__ == "__main__":
    main()
