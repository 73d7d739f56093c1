"""The `vocoder` section of a checkpoint's config: flat in LTX-2, nested with a `bwe` part in LTX-2.3."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from mlx_ltx2.errors import WeightsError

CHANNELS = 2
MEL_BINS = 64
"""Stereo and 64 mel bins are fixed by the format; the config does not mention them."""


@dataclass(frozen=True)
class GeneratorConfig:
    """One mel-to-wave network. Keys and fallbacks are those of `ltx_core`'s configurator.

    upsample_rates, upsample_kernel_sizes: one transposed convolution each. resblock_kernel_sizes,
    resblock_dilation_sizes: parallel residual blocks after each of them. resblock: "1" (HiFi-GAN) or "AMP1"
    (BigVGAN v2). activation: "snake" or "snakebeta", read with AMP1 only. apply_final_activation: tanh, or
    clamp to [-1, 1] where use_tanh_at_final is false.
    """

    upsample_rates: tuple[int, ...] = (6, 5, 2, 2, 2)
    upsample_kernel_sizes: tuple[int, ...] = (16, 15, 8, 4, 4)
    resblock_kernel_sizes: tuple[int, ...] = (3, 7, 11)
    resblock_dilation_sizes: tuple[tuple[int, ...], ...] = ((1, 3, 5),) * 3
    upsample_initial_channel: int = 1024
    resblock: str = "1"
    activation: str = "snake"
    use_tanh_at_final: bool = True
    use_bias_at_final: bool = True
    apply_final_activation: bool = True

    @property
    def ratio(self) -> int:
        """Samples per mel frame."""
        return math.prod(self.upsample_rates)

    @classmethod
    def from_dict(cls, section: Mapping[str, Any], *, apply_final_activation: bool = True) -> GeneratorConfig:
        """Raises: WeightsError for lists that do not fit each other, an unknown block or activation."""
        config = cls(
            upsample_rates=tuple(section.get("upsample_rates", cls.upsample_rates)),
            upsample_kernel_sizes=tuple(section.get("upsample_kernel_sizes", cls.upsample_kernel_sizes)),
            resblock_kernel_sizes=tuple(section.get("resblock_kernel_sizes", cls.resblock_kernel_sizes)),
            resblock_dilation_sizes=tuple(
                tuple(d) for d in section.get("resblock_dilation_sizes", cls.resblock_dilation_sizes)
            ),
            upsample_initial_channel=section.get("upsample_initial_channel", cls.upsample_initial_channel),
            resblock=section.get("resblock", cls.resblock),
            activation=section.get("activation", cls.activation),
            use_tanh_at_final=section.get("use_tanh_at_final", True),
            use_bias_at_final=section.get("use_bias_at_final", True),
            apply_final_activation=apply_final_activation,
        )
        config._check()
        return config

    def _check(self) -> None:
        if self.resblock not in ("1", "AMP1"):
            raise WeightsError(f"vocoder config resblock is {self.resblock!r}; '1' and 'AMP1' are supported.")
        if self.activation not in ("snake", "snakebeta"):
            raise WeightsError(
                f"vocoder config activation is {self.activation!r}; 'snake' and 'snakebeta' are supported."
            )
        stages = len(self.upsample_rates)
        if stages != len(self.upsample_kernel_sizes) or any(
            k < r for k, r in zip(self.upsample_kernel_sizes, self.upsample_rates, strict=True)
        ):
            raise WeightsError(
                f"vocoder config upsample_kernel_sizes {self.upsample_kernel_sizes} do not fit "
                f"upsample_rates {self.upsample_rates}; each rate needs one kernel that is at least as long."
            )
        if len(self.resblock_kernel_sizes) != len(self.resblock_dilation_sizes):
            raise WeightsError(
                f"vocoder config has {len(self.resblock_kernel_sizes)} resblock_kernel_sizes and "
                f"{len(self.resblock_dilation_sizes)} resblock_dilation_sizes; they must be as many."
            )
        if any(k % 2 == 0 for k in self.resblock_kernel_sizes):
            raise WeightsError(
                f"vocoder config resblock_kernel_sizes {self.resblock_kernel_sizes} must be odd, so that a "
                "block keeps its length."
            )
        if self.upsample_initial_channel % 2**stages:
            raise WeightsError(
                f"vocoder config upsample_initial_channel {self.upsample_initial_channel} cannot be halved "
                f"{stages} times; it must be a multiple of {2**stages}."
            )


@dataclass(frozen=True)
class BandwidthExtensionConfig:
    """The network that adds the upper band: its generator, both rates and its own mel front end."""

    generator: GeneratorConfig
    input_rate_hz: int
    output_rate_hz: int
    hop_length: int
    n_fft: int

    @property
    def ratio(self) -> int:
        return self.output_rate_hz // self.input_rate_hz

    @classmethod
    def from_dict(cls, section: Mapping[str, Any]) -> BandwidthExtensionConfig:
        """Raises: WeightsError for a missing key or for rates, hop and generator that do not agree."""
        needed = ("input_sampling_rate", "output_sampling_rate", "hop_length", "n_fft", "num_mels")
        missing = [key for key in needed if key not in section]
        if missing:
            raise WeightsError(f"vocoder config bwe lacks {', '.join(missing)}; the file's config is incomplete.")
        _require(section, "num_mels", MEL_BINS, "vocoder config bwe")
        config = cls(
            # The residual is added to the resampled core, so nothing may bend it before the sum.
            generator=GeneratorConfig.from_dict(section, apply_final_activation=False),
            input_rate_hz=section["input_sampling_rate"],
            output_rate_hz=section["output_sampling_rate"],
            hop_length=section["hop_length"],
            n_fft=section["n_fft"],
        )
        if config.output_rate_hz % config.input_rate_hz:
            raise WeightsError(
                f"vocoder config bwe goes from {config.input_rate_hz} to {config.output_rate_hz} Hz; the "
                "output rate must be a multiple of the input rate."
            )
        if config.generator.ratio != config.hop_length * config.ratio:
            raise WeightsError(
                f"vocoder config bwe makes {config.generator.ratio} samples per mel frame where its hop of "
                f"{config.hop_length} times {config.ratio} needs {config.hop_length * config.ratio}."
            )
        return config


@dataclass(frozen=True)
class VocoderConfig:
    """generator: the (core) vocoder. rate_hz: of the final waveform. bandwidth_extension: None in LTX-2."""

    generator: GeneratorConfig
    rate_hz: int = 24000
    bandwidth_extension: BandwidthExtensionConfig | None = None

    @classmethod
    def from_dict(cls, section: Mapping[str, Any]) -> VocoderConfig:
        """Read the checkpoint's own JSON; the key `bwe` tells the two generations apart.

        Raises: WeightsError for a key that the format fixes and that is absent or differs, or as parts do.
        """
        if "bwe" not in section:
            _require(section, "resblock", "1", "vocoder config")
            _require(section, "stereo", True, "vocoder config")
            return cls(GeneratorConfig.from_dict(section), section.get("output_sampling_rate", 24000))
        core, extension = section.get("vocoder", {}), section["bwe"]
        for part, where in ((core, "vocoder config vocoder"), (extension, "vocoder config bwe")):
            _require(part, "resblock", "AMP1", where)
            _require(part, "stereo", True, where)
            _require(part, "activation", "snakebeta", where)
        bwe = BandwidthExtensionConfig.from_dict(extension)
        return cls(GeneratorConfig.from_dict(core), bwe.output_rate_hz, bwe)


def _require(section: Mapping[str, Any], key: str, allowed: object, where: str) -> None:
    given = section.get(key)
    if given != allowed:
        shown = repr(given) if key in section else "absent"
        raise WeightsError(f"{where}.{key} is {shown}; it must be {allowed!r} in LTX-2 and LTX-2.3 checkpoints.")
