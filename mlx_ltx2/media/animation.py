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
_WEBP_ANIMATION, _WEBP_EXIF = 0x02, 0x08


class _Clock:
    """Decides which frames an animation shows, and for how many whole ticks each.

    least: fewest ticks for a frame; players show shorter ones for a tenth of a second. Frames that come sooner are left
    out, so that the clip lasts as long as it should. Rounding never adds up over the clip.
    """

    def __init__(self, fps: Fraction, per_second: int, least: int) -> None:
        self._ticks_per_frame = per_second / fps
        self._least = least
        self._count = self._shown = 0
        self._since = 0

    def next_is_shown(self) -> bool:
        """Whether the next frame is shown; if it is, the one before ends with it."""
        start = self._start(self._count)
        self._count += 1
        if self._shown and start - self._since < self._least:
            return False
        self._shown += 1
        self._since = start
        return True

    def until_next(self) -> int:
        """Ticks from the last shown frame to the frame that comes next."""
        return self._start(self._count) - self._since

    def too_short(self) -> bool:
        """Whether the clip ends too soon after the last shown frame, which has others before it."""
        return self._shown > 1 and self.until_next() < self._least

    def drop_last(self) -> None:
        self._shown -= 1

    def note(self, kind: str, seconds: float) -> str | None:
        """What there is to say about frames that are not shown."""
        left_out = self._count - self._shown
        if not left_out:
            return None
        return (
            f"{left_out} of {self._count} frames were left out, since players slow {kind} pictures down that last less "
            f"than {seconds:g} s; the clip keeps its length."
        )

    def _start(self, frame: int) -> int:
        return round(frame * self._ticks_per_frame)


class GifSink:
    """Animated GIF, 256 colours chosen per frame and dithered; one byte per pixel is held until the end.

    Delays are whole hundredths of a second, and browsers show one of less than 0.02 s for 0.1 s.
    """

    def __init__(self, partial: Path, fps: Fraction, metadata: Mapping[str, str], notes: list[str]) -> None:
        self._partial, self._comment, self._notes = partial, pack(metadata), notes
        self._clock = _Clock(fps, 100, 2)
        self._images: list[Image.Image] = []
        self._durations: list[int] = []

    def add(self, frame: np.ndarray) -> None:
        before = self._clock.until_next()
        if not self._clock.next_is_shown():
            return
        if self._images:
            self._durations.append(before)
        image = Image.fromarray(frame)
        palette = image.quantize(256, method=Image.Quantize.FASTOCTREE)
        self._images.append(image.quantize(palette=palette, dither=Image.Dither.FLOYDSTEINBERG))

    def finish(self, audio: Waveform | None) -> None:
        last = self._clock.until_next()
        if self._clock.too_short():
            self._clock.drop_last()
            self._images.pop()
            last += self._durations.pop()
        self._notes += filter(None, [self._clock.note("GIF", 0.02)])
        first, *rest = self._images
        first.save(
            self._partial,
            "GIF",
            save_all=True,
            append_images=rest,
            duration=[10 * ticks for ticks in (*self._durations, max(1, last))],
            loop=0,
            disposal=1,
            comment=self._comment.encode("ascii"),
        )
        self._images = []

    def abort(self) -> None:
        self._images = []


class WebpSink:
    """Animated WebP: every frame a lossy key frame, appended to the file once its end is known (WebP container spec).

    Delays are milliseconds, and browsers show one of 0.01 s or less for 0.1 s.
    """

    def __init__(
        self, partial: Path, height: int, width: int, fps: Fraction, metadata: Mapping[str, str], notes: list[str]
    ) -> None:
        if max(height, width) > _WEBP_SIDE:
            raise RequestError(f"WebP sides are at most {_WEBP_SIDE} pixels, not {width}x{height}; use .mp4.")
        self._clock, self._notes = _Clock(fps, 1000, 11), notes
        self._waiting: list[tuple[bytes, int]] = []  # the last two pictures, and how long the first of them lasts
        self._exif = exif_bytes(metadata).removeprefix(b"Exif\0\0")
        self._canvas = _uint24(width - 1) + _uint24(height - 1)
        self._file: BinaryIO = open(partial, "wb")  # noqa: SIM115 - closed by finish or abort
        self._file.write(b"RIFF\0\0\0\0WEBP")
        self._chunk(b"VP8X", bytes([_WEBP_ANIMATION | _WEBP_EXIF, 0, 0, 0]) + self._canvas)
        self._chunk(b"ANIM", struct.pack("<IH", 0, 0))

    def add(self, frame: np.ndarray) -> None:
        before = self._clock.until_next()
        if not self._clock.next_is_shown():
            return
        if self._waiting:
            self._waiting[-1] = (self._waiting[-1][0], before)
        if len(self._waiting) > 1:
            self._picture(*self._waiting.pop(0))
        encoded = io.BytesIO()
        Image.fromarray(frame).save(encoded, "WEBP", quality=_WEBP_QUALITY, method=4)
        still = encoded.getvalue()[12:]  # after RIFF, size and WEBP comes the picture's own chunk
        self._waiting.append((still, 0))

    def finish(self, audio: Waveform | None) -> None:
        last = self._clock.until_next()
        if self._clock.too_short():
            self._clock.drop_last()
            self._waiting.pop()
            last += self._waiting[-1][1]
        self._waiting[-1] = (self._waiting[-1][0], last)
        for still, ticks in self._waiting:
            self._picture(still, ticks)
        self._notes += filter(None, [self._clock.note("WebP", 0.011)])
        self._chunk(b"EXIF", self._exif)
        size = self._file.tell() - 8
        self._file.seek(4)
        self._file.write(struct.pack("<I", size))
        self._file.close()

    def abort(self) -> None:
        # The file is thrown away: a last flush onto a full disk may fail.
        with suppress(OSError):
            self._file.close()

    def _picture(self, still: bytes, ticks: int) -> None:
        replace_canvas = 0x02
        header = bytes(6) + self._canvas + _uint24(max(1, ticks)) + bytes([replace_canvas])
        self._chunk(b"ANMF", header + still)

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
        image.save(path, "PNG", **arguments)
    elif suffix in (".jpg", ".jpeg"):
        image.save(path, "JPEG", quality=_JPEG_QUALITY, subsampling=0, **arguments)
    else:
        image.save(path, "WEBP", lossless=True)


def _uint24(value: int) -> bytes:
    return value.to_bytes(3, "little")
