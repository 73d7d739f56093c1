"""Video files -> frames and facts about them, as a player shows them.

One way of reading: pictures are decoded, those that a player hides left out, placed by their time stamps, and turned
into RGB by `as_shown`. What that changes is said in `MediaInfo.notes`.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from fractions import Fraction
from functools import lru_cache
from itertools import chain, pairwise
from typing import Any, Literal

import av
import numpy as np

from mlx_ltx2.errors import LTX2Error, MediaError, RequestError, ResourceError
from mlx_ltx2.media.as_shown import Look, Shown, check_one_shape, deinterlaced, is_transparent, look_of, squared
from mlx_ltx2.media.frame_times import FrameTimes
from mlx_ltx2.media.opening import opened, shown_frames, shown_stream

MOST_FRAMES = 36_000
"""Twenty minutes at 30 fps. A clip is read as a whole; a longer one is a film."""

_REORDERED = 17
"""Pictures among which an AVI mixes up its time stamps: as far as a codec reorders them."""


@dataclass(frozen=True)
class MediaInfo:
    """What reading a video file gives.

    width, height: pixels as shown, square and upright. fps: frames per second, constant. frames: those that a player
    shows, at this rate; uncounted, what the header says, None if it is silent. seconds: length of the picture.
    rotation: degrees counter-clockwise (0, 90, 180, 270) that reading applies. notes: what reading changes, in words
    that name the file.
    as_is: whether the shown pictures and times are the stored ones.
    """

    width: int
    height: int
    fps: Fraction
    frames: int | None
    seconds: float
    has_audio: bool
    audio_rate_hz: int | None
    rotation: int = 0
    notes: tuple[str, ...] = ()
    as_is: bool = True


def probe(
    path: str | os.PathLike[str], *, count: bool = False, fps: Fraction | None = None, frames: int | None = None
) -> MediaInfo:
    """Facts about a video.

    count: decode the stream, so that frames, rate and length are those that a player shows instead of the header's.
    fps: count frames as `iter_frames` reads them at this rate. frames: count no further.
    Raises MediaError if the file cannot be read or has no video stream, ResourceError for pictures too large to be read
    or, where it is counted without an end, a clip whose frames would fill half of this machine's memory.
    """
    with opened(path, "video") as container:
        stream = shown_stream(container, path)
        _, _, look = _first(container, stream, path)
        hints, seconds, stored = _hints(stream), _seconds(container, stream), stream.frames or None
        sound = container.streams.audio[0] if container.streams.audio else None
        rate = sound.rate if sound else None
    info = MediaInfo(
        *look.size,
        fps=hints[0] if hints else Fraction(0),
        frames=stored,
        seconds=seconds,
        has_audio=sound is not None,
        audio_rate_hz=rate,
        rotation=look.orientation.degrees,
        notes=tuple(f"{path}: {note}" for note in look.notes),
        as_is=look.as_is,
    )
    return _counted(path, info, fps, frames) if count or fps or frames else info


def _counted(path: str | os.PathLike[str], info: MediaInfo, fps: Fraction | None, frames: int | None) -> MediaInfo:
    until = None if frames is None else frames / fps if fps else None
    scan = _scanned(path, frames if until is None else None, until)
    times = scan.times
    own = times.rate or Fraction(0)
    given = times.shown(fps or own) if fps or own else np.arange(len(times.ticks))
    found = len(given) if frames is None else min(frames, len(given))
    if frames is None and found * info.width * info.height * 3 > _most_bytes():
        raise ResourceError(_too_long(path, found, info))
    said = [*scan.notes, *_time_notes(times, fps, given[:found])]
    seconds = times.end if not (fps or own) else float(found / (fps or own))
    return replace(
        info,
        fps=fps or own,
        frames=found,
        seconds=seconds,
        notes=(*info.notes, *(f"{path}: {note}" for note in said)),
        as_is=info.as_is and not said,
    )


def _time_notes(times: FrameTimes, fps: Fraction | None, given: np.ndarray) -> list[str]:
    if np.array_equal(given, np.arange(len(given))) and times.steady_rate:
        return []
    if times.near_rate:
        own = times.near_rate
        if fps is not None and fps != own:
            return [f"its {_number(own)} fps were read as {_number(fps)} fps, by time"]
        return [f"read as {_number(own)} fps; its time stamps stray from that rate by a few milliseconds"]
    low, high = times.intervals
    return [f"read as {_number(fps or times.rate)} fps; its rate varies between {_number(low)} and {_number(high)} fps"]


def _number(fps: Fraction | float | None) -> str:
    return f"{float(fps or 0):.3f}".rstrip("0").rstrip(".")


def _too_long(path: str | os.PathLike[str], frames: int, info: MediaInfo) -> str:
    size = frames * info.width * info.height * 3
    return (
        f"{path} has {frames} frames of {info.width}x{info.height}, {size / 1e9:.1f} GB when they are read, more than "
        "half of this machine's memory; cut it into shorter clips first."
    )


def _most_bytes() -> int:
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2


def iter_frames(
    path: str | os.PathLike[str],
    *,
    start_seconds: float = 0.0,
    max_frames: int | None = None,
    by: Literal["index", "pts"] = "index",
    fps: Fraction | None = None,
) -> Iterator[np.ndarray]:
    """Frames of a video one by one, uint8 (H, W, 3) RGB, as a player shows them.

    start_seconds: counted from the first shown picture; by="index" skips round(start * fps) frames, by="pts" those that
    are shown earlier. max_frames: at most so many. fps: the constant rate of the frames; by itself the clip's own
    (`MediaInfo.fps`), at which a clip of constant rate gives every picture once. At any other rate, and from a clip of
    varying rate, frame k is the picture that stands at k / fps.
    Raises RequestError for a negative start or count, MediaError if the file cannot be read, ResourceError for more
    than `MOST_FRAMES`.
    Source: ltx-pipelines 1.2.0, media_io/decode.py, `decode_video_by_frame` and `decode_video_from_file`.
    """
    if not (np.isfinite(start_seconds) and start_seconds >= 0):
        raise RequestError(f"video start {start_seconds} s is not possible; use 0 or more.")
    if max_frames is not None and max_frames < 1:
        raise RequestError(f"{max_frames} frames cannot be read; use 1 or more, or leave it out.")
    if by not in ("index", "pts"):
        raise RequestError(f"frames are read by 'index' or by 'pts', not by {by!r}.")
    return _frames(path, start_seconds, max_frames, by == "pts", fps)


def read_frames(
    path: str | os.PathLike[str],
    *,
    start_seconds: float = 0.0,
    max_frames: int | None = None,
    by: Literal["index", "pts"] = "index",
    fps: Fraction | None = None,
) -> np.ndarray:
    """Frames of a video as one array, uint8 (F, H, W, 3); arguments as for `iter_frames`.

    Raises MediaError also when no frame lies at or after the start.
    """
    held: list[np.ndarray] = []
    room = _most_bytes()
    for frame in iter_frames(path, start_seconds=start_seconds, max_frames=max_frames, by=by, fps=fps):
        held.append(frame)
        room -= frame.nbytes
        if room < 0:
            raise ResourceError(
                f"{path} is too long: {len(held)} frames fill half of this machine's memory; cut it into shorter clips."
            )
    if not held:
        raise MediaError(f"{path} has no frame at or after {start_seconds} s.")
    return np.stack(held)


def _frames(
    path: str | os.PathLike[str], start: float, most: int | None, by_time: bool, fps: Fraction | None
) -> Iterator[np.ndarray]:
    upto = None if most is None or start else most
    if upto is not None and fps is not None:
        times = _scanned(path, None, upto / fps).times
    else:
        times = _scanned(path, upto, None).times
    rate = fps or times.rate
    wanted = times.shown(rate) if rate else np.arange(len(times.ticks))
    skipped = round(start * (rate or 0))
    if by_time and start:
        stand = times.seconds[wanted] if rate == times.near_rate else np.arange(len(wanted)) / float(rate or 1)
        # A time stamp is rounded to its container's tick, a millisecond in Matroska.
        tolerance = float(min(times.tick, 1 / (4 * rate)) if rate else times.tick)
        skipped = int(np.searchsorted(stand, start - tolerance))
    yield from _pictures(path, wanted[skipped : None if most is None else skipped + most].tolist())


def _pictures(path: str | os.PathLike[str], wanted: list[int]) -> Iterator[np.ndarray]:
    """The shown pictures of these numbers, which never fall; each is converted once."""
    if not wanted:
        return
    with opened(path, "video") as container:
        stream = shown_stream(container, path)
        frames, first, look = _first(container, stream, path)
        shown = Shown(first, stream.sample_aspect_ratio)
        place = 0
        for number, frame in enumerate(deinterlaced(frames, look.interlaced)):
            if number != wanted[place]:
                continue
            with _naming(path):
                picture = shown.rgb(frame)
            while place < len(wanted) and wanted[place] == number:
                yield picture if place + 1 == len(wanted) or wanted[place + 1] != number else picture.copy()
                place += 1
            if place == len(wanted):
                return


def _first(container: Any, stream: Any, path: str | os.PathLike[str]) -> tuple[Iterator[Any], Any, Look]:
    """All frames that are shown, the first of them, and what it says about itself."""
    codec = stream.codec_context
    with _naming(path):
        if codec.width and codec.height:
            squared((codec.width, codec.height), None)
    frames = shown_frames(container, stream)
    first = next(frames, None)
    if first is None:
        raise MediaError(f"the video stream of {path} is empty; it holds not one frame.")
    with _naming(path):
        look = look_of(first, stream.sample_aspect_ratio)
    return chain([first], frames), first, look


@dataclass(frozen=True)
class _Scan:
    """What decoding a stream shows: when each picture stands, and what is to be said about them."""

    times: FrameTimes
    notes: tuple[str, ...]


_KEPT = 16
_WHOLE: dict[tuple[Any, ...], _Scan] = {}
"""Scans of whole files by path and state, so that a file that was counted is decoded only once more, to be read."""


def _scanned(path: str | os.PathLike[str], frames: int | None, seconds: Fraction | None) -> _Scan:
    """Decode the stream and note when each picture is shown, up to so many frames or seconds, and one more.

    The last few results are kept as long as their files stay the same.
    """
    with opened(path, "video"):
        found = os.stat(path)
    stamp = (found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns)
    key = (os.fspath(path), *stamp)
    if key in _WHOLE:
        return _beginning(_WHOLE[key], frames, seconds)
    scan = _scan(os.fspath(path), stamp, frames, seconds)
    if frames is None and seconds is None:
        if len(_WHOLE) >= _KEPT:
            _WHOLE.pop(next(iter(_WHOLE)))
        _WHOLE[key] = scan
    return scan


def _beginning(scan: _Scan, frames: int | None, seconds: Fraction | None) -> _Scan:
    """What a scan up to so many frames or seconds, and one more, would have found."""
    times = scan.times
    end = len(times.ticks) if frames is None else frames + 1
    if seconds is not None:
        end = min(end, 1 + int(np.searchsorted(times.ticks, float(seconds / times.tick), "right")))
    return scan if end >= len(times.ticks) else replace(scan, times=replace(times, ticks=times.ticks[:end]))


@lru_cache(maxsize=_KEPT)
def _scan(path: str, stamp: tuple[int, ...], most: int | None, seconds: Fraction | None) -> _Scan:
    with opened(path, "video") as container:
        stream = shown_stream(container, path)
        frames, first, look = _first(container, stream, path)
        hints = _hints(stream)
        tick = Fraction(first.time_base or stream.time_base or Fraction(1, 1000))
        rate = hints[0] if hints else Fraction(25)
        step = max(1, round(1 / (rate * tick)))
        notes: dict[str, None] = {}
        stamps: list[int] = []
        last, whole = 0, True
        for frame in frames:
            notes |= dict.fromkeys(_said_of(frame, look, path))
            stamps.append(frame.pts if frame.pts is not None else stamps[-1] + step if stamps else 0)
            last = frame.duration or 0
            past = seconds is not None and (min(stamps[-_REORDERED:]) - stamps[0]) * tick > seconds
            if past or (most and len(stamps) > most):
                whole = False
                break
            if len(stamps) > MOST_FRAMES:
                raise ResourceError(f"{path} has more than {MOST_FRAMES} frames; cut it into shorter clips first.")
        if whole and stream.frames > len(stamps):
            said = f"its header counts {stream.frames} pictures; a player shows {len(stamps)}, and so many are read"
            notes[said] = None
    if any(later < earlier for earlier, later in pairwise(stamps)):
        notes[f"its time stamps run backwards; read at the {_number(rate)} fps of its header"] = None
        return _Scan(FrameTimes(np.arange(len(stamps)), 1 / rate, 1, (rate,)), tuple(notes))
    # Of two pictures with one time stamp a player shows both for a moment.
    ticks = np.maximum.accumulate(np.array(stamps, np.int64) - np.arange(len(stamps))) + np.arange(len(stamps))
    return _Scan(FrameTimes(ticks - ticks[0], tick, last, hints), tuple(notes))


def _said_of(frame: Any, look: Look, path: str | os.PathLike[str]) -> list[str]:
    said = ["some of its pictures are damaged; they are read as far as they can be"] if frame.is_corrupt else []
    if is_transparent(frame):
        said.append("it is transparent in places; read in front of grey")
    size = (frame.width, frame.height)
    if size != look.stored:
        with _naming(path):
            check_one_shape(look.stored, size)
        said.append(
            f"its pictures change from {look.stored[0]}x{look.stored[1]} to {size[0]}x{size[1]}; scaled to one size"
        )
    return said


def _hints(stream: Any) -> tuple[Fraction, ...]:
    """What the header calls the rate, best first."""
    rates = (stream.average_rate, stream.guessed_rate, stream.base_rate)
    return tuple(dict.fromkeys(Fraction(rate) for rate in rates if rate and 0 < rate <= 1000))


def _seconds(container: Any, stream: Any) -> float:
    if stream.duration and stream.time_base:
        return float(stream.duration * stream.time_base)
    return float((container.duration or 0) / av.time_base)


@contextmanager
def _naming(path: str | os.PathLike[str]) -> Iterator[None]:
    """Put the file's name before the message of what is refused about its pictures."""
    try:
        yield
    except LTX2Error as error:
        raise type(error)(f"{path}: {error}") from error
