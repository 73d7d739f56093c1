"""Regenerate [start, end) seconds of a clip: its picture, its sound or both; the rest is passed through.

Source: official `ltx_pipelines.retake` 1.2.0: one stage at the source's size, a region mask on both streams, the
distilled list unguided or the shifted schedule with guidance. What differs: a stream that is kept is frozen without
noise, and everything outside the region is the source's own pixels and samples instead of decoded ones.
"""

from __future__ import annotations

import math

from mlx_ltx2.errors import RequestError
from mlx_ltx2.media.video import MediaInfo
from mlx_ltx2.pipelines import parts, source
from mlx_ltx2.pipelines.plan import Plan
from mlx_ltx2.pipelines.request import Filled
from mlx_ltx2.shapes import VideoScale
from mlx_ltx2.stages.plan import SourceUse, StagePlan, StreamPlan

_KEPT = StreamPlan(start="input", noise_scale=0.0, frozen=True)


def recipe(filled: Filled, card: parts.ModelCard) -> Plan:
    info = source.whole_source(filled, card.traits.video_scale)
    shape = parts.clip_shape(filled, card)
    start, end = _stretch(filled, info)
    made = touched_frames(start, end, shape.fps, shape.frames, card.traits.video_scale)
    if not filled.retake_video:
        made = (0, 0)
    sigmas = source.shortened(filled, parts.schedule(filled))
    audio, audio_from, notes = _audio(filled, info, (start, end), sigmas[0])
    if not filled.retake_video and (audio is None or audio.frozen):
        raise RequestError("nothing would be made anew: the picture is kept, and so is the sound; retake one of them.")
    image_uses = parts.images(filled, card)
    if filled.retake_video:
        source.check_images(image_uses, made)
    elif image_uses:
        raise RequestError("an image is given and the picture is kept; drop the image, or --no-retake-video.")
    # A bit inside the first and the last new latent, so that no rounding touches their neighbours.
    region = ((made[0] + 0.25) / shape.fps, (made[1] - 0.25) / shape.fps)
    anew = StreamPlan(start="input", noise_scale=sigmas[0], region=region, guidance=parts.guidance(filled, "video"))
    stage = StagePlan(
        name="retake",
        shape=shape,
        sigmas=sigmas,
        sampler=filled.sampler,
        video=anew if filled.retake_video else _KEPT,
        audio=audio,
        images=image_uses,
        loras=parts.user_loras(filled, 1),
    )
    spliced = audio_from == 0 and info.has_audio
    sound = (start, end) if spliced else None
    use = SourceUse(
        str(filled.video), shape.frames, info.has_audio, made,
        sound=sound, track=filled.audio_track, fps=shape.fps,
    )  # fmt: skip
    if filled.retake_video:
        notes = (f"frames {made[0]} to {made[1] - 1} are made anew, all others are kept", *notes)
    notes = (*parts.notes(filled, shape), *notes)
    return parts.assemble(filled, card, (stage,), audio_from, video_input=use, notes=notes)


def _stretch(filled: Filled, info: MediaInfo) -> tuple[float, float]:
    """Checked start and end in seconds."""
    seconds = filled.num_frames / float(filled.fps)
    start = filled.start_time
    end = seconds if filled.end_time is None else filled.end_time
    if start is None:
        raise RequestError("retake needs the start of the stretch; give --start-time SECONDS.")
    for name, value in (("start_time", start), ("end_time", end)):
        if not isinstance(value, int | float) or not math.isfinite(value) or value < 0:
            raise RequestError(f"{name} {value!r} must be a number of seconds, 0 or more.")
    until = "" if filled.end_time is None else f" to {end:g} s"
    if start >= seconds or end > seconds + 1 / float(filled.fps):
        raise RequestError(f"the stretch from {start:g} s{until} lies outside the clip, which lasts {seconds:.3f} s.")
    if not start < end:
        raise RequestError(f"the stretch from {start:g} to {end:g} s is empty; its end must be later than its start.")
    return float(start), float(min(end, seconds))


def touched_frames(start: float, end: float, fps: float, frames: int, scale: VideoScale) -> tuple[int, int]:
    """[first, end) of the frames whose latents the open interval (start, end) touches.

    Latent 0 covers frame 0, latent j the `scale.time` frames up to frame j * scale.time.
    """
    first, last = (round(t * fps, 6) for t in (start, end))  # the official rule is strict at the borders
    low = 0 if first < 1 else math.floor((first - 1) / scale.time) + 1
    high = 0 if last <= 1 else math.ceil((last - 1) / scale.time)
    return max(0, (low - 1) * scale.time + 1), min(frames, high * scale.time + 1)


def _audio(
    filled: Filled, info: MediaInfo, region: tuple[float, float], noise_scale: float
) -> tuple[StreamPlan | None, int | str | None, tuple[str, ...]]:
    """The audio stream, which sound ships, and what there is to say about it."""
    if not filled.audio or filled.audio_file is not None:
        return parts.audio_stream(filled, None), parts.audio_source(filled, 0), ()
    if not filled.retake_audio:
        return (_KEPT, "source", ()) if info.has_audio else (None, None, ())
    params = parts.guidance(filled, "audio")
    if info.has_audio:
        return StreamPlan(start="input", noise_scale=noise_scale, region=region, guidance=params), 0, ()
    if noise_scale < 1:
        raise RequestError("the source has no sound to start from; use --denoising-strength 1, or --no-audio.")
    return StreamPlan(guidance=params), 0, ("the source has no sound; sound is made for the whole clip",)
