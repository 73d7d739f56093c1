"""A converted model on disk, format 1: `model_index.json` beside one folder per component.

`model_index.json` is written last, so a folder that has one is complete. Each component folder holds `config.json` (its
section of the checkpoint's own config, plus `quantization`) and safetensors shards with `model.safetensors.index.json`.
`manifest.json` lists every file of weights with its size and SHA-256.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mlx_ltx2.errors import WeightsError
from mlx_ltx2.models.registry import COMPONENTS
from mlx_ltx2.traits import Traits
from mlx_ltx2.weights.quantize import Quantization

FORMAT = 1
INDEX = "model_index.json"
MANIFEST = "manifest.json"
SHARD_INDEX = "model.safetensors.index.json"
TEXT_ENCODER = "text_encoder"
PARTIAL = ".partial"
"""Suffix of the folder in which a conversion works until it is complete."""

FOLDERS = {**{c.name: c.folder for c in COMPONENTS.values()}, TEXT_ENCODER: TEXT_ENCODER}
"""Component name -> folder, relative to the model."""

_OPTIONAL = {
    "spatial_upsampler": "two-stage pipelines need it; convert again with the spatial upscaler x2 beside the file",
    "spatial_upsampler_x1.5": "convert again with the spatial upscaler x1.5 beside the checkpoint",
    "temporal_upsampler": "convert again with the temporal upscaler beside the checkpoint",
    TEXT_ENCODER: "give a Gemma 3 folder with --text-encoder, or convert again with one",
}


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object. Raises: WeightsError if the file is missing or holds none."""
    try:
        content = json.loads(path.read_text("utf-8"))
    except OSError as error:
        raise WeightsError(f"{path}: cannot be read ({error.strerror}). Convert the model again.") from None
    except ValueError as error:
        raise WeightsError(f"{path}: is no JSON ({error}). Convert the model again.") from None
    if not isinstance(content, dict):
        raise WeightsError(f"{path}: is no JSON object. Convert the model again.")
    return content


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write beside the target and rename, so that no half file is ever seen, not even after a power cut."""
    beside = path.with_name(path.name + ".new")
    with beside.open("w", encoding="utf-8") as file:
        file.write(json.dumps(content, indent=2) + "\n")
        file.flush()
        os.fsync(file.fileno())
    beside.replace(path)


@dataclass(frozen=True)
class ModelFolder:
    """A complete converted model.

    components: name -> folder relative to `path`. quantization: None for a model in full precision.
    loras: distilled LoRA files that came along. sources: official files it was made of, each {file, bytes, sha256}.
    """

    path: Path
    traits: Traits
    components: Mapping[str, str]
    quantization: Quantization | None = None
    loras: tuple[Path, ...] = ()
    sources: tuple[Mapping[str, Any], ...] = field(default=(), repr=False)

    @classmethod
    def open(cls, path: str | Path) -> ModelFolder:
        """Read and check `model_index.json` and the presence of every component it names.

        Raises: WeightsError if the folder is missing, no model, incomplete, or of a newer format.
        """
        path = Path(path)
        _refuse_no_model(path)
        index = read_json(path / INDEX)
        where = str(path / INDEX)
        if index.get("format") != FORMAT:
            raise WeightsError(
                f"{where}: format {index.get('format')!r} is not supported, this version reads format {FORMAT}. "
                "Convert the model again with this version."
            )
        components = index.get("components")
        if not isinstance(components, dict) or not isinstance(index.get("variant"), str):
            raise WeightsError(f"{where}: 'components' or 'variant' is missing. Convert the model again.")
        _check_components(path, components)
        stored = index.get("quantization")
        quantization = None if stored is None else Quantization.from_dict(stored, where)
        try:
            traits = Traits.from_index(index, _sections(path, components), where)
        except (KeyError, TypeError) as error:
            raise WeightsError(f"{where}: no valid entry {error}. Convert the model again.") from None
        if "transformer" not in traits.config:
            raise WeightsError(f"{where}: the component 'transformer' is missing. Convert the model again.")
        loras = tuple(path / name for name in index.get("loras", ()))
        return cls(path, traits, components, quantization, loras, tuple(index.get("sources", ())))

    def has(self, name: str) -> bool:
        return name in self.components

    def folder(self, name: str) -> Path:
        """Folder of a component.

        Raises: WeightsError that lists what there is, if the model has no such component.
        """
        if name not in FOLDERS:
            raise WeightsError(f"there is no component {name!r}; components are {', '.join(FOLDERS)}.")
        if name not in self.components:
            advice = _OPTIONAL.get(name, "convert the official checkpoint again")
            raise WeightsError(f"{self.path} has no {name}; {advice}. It has {', '.join(self.components)}.")
        return self.path / self.components[name]

    def config(self, name: str) -> dict[str, Any]:
        """The component's config.json, `quantization` included."""
        return read_json(self.folder(name) / "config.json")


def index_content(
    traits: Traits,
    components: Mapping[str, str],
    quantization: Quantization | None,
    sources: list[dict[str, Any]],
    loras: list[str],
    tool: str,
) -> dict[str, Any]:
    """What `model_index.json` holds."""
    return {
        "format": FORMAT,
        "generation": traits.generation,
        "version": list(traits.version),
        "variant": traits.variant,
        "components": dict(components),
        "quantization": quantization.to_dict() if quantization else None,
        "loras": loras,
        "sources": sources,
        "tool": tool,
    }


def index_kind(path: str | Path) -> str | None:
    """Whose `model_index.json` a folder has: "ours", "diffusers", "damaged", "foreign", or None if it has none."""
    file = Path(path) / INDEX
    if not file.is_file():
        return None
    try:
        content = read_json(file)
    except WeightsError:
        return "damaged"
    if "format" in content:
        return "ours"
    if "_class_name" in content or "_diffusers_version" in content:
        return "diffusers"
    return "foreign"


def is_model_folder(path: str | Path) -> bool:
    """Whether a folder is a converted model of ours; other programs have a `model_index.json` as well."""
    return index_kind(path) == "ours"


def _refuse_no_model(path: Path) -> None:
    if not path.exists():
        unfinished = path.with_name(path.name + PARTIAL)
        if unfinished.is_dir():
            raise WeightsError(
                f"{path}: its conversion was interrupted ({unfinished.name} is there). Run the same convert command "
                "again; it goes on from the finished shards."
            )
        raise WeightsError(
            f"{path}: there is no such folder. Give a converted model, or convert an official one first."
        )
    if not path.is_dir():
        raise WeightsError(
            f"{path}: is a file, not a converted model. Convert it with `mlx-ltx2 convert --source {path}`."
        )
    kind = index_kind(path)
    if kind == "diffusers":
        raise WeightsError(
            f"{path}: is a diffusers folder (its {INDEX} is diffusers'), which is not read yet. "
            "Give the official checkpoint, a single file, or Lightricks/LTX-2.3."
        )
    if kind in ("ours", "damaged"):
        return
    if path.name.endswith(PARTIAL):
        raise WeightsError(f"{path}: is an interrupted conversion. Run the same convert command again to finish it.")
    raise WeightsError(
        f"{path}: is no converted model, it has no {INDEX}. "
        "Give the folder that `mlx-ltx2 convert` wrote, or convert the official checkpoint first."
    )


def _check_components(path: Path, components: Mapping[str, Any]) -> None:
    for name, folder in components.items():
        if not isinstance(folder, str) or Path(folder).is_absolute() or ".." in Path(folder).parts:
            raise WeightsError(f"{path / INDEX}: the folder of {name!r} is {folder!r}; it must lie inside the model.")
        if not (path / folder / "config.json").is_file():
            raise WeightsError(
                f"{path}: the component {name} is incomplete, {folder}/config.json is missing. "
                "Copy the model completely or convert it again."
            )


def _sections(path: Path, components: Mapping[str, str]) -> dict[str, Any]:
    sections: dict[str, Any] = {}
    for name, folder in components.items():
        component = COMPONENTS.get(name)
        if component and component.section and component.section not in sections:
            section = read_json(path / folder / "config.json")
            section.pop("quantization", None)
            sections[component.section] = section
    return sections
