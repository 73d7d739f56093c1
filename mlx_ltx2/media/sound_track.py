"""Which sound track of a file is read, and what the file says about it."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any

from mlx_ltx2.errors import MediaError, RequestError
from mlx_ltx2.media.channels import check_layout
from mlx_ltx2.media.opening import has_disposition, opened

_SECOND_CHOICE = ("comment", "visual_impaired", "hearing_impaired", "karaoke", "descriptions")
_SAID = {"comment": "commentary", "visual_impaired": "audio description", "descriptions": "audio description"}


@dataclass(frozen=True)
class SoundInfo:
    """What the header of a file says about the sound track that is read.

    track: its number, 1 is the first, among `tracks`. layout: of its channels, as FFmpeg spells it ("stereo", "5.1").
    notes: in words, which track it is where there are several and none was asked for.
    """

    track: int
    tracks: int
    rate_hz: int
    layout: str
    notes: tuple[str, ...] = ()


def probe_sound(path: str | os.PathLike[str], track: int | None = None) -> SoundInfo:
    """The sound track that reading takes, from the header alone.

    track: 1 for the first; None for the default one, as players choose it, or else the first that is no commentary.
    Raises: RequestError for a track that is not there, MediaError for a file without sound, or with sound that cannot
    be decoded, or whose channels do not say where they belong.
    """
    with opened(path, "audio") as container:
        stream, notes = chosen_track(container, path, track)
        layout = stream.codec_context.layout.name
        check_layout(layout, path)
        number = container.streams.audio.index(stream) + 1
        return SoundInfo(number, len(container.streams.audio), stream.rate, layout, notes)


def chosen_track(container: Any, path: str | os.PathLike[str], track: int | None) -> tuple[Any, tuple[str, ...]]:
    """The stream of an open file that `probe_sound` describes, and what is to be said about the choice.

    Raises: as `probe_sound`.
    """
    streams = list(container.streams.audio)
    if not streams:
        raise MediaError(f"{path} has no sound track; give a sound file or a video with sound.")
    if track is not None:
        if not isinstance(track, int) or isinstance(track, bool) or not 1 <= track <= len(streams):
            have = "one sound track" if len(streams) == 1 else f"{len(streams)} sound tracks"
            raise RequestError(f"audio track {track!r} is asked for, and {path} has {have}; 1 is the first.")
        if not _decodable(streams[track - 1]):
            raise MediaError(f"sound track {track} of {path} is of a kind that cannot be decoded; choose another.")
        return streams[track - 1], ()
    usable = [stream for stream in streams if _decodable(stream)]
    if not usable:
        raise MediaError(f"the sound of {path} is of a kind that cannot be decoded; convert it first.")
    chosen = next((s for s in usable if has_disposition(s, "default")), None)
    if chosen is None:
        chosen = next((s for s in usable if not any(has_disposition(s, name) for name in _SECOND_CHOICE)), usable[0])
    if len(streams) == 1:
        return chosen, ()
    number = streams.index(chosen) + 1
    lost = [str(n) for n, s in enumerate(streams, 1) if not _decodable(s)]
    unread = f"; {' and '.join(lost)} cannot be decoded" if lost else ""
    return chosen, (
        f"{path}: sound track {number} of {len(streams)}{_described(chosen)} is read{unread}; "
        "--audio-track N takes another",
    )


def _decodable(stream: Any) -> bool:
    return stream.codec_context is not None and bool(stream.rate)


def _described(stream: Any) -> str:
    """Language, title and role in brackets, where the file has them."""
    title = stream.metadata.get("title")
    words = [stream.metadata.get("language"), title]
    words += [said for name, said in _SAID.items() if has_disposition(stream, name) and said != title]
    words = [word for word in dict.fromkeys(words) if word and word != "und"]
    return f" ({', '.join(words)})" if words else ""
