"""Measurements that only mean something on a GPU, shared by mac.py and cuda.py.

Products at the model's shapes, attention, quantized products, convolutions and whole passes at full width.
"""

from __future__ import annotations

import contextlib
import math
import statistics
import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import mlx.core as mx
import numpy as np
from mlx import nn
from mlx.utils import tree_map

from benchmarks.formulas import pass_flops, total
from mlx_ltx2.models.layers.linear import QuantizedLinear
from mlx_ltx2.models.transformer import Transformer, TransformerConfig
from mlx_ltx2.states import Modality
from tests.cases.transformer import GENERATION_KEYS, REAL, audio_positions, video_positions

ROWS = (320, 1280, 3520, 6144, 14080)
FULL: dict[str, Any] = {
    "weights": {"self projection": (4096, 4096), "feed-forward in": (16384, 4096), "feed-forward out": (4096, 16384)},
    "network": REAL,
    "grids": {1280: (5, 16, 16), 3120: (13, 12, 20), 6144: (16, 16, 24), 14080: (16, 22, 40)},
    "picture": (1, 7, 64, 96, 256),
}
"""weights: (outputs, inputs) of the layers that take most of a pass. network: its config. grids: token counts of clips.
picture: what a convolution of the video decoder reads."""
TOY: dict[str, Any] = {
    "weights": {"layer": (64, 128)},
    "network": {
        **REAL,
        "num_attention_heads": 2,
        "attention_head_dim": 32,
        "audio_num_attention_heads": 2,
        "audio_attention_head_dim": 32,
        "cross_attention_dim": 64,
        "audio_cross_attention_dim": 64,
    },
    "grids": {12: (3, 2, 2)},
    "picture": (1, 5, 8, 8, 32),
}
"""To try the programs on any machine: `SHAPES.update(TOY)`."""
SHAPES = dict(FULL)


def seconds(build: Callable[[], Any], repeats: int = 5) -> float:
    """Median over `repeats`, after one that is not counted."""
    times = []
    for number in range(repeats + 1):
        start = time.perf_counter()
        mx.eval(build())
        if number:
            times.append(time.perf_counter() - start)
    return statistics.median(times)


def _random(*shape: int, dtype: mx.Dtype = mx.bfloat16) -> mx.array:
    x = mx.random.normal(shape).astype(dtype)
    mx.eval(x)
    return x


def _tera(flops: float, time_s: float) -> float:
    return round(flops / time_s / 1e12, 3)


def products(rows: tuple[int, ...] = ROWS, dtype: mx.Dtype = mx.bfloat16) -> list[dict[str, Any]]:
    """TFLOP/s of x @ w.T with the weight as stored and turned in memory, 8-bit as stored and dequantized first."""
    found = []
    for name, (out, into) in SHAPES["weights"].items():
        weight = _random(out, into, dtype=dtype)
        turned = mx.contiguous(weight.T)
        layer = nn.Linear(into, out, bias=False)
        layer.weight = weight
        quantized = nn.QuantizedLinear.from_linear(layer, 64, 8)
        mx.eval(turned, quantized.parameters())
        first = QuantizedLinear.of(quantized, 1)
        for m in rows:
            x, flops = _random(m, into, dtype=dtype), 2 * m * out * into
            found.append(
                {
                    "layer": name,
                    "rows": m,
                    "stored": _tera(flops, seconds(lambda x=x, w=weight: x @ w.T)),
                    "turned": _tera(flops, seconds(lambda x=x, w=turned: x @ w)),
                    "quantized": _tera(flops, seconds(lambda x=x, q=quantized: q(x))),
                    "dequantized first": _tera(flops, seconds(lambda x=x, q=first: q(x))),
                }
            )
    return found


def attention(tokens: tuple[int, ...] = ROWS, other: Callable[[int], float] | None = None) -> list[dict[str, Any]]:
    """TFLOP/s of self-attention, 32 heads of 128. other: seconds of another library on the same shape."""
    found = []
    for n in tokens:
        q, k, v = (_random(1, 32, n, 128) for _ in range(3))
        scale = 1 / math.sqrt(128)
        flops = 4 * 32 * n * n * 128
        row: dict[str, Any] = {"tokens": n}
        attend = partial(mx.fast.scaled_dot_product_attention, q, k, v, scale=scale)
        row["mlx"] = _tera(flops, seconds(attend))
        if other is not None:
            row["other"] = _tera(flops, other(n))
        found.append(row)
    return found


def convolutions(dtypes: tuple[mx.Dtype, ...] = (mx.float16, mx.bfloat16, mx.float32)) -> list[dict[str, Any]]:
    """TFLOP/s of the video decoder's 3x3x3 convolution and its error against float32 on the same numbers."""
    found = []
    channels = SHAPES["picture"][-1]
    x = mx.random.normal(SHAPES["picture"])
    weight = mx.random.normal((channels, 3, 3, 3, channels)) / math.sqrt(27 * channels)
    exact = mx.conv3d(x, weight, padding=(0, 1, 1), stream=mx.cpu) if _small() else None
    for dtype in dtypes:
        a, w = x.astype(dtype), weight.astype(dtype)
        mx.eval(a, w)
        out = mx.conv3d(a, w, padding=(0, 1, 1))
        row: dict[str, Any] = {"type": str(dtype)}
        row["rate"] = _tera(2 * out.size * 27 * channels, seconds(lambda a=a, w=w: mx.conv3d(a, w, padding=(0, 1, 1))))
        if exact is not None:
            error = mx.linalg.norm((out.astype(mx.float32) - exact).flatten()) / mx.linalg.norm(exact.flatten())
            row["error"] = float(error)
        found.append(row)
    return found


def _small() -> bool:
    """Whether the CPU can be asked for the exact convolution; without a BLAS it would take minutes."""
    return mx.metal.is_available() or math.prod(SHAPES["picture"]) < 1e5


def full_width(blocks: int, dtype: mx.Dtype = mx.bfloat16, bits: int | None = None) -> Transformer:
    """LTX-2.3's transformer at full width with `blocks` blocks of random weights."""
    from mlx_ltx2.weights.quantize import Quantization, quantize_module

    config = TransformerConfig.from_dict({**SHAPES["network"], **GENERATION_KEYS["22B"], "num_layers": blocks})
    network = Transformer(config)
    network.update(tree_map(lambda x: x.astype(dtype), network.parameters()))
    if bits is not None:
        quantize_module(network, Quantization("affine", bits, 64))
    for block in network.transformer_blocks:
        mx.eval(block.parameters())
    mx.eval(network.parameters())
    return network


def passes(
    tokens: tuple[int, ...] = tuple(FULL["grids"]), blocks: int = 4, bits: tuple[int | None, ...] = (None, 8)
) -> list[dict[str, Any]]:
    """One pass at full width: seconds, TFLOP/s, bytes at the peak. bits: of the weights, None for bfloat16."""
    found = []
    for width in bits:
        network = full_width(blocks, bits=width)
        for n in tokens:
            video, audio = _clip(network, n)
            rope = network.rope(video.positions, audio.positions)
            before = mx.get_active_memory()
            mx.reset_peak_memory()
            took = seconds(lambda v=video, a=audio, r=rope, net=network: net(v, a, rope=r), 3)
            flops = total(pass_flops(network.config, n, audio.latent.shape[1]))
            found.append(
                {
                    "bits": width or 16,
                    "tokens": n,
                    "blocks": blocks,
                    "seconds": round(took, 4),
                    "rate": _tera(flops, took),
                    "activations_mb": round((mx.get_peak_memory() - before) / 1e6, 1),
                }
            )
        del network
        mx.clear_cache()
    return found


def _clip(network: Transformer, tokens: int, audio_tokens: int = 126) -> tuple[Modality, Modality]:
    level, c = np.array([0.7], np.float32), network.config
    assert c.video is not None and c.audio is not None
    streams = []
    for s, n, positions in (
        (c.video, tokens, video_positions(SHAPES["grids"][tokens], 24.0)),
        (c.audio, audio_tokens, audio_positions(audio_tokens)),
    ):
        text = _random(1, 1024, s.caption_channels or s.context_dim)
        streams.append(Modality(_random(1, n, s.in_channels), level, level[:, None], positions, text))
    return streams[0], streams[1]


def quality(blocks: int = 2) -> dict[str, Any]:
    """What the fast modes cost: relative error of a layer's weights and of the tokens, 8 and 4 bits."""
    from benchmarks import quant_error

    plain = quant_error.random_network(blocks)
    states, found = quant_error.trajectory(plain), {}
    for name in (quant_error.DEFAULT, "affine 4, group 64", "mxfp8"):
        found[name] = quant_error.row(plain, states, quant_error.RECIPES[name])
    return found


class Timed:
    """A progress that notes how long each phase took."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextlib.contextmanager
    def phase(self, name: str, total: int | None = None, unit: str = "step") -> Iterator[Callable[[int], None]]:
        start = time.perf_counter()
        yield lambda n=1: None
        self.seconds[name] = round(self.seconds.get(name, 0) + time.perf_counter() - start, 3)

    def note(self, text: str) -> None:
        pass


def phases(model: str, **options: Any) -> dict[str, Any]:
    """One clip: seconds by phase, and the allocator's peaks beside the predicted ones."""
    from mlx_ltx2 import LTX2Pipeline

    timed = Timed()
    pipeline = LTX2Pipeline.from_pretrained(model, prompt_cache=False)
    start = time.perf_counter()
    clip = pipeline("a red circle moving right", progress=timed, **options)
    whole = round(time.perf_counter() - start, 3)
    memory = clip.plan.memory
    shape = clip.plan.shape
    size = [shape.width, shape.height, shape.frames]
    predicted, actual = dict(memory["phases"]), dict(memory["actual"])
    return {"size": size, "seconds": timed.seconds, "whole": whole, "predicted": predicted, "actual": actual}


def with_shares(report: dict[str, Any]) -> dict[str, Any]:
    """Adds, to every pass, its rate as a share of the best product that this device has shown."""
    best = max(max(row["stored"], row["turned"]) for row in report["products"])
    for row in report["passes"]:
        row["share_of_best_product"] = round(row["rate"] / best, 3) if best else None
    return {**report, "best_product": best}
