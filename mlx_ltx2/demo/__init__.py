"""The model that needs no download: a small checkpoint in the official layout, converted like any other."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from mlx_ltx2.demo import trained
from mlx_ltx2.errors import RequestError, ResourceError
from mlx_ltx2.progress import Progress
from mlx_ltx2.weights.scratch import scratch_folder, sweep

_STYLES = ("outlines",)
_TRAINED = (
    "The demo model has 10 million weights and knows one or two coloured shapes on plain backgrounds, for 2 seconds; "
    "it shows that the whole chain works here and says nothing about the quality of LTX-2."
)
_RANDOM = "The demo's weights are random: picture and sound are noise. It shows that the whole chain works here."


def says() -> str:
    """One sentence on what the demo model is, and what it is not."""
    return _TRAINED if trained.is_packed() else _RANDOM


def styles() -> tuple[str, ...]:
    """LoRAs of the demo model, as `--lora` takes them."""
    return tuple(f"demo::{name}" for name in _STYLES) if trained.is_packed() else ()


def demo_model(
    progress: Progress, variant: Literal["distilled", "dev"] = "distilled", quantize: int | None = None
) -> Path:
    """The converted demo model, made on first use in the cache folder; several processes may ask for it at once.

    variant: "distilled" or "dev". quantize: bits, None for full precision. Raises: WeightsError, ResourceError.
    """
    from mlx_ltx2.library import cache_folder, ready_cache_folder
    from mlx_ltx2.weights.index import is_model_folder

    bits = "" if quantize is None else f"-{quantize}bit"
    name = f"demo-{variant}-{_edition()}{bits}"
    sweep(cache_folder(), old_prefix="demo-")
    output = cache_folder() / name
    if is_model_folder(output):
        return output
    output = ready_cache_folder() / name
    try:
        _make(output, progress, variant, quantize)
    except OSError as error:
        raise ResourceError(
            f"the demo model cannot be written to {output} ({error.strerror or error}). Free some space, or set "
            "MLX_LTX2_CACHE to another folder."
        ) from None
    return output


def _make(output: Path, progress: Progress, variant: Literal["distilled", "dev"], quantize: int | None) -> None:
    from mlx_ltx2.library import convert_with_progress
    from mlx_ltx2.weights.index import is_model_folder

    with scratch_folder(output.parent) as folder:
        source, made = folder / "source", folder / "model"
        source.mkdir()
        _write(source, variant)
        convert_with_progress(source, made, progress, resumable=False, variant=variant, q_bits=quantize)
        try:
            made.rename(output)
        except OSError:
            if not is_model_folder(output):  # else another process was faster, and made the same
                raise


def demo_lora(name: str) -> Path:
    """The file of one of the demo model's style LoRAs, made on first use in the cache folder.

    Raises: RequestError if there is none of this name, WeightsError if the trained weights are not installed.
    """
    from mlx_ltx2.library import cache_folder, ready_cache_folder

    if name not in _STYLES:
        raise RequestError(f"the demo model has no LoRA {name!r}; it has {', '.join(_STYLES)}.")
    path = cache_folder() / f"demo-loras-{_edition()}" / f"{name}.safetensors"
    sweep(path.parent)
    if not path.is_file():
        ready_cache_folder()
        trained.write_style(name, path)
    return path


def _write(folder: Path, variant: Literal["distilled", "dev"]) -> None:
    if trained.is_packed():
        trained.write_trained_checkpoint(folder, variant=variant)
    else:
        from mlx_ltx2.demo.tiny import write_tiny_checkpoint

        write_tiny_checkpoint(folder, variant=variant)


def _edition() -> str:
    """What the names in the cache carry, so that other weights are converted anew."""
    from mlx_ltx2.version import VERSION

    return f"{VERSION}-{trained.fingerprint()}" if trained.is_packed() else f"{VERSION}-random"
