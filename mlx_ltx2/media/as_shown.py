"""Decoded pictures -> RGB as a player shows them: square pixels, BT.709 colours, no interlacing, upright.

What a stream says about itself configures a filter graph of FFmpeg's; a picture about which there is nothing to change
takes the direct way, whose pixels are those of the official reader.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import Any

import av
import av.filter
import numpy as np

from mlx_ltx2.errors import MediaError, ResourceError
from mlx_ltx2.media.orientation import Orientation, orientation_of

_MOST_PIXELS = 1 << 27
"""Of one picture: 16384x8192."""

_SAME_SHAPE = 0.02
"""How far aspect ratios may lie apart, relatively, where pictures of two sizes follow one another."""

_GROUND = 128
"""Grey that stands behind transparent pictures."""

# Code points of ITU-T H.273, beside FFmpeg's names of them.
_UNKNOWN = 2
_BT709, _BT2020 = 1, 9
_MATRICES = {1: "bt709", 4: "fcc", 5: "bt470bg", 6: "smpte170m", 7: "smpte240m", 9: "bt2020nc"}
_PRIMARIES = {4: "bt470m", 8: "film", 9: "bt2020", 10: "smpte428", 11: "smpte431", 12: "smpte432", 22: "ebu3213"}
_PRIMARIES_AS_THEY_ARE = (1, 5, 6, 7)
_TRANSFERS = {5: "gamma28", 8: "linear", 9: "log100", 10: "log316", 16: "smpte2084", 17: "smpte428", 18: "arib-std-b67"}
_TRANSFERS_AS_THEY_ARE = (1, 4, 6, 7, 11, 12, 13, 14, 15)
_HDR = {16: "PQ", 18: "HLG"}
_NAMES = {
    "bt470m": "BT.470 M",
    "film": "film",
    "bt2020": "BT.2020",
    "smpte428": "XYZ",
    "smpte431": "DCI-P3",
    "smpte432": "Display P3",
    "ebu3213": "EBU 3213",
}

_WHITE_NITS = 203.0
"""HDR reference white, ITU-R BT.2408."""

_PEAK_NITS = 1000.0
"""The highlight that becomes the brightest SDR white."""

_KNEE = 0.75
"""Share of reference white up to which light stays what it is; above, highlights share what is left."""


@dataclass(frozen=True)
class Colours:
    """How a picture's numbers are meant, by code point, after gaps were filled; and what is to be said about it."""

    matrix: int
    primaries: int
    transfer: int
    full: bool
    notes: tuple[str, ...] = ()

    @property
    def changed(self) -> bool:
        return self.primaries in _PRIMARIES or self.transfer in _TRANSFERS


def colours_of(frame: Any) -> Colours:
    """What a frame's tags say, and what players take for granted where they say nothing.

    Without a name, pictures 1280 wide or more than 576 high are BT.709, smaller ones BT.601 (mpv, VLC).
    Raises: MediaError for a colour matrix that FFmpeg does not convert.
    """
    matrix, primaries, transfer = frame.colorspace, frame.color_primaries, frame.color_trc
    notes = []
    if not _known(primaries, _PRIMARIES, _PRIMARIES_AS_THEY_ARE):
        if primaries not in (0, _UNKNOWN):
            notes.append(f"its colour primaries have the unknown number {primaries}; read as BT.709")
        primaries = _BT2020 if transfer in _HDR or matrix in (9, 10) else _BT709
    if not _known(transfer, _TRANSFERS, _TRANSFERS_AS_THEY_ARE):
        if transfer not in (0, _UNKNOWN):
            notes.append(f"its transfer curve has the unknown number {transfer}; read as BT.709")
        transfer = _BT709
    if frame.format.is_rgb or frame.format.name == "pal8":
        matrix = 0
    elif len(frame.format.components) < 3:  # grey
        matrix = _BT709
    elif matrix == 10:
        matrix = _BT2020
        notes.append("its BT.2020 luminance is constant; read as the usual, non-constant one")
    elif matrix not in _MATRICES:
        matrix, said = _guessed_matrix(frame, matrix, primaries)
        notes += said
    full = frame.color_range == 2 or frame.format.name.startswith("yuvj") or matrix == 0
    colours = Colours(matrix, primaries, transfer, full)
    return replace(colours, notes=(*notes, *_conversions(colours)))


def _known(code: int, *tables: Iterable[int]) -> bool:
    return any(code in table for table in tables)


def _guessed_matrix(frame: Any, matrix: int, primaries: int) -> tuple[int, list[str]]:
    if matrix not in (0, _UNKNOWN, 3):
        raise MediaError(
            f"colour matrix number {matrix} (ITU-T H.273) cannot be converted; write the clip anew in BT.709 or BT.2020"
        )
    if primaries == _BT2020:
        return _BT2020, []
    if frame.color_primaries == _BT709:
        return _BT709, []
    if frame.color_primaries in (5, 6, 7):
        return 5, []
    large = frame.width >= 1280 or frame.height > 576
    name, matrix = ("BT.709", _BT709) if large else ("BT.601", _UNKNOWN)
    return matrix, [f"its colours are not named; read as {name}, as players do at {frame.width}x{frame.height}"]


def _conversions(colours: Colours) -> list[str]:
    named = _NAMES.get(_PRIMARIES.get(colours.primaries, ""), "")
    if colours.transfer in _HDR:
        gamut = f" and its {named} colours mapped" if named else ""
        return [f"its {_HDR[colours.transfer]} was tone-mapped{gamut} to BT.709"]
    found = [f"its {named} colours were mapped to BT.709"] if named else []
    if colours.transfer in _TRANSFERS:
        found.append(f"its transfer curve {_TRANSFERS[colours.transfer]} was converted to BT.709")
    return found


@dataclass(frozen=True)
class Look:
    """How pictures like this one are made to look as shown.

    stored: (width, height) in the stream; size: as shown. aspect: width of a pixel over its height.
    notes: what changes, in words.
    """

    stored: tuple[int, int]
    square: tuple[int, int]
    colours: Colours
    orientation: Orientation
    interlaced: bool
    transparent: bool
    notes: tuple[str, ...]

    @property
    def size(self) -> tuple[int, int]:
        return self.square[::-1] if self.orientation.transposed else self.square

    @property
    def as_is(self) -> bool:
        """Whether the shown picture is the stored one."""
        plain = self.square == self.stored and self.orientation.upright and not self.colours.changed
        return plain and not (self.interlaced or self.transparent)


def look_of(frame: Any, aspect: Fraction | None) -> Look:
    """What a frame says about itself. aspect: width of a pixel over its height; None or 0 if it is not known.

    Raises: ResourceError for a picture of absurd size, MediaError for colours that cannot be converted.
    """
    stored = (frame.width, frame.height)
    square, notes = squared(stored, aspect)
    orientation = orientation_of(frame)
    if not orientation.exact:
        notes += ("its display matrix is no quarter turn; shown in the nearest of the eight orientations",)
    interlaced = bool(frame.interlaced_frame)
    if interlaced:
        notes += ("it is interlaced; one whole picture was made of each two fields",)
    colours = colours_of(frame)
    return Look(stored, square, colours, orientation, interlaced, _has_alpha(frame), (*colours.notes, *notes))


def squared(stored: tuple[int, int], aspect: Fraction | None) -> tuple[tuple[int, int], tuple[str, ...]]:
    """(width, height) with square pixels: the height stays, the width becomes the nearest even one; and the note.

    Raises: ResourceError beyond `_MOST_PIXELS`.
    """
    width, height = stored
    square = stored
    if aspect and aspect > 0 and aspect != 1:
        wide = max(2, 2 * round(width * aspect / 2))
        square = stored if abs(wide - width) < 2 else (wide, height)
    if max(square[0] * height, width * height) > _MOST_PIXELS:
        raise ResourceError(f"pictures of {square[0]}x{height} are too large; scale the clip down first.")
    if square == stored:
        return stored, ()
    return square, (f"its pixels are not square ({aspect}); {width}x{height} became {square[0]}x{height}",)


class Shown:
    """Turns the frames of one stream, in their order, into uint8 (H, W, 3) RGB of one size."""

    def __init__(self, first: Any, aspect: Fraction | None):
        self.look = look_of(first, aspect)
        self._aspect = aspect
        self._key: tuple[Any, ...] = ()
        self._frame_look = self.look
        self._graph: Any = None

    def rgb(self, frame: Any) -> np.ndarray:
        self._prepare(frame)
        look = self._frame_look
        if self._graph is not None:
            frame = _through(self._graph, frame)
        elif look.colours.matrix != frame.colorspace and look.colours.matrix not in (0, _UNKNOWN):
            frame.colorspace = look.colours.matrix
        return look.orientation.applied(_opaque(frame) if look.transparent else frame.to_ndarray(format="rgb24"))

    def _prepare(self, frame: Any) -> None:
        key = (frame.width, frame.height, frame.format.name, *_tags(frame))
        if key == self._key:
            return
        look = look_of(frame, self._aspect)
        if look.size != self.look.size:
            check_one_shape(self.look.size, look.size)
            look = replace(look, square=self.look.size[::-1] if look.orientation.transposed else self.look.size)
        self._key, self._frame_look = key, look
        steps = _steps(look)
        self._graph = _graph(frame, steps) if steps else None


def check_one_shape(first: tuple[int, int], later: tuple[int, int]) -> None:
    """Raise MediaError where pictures of another shape follow: filling the first one's size would squeeze them."""
    if abs(later[0] * first[1] / (later[1] * first[0]) - 1) > _SAME_SHAPE:
        raise MediaError(
            f"the pictures change from {first[0]}x{first[1]} to {later[0]}x{later[1]}; cut the clip there, "
            "or write it anew at one size."
        )


def deinterlaced(frames: Iterable[Any], interlaced: bool) -> Iterator[Any]:
    """The same frames, whole pictures in the place of those that consist of two fields."""
    graph: Any = None
    for frame in frames:
        if interlaced and graph is None:
            graph = _graph(frame, [("bwdif", "mode=send_frame:deint=interlaced")])
        if graph is None:
            yield frame
            continue
        graph.push(frame)
        yield from _ready(graph)
    if graph is not None:
        graph.push(None)
        yield from _ready(graph)


def _ready(graph: Any) -> Iterator[Any]:
    while True:
        try:
            yield graph.pull()
        except (av.error.BlockingIOError, av.error.EOFError):
            return


def is_transparent(frame: Any) -> bool:
    """Whether something would be seen through a frame."""
    return _has_alpha(frame) and bool(frame.to_ndarray(format="rgba")[..., 3].min() < 255)


def _has_alpha(frame: Any) -> bool:
    return frame.format.name == "pal8" or any(c.is_alpha for c in frame.format.components)


def _tags(frame: Any) -> tuple[int, ...]:
    return frame.colorspace, frame.color_primaries, frame.color_trc, frame.color_range


def _steps(look: Look) -> list[tuple[str, str]]:
    """Filters, in order, that make stored pixels square and their colours BT.709; none where both are so already."""
    colours = look.colours
    if look.square == look.stored and not colours.changed:
        return []
    matrix = "gbr" if colours.matrix == 0 else _MATRICES.get(colours.matrix, "bt470bg")
    tags = f"colorspace={matrix}:range={'pc' if colours.full else 'tv'}"
    size = f"w={look.square[0]}:h={look.square[1]}:flags=bicubic+accurate_rnd+full_chroma_int"
    out = "rgba" if look.transparent else "rgb24"
    if not colours.changed:
        return [("setparams", tags), ("scale", size), ("format", out)]
    primaries = _PRIMARIES.get(colours.primaries, "bt709")
    transfer = _TRANSFERS.get(colours.transfer, "bt709")
    tags += f":color_primaries={primaries}:color_trc={transfer}"
    # By way of PQ, which has room for every light: straight to BT.709, FFmpeg darkens colours that need no change.
    to = "out_primaries=bt709:out_transfer=smpte2084:intent=relative_colorimetric"
    curve = _tone_curve(_KNEE if colours.transfer in _HDR else 1)
    return [
        ("setparams", tags),
        ("scale", f"{size}:{to}"),
        ("format", "gbrp12"),
        ("lutrgb", f"r='{curve}':g='{curve}':b='{curve}'"),
        ("setparams", "color_primaries=bt709:color_trc=bt709"),
        ("format", out),
    ]


def _tone_curve(knee: float) -> str:
    """PQ light with BT.709 primaries -> BT.709 signal, as an expression of FFmpeg's lut filter, each colour by itself.

    Light relative to reference white stays up to the knee; above it, an extended Reinhard curve goes on with slope 1
    and ends at the peak: BT.2408's reference white becomes 241 of 255, 1000 cd/m2 becomes 255.
    Source: SMPTE ST 2084, ITU-R BT.1886.
    """
    m1, m2, c1, c2, c3 = 2610 / 16384, 2523 / 32, 3424 / 4096, 2413 / 128, 2392 / 128
    room = max(1 - knee, 1e-6)
    most = (_PEAK_NITS / _WHITE_NITS - knee) / room
    light = f"{1e4 / _WHITE_NITS}*pow(max(ld(0)-{c1},0)/({c2}-{c3}*ld(0)),{1 / m1})"
    bent = f"{knee}+{room}*ld(2)*(1+ld(2)/{most**2})/(1+ld(2))"
    return (
        f"st(0,pow(min(val/maxval,1),{1 / m2}));st(1,{light});st(2,(ld(1)-{knee})/{room});"
        f"maxval*pow(min(1,if(lte(ld(1),{knee}),ld(1),{bent})),{1 / 2.4})"
    )


def _graph(frame: Any, steps: list[tuple[str, str]]) -> Any:
    graph = av.filter.Graph()
    last = graph.add_buffer(
        width=frame.width, height=frame.height, format=frame.format, time_base=frame.time_base or Fraction(1, 1000)
    )
    for name, arguments in [*steps, ("buffersink", "")]:
        node = graph.add(name, arguments) if arguments else graph.add(name)
        last.link_to(node)
        last = node
    graph.configure()
    return graph


def _through(graph: Any, frame: Any) -> Any:
    graph.push(frame)
    return graph.pull()


def _opaque(frame: Any) -> np.ndarray:
    """RGB in front of a neutral ground."""
    rgba = frame.to_ndarray(format="rgba")
    alpha = rgba[..., 3:].astype(np.uint16)
    if alpha.min() == 255:
        return np.ascontiguousarray(rgba[..., :3])
    return np.asarray(((rgba[..., :3] * alpha + _GROUND * (255 - alpha) + 127) // 255).astype(np.uint8))
