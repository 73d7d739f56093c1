"""A denoiser whose blocks come from disk against a resident one: latents, bytes read, allocator peak, time.

    python benchmarks/streaming.py [--blocks 6] [--tokens 256] [--steps 2] [--rounds 2] [--output FILE]

LTX-2.3's block, video 512 and audio 256 wide, random weights in float32 and in 8 bits, one pass and four guided passes
a step, none, a quarter and all of the blocks resident. Clock: CPU time of the process, reading included.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.blas import with_fast_blas
from benchmarks.bounds import judged

GRIDS = {64: (4, 4, 4), 256: (4, 8, 8), 1024: (4, 16, 16)}
AUDIO, TEXT = 32, 128
HEADS = 8
SEED = 3
WIDE = 8
"""Rows from which a quantized layer is dequantized: so that all are."""

BOUNDS = {
    "bytes read / (steps x not resident)": 1.02,
    "streamed latents that differ": 0,
    "peak beyond kept blocks / (resident's + two blocks)": 1.1,
}


def write_model(folder: Path, blocks: int, bits: int | None) -> Path:
    """A converted model that has the transformer alone, random weights."""
    import mlx.core as mx
    from mlx.utils import tree_flatten, tree_map

    from mlx_ltx2.models.registry import COMPONENTS
    from mlx_ltx2.weights.index import INDEX, SHARD_INDEX, write_json
    from mlx_ltx2.weights.quantize import Quantization, quantize_module
    from tests.cases.transformer import FIXED, GENERATION_KEYS

    section = {
        **FIXED,
        **GENERATION_KEYS["22B"],
        "num_layers": blocks,
        "num_attention_heads": HEADS,
        "attention_head_dim": 64,
        "audio_num_attention_heads": HEADS,
        "audio_attention_head_dim": 32,
        "in_channels": 128,
        "out_channels": 128,
        "audio_out_channels": 128,
        "cross_attention_dim": 64 * HEADS,
        "audio_cross_attention_dim": 32 * HEADS,
    }
    network = COMPONENTS["transformer"].build(section)
    mx.random.seed(0)
    network.update(tree_map(lambda x: x if x.any() else 0.1 * mx.random.normal(x.shape), network.parameters()))
    stored: dict[str, Any] = dict(section)
    if bits is not None:
        quantization = Quantization.from_options(bits=bits)
        quantize_module(network, quantization)
        stored["quantization"] = quantization.to_dict()
    where, shard = folder / "transformer", "model-00001-of-00001.safetensors"
    where.mkdir(parents=True)
    flat: Any = tree_flatten(network.parameters())
    mx.save_safetensors(str(where / shard), dict(flat), {"format": "mlx"})
    write_json(where / SHARD_INDEX, {"weight_map": {name: shard for name, _ in flat}})
    write_json(where / "config.json", stored)
    index = {
        "format": 1,
        "generation": "2.3",
        "version": [2, 3, 0],
        "variant": "distilled",
        "components": {"transformer": "transformer"},
        "quantization": stored.get("quantization"),
        "loras": [],
        "sources": [],
        "tool": "streaming",
    }
    write_json(folder / INDEX, index)
    return folder


def sampler(tokens: int, steps: int, passes: int) -> Callable[[Any], Any]:
    """network -> latents of a short clip."""
    import mlx.core as mx
    import numpy as np

    from mlx_ltx2.diffusion.denoisers import Evaluator, GuidedDenoiser, SimpleDenoiser
    from mlx_ltx2.diffusion.guidance import GuidanceParams
    from mlx_ltx2.diffusion.loop import denoise
    from mlx_ltx2.diffusion.noise import NoiseSource
    from mlx_ltx2.diffusion.state import add_noise, audio_state, video_state
    from mlx_ltx2.diffusion.steppers import make_stepper
    from mlx_ltx2.shapes import LatentShape
    from mlx_ltx2.states import TextContext

    guided = GuidanceParams(cfg=3.0, stg=1.0, stg_blocks=(1,), modality=2.0, rescale=0.5)

    def sample(network: Any) -> Any:
        noise, dtype, c = NoiseSource(SEED, 0), network.dtype, network.config
        video = video_state(LatentShape(*GRIDS[tokens]), 128, 24.0, dtype=dtype)
        video = add_noise(video, noise.normal("video", video.latent.shape))
        audio = audio_state(AUDIO, dtype=dtype)
        audio = add_noise(audio, noise.normal("audio", audio.latent.shape))
        keys = mx.random.split(mx.random.key(SEED), 2)
        contexts = [
            TextContext(
                *(mx.random.normal((1, TEXT, s.context_dim), key=key).astype(dtype) for s in (c.video, c.audio))
            )
            for key in keys
        ]
        evaluator = Evaluator(network, lambda v, a: network.rope(v, a, dtype))
        denoiser = (
            SimpleDenoiser(evaluator, contexts[0])
            if passes == 1
            else GuidedDenoiser(evaluator, *contexts, video=guided, audio=guided)
        )
        sigmas = np.linspace(1, 0, steps + 1)
        return [
            s.latent for s in denoise(denoiser, video, audio, sigmas, make_stepper("euler", noise)) if s is not None
        ]

    return sample


def peak_of(network: Any, sample: Callable[[Any], Any]) -> int:
    """Allocator peak of a run beyond what lives before, bytes; the network's own weights live before it."""
    import mlx.core as mx

    from mlx_ltx2.memory import release

    release()
    before = mx.get_active_memory()
    mx.reset_peak_memory()
    mx.eval(sample(network))
    return mx.get_peak_memory() - before


def measure(model: Any, shape: tuple[int, int, int], resident: int, rounds: int) -> dict[str, Any]:
    """shape: tokens, steps, passes."""
    import mlx.core as mx

    from benchmarks.machine import interleaved, ratio
    from mlx_ltx2.memory import materialised
    from mlx_ltx2.models.layers.linear import dequantize_when_wide
    from mlx_ltx2.weights.load import load_component
    from mlx_ltx2.weights.streaming import stream_transformer

    sample = sampler(*shape)
    whole = materialised(load_component(model, "transformer"))
    streamed, _ = stream_transformer(model, resident_blocks=resident)
    for network in (whole, streamed.network):  # MLX's own quantized product takes minutes on a CPU
        dequantize_when_wide(network, WIDE)
    materialised(streamed.network)  # its resident blocks have been read now
    blocks = streamed.blocks
    before = blocks.reader.bytes_read
    got, want = sample(streamed), sample(whole)
    mx.eval(got, want)
    read = blocks.reader.bytes_read - before
    expected = shape[1] * blocks.streamed_bytes
    peaks = {"resident": peak_of(whole, sample), "streamed": peak_of(streamed, sample)}
    coming = min(2, len(blocks) - blocks.resident) * blocks.block_bytes
    arms = {"streamed": lambda: sample(streamed), "resident": lambda: sample(whole)}
    times = interleaved(arms, rounds, time.process_time, warm=True)
    return {
        "tokens": shape[0],
        "steps": shape[1],
        "passes": shape[2],
        "blocks": len(blocks),
        "resident": blocks.resident,
        "block_mb": round(blocks.block_bytes / 1e6, 2),
        "bytes_read": read,
        "bytes_not_resident": expected,
        "read_ratio": round(read / expected, 4) if expected else None,
        "differ": int(not all(mx.array_equal(a, b).item() for a, b in zip(got, want, strict=True))),
        "peak_mb": {name: round(size / 1e6, 2) for name, size in peaks.items()},
        "peak_ratio": round(peaks["streamed"] / (peaks["resident"] + coming), 3),
        "time_ratio": ratio(times, "streamed", "resident")["paired_median"],
    }


def run(
    blocks: int,
    tokens: int,
    steps: int,
    rounds: int,
    bits: tuple[int | None, ...] = (None, 8),
    passes: tuple[int, ...] = (1, 4),
) -> dict[str, Any]:
    from benchmarks.machine import machine
    from mlx_ltx2.memory import limits
    from mlx_ltx2.weights.index import ModelFolder

    rows = []
    with tempfile.TemporaryDirectory() as name, limits():
        for width in bits:
            model = ModelFolder.open(write_model(Path(name) / f"model-{width}", blocks, width))
            for count in passes:
                for resident in (0, blocks // 4, blocks):
                    row = measure(model, (tokens, steps, count), resident, rounds)
                    rows.append({"bits": width or 32, **row})
    result = {"benchmark": "streaming", "machine": machine(), "rows": rows}
    return {**result, "bounds": verdicts(result)}


def verdicts(result: Mapping[str, Any]) -> dict[str, Any]:
    """What of a result is bounded, and whether it holds."""
    rows = result["rows"]
    read = [row for row in rows if row["read_ratio"] is not None]
    found = {
        "bytes read / (steps x not resident)": [row["read_ratio"] for row in read],
        "streamed latents that differ": [row["differ"] for row in rows],
        "peak beyond kept blocks / (resident's + two blocks)": [row["peak_ratio"] for row in read],
    }
    return judged(found, BOUNDS)


def main() -> None:
    with_fast_blas()
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--blocks", type=int, default=6)
    parser.add_argument("--tokens", type=int, default=256, choices=list(GRIDS))
    parser.add_argument("--steps", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--output", type=Path, default=None)
    options = parser.parse_args()
    text = json.dumps(run(options.blocks, options.tokens, options.steps, options.rounds), indent=1)
    if options.output:
        options.output.write_text(text + "\n")
    print(text)


if __name__ == "__main__":
    main()
