"""One runner for every Plan: stations in a row, each owning its network while it works."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import mlx.core as mx
import numpy as np

from mlx_ltx2.diffusion.loop import OnStep
from mlx_ltx2.diffusion.noise import NoiseKey, NoiseSource
from mlx_ltx2.diffusion.state import StatePair, audio_state, result_audio, result_video, video_state
from mlx_ltx2.memory import PeakReport, Resident, phase
from mlx_ltx2.pipelines.plan import Plan, Sizes, StagePlan
from mlx_ltx2.progress import Progress, SilentProgress
from mlx_ltx2.stages.decode_audio import decode_audio
from mlx_ltx2.stages.decode_video import decode_video
from mlx_ltx2.stages.denoise import Guided, denoise, started
from mlx_ltx2.stages.encode_media import Media, encode_media
from mlx_ltx2.stages.encode_text import encode_text
from mlx_ltx2.stages.upsample import upsample
from mlx_ltx2.states import DenoisedPair, TextContext, Waveform
from mlx_ltx2.weights.networks import Networks

StepCallback = Callable[[str, int, int], None]
"""(stage name, steps done, steps in all); an exception it raises ends the run."""


@dataclass
class Session:
    """What accompanies one run and is no part of its plan.

    noise: stage number -> arrays that replace drawn noise (see `NoiseSource`). contexts: text contexts (positive,
    negative) that replace the text stage.
    """

    progress: Progress = field(default_factory=SilentProgress)
    report: PeakReport = field(default_factory=PeakReport)
    callback: StepCallback | None = None
    noise: Mapping[int, Mapping[NoiseKey, np.ndarray]] = field(default_factory=dict)
    contexts: Sequence[TextContext] | None = None


def required_components(plan: Plan) -> tuple[str, ...]:
    """Everything the plan will load, so that what is missing is said before anything is."""
    names = ["text_encoder", "text_projections", "transformer"]
    if plan.video_out:
        names.append("video_decoder")
    if any(s.images or s.references for s in plan.stages) or plan.video_input:
        names.append("video_encoder")
    if any(s.upsample for s in plan.stages):
        names.append("spatial_upsampler")
    if plan.audio_input or (plan.video_input and plan.audio_from is not None):
        names.append("audio_encoder")
    if isinstance(plan.audio_from, int):
        names += ["audio_decoder", "vocoder"]
    return tuple(names)


def run(plan: Plan, networks: Networks, session: Session) -> DenoisedPair:
    """Execute the plan up to its final latents.

    Returns: video latents (1, F, H, W, C) of the last stage and audio latents (1, T, mel, C) of the stage whose audio
    ships, None where there are none.
    """
    positive, negative = _contexts(plan, networks, session)
    media = encode_media(plan, networks, session.progress, session.report)
    transformer = _Transformers(networks)
    video = audio = shipped = None
    for number, stage in enumerate(plan.stages):
        if stage.upsample and video is not None:
            video = upsample(
                video,
                lambda kind=stage.upsample: networks.load_upsampler(kind),
                networks.load_statistics,
                session.report,
            )
        settings = Guided(
            positive, negative, *(s and s.guidance for s in (stage.video, stage.audio)), plan.max_batch_size
        )
        video, audio = _denoise(number, stage, transformer(stage), settings, (video, audio), media, plan, networks, session)
        if plan.audio_from == number:
            shipped = audio
    transformer.free()
    return DenoisedPair(video, shipped)


def _contexts(plan: Plan, networks: Networks, session: Session) -> tuple[TextContext, TextContext | None]:
    prompts = [plan.prompt] if plan.negative_prompt is None else [plan.prompt, plan.negative_prompt]
    contexts = session.contexts or encode_text(
        prompts,
        networks.load_text_encoder,
        lambda: networks.load("text_projections"),
        session.progress,
        session.report,
    )
    return contexts[0], contexts[1] if len(prompts) > 1 else None


class _Transformers:
    """Keeps the transformer from one stage to the next while both want the same one."""

    def __init__(self, networks: Networks):
        self._networks = networks
        self._key: tuple[object, ...] | None = None
        self._resident: Resident | None = None

    def __call__(self, stage: StagePlan) -> Resident:
        key = (stage.video is not None, stage.audio is not None, stage.loras)
        if key != self._key:
            self.free()
            loras = tuple((use.path, use.strength) for use in stage.loras)
            self._resident = Resident(
                lambda: self._networks.load_transformer(video=bool(key[0]), audio=bool(key[1]), loras=loras)
            )
            self._key = key
        assert self._resident is not None
        return self._resident

    def free(self) -> None:
        if self._resident is not None:
            self._resident.free()
        self._key = self._resident = None


def _denoise(
    number: int,
    stage: StagePlan,
    transformer: Resident,
    settings: Guided,
    previous: tuple[mx.array | None, mx.array | None],
    media: Media,
    plan: Plan,
    networks: Networks,
    session: Session,
) -> tuple[mx.array | None, mx.array | None]:
    traits = networks.traits
    sizes = Sizes.of(stage.shape, traits.video_scale, traits.audio_scale)
    noise = NoiseSource(plan.seed, number, session.noise.get(number, {}))
    steps = len(stage.sigmas) - 1
    with phase(f"denoise {stage.name}", session.report), session.progress.phase(stage.name, steps) as advance:
        network = transformer()
        states = _start(stage, number, sizes, previous, media, noise, network.dtype, networks)
        states = denoise(
            network, states, settings, stage.sigmas, stage.sampler, noise, _on_step(stage, advance, session)
        )
        del network
        bins, channels = traits.audio_latent
        video = None if states.video is None else result_video(states.video, sizes.latent)
        audio = None if states.audio is None else result_audio(states.audio, bins, channels)
        mx.eval([x for x in (video, audio) if x is not None])
    return video, audio


def _start(
    stage: StagePlan,
    number: int,
    sizes: Sizes,
    previous: tuple[mx.array | None, mx.array | None],
    media: Media,
    noise: NoiseSource,
    dtype: mx.Dtype,
    networks: Networks,
) -> StatePair:
    traits = networks.traits
    video = audio = None
    if stage.video:
        start = media.starts(stage.video, "video", number, previous[0])
        state = video_state(
            sizes.latent, traits.latent_channels, stage.shape.fps, latent=start, dtype=dtype, scale=traits.video_scale
        )
        items = media.video_items(number, stage, traits)
        video = started(
            state, "video", noise, noise_scale=stage.video.noise_scale, items=items, frozen=stage.video.frozen
        )
    if stage.audio:
        start = media.starts(stage.audio, "audio", number, previous[1])
        bins, channels = traits.audio_latent
        state = audio_state(
            sizes.audio_latents, latent=start, bins=bins, channels=channels, dtype=dtype, scale=traits.audio_scale
        )
        items = media.audio_items(stage)
        audio = started(
            state, "audio", noise, noise_scale=stage.audio.noise_scale, items=items, frozen=stage.audio.frozen
        )
    return StatePair(video, audio)


def _on_step(stage: StagePlan, advance: Callable[[int], None], session: Session) -> OnStep:
    def on_step(done: int, total: int, states: StatePair) -> None:
        advance(1)
        if session.callback is not None:
            session.callback(stage.name, done, total)

    return on_step


def decoded_audio(plan: Plan, latents: DenoisedPair, networks: Networks, session: Session) -> Waveform | None:
    """The waveform that ships: decoded latents, or the recording that was given."""
    if isinstance(plan.audio_from, int) and latents.audio is not None:
        return decode_audio(
            latents.audio,
            lambda: networks.load("audio_decoder"),
            lambda: networks.load("vocoder"),
            session.progress,
            session.report,
        )
    return None


def decoded_frames(plan: Plan, latents: DenoisedPair, networks: Networks, session: Session) -> Iterator[np.ndarray]:
    """uint8 (F, H, W, 3) chunks in order, decoded as they are asked for."""
    assert latents.video is not None
    return decode_video(
        latents.video,
        lambda: networks.load("video_decoder"),
        plan.tiling,
        NoiseSource(plan.seed, len(plan.stages)),
        networks.traits.video_scale,
        session.progress,
        session.report,
    )
