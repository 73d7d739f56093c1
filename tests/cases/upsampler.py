"""Cases of the latent upsamplers: every released kind at few channels."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np

from mlx_ltx2.models.upsampler import LatentUpsampler, UpsamplerConfig
from tests.cases import Arrays, Case, as_numpy

SPATIAL_X2_RATIONAL: dict[str, Any] = {
    "_class_name": "LatentUpsampler",
    "in_channels": 128,
    "mid_channels": 1024,
    "num_blocks_per_stage": 4,
    "dims": 3,
    "spatial_upsample": True,
    "temporal_upsample": False,
    "spatial_scale": 2.0,
    "rational_resampler": True,
}
SPATIAL_X2: dict[str, Any] = {**SPATIAL_X2_RATIONAL, "rational_resampler": False}
SPATIAL_X1_5: dict[str, Any] = {**SPATIAL_X2_RATIONAL, "spatial_scale": 1.5}
TEMPORAL_X2: dict[str, Any] = {
    **SPATIAL_X2_RATIONAL,
    "mid_channels": 512,
    "spatial_upsample": False,
    "temporal_upsample": True,
    "spatial_scale": 1.0,
}

Shape = tuple[int, int, int, int]


def small(config: dict[str, Any], **changes: Any) -> dict[str, Any]:
    """The config with 8 channels in, 32 inside and two blocks before and after."""
    return {**config, "in_channels": 8, "mid_channels": 32, "num_blocks_per_stage": 2, **changes}


def build(config: dict[str, Any]) -> nn.Module:
    return LatentUpsampler(UpsamplerConfig.from_dict(config))


def _latent(shape: Shape, channels: int) -> Callable[[np.random.Generator], Arrays]:
    def draw(rng: np.random.Generator) -> Arrays:
        return {"latent": rng.standard_normal((*shape, channels), dtype=np.float32)}

    return draw


def _run(module: nn.Module, inputs: Arrays) -> Arrays:
    return {"latent": as_numpy(module(mx.array(inputs["latent"])))}


def case(
    generation: str, name: str, config: dict[str, Any], shape: Shape, *, seed: int = 0, record: bool = False
) -> Case:
    """shape: batch, frames, rows, columns of the latent."""
    return Case(
        "latent upsampler",
        generation,
        name,
        config,
        build,
        _latent(shape, config["in_channels"]),
        _run,
        seed=seed,
        record=record,
    )


def _cases() -> list[Case]:
    kinds = {
        "spatial x2 rational": ("19B", SPATIAL_X2_RATIONAL),
        "spatial x2": ("22B", SPATIAL_X2),
        "spatial x1.5": ("22B", SPATIAL_X1_5),
        "temporal x2": ("both", TEMPORAL_X2),
    }
    shapes: list[Shape] = [(1, 3, 4, 5), (1, 1, 3, 3), (2, 2, 5, 2), (1, 2, 2, 7), (1, 4, 1, 3)]
    cases = []
    for kind, (generation, config) in kinds.items():
        for seed, shape in enumerate(shapes):
            cases.append(case(generation, f"{kind} {shape}", small(config), shape, seed=seed, record=seed == 1))
    wide = small(SPATIAL_X2_RATIONAL, in_channels=5, mid_channels=64, num_blocks_per_stage=1)
    cases.append(case("any", "64 inside, 5 latent", wide, (1, 2, 3, 3), seed=5))
    for scale in (0.75, 4.0):
        other = small(SPATIAL_X2_RATIONAL, spatial_scale=scale, num_blocks_per_stage=1)
        cases.append(case("any", f"spatial x{scale:g}", other, (1, 2, 5, 4), seed=6))
    return cases


CASES: list[Case] = _cases()
