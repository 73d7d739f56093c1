"""The text encoder on its way into the model folder: Gemma 3's language model, under its own names."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mlx_ltx2.errors import WeightsError
from mlx_ltx2.traits import Traits
from mlx_ltx2.weights.header import Header, TensorInfo, read_header
from mlx_ltx2.weights.index import read_json
from mlx_ltx2.weights.quantize import is_quantizable
from mlx_ltx2.weights.text_encoder import IGNORED, check_text_encoder, tokenizer_folder, weight_files
from mlx_ltx2_convert.options import Options
from mlx_ltx2_convert.shards import Tensor
from mlx_ltx2_convert.tensors import FLOATING, RAW

_SUFFIXES = (".json", ".model", ".jinja", ".txt")


@dataclass(frozen=True)
class TextEncoderSource:
    """files: tokenizer and the like, copied as they are. ignored: tensors that stay behind, and why."""

    config: Mapping[str, Any]
    headers: tuple[Header, ...]
    tensors: tuple[Tensor, ...]
    files: tuple[Path, ...]
    ignored: Mapping[str, str]


def plan_text_encoder(folder: Path, traits: Traits, options: Options) -> TextEncoderSource:
    """Headers of a Gemma 3 folder -> the tensors to store. A folder that is quantized already is copied as it is.

    Raises: WeightsError if it is no Gemma 3, of another width than the checkpoint was trained with, or incomplete.
    """
    quantized = check_text_encoder(folder, traits.text_width, traits.text_layers).quantized
    headers = [read_header(path) for path in weight_files(folder)]
    tensors: list[Tensor] = []
    ignored: dict[str, str] = {}
    for header in headers:
        for name, info in header.tensors.items():
            if name.startswith(IGNORED):
                ignored[name] = "parts of Gemma that a text encoder has no use for"
            else:
                tensors.append(_tensor(name, info, header.path, options, quantized))
    config = read_json(folder / "config.json")
    return TextEncoderSource(config, tuple(headers), tuple(tensors), _small_files(folder), ignored)


def _small_files(folder: Path) -> tuple[Path, ...]:
    """Tokenizer and the like, from the tokenizer's own folder where it has one; a name in `folder` itself wins."""
    places = dict.fromkeys((tokenizer_folder(folder), folder))
    found = {p.name: p for place in places for p in place.iterdir() if p.suffix in _SUFFIXES}
    return tuple(sorted(p for n, p in found.items() if n != "config.json" and not n.endswith(".index.json")))


def _tensor(name: str, info: TensorInfo, path: Path, options: Options, quantized: bool) -> Tensor:
    if info.dtype not in RAW:
        raise WeightsError(f"{path}: tensor {name} has dtype {info.dtype}, which cannot be converted.")
    dtype = info.dtype
    if not quantized and dtype in FLOATING and options.dtype is not None:
        dtype = options.dtype
    quantization = None if quantized else options.quantization
    if quantization is not None:
        fits = name.endswith(".weight") and is_quantizable(name.removesuffix(".weight"))
        quantization = quantization if fits and quantization.fits(info.shape[-1]) else None
    return Tensor(name, name, path, info, info.shape, None, dtype, quantization)
