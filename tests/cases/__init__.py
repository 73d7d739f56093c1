"""Numeric cases shared by the parity suite (which needs torch) and the recorded suite (which does not).

A `Case` names a network, its checkpoint config, a seed for its weights and inputs, and how to run it in MLX. Weights
are drawn by numpy from (seed, tensor name) in the official layout, so the reference and this package load the same
numbers and names are compared on the way. Inputs and outputs are numpy in this package's channels-last layout.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
from mlx.utils import tree_flatten, tree_unflatten

from mlx_ltx2.weights.layout import official_shape, to_mlx_layout

Arrays = dict[str, np.ndarray]


@dataclass(frozen=True)
class Case:
    """network and generation label the row of the parity table; name must be unique within the room."""

    network: str
    generation: str
    name: str
    config: dict[str, Any]
    build: Callable[[dict[str, Any]], nn.Module]
    inputs: Callable[[np.random.Generator], Arrays]
    run: Callable[[nn.Module, Arrays], Arrays]
    seed: int = 0
    bound: float = 1e-5
    record: bool = False
    options: dict[str, Any] = field(default_factory=dict)

    def rng(self) -> np.random.Generator:
        return np.random.Generator(np.random.Philox(key=self.seed + 1000))


def random_tensor(name: str, shape: tuple[int, ...], seed: int) -> np.ndarray:
    """Deterministic float32 values of a sensible size for a tensor of the official layout."""
    rng = np.random.Generator(np.random.Philox(key=[seed, zlib.crc32(name.encode())]))
    values = rng.standard_normal(shape, dtype=np.float32) if shape else np.float32(rng.standard_normal())
    if name.endswith("timestep_scale_multiplier"):
        return np.asarray(1000.0, np.float32)
    if name.endswith(("norm.weight", "norm1.weight", "norm2.weight", "std-of-means")):
        return np.asarray(1 + 0.1 * values, np.float32)
    if name.endswith(("alpha", "beta")):
        return np.asarray(0.2 * values, np.float32)
    if name.endswith(".filter"):  # low-pass filters have gain 1; others make the periodic activations chaotic
        return np.asarray((1 + 0.3 * values) / shape[-1], np.float32)
    if name.endswith("mel_basis"):  # energies: sums of cancelling terms would be ill-conditioned under the logarithm
        return np.asarray(np.abs(values) / shape[-1], np.float32)
    if len(shape) >= 2 and not name.endswith(("table", "registers")):
        fan_in = int(np.prod(shape[1:]))
        return np.asarray(values / np.sqrt(fan_in), np.float32)
    return np.asarray(0.1 * values, np.float32)


def official_weights(module: nn.Module, seed: int) -> Arrays:
    """Random weights for every parameter of `module`, under official names in official layout."""
    return {
        name: random_tensor(name, official_shape(name, tuple(p.shape)), seed)
        for name, p in tree_flatten(module.parameters())
    }


def load_official(module: nn.Module, weights: Arrays, dtype: mx.Dtype = mx.float32) -> nn.Module:
    """Load official-layout numpy weights strictly; returns the module."""
    converted = [(k, mx.array(np.array(to_mlx_layout(k, v), order="C")).astype(dtype)) for k, v in weights.items()]
    module.load_weights(converted, strict=True)
    module.eval()
    mx.eval(module.parameters())
    return module


def built(case: Case, dtype: mx.Dtype = mx.float32) -> tuple[nn.Module, Arrays]:
    """The case's module with its random weights, and those weights in official layout."""
    module = case.build(case.config)
    weights = official_weights(module, case.seed)
    return load_official(module, weights, dtype), weights


def run_mlx(case: Case, dtype: mx.Dtype = mx.float32) -> Arrays:
    """Outputs of the MLX network for the case, as float32 numpy."""
    module, _ = built(case, dtype)
    return case.run(module, case.inputs(case.rng()))


def relative_error(got: np.ndarray, want: np.ndarray) -> float:
    """Relative L2 error; shapes must agree."""
    got, want = np.asarray(got, np.float64), np.asarray(want, np.float64)
    assert got.shape == want.shape, f"shape {got.shape} != {want.shape}"
    assert np.isfinite(got).all(), "not finite"
    return float(np.linalg.norm(got - want) / max(np.linalg.norm(want), 1e-12))


def worst_error(got: Arrays, want: Arrays) -> float:
    assert got.keys() == want.keys(), f"outputs {sorted(got)} != {sorted(want)}"
    return max(relative_error(got[k], want[k]) for k in want)


def nested(flat: Arrays) -> Any:
    """{'a.b': x} -> {'a': {'b': x}} as MLX modules hold it."""
    return tree_unflatten(list(flat.items()))


def as_numpy(x: mx.array) -> np.ndarray:
    return np.array(x.astype(mx.float32))
