"""The one place where a media file is opened for reading: by its content, as a file, and nothing else with it.

FFmpeg opens what a name or a file's content tells it to: play-lists and `concat` scripts read other files, a colon in a
name starts a protocol, `%d` a series of pictures, a pipe waits for ever. Here a path is a regular file and nothing
more; its kind comes from its content, out of a list, and nothing that it refers to is followed.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from fractions import Fraction
from typing import Any

import av
from av.stream import Disposition

from mlx_ltx2.errors import MediaError
from mlx_ltx2.media.files import reading

_FORMATS = (
    "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,avi,mpegts,mpeg,mpegvideo,m4v,mjpeg,flv,asf,ogg,mxf,dv,nut,ivf,h264,hevc,"
    "obu,yuv4mpegpipe,gif,apng,webp,wav,w64,aiff,au,caf,flac,mp3,aac,ac3,eac3,dts,amr,wv,tta,ape,mpc,mpc8,tak,dsf,voc,"
    "truehd,loas"
)
"""Containers and raw streams that hold their own pictures and sounds. Play-lists, scripts and devices are not here."""

_OPTIONS = {"format_whitelist": _FORMATS, "protocol_whitelist": "file"}
"""For the container alone: given to streams as well, PyAV 17.0 crashes where streams turn up late, as in MPEG-PS."""


@contextmanager
def opened(path: str | os.PathLike[str], what: str) -> Iterator[Any]:
    """An `av` container that is open for reading, closed at the end.

    what: the noun of messages, "video" or "audio". Every failure to open or decode inside the block becomes a
    MediaError that names the file and the reason.
    """
    with reading(path, what), av.open(file_url(path), container_options=_OPTIONS) as container:
        yield container


def open_media(path: str | os.PathLike[str], what: str) -> Any:
    """The same container for a caller that closes it and names later failures itself, since it writes meanwhile."""
    with reading(path, what):
        return av.open(file_url(path), container_options=_OPTIONS)


def file_url(path: str | os.PathLike[str]) -> str:
    """A path as FFmpeg takes it for a file and nothing else, whatever colons, percent signs or dashes it has."""
    return f"file:{os.fspath(path)}"


def shown_stream(container: Any, path: str | os.PathLike[str]) -> Any:
    """The video stream that players show: the default one, cover pictures left out.

    Raises: MediaError if there is none.
    """
    streams = [s for s in container.streams.video if not has_disposition(s, "attached_pic")]
    if not streams:
        raise MediaError(f"{path} has no video stream; give a video file.")
    return next((s for s in streams if has_disposition(s, "default")), streams[0])


def shown_frames(container: Any, stream: Any) -> Iterator[Any]:
    """Decoded frames of a video stream in the order in which they are shown.

    What an edit list hides FFmpeg leaves out; what comes before the first picture that can be decoded whole, at the cut
    of a broadcast, is left out here, as players do.
    """
    stream.thread_type = "AUTO"
    whole = False
    for frame in container.decode(stream):
        whole = whole or not frame.is_corrupt
        if whole:
            yield frame


def first_picture_seconds(path: str | os.PathLike[str]) -> Fraction | None:
    """When the first shown picture of a file appears, on the clock of its time stamps; None without a video stream.

    This instant is 0 on the one time line that pictures and sound are placed on.
    """
    with opened(path, "audio") as container:
        if all(has_disposition(s, "attached_pic") for s in container.streams.video):
            return None
        first = next(shown_frames(container, shown_stream(container, path)), None)
        if first is None or first.pts is None:
            return Fraction(0)
        return Fraction(first.pts * first.time_base)


def has_disposition(stream: Any, name: str) -> bool:
    """True if a stream carries this flag of FFmpeg's, such as "default" or "attached_pic"."""
    return bool(stream.disposition & Disposition[name])
