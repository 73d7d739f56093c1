"""LoRAs: finding the file, matching it to a transformer, applying it, and saying what was applied.

Full-precision layers get the update added to their weight once, in float32. Quantized layers keep their
weights, because an update of this size drowns when the sum is rounded to a few bits again; there the two
matrices run beside the layer. Arithmetic: LoRA (arXiv 2106.09685), official `ltx_core.loader.fuse_loras` 1.2.0.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import mlx.core as mx
from mlx import nn

from mlx_ltx2.errors import RequestError, WeightsError
from mlx_ltx2.models.layers.linear import QuantizedLinear, turned
from mlx_ltx2.weights import hub
from mlx_ltx2.weights.header import TensorInfo, read_header
from mlx_ltx2.weights.location import Repo, locate
from mlx_ltx2.weights.lora_keys import (
    ADAPTER_CONFIG,
    ADAPTER_MODEL,
    LoraFile,
    Pair,
    find_layer,
    layer_names,
    read_lora,
)
from mlx_ltx2.weights.stamp import FileStamp, file_stamp

Say = Callable[[str], None]
Shape = tuple[int, int]

SHOWN = 6
"""How many unmatched keys a report lists."""


def silent(text: str) -> None:
    """Says nothing."""


def resolve_lora(path: str | Path, say: Say = silent) -> Path:
    """The LoRA file meant by `path`, downloaded if it lies on the hub.

    path: a safetensors file, a folder or a hub id that holds exactly one, or FOLDER::FILE or REPO::FILE.
    Raises: WeightsError if there is none or the hub fails, RequestError if there are several to choose from.
    """
    text = str(path)
    base, _, name = text.partition("::")
    place = locate(
        base,
        "file",
        "Give a safetensors file, a folder that holds one, or a hub id OWNER/NAME, followed by ::FILE if it holds "
        "several.",
    )
    if isinstance(place, Repo):
        return _from_hub(place.name, name, say)
    if place.is_dir():
        return place / _choose(base, name, [p.relative_to(place).as_posix() for p in place.rglob("*.safetensors")])
    if name:
        raise RequestError(f"LoRA {text}: {base} is a single file, so there is nothing to choose; drop ::{name}.")
    return _safetensors(place)


def _safetensors(path: Path) -> Path:
    if path.suffix != ".safetensors" and (path.suffix or not _is_blob(path)):
        raise WeightsError(f"LoRA {path}: only safetensors files are read, not {path.suffix or 'others'}. Convert it.")
    return path


def _is_blob(path: Path) -> bool:
    """A file of the hub's cache by its own name, which is a hash without a suffix."""
    return path.parent.name == "blobs"


def _choose(where: str, name: str, names: Sequence[str]) -> str:
    names = sorted(names)
    if name and name not in names:
        raise RequestError(f"LoRA {where}: has no safetensors file {name!r}; it has {', '.join(names) or 'none'}.")
    if not names:
        raise WeightsError(f"LoRA {where}: holds no safetensors file. Give the file itself or another source.")
    if not name and len(names) > 1:
        raise RequestError(f"LoRA {where}: holds several files; say which, as {where}::FILE: {', '.join(names)}.")
    return name or names[0]


def _from_hub(repo: str, name: str, say: Say) -> Path:
    from huggingface_hub import try_to_load_from_cache

    if name:
        cached = try_to_load_from_cache(repo, name)  # so that a LoRA that is here works without a network
        if isinstance(cached, str):
            return _safetensors(Path(cached))
    files = hub.list_files(repo)
    name = _choose(repo, name, [f.name for f in files if f.name.endswith(".safetensors")])
    wanted = {name}
    if Path(name).name == ADAPTER_MODEL:
        wanted.add(str(Path(name).with_name(ADAPTER_CONFIG)))
    chosen = sorted((f for f in files if f.name in wanted), key=lambda f: f.name != name)
    return hub.download_files(repo, chosen, say=say)[0]


@dataclass(frozen=True)
class LoraReport:
    """What became of one LoRA's keys (tensors of its file).

    layers: how many layers it changes. absent: keys for layers of a stream that is not built. unmatched: keys
    that mean nothing to this model.
    """

    name: str
    strength: float
    keys: int = 0
    layers: int = 0
    absent: int = 0
    unmatched: tuple[str, ...] = ()

    @property
    def matched(self) -> int:
        return self.keys - self.absent - len(self.unmatched)

    def text(self) -> str:
        head = f"LoRA {self.name}, strength {self.strength:g}: "
        if self.strength == 0:
            return head + "skipped"
        head += f"{self.matched} of {self.keys} keys matched, {self.layers} layers changed"
        if self.absent:
            head += f"; {self.absent} keys are for a stream that this stage does not make"
        if self.unmatched:
            more = f" and {len(self.unmatched) - SHOWN} more" if len(self.unmatched) > SHOWN else ""
            head += f"; {len(self.unmatched)} not matched: {', '.join(self.unmatched[:SHOWN])}{more}"
        return head


@dataclass(frozen=True)
class Match:
    """One LoRA with the layers of a network that its pairs belong to."""

    file: LoraFile
    strength: float
    pairs: Mapping[str, Pair] = field(default_factory=dict)
    report: LoraReport = field(default_factory=lambda: LoraReport("", 0.0))


def match_lora(file: LoraFile, strength: float, layers: Mapping[str, Shape], absent: Collection[str] = ()) -> Match:
    """Find the layer of every pair. layers: name -> (outputs, inputs). absent: layers that are not built.

    Raises: WeightsError if nothing fits or a shape differs.
    """
    spelled = layer_names([*layers, *absent])
    pairs: dict[str, Pair] = {}
    unmatched, left_out = list(file.others), 0
    for module, pair in file.pairs.items():
        layer = find_layer(module, spelled)
        if layer is None:
            unmatched += pair.keys
        elif layer not in layers:
            left_out += len(pair.keys)
        elif layer in pairs:
            raise WeightsError(f"{file.path}: changes {layer} twice, under two spellings ({module} is one).")
        else:
            pairs[layer] = pair
    wrong = {n: p for n, p in pairs.items() if (p.outputs, p.inputs) != layers[n]}
    if wrong:
        layer, pair = next(iter(wrong.items()))
        raise WeightsError(
            f"{file.path}: {len(wrong)} of its {len(file.pairs)} layers have another shape than the model's: "
            f"{layer} is {(pair.outputs, pair.inputs)}, the model has {layers[layer]}. It was made for another "
            "generation or size of the model; use one made for this."
        )
    if not pairs and not left_out:
        raise WeightsError(
            f"{file.path}: none of its {file.keys} keys fits a layer of this transformer (they are "
            f"{', '.join(unmatched[:3])}, ...). It was made for another model."
        )
    report = LoraReport(file.path.name, strength, file.keys, len(pairs), left_out, tuple(unmatched))
    return Match(file, strength, pairs, report)


def apply_loras(
    transformer: nn.Module, loras: Sequence[tuple[str | Path, float]], *, absent: Collection[str] = ()
) -> list[LoraReport]:
    """Apply LoRA files to a transformer in place, layer by layer; returns one report per LoRA.

    transformer: freshly loaded, without LoRAs, so that strengths are exact; its weights may be lazy.
    loras: (file, strength); 0 skips it, negative ones subtract. absent: the model's layers that were not built.
    Memory: that of the network and float32 copies of one layer. Raises: WeightsError, RequestError.
    """
    updates = LoraUpdates(transformer, loras, absent=absent)
    updates.apply(transformer, updates.layers)
    return updates.reports


class LoraUpdates:
    """LoRA files matched to a transformer, ready to be applied to some of its layers at a time, any number of times.

    layers: names of those that change. reports: one per LoRA. bytes_read: of LoRA tensors so far.
    """

    def __init__(
        self, transformer: nn.Module, loras: Sequence[tuple[str | Path, float]], *, absent: Collection[str] = ()
    ):
        """Arguments and errors as of `apply_loras`; reads headers only."""
        shapes = {name: linear_shape(layer) for name, layer in linear_layers(transformer).items()}
        self.reports: list[LoraReport] = []
        self.bytes_read = 0
        self._matches: list[Match] = []
        for path, strength in loras:
            if not math.isfinite(strength):
                raise RequestError(f"LoRA {path}: strength {strength} is no number; 1 is the usual one.")
            if strength == 0:
                self.reports.append(LoraReport(Path(path).name, 0.0))
                continue
            self._matches.append(match_lora(read_lora(path), strength, shapes, absent))
            self.reports.append(self._matches[-1].report)
        changed = {name for match in self._matches for name in match.pairs}
        self.layers = [name for name in shapes if name in changed]

    def apply(self, transformer: nn.Module, names: Iterable[str]) -> None:
        """Change these layers of the transformer, whose weights must be the stored ones again."""
        arrays = [_Arrays(match.file) for match in self._matches]
        for name in names:
            parts = [
                (*source.take(match.pairs[name]), match.strength * match.pairs[name].scale)
                for match, source in zip(self._matches, arrays, strict=True)
                if name in match.pairs
            ]
            if parts:
                put_layer(transformer, name, with_update(layer_at(transformer, name), parts))
        self.bytes_read += sum(source.bytes_read for source in arrays)


class _Arrays:
    """Lazy tensors of a LoRA, each handed out once so that nothing keeps them once they are used."""

    def __init__(self, file: LoraFile):
        self._arrays: dict[str, mx.array] = mx.load(str(file.path))  # type: ignore[assignment]
        self._infos: Mapping[str, TensorInfo] = read_header(file.path).tensors
        self.bytes_read = 0

    def take(self, pair: Pair) -> tuple[mx.array, mx.array]:
        return self._take(pair.down, pair.scales[0]), self._take(pair.up, pair.scales[1])

    def _take(self, name: str, scale: str | None) -> mx.array:
        values = self._float32(name)
        return values if scale is None else values * self._float32(scale).reshape(-1, 1)

    def _float32(self, name: str) -> mx.array:
        array = self._arrays.pop(name)
        self.bytes_read += self._infos[name].nbytes
        if self._infos[name].dtype == "F8_E4M3":  # mlx hands these out as bytes
            return mx.from_fp8(array, dtype=mx.float32)
        return array.astype(mx.float32)


def with_update(layer: nn.Module, parts: Sequence[tuple[mx.array, mx.array, float]]) -> nn.Module:
    """The layer with all updates, evaluated: itself with a new weight, or a quantized one with a side branch.

    parts: (down (rank, inputs), up (outputs, rank), factor), float32.
    """
    down, up = joined(parts)
    if isinstance(layer, nn.QuantizedLinear):
        beside = QuantizedLinearWithLora(layer, down, up)
        mx.eval(beside.branch)
        return beside
    layer.weight = fused_weight(layer.weight, down, up)
    mx.eval(layer.weight)
    return layer


def joined(parts: Sequence[tuple[mx.array, mx.array, float]]) -> tuple[mx.array, mx.array]:
    """All updates of a layer as one pair: down (ranks, inputs), up (outputs, ranks)."""
    down = mx.concatenate([a for a, _, _ in parts])
    return down, mx.concatenate([b * factor for _, b, factor in parts], axis=1)


def fused_weight(weight: mx.array, down: mx.array, up: mx.array) -> mx.array:
    """(outputs, inputs) weight + up @ down, summed in float32 and rounded once to the weight's type."""
    return turned(mx.addmm(weight.astype(mx.float32), up, down).astype(weight.dtype))


class QuantizedLinearWithLora(QuantizedLinear):
    """base(x) + (x @ down.T) @ up.T.

    Its parameters are those of the base under the same names; the branch is no parameter, so that walking,
    counting and loading see the layer that the checkpoint has.
    """

    def __init__(self, base: nn.QuantizedLinear, down: mx.array, up: mx.array):
        nn.Module.__init__(self)  # the base's own would draw and quantize a weight
        self.__dict__.update(base.__dict__)
        dict.update(self, base)
        dtype = branch_dtype(base)
        self._lora_down = down.astype(dtype)
        self._lora_up = up.astype(dtype)

    @property
    def branch(self) -> tuple[mx.array, mx.array]:
        """down (rank, inputs) and up (outputs, rank)."""
        return self._lora_down, self._lora_up

    def give_branch(self, down: mx.array, up: mx.array) -> None:
        """Other arrays in place of `branch`."""
        self._lora_down, self._lora_up = down, up

    def __call__(self, x: mx.array) -> mx.array:
        return mx.addmm(super().__call__(x), x @ self._lora_down.T, self._lora_up.T)


def branch_dtype(layer: nn.QuantizedLinear) -> mx.Dtype:
    """Type in which a LoRA beside a quantized layer is kept and computed: that of the activations."""
    for name in ("bias", "scales"):
        array: mx.array | None = layer.get(name)
        if array is not None and mx.issubdtype(array.dtype, mx.floating):
            return array.dtype
    return mx.bfloat16


def linear_layers(network: nn.Module) -> dict[str, nn.Module]:
    """Layers that a LoRA can change, by name, in the order of the network."""
    kinds = (nn.Linear, nn.QuantizedLinear)
    found = [(name, layer) for name, layer in network.named_modules() if isinstance(layer, kinds)]
    return dict(reversed(found))


def linear_shape(layer: Any) -> Shape:
    """(outputs, inputs) of a Linear layer, quantized or not."""
    outputs, inputs = layer.weight.shape
    if isinstance(layer, nn.QuantizedLinear):
        inputs = inputs * 32 // layer.bits
    return outputs, inputs


def stored_shapes(tensors: Mapping[str, tuple[int, ...]], group_size: int | None = None) -> dict[str, Shape]:
    """(outputs, inputs) of the Linear layers of a stored transformer, from its tensors' shapes alone.

    group_size: of the quantization, if there is one.
    """
    shapes: dict[str, Shape] = {}
    for name, shape in tensors.items():
        layer = name.removesuffix(".weight")
        if layer == name or len(shape) != 2:
            continue
        scales = tensors.get(f"{layer}.scales")
        shapes[layer] = (shape[0], shape[1] if scales is None else scales[1] * (group_size or 1))
    return shapes


def layer_at(network: Any, name: str) -> Any:
    """The layer of a network by its name."""
    for part in name.split("."):
        network = network[int(part)] if isinstance(network, list) else network[part]
    return network


def put_layer(network: Any, name: str, layer: nn.Module) -> None:
    """Replace a layer of a network."""
    parent, _, last = name.rpartition(".")
    owner = layer_at(network, parent) if parent else network
    owner[int(last) if isinstance(owner, list) else last] = layer


_hashes: dict[tuple[str, FileStamp], str] = {}


def lora_hash(path: str | Path) -> str:
    """SHA-256 of a LoRA file, in hex. Read once per process while the file stays as it is.

    A file in the hub's cache is not read: the cache names large files by this very hash.
    Raises: WeightsError if it cannot be read.
    """
    real = Path(path).resolve()
    if real.parent.name == "blobs" and len(real.name) == 64:
        return real.name
    try:
        key = (str(real), file_stamp(real))
        if key not in _hashes:
            with real.open("rb") as file:
                _hashes[key] = hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise WeightsError(f"LoRA {path}: cannot be read ({error.strerror}).") from None
    return _hashes[key]
