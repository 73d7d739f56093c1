"""One step of each stage with the full-size 22B transformer, 8-bit and streamed, on whatever machine this is.

The model is a converted folder whose weights are a hole in a sparse file: real names, shapes and sizes, zeros for
values. It takes a few megabytes on the disk; reading it allocates and copies as reading real weights does. The clip is
the smallest legal one of the two-stage pipeline, 64x64 pixels and 9 frames; the text context is full, 1024 tokens.

    python benchmarks/full_size_step.py [--blocks 48] [--resident 0] [--bits 8] [--text-tokens 1024] [--output FILE]

On a CPU the weights are computed in float32, each layer dequantized as it is used: MLX's own quantized and bfloat16
products are tens of times slower there. Memory is then higher than in bfloat16, and still has to stay below the bound.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.blas import with_fast_blas
from benchmarks.bounds import broken, judged

BOUNDS = {"peak in denoising, GB": 4.0, "bytes read / not resident": 1.02, "stages that are no numbers": 0}

WIDE = 8
"""Rows from which a layer is dequantized on a CPU: so that all layers are."""


def write_model(folder: Path, bits: int, blocks: int) -> Path:
    """A converted model that has the transformer alone, all zeros."""
    from mlx.utils import tree_flatten

    from mlx_ltx2.models.registry import COMPONENTS
    from mlx_ltx2.weights.header import ITEM_BYTES, header_bytes
    from mlx_ltx2.weights.index import INDEX, SHARD_INDEX, write_json
    from mlx_ltx2.weights.quantize import Quantization, quantize_module
    from tests.fixtures import official

    section = {**json.loads(official.metadata("22b-distilled")["config"])["transformer"], "num_layers": blocks}
    network = COMPONENTS["transformer"].build(section)
    quantization = Quantization.from_options(bits=bits)
    quantize_module(network, quantization)
    flat: Any = tree_flatten(network.parameters())
    kinds = {"mlx.core.uint32": "U32"}
    tensors = [(name, kinds.get(str(array.dtype), "BF16"), tuple(array.shape)) for name, array in flat]
    where = folder / "transformer"
    where.mkdir(parents=True)
    shard = "model-00001-of-00001.safetensors"
    head = header_bytes(tensors, {"format": "mlx"})
    size = 0
    for _, kind, shape in tensors:
        count = ITEM_BYTES[kind]
        for length in shape:
            count *= length
        size += count
    with (where / shard).open("wb") as file:
        file.write(head)
        file.truncate(len(head) + size)
    write_json(where / SHARD_INDEX, {"weight_map": {name: shard for name, _, _ in tensors}})
    write_json(where / "config.json", {**section, "quantization": quantization.to_dict()})
    index = {
        "format": 1,
        "generation": "2.3",
        "version": [2, 3, 0],
        "variant": "distilled",
        "components": {"transformer": "transformer"},
        "quantization": quantization.to_dict(),
        "loras": [],
        "sources": [],
        "tool": "full_size_step",
    }
    write_json(folder / INDEX, index)
    return folder


def step(network: Any, side: int, frames: int, text_tokens: int) -> dict[str, Any]:
    """One Euler step at `side` by `side` pixels."""
    import mlx.core as mx
    import numpy as np

    from mlx_ltx2.diffusion.denoisers import Evaluator, SimpleDenoiser
    from mlx_ltx2.diffusion.loop import denoise
    from mlx_ltx2.diffusion.noise import NoiseSource
    from mlx_ltx2.diffusion.state import add_noise, audio_state, video_state
    from mlx_ltx2.diffusion.steppers import make_stepper
    from mlx_ltx2.shapes import VideoShape, audio_latent_frames
    from mlx_ltx2.states import TextContext

    shape, noise, dtype = VideoShape(frames, side, side), NoiseSource(1, 0), network.dtype
    video = video_state(shape.latent(), 128, shape.fps, dtype=dtype)
    audio = audio_state(audio_latent_frames(shape.seconds), dtype=dtype)
    video = add_noise(video, noise.normal("video", video.latent.shape))
    audio = add_noise(audio, noise.normal("audio", audio.latent.shape))
    config = network.config
    context = TextContext(*(mx.zeros((1, text_tokens, s.context_dim), dtype) for s in (config.video, config.audio)))
    evaluator = Evaluator(network, lambda v, a: network.rope(v, a, dtype))
    reader = network.blocks.reader
    before, started = reader.bytes_read, time.perf_counter()
    mx.reset_peak_memory()
    states = denoise(SimpleDenoiser(evaluator, context), video, audio, (1.0, 0.0), make_stepper("euler", noise))
    seconds = time.perf_counter() - started
    finite = all(np.isfinite(np.array(s.latent.astype(mx.float32))).all() for s in states if s is not None)
    return {
        "size": [side, side, frames],
        "video_tokens": video.latent.shape[1],
        "audio_tokens": audio.latent.shape[1],
        "seconds": round(seconds, 1),
        "peak_bytes": mx.get_peak_memory(),
        "bytes_read": reader.bytes_read - before,
        "bytes_read_of_not_resident": round((reader.bytes_read - before) / network.blocks.streamed_bytes, 4),
        "finite": bool(finite),
    }


def measure(options: argparse.Namespace) -> dict[str, Any]:
    import mlx.core as mx

    from benchmarks.machine import machine
    from mlx_ltx2.memory import limits
    from mlx_ltx2.models.layers.linear import dequantize_when_wide
    from mlx_ltx2.weights.index import ModelFolder
    from mlx_ltx2.weights.streaming import stream_transformer

    on_cpu = mx.default_device() == mx.cpu
    with tempfile.TemporaryDirectory(dir=options.workdir) as name, limits():
        model = ModelFolder.open(write_model(Path(name) / "model", options.bits, options.blocks))
        network, _ = stream_transformer(model, resident_blocks=options.resident, dtype=mx.float32 if on_cpu else None)
        if on_cpu:
            dequantize_when_wide(network.network, WIDE)
        stages = [step(network, side, 9, options.text_tokens) for side in (32, 64)]
        blocks = network.blocks
        stored = sum(info.nbytes for _, _, info in blocks.reader.places.values())
    result = {
        "benchmark": "full_size_step",
        "machine": machine(),
        "bits": options.bits,
        "blocks": options.blocks,
        "resident_blocks": options.resident,
        "text_tokens": options.text_tokens,
        "activations": "float32" if on_cpu else "bfloat16",
        "model_bytes": stored,
        "block_bytes": blocks.block_bytes,
        "stages": stages,
    }
    return {**result, "bounds": verdicts(result)}


def verdicts(result: Mapping[str, Any]) -> dict[str, Any]:
    """What of a result is bounded, and whether it holds."""
    stages = result["stages"]
    found = {
        "peak in denoising, GB": [stage["peak_bytes"] / 1e9 for stage in stages],
        "bytes read / not resident": [stage["bytes_read_of_not_resident"] for stage in stages],
        "stages that are no numbers": [int(not stage["finite"]) for stage in stages],
    }
    return judged(found, BOUNDS)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--blocks", type=int, default=48)
    parser.add_argument("--resident", type=int, default=0, help="blocks that stay in memory")
    parser.add_argument("--bits", type=int, default=8, choices=(4, 8))
    parser.add_argument("--text-tokens", type=int, default=1024)
    parser.add_argument("--workdir", type=Path, default=None, help="folder for the sparse model")
    parser.add_argument("--output", type=Path, default=None, help="write the result to this file as well")
    options = parser.parse_args()
    with_fast_blas()
    result = measure(options)
    text = json.dumps(result, indent=2)
    print(text)
    if options.output is not None:
        options.output.write_text(text + "\n", "utf-8")
    return 1 if broken(result) else 0


if __name__ == "__main__":
    sys.exit(main())
