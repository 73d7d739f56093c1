"""How many bytes each phase of a plan takes: weights, what is held, and the highest point of the arithmetic."""

from __future__ import annotations

import math
from collections.abc import Container, Sequence
from dataclasses import replace
from typing import Any

import mlx.core as mx

from mlx_ltx2.diffusion.state import audio_state, conditioned, video_state
from mlx_ltx2.diffusion.tiles import DEFAULT_TILES, Tile, encode_plan
from mlx_ltx2.footprint import Footprint
from mlx_ltx2.models.text.projections import CONTEXT_TOKENS
from mlx_ltx2.models.transformer import text_bytes
from mlx_ltx2.models.video_vae.streaming import streaming_decode_bytes
from mlx_ltx2.pipelines.lora_needs import LoraNeeds, lora_needs
from mlx_ltx2.pipelines.plan import Plan
from mlx_ltx2.pipelines.stack import Stack
from mlx_ltx2.pipelines.traced import (
    Stored,
    TransformerParts,
    component_footprint,
    enhance_room,
    pass_footprint,
    stream_shape,
    text_needs,
    transformer_parts,
    typed_network,
    upsampler_needs,
    weight_bytes,
)
from mlx_ltx2.shapes import LatentShape
from mlx_ltx2.stages.decode_video import DecodeWay, decode_ways
from mlx_ltx2.stages.encode_media import Media
from mlx_ltx2.stages.plan import Sizes, StagePlan
from mlx_ltx2.states import LatentState
from mlx_ltx2.weights.load import KEEPS_DTYPE
from mlx_ltx2.weights.networks import UPSAMPLERS, Networks

FEW_CHUNKS = 2
"""A streamed decode needs no more for many frames than for these."""

TransformerKey = tuple[bool, bool, tuple[tuple[str, float], ...]]
"""Whether there is a video and an audio stream, and the LoRAs with their strengths."""


def transformer_key(stage: StagePlan) -> TransformerKey:
    """Two stages of the same key share one loading of the transformer."""
    loras = tuple((use.path, use.strength) for use in stage.loras)
    return stage.video is not None, stage.audio is not None, loras


class Needs:
    """Bytes of a plan's phases. known: prompts whose contexts are kept and need no encoder. encodes: whether others are
    left. Files are looked at once: make another one when they may have changed."""

    def __init__(self, plan: Plan, networks: Networks, known: Container[str] = ()):
        self.plan = plan
        self.networks = networks
        self.traits = networks.traits
        self._components: dict[str, int] = {}
        self._stored: dict[str, Stored] = {}
        self._loras: dict[TransformerKey, LoraNeeds] = {}
        self.dtype = self._transformer_dtype()
        unwritten = plan.prompt if plan.enhance and plan.enhanced_prompt is None else None  # not known yet
        missing = tuple(p for p in self._prompts() if p == unwritten or p not in known)
        self.encodes = bool(missing)
        self._text = None
        if missing and networks.has_text_encoder():
            networks.check_text_encoder()
            self._text = text_needs(Stored.text_encoder(networks.text_folder()), missing)

    def components(self) -> dict[str, int]:
        if self._text is not None:
            self._components.setdefault("text_encoder", self._text.stack.whole)
        return dict(self._components)

    def bytes_of(self, name: str) -> int:
        """Weights of a component as they are computed in."""
        self._components[name] = weight_bytes(self._store(name), self._cast(name))
        return self._components[name]

    def _store(self, name: str) -> Stored:
        if name not in self._stored:
            self._stored[name] = Stored.of(self.networks.model, name)
        return self._stored[name]

    def _cast(self, name: str) -> mx.Dtype | None:
        return None if name in KEEPS_DTYPE else self.networks.dtype

    def _run(self, name: str, shape: tuple[int, ...], dtype: mx.Dtype, **extra: Any) -> Footprint:
        """Footprint of a component on one array."""
        self.bytes_of(name)
        key = tuple(sorted(extra.items()))
        return component_footprint(self._store(name), self._cast(name), shape, dtype, key)

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

    def enhance(self) -> int:
        """Of the language model that writes the prompt out; it is not streamed."""
        wish = self.plan.enhance
        if self._text is None or wish is None:
            return 0
        stored = Stored.text_encoder(self.networks.text_folder())
        room = enhance_room(stored, self.plan.prompt, wish.image is not None, wish.max_tokens)
        return self._text.stack.whole + room

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
        return int(max(1, len(self._prompts())) * CONTEXT_TOKENS * width * self.dtype.size)

    # media

    def encoders(self) -> dict[str, int]:
        found: dict[str, int] = {}
        pixels: list[tuple[int, ...]] = []
        for stage in self.plan.stages:
            shape = stage.shape
            pixels += [(1, 1, shape.height, shape.width, 3) for _ in stage.images]
            for use in stage.references:
                frames = (shape.frames - 1) // use.temporal_scale // 8 * 8 + 1
                pixels.append((1, frames, shape.height // use.downscale, shape.width // use.downscale, 3))
        pixels += self._source_tiles()
        held = self.contexts() + self._media_bytes()
        if pixels:
            runs = [self._run("video_encoder", shape, mx.float32) for shape in dict.fromkeys(pixels)]
            sizes = [math.prod(shape) * 4 for shape in dict.fromkeys(pixels)]
            peak = max(run.peak + size for run, size in zip(runs, sizes, strict=True))
            found["encode media"] = self.bytes_of("video_encoder") + held + peak
        if any(s.audio and s.audio.start == "input" for s in self.plan.stages):
            found["encode audio"] = held + self._encode_audio()
        return found

    def _encode_audio(self) -> int:
        scale = self.traits.audio_scale
        count = Sizes.of(self.plan.shape, self.traits.video_scale, scale).audio_latents
        samples = (1, count * scale.downsample * scale.hop_length, 2)
        run = self._run("audio_encoder", samples, mx.float32)
        return self.bytes_of("audio_encoder") + math.prod(samples) * 4 + run.peak

    def _source_shapes(self) -> list[LatentShape]:
        """Of the source clip's latents, for every stage that wants them."""
        use = self.plan.video_input
        wanting = [s for s in self.plan.stages if s.video is not None and s.video.start in ("input", "joined")]
        if use is None:
            return []
        return [replace(stage.shape, frames=use.frames).latent(self.traits.video_scale) for stage in wanting]

    def _source_tiles(self) -> list[tuple[int, ...]]:
        """Pixels that the encoder sees at a time."""
        found: list[tuple[int, ...]] = []
        for shape in self._source_shapes():
            for tiles in encode_plan(shape, DEFAULT_TILES, self.traits.video_scale).groups():
                found += [(1, *(s.stop - s.start for s in tile.source), 3) for tile in tiles]
        return found

    def _media_bytes(self) -> int:
        media = [self._media(number) for number in range(len(self.plan.stages))]
        arrays = [latent for m in media for uses in m.images.values() for _, latent in uses]
        arrays += [latent for m in media for uses in m.references.values() for _, latent, _ in uses]
        sources = sum(shape.tokens for shape in self._source_shapes()) * self.traits.latent_channels * self.dtype.size
        return sum(array.nbytes for array in arrays) + sources

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
        return self._parts(True, True).network.config

    def _transformer_dtype(self) -> mx.Dtype:
        return self._parts(True, True).dtype

    def _parts(self, video: bool, audio: bool) -> TransformerParts:
        return transformer_parts(self._store("transformer"), self.networks.dtype, video, audio)

    def transformer(self, stage: StagePlan) -> Stack:
        """The stage's transformer with its LoRAs."""
        stack = self._parts(*transformer_key(stage)[:2]).stack
        self._note("transformer", stack.whole)
        loras = self._lora_needs(stage)
        if loras is None:
            return stack
        self._note("loras", loras.stays)
        return loras.beside(stack)

    def _note(self, component: str, size: int) -> None:
        if size:
            self._components[component] = max(size, self._components.get(component, 0))

    def _lora_needs(self, stage: StagePlan) -> LoraNeeds | None:
        key = transformer_key(stage)
        if not any(strength for _, strength in key[2]):
            return None
        if key not in self._loras:
            files = self.networks.lora_files(key[2])
            absent = self.networks.linear_shapes()
            self._loras[key] = lora_needs(self._parts(*key[:2]).layers, files, absent)
        return self._loras[key]

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
        loras = self._lora_needs(stage)
        run = pass_footprint(
            self._store("transformer"),
            self.networks.dtype,
            tuple(stream_shape(s) for s in states),
            at_once,
            () if loras is None else loras.ranks,
        )
        latents = sum(s.latent.nbytes for s in states if s is not None)
        floats = latents // self.dtype.size * 4
        tables = run.result - at_once * latents
        held = self._media_bytes() + self.contexts() + 2 * latents + floats
        earlier = (passes - at_once) * latents
        return held + max(run.peak + earlier, tables + 3 * passes * floats)

    def held(self, number: int) -> int:
        """What lives while the transformer of a stage is loaded: texts, media, latents."""
        before = self._latents_bytes(number - 1) if number else 0
        return self._media_bytes() + self.contexts() + before

    def kept_text(self, number: int) -> int:
        """Bytes of the text's keys and values of all blocks, if keeping them for a stage saves work; else 0.

        LTX-2 computes them once per prompt then; LTX-2.3 once per noise level and prompt, which pays where passes share
        a prompt. One block's are counted among what a pass needs already.
        """
        stage = self.plan.stages[number]
        streams = (stage.video is not None, stage.audio is not None)
        parts = self._parts(*streams)
        config, passes = parts.network.config, stage.passes
        prompts = 1 + ("uncond" in passes)
        if config.modulated_text and len(passes) == prompts:
            return 0
        whole = text_bytes(config, CONTEXT_TOKENS, 1, self.dtype.size)
        return prompts * whole - whole // parts.stack.count

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

    def upsample(self, number: int) -> int:
        """Without a transformer that waits for its next stage meanwhile."""
        stage = self.plan.stages[number]
        assert stage.upsample is not None
        before = number - 1
        latent = self._latent(before)
        held = self.contexts() + self._media_bytes() + self._latents_bytes(before)
        weights, run = self._upsampler(stage.upsample, latent)
        return weights + held + run.peak + math.prod(latent) * 4

    def _upsampler(self, kind: str, latent: tuple[int, ...]) -> tuple[int, Footprint]:
        """Its weights and its footprint: the model's own, or that of a file in its place."""
        path = self.plan.spatial_upscaler
        if path is None:
            name = UPSAMPLERS[kind]
            return self.bytes_of(name), self._run(name, latent, self.dtype)
        weights, run = upsampler_needs(path, kind, self.networks.dtype, latent, self.dtype)
        self._note(UPSAMPLERS[kind], weights)
        return weights, run

    def decode_ways(self) -> tuple[DecodeWay, ...]:
        """From the fastest to the leanest; none if no picture is decoded."""
        if not self.plan.video_out or not self.plan.stages[-1].video:
            return ()
        return decode_ways(self.plan.tiling, self._last_grid, self.traits.video_scale)

    @property
    def _last_grid(self) -> LatentShape:
        return self.plan.stages[-1].shape.latent(self.traits.video_scale)

    def decode_video(self, way: DecodeWay) -> int:
        """Everything that lives while the picture is decoded in this way."""
        _, dtype = typed_network(self._store("video_decoder"), self.networks.dtype)
        plan = way.tile_plan(self._last_grid, self.traits.video_scale)
        tiles = [tile for group in plan.groups() for tile in group]
        peak = self._tiles_peak(way.chunk, tiles)
        if way.streams(plan):
            peak += (len(tiles) - 1) * self._waiting_stream(way.chunk, tiles[0], dtype)
        elif len(tiles) > 1:  # the buffer in which tiles are blended
            frames = max(span.target.stop - span.target.start for span in plan.frames)
            peak += 2 * frames * plan.size[1] * plan.size[2] * 3 * dtype.size
        return self.bytes_of("video_decoder") + self._latents_bytes(len(self.plan.stages) - 1) + peak

    def _tiles_peak(self, chunk: int, tiles: Sequence[Tile]) -> int:
        """Of the one tile that is decoded at a time."""
        shapes = {self._tile(tile) for tile in tiles}
        if chunk:
            shapes = {(1, min(s[1], FEW_CHUNKS * chunk), *s[2:]) for s in shapes}
        return max(self._run("video_decoder", s, self.dtype, chunk=chunk).peak for s in shapes)

    def _waiting_stream(self, chunk: int, tile: Tile, dtype: mx.Dtype) -> int:
        """Of a tile's stream while another one runs: the frames that it will read again."""
        module, _ = typed_network(self._store("video_decoder"), self.networks.dtype)
        height, width = self._tile(tile)[2:4]
        return streaming_decode_bytes(module.config, height, width, dtype.size, chunk)

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
        _, decoder_dtype = typed_network(self._store("audio_decoder"), self.networks.dtype)
        shape = (1, 4 * count - 3, mel.result // decoder_dtype.size // 2 // (4 * count - 3), 2)
        sound = self._run("vocoder", shape, decoder_dtype)
        first = self.bytes_of("audio_decoder") + mel.peak
        second = self.bytes_of("vocoder") + mel.result + sound.peak
        return {"decode audio": held + max(first, second)}
