"""Tile plans: which part of a latent or of a clip is worked on at a time, and how the parts are blended.

Tiles are laid on the latent grid. Neighbours overlap, and complementary ramps blend them; the video VAE is
causal in time, so every tile but the first starts one latent frame earlier and gives that frame no weight.
Per axis the weights are multiples of 2^-24 that sum to exactly 1 (reference: ltx_core.tiling and its mapping
to pixels, release 1.2.0).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import chain
from typing import Literal

import mlx.core as mx
import numpy as np

from mlx_ltx2.errors import RequestError
from mlx_ltx2.shapes import LatentShape, VideoScale, VideoShape

TilingMode = Literal["auto", "none", "default", "aggressive", "conservative", "spatial", "temporal"]
TILING_MODES: tuple[TilingMode, ...] = (
    "auto",
    "none",
    "default",
    "aggressive",
    "conservative",
    "spatial",
    "temporal",
)

_UNIT = 1 << 24
"""Weights are whole multiples of 1 / _UNIT, so that they and their complements are exact in float32."""


@dataclass(frozen=True)
class TileSize:
    """Tile sizes and overlaps in pixels and frames; 0 leaves an axis whole."""

    height: int = 0
    width: int = 0
    overlap: int = 0
    frames: int = 0
    frame_overlap: int = 0

    def __post_init__(self) -> None:
        for name, size, overlap in self._axes():
            if size < 0 or overlap < 0:
                raise RequestError(f"tile {name} {size} with overlap {overlap}: neither may be negative.")
            if size and overlap >= size:
                raise RequestError(f"tile overlap {overlap} must be less than the tile {name} {size}.")
        if not (self.height or self.width) and self.overlap:
            raise RequestError(f"tile overlap {self.overlap} without a tile size; give a tile size or overlap 0.")
        if not self.frames and self.frame_overlap:
            raise RequestError(f"tile frame overlap {self.frame_overlap} without a number of tile frames.")

    def check(self, scale: VideoScale = VideoScale()) -> None:
        """Raises: RequestError unless sizes and overlaps lie on the latent grid and a tile has two latents or
        more.
        """
        for name, size, overlap in self._axes():
            step = scale.time if name == "frames" else scale.space
            if not size:
                continue
            if size % step or size < 2 * step:
                low = max(2 * step, size // step * step)
                raise RequestError(
                    f"tile {name} {size} is not a multiple of {step} of at least {2 * step}; use {low} or {low + step}."
                )
            if overlap % step:
                raise RequestError(f"tile overlap {overlap} ({name}) is not a multiple of {step}.")

    def check_encoding(self) -> None:
        """Raises: RequestError if overlaps are too small to hide the encoder's padding (16 frames, 64
        pixels).
        """
        for name, size, overlap in self._axes():
            least = 16 if name == "frames" else 64
            if size and overlap < least:
                raise RequestError(f"tile overlap {overlap} ({name}) is below the {least} that encoding needs.")

    def _axes(self) -> tuple[tuple[str, int, int], ...]:
        return (
            ("height", self.height, self.overlap if self.height else 0),
            ("width", self.width, self.overlap if self.width else 0),
            ("frames", self.frames, self.frame_overlap),
        )


DEFAULT_TILES = TileSize(768, 768, 64, 80, 24)
"""The release's default for encoding."""


def automatic_tiles(shape: VideoShape, scale: VideoScale = VideoScale()) -> TileSize:
    """The release's decode tiles for the convolutional VAE: 768 pixels on the long side, the short side in
    proportion.
    """
    longest = max(shape.height, shape.width) // scale.space

    def side(length: int) -> int:
        cells = max(2, 64 // scale.space + 1, round(768 // scale.space * (length // scale.space) / longest))
        return max(cells * scale.space, 2 * scale.space, 64 + scale.space)

    return TileSize(side(shape.height), side(shape.width), 64, 80, 24)


def tiles_for(mode: str, shape: VideoShape, scale: VideoScale = VideoScale()) -> TileSize | None:
    """Tiles by a mode's name; None = untiled.

    "auto" follows `automatic_tiles`; the other names and sizes are those of mlx-video.
    Raises: RequestError for a name that is not in TILING_MODES.
    """
    named = {
        "none": None,
        "default": TileSize(512, 512, 64, 64, 24),
        "aggressive": TileSize(256, 256, 64, 32, 8),
        "conservative": TileSize(768, 768, 64, 96, 24),
        "spatial": TileSize(512, 512, 64),
        "temporal": TileSize(frames=64, frame_overlap=24),
    }
    if mode == "auto":
        return automatic_tiles(shape, scale)
    if mode not in named:
        raise RequestError(f"tiling {mode!r} is not known; use one of {', '.join(TILING_MODES)}.")
    return named[mode]


@dataclass(frozen=True)
class Interval:
    """[start, end) on the latent grid with the lengths of the ramps at both ends."""

    start: int
    end: int
    left: int = 0
    right: int = 0


def split(length: int, size: int, overlap: int) -> list[Interval]:
    """Overlapping intervals of `size` latents that cover `length`; the last may be shorter. size 0 = one
    interval.
    """
    if size == 0 or length <= size:
        return [Interval(0, length)]
    stride = size - overlap
    count = (length + size - 2 * overlap - 1) // stride
    return [
        Interval(
            start=i * stride,
            end=length if i == count - 1 else i * stride + size,
            left=overlap if i else 0,
            right=overlap if i < count - 1 else 0,
        )
        for i in range(count)
    ]


def split_causal(length: int, size: int, overlap: int) -> list[Interval]:
    """As `split`, with every interval after the first beginning one latent frame earlier."""
    first, *later = split(length, size, overlap)
    return [first, *(Interval(part.start - 1, part.end, part.left + 1, part.right) for part in later)]


def trapezoid(length: int, left: int, right: int, from_zero: bool = False) -> np.ndarray:
    """Blend weights of one tile, float64: a ramp up, ones, a ramp down. from_zero: the first weight is 0."""
    weights = np.ones(length)
    if left:
        up = np.arange(left) / left if from_zero else np.arange(1, left + 1) / (left + 1)
        weights[:left] *= up[:length]
    if right:
        weights[length - right :] *= (np.arange(right, 0, -1) / (right + 1))[-length:]
    return weights


@dataclass(frozen=True)
class Span:
    """One tile along one axis. source: where it is read. target: where it goes. weights: float32, one per
    target cell.
    """

    source: slice
    target: slice
    weights: np.ndarray


@dataclass(frozen=True)
class Tile:
    """One tile of a plan: its spans along frames, rows and columns."""

    frames: Span
    rows: Span
    columns: Span

    @property
    def source(self) -> tuple[slice, slice, slice]:
        return self.frames.source, self.rows.source, self.columns.source


@dataclass(frozen=True)
class TilePlan:
    """All tiles of one decode or encode. size: (F, H, W) of what comes out."""

    frames: tuple[Span, ...]
    rows: tuple[Span, ...]
    columns: tuple[Span, ...]
    size: tuple[int, int, int]

    def __len__(self) -> int:
        return len(self.frames) * len(self.rows) * len(self.columns)

    def groups(self) -> Iterator[list[Tile]]:
        """Tiles in order, grouped by their stretch of frames."""
        for frames in self.frames:
            yield [Tile(frames, rows, columns) for rows in self.rows for columns in self.columns]


def decode_plan(latent: LatentShape, tiles: TileSize | None, scale: VideoScale = VideoScale()) -> TilePlan:
    """Tiles that read latents and give pixels.

    Raises: RequestError if the tile sizes do not lie on the latent grid.
    """
    parts = _intervals(latent, tiles, scale)
    pixels = latent.pixels(scale=scale)
    axes = []
    for index, (intervals, length) in enumerate(zip(parts, pixels_size(pixels), strict=True)):
        mapped = [_to_pixels(part, scale, causal=index == 0) for part in intervals]
        axes.append(_spans([(part.start, part.end) for part in intervals], mapped, length, causal=index == 0))
    return TilePlan(axes[0], axes[1], axes[2], pixels_size(pixels))


def encode_plan(latent: LatentShape, tiles: TileSize | None, scale: VideoScale = VideoScale()) -> TilePlan:
    """Tiles that read pixels and give the latents of a clip with `latent` as its latent shape.

    Raises: RequestError if sizes do not lie on the latent grid or overlaps are too small for the encoder.
    """
    if tiles is not None:
        tiles.check_encoding()
    parts = _intervals(latent, tiles, scale)
    lengths = (latent.frames, latent.height, latent.width)
    axes = []
    for index, (intervals, length) in enumerate(zip(parts, lengths, strict=True)):
        mapped = [_to_pixels(part, scale, causal=index == 0) for part in intervals]
        axes.append(_spans([(part.start, part.end) for part in mapped], intervals, length, causal=index == 0))
    return TilePlan(axes[0], axes[1], axes[2], lengths)


def pixels_size(shape: VideoShape) -> tuple[int, int, int]:
    return shape.frames, shape.height, shape.width


def run_tiles(
    plan: TilePlan,
    run: Callable[[Tile], mx.array],
    dtype: mx.Dtype = mx.float32,
    evaluate: Callable[..., None] = mx.eval,
) -> Iterator[mx.array]:
    """Run every tile, blend, and yield finished stretches (B, f, H, W, C) in order of frames.

    run: gives one tile's result (B, f, h, w, C) for `tile.source`. dtype: of the blend buffer. evaluate:
    called once a tile, so that no more than one is pending.
    """
    tail: mx.array | None = None
    spans = plan.frames
    for index, group in enumerate(plan.groups()):
        chunk = _blend_group(plan, group, run, dtype, evaluate)
        if tail is not None:
            shared = tail.shape[1]
            chunk = mx.concatenate([chunk[:, :shared] + tail, chunk[:, shared:]], axis=1)
        following = spans[index + 1].target.start if index + 1 < len(spans) else spans[index].target.stop
        done = following - spans[index].target.start
        evaluate(chunk)
        tail = chunk[:, done:]
        yield chunk[:, :done]


def run_streams(
    plan: TilePlan,
    start: Callable[[Tile], Iterator[mx.array]],
    dtype: mx.Dtype = mx.float32,
    evaluate: Callable[..., None] = mx.eval,
) -> Iterator[mx.array]:
    """As `run_tiles`, for a plan that leaves time whole: all tiles advance together, a few frames at a time.

    start: gives one tile's frames (B, f, h, w, C) in order; every tile's in stretches of the same lengths.
    """
    (group,) = plan.groups()
    streams = [start(tile) for tile in group]
    for first in streams[0]:
        parts = chain([first], (next(stream) for stream in streams[1:]))
        chunk = _blend_group(plan, group, lambda _, parts=parts: next(parts), dtype, evaluate)  # type: ignore[misc]
        evaluate(chunk)
        yield chunk


def _blend_group(
    plan: TilePlan,
    group: list[Tile],
    run: Callable[[Tile], mx.array],
    dtype: mx.Dtype,
    evaluate: Callable[..., None],
) -> mx.array:
    buffer: mx.array | None = None
    for tile in group:
        weighted = _weighted(run(tile), tile, dtype)
        if len(group) == 1:
            return weighted
        if buffer is None:
            batch, frames, _, _, channels = weighted.shape
            buffer = mx.zeros((batch, frames, plan.size[1], plan.size[2], channels), dtype=dtype)
        buffer[:, :, tile.rows.target, tile.columns.target] += weighted
        evaluate(buffer)
    assert buffer is not None
    return buffer


def _weighted(x: mx.array, tile: Tile, dtype: mx.Dtype) -> mx.array:
    x = x.astype(mx.float32)
    for axis, span in enumerate((tile.frames, tile.rows, tile.columns), start=1):
        if (span.weights != 1).any():
            shape = [1] * 5
            shape[axis] = -1
            x = x * mx.array(span.weights).reshape(shape)
    return x.astype(dtype)


def _intervals(latent: LatentShape, tiles: TileSize | None, scale: VideoScale) -> tuple[list[Interval], ...]:
    tiles = tiles or TileSize()
    tiles.check(scale)
    overlap = tiles.overlap // scale.space
    return (
        split_causal(latent.frames, tiles.frames // scale.time, tiles.frame_overlap // scale.time),
        split(latent.height, tiles.height // scale.space, overlap if tiles.height else 0),
        split(latent.width, tiles.width // scale.space, overlap if tiles.width else 0),
    )


def _to_pixels(part: Interval, scale: VideoScale, causal: bool) -> Interval:
    if not causal:
        step = scale.space
        return Interval(part.start * step, part.end * step, part.left * step, part.right * step)
    step = scale.time
    left = 1 + (part.left - 1) * step if part.left else 0
    return Interval(part.start * step, 1 + (part.end - 1) * step, left, part.right * step)


def _spans(sources: list[tuple[int, int]], targets: list[Interval], length: int, causal: bool) -> tuple[Span, ...]:
    ramps = [trapezoid(part.end - part.start, part.left, part.right, from_zero=causal) for part in targets]
    total = np.zeros(length)
    for part, ramp in zip(targets, ramps, strict=True):
        total[part.start : part.end] += ramp
    remaining = np.full(length, _UNIT, np.int64)
    units = []
    for part, ramp in zip(targets, ramps, strict=True):
        share = np.rint(ramp / total[part.start : part.end] * _UNIT).astype(np.int64)
        units.append(np.minimum(share, remaining[part.start : part.end]))
        remaining[part.start : part.end] -= units[-1]
    for part, share in zip(reversed(targets), reversed(units), strict=True):
        # What rounding left over goes to the last tile that covers the cell with any weight.
        rest = np.where(share > 0, remaining[part.start : part.end], 0)
        share += rest
        remaining[part.start : part.end] -= rest
    return tuple(
        Span(slice(*source), slice(part.start, part.end), (share / _UNIT).astype(np.float32))
        for source, part, share in zip(sources, targets, units, strict=True)
    )
