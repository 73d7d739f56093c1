"""The `vae` section of a checkpoint's config, with each key's own fallback."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from mlx_ltx2.errors import WeightsError
from mlx_ltx2.shapes import VideoScale

CLASS_NAME = "CausalVideoAutoencoder"
PADDING_MODES = ("zeros", "reflect")
LOG_VAR_CHANNELS = ("uniform", "constant", "per_channel")

STRIDES = {"compress_time": (2, 1, 1), "compress_space": (1, 2, 2), "compress_all": (2, 2, 2)}
"""Frames, rows and columns that a block halves (encoder) or doubles (decoder), by the start of its kind."""

ENCODER_KINDS = ("res_x", *STRIDES, *(f"{kind}_res" for kind in STRIDES), "compress_all_x_y")
DECODER_KINDS = ("res_x", *STRIDES)


@dataclass(frozen=True)
class Block:
    """One entry of `encoder_blocks` or `decoder_blocks`.

    kind: name in the checkpoint. num_layers: residual blocks of a `res_x`. multiplier: growth (encoder) or
    shrinkage (decoder) of the channels. residual: the decoder's `compress_all` adds its rearranged input.
    """

    kind: str
    num_layers: int = 0
    multiplier: int = 1
    residual: bool = False

    @property
    def stride(self) -> tuple[int, int, int]:
        """Scale of frames, rows and columns; (1, 1, 1) for `res_x`."""
        return next((s for start, s in STRIDES.items() if self.kind.startswith(start)), (1, 1, 1))


@dataclass(frozen=True)
class VideoVAEConfig:
    """Shape of the video autoencoder.

    `decoder_blocks` keep the stored order; the decoder is built from them in reverse. The one key
    `spatial_padding_mode` has two fallbacks, zeros for the encoder and reflection for the decoder.
    """

    encoder_blocks: tuple[Block, ...]
    decoder_blocks: tuple[Block, ...]
    in_channels: int = 3
    out_channels: int = 3
    latent_channels: int = 128
    patch_size: int = 4
    encoder_base_channels: int = 128
    decoder_base_channels: int = 128
    encoder_padding: str = "zeros"
    decoder_padding: str = "reflect"
    latent_log_var: str = "uniform"
    timestep_conditioning: bool = True
    causal_decoder: bool = False

    @property
    def scale(self) -> VideoScale:
        """Compression of the clip, read off the block list (8 in time, 32 in space for both generations).

        Without a list: that of the released models.
        """
        blocks = self.encoder_blocks or self.decoder_blocks
        if not blocks:
            return VideoScale()
        time = math.prod(block.stride[0] for block in blocks)
        return VideoScale(time, self.patch_size * math.prod(block.stride[1] for block in blocks))

    @property
    def bottleneck_channels(self) -> int:
        """Channels where the decoder starts: its base times every multiplier, 8 in both generations.

        Source: ltx-core 1.2.0; 1.0.0 took 8 for granted.
        """
        return self.decoder_base_channels * math.prod(block.multiplier for block in self.decoder_blocks)

    @classmethod
    def from_dict(cls, section: Mapping[str, Any]) -> VideoVAEConfig:
        """Read the checkpoint's `vae` section.

        An absent `timestep_conditioning` means true; `encoder_base_channels` falls back to `latent_channels`.

        Raises: WeightsError for a network this package does not build (another class, 2-D, group norm,
            injected noise, attention) and for values out of range.
        Source: `ltx_core.model.video_vae.model_configurator`.
        """
        _expect(section, "_class_name", (CLASS_NAME,), CLASS_NAME)
        _expect(section, "dims", (3,), 3)
        _expect(section, "norm_layer", ("pixel_norm",), "pixel_norm")
        latent_channels = _positive(section, "latent_channels", 128)
        return cls(
            encoder_blocks=_blocks(section, "encoder_blocks", ENCODER_KINDS),
            decoder_blocks=_blocks(section, "decoder_blocks", DECODER_KINDS),
            in_channels=_positive(section, "in_channels", 3),
            out_channels=_positive(section, "out_channels", 3),
            latent_channels=latent_channels,
            patch_size=_positive(section, "patch_size", 4),
            encoder_base_channels=_positive(section, "encoder_base_channels", latent_channels),
            decoder_base_channels=_positive(section, "decoder_base_channels", 128),
            encoder_padding=_padding(section, "encoder", "zeros"),
            decoder_padding=_padding(section, "decoder", "reflect"),
            latent_log_var=_expect(section, "latent_log_var", LOG_VAR_CHANNELS, "uniform"),
            timestep_conditioning=bool(section.get("timestep_conditioning", True)),
            causal_decoder=bool(section.get("causal_decoder", False)),
        )


def _padding(section: Mapping[str, Any], side: str, fallback: str) -> str:
    key = "spatial_padding_mode"
    value: str = _expect(section, key if key in section else f"{side}_{key}", PADDING_MODES, fallback)
    return value


def _expect(section: Mapping[str, Any], key: str, allowed: Sequence[Any], fallback: Any) -> Any:
    value = section.get(key, fallback)
    if value not in allowed:
        raise WeightsError(
            f"vae config: {key} is {value!r}; this package supports {', '.join(map(repr, allowed))}. "
            "Use a checkpoint of LTX-2 or LTX-2.3."
        )
    return value


def _positive(section: Mapping[str, Any], key: str, fallback: int) -> int:
    value = section.get(key, fallback)
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise WeightsError(f"vae config: {key} is {value!r}; it must be a whole number of at least 1.")
    return value


def _blocks(section: Mapping[str, Any], key: str, kinds: Sequence[str]) -> tuple[Block, ...]:
    return tuple(_block(entry, key, kinds) for entry in section.get(key, ()))


def _block(entry: Any, key: str, kinds: Sequence[str]) -> Block:
    paired = isinstance(entry, Sequence) and not isinstance(entry, str) and len(entry) == 2
    if not paired or not isinstance(entry[1], int | Mapping):
        raise WeightsError(f"vae config: {key} holds {entry!r}; each entry must be [kind, layers or parameters].")
    kind, given = entry
    if kind not in kinds:
        raise WeightsError(f"vae config: {key} names a block {kind!r}; this package builds {', '.join(kinds)}.")
    parameters = {"num_layers": given} if isinstance(given, int) else given
    if parameters.get("inject_noise", False):
        raise WeightsError(f"vae config: {key} asks for inject_noise in {kind!r}, which no released model uses.")
    if kind == "res_x":
        return Block(kind, num_layers=_positive(parameters, "num_layers", 0))
    if key == "decoder_blocks":
        # The reference reads `residual` for compress_all alone.
        residual = kind == "compress_all" and bool(parameters.get("residual", False))
        return Block(kind, multiplier=_positive(parameters, "multiplier", 1), residual=residual)
    keeps_channels = kind in STRIDES
    return Block(kind, multiplier=1 if keeps_channels else _positive(parameters, "multiplier", 2))
