"""Text that travels inside a media file: one JSON object in the comment of whatever container there is."""

from __future__ import annotations

import json
import os
import stat
import warnings
from collections.abc import Mapping
from pathlib import Path

from PIL import ExifTags, Image, PngImagePlugin, UnidentifiedImageError

from mlx_ltx2.errors import MediaError, RequestError
from mlx_ltx2.media.files import ANIMATION_SUFFIXES, STILL_SUFFIXES, reading
from mlx_ltx2.media.opening import opened
from mlx_ltx2.media.pictures import open_picture

_KEY = "mlx_ltx2"
_JPEG_COMMENT_BYTES = 65533
NATIVE_TAGS = ("title", "artist", "description", "copyright")
"""Entries that are also written as the container's own tags, where players show them."""


def pack(metadata: Mapping[str, str] | None) -> str:
    """The comment text of a mapping: ASCII JSON, in the given order.

    It is there for no metadata too, since it is also the mark by which this program knows its own files again.
    """
    entries = dict(metadata or {})
    for key, value in entries.items():
        if not isinstance(key, str) or not isinstance(value, str):
            raise TypeError(f"metadata maps text to text; {key!r} maps to {type(value).__name__}.")
    return json.dumps({_KEY: entries}, ensure_ascii=True, separators=(",", ":"))


def unpack(comment: str) -> dict[str, str] | None:
    """The mapping that `pack` wrote, or None for a comment that this program did not write."""
    try:
        parsed = json.loads(comment)
    except ValueError:
        return None
    entries = parsed.get(_KEY) if isinstance(parsed, dict) else None
    return {str(k): str(v) for k, v in entries.items()} if isinstance(entries, dict) else None


def container_tags(metadata: Mapping[str, str] | None) -> dict[str, str]:
    """Tags for an MP4 or MOV: the comment, and the native ones among the entries."""
    return {"comment": pack(metadata)} | {k: v for k, v in (metadata or {}).items() if k in NATIVE_TAGS}


def exif_bytes(metadata: Mapping[str, str] | None) -> bytes:
    """An EXIF block whose ImageDescription is the comment."""
    exif = Image.Exif()
    exif[ExifTags.Base.ImageDescription] = pack(metadata)
    return exif.tobytes()


def still_arguments(suffix: str, metadata: Mapping[str, str] | None) -> dict[str, object]:
    """Arguments of PIL's `save` that put the metadata into a PNG or a JPEG; none for other suffixes.

    Raises RequestError when a JPEG cannot hold that much text.
    """
    comment = pack(metadata)
    if suffix not in STILL_SUFFIXES:
        return {}
    if suffix == ".png":
        info = PngImagePlugin.PngInfo()
        info.add_itxt("comment", comment)
        return {"pnginfo": info}
    if len(comment) > _JPEG_COMMENT_BYTES:
        raise RequestError(
            f"metadata of {len(comment)} bytes does not fit a JPEG (at most {_JPEG_COMMENT_BYTES}); use .png."
        )
    return {"comment": comment.encode("ascii")}


def read_metadata(path: str | os.PathLike[str]) -> dict[str, str]:
    """What this program wrote into an mp4, mov, gif, webp, png, jpg or wav; of other files the text tags.

    Raises MediaError if the file cannot be read.
    """
    if Path(path).suffix.lower() in STILL_SUFFIXES + ANIMATION_SUFFIXES:
        tags = _image_tags(path)
    else:
        with opened(path, "media file") as container:
            tags = {str(k).lower(): str(v) for k, v in container.metadata.items()}
    ours = unpack(tags.get("comment", ""))
    return tags if ours is None else ours


def _image_tags(path: str | os.PathLike[str]) -> dict[str, str]:
    with open_picture(path) as image:
        tags = {k: v for k, v in getattr(image, "text", {}).items() if isinstance(v, str)}
        comment = image.info.get("comment", image.getexif().get(ExifTags.Base.ImageDescription))
        if isinstance(comment, bytes):
            comment = comment.decode("utf-8", "replace")
        if comment:
            tags["comment"] = str(comment)
        return tags


_STILLS = ("PNG", "JPEG", "GIF", "WEBP")
_STRANGERS = ("encoder", "encoded_by")
"""Tags that other programs put in when they write a file anew, though they keep its comment; this one writes none."""


def made_here(path: str | os.PathLike[str]) -> bool:
    """Whether this program wrote a media file and no other did since: its comment says so.

    Reads headers alone, whatever the file's size, and opens regular files only. False for all that is damaged, unknown
    or of other programs.
    """
    try:
        if not stat.S_ISREG(os.stat(path).st_mode):
            return False
        tags = _still_comment(path)
        if tags is None:
            with opened(path, "media file") as container:
                tags = {str(k).lower(): str(v) for k, v in container.metadata.items()}
    except (OSError, MediaError):
        return False
    return unpack(tags.get("comment", "")) is not None and not any(name in tags for name in _STRANGERS)


def _still_comment(path: str | os.PathLike[str]) -> dict[str, str] | None:
    """The comment of a picture, from what lies before its pixels; None if the file is no picture."""
    with reading(path, "image"), warnings.catch_warnings():
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # no pixel is decoded
        try:
            with Image.open(path, formats=_STILLS) as image:
                comment = image.info.get("comment") or image.getexif().get(ExifTags.Base.ImageDescription)
        except UnidentifiedImageError:
            return None
        except Image.DecompressionBombError as error:
            raise MediaError(f"{path} is no picture of this program; it is too large.") from error
    text = comment.decode("utf-8", "replace") if isinstance(comment, bytes) else str(comment or "")
    return {"comment": text}
