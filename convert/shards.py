"""Shards of safetensors: planned completely before the first byte, then written front to back, hashed on the way."""

from __future__ import annotations

import errno
import hashlib
import math
import os
from collections.abc import Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from mlx_ltx2.errors import RequestError, ResourceError
from mlx_ltx2.weights.header import ITEM_BYTES, TensorInfo, header_bytes
from mlx_ltx2.weights.quantize import Quantization
from mlx_ltx2_convert.tensors import quantized_parts


@dataclass(frozen=True)
class Tensor:
    """One tensor on its way: where it lies in the source, and what is stored.

    name: in the component. official: in the source file. shape: as stored before quantization. axes: permutation of the
    official layout or None. dtype: stored (of the scales, if quantized). scale: factor of an fp8 weight.
    """

    name: str
    official: str
    source: Path
    info: TensorInfo
    shape: tuple[int, ...]
    axes: tuple[int, ...] | None
    dtype: str
    quantization: Quantization | None = None
    scale: float = 1.0

    @property
    def parts(self) -> list[tuple[str, str, tuple[int, ...]]]:
        """(name, dtype, shape) of each array that is stored for this tensor, in file order."""
        if self.quantization is None:
            return [(self.name, self.dtype, self.shape)]
        path = self.name.removesuffix("weight")
        return [(path + s, d, shape) for s, d, shape in quantized_parts(self.shape, self.dtype, self.quantization)]

    @property
    def nbytes(self) -> int:
        return sum(math.prod(shape) * ITEM_BYTES[dtype] for _, dtype, shape in self.parts)


@dataclass(frozen=True)
class Shard:
    """file: path relative to the model folder. tensors: in the order in which the source is read."""

    component: str
    file: str
    tensors: tuple[Tensor, ...]

    @cached_property
    def header(self) -> bytes:
        """The safetensors header with its length in front."""
        return header_bytes((part for tensor in self.tensors for part in tensor.parts), {"format": "mlx"})

    @cached_property
    def nbytes(self) -> int:
        return len(self.header) + sum(tensor.nbytes for tensor in self.tensors)


def cut_into_shards(component: str, folder: str, tensors: Sequence[Tensor], limit: int) -> list[Shard]:
    """Fill shards in order, each at most `limit` bytes unless a single tensor is larger."""
    groups: list[list[Tensor]] = [[]]
    filled = 0
    for tensor in tensors:
        if groups[-1] and filled + tensor.nbytes > limit:
            groups.append([])
            filled = 0
        groups[-1].append(tensor)
        filled += tensor.nbytes
    if len(groups) == 1:
        return [Shard(component, f"{folder}/model.safetensors", tuple(groups[0]))]
    return [
        Shard(component, f"{folder}/model-{i:05d}-of-{len(groups):05d}.safetensors", tuple(group))
        for i, group in enumerate(groups, 1)
    ]


def weight_map(shards: Iterable[Shard]) -> dict[str, object]:
    """Content of model.safetensors.index.json for the shards of one component."""
    shards = list(shards)
    names = {part[0]: Path(s.file).name for s in shards for tensor in s.tensors for part in tensor.parts}
    total = sum(tensor.nbytes for s in shards for tensor in s.tensors)
    return {"metadata": {"total_size": total}, "weight_map": dict(sorted(names.items()))}


_THREAD_PAYS_BYTES = 2**20


class Hash:
    """SHA-256 on a thread of its own, one buffer behind the caller. The caller must not reuse a buffer."""

    def __init__(self) -> None:
        self._pool = ThreadPoolExecutor(1)
        self._sha = hashlib.sha256()
        self._last: Future[None] | None = None

    def update(self, data: memoryview) -> None:
        if self._last is not None:
            self._last.result()
            self._last = None
        if len(data) < _THREAD_PAYS_BYTES:
            self._sha.update(data)
        else:
            self._last = self._pool.submit(self._sha.update, data)

    def hexdigest(self) -> str:
        self._pool.shutdown()
        if self._last is not None:
            self._last.result()
        return self._sha.hexdigest()

    def close(self) -> None:
        self._pool.shutdown(wait=False, cancel_futures=True)


class FileWriter:
    """Writes one file front to back and tells its size and hash. Not complete before `finish` has returned."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.nbytes = 0
        self._hash = Hash()
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._file = path.open("wb", buffering=0)
        except OSError as error:
            raise write_error(path, error) from None

    def write(self, data: bytes | np.ndarray) -> None:
        flat = data if isinstance(data, bytes) else np.ascontiguousarray(data).reshape(-1).view(np.uint8).data
        view = memoryview(flat)
        self._hash.update(view)
        self.nbytes += len(view)
        try:
            while view:
                view = view[self._file.write(view) :]
        except OSError as error:
            raise write_error(self.path, error) from None

    def finish(self) -> dict[str, object]:
        """Flush to the disk; returns {"bytes", "sha256"}."""
        try:
            os.fsync(self._file.fileno())
            self._file.close()
        except OSError as error:
            raise write_error(self.path, error) from None
        return {"bytes": self.nbytes, "sha256": self._hash.hexdigest()}

    def close(self) -> None:
        """Give up; the file stays incomplete."""
        self._file.close()
        self._hash.close()


def write_error(path: Path, error: OSError) -> RequestError | ResourceError:
    """What a failed write means to the user."""
    if error.errno in {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}:
        return ResourceError(
            f"{path}: the disk is full. Free some space and run the same command again; finished shards are kept."
        )
    return RequestError(f"{path}: cannot be written ({error.strerror}). Choose another output folder.")
