"""What a checkpoint is and can do. The only place that parses a version; sizes come from the networks' own configs.

Sources: official `ltx_core.loader` (config and model_version in the safetensors metadata) and
`ltx_pipelines.utils.constants` (defaults per generation).
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from mlx_ltx2.errors import WeightsError
from mlx_ltx2.models.audio_vae import AudioVAEConfig
from mlx_ltx2.models.text import TextProjectionsConfig
from mlx_ltx2.models.transformer import TransformerConfig
from mlx_ltx2.models.video_vae import VideoVAEConfig
from mlx_ltx2.shapes import AudioScale, VideoScale

SUPPORTED = "LTX-2 (19B) and LTX-2.3 (22B)"


def parse_version(text: str) -> tuple[int, ...]:
    """Leading integer parts of a version: "2.3.rc1" -> (2, 3), "2.4-rc2" -> (2, 4), "" -> ()."""
    parts: list[int] = []
    for part in text.strip().replace("-", ".").split("."):
        if not part.isdigit():
            break
        parts.append(int(part))
    return tuple(parts)


def parse_config(metadata: Mapping[str, str], where: str) -> dict[str, Any]:
    """The config JSON that an official file carries in its metadata.

    Raises: WeightsError if it is missing or no JSON object.
    """
    text = metadata.get("config")
    if not text:
        raise WeightsError(
            f"{where}: no config JSON in the file's metadata. Give an official Lightricks checkpoint; "
            "re-saved files often lose the metadata."
        )
    try:
        config = json.loads(text)
    except ValueError as error:
        raise WeightsError(f"{where}: the config JSON in the metadata cannot be read ({error}).") from None
    if not isinstance(config, dict):
        raise WeightsError(f"{where}: the config in the metadata is no JSON object.")
    return config


@dataclass(frozen=True)
class Traits:
    """version: (2,), (2, 3)... variant: "distilled" or "dev". config: the checkpoint's own JSON, all sections."""

    version: tuple[int, ...]
    variant: str
    config: Mapping[str, Any] = field(repr=False)

    @classmethod
    def from_header(
        cls, metadata: Mapping[str, str], names: Iterable[str], where: str, variant: str | None = None
    ) -> Traits:
        """Traits of an official monolithic file. `where` is its name, which tells the variant if none is given.

        Raises: WeightsError if the config is missing, or of a generation that is not supported.
        """
        config = parse_config(metadata, where)
        names = set(names)
        if "transformer" not in config:
            raise WeightsError(
                f"{where}: the config JSON has no section 'transformer'; this is no monolithic checkpoint."
            )
        version = _version(metadata, config)
        _refuse_unknown(version, config, names, where)
        return cls(version, variant or guess_variant(where), config)

    @classmethod
    def from_index(cls, index: Mapping[str, Any], config: Mapping[str, Any], where: str = "model_index.json") -> Traits:
        """Traits of a converted folder, from its model_index.json and the components' configs.

        Raises: WeightsError if the generation is not supported, KeyError or TypeError for an entry that is missing.
        """
        version = tuple(index["version"])
        if "transformer" in config:
            _refuse_unknown(version, config, set(), where)
        return cls(version, index["variant"], config)

    @property
    def generation(self) -> str:
        """ "2.0" or "2.3": which row of the tables of defaults applies."""
        return "2.3" if self.version >= (2, 3) else "2.0"

    @property
    def title(self) -> str:
        return "LTX-2.3" if self.generation == "2.3" else "LTX-2"

    @property
    def distilled(self) -> bool:
        return self.variant == "distilled"

    @cached_property
    def transformer(self) -> TransformerConfig:
        """The transformer's own reading of its section. Raises: WeightsError as that does."""
        return TransformerConfig.from_dict(self.config["transformer"])

    @cached_property
    def text_projections(self) -> TextProjectionsConfig:
        """The text projections' own reading of the transformer's section. Raises: WeightsError as that does."""
        return TextProjectionsConfig.from_dict(self.config["transformer"])

    @cached_property
    def video_vae(self) -> VideoVAEConfig:
        """The video VAE's own reading of its section; the fallbacks of every key where the model has none."""
        return VideoVAEConfig.from_dict(self.config.get("vae", {}))

    @cached_property
    def audio_vae(self) -> AudioVAEConfig:
        """The audio VAE's own reading of its section; the released models' values where the model has none."""
        return AudioVAEConfig.from_dict(self.config["audio_vae"]) if self.has_audio else AudioVAEConfig()

    @property
    def num_blocks(self) -> int:
        return self.transformer.layers

    @property
    def stg_block(self) -> int:
        """The block that spatio-temporal guidance perturbs: 29 for LTX-2, 28 for LTX-2.3; tiny models scale it."""
        official = 28 if self.generation == "2.3" else 29
        return official if self.num_blocks >= 48 else max(0, round(official * self.num_blocks / 48) - 1)

    @property
    def image_crf(self) -> int:
        return 33

    @property
    def latent_channels(self) -> int:
        """Of a video latent; the released models' value where the model has no VAE."""
        return 128 if self.video_vae is None else self.video_vae.latent_channels

    @property
    def video_scale(self) -> VideoScale:
        """Compression of the video VAE."""
        return self.video_vae.scale

    @property
    def audio_scale(self) -> AudioScale:
        """The clock of audio latents."""
        return self.audio_vae.scale

    @property
    def audio_latent(self) -> tuple[int, int]:
        """(mel bins, channels) of one audio latent: (16, 8) in the released models."""
        return self.audio_vae.latent_mel, self.audio_vae.latent_channels

    @property
    def recommended(self) -> dict[str, Any]:
        """Defaults that the model itself asks for (key `recommended` of the transformer's section, e.g. a small
        model's native size)."""
        return dict(self.config["transformer"].get("recommended", {}))

    @property
    def has_audio(self) -> bool:
        return "audio_vae" in self.config

    @property
    def text_width(self) -> int:
        """Hidden width that the text encoder must have."""
        return self.text_projections.width

    @property
    def text_layers(self) -> int:
        """Layers that the text encoder must have."""
        return self.text_projections.num_states - 1


def guess_variant(file_name: str) -> str:
    """ "distilled" or "dev" from an official file name; "dev" if it says neither."""
    return "distilled" if "distilled" in file_name.lower() else "dev"


def _version(metadata: Mapping[str, str], config: Mapping[str, Any]) -> tuple[int, ...]:
    version = parse_version(metadata.get("model_version", ""))
    if version:
        return version
    return (2, 3) if config["transformer"].get("cross_attention_adaln") else (2, 0)


def _refuse_unknown(version: tuple[int, ...], config: Mapping[str, Any], names: set[str], where: str) -> None:
    transformer = config["transformer"]
    newer = version >= (2, 4) or "gemma_source_checkpoint" in config
    newer = newer or config.get("vae", {}).get("_class_name", "CausalVideoAutoencoder") != "CausalVideoAutoencoder"
    newer = newer or transformer.get("use_keyframes_abs_pos_embedding") or transformer.get("ff_bias") is False
    if newer or (version and version[0] != 2):
        shown = ".".join(map(str, version)) or "unknown"
        raise WeightsError(f"{where}: model generation {shown} is not supported; supported are {SUPPORTED}.")
    if transformer.get("_class_name", "AVTransformer3DModel") != "AVTransformer3DModel":
        raise WeightsError(
            f"{where}: transformer class {transformer['_class_name']!r} is not supported; supported are {SUPPORTED}."
        )
