"""Continue a clip after its end or before its start, with its sound.

One stage at the source's size over the whole result: the source's latents are held, the rest is noise. Its frames
and samples are passed through; only the new part is decoded. Source: the official conditioning items (latent index,
keyframe, temporal region); the release has no pipeline of this kind.
"""

from __future__ import annotations

from mlx_ltx2.errors import RequestError, ShapeError
from mlx_ltx2.media.video import MediaInfo
from mlx_ltx2.pipelines import parts, source
from mlx_ltx2.pipelines.plan import Plan
from mlx_ltx2.pipelines.request import Filled
from mlx_ltx2.shapes import VideoScale, audio_latent_frames, nearest_two
from mlx_ltx2.stages.plan import SourceUse, StagePlan, StreamPlan


def recipe(filled: Filled, card: parts.ModelCard) -> Plan:
    scale = card.traits.video_scale
    more = _frames(filled, scale)
    if filled.denoising_strength != 1:
        raise RequestError("denoising_strength has no meaning for extend: what is new starts from noise; drop it.")
    info = source.whole_source(filled, scale)
    shape = parts.clip_shape(filled, card)
    own = shape.frames - more
    at = more if filled.extend_before else 0
    made = (0, more) if filled.extend_before else (own, shape.frames)
    image_uses = parts.images(filled, card)
    source.check_images(image_uses, made)
    audio, audio_from, notes = _audio(filled, card, info, (own, more))
    stretch = (made[0] / shape.fps, made[1] / shape.fps)
    sound = stretch if audio_from == 0 and info.has_audio else None
    use = SourceUse(str(filled.video), own, info.has_audio, made, at, sound, filled.audio_track, shape.fps)
    stage = StagePlan(
        name="extend",
        shape=shape,
        sigmas=parts.schedule(filled),
        sampler=filled.sampler,
        video=StreamPlan(start="joined", guidance=parts.guidance(filled, "video")),
        audio=audio,
        images=image_uses,
        loras=parts.user_loras(filled, 1),
    )
    notes = (*parts.notes(filled, shape), *notes)
    return parts.assemble(filled, card, (stage,), audio_from, video_input=use, notes=notes)


def _frames(filled: Filled, scale: VideoScale) -> int:
    more, step = filled.extend_frames, scale.time
    if more is None:
        raise RequestError(f"extend needs the number of new frames; give --extend-frames, a multiple of {step}.")
    if not isinstance(more, int) or more <= 0:
        raise ShapeError(f"extend_frames {more!r} must be a positive whole number, a multiple of {step}.")
    if more % step:
        low, high = nearest_two(more, step)
        raise ShapeError(f"extend_frames {more} is not a multiple of {step}; use {low} or {high}.")
    return more


def _audio(
    filled: Filled, card: parts.ModelCard, info: MediaInfo, frames: tuple[int, int]
) -> tuple[StreamPlan | None, int | str | None, tuple[str, ...]]:
    """The audio stream, which sound ships, and what there is to say about it. frames: of the source, and new ones."""
    if not filled.audio or filled.audio_file is not None:
        return parts.audio_stream(filled, None), parts.audio_source(filled, 0), ()
    params = parts.guidance(filled, "audio")
    if not info.has_audio:
        return StreamPlan(guidance=params), 0, ("the source has no sound; sound is made for the whole clip",)
    fps, scale = float(filled.fps), card.traits.audio_scale
    own, more = frames
    if filled.extend_before:
        region = (0.0, more / fps)
    else:
        # Between the last whole latent of the source and the next one.
        region = ((audio_latent_frames(own / fps, scale) - 0.5) / scale.latents_per_second, (own + more) / fps)
    return StreamPlan(start="input", region=region, guidance=params), 0, ()
