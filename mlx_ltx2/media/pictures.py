"""Picture files -> upright 8-bit sRGB as a viewer shows it, and in words what was done on the way."""

from __future__ import annotations

import io
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image, ImageCms, ImageOps, UnidentifiedImageError

from mlx_ltx2.errors import MediaError
from mlx_ltx2.media.files import reading
from mlx_ltx2.media.levels import NUMBER_MODES, eight_bit, unreadable_layout
from mlx_ltx2.media.picture_tags import display_notes, hdr_note, refused_kind

FORMATS = (
    "PNG", "JPEG", "WEBP", "GIF", "AVIF", "HEIF", "TIFF", "BMP", "PPM", "JPEG2000", "QOI", "TGA",
)  # fmt: skip
"""What Pillow may open, by content: formats that hold their own pixels. It reads others too, some of which start a
program (EPS) or draw with the system's (WMF). HEIF is there where a plug-in of Pillow brings it. TGA has no mark of its
own and is asked last."""

MAX_PIXELS = 178_000_000
"""Two billion bytes while a picture is converted; Pillow's own limit lies just above."""
MAX_SIDE = 65_535
"""The longest side of a JPEG."""

GROUND = (128, 128, 128)
"""What shows through transparent parts: on middle grey neither a white nor a black drawing is lost."""


@dataclass(frozen=True)
class Picture:
    """pixels: uint8 (H, W, 3) sRGB. notes: what a viewer would not show in the same way, one sentence each."""

    pixels: np.ndarray
    notes: tuple[str, ...] = ()


@contextmanager
def open_picture(path: str | os.PathLike[str]) -> Iterator[Image.Image]:
    """A picture whose header was read and whose size is bounded; no pixel is decoded yet.

    Raises: MediaError for a file that is missing, damaged, too large or not one of FORMATS, whatever its name says;
    failures inside the block become one too.
    """
    Image.init()
    formats = [name for name in FORMATS if name in Image.OPEN]
    with reading(path, "image"):
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # we have a limit of our own
                opened = Image.open(path, formats=formats)
        except Image.DecompressionBombError as error:
            raise MediaError(f"{path} has too many pixels to be opened safely ({error}); shrink it first.") from error
        except UnidentifiedImageError as error:
            raise MediaError(_unknown(path)) from error
        with opened:
            _check_size(path, *opened.size)
            yield opened


def read_picture(path: str | os.PathLike[str]) -> Picture:
    """Read a picture the way a viewer shows it, of an animation or of several pages the first.

    Orientation (mirrored ones too), colour profile and PNG gamma are applied. Transparent parts are put on grey.
    Numbers of 16 or 32 bits and floats become 8 bits, see `levels.eight_bit`.
    Raises: MediaError.
    Source: ltx-pipelines 1.2.0, media_io/decode.py, `decode_image`, which drops alpha and ignores mirroring.
    """
    with open_picture(path) as opened:
        misread = unreadable_layout(opened)
        if misread:
            raise MediaError(f"{path} cannot be read as an image: {misread}; save it as PNG or as an ordinary TIFF.")
        notes = [*_pages(opened), *display_notes(opened), *hdr_note(path, opened.format or "")]
        sixteen = opened.mode == "RGB" and ";16" in str(getattr(opened, "tile", ()))
        opened.load()
        upright = ImageOps.exif_transpose(opened)
        if sixteen and "transparency" in upright.info:  # the file's number has 16 bits, the pixels are 8 by now
            upright.info["transparency"] = tuple(v >> 8 for v in upright.info["transparency"])
        colours, alpha = _parted(upright, opened, notes)
        rgb = _with_gamma(_to_srgb(colours, upright.info.get("icc_profile"), notes), upright.info, notes)
        if alpha is not None and np.asarray(alpha).min() < 255:
            rgb = Image.composite(rgb, Image.new("RGB", rgb.size, GROUND), alpha)
            notes.append("transparent parts were put on grey")
        return Picture(np.array(rgb, dtype=np.uint8), tuple(f"{os.fspath(path)}: {note}." for note in notes))


def _unknown(path: str | os.PathLike[str]) -> str:
    with open(path, "rb") as file:
        kind = refused_kind(file.read(512))
    if kind:
        return f"{path} cannot be read as an image: by its content it is {kind}; save it as PNG or JPEG."
    return f"{path} cannot be read as an image; it is damaged, or of a kind that is not supported: save it as PNG."


def _check_size(path: str | os.PathLike[str], width: int, height: int) -> None:
    if max(width, height) > MAX_SIDE or width * height > MAX_PIXELS:
        raise MediaError(
            f"{path} has too many pixels to be opened safely ({width}x{height}; at most {MAX_SIDE:,} a side and "
            f"{MAX_PIXELS / 1e6:.0f} million in all are read); shrink it first."
        )


def _pages(image: Image.Image) -> list[str]:
    try:
        count = getattr(image, "n_frames", 1)
    except (OSError, EOFError, SyntaxError, ValueError):
        return ["only its first frame can be read, what follows is damaged"]
    if count < 2:
        return []
    what = {"TIFF": "pages", "MPO": "pictures (a gain map or a depth map may be among them)"}
    return [f"the first of {count} {what.get(image.format or '', 'frames')} is used"]


def _parted(image: Image.Image, opened: Image.Image, notes: list[str]) -> tuple[Image.Image, Image.Image | None]:
    """Colours of 8 bits without alpha, and alpha (mode L) where there is one."""
    if image.mode in NUMBER_MODES or _is_signed_byte(opened):
        clear = image.info.get("transparency")
        alpha = None if clear is None else Image.fromarray(np.where(np.asarray(image) == clear, 0, 255).astype("u1"))
        pixels, said = eight_bit(np.asarray(image), opened)
        notes += said
        grey = Image.fromarray(pixels)
        return grey, alpha
    if image.mode in ("LA", "La") or (image.mode in ("1", "L") and "transparency" in image.info):
        both = image.convert("LA")
        return both.getchannel("L"), both.getchannel("A")
    if image.mode in ("RGBA", "RGBa", "PA") or (image.mode in ("P", "RGB") and "transparency" in image.info):
        both = image.convert("RGBA")
        return both.convert("RGB"), both.getchannel("A")
    if image.mode in ("P", "RGBX"):
        return image.convert("RGB"), None
    if image.mode == "CMYK" and "icc_profile" not in image.info:
        notes.append("CMYK without a colour profile was read by the plain formula, print colours look different")
    return (image.convert("L") if image.mode == "1" else image), None


def _is_signed_byte(opened: Any) -> bool:
    return bool(opened.format == "TIFF" and opened.mode == "L" and opened.tag_v2.get(339, (1,))[0] == 2)


def _to_srgb(image: Image.Image, profile: bytes | None, notes: list[str]) -> Image.Image:
    if profile:
        try:
            source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
            name = ImageCms.getProfileDescription(source).strip() or "a profile without a name"
            converted = ImageCms.profileToProfile(image, source, ImageCms.createProfile("sRGB"), outputMode="RGB")
        except (ImageCms.PyCMSError, OSError, ValueError) as error:
            # A broken profile, or one for another kind of pixels, says nothing about these pixels.
            notes.append(f"its colour profile cannot be used ({error}), it was read as sRGB")
            return image.convert("RGB")
        if converted is not None:
            if "srgb" not in name.lower():
                notes.append(f"its colours were converted from {name} to sRGB")
            return converted
    return image.convert("RGB")


def _with_gamma(image: Image.Image, info: dict[Any, Any], notes: list[str]) -> Image.Image:
    """PNG's gamma chunk, which counts where neither a profile nor sRGB is named (PNG specification, 3rd ed., 4.3)."""
    gamma = info.get("gamma")
    if not gamma or "icc_profile" in info or "srgb" in info or abs(gamma * 2.2 - 1) < 0.05:
        return image
    notes.append(f"its gamma of {gamma:g} was converted to sRGB's")
    curve = np.rint(255 * (np.arange(256) / 255) ** (1 / (gamma * 2.2))).astype(int).tolist()
    return image.point(curve * 3)
