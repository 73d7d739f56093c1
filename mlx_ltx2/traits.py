"""What a checkpoint is and can do. The only place that parses a version.

Sources: official `ltx_core.loader` (config and model_version in the safetensors metadata) and
`ltx_pipelines.utils.constants` (defaults per generation).
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from mlx_ltx2.errors import WeightsError
from mlx_ltx2.shapes import AudioScale, VideoScale

SUPPORTED = "LTX-2 (19B) and LTX-2.3 (22B)"
_SPACE_BLOCKS = ("compress_space", "compress_all")
_TIME_BLOCKS = ("compress_time", "compress_all")


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

    @property
    def num_blocks(self) -> int:
        return int(self.config["transformer"].get("num_layers", 48))

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
        return int(self.config.get("vae", {}).get("latent_channels", 128))

    @property
    def video_scale(self) -> VideoScale:
        """Compression of the video VAE, counted from its block list."""
        vae = self.config.get("vae", {})
        blocks = [b[0] for b in vae.get("encoder_blocks") or vae.get("decoder_blocks") or ()]
        if not blocks:
            return VideoScale()
        space = sum(b.startswith(_SPACE_BLOCKS) for b in blocks)
        time = sum(b.startswith(_TIME_BLOCKS) for b in blocks)
        return VideoScale(2**time, int(vae.get("patch_size", 4)) * 2**space)

    @property
    def _audio(self) -> Mapping[str, Any]:
        return self.config.get("audio_vae", {})

    @property
    def audio_scale(self) -> AudioScale:
        params = self._audio.get("model", {}).get("params", {})
        stft = self._audio.get("preprocessing", {}).get("stft", {})
        downsample = 2 ** (len(params.get("ddconfig", {}).get("ch_mult", (1, 2, 4))) - 1)
        return AudioScale(int(params.get("sampling_rate", 16000)), int(stft.get("hop_length", 160)), downsample)

    @property
    def audio_latent(self) -> tuple[int, int]:
        """(mel bins, channels) of one audio latent: (16, 8) in the released models."""
        dd = self._audio.get("model", {}).get("params", {}).get("ddconfig", {})
        bins = int(dd.get("mel_bins", 64)) // 2 ** (len(dd.get("ch_mult", (1, 2, 4))) - 1)
        return bins, int(dd.get("z_channels", 8))

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
        transformer = self.config["transformer"]
        return int(transformer.get("caption_channels", 3840))

    @property
    def text_layers(self) -> int:
        """Layers that the text encoder must have."""
        return int(self.config["transformer"].get("text_encoder_num_layers", 48))


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
