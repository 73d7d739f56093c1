"""Video files -> frames and facts about them."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, Literal

import av
import numpy as np

from mlx_ltx2.errors import MediaError, RequestError
from mlx_ltx2.media.opening import opened, shown_stream


@dataclass(frozen=True)
class MediaInfo:
    """What a video file says about itself.

    width, height: pixels as shown, after rotation. fps: frames per second. frames: None if the container
    does not say. seconds: length of the picture. rotation: degrees counter-clockwise (0, 90, 180, 270) that
    reading applies.
    """

    width: int
    height: int
    fps: Fraction
    frames: int | None
    seconds: float
    has_audio: bool
    audio_rate_hz: int | None
    rotation: int = 0


def probe(path: str | os.PathLike[str], *, count: bool = False) -> MediaInfo:
    """Facts about a video, from its header and first frame.

    count: decode the whole stream when the container does not say how many frames there are.
    Raises MediaError if the file cannot be read or has no video stream.
    """
    with opened(path, "video") as container:
        stream = shown_stream(container, path)
        first = next(container.decode(stream), None)
        if first is None:
            raise MediaError(f"the video stream of {path} is empty; it holds not one frame.")
        turns = _quarter_turns(first)
        fps = Fraction(stream.average_rate or stream.guessed_rate or 0)
        frames = stream.frames or None
        if frames is None and count:
            frames = 1 + sum(1 for _ in container.decode(stream))
        seconds = _seconds(container, stream, frames, fps)
        sound = container.streams.audio[0] if container.streams.audio else None
        sides = (first.width, first.height)
        width, height = sides[::-1] if turns % 2 else sides
        rate = sound.rate if sound else None
        return MediaInfo(width, height, fps, frames, seconds, sound is not None, rate, 90 * turns)


def iter_frames(
    path: str | os.PathLike[str],
    *,
    start_seconds: float = 0.0,
    max_frames: int | None = None,
    by: Literal["index", "pts"] = "index",
) -> Iterator[np.ndarray]:
    """Frames of a video one by one, uint8 (H, W, 3) RGB, upright.

    start_seconds: by="index" skips round(start * fps) frames, whatever their time stamps; by="pts" starts
    with the first frame whose time stamp, counted from the first one, is not earlier. max_frames: at most so
    many.
    Raises RequestError for a negative start or count, MediaError if the file cannot be read.
    Source: ltx-pipelines 1.2.0, media_io/decode.py, `decode_video_by_frame` and `decode_video_from_file`.
    """
    if not (np.isfinite(start_seconds) and start_seconds >= 0):
        raise RequestError(f"video start {start_seconds} s is not possible; use 0 or more.")
    if max_frames is not None and max_frames < 1:
        raise RequestError(f"{max_frames} frames cannot be read; use 1 or more, or leave it out.")
    if by not in ("index", "pts"):
        raise RequestError(f"frames are read by 'index' or by 'pts', not by {by!r}.")
    return _frames(path, start_seconds, max_frames, by == "pts")


def read_frames(
    path: str | os.PathLike[str],
    *,
    start_seconds: float = 0.0,
    max_frames: int | None = None,
    by: Literal["index", "pts"] = "index",
) -> np.ndarray:
    """Frames of a video as one array, uint8 (F, H, W, 3); arguments as for `iter_frames`.

    Raises MediaError also when no frame lies at or after the start.
    """
    frames = list(iter_frames(path, start_seconds=start_seconds, max_frames=max_frames, by=by))
    if not frames:
        raise MediaError(f"{path} has no frame at or after {start_seconds} s.")
    return np.stack(frames)


def _frames(path: str | os.PathLike[str], start: float, max_frames: int | None, by_time: bool) -> Iterator[np.ndarray]:
    with opened(path, "video") as container:
        stream = shown_stream(container, path)
        stream.thread_type = "AUTO"
        fps = Fraction(stream.average_rate or stream.guessed_rate or 0)
        skipped = round(start * fps)
        # A time stamp is rounded to its container's tick, a millisecond in Matroska.
        tolerance = min(stream.time_base, 1 / (4 * fps)) if fps else stream.time_base
        given, origin = 0, None
        for index, frame in enumerate(container.decode(stream)):
            if by_time and frame.pts is not None:
                at = frame.pts * frame.time_base
                origin = at if origin is None else origin
                early = at - origin < Fraction(start) - tolerance
            else:
                early = index < skipped
            if early:
                continue
            yield np.ascontiguousarray(np.rot90(frame.to_ndarray(format="rgb24"), _quarter_turns(frame)))
            given += 1
            if given == max_frames:
                return


def _quarter_turns(frame: Any) -> int:
    return round(frame.rotation / 90) % 4


def _seconds(container: Any, stream: Any, frames: int | None, fps: Fraction) -> float:
    if stream.duration and stream.time_base:
        return float(stream.duration * stream.time_base)
    if frames and fps:
        return float(frames / fps)
    return float((container.duration or 0) / av.time_base)
