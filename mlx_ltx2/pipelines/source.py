"""What recipes say about a source clip: which requests it allows, and how it enters a stage."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from mlx_ltx2.diffusion.schedules import truncated_schedule
from mlx_ltx2.errors import MediaError, RequestError, ShapeError
from mlx_ltx2.media.frame_rate import exact_fps
from mlx_ltx2.media.video import MediaInfo
from mlx_ltx2.pipelines.request import Filled
from mlx_ltx2.shapes import VideoScale, nearest_two
from mlx_ltx2.stages.plan import ImageUse, SourceUse

RETURNS_SOURCE = ("retake", "extend")
STARTS_FROM_SOURCE = ("one-stage", "distilled")
_RETAKE = ("start_time", "end_time")


def check_video_options(filled: Filled) -> None:
    """Raise RequestError for a source clip that nothing uses, or an option of one without it."""
    pipeline, request = filled.pipeline, filled.request
    if request.video is None:
        wanting = [n for n in (*_RETAKE, "extend_frames", "denoising_strength") if getattr(request, n) is not None]
        wanting = [n for n in wanting if n != "denoising_strength" or request.denoising_strength != 1]
        if pipeline in RETURNS_SOURCE or wanting:
            raise RequestError(f"{wanting[0] if wanting else f'pipeline {pipeline}'} needs a clip; give --video FILE.")
        return
    if pipeline not in (*RETURNS_SOURCE, *STARTS_FROM_SOURCE):
        usable = ", ".join((*RETURNS_SOURCE, *STARTS_FROM_SOURCE))
        raise RequestError(f"pipeline {pipeline} takes no --video; the pipelines that do are {usable}.")
    if pipeline in STARTS_FROM_SOURCE and filled.denoising_strength == 1:
        raise RequestError(
            "a clip is given and nothing says what becomes of it: --start-time and --end-time retake a stretch, "
            "--extend-frames continues it, --denoising-strength below 1 makes it over."
        )
    for name in _RETAKE if pipeline != "retake" else ():
        if getattr(request, name) is not None:
            raise RequestError(f"{name} belongs to pipeline retake, not to {pipeline}; drop it.")
    if pipeline != "extend" and (request.extend_frames is not None or request.extend_before):
        raise RequestError(f"extend_frames belongs to pipeline extend, not to {pipeline}; drop it.")


def whole_source(filled: Filled, scale: VideoScale) -> MediaInfo:
    """The source of a pipeline that returns it: on the model's grid as it is, since its pixels are passed through.

    Raises: ShapeError for a size or a length off the grid, RequestError if the request wants it otherwise.
    """
    info, path = filled.source, filled.request.video
    if info is None or not info.frames:
        raise MediaError(f"{path} does not say how many frames it has; write it anew as .mp4.")
    more = filled.extend_frames or 0 if filled.pipeline == "extend" else 0
    own = {"height": info.height, "width": info.width, "num_frames": info.frames + more, "fps": float(info.fps)}
    for name, value in own.items():
        given = getattr(filled, name)
        differs = exact_fps(given) != exact_fps(info.fps) if name == "fps" else given != value
        if filled.origin.get(name) == "given" and differs:
            raise RequestError(
                f"{name} {given} was given, and the {filled.pipeline} of {path} has {value:g}; "
                f"leave it out, the source decides."
            )
    for name, side in (("height", info.height), ("width", info.width)):
        if side % scale.space:
            low, high = nearest_two(side, scale.space)
            raise ShapeError(
                f"{path} has {name} {side}, which is not a multiple of {scale.space}; "
                f"crop or scale it to {low} or {high} first."
            )
    if (info.frames - 1) % scale.time:
        low = max(1, (info.frames - 1) // scale.time * scale.time + 1)
        raise ShapeError(
            f"{path} has {info.frames} frames, which is not of the form {scale.time}k+1; "
            f"cut it to its first {low} frames first (ffmpeg: -frames:v {low})."
        )
    return info


def check_images(uses: Sequence[ImageUse], made: tuple[int, int]) -> None:
    """Raise RequestError for an image at a frame that is kept."""
    for use in uses:
        if not made[0] <= use.frame < made[1]:
            raise RequestError(
                f"image {use.path} at frame {use.frame}: that frame is kept; new are frames {made[0]} to {made[1] - 1}."
            )


def shortened(filled: Filled, sigmas: tuple[float, ...]) -> tuple[float, ...]:
    """The end of the schedule that the denoising strength leaves."""
    return tuple(float(s) for s in truncated_schedule(np.asarray(sigmas, np.float32), filled.denoising_strength))


def made_over(filled: Filled, sigmas: tuple[float, ...]) -> tuple[tuple[float, ...], dict[str, Any], dict[str, Any]]:
    """A stage that starts from a source clip, if there is one: its sigmas, its streams' start, the plan's source.

    Source: DiffSynth's `denoising_strength`; the first sigma left is the share of noise mixed in.
    """
    if filled.request.video is None or filled.source is None:
        return sigmas, {}, {}
    info, count, fps = filled.source, filled.num_frames, float(filled.fps)
    found = int((info.frames or 0) * exact_fps(fps) / info.fps) if info.fps else info.frames or 0
    if found < count:
        at = "" if not info.fps or exact_fps(fps) == info.fps else f" at {fps:g} fps"
        raise RequestError(f"{filled.request.video} has {found} frames{at} and {count} are wanted; ask for fewer.")
    kept = shortened(filled, sigmas)
    use = SourceUse(str(filled.request.video), count, info.has_audio, (0, count), track=filled.audio_track, fps=fps)
    return kept, {"start": "input", "noise_scale": kept[0]}, {"video_input": use}
