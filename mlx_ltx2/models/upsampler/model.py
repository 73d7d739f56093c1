"""Latent upsamplers of LTX-2 and LTX-2.3.

Source: `ltx_core.model.upsampler`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import mlx.core as mx
from mlx import nn

from mlx_ltx2.errors import ShapeError, WeightsError
from mlx_ltx2.models.layers.kernels import silu
from mlx_ltx2.models.video_vae.convolution import ZeroPaddedConv3d
from mlx_ltx2.models.video_vae.rearrange import depth_to_space

GROUPS = 32
RATIONAL_SCALES = {0.75: (3, 4), 1.5: (3, 2), 2.0: (2, 1), 4.0: (4, 1)}
"""Scale -> (enlarge by, then keep one in)."""


@dataclass(frozen=True)
class UpsamplerConfig:
    """Shape of a latent upsampler; the file's whole config JSON describes it, without sections."""

    in_channels: int = 128
    mid_channels: int = 512
    num_blocks_per_stage: int = 4
    temporal: bool = False
    spatial_scale: float = 2.0
    rational: bool = False

    @property
    def kind(self) -> str:
        """ "temporal-x2", or "spatial-x2", "spatial-x1.5" and so on."""
        if self.temporal:
            return "temporal-x2"
        return f"spatial-x{self.spatial_scale if self.rational else 2.0:g}"

    @classmethod
    def from_dict(cls, config: Mapping[str, Any]) -> UpsamplerConfig:
        """Read the flat config; absent keys mean a plain spatial x2 network 512 channels wide.

        `spatial_scale` counts only with `rational_resampler`, and neither counts for a temporal upsampler.

        Raises: WeightsError for a 2-D network, for time and space at once, and for values out of range.
        """
        if config.get("dims", 3) != 3:
            raise WeightsError(f"upsampler config: dims is {config['dims']!r}; this package supports 3.")
        spatial, temporal = (
            bool(config.get("spatial_upsample", True)),
            bool(config.get("temporal_upsample", False)),
        )
        if spatial == temporal:
            raise WeightsError(
                f"upsampler config: spatial_upsample is {spatial} and temporal_upsample is {temporal}; "
                "exactly one must be true."
            )
        built = cls(
            in_channels=_whole(config, "in_channels", 128, 1),
            mid_channels=_whole(config, "mid_channels", 512, GROUPS),
            num_blocks_per_stage=_whole(config, "num_blocks_per_stage", 4, 1),
            temporal=temporal,
            spatial_scale=float(config.get("spatial_scale", 2.0)),
            rational=spatial and bool(config.get("rational_resampler", False)),
        )
        if built.rational and built.spatial_scale not in RATIONAL_SCALES:
            raise WeightsError(
                f"upsampler config: spatial_scale is {built.spatial_scale:g}; use one of "
                f"{', '.join(f'{s:g}' for s in RATIONAL_SCALES)}."
            )
        return built


def _whole(config: Mapping[str, Any], key: str, fallback: int, step: int) -> int:
    value = config.get(key, fallback)
    if not isinstance(value, int) or isinstance(value, bool) or value < 1 or value % step:
        raise WeightsError(f"upsampler config: {key} is {value!r}; it must be a positive multiple of {step}.")
    return value


class ResBlock(nn.Module):
    """Two convolutions with group norms; statistics span all frames, rows and columns."""

    def __init__(self, channels: int):
        super().__init__()
        self.conv1 = ZeroPaddedConv3d(channels, channels)
        self.norm1 = nn.GroupNorm(GROUPS, channels, pytorch_compatible=True)
        self.conv2 = ZeroPaddedConv3d(channels, channels)
        self.norm2 = nn.GroupNorm(GROUPS, channels, pytorch_compatible=True)

    def __call__(self, x: mx.array) -> mx.array:
        h = silu(self.norm1(self.conv1(x)))
        return silu(self.norm2(self.conv2(h)) + x)


class BlurDownsample(nn.Module):
    """Binomial 5x5 blur of each channel that keeps one cell in `stride`; the identity at stride 1."""

    def __init__(self, stride: int):
        super().__init__()
        self.stride = stride
        row = mx.array([math.comb(4, k) / 16 for k in range(5)])
        self.kernel = (row[:, None] * row[None, :])[None, :, :, None]

    def __call__(self, x: mx.array) -> mx.array:
        """(N,H,W,C) -> (N,ceil(H/stride),ceil(W/stride),C)."""
        if self.stride == 1:
            return x
        channels = x.shape[-1]
        kernel = mx.broadcast_to(self.kernel.astype(x.dtype), (channels, 5, 5, 1))
        return mx.conv2d(x, kernel, self.stride, padding=2, groups=channels)


class RationalResampler(nn.Module):
    """Learned enlargement by a whole number, then a fixed blur and stride; frame by frame."""

    def __init__(self, channels: int, scale: float):
        super().__init__()
        self.enlarge, keep = RATIONAL_SCALES[scale]
        self.conv = nn.Conv2d(channels, self.enlarge**2 * channels, 3, padding=1)
        self.blur_down = BlurDownsample(keep)

    def __call__(self, x: mx.array) -> mx.array:
        """(N,H,W,C) -> (N,H*scale,W*scale,C), rounded up."""
        return self.blur_down(_shuffle(self.conv(x), self.enlarge))


def _shuffle(x: mx.array, size: int) -> mx.array:
    return depth_to_space(x[:, None], (1, size, size))[:, 0]


class LatentUpsampler(nn.Module):
    """Enlarges a denormalised latent in space or in time.

    `kind` is "spatial-x2", "spatial-x1.5" or "temporal-x2".
    """

    def __init__(self, config: UpsamplerConfig):
        super().__init__()
        self.config, self.kind = config, config.kind
        mid, layers = config.mid_channels, config.num_blocks_per_stage
        self.initial_conv = ZeroPaddedConv3d(config.in_channels, mid)
        self.initial_norm = nn.GroupNorm(GROUPS, mid, pytorch_compatible=True)
        self.res_blocks = [ResBlock(mid) for _ in range(layers)]
        self.upsampler: RationalResampler | list[nn.Module]
        if config.temporal:
            self.upsampler = [ZeroPaddedConv3d(mid, 2 * mid)]
        elif config.rational:
            self.upsampler = RationalResampler(mid, config.spatial_scale)
        else:
            self.upsampler = [nn.Conv2d(mid, 4 * mid, 3, padding=1)]
        self.post_upsample_res_blocks = [ResBlock(mid) for _ in range(layers)]
        self.final_conv = ZeroPaddedConv3d(mid, config.in_channels)

    def enlarge(self, x: mx.array) -> mx.array:
        """The resampler alone, (B,F,H,W,mid)."""
        if self.config.temporal:
            # The first latent frame stands for one pixel frame, so its double is dropped.
            return depth_to_space(self.upsampler[0](x), (2, 1, 1))[:, 1:]
        frames = x.reshape(-1, *x.shape[2:])
        if isinstance(self.upsampler, RationalResampler):
            frames = self.upsampler(frames)
        else:
            frames = _shuffle(self.upsampler[0](frames), 2)
        return frames.reshape(*x.shape[:2], *frames.shape[1:])

    def __call__(self, latent: mx.array) -> mx.array:
        """Upsample a latent.

        Args:
            latent: (B,F,H,W,C) on the encoder's own scale (`per_channel_statistics.denormalize`).
        Returns: (B,F,2H,2W,C), (B,F,ceil(3H/2),ceil(3W/2),C) or (B,2F-1,H,W,C) on the same scale, in the
            weights' dtype.
        Raises: ShapeError for other shapes.
        """
        if latent.ndim != 5 or latent.shape[-1] != self.config.in_channels or 0 in latent.shape:
            raise ShapeError(
                f"A latent of shape {latent.shape} cannot be upsampled; use (batch, latent frames, rows, "
                f"columns, {self.config.in_channels})."
            )
        x = self.initial_conv(latent.astype(self.initial_conv.weight.dtype))
        x = silu(self.initial_norm(x))
        for block in self.res_blocks:
            x = block(x)
        x = self.enlarge(x)
        for block in self.post_upsample_res_blocks:
            x = block(x)
        return self.final_conv(x)
