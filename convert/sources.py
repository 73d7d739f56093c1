"""Which official files a conversion reads, told by their headers; names decide variant and revision only."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from mlx_ltx2.errors import RequestError, WeightsError
from mlx_ltx2.traits import guess_variant, parse_config
from mlx_ltx2.weights.header import Header, read_header
from mlx_ltx2.weights.hub import FileName, download_model, download_text_encoder, is_repo_id
from mlx_ltx2.weights.index import is_model_folder
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
    path = Path(source)
    wants_encoder = options.text_encoder is not False and options.wants("text_encoder")
    # Before the checkpoint: a licence that is not accepted yet should not show only after 46 GB.
    encoder = _text_encoder(path, options) if wants_encoder else None
    if path.is_file():
        found = _from_files(path, path.parent, options)
    elif path.is_dir():
        if is_model_folder(path):
            raise RequestError(f"{path} is a converted model already; give the official checkpoint as the source.")
        found = _from_files(None, path, options)
    elif is_repo_id(str(source)):
        downloaded = download_model(str(source), options.variant, options.revision, say=options.say)
        found = _from_files(None, downloaded[0].parent, options, downloaded)
    else:
        raise WeightsError(f"{source}: there is no such file or folder. Give an official checkpoint or a hub repo id.")
    return Sources(found.checkpoint, found.upsamplers, found.loras, encoder)


def kind_of(header: Header) -> str:
    """ "checkpoint", "upsampler", "lora" or "other"."""
    names = header.tensors
    if any(name.endswith((".lora_A.weight", ".lora_down.weight")) for name in names):
        return "lora"
    if any(name.startswith("model.diffusion_model.") for name in names):
        return "checkpoint"
    if "initial_conv.weight" in names and any(name.startswith("post_upsample_res_blocks.") for name in names):
        return "upsampler"
    return "other"


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
    for path in sorted(files if files is not None else folder.glob("*.safetensors")):
        if checkpoint is not None and path != checkpoint and FileName.parse(path.name) is None:
            continue  # beside a single file only official names come along
        header = read_header(path)
        kinds[kind_of(header)].append((FileName.parse(path.name) or FileName.unknown(path.name), header))
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
            f"{folder}: holds no monolithic LTX-2 checkpoint. Give the official file, for example "
            "ltx-2.3-22b-distilled.safetensors."
        )
    fitting = [(n, h) for n, h in found if variant is None or guess_variant(h.path.name) == variant]
    if not fitting:
        names = ", ".join(h.path.name for _, h in found)
        raise RequestError(f"{folder}: holds no checkpoint of variant {variant!r}, only {names}.")
    variants = {(n.generation, guess_variant(h.path.name)) for n, h in fitting}
    if len(variants) > 1:
        names = ", ".join(h.path.name for _, h in fitting)
        raise RequestError(f"{folder}: holds several checkpoints ({names}); give one of the files or --variant.")
    newest = max(fitting, key=lambda item: (not item[0].fp8, item[0].revision))
    return newest[1].path


def _text_encoder(source: Path, options: Options) -> Path | None:
    if options.text_encoder in (None, True):
        if source.exists():
            return _gemma_beside(source if source.is_dir() else source.parent)
        return download_text_encoder(say=options.say) if is_repo_id(str(source)) else None
    given = Path(str(options.text_encoder))
    if given.is_dir():
        return given
    if is_repo_id(str(options.text_encoder)):
        return download_text_encoder(str(options.text_encoder), say=options.say)
    raise WeightsError(f"{given}: there is no such folder. Give a Gemma 3 folder or a hub repo id as text encoder.")


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
