"""The streamed decode against the whole one: the same pixels, flat memory, and the ways a plan can choose."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from mlx.utils import tree_flatten

from mlx_ltx2.diffusion.noise import NoiseSource
from mlx_ltx2.diffusion.tiles import TILING_MODES, Tile, TileSize, decode_plan, run_streams, run_tiles
from mlx_ltx2.errors import RequestError, ShapeError
from mlx_ltx2.memory import PeakReport
from mlx_ltx2.models.video_vae import VideoDecoder, VideoVAEConfig
from mlx_ltx2.models.video_vae.streaming import CHUNK, StreamingDecoder, stream_decode, streaming_decode_bytes
from mlx_ltx2.progress import SilentProgress
from mlx_ltx2.shapes import LatentShape, VideoScale
from mlx_ltx2.stages.decode_video import DecodeWay, decode_video, decode_ways, to_uint8
from tests.cases import load_official, official_weights, relative_error
from tests.cases import video_vae as vae

SCALE = VideoScale()
SHORT: dict[str, Any] = {"decoder_blocks": [["compress_all", {"multiplier": 2}], ["res_x", 1]]}
"""Blocks of a decoder that is cheap to run: 2 in time, 8 in space."""


def decoder(section: dict[str, Any], **changes: Any) -> VideoDecoder:
    network = VideoDecoder(VideoVAEConfig.from_dict(vae.small(section, **changes)))
    load_official(network, official_weights(network, 3))
    return network


def latents(network: VideoDecoder, *shape: int) -> tuple[mx.array, mx.array | None]:
    """A latent, and noise if the decoder wants it."""
    rng = np.random.default_rng(5)
    size = (*shape, network.config.latent_channels)
    drawn = [mx.array(rng.standard_normal(size, dtype=np.float32)) for _ in range(2)]
    return drawn[0], drawn[1] if network.timestep_conditioned else None


def assert_same(got: mx.array, want: mx.array) -> None:
    """Equal but for the rounding of a BLAS that adds up differently for other numbers of rows."""
    assert relative_error(np.array(got), np.array(want)) <= 5e-6


def streamed(network: VideoDecoder, latent: mx.array, noise: mx.array | None, chunk: int) -> list[mx.array]:
    return list(stream_decode(network, latent, evaluate=mx.eval, noise=noise, timestep=0.2, chunk=chunk))


@pytest.mark.parametrize("name", vae.VAES)
def test_the_stream_gives_the_whole_decode(name: str) -> None:
    network = decoder(vae.VAES[name], decoder_base_channels=4)
    latent, noise = latents(network, 1, 4, 2, 3)
    whole = network(latent, noise=noise, timestep=0.2)
    parts = streamed(network, latent, noise, CHUNK)
    assert len(parts) > 5 and max(part.shape[1] for part in parts) <= CHUNK
    assert_same(mx.concatenate(parts, axis=1), whole)


@pytest.mark.parametrize("chunk", [1, 2, 3, 5, 8])
@pytest.mark.parametrize("kind", ["compress_all", "compress_time", "compress_space"])
def test_every_chunk_and_upsampler(kind: str, chunk: int) -> None:
    blocks = [[kind, {"multiplier": 2, "residual": True}], ["res_x", 1], [kind, {"multiplier": 1}]]
    changes = {"timestep_conditioning": True, "patch_size": 2, "causal_decoder": chunk % 2 == 1}
    network = decoder(vae.SHARED, decoder_blocks=blocks, **changes)
    for shape in ((1, 1, 2, 2), (2, 2, 2, 2), (1, 7, 2, 3)):
        latent, noise = latents(network, *shape)
        whole = network(latent, noise=noise, timestep=0.2)
        parts = streamed(network, latent, noise, chunk)
        assert_same(mx.concatenate(parts, axis=1), whole)


def test_frames_come_before_all_latents_are_read() -> None:
    network = decoder(vae.SHARED, **SHORT)
    latent, noise = latents(network, 1, 9, 2, 2)
    stream = StreamingDecoder(network, evaluate=mx.eval, chunk=1)
    counts = [
        sum(part.shape[1] for part in stream.push(latent[:, i : i + 1], noise[:, i : i + 1], last=i == 8))
        for i in range(9)
    ]
    # Four convolutions in front of the upsampler look one latent ahead each, one behind it half a latent.
    assert sum(counts) == 17 and counts[:8] == [0, 0, 0, 0, 0, 2, 2, 2]


def test_refusals() -> None:
    network = decoder(vae.VAE_22B)
    latent, _ = latents(network, 1, 2, 2, 2)
    with pytest.raises(RequestError, match="0 frames at a time"):
        StreamingDecoder(network, evaluate=mx.eval, chunk=0)
    with pytest.raises(ShapeError, match="cannot be decoded"):
        streamed(network, latent[0], None, 1)
    with pytest.raises(RequestError, match="leave noise= out"):
        streamed(network, latent, latent, 1)


def peak(network: VideoDecoder, frames: int, chunk: int, whole: bool = False) -> int:
    """Allocator peak beyond what is allocated before."""
    latent, noise = latents(network, 1, frames, 3, 2)
    mx.eval(latent, network.parameters())
    mx.synchronize()
    mx.clear_cache()
    before = mx.get_active_memory()
    mx.reset_peak_memory()
    if whole:
        mx.eval(network(latent, noise=noise))
    else:
        for part in stream_decode(network, latent, evaluate=mx.eval, noise=noise, chunk=chunk):
            del part
    return mx.get_peak_memory() - before


@pytest.mark.parametrize("name", ["19B", "22B"])
def test_memory_is_flat_in_frames_and_as_predicted(name: str) -> None:
    network = decoder(vae.VAES[name])
    weights = sum(value.nbytes for _, value in tree_flatten(network.parameters()))
    seconds = [peak(network, frames, CHUNK) for frames in (3, 5, 9)]
    predicted = streaming_decode_bytes(network.config, 3, 2, 4, CHUNK, unfolds=mx.default_device() == mx.cpu)
    # A clip of 17 frames is shorter than what the decoder looks at, so it fills fewer of the kept frames.
    assert (weights + seconds[1]) / (weights + seconds[0]) <= 1.1
    assert seconds[2] / seconds[1] <= 1.1
    assert 0.9 <= seconds[2] / predicted <= 1.1
    assert seconds[1] < 0.25 * peak(network, 5, CHUNK, whole=True)


def test_the_formula_does_not_know_frames_and_grows_with_all_else() -> None:
    config = VideoVAEConfig.from_dict(vae.VAE_22B)
    small = streaming_decode_bytes(config, 16, 24, 2, 1)
    assert small == streaming_decode_bytes(config, 24, 16, 2, 1) == streaming_decode_bytes(config, 16, 24, 4, 1) // 2
    assert small < streaming_decode_bytes(config, 16, 24, 2, 4) < streaming_decode_bytes(config, 22, 40, 2, 4) < 2e9


def test_tiles_that_leave_time_whole_advance_together() -> None:
    network = decoder(vae.SHARED, **SHORT)
    scale, size = network.config.scale, TileSize(height=24, width=24, overlap=8)
    latent, noise = latents(network, 1, 3, 4, 5)
    plan = decode_plan(LatentShape(3, 4, 5), size, scale)

    def start(tile: Tile) -> Iterator[mx.array]:
        part = (slice(None), *tile.source)
        return stream_decode(network, latent[part], evaluate=mx.eval, noise=noise[part], timestep=0.2, chunk=2)

    def run(tile: Tile) -> mx.array:
        part = (slice(None), *tile.source)
        return network(latent[part], noise=noise[part], timestep=0.2)

    parts = list(run_streams(plan, start))
    assert len(plan) > 3 and len(parts) > 2
    whole = mx.concatenate(list(run_tiles(plan, run)), axis=1)
    assert_same(mx.concatenate(parts, axis=1), whole)


def decoded(network: VideoDecoder, latent: mx.array, tiling: dict[str, Any], **more: Any) -> list[np.ndarray]:
    report = PeakReport()
    arguments = (
        latent,
        lambda: network,
        decode_ways(tiling, LatentShape(*latent.shape[1:4]), network.config.scale)[0],
        NoiseSource(1, 0),
        network.config.scale,
        SilentProgress(),
        report,
    )
    return list(decode_video(*arguments, **more))


def test_the_stage_streams_by_default_and_draws_the_same_noise_for_all_ways() -> None:
    network = decoder(vae.SHARED, **SHORT)
    latent, _ = latents(network, 1, 8, 3, 2)
    auto = decoded(network, latent, {"mode": "auto"})
    whole = decoded(network, latent, {"mode": "none"})
    assert len(auto) > 3 and len(whole) == 1
    assert np.abs(np.concatenate(auto).astype(int) - whole[0]).max() <= 1
    noise = mx.array(NoiseSource(1, 0).normal("video", tuple(latent.shape), "decoder"))
    assert np.abs(np.array(to_uint8(network(latent, noise=noise))[0]).astype(int) - whole[0]).max() <= 1
    tiles = decoded(network, latent, {"mode": "auto", "tile_frames": 8, "tile_frame_overlap": 4})
    assert 1 < len(tiles) < len(auto) and np.concatenate(tiles).shape == whole[0].shape


def test_the_ways_that_a_tiling_allows_from_the_fastest_to_the_leanest() -> None:
    shape = LatentShape(16, 34, 60)

    def ways(tiling: dict[str, Any]) -> list[tuple[int, int, bool]]:
        found = decode_ways(tiling, shape, SCALE)
        plans = [way.tile_plan(shape, SCALE) for way in found]
        return [(way.chunk, len(plan), way.streams(plan)) for way, plan in zip(found, plans, strict=True)]

    assert ways({"mode": "auto"}) == [(CHUNK, 1, True), (1, 1, True), (1, 18, False)]
    assert ways({"mode": "none"}) == [(0, 1, False)]
    assert ways({"mode": "spatial"}) == [(CHUNK, 15, True), (1, 15, True)]
    for mode in set(TILING_MODES) - {"auto", "none", "spatial"}:
        assert [(chunk, streams) for chunk, _, streams in ways({"mode": mode})] == [(CHUNK, False), (1, False)]
    assert [way.text() for way in decode_ways({"mode": "temporal"}, shape, SCALE)] == [
        "in tiles of 64 frames, 4 frames at a time",
        "in tiles of 64 frames, 1 frame at a time",
    ]
    assert DecodeWay(None, 0).text() == "untiled, in one piece"


def test_tiles_differ_from_the_whole_at_seams_only() -> None:
    network = decoder(vae.SHARED, decoder_blocks=[["compress_space", {"multiplier": 8}]], timestep_conditioning=False)
    latent, _ = latents(network, 1, 2, 12, 2)
    whole = network(latent)
    size = TileSize(height=64, overlap=16)
    plan = decode_plan(LatentShape(2, 12, 2), size, network.config.scale)
    (tiled,) = run_tiles(plan, lambda tile: network(latent[(slice(None), *tile.source)]))
    # Latents 0 to 7 and 6 to 11. An edge reaches two latents and, behind the upsampler, one cell of 4 pixels inside.
    error = np.abs(np.array(tiled - whole)).max(axis=(0, 1, 3, 4))
    assert error[:44].max() <= 1e-5 and error[68:].max() <= 1e-5 and error.max() > 1e-3
