"""Frames and sound -> one file. Frames are encoded as they come; only a whole file takes its name."""

from __future__ import annotations

import heapq
import os
from collections.abc import Iterable, Mapping
from contextlib import suppress
from fractions import Fraction
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol

import av
import numpy as np

from mlx_ltx2.errors import MediaError, RequestError, ShapeError
from mlx_ltx2.media.animation import GifSink, StillSink, WebpSink
from mlx_ltx2.media.audio import check_samples, fit_length, to_stereo
from mlx_ltx2.media.claims import Claim
from mlx_ltx2.media.color import yuv420_from_rgb
from mlx_ltx2.media.copied_sound import packets_for, remux_audio
from mlx_ltx2.media.files import VIDEO_SUFFIXES, holds_audio, writing
from mlx_ltx2.media.frame_rate import exact_fps, samples_for_frames
from mlx_ltx2.media.h264 import LOSSLESS, THREADS, encoder_options, is_lossless
from mlx_ltx2.media.images import save_image
from mlx_ltx2.media.metadata import container_tags, read_metadata, still_arguments
from mlx_ltx2.media.opening import file_url, open_media, opened, shown_stream
from mlx_ltx2.media.outputs import check_replaceable, check_writable
from mlx_ltx2.media.video import probe
from mlx_ltx2.states import Waveform

__all__ = ["ClipWriter", "check_writable", "holds_audio", "read_metadata", "remux_audio", "save_frames"]

_AAC_RATES_HZ = frozenset((7350, 8000, 11025, 12000, 16000, 22050, 24000, 32000, 44100, 48000, 64000, 88200, 96000))

FITTED_SOUND = "the sound was"
"""How a writer's note begins that is about the length of encoded sound."""


class Sink(Protocol):
    """Where the frames of one kind of file go."""

    def add(self, frame: np.ndarray) -> None: ...
    def finish(self, audio: Waveform | None) -> None: ...
    def abort(self) -> None: ...


class ClipWriter:
    """Write a clip frame by frame.

        with ClipWriter("kite.mp4", fps=24, audio=waveform, metadata={"prompt": "..."}) as writer:
            for chunk in decoded:            # uint8 (F, H, W, 3)
                writer.write(chunk)

    path: .mp4 and .mov hold H.264 and AAC; .gif and .webp an animation without sound; .png, .jpg one frame.
    fps: frames per second, exact for broadcast rates (see `exact_fps`). crf: 0 (lossless) to 51, 19 as
    official. audio: Waveform, mono or stereo, any rate; may also be set later, before the writer closes. The
    sound in the file lasts exactly as long as the picture: it is cut or padded with silence.
    metadata: text by name, read back by `read_metadata`.
    picture: a video whose compressed pictures go into an .mp4 or .mov as they are, instead of the frames, which must be
    its own; where the container does not take them the frames are encoded, and a note says so.
    notes: after closing, what had to be changed, in words (sound cut, padded or left out).

    overwrite: replace a file that this program did not make; its own earlier output is replaced in any case.

    The file is written beside its target, under a name of this writer alone, and renamed on success; on any exception,
    an interrupt included, it is removed. Only compressed pictures are held in memory until the end.

    Raises RequestError (suffix, crf, fps, several frames into a still, a file of others, a name that another run
    writes), ShapeError (odd or changing sizes), MediaError (path not writable, no frames), ResourceError (disk full).
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        fps: float | Fraction | str,
        crf: float = 19,
        audio: Waveform | None = None,
        metadata: Mapping[str, str] | None = None,
        picture: str | os.PathLike[str] | None = None,
        overwrite: bool = False,
    ) -> None:
        if not 0 <= crf <= 51:
            raise RequestError(f"crf {crf} is outside 0 (lossless) to 51 (worst); 19 is the default.")
        self.path = Path(path)
        self.fps = exact_fps(fps)
        self.crf = crf
        self.audio = audio
        self.metadata = dict(metadata or {})
        self.picture = picture
        self.frames_written = 0
        self.notes: list[str] = []
        self.overwrite = overwrite
        check_writable(self.path, overwrite=overwrite)
        still_arguments(self.path.suffix.lower(), self.metadata)
        self._claim: Claim | None = None
        self._partial = Path()
        self._size: tuple[int, int] | None = None
        self._sink: Sink | None = None
        self._closed = False

    def __enter__(self) -> ClipWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            self.close()
        else:
            self.abort()

    def write(self, frames: np.ndarray) -> None:
        """Encode a chunk: uint8 (F, H, W, 3) sRGB, or one frame (H, W, 3). H and W never change."""
        if self._closed:
            raise MediaError(f"{self.path} is finished already; open another writer.")
        frames = frames[None] if frames.ndim == 3 else frames
        if frames.dtype != np.uint8 or frames.ndim != 4 or frames.shape[-1] != 3:
            raise MediaError(
                f"frames are {frames.dtype} {frames.shape}; a clip takes uint8 (frames, height, width, 3)."
            )
        try:
            with writing(self.path):
                for frame in frames:
                    self._ready(frame).add(frame)
                    self.frames_written += 1
        except BaseException:
            self.abort()
            raise

    def close(self) -> None:
        """Finish the file and give it its name; a second call does nothing."""
        if self._closed:
            return
        if self._sink is None:
            raise MediaError(f"no frame was written to {self.path}; a clip needs at least one.")
        try:
            with writing(self.path):
                self._sink.finish(self._fitted_audio())
                check_replaceable(self.path, overwrite=self.overwrite)  # a file may have come meanwhile
                assert self._claim is not None
                os.replace(self._partial, self._claim.target)
        except BaseException:
            self.abort()
            raise
        self._sink, self._closed = None, True
        self._release()

    def abort(self) -> None:
        """Give up and remove what was written."""
        sink, self._sink = self._sink, None
        if sink is not None:
            sink.abort()
        self._release()

    def _release(self) -> None:
        claim, self._claim = self._claim, None
        if claim is not None:
            claim.release()

    def _ready(self, frame: np.ndarray) -> Sink:
        height, width, _ = frame.shape
        if self._sink is None:
            self._size = (height, width)
            self._claim = self._claim or Claim(self.path)
            self._partial = self._claim.partial(self.path.suffix)
            self._sink = self._open(height, width)
        elif self._size != (height, width):
            raise ShapeError(f"a frame (height, width) = {(height, width)} follows frames of {self._size}.")
        return self._sink

    def _open(self, height: int, width: int) -> Sink:
        suffix = self.path.suffix.lower()
        if suffix in VIDEO_SUFFIXES and self.picture is not None:
            try:
                return CopySink(self._partial, self.picture, self.fps, self.metadata)
            except MediaError as error:
                self.notes.append(f"the picture was encoded anew, since it could not be copied: {error}")
        if suffix in VIDEO_SUFFIXES:
            if is_lossless(self.crf):
                self.notes.append(LOSSLESS)
            return VideoSink(self._partial, height, width, self.fps, self.crf, self.metadata)
        if suffix == ".gif":
            return GifSink(self._partial, self.fps, self.metadata, self.notes)
        if suffix == ".webp":
            return WebpSink(self._partial, height, width, self.fps, self.metadata, self.notes)
        return StillSink(self._partial, self.metadata)

    def _fitted_audio(self) -> Waveform | None:
        audio = self.audio
        if audio is None:
            return None
        if not holds_audio(self.path):
            self.notes.append(f"{self.path.suffix} files hold no sound; the sound was left out.")
            return None
        check_samples(audio)
        samples = to_stereo(audio.samples)
        wanted = samples_for_frames(self.frames_written, self.fps, audio.rate_hz)
        if len(samples) != wanted:
            change = "cut" if len(samples) > wanted else "padded with silence"
            self.notes.append(
                f"{FITTED_SOUND} {change} from {len(samples) / audio.rate_hz:.3f} s to the picture's "
                f"{wanted / audio.rate_hz:.3f} s."
            )
        return Waveform(fit_length(samples, wanted), audio.rate_hz)


class VideoSink:
    """H.264 (yuv420p, BT.709, limited range) and AAC in an MP4 or MOV, index first.

    Packets wait in memory until the sound is known, so that both streams lie interleaved in the file.
    """

    def __init__(
        self, partial: Path, height: int, width: int, fps: Fraction, crf: float, metadata: Mapping[str, str]
    ) -> None:
        if height % 2 or width % 2:
            raise ShapeError(
                f"H.264 needs even sides, not {width}x{height}; crop to {width // 2 * 2}x{height // 2 * 2}."
            )
        self._partial, self._fps, self._metadata = partial, fps, metadata
        self._frames = 0
        self._packets: list[Any] = []
        self._container: Any = None
        self._open(height, width, crf)

    def _open(self, height: int, width: int, crf: float) -> None:
        self._container = _open_movie(self._partial, self._fps, self._metadata)
        self._stream = self._container.add_stream("libx264", rate=self._fps, options=encoder_options(crf))
        self._stream.width, self._stream.height, self._stream.pix_fmt = width, height, "yuv420p"
        codec = self._stream.codec_context
        codec.thread_count = THREADS
        codec.time_base = 1 / self._fps
        codec.color_primaries = codec.color_trc = codec.colorspace = 1  # BT.709 in each of the three tables
        codec.color_range = 1  # limited

    def add(self, frame: np.ndarray) -> None:
        picture = av.VideoFrame.from_ndarray(yuv420_from_rgb(frame), format="yuv420p")
        picture.pts, picture.time_base = self._frames, 1 / self._fps
        picture.colorspace = picture.color_range = 1
        self._packets += self._stream.encode(picture)
        self._frames += 1

    def finish(self, audio: Waveform | None) -> None:
        self._packets += self._stream.encode()
        sound = [] if audio is None else _encode_audio(self._container, audio, self._frames, self._fps)
        for packet in heapq.merge(self._packets, sound, key=lambda p: float(p.dts * p.time_base)):
            self._container.mux(packet)
        self._packets = []
        self._container.close()

    def abort(self) -> None:
        self._packets = []
        # The file is thrown away: whether its trailer could still be written does not matter.
        with suppress(av.error.FFmpegError, OSError):
            self._container.close()


class CopySink:
    """The compressed pictures of another file as they are, and new sound, in an MP4 or MOV.

    The first shown picture begins at 0. Raises MediaError if the container does not hold such pictures, or showing them
    takes more than decoding them: then their copy would not look like the frames that were read.
    """

    def __init__(
        self, partial: Path, picture: str | os.PathLike[str], fps: Fraction, metadata: Mapping[str, str]
    ) -> None:
        self._picture, self._fps, self._frames = picture, fps, 0
        info = probe(picture, count=True)
        if not info.as_is or info.frames != _stored(picture):
            raise MediaError(f"{picture} is not shown as it is stored.")
        self._container = _open_movie(partial, fps, metadata)
        try:
            with opened(picture, "video") as source:
                stream = shown_stream(source, picture)
                codec = stream.codec.canonical_name
                if codec not in self._container.supported_codecs:
                    raise MediaError(f"{partial.suffix} files hold no {codec} pictures.")
                self._copy = self._container.add_stream_from_template(stream)
        except MediaError:
            self.abort()
            raise

    def add(self, frame: np.ndarray) -> None:
        self._frames += 1

    def finish(self, audio: Waveform | None) -> None:
        sound = [] if audio is None else _encode_audio(self._container, audio, self._frames, self._fps)
        with open_media(self._picture, "video") as source:
            stream = shown_stream(source, self._picture)
            pictures = packets_for(source, stream, self._copy, stream.start_time or 0)
            for packet in heapq.merge(pictures, sound, key=lambda p: float(p.dts * p.time_base)):
                self._container.mux(packet)
        self._container.close()

    def abort(self) -> None:
        # The file is thrown away: whether its trailer could still be written does not matter.
        with suppress(av.error.FFmpegError, OSError):
            self._container.close()


def _stored(picture: str | os.PathLike[str]) -> int:
    """Compressed pictures in a file, shown or not."""
    with opened(picture, "video") as source:
        return sum(packet.dts is not None for packet in source.demux(shown_stream(source, picture)))


def _open_movie(partial: Path, fps: Fraction, metadata: Mapping[str, str]) -> Any:
    """An MP4 or MOV, index first, whose bytes depend on its content alone."""
    # Track lengths are stored in units of the movie's clock: it must resolve a frame and almost a sample.
    clock = fps.numerator * max(1, 90000 // fps.numerator)
    kind = partial.suffix.lower()[1:]
    # A MOV's classic comment ends after 65,535 bytes, its tags by name do not.
    movflags = "+faststart+use_metadata_tags" if kind == "mov" else "+faststart"
    options = {"movflags": movflags, "fflags": "+bitexact", "movie_timescale": str(clock)}
    container = av.open(file_url(partial), "w", format=kind, options=options)
    for key, value in container_tags(metadata).items():
        container.metadata[key] = value
    return container


def _encode_audio(container: Any, audio: Waveform, frames: int, fps: Fraction) -> list[Any]:
    """AAC packets of sound as long as so many frames, in a new stream of the container."""
    samples, rate_hz = audio.samples, audio.rate_hz
    if rate_hz not in _AAC_RATES_HZ:
        from mlx_ltx2.media.resample import resample

        samples, rate_hz = resample(samples, rate_hz, 48000), 48000
        samples = fit_length(samples, samples_for_frames(frames, fps, rate_hz))
    stream = container.add_stream("aac", rate=rate_hz, layout="stereo")
    stream.codec_context.bit_rate = min(192_000, 8 * rate_hz)
    planes = np.ascontiguousarray(np.clip(samples, -1.0, 1.0).T, dtype=np.float32)
    block = av.AudioFrame.from_ndarray(planes, format="fltp", layout="stereo")
    block.sample_rate, block.pts, block.time_base = rate_hz, 0, Fraction(1, rate_hz)
    return [*stream.encode(block), *stream.encode()]


def save_frames(folder: str | os.PathLike[str], frames: Iterable[np.ndarray], *, first: int = 0) -> list[Path]:
    """Write frames as `frame_00000.png`, ... into `folder`, which is created. Returns the paths.

    frames: an array (F, H, W, 3) or an iterable of (H, W, 3), uint8. first: number of the first file.
    """
    folder = Path(folder)
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for number, frame in enumerate(frames, first):
        paths.append(folder / f"frame_{number:05d}.png")
        save_image(paths[-1], frame)
    return paths
