"""Vocoders of LTX-2 (HiFi-GAN, 24 kHz) and LTX-2.3 (BigVGAN v2 at 16 kHz, extended to 48 kHz).

Reference: `ltx_core.model.audio_vae.vocoder`. Everything is computed in float32 whatever the weights' dtype:
bfloat16 errors add up over a hundred convolutions and are audible in the spectrum. Signals are (B, N, C).
"""

from __future__ import annotations

import math

import mlx.core as mx
import numpy as np
from mlx import nn

from mlx_ltx2.errors import ShapeError
from mlx_ltx2.models.layers.kernels import leaky_relu
from mlx_ltx2.models.vocoder.activation import Activation1d
from mlx_ltx2.models.vocoder.config import (
    CHANNELS,
    MEL_BINS,
    BandwidthExtensionConfig,
    GeneratorConfig,
    VocoderConfig,
)

SLOPE = 0.1
LAST_SLOPE = 0.01
LOG_FLOOR = 1e-5
_SINC_CROSSINGS = 6
_SINC_ROLLOFF = 0.99


class TransposedConv1d(nn.Module):
    """Transposed convolution of stride s as one plain convolution with s times the output channels.

    weight: (out, k, in). Output length (N - 1) * s + k - 2 * ((k - s) // 2).
    """

    def __init__(self, in_channels: int, out_channels: int, kernel_size: int, stride: int):
        super().__init__()
        bound = 1 / math.sqrt(in_channels * kernel_size)
        self.weight = mx.random.uniform(-bound, bound, (out_channels, kernel_size, in_channels))
        self.bias = mx.zeros((out_channels,))
        self._stride = stride

    def __call__(self, x: mx.array) -> mx.array:
        out_channels, kernel_size, in_channels = self.weight.shape
        stride, n = self._stride, x.shape[1]
        reach = -(-kernel_size // stride)
        # Output m = s i + j takes input i with tap j: each residue of m is a convolution of its own.
        weight = mx.pad(self.weight, [(0, 0), (0, reach * stride - kernel_size), (0, 0)])
        weight = weight.reshape(out_channels, reach, stride, in_channels)[:, ::-1].transpose(2, 0, 1, 3)
        y = mx.conv1d(x, weight.reshape(stride * out_channels, reach, in_channels), padding=reach - 1)
        y = y.reshape(x.shape[0], -1, out_channels)
        cut = (kernel_size - stride) // 2
        return y[:, cut : (n - 1) * stride + kernel_size - cut] + self.bias


def _conv(channels: int, kernel_size: int, dilation: int = 1) -> nn.Conv1d:
    return nn.Conv1d(channels, channels, kernel_size, padding=(kernel_size - 1) * dilation // 2, dilation=dilation)


class ResBlock(nn.Module):
    """HiFi-GAN's block: thrice (leaky ReLU, dilated convolution, leaky ReLU, convolution) and add."""

    def __init__(self, channels: int, kernel_size: int, dilations: tuple[int, ...]):
        super().__init__()
        self.convs1 = [_conv(channels, kernel_size, d) for d in dilations]
        self.convs2 = [_conv(channels, kernel_size) for _ in dilations]

    def __call__(self, x: mx.array) -> mx.array:
        for conv1, conv2 in zip(self.convs1, self.convs2, strict=True):
            h = conv1(leaky_relu(x, SLOPE))
            x = x + conv2(leaky_relu(h, SLOPE))
        return x


class AMPBlock(nn.Module):
    """BigVGAN's block: as ResBlock, with an anti-aliased periodic activation before each convolution."""

    def __init__(self, channels: int, kernel_size: int, dilations: tuple[int, ...], *, with_beta: bool):
        super().__init__()
        self.convs1 = [_conv(channels, kernel_size, d) for d in dilations]
        self.convs2 = [_conv(channels, kernel_size) for _ in dilations]
        self.acts1 = [Activation1d(channels, with_beta=with_beta) for _ in dilations]
        self.acts2 = [Activation1d(channels, with_beta=with_beta) for _ in dilations]

    def __call__(self, x: mx.array) -> mx.array:
        for conv1, conv2, act1, act2 in zip(self.convs1, self.convs2, self.acts1, self.acts2, strict=True):
            x = x + conv2(act2(conv1(act1(x))))
        return x


class Vocoder(nn.Module):
    """Log-mel frames -> waveform, `config.ratio` samples per frame."""

    def __init__(self, config: GeneratorConfig, rate_hz: int):
        super().__init__()
        self.config = config
        self._rate_hz = rate_hz
        width = config.upsample_initial_channel
        self.conv_pre = nn.Conv1d(CHANNELS * MEL_BINS, width, 7, padding=3)
        self.ups = []
        self.resblocks = []
        for rate, kernel in zip(config.upsample_rates, config.upsample_kernel_sizes, strict=True):
            self.ups.append(TransposedConv1d(width, width // 2, kernel, rate))
            width //= 2
            self.resblocks += [
                self._block(width, k, dilations)
                for k, dilations in zip(config.resblock_kernel_sizes, config.resblock_dilation_sizes, strict=True)
            ]
        if config.resblock == "AMP1":
            self.act_post = Activation1d(width, with_beta=True)  # also where the blocks use plain snake
        self.conv_post = nn.Conv1d(width, CHANNELS, 7, padding=3, bias=config.use_bias_at_final)

    @property
    def rate_hz(self) -> int:
        """Samples per second of the output."""
        return self._rate_hz

    def __call__(self, mel: mx.array) -> mx.array:
        """mel: (B, T, 64, 2) natural-log magnitudes.

        Returns float32 (B, T * ratio, 2), in [-1, 1] where the final activation is applied.
        """
        if mel.ndim != 4 or mel.shape[2:] != (MEL_BINS, CHANNELS) or not mel.shape[1]:
            raise ShapeError(f"mel has shape {mel.shape}; the vocoder takes (B, T, {MEL_BINS}, {CHANNELS}).")
        b, t = mel.shape[:2]
        hifigan = self.config.resblock == "1"
        x = mel.astype(mx.float32).transpose(0, 1, 3, 2).reshape(b, t, CHANNELS * MEL_BINS)
        x = self.conv_pre(x)
        width = len(self.config.resblock_kernel_sizes)
        for stage, up in enumerate(self.ups):
            x = up(leaky_relu(x, SLOPE) if hifigan else x)
            blocks = self.resblocks[stage * width : (stage + 1) * width]
            x = sum((block(x) for block in blocks[1:]), start=blocks[0](x)) / width
        x = self.conv_post(leaky_relu(x, LAST_SLOPE) if hifigan else self.act_post(x))
        if self.config.apply_final_activation:
            x = mx.tanh(x) if self.config.use_tanh_at_final else mx.clip(x, -1, 1)
        out: mx.array = x
        return out

    def _block(self, channels: int, kernel_size: int, dilations: tuple[int, ...]) -> nn.Module:
        if self.config.resblock == "1":
            return ResBlock(channels, kernel_size, dilations)
        return AMPBlock(channels, kernel_size, dilations, with_beta=self.config.activation == "snakebeta")


class STFTBases(nn.Module):
    """Stored Fourier bases, window included; the inverse is in the file and unused."""

    def __init__(self, n_fft: int):
        super().__init__()
        rows = n_fft + 2
        self.forward_basis = mx.zeros((rows, n_fft, 1))
        self.inverse_basis = mx.zeros((rows, n_fft, 1))


class MelSTFT(nn.Module):
    """Causal log-mel spectrogram of mono signals with the bases and filters stored in the checkpoint."""

    def __init__(self, n_fft: int, hop_length: int):
        super().__init__()
        self.stft_fn = STFTBases(n_fft)
        self.mel_basis = mx.zeros((MEL_BINS, n_fft // 2 + 1))
        self._n_fft, self._hop_length = n_fft, hop_length

    def __call__(self, x: mx.array) -> mx.array:
        """x: (B, N) float32, N a multiple of the hop. Returns (B, N / hop, 64)."""
        before = max(0, self._n_fft - self._hop_length)
        x = mx.pad(x, [(0, 0), (before, 0)])[..., None]
        spectrum = mx.conv1d(x, self.stft_fn.forward_basis.astype(mx.float32), stride=self._hop_length)
        real, imaginary = mx.split(spectrum, 2, axis=-1)
        magnitude = mx.sqrt(mx.square(real) + mx.square(imaginary))
        return mx.log(mx.maximum(magnitude @ self.mel_basis.astype(mx.float32).T, LOG_FLOOR))


class VocoderWithBWE(nn.Module):
    """Core vocoder, its sound resampled, plus the upper band that a second generator adds."""

    def __init__(self, core: GeneratorConfig, extension: BandwidthExtensionConfig):
        super().__init__()
        self.config = extension
        self.vocoder = Vocoder(core, extension.input_rate_hz)
        self.bwe_generator = Vocoder(extension.generator, extension.output_rate_hz)
        self.mel_stft = MelSTFT(extension.n_fft, extension.hop_length)
        self._sinc = mx.array(sinc_phases(extension.ratio))

    @property
    def rate_hz(self) -> int:
        """Samples per second of the output."""
        return self.config.output_rate_hz

    def __call__(self, mel: mx.array) -> mx.array:
        """mel: (B, T, 64, 2) natural-log magnitudes.

        Returns float32 (B, T * core ratio * rate ratio, 2) in [-1, 1].
        """
        x = self.vocoder(mel)
        b, n, channels = x.shape
        x = mx.pad(x, [(0, 0), (0, -n % self.config.hop_length), (0, 0)])
        mono = x.transpose(0, 2, 1).reshape(b * channels, -1)
        low_mel = self.mel_stft(mono).reshape(b, channels, -1, MEL_BINS).transpose(0, 2, 3, 1)
        skip = self._resampled(mono).reshape(b, channels, -1).transpose(0, 2, 1)
        return mx.clip(self.bwe_generator(low_mel) + skip, -1, 1)[:, : n * self.config.ratio]

    def _resampled(self, x: mx.array) -> mx.array:
        """(B, N) -> (B, N * ratio): each phase of the windowed sinc is one output channel."""
        reach = self._sinc.shape[1] // 2
        x = mx.concatenate([x[:, :1]] * reach + [x] + [x[:, -1:]] * reach, axis=1)
        return mx.conv1d(x[..., None], self._sinc).reshape(x.shape[0], -1)


def sinc_phases(ratio: int) -> np.ndarray:
    """(ratio, 15, 1) float32 taps that put `ratio` samples where there was one: sinc under a Hann window.

    The filter is not stored in checkpoints; it is that of `torchaudio.functional.resample`'s defaults.
    """
    reach = math.ceil(_SINC_CROSSINGS / _SINC_ROLLOFF)
    offsets = np.arange(-reach, reach + 1)[None, :] - np.arange(ratio)[:, None] / ratio
    crossings = offsets * _SINC_ROLLOFF
    window = np.cos(np.clip(crossings, -_SINC_CROSSINGS, _SINC_CROSSINGS) * (np.pi / _SINC_CROSSINGS / 2)) ** 2
    result: np.ndarray = (np.sinc(crossings) * window * _SINC_ROLLOFF).astype(np.float32)[..., None]
    return result


def build_vocoder(config: VocoderConfig) -> Vocoder | VocoderWithBWE:
    """The network that a checkpoint's config describes."""
    if config.bandwidth_extension is None:
        return Vocoder(config.generator, config.rate_hz)
    return VocoderWithBWE(config.generator, config.bandwidth_extension)
