"""Strict reader of safetensors headers. No tensor data is touched.

Format: 8 bytes little-endian header length, that many bytes of JSON {name: {dtype, shape, data_offsets}}, then the
data without gaps. Every fault is refused here, so that a damaged file is named before anything is loaded from it.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn

from mlx_ltx2.errors import WeightsError

ITEM_BYTES = {
    "BOOL": 1,
    "U8": 1,
    "I8": 1,
    "F8_E4M3": 1,
    "F8_E5M2": 1,
    "F8_E8M0": 1,
    "U16": 2,
    "I16": 2,
    "F16": 2,
    "BF16": 2,
    "U32": 4,
    "I32": 4,
    "F32": 4,
    "U64": 8,
    "I64": 8,
    "F64": 8,
}
"""Bytes of one element, by safetensors dtype."""

MAX_HEADER_BYTES = 100_000_000
"""The limit of the safetensors library itself."""

_AGAIN = "Download or convert it again."


@dataclass(frozen=True)
class TensorInfo:
    """dtype: safetensors name. begin, end: bytes from the start of the file."""

    dtype: str
    shape: tuple[int, ...]
    begin: int
    end: int

    @property
    def nbytes(self) -> int:
        return self.end - self.begin

    @property
    def size(self) -> int:
        return math.prod(self.shape)


@dataclass(frozen=True)
class Header:
    """tensors: by name, in the order of their data. data_begin, file_bytes: layout of the file in bytes."""

    tensors: Mapping[str, TensorInfo]
    metadata: Mapping[str, str]
    data_begin: int
    file_bytes: int
    path: Path = field(compare=False, default=Path())


def read_header(path: str | Path) -> Header:
    """Names, dtypes, shapes and places of all tensors of a safetensors file.

    Raises: WeightsError if the file is missing, truncated, damaged or no safetensors file.
    """
    path = Path(path)
    if path.is_dir():
        raise WeightsError(f"{path}: cannot be read, it is a folder. Give the safetensors file itself.")
    try:
        file_bytes = path.stat().st_size
        with path.open("rb") as file:
            start = file.read(_START_BYTES)
            other = other_format(start)
            if other is not None:
                raise WeightsError(f"{path}: {other}.")
            file.seek(0)
            length_bytes = file.read(8)
            if len(length_bytes) < 8:
                _refuse(path, f"it has {file_bytes} bytes and no header")
            length = int.from_bytes(length_bytes, "little")
            if length > MAX_HEADER_BYTES or length < 2:
                _refuse(path, f"its header length of {length} bytes is absurd, so this is no safetensors file")
            text = file.read(length)
    except OSError as error:
        raise WeightsError(f"{path}: cannot be read ({error.strerror}).") from None
    if len(text) < length:
        _refuse(path, f"the header needs {8 + length} bytes and the file has {file_bytes}; it is truncated")
    entries = _parse(path, text)
    metadata = entries.pop("__metadata__", None)
    metadata = {} if metadata is None else metadata  # mlx writes null where there is none
    if not isinstance(metadata, dict) or not all(isinstance(v, str) for v in metadata.values()):
        _refuse(path, "its metadata is not a table of texts")
    data_begin = 8 + length
    tensors = {name: _tensor(path, name, entry, data_begin) for name, entry in entries.items()}
    tensors = dict(sorted(tensors.items(), key=lambda item: (item[1].begin, item[1].end)))
    _check_layout(path, tensors, data_begin, file_bytes)
    return Header(tensors, metadata, data_begin, file_bytes, path)


def header_bytes(tensors: Iterable[tuple[str, str, tuple[int, ...]]], metadata: Mapping[str, str]) -> bytes:
    """The start of a safetensors file: header with its length in front, padded to 8 bytes.

    tensors: (name, dtype, shape) in the order in which their data follow, without gaps.
    """
    entries: dict[str, object] = {"__metadata__": dict(metadata)}
    place = 0
    for name, dtype, shape in tensors:
        end = place + math.prod(shape) * ITEM_BYTES[dtype]
        entries[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [place, end]}
        place = end
    text = json.dumps(entries, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


_START_BYTES = 512
_CONVERT = "only safetensors files are read; take the safetensors file of the same model"
_MAGIC: tuple[tuple[bytes, str], ...] = (
    (b"GGUF", f"is a GGUF file, which is not read: {_CONVERT}"),
    (
        b"PK\x03\x04",
        f"is a zip archive or a PyTorch file (.pt, .ckpt, .bin), which is never opened: {_CONVERT}",
    ),
    (b"\x1f\x8b", "is a gzip archive; unpack it first"),
    (b"\x89HDF", f"is an HDF5 file, which is not read: {_CONVERT}"),
    (b"\x93NUMPY", f"is a numpy file, which is not read: {_CONVERT}"),
    (b"\x89PNG", "is a picture and no file of weights"),
    (b"\xff\xd8\xff", "is a picture and no file of weights"),
    (b"version https://git-lfs", "is a Git LFS pointer, not the weights themselves; run `git lfs pull` in its folder"),
    *((b"\x80" + bytes([v]), f"is a pickle, which is never opened: {_CONVERT}") for v in (2, 3, 4, 5)),
)


def other_format(start: bytes) -> str | None:
    """What a file is that begins so, if it is not safetensors: "is a GGUF file, ..."; None if it may be one."""
    if not start:
        return "is empty; download it again"
    if start[8:9] == b"{":
        return None  # a header's JSON; its length in front may look like anything
    for magic, says in _MAGIC:
        if start.startswith(magic):
            return says
    if start[4:8] == b"ftyp":
        return "is a video and no file of weights"
    text = start.lstrip().lower()
    if text.startswith((b"<!doctype", b"<html", b"<?xml")):
        return "is a web page that was saved in place of the weights; download the file itself again"
    if len(start) >= 8 and all(32 <= byte < 127 or byte in b"\t\r\n" for byte in start):
        first = start.decode("ascii").strip().splitlines()[:1]
        return f"is a text that begins with {''.join(first)[:60]!r} and no file of weights; download it again"
    return None


def _refuse(path: Path, why: str) -> NoReturn:
    raise WeightsError(f"{path}: {why}. {_AGAIN}")


def _parse(path: Path, text: bytes) -> dict[str, Any]:
    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        entries = dict(pairs)
        if len(entries) != len(pairs):
            _refuse(path, "its header names a tensor twice")
        return entries

    try:
        entries = json.loads(text.decode("utf-8"), object_pairs_hook=unique)
    except ValueError as error:  # JSONDecodeError and UnicodeDecodeError
        _refuse(path, f"its header is no JSON ({error})")
    except RecursionError:
        _refuse(path, "its header is nested absurdly deep")
    if not isinstance(entries, dict):
        _refuse(path, "its header is no JSON object")
    return entries


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _tensor(path: Path, name: str, entry: Any, data_begin: int) -> TensorInfo:
    try:
        dtype, shape, (begin, end) = entry["dtype"], entry["shape"], entry["data_offsets"]
    except (TypeError, KeyError, ValueError):
        _refuse(path, f"the header's entry for {name!r} is malformed")
    if dtype not in ITEM_BYTES:
        raise WeightsError(
            f"{path}: tensor {name!r} has dtype {dtype!r}; known are {', '.join(ITEM_BYTES)}. "
            "The file is damaged or of a newer format."
        )
    if not isinstance(shape, list) or not all(map(_is_count, (*shape, begin, end))):
        _refuse(path, f"the header's entry for {name!r} is malformed")
    if math.prod(shape) * ITEM_BYTES[dtype] != end - begin:
        _refuse(path, f"tensor {name!r} of shape {tuple(shape)} and dtype {dtype} cannot fill {end - begin} bytes")
    return TensorInfo(dtype, tuple(shape), data_begin + begin, data_begin + end)


def _check_layout(path: Path, tensors: Mapping[str, TensorInfo], data_begin: int, file_bytes: int) -> None:
    place = data_begin
    for name, info in tensors.items():
        if info.begin != place:
            _refuse(
                path,
                f"tensor {name!r} {'overlaps the one before it' if info.begin < place else 'follows a gap'}",
            )
        place = info.end
    if place > file_bytes:
        _refuse(path, f"the header claims {place} bytes and the file holds {file_bytes}; it is truncated")
    if place < file_bytes:
        _refuse(path, f"the file holds {file_bytes - place} bytes more than its header describes")
