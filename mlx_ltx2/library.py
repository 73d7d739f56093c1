"""The user's shelf of models: finds a converted one, fetches it, or converts an official one once.

Converted models are kept under `MLX_LTX2_CACHE` (default: mlx-ltx2 in the user's cache folder).
"""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mlx_ltx2.errors import ResourceError, WeightsError
from mlx_ltx2.progress import Progress
from mlx_ltx2.weights import hub
from mlx_ltx2.weights.index import INDEX, MANIFEST, PARTIAL, TEXT_ENCODER, ModelFolder, is_model_folder, read_json
from mlx_ltx2.weights.location import Repo, expanded, locate
from mlx_ltx2.weights.recognise import OFFICIAL, recognise_file, recognise_folder
from mlx_ltx2.weights.text_encoder import locate_text_encoder

DEMO = "demo"


def cache_folder() -> Path:
    """Where converted models are kept: MLX_LTX2_CACHE, else mlx-ltx2 in XDG_CACHE_HOME, else in ~/.cache.

    ~ is the home here as well, a relative MLX_LTX2_CACHE counts from the current folder, an empty value counts as
    none, and so does a relative XDG_CACHE_HOME (XDG Base Directory Specification).
    Raises: WeightsError for the home of a user whom nobody knows.
    """
    chosen = os.environ.get("MLX_LTX2_CACHE", "").strip()
    if chosen:
        return Path(os.path.abspath(expanded(chosen)))
    base = expanded(os.environ.get("XDG_CACHE_HOME", "").strip() or "~/.cache")
    return (base if base.is_absolute() else expanded("~/.cache")) / "mlx-ltx2"


def ready_cache_folder() -> Path:
    """The cache folder, made and tried.

    Raises: ResourceError that names the folder and how to choose another one, if nothing can be written there.
    """
    folder = cache_folder()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise ResourceError(
            f"the model cache {folder} cannot be written ({error.strerror or error}). "
            "Set MLX_LTX2_CACHE to a folder that can."
        ) from None
    return folder


def prompt_folder() -> Path:
    """Where prompt embeddings are kept."""
    return cache_folder() / "prompts"


def open_model(
    model: str | Path,
    *,
    quantize: int | None = None,
    progress: Progress,
    variant: str | None = None,
    text_encoder: bool = True,
) -> ModelFolder:
    """A converted model for whatever names one.

    model: a converted folder; a hub id of a converted or an official model; an official file or its folder; "demo".
    What is not converted yet is converted into the cache, after saying what that costs.
    variant: "dev" or "distilled" where there is a choice of both. text_encoder: False converts without one.
    Raises: WeightsError, ResourceError.
    """
    text = str(model)
    if text == DEMO:
        from mlx_ltx2.demo import demo_model

        return ModelFolder.open(demo_model(progress, "dev" if variant == "dev" else "distilled", quantize))
    unfinished = expanded(text).with_name(f"{Path(text).name}{PARTIAL}") if Path(text).name else None
    if unfinished is not None and unfinished.is_dir() and not expanded(text).exists():
        return ModelFolder.open(expanded(text))  # says that its conversion was interrupted
    place = locate(text, "folder", "Give a converted model, or convert an official one first.")
    if isinstance(place, Repo):
        return _from_hub(place.name, quantize, progress, variant, text_encoder)
    _refuse_unreadable(place)
    if place.is_dir() and recognise_folder(place).kind == "model":
        return ModelFolder.open(place)
    return _converted(place, quantize, progress, variant, text_encoder)


def _refuse_unreadable(path: Path) -> None:
    """Raise WeightsError, which says what it is, unless `path` is a model or can be converted to one."""
    found = recognise_folder(path) if path.is_dir() else recognise_file(path)
    if found.kind in ("model", "official", "transformer"):
        return
    if path.is_dir() and path.name.endswith(PARTIAL):
        ModelFolder.open(path)  # says that it is an interrupted conversion
    lack = f", and no converted model: it has no {INDEX}" if path.is_dir() and found.kind in ("empty", "other") else ""
    raise WeightsError(f"{path}: {found.says}{lack}. {OFFICIAL}, or the folder that `mlx-ltx2 convert` wrote.")


def open_lora(path: str | Path) -> str | Path:
    """The file that "demo::NAME" means; any other path, folder or hub id as it is.

    Raises: RequestError if the demo model has no such LoRA, WeightsError if its weights are not installed.
    """
    base, separator, name = str(path).partition("::")
    if base != DEMO or not separator:
        return path
    from mlx_ltx2.demo import demo_lora

    return demo_lora(name)


def open_text_encoder(source: str | Path, progress: Progress) -> Path:
    """A Gemma 3 folder: the one given, or one fetched from the hub.

    Raises: WeightsError if there is neither.
    """
    place = locate_text_encoder(source)
    return place if isinstance(place, Path) else hub.download_text_encoder(place.name, say=progress.note)


def _from_hub(
    repo: str, quantize: int | None, progress: Progress, variant: str | None, text_encoder: bool
) -> ModelFolder:
    """A repo's model: from the shelf, where the hub need not be asked; else as it is, or converted once."""
    for shelved in _names_of(repo, quantize, variant, text_encoder):
        if is_model_folder(cache_folder() / shelved):
            model = ModelFolder.open(cache_folder() / shelved)
            if variant in (None, model.traits.variant):
                return model
    ready = hub.download_converted(repo, say=progress.note)
    if ready:
        return ModelFolder.open(ready)
    files = hub.find_model(repo, variant)
    output = ready_cache_folder() / _names_of(repo, quantize, variant, text_encoder)[0]
    size = sum(f.nbytes for f in files) / 1e9
    progress.note(f"{repo} is an official checkpoint ({size:.1f} GB); it is converted once into {output}.")
    return _convert_into(output, f"hf:{repo}", quantize, progress, variant, text_encoder)


def _names_of(repo: str, quantize: int | None, variant: str | None, text_encoder: bool) -> list[str]:
    """Shelf folders that hold a repo's model, the one to write first; without a variant "distilled" is meant."""
    same = {None: ("", "distilled"), "distilled": ("distilled", "")}.get(variant, (variant or "",))
    bits = f"{quantize}bit" if quantize else ""
    names = ["-".join(p for p in (repo.replace("/", "--"), v, bits) if p) for v in same]
    return names if text_encoder else [*(f"{name}-no-text-encoder" for name in names), *names]


def _converted(
    source: Path, quantize: int | None, progress: Progress, variant: str | None, text_encoder: bool
) -> ModelFolder:
    """Convert once into the cache. What is on the shelf is found by the content of its sources, not by a name."""
    from mlx_ltx2_convert import conversion_of, variants_in

    if source.is_file():
        variant = None  # a file is of the variant that it is
    elif variant is None and "distilled" in variants_in(source):
        variant = "distilled"
    choice: dict[str, Any] = {"variant": variant, "q_bits": quantize, "text_encoder": None if text_encoder else False}
    key, nbytes = conversion_of(source, **choice)
    shelved = _on_shelf(key, text_encoder)
    if shelved is not None:
        return ModelFolder.open(shelved)
    mark = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:10]
    name = source.name.removesuffix(".safetensors") or "model"
    output = ready_cache_folder() / "-".join([name[:80], *([f"{quantize}bit"] if quantize else []), mark])
    progress.note(f"{source} is an official checkpoint; it is converted once into {output}.")
    progress.note(f"this writes about {nbytes / 1e9:.1f} GB.")
    return _convert_into(output, source, quantize, progress, variant, text_encoder)


def _on_shelf(key: Mapping[str, Any], text_encoder: bool) -> Path | None:
    """The finished conversion of this key, of whichever release and under whichever name.

    text_encoder: False takes one as well that has a text encoder beside what the key has.
    """
    for folder in sorted(p.parent for p in cache_folder().glob(f"*/{MANIFEST}")):
        if not is_model_folder(folder):
            continue
        stored = read_json(folder / MANIFEST).get("key")
        if stored == key:
            return folder
        if not text_encoder and isinstance(stored, dict) and _holds(stored, key):
            return folder
    return None


def _holds(stored: Mapping[str, Any], key: Mapping[str, Any]) -> bool:
    """Whether a conversion is the one of `key` with a text encoder besides."""
    without = {**stored, "components": [c for c in stored.get("components", ()) if c != TEXT_ENCODER]}
    same = all(without.get(name) == value for name, value in key.items() if name != "sources")
    sources = stored.get("sources", {})
    return same and all(sources.get(name) == value for name, value in key["sources"].items())


def _convert_into(
    output: Path,
    source: str | Path,
    quantize: int | None,
    progress: Progress,
    variant: str | None,
    text_encoder: bool,
) -> ModelFolder:
    encoder = None if text_encoder else False
    convert_with_progress(source, output, progress, variant=variant, q_bits=quantize, text_encoder=encoder)
    return ModelFolder.open(output)


def verify_with_progress(model: str | Path, progress: Progress) -> int:
    """Compare a converted model's weights with their hashes; returns how many bytes were read.

    Raises: WeightsError listing every file that differs.
    """
    from mlx_ltx2.weights.verify import verify

    with progress.phase("verify", None, "B") as advance:
        done = 0

        def report(now: int, total: int, what: str) -> None:
            nonlocal done
            advance(now - done)
            done = now

        return verify(model, report)


def convert_with_progress(
    source: str | Path, output: Path, progress: Progress, *, resumable: bool = True, **options: Any
) -> Any:
    """Run the converter with its bytes shown as one phase; returns its report.

    resumable: whether the same command finds the finished parts of an interrupted conversion, which is then said.
    """
    from mlx_ltx2_convert import convert

    with progress.phase("convert", None, "B") as advance:
        done = 0

        def report(now: int, total: int, what: str) -> None:
            nonlocal done
            advance(now - done)
            done = now

        try:
            return convert(source, output, progress=report, say=progress.note, **options)
        except KeyboardInterrupt:
            if not resumable:
                raise
            raise KeyboardInterrupt(
                f"{output} is not written yet; finished parts are kept, the same command goes on from there"
            ) from None
