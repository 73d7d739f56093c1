"""Linear layers in the form that a device multiplies fast; the numbers are those of the plain layers.

Quantized weights save memory and, for the many rows of a clip, no time: on some chips `quantized_matmul` is slower than
a plain product, and there one layer is dequantized, multiplied and dropped. A weight with a long inner axis is laid out
in memory the other way round: Metal's kernel for transposed weights loses a third of its rate from 13,312 on.
"""

from __future__ import annotations

import mlx.core as mx
from mlx import nn
from mlx.utils import tree_unflatten

from mlx_ltx2.models.layers.kernels import contiguous

LONG_AXIS = 13312
"""Inner width from which the transposed product is slow (measured by others on M1; 16,384 in the feed-forward)."""


class QuantizedLinear(nn.QuantizedLinear):
    """nn.QuantizedLinear that dequantizes its weight for inputs of at least `wide` rows; None: never."""

    wide: int | None = None

    @classmethod
    def of(cls, layer: nn.QuantizedLinear, wide: int | None) -> QuantizedLinear:
        """The same layer, same arrays, with the choice made."""
        new = cls.__new__(cls)
        nn.Module.__init__(new)  # nn.QuantizedLinear's own would draw and quantize a weight
        new.__dict__.update(layer.__dict__)
        dict.update(new, layer)
        new.wide = wide
        return new

    def __call__(self, x: mx.array) -> mx.array:
        if self.wide is None or x.size < self.wide * x.shape[-1]:
            out: mx.array = super().__call__(x)
            return out
        weight = turned(self._dequantized(x.dtype)).T
        return mx.addmm(self["bias"], x, weight) if "bias" in self else x @ weight

    def _dequantized(self, dtype: mx.Dtype) -> mx.array:
        biases = self.get("biases")
        return mx.dequantize(
            self["weight"], self["scales"], biases, self.group_size, self.bits, mode=self.mode, dtype=dtype
        )


def dequantize_when_wide(module: nn.Module, rows: int | None) -> None:
    """Let every quantized layer of `module` dequantize its weight for inputs of at least `rows` rows."""
    layers = [
        (name, m) for name, m in module.named_modules() if name and type(m) in (nn.QuantizedLinear, QuantizedLinear)
    ]
    module.update_modules(tree_unflatten([(name, QuantizedLinear.of(m, rows)) for name, m in layers]))


def turned(weight: mx.array) -> mx.array:
    """(outputs, inputs) unchanged, but with a long inner axis the outer one in memory."""
    return contiguous(weight.T).T if weight.shape[-1] >= LONG_AXIS else weight


def turn_long_weights(module: nn.Module) -> None:
    """Lay out all long weights of dense layers as `turned` does, lazily."""
    for layer in module.modules():
        if type(layer) is nn.Linear:
            layer.weight = turned(layer.weight)
