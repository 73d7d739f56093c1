"""The audio VAE of LTX-2 and LTX-2.3 (reference: `ltx_core.model.audio_vae`).

Arrays are (B, T, mel, C). Time is causal: every convolution looks back only. Two halvings of both axes turn T
mel frames into ceil(ceil(T / 2) / 2) latents; the way back gives 4 T' - 3 frames.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import mlx.core as mx
from mlx import nn

from mlx_ltx2.errors import ShapeError, WeightsError
from mlx_ltx2.models.layers.kernels import silu
from mlx_ltx2.models.layers.norm import pixel_norm
from mlx_ltx2.shapes import AudioScale

NORM_EPS = 1e-6
_ATTENTION_FALLBACK = (8, 16, 32)


@dataclass(frozen=True)
class AudioVAEConfig:
    """The `audio_vae` section of a checkpoint's config.

    base_channels, multipliers, num_res_blocks: width and depth of the levels. latent_channels: of a latent.
    mel_bins, in_channels, out_channels: shape of a mel frame. rate_hz, hop_length, n_fft: the mel front end.
    """

    base_channels: int = 128
    multipliers: tuple[int, ...] = (1, 2, 4)
    num_res_blocks: int = 2
    in_channels: int = 2
    out_channels: int = 2
    latent_channels: int = 8
    mel_bins: int = 64
    rate_hz: int = 16000
    hop_length: int = 160
    n_fft: int = 1024

    @property
    def latent_mel(self) -> int:
        """Rows of a latent along the mel axis: each halving pads one row, hence floor."""
        return self.mel_bins // self.scale.downsample

    @property
    def scale(self) -> AudioScale:
        """The clock of the latents: every level but the first halves the time."""
        return AudioScale(self.rate_hz, self.hop_length, 2 ** (len(self.multipliers) - 1))

    @classmethod
    def from_dict(cls, section: Mapping[str, Any]) -> AudioVAEConfig:
        """Read the checkpoint's own JSON; absent keys take the reference's fallbacks.

        Raises: WeightsError for attention, another norm, another causality axis or no number of mel bins.
        """
        params = section.get("model", {}).get("params", {})
        network = params.get("ddconfig", {})
        preprocessing = section.get("preprocessing", {})
        stft = preprocessing.get("stft", {})
        multipliers = tuple(network.get("ch_mult", (1, 2, 4)))
        _refuse_other_kinds(network, stft, len(multipliers))
        mel_bins = (
            network.get("mel_bins")
            or preprocessing.get("mel", {}).get("n_mel_channels")
            or section.get("variables", {}).get("mel_bins")
        )
        if not mel_bins:
            raise WeightsError(
                "audio_vae config has no mel_bins, n_mel_channels or variables.mel_bins; use a checkpoint "
                "whose config says how many mel bins it was trained on."
            )
        return cls(
            base_channels=network.get("ch", 128),
            multipliers=multipliers,
            num_res_blocks=network.get("num_res_blocks", 2),
            in_channels=network.get("in_channels", 2),
            out_channels=network.get("out_ch", 2),
            latent_channels=network.get("z_channels", 8),
            mel_bins=mel_bins,
            rate_hz=params.get("sampling_rate", 16000),
            hop_length=stft.get("hop_length", 160),
            n_fft=stft.get("filter_length", 1024),
        )


def _refuse_other_kinds(network: Mapping[str, Any], stft: Mapping[str, Any], levels: int) -> None:
    supported = {
        "norm_type": (network.get("norm_type", "pixel"), "pixel"),
        "causality_axis": (network.get("causality_axis", "height"), "height"),
        "mid_block_add_attention": (network.get("mid_block_add_attention", True), False),
        "resamp_with_conv": (network.get("resamp_with_conv", True), True),
        "double_z": (network.get("double_z", True), True),
        "stft.causal": (stft.get("causal", True), True),
    }
    for key, (given, allowed) in supported.items():
        if given != allowed:
            raise WeightsError(
                f"audio_vae config {key} is {given!r} (given or by the format's fallback); only {allowed!r} "
                "is supported. Use an LTX-2 or LTX-2.3 checkpoint."
            )
    resolutions = {network.get("resolution", 256) // 2**level for level in range(levels)}
    attended = resolutions & set(network.get("attn_resolutions", _ATTENTION_FALLBACK))
    if attended:
        raise WeightsError(
            f"audio_vae config attn_resolutions asks for attention at {sorted(attended)}; levels with "
            "attention are not supported. Use an LTX-2 or LTX-2.3 checkpoint."
        )


class PerChannelStatistics(nn.Module):
    """Mean and deviation of the mel * C latent features, stored channel-major (index c * mel + row)."""

    def __init__(self, features: int):
        super().__init__()
        setattr(self, "mean-of-means", mx.zeros((features,)))
        setattr(self, "std-of-means", mx.ones((features,)))

    def normalize(self, x: mx.array) -> mx.array:
        """(B, T, mel, C) as encoded -> the same with mean 0 and deviation 1 per feature."""
        return (x - self._rows("mean-of-means", x)) / self._rows("std-of-means", x)

    def denormalize(self, x: mx.array) -> mx.array:
        """Inverse of `normalize`."""
        return x * self._rows("std-of-means", x) + self._rows("mean-of-means", x)

    def _rows(self, name: str, x: mx.array) -> mx.array:
        mel, channels = x.shape[-2:]
        out: mx.array = self[name].astype(x.dtype).reshape(channels, mel).T
        return out


class CausalConv2d(nn.Module):
    """Convolution that pads time in front only and mel on both sides, with zeros."""

    def __init__(self, in_channels: int, out_channels: int, kernel_size: int = 3):
        super().__init__()
        self.conv = nn.Conv2d(in_channels, out_channels, kernel_size)
        self._reach = kernel_size - 1

    def __call__(self, x: mx.array) -> mx.array:
        if self._reach:
            side = self._reach // 2
            x = mx.pad(x, [(0, 0), (self._reach, 0), (side, self._reach - side), (0, 0)])
        out: mx.array = self.conv(x)
        return out


class Downsample(nn.Module):
    """Halves time (rounded up) and mel (rounded down)."""

    def __init__(self, channels: int):
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, stride=2)

    def __call__(self, x: mx.array) -> mx.array:
        out: mx.array = self.conv(mx.pad(x, [(0, 0), (2, 0), (0, 1), (0, 0)]))
        return out


class Upsample(nn.Module):
    """Doubles mel, and turns T rows of time into 2 T - 1."""

    def __init__(self, channels: int):
        super().__init__()
        self.conv = CausalConv2d(channels, channels)

    def __call__(self, x: mx.array) -> mx.array:
        b, t, f, c = x.shape
        x = mx.broadcast_to(x[:, :, None, :, None, :], (b, t, 2, f, 2, c)).reshape(b, 2 * t, 2 * f, c)
        # The encoder's first latent saw one frame where the others saw two, so its first copy is dropped.
        return self.conv(x)[:, 1:]


class ResnetBlock(nn.Module):
    def __init__(self, in_channels: int, out_channels: int):
        super().__init__()
        self.conv1 = CausalConv2d(in_channels, out_channels)
        self.conv2 = CausalConv2d(out_channels, out_channels)
        if in_channels != out_channels:
            self.nin_shortcut = CausalConv2d(in_channels, out_channels, kernel_size=1)

    def __call__(self, x: mx.array) -> mx.array:
        h = self.conv1(silu(pixel_norm(x, NORM_EPS)))
        h = self.conv2(silu(pixel_norm(h, NORM_EPS)))
        return (self.nin_shortcut(x) if "nin_shortcut" in self else x) + h


class MidBlock(nn.Module):
    def __init__(self, channels: int):
        super().__init__()
        self.block_1 = ResnetBlock(channels, channels)
        self.block_2 = ResnetBlock(channels, channels)

    def __call__(self, x: mx.array) -> mx.array:
        return self.block_2(self.block_1(x))


class Level(nn.Module):
    """Residual blocks of one resolution, and the step to the next one if there is one."""

    def __init__(self, in_channels: int, out_channels: int, num_blocks: int):
        super().__init__()
        widths = [in_channels] + [out_channels] * (num_blocks - 1)
        self.block = [ResnetBlock(width, out_channels) for width in widths]

    def __call__(self, x: mx.array) -> mx.array:
        for block in self.block:
            x = block(x)
        if "downsample" in self:
            out: mx.array = self.downsample(x)
            return out
        return self.upsample(x) if "upsample" in self else x


class AudioEncoder(nn.Module):
    """Log-mel frames -> normalised latents (the distribution's mean; nothing is sampled)."""

    def __init__(self, config: AudioVAEConfig):
        super().__init__()
        self.config = config
        widths = [config.base_channels * m for m in config.multipliers]
        self.per_channel_statistics = PerChannelStatistics(config.latent_channels * config.latent_mel)
        self.conv_in = CausalConv2d(config.in_channels, config.base_channels)
        self.down = []
        for level, width in enumerate(widths):
            previous = widths[level - 1] if level else config.base_channels
            self.down.append(Level(previous, width, config.num_res_blocks))
            if level != len(widths) - 1:
                self.down[-1].downsample = Downsample(width)
        self.mid = MidBlock(widths[-1])
        self.conv_out = CausalConv2d(widths[-1], 2 * config.latent_channels)

    def __call__(self, mel: mx.array) -> mx.array:
        """Encode.

        mel: (B, T, mel_bins, in_channels) natural-log mel magnitudes, as `log_mel` gives them.
        Returns (B, ceil(ceil(T / 2) / 2), latent_mel, latent_channels), normalised, in the weights' dtype.
        """
        expected = (self.config.mel_bins, self.config.in_channels)
        if mel.ndim != 4 or mel.shape[2:] != expected or not mel.shape[1]:
            raise ShapeError(
                f"mel has shape {mel.shape}; the audio encoder takes (B, T, {expected[0]}, {expected[1]})."
            )
        x = self.conv_in(mel.astype(self.conv_in.conv.weight.dtype))
        for level in self.down:
            x = level(x)
        x = self.conv_out(silu(pixel_norm(self.mid(x), NORM_EPS)))
        mean = x[..., : self.config.latent_channels]  # the other half is the unused logarithm of the variance
        return self.per_channel_statistics.normalize(mean)


class AudioDecoder(nn.Module):
    """Normalised latents -> log-mel frames."""

    def __init__(self, config: AudioVAEConfig):
        super().__init__()
        self.config = config
        widths = [config.base_channels * m for m in config.multipliers]
        self.per_channel_statistics = PerChannelStatistics(config.latent_channels * config.latent_mel)
        self.conv_in = CausalConv2d(config.latent_channels, widths[-1])
        self.mid = MidBlock(widths[-1])
        self.up = []
        for level, width in enumerate(widths):
            previous = widths[min(level + 1, len(widths) - 1)]
            self.up.append(Level(previous, width, config.num_res_blocks + 1))
            if level:
                self.up[-1].upsample = Upsample(width)
        self.conv_out = CausalConv2d(widths[0], config.out_channels)

    def __call__(self, latent: mx.array) -> mx.array:
        """Decode.

        latent: (B, T, latent_mel, latent_channels), normalised.
        Returns log-mel (B, 4 T - 3, mel_bins, out_channels) in the weights' dtype; bins beyond those that the
        network makes are 0.
        """
        expected = (self.config.latent_mel, self.config.latent_channels)
        if latent.ndim != 4 or latent.shape[2:] != expected or not latent.shape[1]:
            raise ShapeError(
                f"latent has shape {latent.shape}; the audio decoder takes (B, T, {expected[0]}, {expected[1]})."
            )
        x = latent.astype(self.conv_in.conv.weight.dtype)
        x = self.mid(self.conv_in(self.per_channel_statistics.denormalize(x)))
        for level in reversed(self.up):
            x = level(x)
        x = self.conv_out(silu(pixel_norm(x, NORM_EPS)))
        missing = self.config.mel_bins - x.shape[2]
        return mx.pad(x, [(0, 0), (0, 0), (0, missing), (0, 0)]) if missing else x
