"""Networks larger than the memory: their blocks are read from disk as they are needed and dropped after use.

Blocks always run in the order 0 .. n-1, step after step. For such a cyclic order a cache of the last used blocks never
hits, and alternating the direction of the sweep is not possible; what saves most is to keep the first K blocks for good
and read the others once per sweep. The block after the current one is read while that one computes; the first of those
not kept is read while the kept ones compute. All passes of one evaluation run through a block while it is there, so a
step reads its blocks once, however many guidance passes it has.

A file's lazy array keeps its data once it was evaluated, so every reading makes new ones.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import mlx.core as mx
import numpy as np
from mlx import nn
from mlx.utils import tree_flatten

from mlx_ltx2.models.layers.linear import turn_long_weights
from mlx_ltx2.models.transformer import RopeTables, Transformer
from mlx_ltx2.models.transformer.block import Tokens
from mlx_ltx2.models.transformer.model import Velocities
from mlx_ltx2.states import Modality, Perturbation
from mlx_ltx2.weights.header import TensorInfo
from mlx_ltx2.weights.index import ModelFolder
from mlx_ltx2.weights.load import bare_component
from mlx_ltx2.weights.lora import LoraReport, LoraUpdates, layer_at, put_layer

Inputs = tuple[Modality | None, Modality | None, Sequence[Perturbation] | None]
"""One pass: video, audio, perturbations."""

Place = tuple[Path, str, TensorInfo]
"""Where a tensor is stored: file, name in it, header entry."""

BLOCKS = "transformer_blocks"


class TensorReader:
    """Reads tensors anew at every call.

    places: name in the network -> where it is stored. convert: applied to each, lazily. bytes_read: of what was handed
    out so far, as stored.
    """

    def __init__(self, places: Mapping[str, Place], convert: Callable[[mx.array], mx.array] = lambda x: x):
        self.places = places
        self.bytes_read = 0
        self._convert = convert
        # A queue of its own, or reading would wait behind the arithmetic where that runs on the CPU too.
        self._stream = mx.new_stream(mx.cpu)

    def read(self, names: Iterable[str]) -> list[tuple[str, mx.array]]:
        """Lazy arrays of these tensors."""
        names = list(names)
        arrays: list[tuple[str, mx.array]] = []
        for file in dict.fromkeys(self.places[name][0] for name in names):
            stored: Any = mx.load(str(file), stream=self._stream)
            for name in names:
                path, own_name, info = self.places[name]
                if path == file:
                    arrays.append((name, self._convert(stored[own_name])))
                    self.bytes_read += info.nbytes
        return arrays


class BlockStream:
    """Blocks in their order, sweep after sweep: the first `resident` stay, the others come from the reader.

    blocks: modules with the right shapes. names: per block, name in the network -> name in the block. loaded, dropped:
    called with a block's number once its stored weights are in place, and before they go. waited_seconds: for weights
    that were not there yet when their turn came.
    """

    def __init__(
        self,
        blocks: Sequence[nn.Module],
        names: Sequence[Mapping[str, str]],
        reader: TensorReader,
        resident: int,
        loaded: Callable[[int], None] = lambda index: None,
        dropped: Callable[[int], None] = lambda index: None,
    ):
        self.reader = reader
        self.resident = min(max(resident, 0), len(blocks))
        self._blocks = blocks
        self._names = names
        self._loaded = loaded
        self._dropped = dropped
        self.waited_seconds = 0.0
        self._zeros: dict[mx.Dtype, mx.array] = {}
        for index in range(len(blocks)):
            self._clear(index)

    def __len__(self) -> int:
        return len(self._blocks)

    @property
    def streamed_bytes(self) -> int:
        """What one sweep reads, without LoRAs."""
        return sum(self._bytes(index) for index in range(self.resident, len(self)))

    @property
    def block_bytes(self) -> int:
        """The largest block, as stored."""
        return max(map(self._bytes, range(len(self))), default=0)

    def _bytes(self, index: int) -> int:
        return sum(self.reader.places[name][2].nbytes for name in self._names[index])

    def load_resident(self) -> None:
        """Give the kept blocks their weights, lazily."""
        for index in range(self.resident):
            self._fill(index, self._read(index))

    def sweep(self) -> Iterator[tuple[int, Any]]:
        """(number, block) in order. What the caller builds with a block must be evaluated before it asks for the next,
        or the block's weights stay."""
        ahead = self._start(self.resident)
        for index, block in enumerate(self._blocks):
            if index < self.resident:
                yield index, block
                continue
            self._fill(index, self._there(ahead))
            ahead = self._start(index + 1)
            try:
                yield index, block
            finally:
                self._clear(index)

    def _read(self, index: int) -> list[tuple[str, mx.array]]:
        names = self._names[index]
        return [(names[name], array) for name, array in self.reader.read(names)]

    def _start(self, index: int) -> list[tuple[str, mx.array]]:
        """Begin to read a block; returns at once."""
        if index >= len(self._blocks):
            return []
        arrays = self._read(index)
        mx.async_eval([array for _, array in arrays])
        return arrays

    def _there(self, arrays: list[tuple[str, mx.array]]) -> list[tuple[str, mx.array]]:
        """The arrays once they have been read; nothing can be computed before, and the wait is counted."""
        start = time.perf_counter()
        mx.eval([array for _, array in arrays])
        self.waited_seconds += time.perf_counter() - start
        return arrays

    def _fill(self, index: int, arrays: list[tuple[str, mx.array]]) -> None:
        self._blocks[index].load_weights(arrays, strict=True)
        arrays.clear()
        self._loaded(index)

    def _clear(self, index: int) -> None:
        """Put arrays without data in place of the weights."""
        self._dropped(index)
        flat: Any = tree_flatten(self._blocks[index].parameters())
        self._blocks[index].load_weights([(name, self._empty(array)) for name, array in flat], strict=True)

    def _empty(self, array: mx.array) -> mx.array:
        if array.dtype not in self._zeros:
            self._zeros[array.dtype] = mx.zeros((), array.dtype)
        return mx.broadcast_to(self._zeros[array.dtype], array.shape)


class _Around:
    """What has the face of `Transformer` and runs the blocks of one in its own way."""

    def __init__(self, network: Transformer):
        self.network = network
        self.config = network.config

    @property
    def dtype(self) -> mx.Dtype:
        return self.network.dtype

    def rope(
        self,
        video_positions: np.ndarray | None,
        audio_positions: np.ndarray | None,
        dtype: mx.Dtype | None = None,
    ) -> RopeTables:
        """As `Transformer.rope`."""
        return self.network.rope(video_positions, audio_positions, dtype)


class StreamedTransformer(_Around):
    """A transformer whose blocks beyond the first K come from disk."""

    def __init__(self, network: Transformer, blocks: BlockStream):
        super().__init__(network)
        self.blocks = blocks

    def __call__(
        self,
        video: Modality | None,
        audio: Modality | None,
        *,
        rope: RopeTables | None = None,
        perturbations: Sequence[Perturbation] | None = None,
    ) -> Velocities:
        """As `Transformer.__call__`; evaluates after every block."""
        return self.many([(video, audio, perturbations)], rope=rope)[0]

    def many(self, inputs: Sequence[Inputs], *, rope: RopeTables | None = None) -> list[Velocities]:
        """Velocities of several passes that go through each block together, one after the other."""
        passes, tokens = [], []
        for video, audio, perturbations in inputs:
            prepared, first = self.network.prepare(video, audio, rope=rope, perturbations=perturbations)
            passes.append(prepared)
            tokens.append(first)
        del first
        for index, block in self.blocks.sweep():
            for number, prepared in enumerate(passes):
                tokens[number] = _evaluated(block(index, prepared, tokens[number]))
        return [self.network.finish(prepared, last) for prepared, last in zip(passes, tokens, strict=True)]


class PacedTransformer(_Around):
    """A resident transformer that is evaluated every few blocks, so that no command buffer takes long.

    every: blocks per evaluation, 0 for whole passes; it may change between two passes.
    """

    def __init__(self, network: Transformer, every: int):
        super().__init__(network)
        self.every = every

    def __call__(
        self,
        video: Modality | None,
        audio: Modality | None,
        *,
        rope: RopeTables | None = None,
        perturbations: Sequence[Perturbation] | None = None,
    ) -> Velocities:
        """As `Transformer.__call__`."""

        def between(index: int, tokens: Tokens) -> None:
            if self.every and (index + 1) % self.every == 0:
                mx.eval(tokens)

        return self.network(video, audio, rope=rope, perturbations=perturbations, between_blocks=between)


def waited_seconds(network: Any) -> float:
    """Seconds that a transformer has waited for its weights so far; 0 for one in memory."""
    return network.blocks.waited_seconds if isinstance(network, StreamedTransformer) else 0.0


def _evaluated(tokens: Tokens) -> Tokens:
    mx.eval(tokens)
    return tokens


def stream_transformer(
    model: ModelFolder,
    *,
    resident_blocks: int = 1,
    dtype: mx.Dtype | None = None,
    video: bool = True,
    audio: bool = True,
    loras: Sequence[tuple[str | Path, float]] = (),
    absent: Collection[str] = (),
) -> tuple[StreamedTransformer, list[LoraReport]]:
    """The transformer of a converted model, streamed, with a report per LoRA.

    resident_blocks: how many blocks stay. dtype: cast floating weights to it. video, audio: as `load_component`.
    loras, absent: as `apply_loras`; a block gets its part of them every time it is read.
    Raises: WeightsError and RequestError as `load_component` and `apply_loras`.
    """
    bare, wanted = bare_component(model, "transformer", video=video, audio=audio)
    network = cast(Transformer, bare)
    reader = TensorReader({n: (header.path, n, info) for n, (header, info) in wanted.items()}, _caster(dtype))
    names, rest = split_by_block(wanted, BLOCKS, len(network.transformer_blocks))
    updates = LoraUpdates(network, loras, absent=absent)
    changed, others = split_by_block(updates.layers, BLOCKS, len(network.transformer_blocks))
    plain = {name: layer_at(network, name) for name in updates.layers}

    def loaded(index: int) -> None:
        if changed[index]:
            updates.apply(network, changed[index])
        turn_long_weights(network.transformer_blocks[index])

    def dropped(index: int) -> None:
        for name in changed[index]:
            put_layer(network, name, plain[name])

    blocks = BlockStream(network.transformer_blocks, names, reader, resident_blocks, loaded, dropped)
    load_around(network, reader, rest)
    updates.apply(network, others)
    blocks.load_resident()
    network.eval()
    return StreamedTransformer(network, blocks), updates.reports


def split_by_block(names: Iterable[str], prefix: str, count: int) -> tuple[list[dict[str, str]], list[str]]:
    """Names under `prefix`.0, `prefix`.1 ... by block, each with its name inside the block; and all others."""
    pattern = re.compile(rf"{re.escape(prefix)}\.(\d+)\.(.+)")
    blocks: list[dict[str, str]] = [{} for _ in range(count)]
    others = []
    for name in names:
        if found := pattern.fullmatch(name):
            blocks[int(found[1])][name] = found[2]
        else:
            others.append(name)
    return blocks, others


def load_around(network: nn.Module, reader: TensorReader, names: Iterable[str]) -> None:
    """Give a network, whose blocks are empty, the weights around them."""
    flat: Any = tree_flatten(network.parameters())
    network.load_weights(list({**dict(flat), **dict(reader.read(names))}.items()), strict=True)


def _caster(dtype: mx.Dtype | None) -> Callable[[mx.array], mx.array]:
    def convert(array: mx.array) -> mx.array:
        if dtype is None or not mx.issubdtype(array.dtype, mx.floating):
            return array
        return array.astype(dtype)

    return convert


class StreamedLayers(Sequence[Any]):
    """The layers of a text encoder as a sequence; iterating over it is one sweep."""

    def __init__(self, blocks: BlockStream):
        self.blocks = blocks

    def __len__(self) -> int:
        return len(self.blocks)

    def __iter__(self) -> Iterator[Any]:
        for _, layer in self.blocks.sweep():
            yield layer

    def __getitem__(self, index: Any) -> Any:
        raise TypeError("streamed layers come in their order; iterate over them")


class RowReader:
    """A token embedding of which only the rows asked for are read.

    places: of the embedding's tensors by their last name (weight, and scales and biases where it is quantized).
    layer: the embedding without weights.
    """

    def __init__(self, layer: nn.Module, places: Mapping[str, Place], convert: Callable[[mx.array], mx.array]):
        self._layer = layer
        self._places = places
        self._convert = convert

    def __call__(self, ids: mx.array) -> mx.array:
        """(1, T) integers -> (1, T, width)."""
        numbers = np.array(ids).reshape(-1)
        rows = {name: self._convert(self._rows(name, numbers)) for name in self._places}
        if isinstance(self._layer, nn.QuantizedEmbedding):
            layer = self._layer
            found = mx.dequantize(
                rows["weight"],
                scales=rows["scales"],
                biases=rows.get("biases"),
                group_size=layer.group_size,
                bits=layer.bits,
                mode=layer.mode,
            )
        else:
            found = rows["weight"]
        return found.reshape(*ids.shape, -1)

    def _rows(self, name: str, numbers: np.ndarray) -> mx.array:
        path, _, info = self._places[name]
        dtype, bits = _RAW[info.dtype]
        stored = np.memmap(path, dtype=bits, mode="r", offset=info.begin, shape=info.shape)
        return mx.array(stored[numbers]).view(dtype)


_RAW = {
    "BF16": (mx.bfloat16, np.uint16),
    "F16": (mx.float16, np.uint16),
    "F32": (mx.float32, np.uint32),
    "U32": (mx.uint32, np.uint32),
    "U8": (mx.uint8, np.uint8),
}
"""safetensors dtype -> MLX's, and an integer of its size that numpy knows."""
