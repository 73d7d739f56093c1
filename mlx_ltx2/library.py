"""The user's shelf of models: finds a converted one, fetches it, or converts an official one once.

Converted models are kept under `MLX_LTX2_CACHE` (default: mlx-ltx2 in the user's cache folder).
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from mlx_ltx2.errors import WeightsError
from mlx_ltx2.progress import Progress
from mlx_ltx2.weights import hub
from mlx_ltx2.weights.header import read_header
from mlx_ltx2.weights.index import ModelFolder, is_model_folder

DEMO = "demo"


def cache_folder() -> Path:
    """Where converted models are kept."""
    chosen = os.environ.get("MLX_LTX2_CACHE")
    base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return Path(chosen) if chosen else base / "mlx-ltx2"


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
    path = Path(model)
    if text == DEMO:
        from mlx_ltx2.demo import demo_model

        return ModelFolder.open(demo_model(progress, "dev" if variant == "dev" else "distilled", quantize))
    if is_model_folder(path):
        return ModelFolder.open(path)
    if path.exists():
        if path.is_dir() and not any(path.glob("*.safetensors")):
            return ModelFolder.open(path)  # raises what is wrong with it
        of_folder = variant if path.is_dir() else None  # a file is of the variant that it is
        return _converted(path, quantize, progress, of_folder, text_encoder)
    if hub.is_repo_id(text):
        ready = hub.download_converted(text, say=progress.note)
        if ready:
            return ModelFolder.open(ready)
        return _converted(text, quantize, progress, variant, text_encoder)
    return ModelFolder.open(path)


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
    path = Path(source)
    if path.is_dir():
        return path
    if hub.is_repo_id(str(source)):
        return hub.download_text_encoder(str(source), say=progress.note)
    raise WeightsError(f"{source}: there is no such folder, and it is no hub id; give a Gemma 3 folder.")


def _converted(
    source: str | Path, quantize: int | None, progress: Progress, variant: str | None, text_encoder: bool
) -> ModelFolder:
    """Convert once into the cache; the converter recognises a finished one by its source."""
    name = _shelf_name(source, quantize, variant)
    output = cache_folder() / name
    if not text_encoder and not is_model_folder(output):
        output = cache_folder() / f"{name}-no-text-encoder"
    if not is_model_folder(output):
        progress.note(f"{source} is an official checkpoint; it is converted once into {output}.")
        if isinstance(source, Path) and source.is_file():
            header = read_header(source)
            progress.note(f"this writes about {header.path.stat().st_size / 1e9:.1f} GB at full precision.")
    convert_with_progress(
        source,
        output,
        progress,
        variant=variant,
        q_bits=quantize,
        text_encoder=None if text_encoder else False,
    )
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


def convert_with_progress(source: str | Path, output: Path, progress: Progress, **options: Any) -> Any:
    """Run the converter with its bytes shown as one phase; returns its report."""
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
            raise KeyboardInterrupt(
                f"{output} is not written yet; finished parts are kept, the same command goes on from there"
            ) from None


def _shelf_name(source: str | Path, quantize: int | None, variant: str | None) -> str:
    name = Path(source).stem if isinstance(source, Path) else str(source).replace("/", "--")
    parts = [name, variant or "", f"{quantize}bit" if quantize else ""]
    return "-".join(p for p in parts if p)
