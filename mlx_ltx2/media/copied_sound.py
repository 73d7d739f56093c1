"""A sound track copied packet by packet beside new pictures, with the offset that it had beside the old ones."""

from __future__ import annotations

import heapq
import os
from collections.abc import Iterable
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np

from mlx_ltx2.errors import MediaError
from mlx_ltx2.media.files import reading
from mlx_ltx2.media.opening import first_picture_seconds, open_media, opened
from mlx_ltx2.media.outputs import replacing
from mlx_ltx2.media.sound_track import chosen_track
from mlx_ltx2.media.track_reader import TrackReader

_PREROLL = Fraction(1, 10)
"""Seconds of packets that are kept before the first picture: a decoder needs some to be right when it is heard."""

_SYNC_SECONDS = 0.003
"""How far copied sound may lie from its place: containers round to a millisecond."""

_COMPARED_SECONDS = 3.0


def remux_audio(
    video_path: str | os.PathLike[str],
    audio_source: str | os.PathLike[str],
    output: str | os.PathLike[str],
    *,
    track: int | None = None,
) -> None:
    """Join the pictures of one file and the sound track of another, both untouched, packet by packet.

    The sound lies beside the first shown picture as it does in its own file; what sounds before that picture is hidden
    by an edit list, and a file of sound alone starts with the picture. It is not cut at its end. output: .mp4 or .mov;
    may be `video_path` itself. Metadata is that of `video_path`. track: as for `read_audio`.
    Raises MediaError if a stream is missing, or the container cannot hold the sound's codec or its place in time, which
    is found out by reading both.
    """
    with replacing(output) as partial:
        _join(video_path, audio_source, partial, track)
        if not _agree(_beginning(audio_source, track), _beginning(partial, None)):
            raise MediaError(f"{partial.suffix} files do not keep its place beside the picture.")


def _join(
    video_path: str | os.PathLike[str], audio_source: str | os.PathLike[str], partial: Path, track: int | None
) -> None:
    zero, own_zero = first_picture_seconds(video_path) or Fraction(0), _zero(audio_source, track)
    with open_media(video_path, "video") as pictures, open_media(audio_source, "audio") as sounds:
        if not pictures.streams.video:
            raise MediaError(f"{video_path} has no video stream.")
        video, (sound, _) = pictures.streams.video[0], chosen_track(sounds, audio_source, track)
        # Where the sound begins is stored in units of the movie's clock.
        options = {"movflags": "+faststart", "fflags": "+bitexact", "movie_timescale": "90000"}
        with av.open(os.fspath(partial), "w", format=partial.suffix.lower()[1:], options=options) as target:
            target.metadata.update({k: v for k, v in pictures.metadata.items() if k in ("comment", "title")})
            copies = [_added(target, stream, partial) for stream in (video, sound)]
            moved = round((own_zero - zero) / sound.time_base)
            earliest = round((zero - _PREROLL) / sound.time_base)
            heard = (
                packet
                for packet in packets_for(sounds, sound, copies[1], moved)
                if packet.pts is None or packet.pts + (packet.duration or 0) > earliest
            )
            queues = (packets_for(pictures, video, copies[0]), heard)
            for packet in heapq.merge(*queues, key=lambda p: float(p.dts * p.time_base)):
                target.mux(packet)


def _added(target: Any, stream: Any, partial: Path) -> Any:
    try:
        return target.add_stream_from_template(stream)
    except ValueError as error:
        name = stream.codec_context.name
        raise MediaError(f"{partial.suffix} files cannot hold {name} ({error}).") from error


def packets_for(source: Any, stream: Any, copy: Any, start: int = 0) -> Iterable[Any]:
    """The packets of an open file's stream for a copy of it. start: time stamp that becomes 0."""
    with reading(source.name.removeprefix("file:"), stream.type):
        for packet in source.demux(stream):
            if packet.dts is not None:
                packet.stream = copy
                packet.dts -= start
                packet.pts = None if packet.pts is None else packet.pts - start
                yield packet


def _zero(path: str | os.PathLike[str], track: int | None) -> Fraction:
    """The instant of a file's clock that belongs to the first picture."""
    picture = first_picture_seconds(path)
    if picture is not None:
        return picture
    with opened(path, "audio") as container:
        stream, _ = chosen_track(container, path, track)
        first = next(container.decode(stream), None)
        return Fraction(0) if first is None or first.pts is None else Fraction(first.pts * first.time_base)


def _beginning(path: str | os.PathLike[str], track: int | None) -> tuple[np.ndarray, int]:
    """The first seconds of sound beside the picture, its loudest channel, and their rate."""
    with opened(path, "audio") as container:
        stream, _ = chosen_track(container, path, track)
        reader = TrackReader(path, container, stream, first_picture_seconds(path), mixed=False)
        samples = reader.window(0.0, _COMPARED_SECONDS)
    return samples[:, np.square(samples).sum(axis=0).argmax()], reader.rate_hz


def _agree(source: tuple[np.ndarray, int], copy: tuple[np.ndarray, int]) -> bool:
    """True unless the copy is the same sound at another time."""
    (own, rate_hz), (other, other_hz) = source, copy
    if not len(own) or not len(other) or rate_hz != other_hz:
        return len(own) == len(other)
    likeness = np.fft.irfft(np.fft.rfft(own, 2 * len(own)) * np.fft.rfft(other, 2 * len(own)).conj())
    near = round(_SYNC_SECONDS * rate_hz)
    best = max(likeness[: near + 1].max(), likeness[-near:].max())
    return bool(best >= 0.999 * likeness.max())
