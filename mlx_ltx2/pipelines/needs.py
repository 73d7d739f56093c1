"""How many bytes each phase of a plan takes, from headers and shapes alone.

Weights are counted from the files' headers; everything else is the footprint of the very networks at the plan's sizes
(see `mlx_ltx2.footprint`), so the numbers follow the code and the backend. Footprints are kept per model and shape.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import mlx.core as mx
import numpy as np
from mlx import nn
from mlx.utils import tree_flatten

from mlx_ltx2.diffusion.state import audio_state, conditioned, video_state
from mlx_ltx2.diffusion.tiles import Tile
from mlx_ltx2.footprint import Footprint, UntraceableError, footprint
from mlx_ltx2.models.text.gemma import hidden_states
from mlx_ltx2.models.text.projections import CONTEXT_TOKENS
from mlx_ltx2.models.transformer import Transformer
from mlx_ltx2.models.video_vae.streaming import stream_decode, streaming_decode_bytes
from mlx_ltx2.pipelines.plan import Plan
from mlx_ltx2.stages.decode_video import decode_way, to_uint8
from mlx_ltx2.stages.encode_media import Media
from mlx_ltx2.stages.plan import Sizes, StagePlan
from mlx_ltx2.states import LatentState, Modality
from mlx_ltx2.weights.load import KEEPS_DTYPE, bare_component
from mlx_ltx2.weights.networks import UPSAMPLERS, Networks
from mlx_ltx2.weights.streaming import BLOCKS, split_by_block
from mlx_ltx2.weights.text_encoder import bare_text_encoder

FEW_CHUNKS = 2
"""A streamed decode needs no more for many frames than for these."""

LIVE_COPIES = 12
"""Arrays of a layer's size that live at a time; 10 to 12 were seen in transformers of this kind."""

TRACED_BLOCKS = 2
"""All blocks are alike: two of them show what any number needs."""

_DTYPES = {
    "F32": mx.float32, "BF16": mx.bfloat16, "F16": mx.float16, "U32": mx.uint32, "U8": mx.uint8, "I32": mx.int32,
    "F8_E4M3": mx.uint8, "BOOL": mx.bool_, "I64": mx.int64,
}  # fmt: skip


@dataclass(frozen=True)
class Stack:
    """A network of equal blocks. around: weights outside them. block: the largest one, as computed in."""

    around: int
    block: int
    count: int

    @property
    def whole(self) -> int:
        return self.around + self.count * self.block

    def with_resident(self, kept: int | None) -> int:
        """Weights in memory if `kept` blocks stay and the others come in turn, the next one beside the current one."""
        if kept is None or kept + 2 >= self.count:
            return self.whole
        return self.around + (kept + 2) * self.block

    def fitting(self, room: int) -> int | None:
        """How many blocks can stay in `room` bytes; -1 if not even two fit, None if all do."""
        if self.whole <= room:
            return None
        return max(-1, min(self.count - 3, (room - self.around) // max(1, self.block) - 2))


class Needs:
    """Bytes of a plan's phases."""

    def __init__(self, plan: Plan, networks: Networks):
        self.plan = plan
        self.networks = networks
        self.traits = networks.traits
        self._components: dict[str, int] = {}
        self.dtype = self._transformer_dtype()
        info = networks.check_text_encoder() if networks.has_text_encoder() else None
        self._text = None if info is None else _text_facts(str(networks.text_folder()), self._prompts())

    def components(self) -> dict[str, int]:
        if self._text is not None:
            self._components.setdefault("text_encoder", self._text.stack.whole)
        return dict(self._components)

    def bytes_of(self, name: str) -> int:
        """Weights of a component as they are computed in."""
        facts = _facts(str(self.networks.model.path), name, self._cast(name))
        self._components[name] = facts.nbytes
        return facts.nbytes

    def _cast(self, name: str) -> mx.Dtype | None:
        return None if name in KEEPS_DTYPE else self.networks.dtype

    def _run(self, name: str, shape: tuple[int, ...], dtype: mx.Dtype, **extra: Any) -> Footprint:
        """Footprint of a component on one array."""
        self.bytes_of(name)
        key = tuple(sorted(extra.items()))
        return _component_footprint(str(self.networks.model.path), name, self._cast(name), shape, dtype, key)

    def _prompts(self) -> tuple[str, ...]:
        plan = self.plan
        given = (plan.enhanced_prompt or plan.prompt, plan.negative_prompt)
        return tuple(dict.fromkeys(p for p in given if p is not None))

    # text

    @property
    def text_stack(self) -> Stack:
        return self._text.stack if self._text else Stack(0, 0, 0)

    @property
    def text_room(self) -> int:
        return self._text.room if self._text else 0

    def text(self, layers: int | None) -> int:
        if self._text is None:
            return 0
        stack = self._text.stack
        if layers is None:
            return stack.whole + self._text.room
        return replace(stack, around=stack.around - self._text.embedding).with_resident(layers) + self._text.room

    def projections(self) -> int:
        if self._text is None:
            return 0
        text = self._text
        shape = (1, max(text.lengths), text.width, text.states)
        video, audio = (self._run("text_projections", shape, text.dtype, only=name) for name in ("video", "audio"))
        earlier = (len(text.hidden) - 1) * (video.result + audio.result)
        peak = max(video.peak, video.result + audio.peak)
        return self.bytes_of("text_projections") + sum(text.hidden) + earlier + peak

    def contexts(self) -> int:
        """Bytes of all text contexts."""
        sizes = [(c.context_dim, c) for c in (self._config.video, self._config.audio) if c is not None]
        width = sum((c.caption_channels or c.context_dim) for _, c in sizes)
        return max(1, len(self._prompts())) * CONTEXT_TOKENS * width * self.dtype.size

    # media

    def encoders(self) -> dict[str, int]:
        found: dict[str, int] = {}
        pixels = []
        for stage in self.plan.stages:
            shape = stage.shape
            pixels += [(1, 1, shape.height, shape.width, 3) for _ in stage.images]
            for use in stage.references:
                frames = (shape.frames - 1) // use.temporal_scale // 8 * 8 + 1
                pixels.append((1, frames, shape.height // use.downscale, shape.width // use.downscale, 3))
        if pixels:
            held = self._media_bytes()
            runs = [self._run("video_encoder", shape, mx.float32) for shape in dict.fromkeys(pixels)]
            sizes = [math.prod(shape) * 4 for shape in dict.fromkeys(pixels)]
            peak = max(run.peak + size for run, size in zip(runs, sizes, strict=True))
            found["encode media"] = self.bytes_of("video_encoder") + self.contexts() + held + peak
        return found

    def _media_bytes(self) -> int:
        media = [self._media(number) for number in range(len(self.plan.stages))]
        arrays = [latent for m in media for uses in m.images.values() for _, latent in uses]
        arrays += [latent for m in media for uses in m.references.values() for _, latent, _ in uses]
        return sum(array.nbytes for array in arrays)

    def _media(self, number: int) -> Media:
        """Conditioning latents of a stage, without data."""
        stage, scale, channels = self.plan.stages[number], self.traits.video_scale, self.traits.latent_channels
        grid = stage.shape.latent(scale)
        images = [(use, mx.zeros((1, 1, grid.height, grid.width, channels), self.dtype)) for use in stage.images]
        references = []
        for use in stage.references:
            shape = replace(
                stage.shape,
                frames=(stage.shape.frames - 1) // use.temporal_scale // scale.time * scale.time + 1,
                height=stage.shape.height // use.downscale,
                width=stage.shape.width // use.downscale,
            ).latent(scale)
            references.append((use, mx.zeros((1, shape.frames, shape.height, shape.width, channels), self.dtype), None))
        return Media(images={number: images}, references={number: references})

    # transformer

    @property
    def _config(self) -> Any:
        return _transformer_parts(str(self.networks.model.path), self.networks.dtype, True, True)[0].config

    def _transformer_dtype(self) -> mx.Dtype:
        return _transformer_parts(str(self.networks.model.path), self.networks.dtype, True, True)[3]

    def transformer(self, stage: StagePlan) -> Stack:
        streams = (stage.video is not None, stage.audio is not None)
        _, stack, _, _ = _transformer_parts(str(self.networks.model.path), self.networks.dtype, *streams)
        self._components["transformer"] = max(stack.whole, self._components.get("transformer", 0))
        return stack

    def kept(self, stack: Stack, blocks: int | None) -> int:
        """What a transformer holds between two stages."""
        return stack.whole if blocks is None else stack.around + blocks * stack.block

    def _states(self, number: int) -> tuple[LatentState | None, LatentState | None]:
        stage, traits = self.plan.stages[number], self.traits
        sizes = Sizes.of(stage.shape, traits.video_scale, traits.audio_scale)
        video = audio = None
        if stage.video:
            video = video_state(
                sizes.latent, traits.latent_channels, stage.shape.fps, dtype=self.dtype, scale=traits.video_scale
            )
            plain = replace(stage, video=replace(stage.video, region=None))
            video = conditioned(video, self._media(number).video_items(number, plain, traits))
        if stage.audio:
            bins, channels = traits.audio_latent
            audio = audio_state(
                sizes.audio_latents, bins=bins, channels=channels, dtype=self.dtype, scale=traits.audio_scale
            )
        return video, audio

    def tokens(self, number: int) -> int:
        return max(s.latent.shape[1] for s in self._states(number) if s is not None)

    def denoise(self, number: int) -> int:
        """Beyond the transformer's weights: states, texts, tables, and the highest point of a pass."""
        stage = self.plan.stages[number]
        states = self._states(number)
        passes = len(stage.passes)
        at_once = min(passes, max(1, self.plan.max_batch_size))
        run = _pass_footprint(
            str(self.networks.model.path),
            self.networks.dtype,
            tuple(_signature(s) for s in states),
            at_once,
        )
        latents = sum(s.latent.nbytes for s in states if s is not None)
        floats = latents // self.dtype.size * 4
        tables = run.result - at_once * latents
        held = self._media_bytes() + self.contexts() + 2 * latents + floats
        earlier = (passes - at_once) * latents
        return held + max(run.peak + earlier, tables + 3 * passes * floats)

    # the rest

    def _latent(self, number: int) -> tuple[int, ...]:
        grid = self.plan.stages[number].shape.latent(self.traits.video_scale)
        return (1, grid.frames, grid.height, grid.width, self.traits.latent_channels)

    def _latents_bytes(self, number: int) -> int:
        stage, traits = self.plan.stages[number], self.traits
        sizes = Sizes.of(stage.shape, traits.video_scale, traits.audio_scale)
        video = math.prod(self._latent(number)) if stage.video else 0
        audio = sizes.audio_latents * math.prod(traits.audio_latent) if stage.audio else 0
        return (video + audio) * self.dtype.size

    def upsample(self, number: int, kept: int) -> int:
        """kept: bytes of a transformer that waits for its next stage meanwhile."""
        stage = self.plan.stages[number]
        assert stage.upsample is not None
        name = UPSAMPLERS[stage.upsample]
        before = number - 1
        if self.plan.spatial_upscaler is not None and not self.networks.model.has(name):
            return 0  # a file of its own, whose size the plan does not know
        run = self._run(name, self._latent(before), self.dtype)
        floats = math.prod(self._latent(before)) * 4
        held = self.contexts() + self._media_bytes() + self._latents_bytes(before) + kept
        return self.bytes_of(name) + held + run.peak + floats

    def decode_video(self, budget: int) -> dict[str, int]:
        if not self.plan.video_out or not self.plan.stages[-1].video:
            return {}
        number = len(self.plan.stages) - 1
        module, dtype = _bare(str(self.networks.model.path), "video_decoder", self.networks.dtype)
        weights = self.bytes_of("video_decoder")
        grid = self.plan.stages[number].shape.latent(self.traits.video_scale)
        way = decode_way(
            self.plan.tiling, grid, self.traits.video_scale, module.config, dtype.size, max(0, budget - weights)
        )
        tiles = [tile for group in way.plan.groups() for tile in group]
        if way.chunk:
            shapes = {self._tile(tile) for tile in tiles}
            few = {(1, min(s[1], FEW_CHUNKS * way.chunk), *s[2:]) for s in shapes}
            runs = [self._run("video_decoder", s, self.dtype, chunk=way.chunk) for s in few]
            peak = max(run.peak for run in runs)
            if way.streams:  # the streams of the other tiles wait with the frames that they will read again
                each = streaming_decode_bytes(module.config, *self._tile(tiles[0])[2:4], dtype.size, way.chunk)
                peak += (len(tiles) - 1) * each
        else:
            peak = max(self._run("video_decoder", self._tile(tile), self.dtype, chunk=0).peak for tile in tiles)
        if not way.streams and len(tiles) > 1:  # the buffer in which tiles are blended
            frames = max(span.target.stop - span.target.start for span in way.plan.frames)
            peak += 2 * frames * way.plan.size[1] * way.plan.size[2] * 3 * dtype.size
        return {"decode video": weights + self._latents_bytes(number) + peak}

    def _tile(self, tile: Tile) -> tuple[int, ...]:
        sizes = [s.stop - s.start for s in tile.source]
        return (1, *sizes, self.traits.latent_channels)

    def decode_audio(self) -> dict[str, int]:
        if not isinstance(self.plan.audio_from, int):
            return {}
        stage = self.plan.stages[self.plan.audio_from]
        count = Sizes.of(stage.shape, self.traits.video_scale, self.traits.audio_scale).audio_latents
        bins, channels = self.traits.audio_latent
        held = self._latents_bytes(len(self.plan.stages) - 1)
        mel = self._run("audio_decoder", (1, count, bins, channels), self.dtype)
        _, decoder_dtype = _bare(str(self.networks.model.path), "audio_decoder", self.networks.dtype)
        shape = (1, 4 * count - 3, mel.result // decoder_dtype.size // 2 // (4 * count - 3), 2)
        sound = self._run("vocoder", shape, decoder_dtype)
        first = self.bytes_of("audio_decoder") + mel.peak
        second = self.bytes_of("vocoder") + mel.result + sound.peak
        return {"decode audio": held + max(first, second)}


@dataclass(frozen=True)
class _Signature:
    """What of a stream's state decides the graph. runs: lengths of equal noise levels."""

    tokens: int
    channels: int
    runs: tuple[int, ...]
    masked: bool


def _signature(state: LatentState | None) -> _Signature | None:
    if state is None:
        return None
    mask = state.denoise_mask[0]
    edges = np.flatnonzero(np.append(True, mask[1:] != mask[:-1]))
    runs = tuple(np.diff(np.append(edges, len(mask))).tolist())
    return _Signature(len(mask), state.latent.shape[-1], runs, state.attention_mask is not None)


@dataclass(frozen=True)
class _Facts:
    nbytes: int


@lru_cache(maxsize=64)
def _bare(path: str, name: str, dtype: mx.Dtype | None) -> tuple[Any, mx.Dtype]:
    """A network without data whose parameters have their stored types, and the type of its first floating weight."""
    from mlx_ltx2.weights.index import ModelFolder

    module, wanted = bare_component(ModelFolder.open(path), name)
    _give_types(module, {n: _DTYPES[info.dtype] for n, (_, info) in wanted.items()}, dtype)
    floats = [a.dtype for _, a in _flat(module) if mx.issubdtype(a.dtype, mx.floating)]
    return module, floats[0]


def _flat(module: nn.Module) -> list[tuple[str, mx.array]]:
    found: Any = tree_flatten(module.parameters())
    return found


def _give_types(module: nn.Module, types: Mapping[str, mx.Dtype], dtype: mx.Dtype | None) -> None:
    arrays = []
    for name, array in _flat(module):
        kind = types[name]
        arrays.append((name, mx.zeros(array.shape, dtype if dtype and mx.issubdtype(kind, mx.floating) else kind)))
    module.load_weights(arrays, strict=True)


def _size(module: nn.Module) -> int:
    return sum(array.nbytes for _, array in _flat(module))


@lru_cache(maxsize=64)
def _facts(path: str, name: str, dtype: mx.Dtype | None) -> _Facts:
    return _Facts(_size(_bare(path, name, dtype)[0]))


def network_footprint(module: nn.Module, call: Callable[..., Any], *inputs: mx.array) -> Footprint:
    """Footprint of call(evaluate, module, *inputs), whose arrays need no data, beyond weights and inputs.

    Where MLX cannot describe the graph, so many bytes as it takes to hold `LIVE_COPIES` of the widest layer's output.
    """
    flat = _flat(module)
    names = [name for name, _ in flat]

    def run(evaluate: Callable[..., None], *arrays: mx.array) -> Any:
        module.load_weights(list(zip(names, arrays[: len(names)], strict=True)), strict=True)
        return call(evaluate, module, *arrays[len(names) :])

    try:
        return footprint(run, *(array for _, array in flat), *inputs, staged=True)
    except UntraceableError:
        widest = max((array.shape[-1] for _, array in flat if array.ndim >= 2), default=1)
        rows = max(array.size // array.shape[-1] for array in inputs)
        nbytes = rows * widest * inputs[0].dtype.size
        return Footprint(LIVE_COPIES * nbytes, sum(array.nbytes for array in inputs))
    finally:
        module.load_weights(flat, strict=True)


@lru_cache(maxsize=256)
def _component_footprint(
    path: str, name: str, cast: mx.Dtype | None, shape: tuple[int, ...], dtype: mx.Dtype, extra: tuple[Any, ...]
) -> Footprint:
    module, _ = _bare(path, name, cast)
    options = dict(extra)

    def call(evaluate: Callable[..., None], module: Any, x: mx.array) -> Any:
        if name == "video_decoder":
            return _decoded(evaluate, module, x, options["chunk"])
        result = module(x)
        return getattr(result, options["only"]) if "only" in options else result

    return network_footprint(module, call, mx.zeros(shape, dtype))


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


@lru_cache(maxsize=16)
def _transformer_parts(
    path: str, cast: mx.Dtype | None, video: bool, audio: bool
) -> tuple[Any, Stack, list[str], mx.Dtype]:
    """A transformer of few blocks without data, the sizes of the whole one, and its type."""
    from mlx_ltx2.weights.index import ModelFolder

    module, wanted = bare_component(ModelFolder.open(path), "transformer", video=video, audio=audio)
    network: Any = module
    _give_types(network, {n: _DTYPES[info.dtype] for n, (_, info) in wanted.items()}, cast)
    count = len(network.transformer_blocks)
    blocks, around = split_by_block(wanted, BLOCKS, count)
    sizes = {name: array.nbytes for name, array in _flat(network)}
    stack = Stack(sum(sizes[n] for n in around), max(sum(sizes[n] for n in block) for block in blocks), count)
    network.transformer_blocks = network.transformer_blocks[:TRACED_BLOCKS]
    return network, stack, around, network.dtype


@lru_cache(maxsize=256)
def _pass_footprint(
    path: str, cast: mx.Dtype | None, streams: tuple[_Signature | None, ...], at_once: int
) -> Footprint:
    """Of one pass and the tables that outlive it."""
    video, audio = streams
    network, _, _, dtype = _transformer_parts(path, cast, video is not None, audio is not None)
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
        positions = [None if m is None else m.positions[:1] for m in modalities]
        rope = network.rope(*positions, dtype)
        tables = [t for r in vars(rope).values() if r is not None for t in vars(r).values() if isinstance(t, mx.array)]
        return [x for x in network(*modalities, rope=rope) if x is not None] + tables

    return network_footprint(copy.copy(network), call, *inputs)


def _modality(stream: _Signature, axes: int, latent: mx.array, context: mx.array) -> Modality:
    count = len(latent)
    levels = np.repeat(np.linspace(1, 0, len(stream.runs), dtype=np.float32)[None], count, axis=0)
    mask = mx.zeros((count, stream.tokens, stream.tokens)) if stream.masked else None
    return Modality(
        latent=latent,
        sigma=np.ones(count, np.float32),
        timesteps=levels,
        positions=np.ones((count, axes, stream.tokens, 2), np.float32),
        context=context,
        runs=stream.runs if len(stream.runs) > 1 else None,
        attention_mask=mask,
    )


@dataclass(frozen=True)
class _TextFacts:
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
def _text_facts(folder: str, prompts: tuple[str, ...]) -> _TextFacts:
    bare: Any
    bare, places, tokenizer = bare_text_encoder(folder)
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
    return _TextFacts(stack, embedding, width, count + 1, dtype, lengths, hidden, room)
