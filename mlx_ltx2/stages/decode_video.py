"""Video latents -> frames, handed on as they are done.

By default a clip is one exact stream over time, untiled; a budget that this does not fit gets the release's tiles, each
of them a stream of its own. Tiles that leave time whole advance together.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import mlx.core as mx
import numpy as np

from mlx_ltx2.diffusion.noise import NoiseSource
from mlx_ltx2.diffusion.tiles import (
    Tile,
    TilePlan,
    TileSize,
    automatic_tiles,
    decode_plan,
    run_streams,
    run_tiles,
    tiles_for,
)
from mlx_ltx2.memory import PeakReport, phase, resident
from mlx_ltx2.models.video_vae import VideoDecoder, VideoVAEConfig
from mlx_ltx2.models.video_vae.streaming import CHUNK, stream_decode, streaming_decode_bytes
from mlx_ltx2.progress import Progress
from mlx_ltx2.shapes import LatentShape, VideoScale
from mlx_ltx2.stages.sanity import Flatness, refuse_non_finite


@dataclass(frozen=True)
class DecodeWay:
    """How a clip is decoded. chunk: frames that a block is fed at a time; 0 = each tile in one piece."""

    plan: TilePlan
    chunk: int

    @property
    def streams(self) -> bool:
        """Whether frames come out while the latents are still being read."""
        return self.chunk > 0 and len(self.plan.frames) == 1


def tile_size(tiling: Mapping[str, Any], latent: LatentShape, scale: VideoScale) -> TileSize | None:
    """Tiles of a plan's tiling: a mode, of which explicit sizes replace parts. "auto" without sizes is untiled.

    tiling: {"mode", and optionally "tile_size", "tile_overlap", "tile_frames", "tile_frame_overlap"}.
    """
    names = {"tile_overlap": "overlap", "tile_frames": "frames", "tile_frame_overlap": "frame_overlap"}
    changes = {field: tiling[name] for name, field in names.items() if name in tiling}
    if tiling["mode"] == "auto" and not changes and "tile_size" not in tiling:
        return None
    tiles = tiles_for(tiling["mode"], latent.pixels(scale=scale), scale)
    if "tile_size" in tiling:
        changes |= {"height": tiling["tile_size"], "width": tiling["tile_size"]}
    return replace(tiles or TileSize(), **changes) if changes else tiles


def to_uint8(pixels: mx.array) -> mx.array:
    """[-1, 1] -> 0..255: scaled, clipped and truncated as the official decoder does."""
    return (mx.clip((pixels.astype(mx.float32) + 1) / 2, 0, 1) * 255).astype(mx.uint8)


def decode_way(
    tiling: Mapping[str, Any],
    latent: LatentShape,
    scale: VideoScale,
    config: VideoVAEConfig,
    itemsize: int,
    budget_bytes: int | None = None,
) -> DecodeWay:
    """Decide tiles and chunk of a decode.

    Mode "auto" without sizes: untiled in chunks of `CHUNK` frames; of 1 frame if that does not fit the budget; the
    release's tiles, 1 frame at a time, if that does not fit either. "none": in one piece. Others: their tiles.
    itemsize: bytes of a weight. budget_bytes: for all but weights; None = no limit.
    Raises: RequestError if sizes do not lie on the latent grid.
    """
    tiles = tile_size(tiling, latent, scale)
    chunk = 0 if tiling["mode"] == "none" and tiles is None else CHUNK
    if tiling["mode"] == "auto" and tiles is None and budget_bytes is not None:

        def fits(chunk: int) -> bool:
            return streaming_decode_bytes(config, latent.height, latent.width, itemsize, chunk) <= budget_bytes

        if not fits(chunk):
            chunk = 1
        if not fits(chunk):
            tiles = automatic_tiles(latent.pixels(scale=scale), scale)
    return DecodeWay(decode_plan(latent, tiles, scale), chunk)


def decode_video(
    latent: mx.array,
    load_decoder: Callable[[], VideoDecoder],
    tiling: Mapping[str, Any],
    noise: NoiseSource,
    scale: VideoScale,
    progress: Progress,
    report: PeakReport,
    budget_bytes: int | None = None,
    end: int | None = None,
) -> Iterator[np.ndarray]:
    """Yield uint8 (f, H, W, 3) stretches in order; the decoder lives until the last one was taken.

    latent: (1, F, H, W, C) normalised. tiling, budget_bytes: see `decode_way`. noise: for decoders that are conditioned
    on a timestep; drawn once for the whole clip, so that tiles agree with each other and with an untiled decode.
    end: frames from this one on are not needed; the stretch that reaches it is the last.
    Raises: LTX2Error if the decoder computes no numbers, or the same one everywhere.
    """
    shape = LatentShape(*latent.shape[1:4])
    with phase("decode video", report), resident(load_decoder) as decoder:
        itemsize = decoder.conv_in.conv.weight.dtype.size
        way = decode_way(tiling, shape, scale, decoder.config, itemsize, budget_bytes)
        end = way.plan.size[0] if end is None else min(end, way.plan.size[0])
        total, unit = (end, "frame") if way.streams else (len(way.plan), "tile")
        with progress.phase("decode video", total, unit) as advance:
            flatness, given = Flatness(), 0
            for chunk in _chunks(decoder, latent, noise, way, advance):
                refuse_non_finite(chunk, "the video decoder")
                flatness.look(chunk)
                yield np.array(to_uint8(chunk)[0])
                if way.streams:
                    advance(min(chunk.shape[1], end - given))
                given += chunk.shape[1]
                if given >= end:
                    break
            flatness.refuse_flat("the video decoder")
        del decoder


def _chunks(
    decoder: VideoDecoder,
    latent: mx.array,
    noise: NoiseSource,
    way: DecodeWay,
    advance: Callable[[int], None],
) -> Iterator[mx.array]:
    drawn: mx.array | None = None
    if decoder.timestep_conditioned:
        drawn = mx.array(noise.normal("video", tuple(latent.shape), "decoder"))

    def start(tile: Tile) -> Iterator[mx.array]:
        part = (slice(None), *tile.source)
        own = None if drawn is None else drawn[part]
        if way.chunk:
            yield from stream_decode(decoder, latent[part], evaluate=mx.eval, noise=own, chunk=way.chunk)
        else:
            yield decoder(latent[part], noise=own)

    def run(tile: Tile) -> mx.array:
        pixels = list(start(tile))
        whole = pixels[0] if len(pixels) == 1 else mx.concatenate(pixels, axis=1)
        mx.eval(whole)
        advance(1)
        return whole

    if not way.streams:
        yield from run_tiles(way.plan, run, latent.dtype)
        return
    yield from run_streams(way.plan, start, latent.dtype)
