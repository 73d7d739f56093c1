"""Blocks of the video autoencoder: residual groups, downsamplers, upsamplers.

Each is a chain of steps that see one cell at a time (norm, scale, SiLU, rearrangement) and of convolutions
three frames long; the steps are methods of their own, so that a streaming decoder can feed them frame by
frame.
"""

from __future__ import annotations

import math

import mlx.core as mx
from mlx import nn

from mlx_ltx2.errors import WeightsError
from mlx_ltx2.models.layers.kernels import silu
from mlx_ltx2.models.layers.norm import pixel_norm
from mlx_ltx2.models.layers.timestep import TimestepEmbedder
from mlx_ltx2.models.video_vae.config import Block
from mlx_ltx2.models.video_vae.convolution import CausalConv3d
from mlx_ltx2.models.video_vae.rearrange import depth_to_space, space_to_depth

EPS = 1e-8


def activate(x: mx.array, shift: mx.array | None = None, scale: mx.array | None = None) -> mx.array:
    """SiLU(norm(x) * (1 + scale) + shift) over channels, shift and scale (C,); without them SiLU(norm(x))."""
    if shift is None or scale is None:
        return silu(pixel_norm(x, EPS))
    return silu(mx.fast.rms_norm(x, 1 + scale, EPS) + shift)


class ResBlock(nn.Module):
    """Norm, SiLU, convolution, twice, plus the input; with a timestep, both norms are scaled and shifted.

    Source: `ltx_core.model.video_vae.resnet.ResnetBlock3D`.
    """

    def __init__(self, channels: int, *, padding: str, timestep_conditioning: bool):
        super().__init__()
        self.conv1 = CausalConv3d(channels, channels, padding=padding)
        self.conv2 = CausalConv3d(channels, channels, padding=padding)
        if timestep_conditioning:
            self.scale_shift_table = mx.zeros((4, channels))

    def modulation(self, embedding: mx.array | None) -> mx.array | None:
        """(4,C) embedding of the group's timestep -> rows shift1, scale1, shift2, scale2; None stays None."""
        return None if embedding is None else self.scale_shift_table.astype(embedding.dtype) + embedding

    def before_conv1(self, x: mx.array, modulation: mx.array | None) -> mx.array:
        """What the first convolution reads."""
        return activate(x) if modulation is None else activate(x, modulation[0], modulation[1])

    def before_conv2(self, x: mx.array, modulation: mx.array | None) -> mx.array:
        """What the second convolution reads."""
        return activate(x) if modulation is None else activate(x, modulation[2], modulation[3])

    def __call__(self, x: mx.array, *, causal: bool, embedding: mx.array | None = None) -> mx.array:
        """(B,F,H,W,C) -> (B,F,H,W,C)."""
        modulation = self.modulation(embedding)
        h = self.conv1(self.before_conv1(x, modulation), causal=causal)
        h = self.conv2(self.before_conv2(h, modulation), causal=causal)
        return x + h


class ResGroup(nn.Module):
    """A `res_x` entry: residual blocks that share one timestep embedding."""

    def __init__(self, channels: int, num_layers: int, *, padding: str, timestep_conditioning: bool = False):
        super().__init__()
        if timestep_conditioning:
            self.time_embedder = TimestepEmbedder(4 * channels)
        self.res_blocks = [
            ResBlock(channels, padding=padding, timestep_conditioning=timestep_conditioning) for _ in range(num_layers)
        ]

    def embed(self, timestep: mx.array | None, dtype: mx.Dtype) -> mx.array | None:
        """Scaled timestep, a float32 scalar -> (4,C) in `dtype`; None for a group without conditioning."""
        if timestep is None:
            return None
        return self.time_embedder(timestep, dtype).reshape(4, -1)

    def __call__(self, x: mx.array, *, causal: bool, timestep: mx.array | None = None) -> mx.array:
        """(B,F,H,W,C) -> (B,F,H,W,C)."""
        embedding = self.embed(timestep, x.dtype)
        for block in self.res_blocks:
            x = block(x, causal=causal, embedding=embedding)
        return x


class Downsample(nn.Module):
    """A `compress_*_res` entry: convolution and space-to-depth, plus the group means of the rearranged input.

    Source: `ltx_core.model.video_vae.sampling.SpaceToDepthDownsample`.
    """

    def __init__(self, in_channels: int, out_channels: int, stride: tuple[int, int, int], *, padding: str):
        super().__init__()
        cells = math.prod(stride)
        if out_channels % cells or (in_channels * cells) % out_channels:
            raise WeightsError(
                f"vae config: {in_channels} channels cannot be compressed by {stride} into {out_channels}; "
                f"the new count must be a multiple of {cells} and a divisor of {in_channels * cells}."
            )
        self.stride = stride
        self.group_size = in_channels * cells // out_channels
        self.conv = CausalConv3d(in_channels, out_channels // cells, padding=padding)

    def __call__(self, x: mx.array, *, causal: bool) -> mx.array:
        """(B,F,H,W,C) -> (B,(F+1)/2 or F,H/s,W/s,O); halving time counts the first frame twice."""
        if self.stride[0] == 2:
            x = mx.concatenate([x[:, :1], x], axis=1)
        skip = space_to_depth(x, self.stride)
        skip = skip.reshape(*skip.shape[:-1], -1, self.group_size).mean(axis=-1)
        return space_to_depth(self.conv(x, causal=causal), self.stride) + skip


class Upsample(nn.Module):
    """A decoder's `compress_*` entry: convolution and depth-to-space, optionally plus the rearranged input.

    Source: `ltx_core.model.video_vae.sampling.DepthToSpaceUpsample`.
    """

    def __init__(self, channels: int, block: Block, *, padding: str):
        super().__init__()
        self.stride, self.residual = block.stride, block.residual
        cells = math.prod(self.stride)
        if channels % block.multiplier or (self.residual and (channels % cells or cells % block.multiplier)):
            raise WeightsError(
                f"vae config: {channels} channels cannot be expanded by {self.stride} with multiplier "
                f"{block.multiplier}{' and a residual' if self.residual else ''}; the counts do not divide."
            )
        self.conv = CausalConv3d(channels, cells * channels // block.multiplier, padding=padding)

    def expand(self, x: mx.array, h: mx.array) -> mx.array:
        """Input x (B,F,H,W,C) and its convolution h -> (B,F*s,H*s,W*s,O), the first frame not yet dropped."""
        h = depth_to_space(h, self.stride)
        if not self.residual:
            return h
        skip = depth_to_space(x, self.stride)
        # The whole of the skip's channels repeats, hence the repetition is the slower axis.
        tiled = h.reshape(*h.shape[:-1], -1, skip.shape[-1]) + skip[..., None, :]
        return tiled.reshape(h.shape)

    def __call__(self, x: mx.array, *, causal: bool) -> mx.array:
        """(B,F,H,W,C) -> (B,2F-1 or F,H*s,W*s,O)."""
        h = self.expand(x, self.conv(x, causal=causal))
        return h[:, 1:] if self.stride[0] == 2 else h
