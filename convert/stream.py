"""One pass over a source file: every byte is read once, in file order, hashed, converted and written."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from io import FileIO
from pathlib import Path

import numpy as np

from mlx_ltx2.errors import WeightsError
from mlx_ltx2.weights.header import ITEM_BYTES, Header, TensorInfo
from mlx_ltx2_convert.shards import FileWriter, Hash, Shard, Tensor
from mlx_ltx2_convert.tensors import RAW, cast, quantize

CHUNK_BYTES = 32 * 2**20
"""How much of a tensor is in memory at a time. A few copies of it are the converter's peak."""

Finished = Callable[[Shard, dict[str, object]], None]
Advance = Callable[[int], None]


class TensorWriter:
    """Converts one tensor chunk by chunk. A quantized weight's scales follow when its last row is written."""

    def __init__(self, tensor: Tensor, file: FileWriter) -> None:
        self._tensor, self._file = tensor, file
        self._behind: list[list[np.ndarray]] = []

    def write(self, raw: np.ndarray) -> None:
        """raw: the next rows (or the whole tensor) in the official layout, seen as RAW[dtype]."""
        tensor = self._tensor
        if tensor.axes is not None:
            raw = raw.transpose(tensor.axes)
        values = cast(raw, tensor.info.dtype, tensor.dtype, tensor.scale)
        if tensor.quantization is None:
            self._file.write(values)
            return
        packed, *behind = quantize(np.ascontiguousarray(values), tensor.dtype, tensor.quantization)
        self._file.write(packed)
        self._behind.append(behind)

    def finish(self) -> None:
        for part in zip(*self._behind, strict=True):
            self._file.write(np.concatenate(part))


class ShardWriter:
    """Opens each shard at its first tensor, closes it after its last."""

    def __init__(self, folder: Path, shards: Sequence[Shard], finished: Finished) -> None:
        self._folder, self._finished = folder, finished
        self._place = {id(t): shard for shard in shards for t in shard.tensors}
        self._left = {shard.file: len(shard.tensors) for shard in shards}
        self._files: dict[str, FileWriter] = {}

    def start(self, tensor: Tensor) -> TensorWriter:
        shard = self._place[id(tensor)]
        if shard.file not in self._files:
            self._files[shard.file] = FileWriter(self._folder / shard.file)
            self._files[shard.file].write(shard.header)
        return TensorWriter(tensor, self._files[shard.file])

    def done(self, tensor: Tensor) -> None:
        shard = self._place[id(tensor)]
        self._left[shard.file] -= 1
        if self._left[shard.file] == 0:
            self._finished(shard, self._files.pop(shard.file).finish())

    def close(self) -> None:
        for file in self._files.values():
            file.close()


def stream(header: Header, tensors: Iterable[Tensor], writer: ShardWriter, advance: Advance) -> str:
    """Convert `tensors`, all of this file, in file order; returns the SHA-256 of the whole file.

    Raises: WeightsError if the file ends early or changes while it is read.
    """
    wanted: dict[str, list[Tensor]] = {}
    for tensor in tensors:
        wanted.setdefault(tensor.official, []).append(tensor)
    sha = Hash()
    try:
        with header.path.open("rb", buffering=0) as file:
            for _ in _read(file, header, header.data_begin, sha, advance):
                pass
            for name, info in header.tensors.items():
                _convert(file, header, info, wanted.get(name, []), writer, sha, advance)
        return sha.hexdigest()
    except OSError as error:
        raise WeightsError(f"{header.path}: cannot be read ({error.strerror}).") from None
    finally:
        sha.close()


def _convert(
    file: FileIO,
    header: Header,
    info: TensorInfo,
    tensors: list[Tensor],
    writer: ShardWriter,
    sha: Hash,
    advance: Advance,
) -> None:
    if not tensors:
        for _ in _read(file, header, info.nbytes, sha, advance):
            pass
        return
    targets = [writer.start(tensor) for tensor in tensors]
    whole = not info.shape or any(t.axes is not None and t.axes[0] != 0 for t in tensors)
    row_bytes = info.nbytes if whole else math.prod(info.shape[1:]) * ITEM_BYTES[info.dtype]
    rest = info.shape if whole else (-1, *info.shape[1:])
    for data in _read(file, header, info.nbytes, sha, advance, row_bytes):
        raw = data.view(RAW[info.dtype]).reshape(rest)
        for target in targets:
            target.write(raw)
    for target, tensor in zip(targets, tensors, strict=True):
        target.finish()
        writer.done(tensor)


def _read(
    file: FileIO, header: Header, nbytes: int, sha: Hash, advance: Advance, grain: int = 1
) -> Iterator[np.ndarray]:
    """The next `nbytes` in pieces of whole grains, each a new buffer, hashed on the way."""
    step = max(1, CHUNK_BYTES // max(1, grain)) * grain
    while nbytes:
        data = np.empty(min(step, nbytes), np.uint8)
        view = memoryview(data.data)
        while view:
            count = file.readinto(view)
            if not count:
                raise WeightsError(f"{header.path}: ended early; it changed while it was read. Run the command again.")
            view = view[count:]
        sha.update(memoryview(data.data))
        yield data
        advance(len(data))
        nbytes -= len(data)
