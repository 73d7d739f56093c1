"""Latents of one size -> latents of the next."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

import mlx.core as mx
import numpy as np

from mlx_ltx2.memory import PeakReport, phase, resident
from mlx_ltx2.models.upsampler import LatentUpsampler
from mlx_ltx2.models.video_vae import PerChannelStatistics
from mlx_ltx2.shapes import VideoScale, VideoShape


def upsample(
    latent: mx.array,
    load_upsampler: Callable[[], LatentUpsampler],
    load_statistics: Callable[[], PerChannelStatistics],
    report: PeakReport,
) -> mx.array:
    """(B, F, H, W, C) normalised -> enlarged and normalised again, in the latent's dtype.

    The upsampler works on latents as the encoder left them, so the video VAE's statistics go around it; nothing else of
    the VAE is read. Source: `ltx_core.model.upsampler.model.upsample_video`.
    """
    statistics = load_statistics()
    with phase("upsample", report), resident(load_upsampler) as upsampler:
        dtype = latent.dtype
        larger = statistics.normalize(upsampler(statistics.denormalize(latent))).astype(dtype)
        mx.eval(larger)
        del upsampler
    return larger


def padded(frames: np.ndarray, scale: VideoScale, step: int) -> np.ndarray:
    """Frames on the latent grid: mirrored at the right and bottom, the last one repeated.

    frames: uint8 (F, H, W, 3). step: of sides, in latents; a side gets two latents at least, which mirroring inside
    the networks needs.
    """
    count, height, width = frames.shape[:3]
    multiple = scale.space * step

    def rest(side: int) -> int:
        return max(2 * scale.space, -(-side // multiple) * multiple) - side

    last = -(count - 1) % scale.time
    frames = np.pad(frames, ((0, 0), (0, rest(height)), (0, rest(width)), (0, 0)), mode="reflect")
    return np.pad(frames, ((0, last), (0, 0), (0, 0), (0, 0)), mode="edge")


def cropped(chunks: Iterable[np.ndarray], shape: VideoShape) -> Iterator[np.ndarray]:
    """Decoded chunks without what `padded` added: `shape` is what the finished clip has."""
    left = shape.frames
    for chunk in chunks:  # taken to the end, so that the decoder is freed
        kept = chunk[:left, : shape.height, : shape.width]
        left -= len(kept)
        if len(kept):
            yield kept
