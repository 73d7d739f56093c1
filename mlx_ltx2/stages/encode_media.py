"""Images, videos and sounds -> conditioning latents, for every stage in one visit to each encoder."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import mlx.core as mx
import numpy as np

from mlx_ltx2.diffusion.conditioning import (
    Keyframe,
    LatentAt,
    LatentAtAudio,
    ReferenceVideo,
    TemporalRegion,
    WithAttention,
    attention_weights,
)
from mlx_ltx2.diffusion.state import ConditioningItem
from mlx_ltx2.diffusion.tiles import DEFAULT_TILES, Tile, encode_plan, run_tiles
from mlx_ltx2.errors import MediaError
from mlx_ltx2.media.audio import fit_length, read_audio, to_stereo
from mlx_ltx2.media.frame_rate import exact_fps
from mlx_ltx2.media.images import normalize_pixels, prepare_image, resize_and_crop
from mlx_ltx2.media.resample import resample
from mlx_ltx2.media.video import read_frames
from mlx_ltx2.memory import PeakReport, phase, resident
from mlx_ltx2.models.audio_vae import AudioEncoder, log_mel
from mlx_ltx2.models.video_vae import VideoEncoder
from mlx_ltx2.progress import Progress
from mlx_ltx2.shapes import VideoScale, VideoShape, check_frames, check_multiple
from mlx_ltx2.stages.plan import ImageUse, ReferenceUse, SourceUse, StagePlan, StreamPlan
from mlx_ltx2.stages.source import Source
from mlx_ltx2.states import Waveform
from mlx_ltx2.traits import Traits


@dataclass(frozen=True)
class Media:
    """What was encoded, by stage number.

    images, references: latents beside their uses, in the order of the stage's plan. video, audio: input streams.
    waveform: the given recording as it was read, native rate, for the muxer. source: what a source clip gives.
    """

    images: Mapping[int, Sequence[tuple[ImageUse, mx.array]]] = field(default_factory=dict)
    references: Mapping[int, Sequence[tuple[ReferenceUse, mx.array, np.ndarray | None]]] = field(default_factory=dict)
    video: Mapping[int, mx.array] = field(default_factory=dict)
    audio: mx.array | None = None
    waveform: Waveform | None = None
    source: SourceUse | None = None

    def start_of(self, stream: StreamPlan, kind: str, number: int, previous: mx.array | None) -> mx.array | None:
        """Initial latents of a stream, None for plain noise."""
        if stream.start == "previous":
            return previous
        if stream.start == "input":
            return self.video[number] if kind == "video" else self.audio
        return None

    def video_items(self, number: int, stage: StagePlan, traits: Traits) -> list[ConditioningItem]:
        """Conditioning of the video stream in the official order: region, images, references."""
        items: list[ConditioningItem] = []
        if stage.video and stage.video.region:
            items.append(TemporalRegion(*stage.video.region))
        scale, fps = traits.video_scale, stage.shape.fps
        if stage.video and stage.video.start == "joined" and self.source is not None:
            items += _held(self.video[number], self.source, fps, scale)
        for use, latent in self.images.get(number, ()):
            if use.mode == "replace":
                items.append(LatentAt(latent, (use.frame + scale.time - 1) // scale.time, use.strength))
            else:
                items.append(Keyframe(latent, use.frame, fps, use.strength, scale=scale))
        for reference, latent, weights in self.references.get(number, ()):
            item = ReferenceVideo(latent, fps, reference.downscale, reference.temporal_scale, reference.strength, scale)
            masked = weights is not None or reference.attention_strength < 1
            weight = reference.attention_strength * (1.0 if weights is None else weights)
            items.append(WithAttention(item, weight) if masked else item)
        return items

    def audio_items(self, stage: StagePlan) -> list[ConditioningItem]:
        """Conditioning of the audio stream."""
        if stage.audio is None:
            return []
        if stage.audio.region:
            return [TemporalRegion(*stage.audio.region)]
        if stage.audio.start == "input" and not stage.audio.frozen and self.audio is not None:
            return [LatentAtAudio(self.audio, 0, stage.audio.strength)]
        return []


def _held(latent: mx.array, use: SourceUse, fps: float, scale: VideoScale) -> list[ConditioningItem]:
    """A source clip's latents where it lies in the result.

    Its first latent stands for one frame. Off the beginning of the result a latent stands for several, so that frame is
    held as a keyframe there.
    """
    if use.at == 0:
        return [LatentAt(latent)]
    first = Keyframe(latent[:, :1], use.at, fps, scale=scale)
    return [LatentAt(latent[:, 1:], use.at // scale.time + 1), first] if latent.shape[1] > 1 else [first]


def encode_video_inputs(
    stages: Sequence[StagePlan],
    source: Source | None,
    load_encoder: Callable[[], VideoEncoder],
    traits: Traits,
    progress: Progress,
    report: PeakReport,
) -> Media:
    """Latents of every image, reference and source clip that the stages name; without any, no encoder is loaded."""
    use = None if source is None else source.use
    known = known_latents(stages, source, traits)
    wanting = {n for n, s in enumerate(stages) if _wants_source(s) and n not in known}
    count = sum(len(s.images) + len(s.references) for s in stages) + len(wanting)
    if not count:
        return Media(video=known, source=use)
    images: dict[int, list[tuple[ImageUse, mx.array]]] = {}
    references: dict[int, list[tuple[ReferenceUse, mx.array, np.ndarray | None]]] = {}
    clips = dict(known)
    with (
        phase("encode media", report),
        progress.phase("encode media", count, "input") as advance,
        resident(load_encoder) as encoder,
    ):

        def encoded(pixels: np.ndarray) -> mx.array:
            latent = encoder(mx.array(pixels[None]))  # noqa: F821 - deleted after the last call only
            mx.eval(latent)
            advance(1)
            return latent

        for number, stage in enumerate(stages):
            shape = stage.shape
            images[number] = [
                (use, encoded(prepare_image(use.path, shape.height, shape.width, use.crf))) for use in stage.images
            ]
            references[number] = [_reference(use, shape, traits, encoded) for use in stage.references]
            if source is not None and number in wanting:
                clips[number] = encode_clip(encoder, source_pixels(source, shape), traits.video_scale)
                advance(1)
        del encoder
    return Media(images, references, clips, source=use)


def known_latents(stages: Sequence[StagePlan], source: Source | None, traits: Traits) -> dict[int, mx.array]:
    """Stage number -> latents of the source that an earlier run left, so that nothing is encoded again."""
    found: dict[int, mx.array] = {}
    for number, stage in enumerate(stages):
        if source is not None and _wants_source(stage):
            shape = replace(stage.shape, frames=source.use.frames)
            latent = source.latents(shape.latent(traits.video_scale))
            if latent is not None:
                found[number] = latent
    return found


def _wants_source(stage: StagePlan) -> bool:
    return stage.video is not None and stage.video.start in ("input", "joined")


def source_pixels(source: Source, shape: VideoShape) -> np.ndarray:
    """Frames of the source clip at a stage's size: (F, H, W, 3) in [0, 255], uint8 unless they had to be resized."""
    frames = np.stack(list(source.frames()))
    if frames.shape[1:3] == (shape.height, shape.width):
        return frames
    return resize_and_crop(frames, shape.height, shape.width)


def encode_clip(encoder: VideoEncoder, pixels: np.ndarray, scale: VideoScale) -> mx.array:
    """(F, H, W, 3) pixels in [0, 255] -> (1, F', H', W', C) latents, tile by tile where the clip is large.

    Raises: ShapeError unless frames and sizes lie on the latent grid.
    """
    frames, height, width = pixels.shape[:3]
    check_multiple("height", height, scale.space, "video VAE")
    check_multiple("width", width, scale.space, "video VAE")
    check_frames(frames, scale)
    plan = encode_plan(VideoShape(frames, height, width).latent(scale), DEFAULT_TILES, scale)

    def run(tile: Tile) -> mx.array:
        latent = encoder(mx.array(normalize_pixels(pixels[tile.source])[None]))
        mx.eval(latent)
        return latent

    latent = mx.concatenate(list(run_tiles(plan, run, mx.float32)), axis=1).astype(encoder.conv_in.conv.weight.dtype)
    mx.eval(latent)
    return latent


def _reference(
    use: ReferenceUse, shape: VideoShape, traits: Traits, encoded: Callable[[np.ndarray], mx.array]
) -> tuple[ReferenceUse, mx.array, np.ndarray | None]:
    step = traits.video_scale.time
    fps = exact_fps(shape.fps)
    frames = read_frames(use.path, max_frames=shape.frames, fps=fps)
    chosen = np.arange(len(frames))
    if use.temporal_scale > 1:
        chosen = np.concatenate([chosen[:1], chosen[1 :: use.temporal_scale]])
    chosen = chosen[: (len(chosen) - 1) // step * step + 1]
    frames = frames[chosen]
    height, width = shape.height // use.downscale, shape.width // use.downscale
    latent = encoded(normalize_pixels(resize_and_crop(frames, height, width)))
    if use.mask is None:
        return use, latent, None
    mask = read_frames(use.mask, max_frames=shape.frames, fps=fps)
    if len(mask) <= chosen[-1]:
        raise MediaError(
            f"mask {use.mask} has {len(mask)} frames, {chosen[-1] + 1} of the reference are used; give equally many."
        )
    mask = resize_and_crop(mask[chosen], shape.height, shape.width)
    return use, latent, attention_weights(mask.mean(axis=-1) / 255, *latent.shape[1:4])


def read_recording(source: Mapping[str, Any], seconds: float) -> Waveform:
    """The given recording at its own rate, from its start time for as long as asked or the clip lasts.

    Times are those of `read_audio`: in a video they count from its first shown picture.
    """
    longest = source.get("max_seconds") or seconds
    return read_audio(source["path"], source.get("start", 0.0), longest, track=source.get("track"))


def encode_audio(
    waveform: Waveform,
    latents: int,
    load_encoder: Callable[[], AudioEncoder],
    traits: Traits,
    progress: Progress,
    report: PeakReport,
) -> mx.array:
    """A recording as audio latents of exactly the clip's length: (1, latents, mel, C).

    Mono is doubled; a recording shorter than the clip is followed by silence, a longer one is cut.
    """
    scale = traits.audio_scale
    samples = resample(to_stereo(waveform.samples), waveform.rate_hz, scale.rate_hz)
    wanted = latents * scale.downsample * scale.hop_length
    with (
        phase("encode audio", report),
        progress.phase("encode audio", 1) as advance,
        resident(load_encoder) as encoder,
    ):
        mel = log_mel(mx.array(fit_length(samples, wanted)[None]), encoder.config)
        latent = encoder(mel)[:, :latents]
        mx.eval(latent)
        advance(1)
        del encoder
    return latent
