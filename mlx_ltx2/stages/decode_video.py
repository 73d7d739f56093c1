"""Video latents -> frames, handed on as they are done.

By default a clip is one exact stream over time, untiled; where that does not fit, the release's
tiles, each of them a stream of its own. Tiles that leave time whole advance together. Which way is
taken is decided with the plan (`pipelines.budget`), by what each would need.
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
from mlx_ltx2.models.video_vae import VideoDecoder
from mlx_ltx2.models.video_vae.streaming import CHUNK, stream_decode
from mlx_ltx2.progress import Progress
from mlx_ltx2.shapes import LatentShape, VideoScale
from mlx_ltx2.stages.sanity import Flatness, refuse_non_finite


@dataclass(frozen=True)
class DecodeWay:
    """How a clip is decoded; a plan's record says it, and the run does it.

    tiles: None = the whole picture at once. chunk: frames that a block is fed at a time; 0 = each
    tile in one piece.
    """

    tiles: TileSize | None
    chunk: int

    def tile_plan(self, latent: LatentShape, scale: VideoScale) -> TilePlan:
        """Raises: RequestError if sizes do not lie on the latent grid."""
        return decode_plan(latent, self.tiles, scale)

    def streams(self, plan: TilePlan) -> bool:
        """Whether frames come out while the latents are still being read."""
        return self.chunk > 0 and len(plan.frames) == 1

    def text(self) -> str:
        """For a person: "untiled, 4 frames at a time"."""
        where = "untiled"
        if self.tiles is not None:
            sizes = [f"{n} {unit}" for n, unit in self._sizes() if n]
            where = f"in tiles of {', '.join(sizes)}"
        if not self.chunk:
            return f"{where}, in one piece"
        return f"{where}, {self.chunk} frame{'s' if self.chunk > 1 else ''} at a time"

    def _sizes(self) -> tuple[tuple[int, str], ...]:
        tiles = self.tiles or TileSize()
        return (tiles.width, "columns"), (tiles.height, "rows"), (tiles.frames, "frames")


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


def decode_ways(tiling: Mapping[str, Any], latent: LatentShape, scale: VideoScale) -> tuple[DecodeWay, ...]:
    """The ways that a tiling allows, from the fastest to the leanest; the first that fits is taken.

    Mode "auto" without sizes: untiled in chunks of `CHUNK` frames, then of 1 frame, then the
    release's tiles, 1 frame at a time. "none": in one piece. Others: their tiles.
    Raises: RequestError for a mode that does not exist.
    """
    tiles = tile_size(tiling, latent, scale)
    if tiles is not None:
        return DecodeWay(tiles, CHUNK), DecodeWay(tiles, 1)
    if tiling["mode"] == "none":
        return (DecodeWay(None, 0),)
    smaller = automatic_tiles(latent.pixels(scale=scale), scale)
    return DecodeWay(None, CHUNK), DecodeWay(None, 1), DecodeWay(smaller, 1)


def decode_video(
    latent: mx.array,
    load_decoder: Callable[[], VideoDecoder],
    way: DecodeWay,
    noise: NoiseSource,
    scale: VideoScale,
    progress: Progress,
    report: PeakReport,
    end: int | None = None,
) -> Iterator[np.ndarray]:
    """Yield uint8 (f, H, W, 3) stretches in order; the decoder lives until the last one was taken.

    latent: (1, F, H, W, C) normalised. way: one of `decode_ways`. noise: for decoders that are conditioned
    on a timestep; drawn once for the whole clip, so that tiles agree with each other and with an untiled decode.
    end: frames from this one on are not needed; the stretch that reaches it is the last.
    Raises: LTX2Error if the decoder computes no numbers, or the same one everywhere.
    """
    plan = way.tile_plan(LatentShape(*latent.shape[1:4]), scale)
    streams = way.streams(plan)
    with phase("decode video", report), resident(load_decoder) as decoder:
        end = plan.size[0] if end is None else min(end, plan.size[0])
        total, unit = (end, "frame") if streams else (len(plan), "tile")
        with progress.phase("decode video", total, unit) as advance:
            flatness, given = Flatness(), 0
            for chunk in _chunks(decoder, latent, noise, way.chunk, plan, advance):
                refuse_non_finite(chunk, "the video decoder")
                flatness.look(chunk)
                yield np.array(to_uint8(chunk)[0])
                if streams:
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
    chunk: int,
    plan: TilePlan,
    advance: Callable[[int], None],
) -> Iterator[mx.array]:
    drawn: mx.array | None = None
    if decoder.timestep_conditioned:
        drawn = mx.array(noise.normal("video", tuple(latent.shape), "decoder"))

    def start(tile: Tile) -> Iterator[mx.array]:
        part = (slice(None), *tile.source)
        own = None if drawn is None else drawn[part]
        if chunk:
            yield from stream_decode(decoder, latent[part], evaluate=mx.eval, noise=own, chunk=chunk)
        else:
            yield decoder(latent[part], noise=own)

    def run(tile: Tile) -> mx.array:
        pixels = list(start(tile))
        whole = pixels[0] if len(pixels) == 1 else mx.concatenate(pixels, axis=1)
        mx.eval(whole)
        advance(1)
        return whole

    if chunk and len(plan.frames) == 1:
        yield from run_streams(plan, start, latent.dtype)
    else:
        yield from run_tiles(plan, run, latent.dtype)
