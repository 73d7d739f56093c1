"""The clip that a run starts from: what is read of it, and what of it the result keeps."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import mlx.core as mx
import numpy as np

from mlx_ltx2.errors import MediaError
from mlx_ltx2.media.audio import fit_length, read_audio, to_stereo
from mlx_ltx2.media.frame_rate import exact_fps, samples_for_frames
from mlx_ltx2.media.resample import resample
from mlx_ltx2.media.video import MediaInfo, iter_frames, probe
from mlx_ltx2.shapes import LatentShape, VideoShape
from mlx_ltx2.stages.plan import SourceUse
from mlx_ltx2.stages.write import Clip
from mlx_ltx2.states import DenoisedPair, Waveform

SEAM_SECONDS = 0.01
"""Length of the crossfade between kept and new sound; it lies wholly in the new sound."""

_CHUNK = 16


def facts(video: str | os.PathLike[str] | Clip) -> MediaInfo:
    """Size, length and rate of a source, a file or a clip of an earlier run.

    Raises: MediaError if the file cannot be read.
    """
    if not isinstance(video, Clip):
        return probe(video, count=True)
    shape: VideoShape = video.plan.shape
    sound = video.audio
    has_audio = sound is not None or video.audio_latents is not None
    rate = None if sound is None else sound.rate_hz
    fps = exact_fps(video.fps)
    return MediaInfo(shape.width, shape.height, fps, shape.frames, shape.seconds, has_audio, rate)


@dataclass(frozen=True)
class Source:
    """use: what the plan takes of the source. clip: the source itself, if it is in memory and no file is to be read.

    kept: latents of an earlier run that were found beside the file. decoded: the sound of a clip that holds latents of
    it alone.
    """

    use: SourceUse
    clip: Clip | None = None
    kept: DenoisedPair | None = None
    decoded: Waveform | None = None

    @property
    def has_frames(self) -> bool:
        return self.clip is None or self.clip.frames is not None or self.clip.path is not None

    @property
    def file(self) -> Path | None:
        """Where its frames are read from; None if they are in memory, or nowhere."""
        if self.clip is None:
            return Path(self.use.path)
        return self.clip.path if self.clip.frames is None else None

    def frames(self) -> Iterator[np.ndarray]:
        """Its first `use.frames` frames, uint8 (H, W, 3)."""
        if self.clip is not None and self.clip.frames is not None:
            yield from self.clip.frames[: self.use.frames]
            return
        path = self.file
        if path is None:
            raise MediaError("the source clip holds no frames; make it with output_type='frames'.")
        given = 0
        fps = exact_fps(self.use.fps) if self.use.fps else None
        for frame in iter_frames(path, max_frames=self.use.frames, fps=fps):
            given += 1
            yield frame
        if given < self.use.frames:
            raise MediaError(f"{path} has {given} frames, and {self.use.frames} are needed; is it cut short?")

    def sound(self, fps: float) -> Waveform | None:
        """Its sound at its own rate for as long as its frames; None if it has none, or only latents of it."""
        if not self.use.has_audio:
            return None
        if self.clip is not None:
            return self.clip.audio or self.decoded
        seconds = float(self.use.frames / exact_fps(fps))
        return read_audio(self.use.path, max_seconds=seconds, track=self.use.track)

    def latents(self, shape: LatentShape) -> mx.array | None:
        """Video latents of an earlier run, (1, F, H, W, C), if they have this shape."""
        known = self._kept("video") if self.clip is None else self.clip.latents
        return known if known is not None and known.shape[1:4] == (shape.frames, shape.height, shape.width) else None

    def audio_latents(self, count: int) -> mx.array | None:
        """Audio latents of an earlier run, (1, count, mel, C), with zeros after them where the result goes on.

        None if there are none, or if the source begins later in the result: latents do not move by parts of themselves.
        """
        known = self._kept("audio") if self.clip is None else self.clip.audio_latents
        if known is None or self.use.at or known.shape[1] > count:
            return None
        rest = mx.zeros((1, count - known.shape[1], *known.shape[2:]), known.dtype)
        return mx.concatenate([known, rest], axis=1)

    def undecoded_sound(self) -> mx.array | None:
        """Latents (1, T, mel, C) of its sound where there is nothing else of it and they cannot be used as they are."""
        if self.clip is None or self.clip.audio is not None or self.decoded is not None or not self.use.at:
            return None
        return self.clip.audio_latents

    def _kept(self, name: str) -> mx.array | None:
        return None if self.kept is None else getattr(self.kept, name)

    def placed_sound(self, shape: VideoShape, rate_hz: int) -> Waveform:
        """Its sound where the result has it, silence elsewhere: as long as a clip of `shape`.

        rate_hz: of the silence of a source without sound.
        """
        found = self.sound(shape.fps)
        if found is None:
            return Waveform(np.zeros((samples_for_frames(shape.frames, shape.fps, rate_hz), 2), np.float32), rate_hz)
        samples, rate = to_stereo(found.samples), found.rate_hz
        before, own, total = (
            samples_for_frames(n, shape.fps, rate) if n else 0 for n in (self.use.at, self.use.frames, shape.frames)
        )
        placed = np.concatenate([np.zeros((before, 2), np.float32), fit_length(samples, own)])
        return Waveform(fit_length(placed, total), rate, found.notes)


def kept_frames(source: Source) -> Iterator[np.ndarray]:
    """The source's frames alone, uint8 (f, H, W, 3)."""
    return _stacked(source.frames())


def _stacked(frames: Iterable[np.ndarray]) -> Iterator[np.ndarray]:
    held: list[np.ndarray] = []
    for frame in frames:
        held.append(frame)
        if len(held) == _CHUNK:
            yield np.stack(held)
            held = []
    if held:
        yield np.stack(held)


def splice_frames(chunks: Iterable[np.ndarray], source: Source) -> Iterator[np.ndarray]:
    """Decoded chunks in which every frame that was not made anew is the source's own.

    chunks: of the result from its first frame on; they may end with the last new one.
    """
    use, own, number = source.use, source.frames(), 0
    first, end = use.made
    for chunk in chunks:
        mixed = chunk.copy()
        for index in range(len(mixed)):
            if use.at <= number < use.at + use.frames:
                frame = next(own)
                if not first <= number < end:
                    mixed[index] = frame
            number += 1
        yield mixed
    yield from _stacked(own)


def splice_sound(kept: Waveform, made: Waveform, use: SourceUse, shape: VideoShape) -> Waveform:
    """The source's samples at their own rate, with the stretch `use.sound` taken from the new sound.

    Seams are faded over `SEAM_SECONDS` inside the new stretch, so that no kept sample changes; where the source ends at
    a seam its last sample is held and faded.
    """
    assert use.sound is not None
    rate = kept.rate_hz
    total = samples_for_frames(shape.frames, shape.fps, rate)
    start, end = (min(total, round(seconds * rate)) for seconds in use.sound)
    before = samples_for_frames(use.at, shape.fps, rate) if use.at else 0
    own = to_stereo(kept.samples)
    if use.frames < shape.frames:  # extended: what lies beyond the picture's end has no place
        own = fit_length(own, samples_for_frames(use.frames, shape.fps, rate))
    after = max(0, end - before - len(own))
    result = np.pad(own, ((before, after), (0, 0)), mode="edge").astype(np.float32)
    new = fit_length(to_stereo(resample(made.samples, made.rate_hz, rate)), end)[start:].copy()
    old = result[start:end]
    fade = min(round(SEAM_SECONDS * rate), len(new) // 2)
    ramp = (np.arange(1, fade + 1, dtype=np.float32) / np.float32(fade + 1))[:, None]
    if fade and start > 0:
        new[:fade] = old[:fade] * (1 - ramp) + new[:fade] * ramp
    if fade and end < total:
        new[-fade:] = new[-fade:] * ramp[::-1] + old[-fade:] * (1 - ramp[::-1])
    result[start:end] = new
    return Waveform(result, rate)
