"""Latents of one size -> latents of the next."""

from __future__ import annotations

from collections.abc import Callable

import mlx.core as mx

from mlx_ltx2.memory import PeakReport, phase, resident
from mlx_ltx2.models.upsampler import LatentUpsampler
from mlx_ltx2.models.video_vae import PerChannelStatistics


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
