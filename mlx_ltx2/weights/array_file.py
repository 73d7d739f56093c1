"""Small safetensors files that this program writes for itself: written whole or not at all, and believed only whole."""

from __future__ import annotations

import hashlib
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import cast

import mlx.core as mx
import numpy as np

from mlx_ltx2.weights.header import header_bytes, read_header

PARTIAL = ".partial"
"""Suffix of a file that is not complete yet."""

_DTYPES = {mx.bfloat16: "BF16", mx.float16: "F16", mx.float32: "F32"}
_DIGEST = "sha256"


def write_arrays(path: Path, arrays: Mapping[str, mx.array], metadata: Mapping[str, str]) -> None:
    """Write floating arrays with metadata and a hash of both.

    Raises: OSError if the file cannot be written; nothing is left behind then.
    """
    metadata = {**metadata, _DIGEST: _digest(arrays, metadata)}
    entries = [(name, _DTYPES[array.dtype], tuple(array.shape)) for name, array in arrays.items()]
    handle, beside = tempfile.mkstemp(dir=path.parent, suffix=PARTIAL)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(header_bytes(entries, metadata))
            for array in arrays.values():
                file.write(_bytes(array))
        Path(beside).replace(path)
    except BaseException:
        Path(beside).unlink(missing_ok=True)
        raise


def read_arrays(path: Path) -> tuple[dict[str, mx.array], dict[str, str]]:
    """Arrays, evaluated, and metadata of a file that `write_arrays` wrote.

    Raises: OSError, WeightsError for a damaged header, ValueError if the content is not what was written.
    """
    read_header(path)
    arrays, metadata = cast("tuple[dict[str, mx.array], dict[str, str]]", mx.load(str(path), return_metadata=True))
    mx.eval(arrays)
    written = metadata.pop(_DIGEST, None)
    if written != _digest(arrays, metadata):
        raise ValueError("its content is not what it was written with")
    return arrays, metadata


def _digest(arrays: Mapping[str, mx.array], metadata: Mapping[str, str]) -> str:
    digest = hashlib.sha256()
    for key, value in sorted(metadata.items()):
        digest.update(f"{key}={value}\0".encode())
    for name, array in sorted(arrays.items()):
        digest.update(f"{name} {_DTYPES.get(array.dtype)} {tuple(array.shape)}\0".encode())
        digest.update(_bytes(array))
    return digest.hexdigest()


def _bytes(array: mx.array) -> memoryview:
    return memoryview(np.array(mx.contiguous(array).view(mx.uint8)).tobytes())
