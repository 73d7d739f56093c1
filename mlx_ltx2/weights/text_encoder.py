"""A Gemma 3 folder -> a ready text encoder: Hugging Face's, mlx-community's, plain or quantized.

Names are matched both ways after one prefix strip. Vision parts and the output head are left aside by name;
anything else that does not fit is an error.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import mlx.core as mx
from mlx import nn
from mlx.utils import tree_flatten

from mlx_ltx2.errors import WeightsError
from mlx_ltx2.models.layers.linear import dequantize_when_wide
from mlx_ltx2.models.text.gemma import build_gemma, gemma_args, hidden_states_of
from mlx_ltx2.models.text.tokenizer import PromptTokenizer
from mlx_ltx2.states import PromptTokens
from mlx_ltx2.weights.header import TensorInfo, read_header
from mlx_ltx2.weights.hub import find_text_encoder
from mlx_ltx2.weights.location import Repo, locate
from mlx_ltx2.weights.quantize import Quantization, wide_rows
from mlx_ltx2.weights.recognise import recognise_file
from mlx_ltx2.weights.streaming import (
    BlockStream,
    Place,
    RowReader,
    StreamedLayers,
    TensorReader,
    load_around,
    split_by_block,
)

if TYPE_CHECKING:
    from mlx_lm.models.gemma3_text import Model, ModelArgs

PREFIXES = ("language_model.model.", "model.language_model.", "model.")
"""Where the text model's tensors stand in a file, most specific first; here they stand under `model.`."""

IGNORED = (
    "vision_tower.",
    "multi_modal_projector.",
    "model.vision_tower.",
    "model.multi_modal_projector.",
    "lm_head.",
    "language_model.lm_head.",
)
"""Parts of a Gemma folder that a text encoder has no use for; the output head is tied to the embedding."""

_FLOAT_MODES = {(4, 16): "nvfp4", (4, 32): "mxfp4", (8, 32): "mxfp8"}
"""(bits, group size) of the modes whose scales are bytes; affine scales are floating point."""

_SHOWN = 6


@dataclass(frozen=True)
class TextEncoderInfo:
    """What the headers of a folder say. num_bytes: of the tensors that are loaded."""

    width: int
    layers: int
    num_bytes: int
    quantized: bool


@dataclass(frozen=True)
class TextEncoder:
    """model: mlx-lm's Gemma 3, output head tied. width: of a state. layers: a prompt has one state more."""

    model: Model
    tokenizer: PromptTokenizer
    width: int
    layers: int

    def tokenize(self, prompt: str) -> PromptTokens:
        """Raises: RequestError if the prompt is empty."""
        return self.tokenizer(prompt)

    def states(self, tokens: PromptTokens, on_layer: Callable[[int, mx.array], None] | None = None) -> mx.array:
        """(1, T, width, layers + 1), lazy; `on_layer` as in `hidden_states`."""
        return self.states_of([tokens], on_layer)[0]

    def states_of(
        self, prompts: Sequence[PromptTokens], on_layer: Callable[[int, mx.array], None] | None = None
    ) -> list[mx.array]:
        """The states of several prompts; layers that are not resident are read once for all of them."""
        ids = [mx.array([list(tokens.ids)], dtype=mx.int32) for tokens in prompts]
        return hidden_states_of(self.model, ids, on_layer)


@dataclass(frozen=True)
class _Folder:
    """infos: header entries of the tensors that count, by their name in the text model. files: where each is
    stored, file and name in it."""

    path: Path
    config: Mapping[str, Any]
    args: ModelArgs
    infos: Mapping[str, TensorInfo]
    files: Mapping[str, tuple[Path, str]]


def locate_text_encoder(source: str | Path) -> Path | Repo:
    """The Gemma 3 folder, or the repo, that a person means; a repo is looked up, and nothing of it downloaded.

    Raises: WeightsError if it does not exist, or is a single file.
    """
    place = locate(source, "folder", "Give a Gemma 3 folder or a hub repo id as text encoder.")
    if isinstance(place, Repo):
        find_text_encoder(place.name)
    elif not place.is_dir():
        says = recognise_file(place).says
        raise WeightsError(
            f"{place}: is a single file ({says}), and a text encoder is a folder with config.json, tokenizer and "
            "weights. Give a Gemma 3 folder or a hub repo id."
        )
    return place


def tokenizer_folder(folder: Path) -> Path:
    """Where the tokenizer of a text encoder lies: in its folder, or in `tokenizer` beside it, as diffusers saves it."""
    for place in (folder, folder.parent / "tokenizer"):
        if any((place / name).is_file() for name in ("tokenizer.json", "tokenizer.model")):
            return place
    return folder


def check_text_encoder(
    folder: str | Path, expected_width: int | None = None, expected_layers: int | None = None
) -> TextEncoderInfo:
    """Refuse a folder that cannot serve, from config.json, tensor headers and the tokenizer alone.

    Raises: WeightsError as `load_text_encoder` does.
    """
    found, _, _ = _check(folder, expected_width, expected_layers)
    return TextEncoderInfo(
        width=found.args.hidden_size,
        layers=found.args.num_hidden_layers,
        num_bytes=sum(info.nbytes for info in found.infos.values()),
        quantized=any(name.endswith(".scales") for name in found.infos),
    )


def bare_text_encoder(
    folder: str | Path, expected_width: int | None = None
) -> tuple[Model, dict[str, Place], PromptTokenizer]:
    """The network as it is stored, without weights; where each of its tensors lies; its tokenizer.

    Arguments and errors as `load_text_encoder`. Reads headers only.
    """
    found, model, tokenizer = _check(folder, expected_width, None)
    return model, _places(found), tokenizer


def load_text_encoder(
    folder: str | Path,
    expected_width: int | None = None,
    expected_layers: int | None = None,
    *,
    resident_layers: int | None = None,
) -> TextEncoder:
    """Text encoder of a Gemma 3 folder, read and ready for use in any thread unless layers are streamed.

    expected_width, expected_layers: of the checkpoint the prompt is for (3840 and 48 in the released ones).
    resident_layers: keep so many layers, read the others at every use, and only the rows of the embedding that a
    prompt needs; None keeps everything. float16 tensors become bfloat16: Gemma 3's residual stream leaves float16's
    range.
    Raises: WeightsError if a file is missing or damaged, a tensor is missing, unexpected or misshapen, if
    the size is not the expected one, or if the tokenizer is missing or of another model.
    """
    encoder = lazy_text_encoder(folder, expected_width, expected_layers, resident_layers=resident_layers)
    if resident_layers is None:
        mx.eval(encoder.model.parameters())
    return encoder


def lazy_text_encoder(
    folder: str | Path,
    expected_width: int | None = None,
    expected_layers: int | None = None,
    *,
    resident_layers: int | None = None,
) -> TextEncoder:
    """As `load_text_encoder`; weights stay on disk until they are used, in the thread that called this."""
    found, model, tokenizer = _check(folder, expected_width, expected_layers)
    if resident_layers is None:
        loaded: dict[Path, dict[str, mx.array]] = {}
        weights = []
        for name, (file, stored) in found.files.items():
            if file not in loaded:
                loaded[file] = cast(dict[str, mx.array], mx.load(str(file)))
            weights.append((name, _not_float16(loaded[file][stored])))
        model.load_weights(weights, strict=True)
    else:
        _stream(model, found, resident_layers)
    model.eval()
    return TextEncoder(model, tokenizer, found.args.hidden_size, found.args.num_hidden_layers)


def _not_float16(array: mx.array) -> mx.array:
    return array.astype(mx.bfloat16) if array.dtype == mx.float16 else array


def _places(found: _Folder) -> dict[str, Place]:
    return {name: (*found.files[name], found.infos[name]) for name in found.files}


def _stream(model: Model, found: _Folder, resident: int) -> None:
    """Weights around the layers and of the resident ones, lazily; the others when they are asked for."""
    gemma: Any = model.model
    places = _places(found)
    reader = TensorReader(places, _not_float16)
    names, rest = split_by_block(places, "model.layers", len(gemma.layers))
    blocks = BlockStream(gemma.layers, names, reader, resident)
    embedding = {n.rpartition(".")[2]: places[n] for n in rest if n.startswith(_EMBEDDING)}
    gemma.layers = StreamedLayers(blocks)
    gemma.embed_tokens = RowReader(gemma.embed_tokens, embedding, _not_float16)
    load_around(model, reader, [name for name in rest if not name.startswith(_EMBEDDING)])
    blocks.load_resident()


_EMBEDDING = "model.embed_tokens."


def _check(folder: str | Path, width: int | None, layers: int | None) -> tuple[_Folder, Model, PromptTokenizer]:
    found = _read(Path(folder))
    sizes = (
        ("hidden_size", found.args.hidden_size, width),
        ("num_hidden_layers", found.args.num_hidden_layers, layers),
    )
    for key, given, wanted in sizes:
        if wanted is not None and given != wanted:
            raise WeightsError(
                f"{found.path}: the text encoder's {key} is {given} and the checkpoint needs {wanted}. "
                "Use the Gemma 3 model that the checkpoint was trained with (12B for LTX-2 and LTX-2.3)."
            )
    model = build_gemma(found.args)
    _quantize(model, found)
    _compare(model, found)
    tokenizer = PromptTokenizer.from_folder(tokenizer_folder(found.path))
    tokenizer.check_fits(found.args.vocab_size, found.path)
    return found, model, tokenizer


def _read(folder: Path) -> _Folder:
    path = folder / "config.json"
    try:
        config = json.loads(path.read_text("utf-8"))
    except OSError as error:
        raise WeightsError(f"{path}: cannot be read ({error.strerror}). Give a Gemma 3 folder.") from None
    except ValueError as error:
        raise WeightsError(f"{path}: is no JSON ({error}). Download it again.") from None
    if not isinstance(config, dict):
        raise WeightsError(f"{path}: is no JSON object. Download it again.")
    args = gemma_args(config)
    infos: dict[str, TensorInfo] = {}
    files: dict[str, tuple[Path, str]] = {}
    unknown = []
    for file in weight_files(folder):
        for stored, info in read_header(file).tensors.items():
            if stored.startswith(IGNORED):
                continue
            name = _text_name(stored)
            if name is None:
                unknown.append(stored)
                continue
            if name in infos:
                raise WeightsError(f"{folder}: tensor {name!r} is stored twice. Download the folder again.")
            infos[name], files[name] = info, (file, stored)
    if unknown:
        raise WeightsError(f"{folder}: unexpected tensors {_listed(unknown)}; this is no Gemma 3 folder.")
    return _Folder(folder, config, args, infos, files)


def _text_name(stored: str) -> str | None:
    for prefix in PREFIXES:
        if stored.startswith(prefix):
            return "model." + stored.removeprefix(prefix)
    return None


def weight_files(folder: Path) -> list[Path]:
    """The shards of a Gemma 3 folder, as its index names them; other files of weights in it do not count.

    Raises: WeightsError if the index or a shard is missing or damaged.
    """
    index = folder / "model.safetensors.index.json"
    if not index.is_file():
        files = sorted(folder.glob("*.safetensors"))
        # diffusers' own save may lie beside transformers', with the same tensors a second time
        files = [f for f in files if not f.name.startswith("diffusion_pytorch_model")] or files
        if not files:
            raise WeightsError(f"{folder}: there is no .safetensors file. Download the Gemma 3 folder again.")
        return files
    try:
        names = set(json.loads(index.read_text("utf-8"))["weight_map"].values())
        files = [folder / name for name in sorted(names)]
    except (OSError, ValueError, KeyError, AttributeError, TypeError) as error:
        raise WeightsError(f"{index}: cannot be understood ({error}). Download it again.") from None
    missing = [file.name for file in files if not file.is_file()]
    if missing:
        raise WeightsError(f"{folder}: the index names files that are missing: {_listed(missing)}. Download them.")
    return files


def _quantize(model: Model, found: _Folder) -> None:
    """Make the layers that are stored quantized so; each one's bits and group size follow from its shapes."""

    def stored(path: str, layer: nn.Module) -> bool | dict[str, Any]:
        if f"{path}.scales" not in found.infos or not hasattr(layer, "to_quantized"):
            return False
        return _packing(path, layer.weight.shape[-1], found)

    if any(name.endswith(".scales") for name in found.infos):
        nn.quantize(model, class_predicate=stored)
        dequantize_when_wide(model, wide_rows())


def _packing(path: str, width: int, found: _Folder) -> dict[str, Any]:
    weight, scales = found.infos.get(f"{path}.weight"), found.infos[f"{path}.scales"]
    if weight is None or weight.dtype != "U32" or not scales.shape or not scales.shape[-1]:
        raise WeightsError(f"{found.path}: {path} is quantized in a way that is not understood. Convert it again.")
    group_size, bits = width // scales.shape[-1], weight.shape[-1] * 32 // width
    mode = "affine"
    if scales.dtype == "U8":
        mode = _FLOAT_MODES.get((bits, group_size), "unknown")
    packing = {"group_size": group_size, "bits": bits, "mode": mode}
    Quantization.from_dict(packing, f"{found.path}: {path}")
    return packing


def _compare(model: Model, found: _Folder) -> None:
    parameters = cast(list[tuple[str, mx.array]], tree_flatten(model.parameters()))
    expected = {name: tuple(value.shape) for name, value in parameters}
    faults = []
    if missing := [name for name in expected if name not in found.infos]:
        faults.append(f"missing {_listed(missing)}")
    if unexpected := [name for name in found.infos if name not in expected]:
        faults.append(f"unexpected {_listed(unexpected)}")
    wrong = [
        f"{name} {found.infos[name].shape} instead of {shape}"
        for name, shape in expected.items()
        if name in found.infos and found.infos[name].shape != shape
    ]
    if wrong:
        faults.append(f"of a wrong shape {_listed(wrong)}")
    if faults:
        raise WeightsError(f"{found.path}: tensors {'; '.join(faults)}. Download the Gemma 3 folder again.")


def _listed(names: Iterable[str]) -> str:
    names = list(names)
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(names[:_SHOWN]) + more
