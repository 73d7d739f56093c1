"""Video latents -> frames, tile by tile, handed on as they are done."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from typing import Any

import mlx.core as mx
import numpy as np

from mlx_ltx2.diffusion.noise import NoiseSource
from mlx_ltx2.diffusion.tiles import Tile, TileSize, decode_plan, run_tiles, tiles_for
from mlx_ltx2.memory import PeakReport, phase, resident
from mlx_ltx2.models.video_vae import VideoDecoder
from mlx_ltx2.progress import Progress
from mlx_ltx2.shapes import LatentShape, VideoScale
from mlx_ltx2.stages.sanity import Flatness, refuse_non_finite


def tile_size(tiling: Mapping[str, Any], latent: LatentShape, scale: VideoScale) -> TileSize | None:
    """Tiles of a plan's tiling: a mode, of which explicit sizes replace parts.

    tiling: {"mode", and optionally "tile_size", "tile_overlap", "tile_frames", "tile_frame_overlap"}.
    """
    tiles = tiles_for(tiling["mode"], latent.pixels(scale=scale), scale)
    names = {"tile_overlap": "overlap", "tile_frames": "frames", "tile_frame_overlap": "frame_overlap"}
    changes = {field: tiling[name] for name, field in names.items() if name in tiling}
    if "tile_size" in tiling:
        changes |= {"height": tiling["tile_size"], "width": tiling["tile_size"]}
    return replace(tiles or TileSize(), **changes) if changes else tiles


def to_uint8(pixels: mx.array) -> mx.array:
    """[-1, 1] -> 0..255: scaled, clipped and truncated as the official decoder does."""
    return (mx.clip((pixels.astype(mx.float32) + 1) / 2, 0, 1) * 255).astype(mx.uint8)


def decode_video(
    latent: mx.array,
    load_decoder: Callable[[], VideoDecoder],
    tiling: Mapping[str, Any],
    noise: NoiseSource,
    scale: VideoScale,
    progress: Progress,
    report: PeakReport,
) -> Iterator[np.ndarray]:
    """Yield uint8 (f, H, W, 3) stretches in order; the decoder lives until the last one was taken.

    latent: (1, F, H, W, C) normalised. noise: for decoders that are conditioned on a timestep; drawn once for the whole
    clip, so that tiles agree with each other and with an untiled decode.
    Raises: LTX2Error if the decoder computes no numbers, or the same one everywhere.
    """
    shape = LatentShape(*latent.shape[1:4])
    plan = decode_plan(shape, tile_size(tiling, shape, scale), scale)
    with (
        phase("decode video", report),
        progress.phase("decode video", len(plan), "tile") as advance,
        resident(load_decoder) as decoder,
    ):
        run = _tile_decoder(decoder, latent, noise, advance)
        flatness = Flatness()
        for chunk in run_tiles(plan, run, latent.dtype):
            refuse_non_finite(chunk, "the video decoder")
            flatness.look(chunk)
            yield np.array(to_uint8(chunk)[0])
        flatness.refuse_flat("the video decoder")
        del decoder, run


def _tile_decoder(
    decoder: VideoDecoder, latent: mx.array, noise: NoiseSource, advance: Callable[[int], None]
) -> Callable[[Tile], mx.array]:
    drawn: mx.array | None = None
    if decoder.timestep_conditioned:
        drawn = mx.array(noise.normal("video", tuple(latent.shape), "decoder"))

    def run(tile: Tile) -> mx.array:
        part = (slice(None), *tile.source)
        pixels = decoder(latent[part], noise=None if drawn is None else drawn[part])
        mx.eval(pixels)
        advance(1)
        return pixels

    return run
