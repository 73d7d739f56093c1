"""Periodic activations without aliasing (BigVGAN, Lee et al. 2023), on (B, N, C) signals in float32."""

from __future__ import annotations

import mlx.core as mx
from mlx import nn

TAPS = 12
_EPS = 1e-9


class Snake(nn.Module):
    """x + sin^2(a x) / a with a = exp(alpha) per channel; SnakeBeta divides by exp(beta) instead."""

    def __init__(self, channels: int, *, with_beta: bool):
        super().__init__()
        self.alpha = mx.zeros((channels,))
        if with_beta:
            self.beta = mx.zeros((channels,))

    def __call__(self, x: mx.array) -> mx.array:
        frequency = mx.exp(self.alpha.astype(mx.float32))
        magnitude = mx.exp(self.beta.astype(mx.float32)) if "beta" in self else frequency
        return x + mx.square(mx.sin(x * frequency)) / (magnitude + _EPS)


class Filter(nn.Module):
    """Holder of one stored low-pass filter, (1, taps, 1)."""

    def __init__(self) -> None:
        super().__init__()
        self.filter = mx.zeros((1, TAPS, 1))


class Downsampler(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.lowpass = Filter()


class Activation1d(nn.Module):
    """Upsample by 2, activate, downsample by 2, each with its stored 12-tap filter.

    The doubled signal is never interleaved: its even and odd samples stay two signals of the input's length,
    so that both filters are plain depthwise convolutions of stride 1 with half the taps: the one form for
    which MLX has a kernel of its own on Metal.
    """

    def __init__(self, channels: int, *, with_beta: bool):
        super().__init__()
        self.act = Snake(channels, with_beta=with_beta)
        self.upsample = Filter()
        self.downsample = Downsampler()

    def __call__(self, x: mx.array) -> mx.array:
        """x: (B, N, C) float32; the same shape comes back."""
        up = 2 * self.upsample.filter.astype(mx.float32).reshape(-1)[::-1]
        down = self.downsample.lowpass.filter.astype(mx.float32).reshape(-1)
        first, last = x[:, :1], x[:, -1:]
        even = self.act(_filtered(_extended(first, 3, x, last, 2), up[0::2]))
        odd = self.act(_filtered(_extended(first, 2, x, last, 3), up[1::2]))
        first, last = even[:, :1], odd[:, -1:]
        low = _filtered(_extended(first, 2, even, last, 3), down[1::2])
        return low + _filtered(_extended(first, 3, odd, last, 2), down[0::2])


def _extended(first: mx.array, before: int, x: mx.array, last: mx.array, after: int) -> mx.array:
    return mx.concatenate([first] * before + [x] + [last] * after, axis=1)


def _filtered(x: mx.array, taps: mx.array) -> mx.array:
    """Correlate every channel of (B, N + taps - 1, C) with the same taps -> (B, N, C)."""
    channels = x.shape[-1]
    weight = mx.broadcast_to(taps[None, :, None], (channels, len(taps), 1))
    return mx.conv1d(x, weight, groups=channels)
