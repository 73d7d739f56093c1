"""Which layers are quantized, and how. The rule stands here once, for the converter and for quantizing at load.

Only Linear layers inside blocks: attention projections and feed-forward of the transformer, of the text connectors
and of Gemma. AdaLN, embedders, gates, norms, `proj_out`, `aggregate_embed` and token embeddings stay as they are:
together they are small, or (the embeddings) read a few rows at a time, and every token passes through them.
Source of the set: official `ltx_core.quantization.fp8_cast`, which casts the same layers.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import mlx.core as mx
from mlx import nn

from mlx_ltx2.errors import RequestError, WeightsError
from mlx_ltx2.models.layers.linear import dequantize_when_wide

_BLOCK_LINEAR = re.compile(
    r"(^|\.)transformer_(1d_)?blocks\.\d+\.(\w+\.)*(to_q|to_k|to_v|to_out\.0|net\.0\.proj|net\.2)$"
)
_GEMMA_LINEAR = re.compile(r"(^|\.)layers\.\d+\.(self_attn\.[qkvo]_proj|mlp\.(gate|up|down)_proj)$")
_NEVER = re.compile(r"(^|\.)(vision_tower|multi_modal_projector)\.")

AFFINE_BITS = (2, 3, 4, 5, 6, 8)
AFFINE_GROUPS = (32, 64, 128)
_FIXED = {"mxfp4": (4, 32), "mxfp8": (8, 32), "nvfp4": (4, 16)}
MODES = ("affine", *_FIXED)


@dataclass(frozen=True)
class Quantization:
    """How a weight is stored: groups of `group_size` neighbours of a row share a scale; `bits` per element."""

    mode: str = "affine"
    bits: int = 4
    group_size: int = 64

    @classmethod
    def from_options(cls, mode: str = "affine", bits: int | None = None, group_size: int | None = None) -> Quantization:
        """Fill in what is not given with the mode's default (mlx: affine 4 bits in groups of 64).

        Raises: RequestError if the combination does not exist.
        """
        if mode not in MODES:
            raise RequestError(f"quantization mode {mode!r} is not known; use one of {', '.join(MODES)}.")
        if mode in _FIXED:
            fixed = _FIXED[mode]
            if bits not in (None, fixed[0]) or group_size not in (None, fixed[1]):
                raise RequestError(
                    f"mode {mode} always has {fixed[0]} bits in groups of {fixed[1]}; "
                    "leave the bits and the group size out."
                )
            return cls(mode, *fixed)
        bits, group_size = 4 if bits is None else bits, 64 if group_size is None else group_size
        if bits not in AFFINE_BITS:
            raise RequestError(f"{bits} bits are not possible; use one of {', '.join(map(str, AFFINE_BITS))}.")
        if group_size not in AFFINE_GROUPS:
            raise RequestError(
                f"group size {group_size} is not possible; use one of {', '.join(map(str, AFFINE_GROUPS))}."
            )
        return cls(mode, bits, group_size)

    @classmethod
    def from_dict(cls, stored: Mapping[str, Any], where: str) -> Quantization:
        """From a config.json. Raises: WeightsError if it is none."""
        try:
            return cls.from_options(stored.get("mode", "affine"), int(stored["bits"]), int(stored["group_size"]))
        except (KeyError, TypeError, ValueError, AttributeError, RequestError) as error:
            raise WeightsError(f"{where}: the quantization {stored!r} is not understood ({error}).") from None

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    @property
    def has_biases(self) -> bool:
        return self.mode == "affine"

    def fits(self, input_width: int) -> bool:
        """True if a row of `input_width` elements splits into whole groups and whole packed words."""
        return input_width % self.group_size == 0 and input_width * self.bits % 32 == 0

    def packed_width(self, input_width: int) -> int:
        """32-bit words that hold one row."""
        return input_width * self.bits // 32


def is_quantizable(path: str) -> bool:
    """True if the Linear layer at `path` (no `.weight`) is one of those that quantization touches."""
    return bool(_BLOCK_LINEAR.search(path) or _GEMMA_LINEAR.search(path)) and not _NEVER.search(path)


def quantize_module(module: nn.Module, quantization: Quantization) -> list[str]:
    """Quantize a loaded network in place (lazily); returns the paths that had to stay, their width not divisible."""
    left: list[str] = []

    def wanted(path: str, layer: nn.Module) -> bool:
        if not isinstance(layer, nn.Linear) or not is_quantizable(path):
            return False
        if not quantization.fits(layer.weight.shape[-1]):
            left.append(path)
            return False
        return True

    nn.quantize(module, quantization.group_size, quantization.bits, mode=quantization.mode, class_predicate=wanted)
    dequantize_when_wide(module, wide_rows())
    return left


def quantize_like(module: nn.Module, names: set[str], quantization: Quantization) -> None:
    """Give `module` quantized layers exactly where `names` (of stored tensors) has `.scales`."""

    def stored(path: str, layer: nn.Module) -> bool:
        return f"{path}.scales" in names and hasattr(layer, "to_quantized")

    nn.quantize(module, quantization.group_size, quantization.bits, mode=quantization.mode, class_predicate=stored)
    dequantize_when_wide(module, wide_rows())


def wide_rows() -> int | None:
    """From how many rows on a quantized layer is dequantized, multiplied and dropped on this device; None: never.

    The choice stands here once. M1 and M2 multiply quantized weights 10 to 45 % slower than dense ones, and
    dequantizing a layer costs them as much as some 100 rows (published measurements, not ours); M3 and later have no
    such gap. On the CPU it pays from the first dozen rows.
    """
    if not mx.metal.is_available():
        return 16 if mx.default_device().type == mx.cpu else None
    return 256 if str(mx.device_info().get("architecture", "")).startswith(_SLOW_QUANTIZED) else None


_SLOW_QUANTIZED = ("applegpu_g13", "applegpu_g14")
"""M1 and M2."""
