"""3-D convolution in the one form that MLX runs fast on Metal.

MLX turns a 3-D convolution into a sum of 2-D ones (2 to 5 times faster, Winograd where it applies) if the
batch is 1, stride and dilation along time are 1, time carries no padding and rows and columns carry theirs as
an argument. So time is padded outside by concatenation, zeros around the picture are passed on, only
reflection is a copy, and a batch is walked one sample at a time.
"""

from __future__ import annotations

import mlx.core as mx
from mlx import nn

from mlx_ltx2.errors import ShapeError

Stride = tuple[int, int, int]


def convolve(x: mx.array, weight: mx.array, bias: mx.array, stride: Stride, border: int) -> mx.array:
    """(B,F,H,W,C) * (O,kF,kH,kW,C) -> (B,F',H',W',O); `border` zeros around the picture, none along time."""
    padding = (0, border, border)
    if x.shape[0] == 1:
        return mx.conv3d(x, weight, stride, padding) + bias
    samples = [mx.conv3d(x[i : i + 1], weight, stride, padding) for i in range(x.shape[0])]
    return mx.concatenate(samples) + bias


def reflect(x: mx.array) -> mx.array:
    """Mirror one row and one column around (B,F,H,W,C) without repeating the edge.

    Raises: ShapeError for a picture one cell high or wide.
    """
    if x.shape[2] < 2 or x.shape[3] < 2:
        raise ShapeError(
            f"A picture of {x.shape[2]}x{x.shape[3]} cells cannot be mirrored at its edge; this decoder "
            "needs at least 2 latent rows and 2 latent columns (64x64 pixels)."
        )
    x = mx.concatenate([x[:, :, 1:2], x, x[:, :, -2:-1]], axis=2)
    return mx.concatenate([x[:, :, :, 1:2], x, x[:, :, :, -2:-1]], axis=3)


class Conv3d(nn.Conv3d):
    """3x3x3 convolution that keeps rows and columns; its caller pads time by two frames."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        stride: Stride = (1, 1, 1),
        padding: str = "zeros",
    ):
        super().__init__(in_channels, out_channels, kernel_size=3, stride=stride)
        self.reflects = padding == "reflect"

    def __call__(self, x: mx.array) -> mx.array:
        """(B,F+2,H,W,C) -> (B,F,H,W,O) at stride 1."""
        if self.reflects:
            x = reflect(x)
        return convolve(x, self.weight, self.bias, tuple(self.stride), 0 if self.reflects else 1)


class ZeroPaddedConv3d(Conv3d):
    """3x3x3 convolution with a zero frame before and after the clip, as the latent upsamplers use it."""

    def __call__(self, x: mx.array) -> mx.array:
        """(B,F,H,W,C) -> (B,F,H,W,O)."""
        return super().__call__(mx.pad(x, [(0, 0), (1, 1), (0, 0), (0, 0), (0, 0)]))


class CausalConv3d(nn.Module):
    """3x3x3 convolution that repeats frames at the clip's ends; checkpoint name `conv` below its owner's.

    Causal: the first frame stands three times in front. Otherwise: first and last frame stand twice.
    Source: `ltx_core.model.video_vae.convolution.CausalConv3d`.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        stride: Stride = (1, 1, 1),
        padding: str = "zeros",
    ):
        super().__init__()
        self.conv = Conv3d(in_channels, out_channels, stride=stride, padding=padding)

    def __call__(self, x: mx.array, *, causal: bool) -> mx.array:
        """(B,F,H,W,C) -> (B,F,H,W,O) at stride 1."""
        first = x[:, :1]
        ends = [first, first, x] if causal else [first, x, x[:, -1:]]
        return self.conv(mx.concatenate(ends, axis=1))
