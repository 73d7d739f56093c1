"""Which official files a conversion reads, told by their headers; names decide variant and revision only."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from mlx_ltx2.errors import RequestError, WeightsError
from mlx_ltx2.traits import guess_variant, parse_config
from mlx_ltx2.weights import hub
from mlx_ltx2.weights.header import Header, read_header
from mlx_ltx2.weights.hub import TEXT_ENCODER_REPO, FileName, HubFile
from mlx_ltx2.weights.index import is_model_folder
from mlx_ltx2.weights.location import Repo, locate
from mlx_ltx2.weights.recognise import OFFICIAL, kind_of, recognise_file, recognise_folder
from mlx_ltx2.weights.text_encoder import locate_text_encoder
from mlx_ltx2_convert.options import Options

UPSAMPLER_OF_KIND = {
    "spatial-x2": "spatial_upsampler",
    "spatial-x1.5": "spatial_upsampler_x1.5",
    "temporal-x2": "temporal_upsampler",
}


@dataclass(frozen=True)
class Sources:
    """checkpoint: the monolithic file. upsamplers: component name -> file. text_encoder: a Gemma 3 folder."""

    checkpoint: Path
    upsamplers: dict[str, Path]
    loras: tuple[Path, ...] = ()
    text_encoder: Path | None = None

    @property
    def files(self) -> list[Path]:
        return [self.checkpoint, *self.upsamplers.values(), *self.loras]


def find_sources(source: str | Path, options: Options) -> Sources:
    """Resolve a file, a folder or a hub repo id; a repo is downloaded, only what is needed of it.

    Raises: WeightsError if there is no official checkpoint, RequestError if there are several to choose from.
    """
    place = locate(source, "file or folder", "Give an official checkpoint or a hub repo id.")
    files = _wanted_files(place, options)  # the source is settled before anything is fetched
    encoder = _settled_encoder(place, options)
    if isinstance(encoder, Repo):
        # Before the checkpoint: a licence that is not accepted yet should not show only after 46 GB.
        encoder = hub.download_text_encoder(encoder.name, say=options.say)
    if isinstance(place, Repo):
        downloaded = hub.download_files(place.name, files, options.revision, say=options.say)
        found = _from_files(None, downloaded[0].parent, options, downloaded)
    elif place.is_dir():
        found = _from_files(None, place, options)
    else:
        found = _from_files(place, place.parent, options)
    return Sources(found.checkpoint, found.upsamplers, found.loras, encoder)


def _wanted_files(place: Path | Repo, options: Options) -> list[HubFile]:
    """What a repo has to give; nothing for a path, whose kind is looked at."""
    if isinstance(place, Repo):
        return hub.find_model(place.name, options.variant, options.revision)
    if place.is_dir():
        if is_model_folder(place):
            raise RequestError(f"{place} is a converted model already; give the official checkpoint as the source.")
        if not any(path.is_file() for path in place.glob("*.safetensors")):
            raise WeightsError(
                f"{place}: holds no monolithic LTX-2 checkpoint; it {recognise_folder(place).says}. {OFFICIAL}."
            )
    else:
        _refuse_no_checkpoint(place)
    return []


def _refuse_no_checkpoint(path: Path) -> None:
    found = recognise_file(path)
    if found.kind not in ("official", "transformer"):
        raise WeightsError(f"{path}: is no monolithic LTX-2 checkpoint; it {found.says}. {OFFICIAL}.")


def variants_in(folder: Path) -> set[str]:
    """Variants of the official checkpoints in a folder, by their names."""
    headers = [read_header(path) for path in folder.glob("*.safetensors") if not path.is_dir()]
    return {guess_variant(header.path.name) for header in headers if kind_of(header) == "official"}


def upsampler_kind(header: Header) -> str:
    """Component name of an upsampler file, from its flat config.

    Raises: WeightsError if the config is missing or of a kind that does not exist.
    """
    from mlx_ltx2.models.upsampler import UpsamplerConfig

    kind = UpsamplerConfig.from_dict(parse_config(header.metadata, str(header.path))).kind
    if kind not in UPSAMPLER_OF_KIND:
        raise WeightsError(
            f"{header.path}: upsampler {kind!r} is not supported; known are {', '.join(UPSAMPLER_OF_KIND)}."
        )
    return UPSAMPLER_OF_KIND[kind]


def _from_files(
    checkpoint: Path | None, folder: Path, options: Options, files: Iterable[Path] | None = None
) -> Sources:
    kinds: dict[str, list[tuple[FileName, Header]]] = {
        "checkpoint": [],
        "upsampler": [],
        "lora": [],
        "other": [],
    }
    beside_it = {*folder.glob("*.safetensors"), *([checkpoint] if checkpoint else [])}
    for path in sorted(files if files is not None else beside_it):
        if path.is_dir():
            continue
        if checkpoint is not None and path != checkpoint and FileName.parse(path.name) is None:
            continue  # beside a single file only official names come along
        header = read_header(path)
        kind = {"official": "checkpoint", "transformer": "checkpoint"}.get(kind_of(header), kind_of(header))
        kinds.setdefault(kind, []).append((FileName.parse(path.name) or FileName.unknown(path.name), header))
    chosen = checkpoint or _choose(kinds["checkpoint"], folder, options.variant)
    if not any(header.path == chosen for _, header in kinds["checkpoint"]):
        raise WeightsError(
            f"{chosen}: is no monolithic LTX-2 checkpoint, it has no tensors named model.diffusion_model.*. "
            "Give an official Lightricks file."
        )
    variant = options.variant or guess_variant(chosen.name)
    name = FileName.parse(chosen.name)
    generation = name.generation if name else None
    beside = {
        kind: [(n, h) for n, h in kinds[kind] if not (generation and n.generation and n.generation != generation)]
        for kind in ("upsampler", "lora")
    }
    upsamplers: dict[str, Path] = {}
    for _, header in sorted(beside["upsampler"], key=lambda item: item[0].revision):
        upsamplers[upsampler_kind(header)] = header.path  # the newest revision comes last
    loras = [h.path for n, h in sorted(beside["lora"], key=lambda i: i[0].revision) if n.kind == "lora"]
    return Sources(chosen, dict(sorted(upsamplers.items())), tuple(loras[-1:]) if variant == "dev" else ())


def _choose(found: list[tuple[FileName, Header]], folder: Path, variant: str | None) -> Path:
    if not found:
        raise WeightsError(
            f"{folder}: holds no monolithic LTX-2 checkpoint; it {recognise_folder(folder).says}. {OFFICIAL}."
        )
    fitting = [(n, h) for n, h in found if variant is None or guess_variant(h.path.name) == variant]
    if not fitting:
        names = ", ".join(h.path.name for _, h in found)
        raise RequestError(f"{folder}: holds no checkpoint of variant {variant!r}, only {names}.")
    variants = {(n.generation, guess_variant(h.path.name)) for n, h in fitting}
    if len(variants) > 1:
        names = ", ".join(h.path.name for _, h in fitting)
        raise RequestError(
            f"{folder}: holds several checkpoints ({names}); give one of the files as the source, or --variant to "
            "convert."
        )
    newest = max(fitting, key=lambda item: (not item[0].fp8, item[0].revision))
    return newest[1].path


def _settled_encoder(source: Path | Repo, options: Options) -> Path | Repo | None:
    """Which text encoder comes along; nothing is downloaded yet.

    Raises: WeightsError if the one that was asked for does not exist.
    """
    if options.text_encoder is False or not options.wants("text_encoder"):
        return None
    if options.text_encoder in (None, True):
        if isinstance(source, Repo):
            return Repo(TEXT_ENCODER_REPO)
        return _gemma_beside(source if source.is_dir() else source.parent)
    return locate_text_encoder(str(options.text_encoder))


def _gemma_beside(folder: Path) -> Path | None:
    """The first Gemma 3 folder beside the checkpoint, `text_encoder` before others."""
    candidates = sorted(folder.glob("*/config.json"), key=lambda p: (p.parent.name != "text_encoder", p))
    for config in candidates:
        try:
            model_type = json.loads(config.read_text("utf-8")).get("model_type", "")
        except (OSError, ValueError, AttributeError):
            continue  # some other program's config; it is none of ours
        if str(model_type).startswith("gemma3"):
            return config.parent
    return None
