"""One runner for every Plan: stations in a row, each owning its network while it works."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np

from mlx_ltx2.diffusion.loop import OnStep
from mlx_ltx2.diffusion.noise import NoiseKey, NoiseSource
from mlx_ltx2.diffusion.state import StatePair, audio_state, result_audio, result_video, video_state
from mlx_ltx2.memory import (
    PeakReport,
    PressureWatch,
    Resident,
    default_budget,
    materialised,
    memory_is_short,
    phase,
)
from mlx_ltx2.pipelines.budget import MemoryPlan
from mlx_ltx2.pipelines.needs import TransformerKey, transformer_key
from mlx_ltx2.pipelines.plan import Plan
from mlx_ltx2.progress import Progress, SilentProgress
from mlx_ltx2.shapes import LatentShape
from mlx_ltx2.stages.check_media import check_media
from mlx_ltx2.stages.decode_audio import decode_audio
from mlx_ltx2.stages.decode_video import decode_video, decode_ways
from mlx_ltx2.stages.denoise import Guided, denoise, started
from mlx_ltx2.stages.encode_media import Media, encode_audio, encode_video_inputs, known_latents, read_recording
from mlx_ltx2.stages.encode_text import encode_text
from mlx_ltx2.stages.enhance import enhance_prompt
from mlx_ltx2.stages.keep_latents import find_latents, latents_path
from mlx_ltx2.stages.plan import Sizes, SourceUse, StagePlan
from mlx_ltx2.stages.sanity import refuse_non_finite
from mlx_ltx2.stages.source import Source, kept_frames, splice_frames, splice_sound
from mlx_ltx2.stages.upsample import upsample
from mlx_ltx2.stages.write import Clip
from mlx_ltx2.states import DenoisedPair, TextContext, Waveform
from mlx_ltx2.weights.embedding_cache import EmbeddingCache
from mlx_ltx2.weights.networks import Networks
from mlx_ltx2.weights.streaming import PacedTransformer, StreamedTransformer, waited_seconds
from mlx_ltx2.weights.upsampler_file import check_upsampler_file

WORTH_SAYING_S = 1.0
"""Seconds of waiting for the disk in a stage."""

StepCallback = Callable[[str, int, int], None]
"""(stage name, steps done, steps in all); an exception it raises ends the run."""


@dataclass
class Session:
    """What accompanies one run and is no part of its plan.

    noise: stage number -> arrays that replace drawn noise (see `NoiseSource`). contexts: text contexts (positive,
    negative) that replace the text stage. source: a clip of an earlier run that is the plan's source, so that no
    file is read and no latents are encoded again. prompt_cache: where text contexts are looked up and kept.
    memory_is_short: what the system says of its memory, asked after every step.
    """

    progress: Progress = field(default_factory=SilentProgress)
    report: PeakReport = field(default_factory=PeakReport)
    callback: StepCallback | None = None
    noise: Mapping[int, Mapping[NoiseKey, np.ndarray]] = field(default_factory=dict)
    contexts: Sequence[TextContext] | None = None
    source: Clip | None = None
    memory: MemoryPlan | None = None
    prompt_cache: EmbeddingCache | None = None
    memory_is_short: Callable[[], bool] = memory_is_short


def required_components(plan: Plan) -> tuple[str, ...]:
    """Everything the plan will load, so that what is missing is said before anything is."""
    names = ["text_encoder", "text_projections", "transformer"]
    if plan.video_out and _decodes(plan):
        names.append("video_decoder")
    if any(s.images or s.references for s in plan.stages) or plan.video_input:
        names.append("video_encoder")
    if plan.spatial_upscaler is None and any(s.upsample for s in plan.stages):
        names.append("spatial_upsampler")
    if any(s.audio and s.audio.start == "input" for s in plan.stages):
        names.append("audio_encoder")
    if isinstance(plan.audio_from, int):
        names += ["audio_decoder", "vocoder"]
    return tuple(names)


def _decodes(plan: Plan) -> bool:
    return plan.video_input is None or plan.video_input.made[0] < plan.video_input.made[1]


class Run:
    """A plan on its way: `latents()` does everything up to the last latents, `frames()` and `audio()` decode them."""

    def __init__(self, plan: Plan, networks: Networks, session: Session):
        self.plan = plan
        self.networks = networks
        self.session = session
        self.traits = networks.traits
        self.memory = session.memory or MemoryPlan(default_budget())
        self.pressure = PressureWatch(session.memory_is_short, session.progress.note)
        self.source = None if plan.video_input is None else self._opened(plan.video_input)
        self._said = set(plan.notes)
        self._say(check_media(plan.stages))
        for stage in plan.stages:
            if stage.upsample and plan.spatial_upscaler is not None:
                check_upsampler_file(plan.spatial_upscaler, stage.upsample)
        self.waveform: Waveform | None = None
        if plan.audio_input:
            self.waveform = read_recording(plan.audio_input, plan.shape.seconds)
            self._say(self.waveform.notes)

    def _opened(self, use: SourceUse) -> Source:
        """The source clip; with the latents beside its file where they can be used, which is said."""
        if self.session.source is not None:
            return Source(use, self.session.source)
        path = Path(use.path)
        if not latents_path(path).is_file():
            return Source(use)
        found = find_latents(path, self.networks.latent_space())
        source = Source(use, kept=found.latents)
        if found.latents is not None and not known_latents(self.plan.stages, source, self.traits):
            return Source(use)  # no stage runs at their size
        if found.note:
            self.session.progress.note(found.note)
        return source

    def latents(self) -> DenoisedPair:
        """Video latents (1, F, H, W, C) of the last stage and audio latents (1, T, mel, C) of the stage whose audio
        ships; None where there are none."""
        positive, negative = self._contexts()
        media = self._encode()
        transformers = _Transformers(self.networks, self.session.progress, self.memory)
        video = audio = shipped = None
        for number, stage in enumerate(self.plan.stages):
            if stage.upsample:
                transformers.make_room(stage)
            video = self._upsampled(video, stage)
            guided = Guided(positive, negative, *stage.guidance, self.plan.max_batch_size)
            video, audio = self._denoise(number, transformers(stage), guided, media, (video, audio))
            if self.plan.audio_from in (number, "source"):
                shipped = audio
        transformers.free()
        return DenoisedPair(video, shipped)

    def audio(self, latents: DenoisedPair) -> Waveform | None:
        """The sound that ships: decoded latents, the recording that was given, or the source clip's own track."""
        if self.plan.audio_from == "input":
            return self.waveform
        if self.plan.audio_from is None:
            return None
        own = None if self.source is None else self.source.sound(self.plan.shape.fps)
        self._say(() if own is None else own.notes)
        if latents.audio is None or (self.plan.audio_from == "source" and own is not None):
            return own if self.plan.audio_from == "source" else None
        made = self._decoded(latents.audio)
        if self.source is None or own is None or self.source.use.sound is None:
            return made
        return splice_sound(own, made, self.source.use, self.plan.shape)

    def _say(self, notes: Sequence[str]) -> None:
        """Say once what reading a file changed."""
        for note in notes:
            if note not in self._said:
                self._said.add(note)
                self.session.progress.note(note)

    @property
    def kept_picture(self) -> Path | None:
        """The file that holds every frame of the result, if there is one: a clip of which the sound alone is new."""
        return None if self.source is None or _decodes(self.plan) else self.source.file

    def _decoded(self, audio: mx.array) -> Waveform:
        load, session = self.networks.load, self.session
        return decode_audio(
            audio, lambda: load("audio_decoder"), lambda: load("vocoder"), session.progress, session.report
        )

    def frames(self, latents: DenoisedPair) -> Iterator[np.ndarray]:
        """uint8 (f, H, W, 3) stretches in order, decoded as they are asked for."""
        if latents.video is None:
            return iter(())
        source = self.source if self.source is not None and self.source.has_frames else None
        if source is not None and not _decodes(self.plan):
            return kept_frames(source)
        grid, scale = LatentShape(*latents.video.shape[1:4]), self.traits.video_scale
        decoded = decode_video(
            latents.video,
            lambda: self.networks.load("video_decoder"),
            self.memory.decode or decode_ways(self.plan.tiling, grid, scale)[0],
            NoiseSource(self.plan.seed, len(self.plan.stages)),
            scale,
            self.session.progress,
            self.session.report,
            end=None if source is None else source.use.made[1],
        )
        return decoded if source is None else splice_frames(decoded, source)

    def _contexts(self) -> tuple[TextContext, TextContext | None]:
        session, networks = self.session, self.networks
        layers = self.memory.resident_layers
        encoder = Resident(lambda: networks.load_text_encoder(layers))
        plan, wish = self.plan, self.plan.enhance
        if wish and not session.contexts:
            text = enhance_prompt(plan.prompt, wish, plan.seed, encoder, session.progress, session.report)
            session.progress.note(f"enhanced prompt: {text}")
            self.plan = replace(plan, enhanced_prompt=text)
        prompts = [self.plan.enhanced_prompt or self.plan.prompt, self.plan.negative_prompt]
        contexts = session.contexts or encode_text(
            [p for p in prompts if p is not None],
            encoder.take,
            lambda: networks.load("text_projections"),
            session.progress,
            session.report,
            session.prompt_cache,
        )
        encoder.free()  # the enhancement may have loaded it, and kept contexts need none
        return contexts[0], contexts[1] if len(contexts) > 1 else None

    def _encode(self) -> Media:
        load, traits, session = self.networks.load, self.traits, self.session
        media = encode_video_inputs(
            self.plan.stages,
            self.source,
            lambda: load("video_encoder"),
            traits,
            session.progress,
            session.report,
        )
        if not any(s.audio and s.audio.start == "input" for s in self.plan.stages):
            return media
        latents = Sizes.of(self.plan.shape, traits.video_scale, traits.audio_scale).audio_latents
        waveform = self.waveform
        if waveform is None and self.source is not None:
            alone = self.source.undecoded_sound()
            if alone is not None:
                self.source = replace(self.source, decoded=self._decoded(alone))
            known = self.source.audio_latents(latents)
            if known is not None:
                return replace(media, audio=known)
            waveform = self.source.placed_sound(self.plan.shape, traits.audio_scale.rate_hz)
            self._say(waveform.notes)
        assert waveform is not None
        audio = encode_audio(waveform, latents, lambda: load("audio_encoder"), traits, session.progress, session.report)
        return replace(media, audio=audio)

    def _upsampled(self, video: mx.array | None, stage: StagePlan) -> mx.array | None:
        kind = stage.upsample
        if kind is None or video is None:
            return video
        networks = self.networks
        return upsample(
            video,
            lambda: networks.load_upsampler(kind, self.plan.spatial_upscaler),
            networks.load_statistics,
            self.session.report,
        )

    def _denoise(
        self,
        number: int,
        transformer: Resident[Any],
        guided: Guided,
        media: Media,
        previous: tuple[mx.array | None, mx.array | None],
    ) -> tuple[mx.array | None, mx.array | None]:
        stage, session = self.plan.stages[number], self.session
        noise = NoiseSource(self.plan.seed, number, session.noise.get(number, {}))
        steps = len(stage.sigmas) - 1
        with (
            phase(f"denoise {stage.name}", session.report),
            session.progress.phase(stage.name, steps) as advance,
        ):
            network = transformer()
            states = self._started(number, media, previous, noise, network.dtype)
            on_step = self._on_step(stage, advance, network)
            text_cache = stage.name in self.memory.text_cache
            waited = waited_seconds(network)
            states = denoise(
                network, states, guided, stage.sigmas, stage.sampler, noise, on_step, text_cache=text_cache
            )
            waited = waited_seconds(network) - waited
            if waited >= WORTH_SAYING_S:
                session.progress.note(f"{stage.name}: {waited:.1f} s were spent waiting for weights from the disk")
            del network, on_step
            return self._results(states, stage)

    def _started(
        self,
        number: int,
        media: Media,
        previous: tuple[mx.array | None, mx.array | None],
        noise: NoiseSource,
        dtype: mx.Dtype,
    ) -> StatePair:
        stage, traits = self.plan.stages[number], self.traits
        sizes = Sizes.of(stage.shape, traits.video_scale, traits.audio_scale)
        video = audio = None
        if stage.video:
            start = media.start_of(stage.video, "video", number, previous[0])
            state = video_state(
                sizes.latent,
                traits.latent_channels,
                stage.shape.fps,
                latent=start,
                dtype=dtype,
                scale=traits.video_scale,
            )
            items = media.video_items(number, stage, traits)
            video = started(
                state,
                "video",
                noise,
                noise_scale=stage.video.noise_scale,
                items=items,
                frozen=stage.video.frozen,
            )
        if stage.audio:
            start = media.start_of(stage.audio, "audio", number, previous[1])
            bins, channels = traits.audio_latent
            state = audio_state(
                sizes.audio_latents,
                latent=start,
                bins=bins,
                channels=channels,
                dtype=dtype,
                scale=traits.audio_scale,
            )
            items = media.audio_items(stage)
            audio = started(
                state,
                "audio",
                noise,
                noise_scale=stage.audio.noise_scale,
                items=items,
                frozen=stage.audio.frozen,
            )
        return StatePair(video, audio)

    def _results(self, states: StatePair, stage: StagePlan) -> tuple[mx.array | None, mx.array | None]:
        grid = stage.shape.latent(self.traits.video_scale)
        video = None if states.video is None else result_video(states.video, grid)
        audio = None if states.audio is None else result_audio(states.audio, *self.traits.audio_latent)
        for latent in (video, audio):
            if latent is not None:
                refuse_non_finite(latent, f"the transformer (stage {stage.name!r})")
        return video, audio

    def _on_step(self, stage: StagePlan, advance: Callable[[int], None], network: Any) -> OnStep:
        callback = self.session.callback

        def on_step(done: int, total: int, states: StatePair) -> None:
            advance(1)
            if self.pressure() and isinstance(network, PacedTransformer):
                network.every = 1  # a streamed one is evaluated block by block anyway
            if callback is not None:
                callback(stage.name, done, total)

        return on_step


class _Transformers:
    """Keeps the transformer from one stage to the next while both want the same one."""

    def __init__(self, networks: Networks, progress: Progress, memory: MemoryPlan):
        self._networks = networks
        self._memory = memory
        self._say = progress.note
        self._key: TransformerKey | None = None
        self._resident: Resident[Any] | None = None

    def __call__(self, stage: StagePlan) -> Resident[Any]:
        key = transformer_key(stage)
        if key != self._key or self._resident is None:
            self.free()
            self._key = key
            self._resident = Resident(lambda: self._load(key))
        return self._resident

    def make_room(self, following: StagePlan) -> None:
        """Before other work: free the transformer if the stage that follows cannot use it, or if
        the plan found no room for both."""
        if self._memory.reload or transformer_key(following) != self._key:
            self.free()

    def _load(self, key: TransformerKey) -> Any:
        every, blocks = self._memory.evaluate_every, self._memory.resident_blocks
        network = self._networks.load_transformer(
            video=key[0], audio=key[1], loras=key[2], say=self._say, resident_blocks=blocks
        )
        if isinstance(network, StreamedTransformer):
            return network
        return PacedTransformer(materialised(network), every)

    def free(self) -> None:
        if self._resident is not None:
            self._resident.free()
        self._key = self._resident = None
