"""What picture files say beside their pixels: kinds that are not read, the shape of pixels, HDR colours."""

from __future__ import annotations

import os
import struct
from typing import Any

_REFUSED = (
    (b"%!PS", "PostScript, which would have to be run as a program"),
    (b"\xc5\xd0\xd3\xc6", "PostScript, which would have to be run as a program"),
    (b"%PDF", "a PDF"),
    (b"\xd7\xcd\xc6\x9a", "a Windows metafile, a list of drawing commands"),
    (b"\x01\0\0\0\x6c\0\0\0", "a Windows metafile, a list of drawing commands"),
    (b"SIMPLE  =", "a FITS file"),
    (b"8BPS", "a Photoshop document"),
    (b"gimp xcf", "a GIMP document"),
    (b"v/1\x01", "OpenEXR"),
    (b"#?RADIANCE", "Radiance HDR"),
    (b"\xff\x0a", "JPEG XL"),
    (b"\0\0\0\x0cJXL ", "JPEG XL"),
    (b"II*\0", "a TIFF of a kind that cannot be read (floats in colour, 64 bits, or damaged)"),
    (b"MM\0*", "a TIFF of a kind that cannot be read (floats in colour, 64 bits, or damaged)"),
    (b"\x1a\x45\xdf\xa3", "a video"),
    (b"#EXTM3U", "a play-list"),
    (b"ffconcat", "a play-list"),
)
_HEIC = (b"heic", b"heix", b"hevc", b"heim", b"heis", b"mif1", b"msf1")


def refused_kind(head: bytes) -> str | None:
    """What a file is that no picture reader takes, by its first bytes; None if that is not known."""
    for mark, kind in _REFUSED:
        if head.startswith(mark):
            return kind
    if head[4:8] == b"ftyp":
        return "HEIC, for which no reader is installed" if head[8:12] in _HEIC else "a video"
    if head.lstrip().startswith((b"<svg", b"<?xml")):
        return "SVG, a list of drawing commands"
    return None


def display_notes(image: Any) -> list[str]:
    """A sentence if the file says that its pixels are not square. Picture viewers show them square, and so do we."""
    info = image.info
    density = info.get("aspect") or (info.get("jfif_density") if info.get("jfif_unit") == 0 else None)
    try:
        across, down = (float(v) for v in density or info.get("dpi") or (1, 1))
    except (TypeError, ValueError, ZeroDivisionError):
        return []
    if not (across > 0 and down > 0) or abs(down / across - 1) < 0.01:
        return []
    return [f"pixels {down / across:.3g} times as wide as high were read as square, as picture viewers show them"]


_PRIMARIES = {9: "BT.2020", 12: "Display P3", 11: "DCI-P3"}
_TRANSFERS = {16: "PQ", 18: "HLG", 8: "linear light"}


def hdr_note(path: str | os.PathLike[str], kind: str) -> list[str]:
    """A sentence if a PNG, AVIF or HEIF names colours by number (ITU-T H.273) that are not those of sRGB."""
    with open(path, "rb") as file:
        head = file.read(1 << 16)
    codes = _png_codes(head) if kind == "PNG" else _nclx_codes(head) if kind in ("AVIF", "HEIF") else None
    if codes is None:
        return []
    named = [table[code] for table, code in zip((_PRIMARIES, _TRANSFERS), codes, strict=True) if code in table]
    if not named:
        return []
    return [f"its colours are tagged as {', '.join(named)}; they are not converted, but read as sRGB"]


def _png_codes(head: bytes) -> tuple[int, int] | None:
    """Primaries and transfer of the cICP chunk (PNG specification, 3rd ed., 11.3.2.6)."""
    at = 8
    while at + 12 <= len(head):
        length, name = struct.unpack(">I4s", head[at : at + 8])
        if name == b"cICP" and length == 4:
            return head[at + 8], head[at + 9]
        if name == b"IDAT":
            return None
        at += 12 + length
    return None


def _nclx_codes(head: bytes) -> tuple[int, int] | None:
    """Primaries and transfer of the first colour box (ISO/IEC 14496-12, 12.1.5)."""
    at = head.find(b"colrnclx")
    return None if at < 0 or at + 12 > len(head) else struct.unpack(">HH", head[at + 8 : at + 12])
