"""Bytes of an official tensor -> bytes of a stored one, some rows at a time, in numpy.

bfloat16 has no numpy type; it travels as its 16 bits. fp8 (e4m3) is decoded through a table of its 256 values.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import mlx.core as mx
import numpy as np

from mlx_ltx2.weights.quantize import Quantization

RAW: dict[str, np.dtype[Any]] = {
    "BF16": np.dtype("<u2"),
    "F16": np.dtype("<f2"),
    "F32": np.dtype("<f4"),
    "F64": np.dtype("<f8"),
    "F8_E4M3": np.dtype("u1"),
    "U8": np.dtype("u1"),
    "I8": np.dtype("i1"),
    "BOOL": np.dtype("u1"),
    "U16": np.dtype("<u2"),
    "I16": np.dtype("<i2"),
    "U32": np.dtype("<u4"),
    "I32": np.dtype("<i4"),
    "U64": np.dtype("<u8"),
    "I64": np.dtype("<i8"),
}
"""How the bytes of each safetensors dtype are seen in numpy."""

FLOATING = ("BF16", "F16", "F32", "F64", "F8_E4M3")
FROM_NAME = {"bfloat16": "BF16", "float16": "F16", "float32": "F32"}


def _e4m3_values() -> np.ndarray:
    """Value of each byte: sign, 4 exponent bits with bias 7, 3 mantissa bits; 0x7f and 0xff are not numbers."""
    codes = np.arange(256)
    exponent, mantissa = codes >> 3 & 15, codes & 7
    normal = (1 + mantissa / 8) * 2.0 ** (exponent - 7)
    values = np.where(exponent == 0, mantissa / 8 * 2.0**-6, normal)
    values[codes & 127 == 127] = math.nan
    return np.where(codes & 128, -values, values).astype(np.float32)


E4M3 = _e4m3_values()


def to_float32(raw: np.ndarray, dtype: str) -> np.ndarray:
    """Values of `raw`, seen as RAW[dtype]."""
    if dtype == "BF16":
        return (raw.astype(np.uint32) << 16).view(np.float32)
    if dtype == "F8_E4M3":
        result: np.ndarray = E4M3[raw]
        return result
    return raw.astype(np.float32)


def from_float32(values: np.ndarray, dtype: str) -> np.ndarray:
    """Bits of `values` in a floating dtype, rounded to nearest, ties to even."""
    if dtype != "BF16":
        return values.astype(RAW[dtype])
    bits = np.ascontiguousarray(values, np.float32).view(np.uint32)
    rounded = ((bits + 0x7FFF + (bits >> 16 & 1)) >> 16).astype(np.uint16)
    nan = np.isnan(values)
    if nan.any():
        rounded[nan] = 0x7FC0
    return rounded


def cast(raw: np.ndarray, source: str, target: str, scale: float = 1.0) -> np.ndarray:
    """`raw` of dtype `source` as bits of dtype `target`, multiplied by `scale` (that of an fp8 weight)."""
    if source == target and scale == 1.0:
        return raw
    values = to_float32(raw, source)
    return from_float32(values * np.float32(scale) if scale != 1.0 else values, target)


def quantize(raw: np.ndarray, dtype: str, quantization: Quantization) -> list[np.ndarray]:
    """Rows of a weight -> [packed words, scales] and, in affine mode, biases; bits as they are stored."""
    rows = mx.array(raw)
    rows = rows.view(mx.bfloat16) if dtype == "BF16" else rows
    parts = mx.quantize(rows, group_size=quantization.group_size, bits=quantization.bits, mode=quantization.mode)
    mx.eval(*parts)
    return [np.array(p.view(mx.uint16) if p.dtype == mx.bfloat16 else p) for p in parts]


def quantized_parts(
    shape: Sequence[int], dtype: str, quantization: Quantization
) -> list[tuple[str, str, tuple[int, ...]]]:
    """(suffix, dtype, shape) of what `quantize` makes of a weight of `shape` and `dtype`."""
    *rows, width = shape
    groups = (*rows, width // quantization.group_size)
    parts = [("weight", "U32", (*rows, quantization.packed_width(width)))]
    parts.append(("scales", dtype if quantization.has_biases else "U8", groups))
    if quantization.has_biases:
        parts.append(("biases", dtype, groups))
    return parts
