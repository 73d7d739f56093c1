"""Files without sound: animated GIF and WebP, and single pictures. Each frame is compressed as it comes."""

from __future__ import annotations

import io
import struct
from collections.abc import Mapping
from contextlib import suppress
from fractions import Fraction
from pathlib import Path
from typing import BinaryIO

import numpy as np
from PIL import Image

from mlx_ltx2.errors import RequestError
from mlx_ltx2.media.metadata import exif_bytes, pack, still_arguments
from mlx_ltx2.states import Waveform

_WEBP_QUALITY = 90
_JPEG_QUALITY = 95
_WEBP_SIDE = 16383


def _ticks(frame: int, fps: Fraction, per_second: int) -> int:
    """Length of one frame in whole ticks, such that rounding never adds up over the clip."""
    return round((frame + 1) * per_second / fps) - round(frame * per_second / fps)


class GifSink:
    """Animated GIF, 256 colours chosen per frame and dithered; one byte per pixel is held until the end."""

    def __init__(self, partial: Path, fps: Fraction, metadata: Mapping[str, str]) -> None:
        self._partial, self._fps, self._comment = partial, fps, pack(metadata)
        self._images: list[Image.Image] = []

    def add(self, frame: np.ndarray) -> None:
        image = Image.fromarray(frame)
        palette = image.quantize(256, method=Image.Quantize.FASTOCTREE)
        self._images.append(image.quantize(palette=palette, dither=Image.Dither.FLOYDSTEINBERG))

    def finish(self, audio: Waveform | None) -> None:
        durations = [10 * _ticks(i, self._fps, 100) for i in range(len(self._images))]
        extra = {"comment": self._comment.encode("ascii")} if self._comment else {}
        first, *rest = self._images
        first.save(
            self._partial,
            "GIF",
            save_all=True,
            append_images=rest,
            duration=durations,
            loop=0,
            disposal=1,
            **extra,
        )
        self._images = []

    def abort(self) -> None:
        self._images = []


class WebpSink:
    """Animated WebP: every frame a lossy key frame, appended to the file at once (WebP container spec)."""

    def __init__(self, partial: Path, height: int, width: int, fps: Fraction, metadata: Mapping[str, str]) -> None:
        if max(height, width) > _WEBP_SIDE:
            raise RequestError(f"WebP sides are at most {_WEBP_SIDE} pixels, not {width}x{height}; use .mp4.")
        self._fps, self._frames = fps, 0
        self._exif = exif_bytes(metadata).removeprefix(b"Exif\0\0")
        self._canvas = _uint24(width - 1) + _uint24(height - 1)
        self._file: BinaryIO = open(partial, "wb")  # noqa: SIM115 - closed by finish or abort
        flags = 0x02 | (0x08 if self._exif else 0)
        self._file.write(b"RIFF\0\0\0\0WEBP")
        self._chunk(b"VP8X", bytes([flags, 0, 0, 0]) + self._canvas)
        self._chunk(b"ANIM", struct.pack("<IH", 0, 0))

    def add(self, frame: np.ndarray) -> None:
        encoded = io.BytesIO()
        Image.fromarray(frame).save(encoded, "WEBP", quality=_WEBP_QUALITY, method=4)
        still = encoded.getvalue()[12:]  # after RIFF, size and WEBP comes the picture's own chunk
        replace_canvas = 0x02
        header = bytes(6) + self._canvas + _uint24(_ticks(self._frames, self._fps, 1000)) + bytes([replace_canvas])
        self._chunk(b"ANMF", header + still)
        self._frames += 1

    def finish(self, audio: Waveform | None) -> None:
        if self._exif:
            self._chunk(b"EXIF", self._exif)
        size = self._file.tell() - 8
        self._file.seek(4)
        self._file.write(struct.pack("<I", size))
        self._file.close()

    def abort(self) -> None:
        # The file is thrown away: a last flush onto a full disk may fail.
        with suppress(OSError):
            self._file.close()

    def _chunk(self, name: bytes, body: bytes) -> None:
        self._file.write(name + struct.pack("<I", len(body)) + body + b"\0" * (len(body) % 2))


class StillSink:
    """One PNG or JPEG; a second frame is refused."""

    def __init__(self, partial: Path, metadata: Mapping[str, str]) -> None:
        self._partial = partial
        self._arguments = still_arguments(partial.suffix.lower(), metadata)
        self._image: Image.Image | None = None

    def add(self, frame: np.ndarray) -> None:
        if self._image is not None:
            raise RequestError(
                f"a {self._partial.suffix} file holds one frame and the clip has more; "
                "use .mp4, .mov, .gif or .webp, or save numbered frames into a folder."
            )
        self._image = Image.fromarray(frame)

    def finish(self, audio: Waveform | None) -> None:
        assert self._image is not None
        write_still(self._image, self._partial, self._arguments)

    def abort(self) -> None:
        self._image = None


def write_still(image: Image.Image, path: Path, arguments: Mapping[str, object]) -> None:
    """Save as PNG, JPEG or WebP by suffix."""
    suffix = path.suffix.lower()
    if suffix == ".png":
        image.save(path, "PNG", **arguments)  # type: ignore[arg-type]
    elif suffix in (".jpg", ".jpeg"):
        image.save(path, "JPEG", quality=_JPEG_QUALITY, subsampling=0, **arguments)  # type: ignore[arg-type]
    else:
        image.save(path, "WEBP", lossless=True)


def _uint24(value: int) -> bytes:
    return value.to_bytes(3, "little")
