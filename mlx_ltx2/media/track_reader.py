"""One sound track on its way from packets to the samples of a window, on the time line of the pictures beside it."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Iterator
from fractions import Fraction
from itertools import chain
from typing import Any

import av
import numpy as np

from mlx_ltx2.errors import MediaError
from mlx_ltx2.media.channels import check_layout, stays, stereo_matrix
from mlx_ltx2.media.time_line import Block, placed

MOST_BYTES = 1 << 30
"""Of samples that are read at once: 46 minutes of stereo at 48 kHz."""

_PLANES = 8
"""As many as a frame of FFmpeg's lists in its own fields; PyAV 17 and 18 look for more beyond them."""

_FULL_SCALE = {"u8": 2.0**7, "s16": 2.0**15, "s32": 2.0**31, "s64": 2.0**63}

_WORTH_SAYING_SECONDS = 0.03
"""Starts, gaps and overlaps from here on are said; an encoder's own delay is shorter."""


class TrackReader:
    """Reads one window of one track.

    picture: when the first picture is shown, in seconds of the container's clock; None in a file of sound alone, whose
    own first sample is 0. rate_hz: of the first block, and of everything that is read. end: of the track in samples, as
    far as it was read; None if it holds none. notes: what was mixed, cut or filled, in words, once the window is read.
    mixed: more than two channels become stereo; False leaves them.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        container: Any,
        stream: Any,
        picture: Fraction | None,
        *,
        mixed: bool = True,
    ):
        self._mixed = mixed
        self._path, self._container, self._stream = path, container, stream
        self._picture, self._zero = picture, picture
        self._least = 0
        self._last = Block(None, 0, None)
        self._gaps: list[tuple[int, int]] = []
        self._overlaps: list[tuple[int, int]] = []
        self.rate_hz: int = stream.rate
        self.end: int | None = None
        self.notes: list[str] = []

    def window(self, start_seconds: float, max_seconds: float | None) -> np.ndarray:
        """Samples from the start on, float32 (N, channels); none if the track ends before it.

        Everything before them is decoded too: seeking is not exact in MP3, OGG and AAC.
        Raises: MediaError for more than `MOST_BYTES`, and for channels without a place.
        """
        frames = self._container.decode(self._stream)
        head = next(frames, None)
        if head is None:
            return np.zeros((0, 1), np.float32)
        self.rate_hz, self._least = head.sample_rate, round(_WORTH_SAYING_SECONDS * head.sample_rate)
        first = round(start_seconds * self.rate_hz)
        last = 1 << 62 if max_seconds is None else first + round(max_seconds * self.rate_hz)
        kept: deque[tuple[int, np.ndarray]] = deque()
        for position, block in self._placed(chain([head], frames)):
            self._say_start(position, first)
            if position >= last:
                self.end = last if self.end is None else self.end
                break
            begin = max(self._joined(position, block.length, first, last), first)
            stop = min(position + block.length, last)
            self._check_size(min(self.end or 0, last) - first)
            if begin < stop:
                kept.append((begin, self._samples(block.content)[begin - position : stop - position]))
        else:
            self._end_as_stated()
        self._say_steps()
        return _assembled(kept, first, min(last, self.end or 0))

    def _placed(self, frames: Iterator[Any]) -> Iterator[tuple[int, Block[Any]]]:
        """An Ogg file may be a chain of files, each with a clock of its own."""
        chained = "ogg" in self._container.format.name
        return placed(self._blocks(frames), self.rate_hz, Fraction(self._stream.time_base), restarts=chained)

    def _blocks(self, frames: Iterator[Any]) -> Iterator[Block[Any]]:
        for frame in self._readable(frames):
            at = None
            if frame.pts is not None:
                seconds = Fraction(frame.pts * frame.time_base)
                self._zero = seconds if self._zero is None else self._zero
                at = round((seconds - self._zero) * self.rate_hz)
            yield Block(at, frame.samples, frame)

    def _readable(self, frames: Iterator[Any]) -> Iterator[Any]:
        """Frames of one rate, packed where PyAV misreads planes: from eight channels on."""
        other, kind = None, None
        for frame in frames:
            now = (frame.sample_rate, frame.layout.name, frame.format.name)
            if other is not None and now != kind:
                yield from other.resample(None)
                other = None
            many_planes = frame.format.is_planar and frame.layout.nb_channels >= _PLANES
            if frame.sample_rate == self.rate_hz and not many_planes:
                yield frame
                continue
            if other is None:
                kind = now
                other = av.AudioResampler(frame.format.packed.name, frame.layout, self.rate_hz)
            if frame.sample_rate != self.rate_hz:
                self._say(f"its rate changes to {frame.sample_rate} Hz on the way; it is read at {self.rate_hz} Hz")
            yield from other.resample(frame)
        if other is not None:
            yield from other.resample(None)

    def _joined(self, position: int, length: int, first: int, last: int) -> int:
        """Where the samples of a block begin that no earlier block has given; steps inside the window are kept."""
        end = position if self.end is None else self.end
        self._last = Block(position, length, None)
        self.end = max(position + length, end)
        if min(position, last) - max(end, first) >= self._least:
            self._gaps.append((max(end, first), min(position, last)))
        if end > first and (end - position >= self._least or (self._overlaps and position < end)):
            joins = bool(self._overlaps) and self._overlaps[-1][1] >= position
            begin = self._overlaps.pop()[0] if joins else position
            self._overlaps.append((begin, min(end, position + length)))
        return max(position, end)

    def _samples(self, frame: Any) -> np.ndarray:
        layout = frame.layout.name
        if not self._mixed or stays(layout):
            return to_float(frame)
        check_layout(layout, self._path)
        low = ", low effects are left out" if any(c.name.startswith("LFE") for c in frame.layout.channels) else ""
        self._say(f"{layout} sound is mixed to stereo{low}")
        return np.asarray(to_float(frame) @ stereo_matrix(layout))

    def _check_size(self, samples: int) -> None:
        channels = self._stream.codec_context.layout.nb_channels
        if samples * (min(2, channels) if self._mixed else channels) * 4 > MOST_BYTES:
            raise MediaError(
                f"{self._path} has more sound than is read at once ({samples / self.rate_hz / 60:.0f} minutes); "
                "ask for a part of it, or cut it."
            )

    def _end_as_stated(self) -> None:
        """Leave out what the last block of an MP4 has beyond the end that the header states: AAC blocks are whole."""
        stream = self._stream
        if "mp4" not in self._container.format.name or not stream.duration or self._zero is None:
            return
        ends = ((stream.start_time or 0) + stream.duration) * stream.time_base - self._zero
        stated = round(ends * self.rate_hz)
        if self._last.at is not None and self._last.at < stated < self._last.at + self._last.length:
            self.end = stated

    def _say(self, note: str) -> None:
        if note not in self.notes:
            self.notes.append(note)

    def _say_start(self, position: int, first: int) -> None:
        if self.end is not None or self._picture is None or abs(position) < self._least or position < 0 < first:
            return
        seconds = abs(position) / self.rate_hz
        if position > first:
            self._say(f"the sound starts {seconds:.3f} s after the picture; there is silence before it")
        elif position < 0:
            self._say(f"the sound starts {seconds:.3f} s before the picture; that part is left out")

    def _say_steps(self) -> None:
        for steps, one, many in (
            (self._gaps, "a gap of {0:.3f} s at {1:.3f} s is silence", "gaps are silence"),
            (self._overlaps, "{0:.3f} s at {1:.3f} s lie over sound before them and are left out", "overlaps are cut"),
        ):
            seconds, at = sum(b - a for a, b in steps) / self.rate_hz, [a / self.rate_hz for a, _ in steps[:1]]
            if len(steps) == 1:
                self._say(one.format(seconds, *at))
            elif steps:
                self._say(f"{len(steps)} {many}, {seconds:.3f} s in all, the first at {at[0]:.3f} s")


def to_float(frame: Any) -> np.ndarray:
    """The samples of an `av` frame, float32 (N, channels), full scale = [-1, 1]."""
    name = frame.format.name.removesuffix("p")
    values = frame.to_ndarray()
    values = values.T if frame.format.is_planar else values.reshape(-1, frame.layout.nb_channels)
    if name == "u8":
        return np.asarray(((values.astype(np.float32) - 128.0) / 128.0).astype(np.float32))
    if name in _FULL_SCALE:
        return np.asarray((values.astype(np.float64) / _FULL_SCALE[name]).astype(np.float32))
    return np.ascontiguousarray(values, dtype=np.float32)


def _assembled(kept: deque[tuple[int, np.ndarray]], first: int, end: int) -> np.ndarray:
    """One array of [first, end) with silence where there is nothing; empties `kept` as it goes."""
    channels = max((samples.shape[1] for _, samples in kept), default=1)
    whole = np.zeros((max(0, end - first), channels), np.float32)
    while kept:
        position, samples = kept.popleft()
        part = whole[position - first : position - first + len(samples)]
        part[:] = samples[: len(part)]
    return whole
