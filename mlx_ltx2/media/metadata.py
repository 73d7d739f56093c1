"""Text that travels inside a media file: one JSON object in the comment of whatever container there is."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path

from PIL import ExifTags, Image, PngImagePlugin

from mlx_ltx2.errors import RequestError
from mlx_ltx2.media.files import ANIMATION_SUFFIXES, STILL_SUFFIXES
from mlx_ltx2.media.opening import opened
from mlx_ltx2.media.pictures import open_picture

_KEY = "mlx_ltx2"
_JPEG_COMMENT_BYTES = 65533
NATIVE_TAGS = ("title", "artist", "description", "copyright")
"""Entries that are also written as the container's own tags, where players show them."""


def pack(metadata: Mapping[str, str] | None) -> str:
    """The comment text of a mapping: ASCII JSON, in the given order; empty for no metadata."""
    if not metadata:
        return ""
    for key, value in metadata.items():
        if not isinstance(key, str) or not isinstance(value, str):
            raise TypeError(f"metadata maps text to text; {key!r} maps to {type(value).__name__}.")
    return json.dumps({_KEY: dict(metadata)}, ensure_ascii=True, separators=(",", ":"))


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
    if not metadata:
        return {}
    return {"comment": pack(metadata)} | {k: v for k, v in metadata.items() if k in NATIVE_TAGS}


def exif_bytes(metadata: Mapping[str, str] | None) -> bytes:
    """An EXIF block whose ImageDescription is the comment; empty for no metadata."""
    if not metadata:
        return b""
    exif = Image.Exif()
    exif[ExifTags.Base.ImageDescription] = pack(metadata)
    return exif.tobytes()


def still_arguments(suffix: str, metadata: Mapping[str, str] | None) -> dict[str, object]:
    """Arguments of PIL's `save` that put the metadata into a PNG or a JPEG; none for other suffixes.

    Raises RequestError when a JPEG cannot hold that much text.
    """
    comment = pack(metadata)
    if not comment:
        return {}
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
