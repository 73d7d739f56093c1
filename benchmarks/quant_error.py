"""What quantization costs in accuracy: per layer kind, and through a stack of blocks, against float32.

    python benchmarks/quant_error.py [--blocks 6] [--model FOLDER] [--output FILE]

Without a model the weights are Gaussian with one outlier column in 128, at a quarter of the real widths; with one, its
transformer's first blocks are measured. Errors are relative L2. The stack's error is that of a block's token updates,
block after block, all layers of the recipe quantized.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import mlx.core as mx
import numpy as np
from mlx import nn

from benchmarks.blas import with_fast_blas
from benchmarks.bounds import judged
from benchmarks.machine import machine
from mlx_ltx2.models.transformer import Transformer, TransformerConfig
from mlx_ltx2.states import Modality
from mlx_ltx2.weights.load import load_component
from mlx_ltx2.weights.quantize import Quantization, is_quantizable, quantize_module
from tests.cases.transformer import FIXED, GENERATION_KEYS, audio_positions, video_positions

RECIPES: dict[str, tuple[str, int, int]] = {
    "affine 8, group 64": ("affine", 8, 64),
    "affine 6, group 64": ("affine", 6, 64),
    "affine 5, group 64": ("affine", 5, 64),
    "affine 4, group 64": ("affine", 4, 64),
    "affine 4, group 32": ("affine", 4, 32),
    "mxfp8": ("mxfp8", 8, 32),
    "mxfp4": ("mxfp4", 4, 32),
    "nvfp4": ("nvfp4", 4, 16),
}
DEFAULT = "affine 8, group 64"
DEFAULT_ERROR = "error of a layer's weights, 8 bits"
BOUNDS = {DEFAULT_ERROR: 0.01}
"""The default recipe is the smallest that keeps every kind of layer within it."""
KINDS = {"to_q": "queries", "to_k": "keys", "to_v": "values", "to_out.0": "attention out"}
KINDS |= {"net.0.proj": "feed-forward in", "net.2": "feed-forward out"}
GRID, AUDIO, TEXT = (3, 4, 4), 8, 32


def random_network(blocks: int) -> Transformer:
    """LTX-2.3's architecture with random weights as broad-tailed as trained ones."""
    section = {
        **FIXED,
        **GENERATION_KEYS["22B"],
        "num_layers": blocks,
        "num_attention_heads": 8,
        "attention_head_dim": 64,
        "audio_num_attention_heads": 8,
        "audio_attention_head_dim": 32,
        "in_channels": 128,
        "out_channels": 128,
        "audio_out_channels": 128,
        "cross_attention_dim": 512,
        "audio_cross_attention_dim": 256,
        "caption_channels": 512,
    }
    network = Transformer(TransformerConfig.from_dict(section))
    rng = np.random.default_rng(0)
    for _, layer in linear_layers(network):
        out, into = layer.weight.shape
        columns = np.where(rng.random(into) < 1 / 128, 4.0, 1.0)
        weight = rng.standard_normal((out, into)) * columns / np.sqrt((columns**2).sum())
        layer.weight = mx.array(weight.astype(np.float32))
    mx.eval(network.parameters())
    return network


def linear_layers(network: nn.Module) -> Iterator[tuple[str, nn.Linear]]:
    """The layers that quantization touches."""
    for name, layer in network.named_modules():
        if isinstance(layer, nn.Linear) and is_quantizable(name):
            yield name, layer


def weight_errors(network: Transformer, recipe: Quantization) -> dict[str, float]:
    """Root mean square over all layers of a kind of the weight's relative error."""
    found: dict[str, list[float]] = {}
    for name, layer in linear_layers(network):
        kind = next(label for end, label in KINDS.items() if name.endswith(end))
        w = layer.weight.astype(mx.float32)
        if not recipe.fits(w.shape[-1]):
            continue
        options = {"group_size": recipe.group_size, "bits": recipe.bits, "mode": recipe.mode}
        restored = mx.dequantize(*mx.quantize(w, **options), **options, dtype=mx.float32)
        found.setdefault(kind, []).append(float(((restored - w) ** 2).sum() / (w**2).sum()))
    return {kind: float(np.sqrt(np.mean(errors))) for kind, errors in found.items()}


def trajectory(network: Transformer) -> list[dict[str, np.ndarray]]:
    """Tokens of both streams before the first block and after each."""
    rng, c = np.random.default_rng(1), network.config
    tokens = int(np.prod(GRID))
    level = np.array([0.7], np.float32)

    def draw(*shape: int) -> mx.array:
        return mx.array(rng.standard_normal(shape, dtype=np.float32))

    v, a = c.video, c.audio
    texts = [draw(1, TEXT, s.caption_channels or s.context_dim) for s in (v, a)]
    video = Modality(draw(1, tokens, v.in_channels), level, level[:, None], video_positions(GRID, 24.0), texts[0])
    audio = Modality(draw(1, AUDIO, a.in_channels), level, level[:, None], audio_positions(AUDIO), texts[1])
    inputs, x = network.prepare(video, audio)
    states = [x]
    for index in range(c.layers):
        x = network.block(index, inputs, x)
        mx.eval(x)
        states.append(x)
    return [{p: np.array(t.astype(mx.float32)) for p, t in state.items()} for state in states]


def stack_errors(plain: list[dict[str, np.ndarray]], other: list[dict[str, np.ndarray]]) -> dict[str, list[float]]:
    """Per stream and block: error of what the blocks so far have added, and 1 - cosine of the whole tokens last."""
    found: dict[str, list[float]] = {}
    for p, name in (("", "video"), ("audio_", "audio")):
        start = plain[0][p]
        found[name] = [
            round(float(np.linalg.norm(b[p] - a[p]) / np.linalg.norm(a[p] - start)), 5)
            for a, b in zip(plain[1:], other[1:], strict=True)
        ]
    return found


def row(plain: Transformer, states: list[dict[str, np.ndarray]], recipe: tuple[str, int, int]) -> dict[str, Any]:
    """One recipe's errors. states: of `trajectory(plain)`."""
    quantization = Quantization.from_options(*recipe)
    quantized = Transformer(plain.config)
    quantized.update(plain.parameters())
    left = quantize_module(quantized, quantization)
    biases = 32 if quantization.mode == "affine" else 8
    return {
        "bits_per_weight": quantization.bits + biases / quantization.group_size,
        "weights": {kind: round(e, 5) for kind, e in weight_errors(plain, quantization).items()},
        "stack": stack_errors(states, trajectory(quantized)),
        "layers_left": len(left),
    }


def run(blocks: int = 6, model: str | None = None) -> dict[str, Any]:
    """The table: recipe -> bits per weight, error per layer kind, error through the stack."""

    plain = random_network(blocks) if model is None else _first_blocks(model, blocks)
    states, rows = trajectory(plain), {}
    for name, recipe in RECIPES.items():
        rows[name] = row(plain, states, recipe)
    result = {
        "benchmark": "quant_error",
        "machine": machine(),
        "weights": "random" if model is None else Path(model).name,
        "blocks": plain.config.layers,
        "rows": rows,
    }
    return {**result, "bounds": verdicts(result)}


def verdicts(result: Mapping[str, Any]) -> dict[str, Any]:
    """What of a result is bounded, and whether it holds."""
    return judged({DEFAULT_ERROR: list(result["rows"].get(DEFAULT, {"weights": {}})["weights"].values())}, BOUNDS)


def _first_blocks(model: str, blocks: int) -> Transformer:
    loaded = load_component(model, "transformer", dtype=mx.float32)
    assert isinstance(loaded, Transformer)
    loaded.transformer_blocks = loaded.transformer_blocks[:blocks]
    loaded.config = replace(loaded.config, layers=len(loaded.transformer_blocks))
    return loaded


def main() -> None:
    with_fast_blas()
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--blocks", type=int, default=6)
    parser.add_argument("--model", default=None, help="a converted model in full precision")
    parser.add_argument("--output", type=Path, default=None)
    arguments = parser.parse_args()
    result = run(arguments.blocks, arguments.model)
    text = json.dumps(result, indent=1)
    if arguments.output:
        arguments.output.write_text(text + "\n")
    print(text)


if __name__ == "__main__":
    main()
