"""Sizes and footprints of a model's networks, from headers and shapes alone.

Weights are counted from the files' headers; everything else is the footprint of the very networks at the sizes asked
for (see `mlx_ltx2.footprint`), so the numbers follow the code and the backend. They are kept per shape and
files, so that a model that was converted anew is read anew.
"""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from threading import RLock
from typing import Any

import mlx.core as mx
import numpy as np
from mlx import nn
from mlx.utils import tree_flatten

from mlx_ltx2.footprint import Footprint, UntraceableError, footprint
from mlx_ltx2.models.audio_vae import log_mel
from mlx_ltx2.models.text.gemma import hidden_states
from mlx_ltx2.models.text.projections import CONTEXT_TOKENS
from mlx_ltx2.models.transformer import Transformer
from mlx_ltx2.models.video_vae.streaming import stream_decode
from mlx_ltx2.pipelines.lora_needs import LayerSize
from mlx_ltx2.pipelines.stack import Stack
from mlx_ltx2.stages.decode_video import to_uint8
from mlx_ltx2.stages.enhance import IMAGE_TO_VIDEO, PREFILL_TOKENS, TEXT_TO_VIDEO
from mlx_ltx2.states import LatentState, Modality
from mlx_ltx2.weights.header import Header, TensorInfo
from mlx_ltx2.weights.index import ModelFolder
from mlx_ltx2.weights.load import bare_component
from mlx_ltx2.weights.lora import (
    QuantizedLinearWithLora,
    layer_at,
    linear_layers,
    linear_shape,
    put_layer,
)
from mlx_ltx2.weights.stamp import FileStamp, folder_stamp
from mlx_ltx2.weights.streaming import BLOCKS, split_by_block
from mlx_ltx2.weights.text_encoder import bare_text_encoder
from mlx_ltx2.weights.upsampler_file import bare_upsampler_file

LIVE_COPIES = 12
"""Arrays of a layer's size that live at a time; 10 to 12 were seen in transformers of this kind."""

TRACED_BLOCKS = 2
"""All blocks are alike: two of them show what any number needs."""

_DTYPES = {
    "F32": mx.float32, "BF16": mx.bfloat16, "F16": mx.float16, "U32": mx.uint32, "U8": mx.uint8, "I32": mx.int32,
    "F8_E4M3": mx.uint8, "BOOL": mx.bool_, "I64": mx.int64,
}  # fmt: skip


@dataclass(frozen=True)
class Stored:
    """A component as it lies on the disk now; unequal as soon as one of its files is another.

    path: of the model, or of the text encoder's own folder.
    """

    path: Path
    name: str
    stamp: tuple[FileStamp, ...]

    @classmethod
    def of(cls, model: ModelFolder, name: str) -> Stored:
        """Raises: WeightsError if the model has no such component."""
        return cls(model.path, name, folder_stamp(model.folder(name)))

    @classmethod
    def text_encoder(cls, folder: Path) -> Stored:
        return cls(folder, "text_encoder", folder_stamp(folder))

    def bare(self, **streams: bool) -> tuple[nn.Module, dict[str, tuple[Header, TensorInfo]]]:
        """As `bare_component`."""
        return bare_component(ModelFolder.open(self.path), self.name, **streams)


@dataclass(frozen=True)
class StreamShape:
    """What of a stream's state decides the graph. runs: lengths of equal noise levels."""

    tokens: int
    channels: int
    runs: tuple[int, ...]
    masked: bool


def stream_shape(state: LatentState | None) -> StreamShape | None:
    """None for an absent stream."""
    if state is None:
        return None
    mask = state.denoise_mask[0]
    edges = np.flatnonzero(np.append(True, mask[1:] != mask[:-1]))
    runs = tuple(np.diff(np.append(edges, len(mask))).tolist())
    return StreamShape(len(mask), state.latent.shape[-1], runs, state.attention_mask is not None)


@lru_cache(maxsize=64)
def typed_network(stored: Stored, dtype: mx.Dtype | None) -> tuple[Any, mx.Dtype]:
    """A network without data whose parameters have their stored types, and the type of most of its weights.

    Statistics and single numbers may have another one.
    """
    module, wanted = stored.bare()
    _give_types(module, {n: _DTYPES[info.dtype] for n, (_, info) in wanted.items()}, dtype)
    counts: Counter[mx.Dtype] = Counter()
    for _, array in _flat(module):
        if mx.issubdtype(array.dtype, mx.floating):
            counts[array.dtype] += array.size
    return module, counts.most_common(1)[0][0]


def _flat(module: nn.Module) -> list[tuple[str, mx.array]]:
    flat = tree_flatten(module.parameters())
    assert isinstance(flat, list)
    return flat


def _give_types(module: nn.Module, types: Mapping[str, mx.Dtype], dtype: mx.Dtype | None) -> None:
    arrays = []
    for name, array in _flat(module):
        kind = types[name]
        arrays.append((name, mx.zeros(array.shape, dtype if dtype and mx.issubdtype(kind, mx.floating) else kind)))
    module.load_weights(arrays, strict=True)


def _size(module: nn.Module) -> int:
    return sum(array.nbytes for _, array in _flat(module))


@lru_cache(maxsize=64)
def weight_bytes(stored: Stored, dtype: mx.Dtype | None) -> int:
    """Bytes of a network's weights as they are computed in."""
    return _size(typed_network(stored, dtype)[0])


_turn = RLock()
"""A traced network is given arrays without data meanwhile; a second thread that plans waits."""


def network_footprint(module: nn.Module, call: Callable[..., Any], *inputs: mx.array) -> Footprint:
    """Footprint of call(evaluate, module, *inputs), whose arrays need no data, beyond weights,
    LoRAs beside them and inputs.

    Where MLX cannot describe the graph, so many bytes as it takes to hold `LIVE_COPIES` of the widest layer's output.
    """
    flat = _flat(module)
    names = [name for name, _ in flat]
    branched = [m for _, m in module.named_modules() if isinstance(m, QuantizedLinearWithLora)]
    beside = [layer.branch for layer in branched]
    weights = [array for _, array in flat] + [array for pair in beside for array in pair]

    def give(arrays: Sequence[mx.array]) -> None:
        module.load_weights(list(zip(names, arrays[: len(names)], strict=True)), strict=True)
        own = iter(arrays[len(names) :])
        for layer in branched:
            layer.give_branch(next(own), next(own))

    def run(evaluate: Callable[..., None], *arrays: mx.array) -> Any:
        give(arrays[: len(weights)])
        return call(evaluate, module, *arrays[len(weights) :])

    with _turn:
        try:
            return footprint(run, *weights, *inputs, staged=True)
        except UntraceableError:
            widest = max((array.shape[-1] for _, array in flat if array.ndim >= 2), default=1)
            rows = max(array.size // array.shape[-1] for array in inputs)
            nbytes = rows * widest * inputs[0].dtype.size
            return Footprint(LIVE_COPIES * nbytes, sum(array.nbytes for array in inputs))
        finally:
            give(weights)


@lru_cache(maxsize=256)
def component_footprint(
    stored: Stored, cast: mx.Dtype | None, shape: tuple[int, ...], dtype: mx.Dtype, extra: tuple[Any, ...]
) -> Footprint:
    """Of a component on one array, samples (1, N, 2) for the audio encoder. extra: (("only", stream),) for the text
    projections, (("chunk", frames),) for the video decoder."""
    module, _ = typed_network(stored, cast)
    options = dict(extra)

    def call(evaluate: Callable[..., None], module: Any, x: mx.array) -> Any:
        if stored.name == "video_decoder":
            return _decoded(evaluate, module, x, options["chunk"])
        result = module(log_mel(x, module.config) if stored.name == "audio_encoder" else x)
        return getattr(result, options["only"]) if "only" in options else result

    return network_footprint(module, call, mx.zeros(shape, dtype))


def upsampler_needs(
    path: str, kind: str, cast: mx.Dtype | None, shape: tuple[int, ...], dtype: mx.Dtype
) -> tuple[int, Footprint]:
    """Weights and footprint of an upsampler in a file of its own, on latents of this shape."""
    module, header = bare_upsampler_file(path, kind)
    _give_types(module, {n: _DTYPES[info.dtype] for n, info in header.tensors.items()}, cast)
    run = network_footprint(module, lambda _, network, x: network(x), mx.zeros(shape, dtype))
    return _size(module), run


def _decoded(evaluate: Callable[..., None], decoder: Any, latent: mx.array, chunk: int) -> list[mx.array]:
    """As the stage decodes: frames become bytes piece by piece."""
    noise = latent if decoder.timestep_conditioned else None
    if not chunk:
        pieces = iter([decoder(latent, noise=noise)])
    else:
        pieces = stream_decode(decoder, latent, evaluate=evaluate, noise=noise, chunk=chunk)
    for pixels in pieces:
        evaluate(pixels)
        evaluate(to_uint8(pixels))
    return []


@dataclass(frozen=True)
class TransformerParts:
    """What a plan knows of a transformer. network: of few blocks, without data. stack: sizes of the
    whole one. layers: what a LoRA can change, by name, in the network's order.
    """

    network: Any
    stack: Stack
    dtype: mx.Dtype
    layers: Mapping[str, LayerSize]


@lru_cache(maxsize=16)
def transformer_parts(stored: Stored, cast: mx.Dtype | None, video: bool, audio: bool) -> TransformerParts:
    """Of the stored transformer with these streams. cast: as it is computed in; None = as stored."""
    module, wanted = stored.bare(video=video, audio=audio)
    network: Any = module
    _give_types(network, {n: _DTYPES[info.dtype] for n, (_, info) in wanted.items()}, cast)
    count = len(network.transformer_blocks)
    blocks, around = split_by_block(wanted, BLOCKS, count)
    sizes = {name: array.nbytes for name, array in _flat(network)}
    stack = Stack(sum(sizes[n] for n in around), max(sum(sizes[n] for n in block) for block in blocks), count)
    layers = {name: LayerSize.of(layer) for name, layer in linear_layers(network).items()}
    network.transformer_blocks = network.transformer_blocks[:TRACED_BLOCKS]
    return TransformerParts(network, stack, network.dtype, layers)


@lru_cache(maxsize=256)
def pass_footprint(
    stored: Stored,
    cast: mx.Dtype | None,
    streams: tuple[StreamShape | None, ...],
    at_once: int,
    ranks: tuple[tuple[str, int], ...] = (),
) -> Footprint:
    """Of one pass and the tables that outlive it. ranks: of LoRAs beside the layers of these names,
    those of the blocks counted from "transformer_blocks.*"."""
    video, audio = streams
    parts = transformer_parts(stored, cast, video is not None, audio is not None)
    network, dtype = parts.network, parts.dtype
    configs = (network.config.video, network.config.audio)
    inputs = []
    for stream, config in zip(streams, configs, strict=True):
        if stream is not None:
            width = config.caption_channels or config.context_dim
            inputs += [mx.zeros((at_once, stream.tokens, stream.channels), dtype)]
            inputs += [mx.zeros((at_once, CONTEXT_TOKENS, width), dtype)]

    def call(_: Any, network: Transformer, *arrays: mx.array) -> Any:
        given = list(arrays)
        modalities: list[Modality | None] = []
        for stream, axes in zip(streams, (3, 1), strict=True):
            modalities.append(None if stream is None else _modality(stream, axes, given.pop(0), given.pop(0)))
        video_positions, audio_positions = (None if m is None else m.positions[:1] for m in modalities)
        rope = network.rope(video_positions, audio_positions, dtype)
        tables = [t for r in vars(rope).values() if r is not None for t in vars(r).values() if isinstance(t, mx.array)]
        return [x for x in network(*modalities, rope=rope) if x is not None] + tables

    with _turn, _branches(network, ranks):
        return network_footprint(network, call, *inputs)


@contextlib.contextmanager
def _branches(network: Any, ranks: Sequence[tuple[str, int]]) -> Iterator[None]:
    """LoRAs without data beside these layers."""
    plain: dict[str, Any] = {}
    for pattern, rank in ranks:
        for index in range(len(network.transformer_blocks) if "*" in pattern else 1):
            name = pattern.replace("*", str(index))
            plain[name] = layer_at(network, name)
            outputs, inputs = linear_shape(plain[name])
            down, up = mx.zeros((rank, inputs)), mx.zeros((outputs, rank))
            put_layer(network, name, QuantizedLinearWithLora(plain[name], down, up))
    try:
        yield
    finally:
        for name, layer in plain.items():
            put_layer(network, name, layer)


def _modality(stream: StreamShape, axes: int, latent: mx.array, context: mx.array) -> Modality:
    count = len(latent)
    levels = np.repeat(np.linspace(1, 0, len(stream.runs), dtype=np.float32)[None], count, axis=0)
    mask = mx.zeros((1, stream.tokens, stream.tokens)) if stream.masked else None
    return Modality(
        latent=latent,
        sigma=np.ones(count, np.float32),
        timesteps=levels,
        positions=np.ones((count, axes, stream.tokens, 2), np.float32),
        context=context,
        runs=stream.runs if len(stream.runs) > 1 else None,
        attention_mask=mask,
    )


@lru_cache(maxsize=16)
def enhance_room(stored: Stored, prompt: str, from_image: bool, new_tokens: int) -> int:
    """Highest use of a text encoder beside its weights while it writes a prompt out: keys, values, one part's pass."""
    bare: Any
    bare, places, tokenizer = bare_text_encoder(stored.path)
    types = {n: mx.bfloat16 if info.dtype == "F16" else _DTYPES[info.dtype] for n, (_, _, info) in places.items()}
    _give_types(bare, types, None)
    turn = tokenizer.chat(IMAGE_TO_VIDEO if from_image else TEXT_TO_VIDEO, f"user prompt: {prompt.strip()}")
    args, count = bare.args, len(turn) - 1
    caches = bare.make_cache()
    some = min(len(caches), args.sliding_window_pattern + 1)  # each kind of layer, and one after the global one
    bare.model.layers = bare.model.layers[:some]

    def read(evaluate: Callable[..., None], model: Any, ids: mx.array) -> Any:
        mine = model.make_cache()[:some]
        for start in range(0, count, PREFILL_TOKENS):
            model(ids[:, start : start + PREFILL_TOKENS], cache=mine)
            evaluate([cache.state for cache in mine])
        return [cache.state for cache in mine]

    run = network_footprint(bare, read, mx.zeros((1, count), mx.int32))
    row = 2 * args.num_key_value_heads * args.head_dim * bare.model.norm.weight.dtype.size

    def kept(cache: Any, tokens: int) -> int:
        rows = -(-tokens // cache.step) * cache.step
        window = getattr(cache, "max_size", None)  # of layers that look back only so far
        return int(row * (rows if window is None else min(rows, window + PREFILL_TOKENS - 1)))

    others = sum(kept(cache, len(turn) + new_tokens) for cache in caches[some:])
    longer = sum(kept(cache, len(turn) + new_tokens) - kept(cache, count) for cache in caches[:some])
    return run.peak + others + longer


@dataclass(frozen=True)
class TextNeeds:
    """stack: its weights. embedding: of which the token embedding. lengths: tokens per prompt. hidden: bytes of each
    prompt's states. room: highest use beside the weights."""

    stack: Stack
    embedding: int
    width: int
    states: int
    dtype: mx.Dtype
    lengths: tuple[int, ...]
    hidden: tuple[int, ...]
    room: int


@lru_cache(maxsize=16)
def text_needs(stored: Stored, prompts: tuple[str, ...]) -> TextNeeds:
    """Of a text encoder that encodes these prompts."""
    bare: Any
    bare, places, tokenizer = bare_text_encoder(stored.path)
    types = {n: mx.bfloat16 if info.dtype == "F16" else _DTYPES[info.dtype] for n, (_, _, info) in places.items()}
    _give_types(bare, types, None)
    gemma = bare.model
    count = len(gemma.layers)
    layers, around = split_by_block(places, "model.layers", count)
    sizes = {name: array.nbytes for name, array in _flat(bare)}
    stack = Stack(sum(sizes[n] for n in around), max(sum(sizes[n] for n in layer) for layer in layers), count)
    embedding = sum(sizes[n] for n in around if n.startswith("model.embed_tokens."))
    dtype = gemma.norm.weight.dtype
    lengths = tuple(len((tokenizer(p) if p.strip() else tokenizer.nothing()).ids) for p in prompts)
    width = bare.args.hidden_size
    hidden = tuple(length * width * (count + 1) * dtype.size for length in lengths)
    gemma.layers = gemma.layers[-1:]
    ids = mx.zeros((1, max(lengths)), mx.int32)
    run = network_footprint(bare, lambda _, model, ids: hidden_states(model, ids), ids)
    room = sum(hidden) + max(*hidden, run.peak - run.result)
    return TextNeeds(stack, embedding, width, count + 1, dtype, lengths, hidden, room)
