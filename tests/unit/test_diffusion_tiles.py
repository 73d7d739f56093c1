"""Tile plans: coverage, weights, legality, and blending without seams."""

from __future__ import annotations

from fractions import Fraction
from itertools import pairwise

import mlx.core as mx
import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from mlx_ltx2.diffusion.tiles import (
    TILING_MODES,
    TileSize,
    automatic_tiles,
    decode_plan,
    encode_plan,
    run_tiles,
    split,
    split_causal,
    tiles_for,
    trapezoid,
)
from mlx_ltx2.errors import RequestError
from mlx_ltx2.shapes import LatentShape, VideoShape

SIZE = st.integers(2, 9)


def sums_to_one(spans, length: int) -> bool:
    """Exactly, in rational numbers, and in float32 as well."""
    exact, single = [Fraction(0)] * length, np.zeros(length, np.float32)
    for span in spans:
        assert span.weights.dtype == np.float32 and len(span.weights) == span.target.stop - span.target.start
        single[span.target] += span.weights
        for i, weight in enumerate(span.weights, start=span.target.start):
            exact[i] += Fraction(float(weight))
    return all(total == 1 for total in exact) and (single == 1).all()


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 40), SIZE, st.integers(0, 8), st.integers(1, 30), SIZE, st.integers(0, 8))
def test_weights_sum_to_exactly_one(frames, size, overlap, rows, height, spatial) -> None:
    assume(overlap < size and spatial < height)
    latent = LatentShape(frames, rows, 3)
    tiles = TileSize(height=height * 32, overlap=spatial * 32, frames=size * 8, frame_overlap=overlap * 8)
    plan = decode_plan(latent, tiles)
    for spans, length in zip((plan.frames, plan.rows, plan.columns), plan.size, strict=True):
        assert sums_to_one(spans, length)
        assert all(span.weights.min() >= 0 for span in spans)


@settings(max_examples=20, deadline=None)
@given(st.integers(1, 40), st.integers(3, 9), st.integers(2, 8))
def test_encode_weights_sum_to_exactly_one(frames: int, size: int, overlap: int) -> None:
    assume(overlap < size)
    plan = encode_plan(LatentShape(frames, 2, 2), TileSize(frames=size * 8, frame_overlap=overlap * 8))
    assert sums_to_one(plan.frames, frames)
    assert plan.size == (frames, 2, 2)
    assert all((s.source.stop - s.source.start) % 8 == 1 for s in plan.frames)


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 60), SIZE, st.integers(0, 8))
def test_intervals_cover(length: int, size: int, overlap: int) -> None:
    assume(overlap < size)
    for parts in (split(length, size, overlap), split_causal(length, size, overlap)):
        assert parts[0].start == 0 and parts[-1].end == length
        for before, after in pairwise(parts):
            assert after.start < after.end and after.start <= before.end
            assert after.left == before.end - after.start


def test_ramps_are_complementary() -> None:
    up, down = trapezoid(9, 4, 0), trapezoid(9, 0, 4)
    assert np.allclose(up[:4], [0.2, 0.4, 0.6, 0.8]) and np.allclose(up[:4] + down[-4:], 1)
    assert np.allclose(trapezoid(5, 4, 0, from_zero=True), [0, 0.25, 0.5, 0.75, 1])


def test_automatic_tiles() -> None:
    assert automatic_tiles(VideoShape(121, 1024, 1536)) == TileSize(512, 768, 64, 80, 24)
    assert len(decode_plan(LatentShape(1, 16, 24), automatic_tiles(VideoShape(1, 512, 768)))) == 1


def test_modes() -> None:
    shape = VideoShape(121, 1024, 1536)
    for mode in TILING_MODES:
        tiles = tiles_for(mode, shape)
        assert tiles is None or decode_plan(shape.latent(), tiles)
    assert tiles_for("none", shape) is None and tiles_for("temporal", shape).height == 0
    with pytest.raises(RequestError, match="aggressive"):
        tiles_for("wild", shape)


@pytest.mark.parametrize(
    ("options", "word"),
    [
        ({"height": 500}, "480 or 512"),
        ({"width": 32}, "at least 64"),
        ({"frames": 12}, "16 or 24"),
        ({"frames": 32, "frame_overlap": 4}, "multiple of 8"),
        ({"height": 128, "overlap": 16}, "multiple of 32"),
        ({"height": 128, "overlap": 128}, "less than"),
        ({"height": -64}, "negative"),
        ({"overlap": 64}, "without a tile size"),
        ({"frame_overlap": 8}, "without a number"),
    ],
)
def test_illegal_tiles(options, word: str) -> None:
    with pytest.raises(RequestError, match=word):
        decode_plan(LatentShape(5, 8, 8), TileSize(**options))


def test_encoding_needs_overlap() -> None:
    for options in ({"frames": 32, "frame_overlap": 8}, {"height": 128, "overlap": 32}):
        with pytest.raises(RequestError, match="encoding needs"):
            encode_plan(LatentShape(9, 8, 8), TileSize(**options))


def smooth(size: tuple[int, int, int]) -> np.ndarray:
    """A smooth clip (1, F, H, W, 1)."""
    t, y, x = np.meshgrid(*(np.arange(n) for n in size), indexing="ij")
    return np.sin(0.05 * t + 0.01 * y + 0.02 * x).astype(np.float32)[None, ..., None]


@pytest.mark.parametrize(
    "tiles",
    [
        None,
        TileSize(128, 96, 32, 32, 8),
        TileSize(frames=24, frame_overlap=16),
        TileSize(height=96, overlap=64),
        TileSize(96, 96, 64, 16, 0),
    ],
)
def test_tiles_of_a_known_clip(tiles) -> None:
    """A decoder that cuts tiles out of a known clip gives that clip back, frame by frame."""
    latent = LatentShape(7, 6, 5)
    plan = decode_plan(latent, tiles)
    clip = smooth(plan.size)

    def run(tile) -> mx.array:
        return mx.array(clip[:, tile.frames.target, tile.rows.target, tile.columns.target])

    chunks = [np.array(chunk) for chunk in run_tiles(plan, run)]
    assert len(chunks) == len(plan.frames)
    assert np.allclose(np.concatenate(chunks, axis=1), clip, atol=1e-6)


def test_the_first_frame_of_a_later_tile_does_not_count() -> None:
    """A causal decoder's first frame is a guess; it must never show."""
    plan = decode_plan(LatentShape(7, 2, 2), TileSize(frames=24, frame_overlap=8))

    def run(tile) -> mx.array:
        frames = tile.frames.target.stop - tile.frames.target.start
        out = np.ones((1, frames, 64, 64, 1), np.float32)
        if tile.frames.source.start:
            out[:, 0] = 1e6
        return mx.array(out)

    clip = np.concatenate([np.array(chunk) for chunk in run_tiles(plan, run)], axis=1)
    assert clip.shape[1] == 49 and np.allclose(clip, 1, atol=1e-6)


def test_half_precision_buffer() -> None:
    plan = decode_plan(LatentShape(3, 6, 5), TileSize(96, 96, 64, 16, 8))
    clip = smooth(plan.size)

    def run(tile) -> mx.array:
        return mx.array(clip[:, tile.frames.target, tile.rows.target, tile.columns.target])

    chunks = list(run_tiles(plan, run, dtype=mx.float16))
    assert chunks[0].dtype == mx.float16
    got = np.concatenate([np.array(chunk.astype(mx.float32)) for chunk in chunks], axis=1)
    assert np.abs(got - clip).max() < 3e-3
