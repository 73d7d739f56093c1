"""What LoRAs take: beside quantized layers for as long as the network lives, and while they are applied.

Full-precision layers are changed once and keep their size; what that takes is the float32 copies of
one layer at a time. See `weights.lora`.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path

import mlx.core as mx
from mlx import nn

from mlx_ltx2.footprint import footprint
from mlx_ltx2.pipelines.stack import Stack
from mlx_ltx2.weights.header import ITEM_BYTES, read_header
from mlx_ltx2.weights.lora import (
    Match,
    branch_dtype,
    fused_weight,
    joined,
    linear_shape,
    match_lora,
)
from mlx_ltx2.weights.lora_keys import read_lora
from mlx_ltx2.weights.streaming import BLOCKS, split_by_block

Part = tuple[int, int, int]
"""One LoRA of a layer: rank, and bytes of a number of its two matrices."""

Ranks = tuple[tuple[str, int], ...]
"""Layers with a LoRA beside them and its rank; "transformer_blocks.*" stands for every block."""


@dataclass(frozen=True)
class LayerSize:
    """A Linear layer. dtype: of its weight, or of what stands beside it if it is quantized."""

    outputs: int
    inputs: int
    quantized: bool
    dtype: mx.Dtype

    @classmethod
    def of(cls, layer: nn.Module) -> LayerSize:
        outputs, inputs = linear_shape(layer)
        if isinstance(layer, nn.QuantizedLinear):
            return cls(outputs, inputs, True, branch_dtype(layer))
        return cls(outputs, inputs, False, layer.weight.dtype)


@dataclass(frozen=True)
class LayerNeeds:
    """Bytes. stays: beside the layer's own weights. loaded: own weights that are read to be changed.
    applying: highest point of that beyond them. read: from LoRA files.
    """

    stays: int
    loaded: int
    applying: int
    read: int


@dataclass(frozen=True)
class LoraNeeds:
    """layers: by name, in the order in which they are applied. ranks: beside quantized layers."""

    layers: Mapping[str, LayerNeeds]
    ranks: Ranks

    def beside(self, stack: Stack) -> Stack:
        """The stack with these LoRAs."""
        blocks, around = split_by_block(self.layers, BLOCKS, stack.count)
        names = [list(block) for block in blocks]
        loading = done = 0
        for needs in self.layers.values():
            loading = max(loading, done + needs.loaded + needs.applying)
            done += needs.loaded + needs.stays
        return replace(
            stack,
            around=stack.around + self._sum("stays", around),
            beside=tuple(self._sum("stays", block) for block in names),
            read=tuple(self._sum("read", block) for block in names),
            applying=tuple(max((self.layers[n].applying for n in block), default=0) for block in names),
            loading=loading,
        )

    @property
    def stays(self) -> int:
        return self._sum("stays", self.layers)

    def _sum(self, what: str, names: Iterable[str]) -> int:
        return sum(getattr(self.layers[name], what) for name in names)


def lora_needs(
    layers: Mapping[str, LayerSize],
    loras: Sequence[tuple[Path, float]],
    absent: Collection[str] = (),
) -> LoraNeeds:
    """Of LoRA files (path, strength) on a transformer with these layers; reads headers only.

    absent: layers of the model that are not built. Raises: WeightsError as `apply_loras`.
    """
    shapes = {name: (size.outputs, size.inputs) for name, size in layers.items()}
    files = [(path, strength) for path, strength in loras if strength]
    matches = [match_lora(read_lora(path), strength, shapes, absent) for path, strength in files]
    stored = [_item_bytes(match) for match in matches]
    needs: dict[str, LayerNeeds] = {}
    ranks: dict[str, int] = {}
    for name, size in layers.items():
        parts = tuple(
            (match.pairs[name].rank, *items[name])
            for match, items in zip(matches, stored, strict=True)
            if name in match.pairs
        )
        if parts:
            needs[name] = _layer_needs(size, parts)
            if size.quantized:
                kind = _pattern(name)
                ranks[kind] = max(ranks.get(kind, 0), sum(rank for rank, _, _ in parts))
    return LoraNeeds(needs, tuple(ranks.items()))


def _item_bytes(match: Match) -> dict[str, tuple[int, int]]:
    """By layer, bytes of a stored number of the LoRA's two matrices."""
    tensors = read_header(match.file.path).tensors
    return {
        name: (ITEM_BYTES[tensors[pair.down].dtype], ITEM_BYTES[tensors[pair.up].dtype])
        for name, pair in match.pairs.items()
    }


def _pattern(name: str) -> str:
    head, _, rest = name.partition(f"{BLOCKS}.")
    return name if head or not rest else f"{BLOCKS}.*.{rest.partition('.')[2]}"


_STORED = {1: mx.uint8, 2: mx.bfloat16, 4: mx.float32}


@lru_cache(maxsize=1024)
def _layer_needs(size: LayerSize, parts: tuple[Part, ...]) -> LayerNeeds:
    """Traced as `with_update` does it."""
    pairs = []
    for rank, down, up in parts:
        pairs += [mx.zeros((rank, size.inputs), _STORED[down])]
        pairs += [mx.zeros((size.outputs, rank), _STORED[up])]
    read = sum(array.nbytes for array in pairs)

    def both(arrays: Sequence[mx.array]) -> tuple[mx.array, mx.array]:
        wide = [array.astype(mx.float32) for array in arrays]
        return joined([(a, b, 0.5) for a, b in zip(wide[::2], wide[1::2], strict=True)])

    if size.quantized:
        run = footprint(lambda *given: [x.astype(size.dtype) for x in both(given)], *pairs)
        return LayerNeeds(run.result, 0, read + run.peak, read)
    weight = mx.zeros((size.outputs, size.inputs), size.dtype)
    run = footprint(lambda w, *given: fused_weight(w, *both(given)), weight, *pairs)
    return LayerNeeds(0, weight.nbytes, read + run.peak, read)
