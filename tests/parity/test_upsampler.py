"""Latent upsamplers against ltx-core and diffusers, same random weights, float32."""

from __future__ import annotations

import mlx.core as mx
import numpy as np
import pytest
import torch
from diffusers.pipelines.ltx2.latent_upsampler import LTX2LatentUpsamplerModel
from ltx_core.model.upsampler import LatentUpsamplerConfigurator

from tests.cases import Arrays, Case, built, run_mlx, worst_error
from tests.cases.upsampler import CASES


@torch.no_grad()
def _run(model: torch.nn.Module, case: Case, weights: Arrays) -> Arrays:
    model.load_state_dict({k: torch.from_numpy(np.array(v)) for k, v in weights.items()}, strict=True)
    latent = np.ascontiguousarray(np.moveaxis(case.inputs(case.rng())["latent"], -1, 1))
    return {"latent": np.moveaxis(model.eval()(torch.from_numpy(latent)).numpy(), 1, -1)}


def reference(case: Case) -> Arrays:
    """What ltx-core 1.0.0 computes for the case."""
    return _run(LatentUpsamplerConfigurator.from_config(case.config), case, built(case)[1])


@pytest.mark.parametrize("case", CASES, ids=lambda c: c.name)
def test_ltx_core(case: Case, table) -> None:
    error = worst_error(run_mlx(case), reference(case))
    table(case.network, case.generation, "ltx-core 1.0.0", error, case.bound)


@pytest.mark.parametrize("case", CASES, ids=lambda c: c.name)
def test_diffusers(case: Case, table) -> None:
    config = {k: v for k, v in case.config.items() if k != "_class_name"}
    config["rational_spatial_scale"] = config.pop("spatial_scale")
    config["use_rational_resampler"] = config.pop("rational_resampler")
    theirs = _run(LTX2LatentUpsamplerModel(**config), case, built(case)[1])
    table(case.network, case.generation, "diffusers 0.42.1", worst_error(run_mlx(case), theirs), case.bound)


@pytest.mark.parametrize("case", [c for c in CASES if c.seed == 0], ids=lambda c: c.name)
def test_bfloat16(case: Case, table) -> None:
    error = worst_error(run_mlx(case, mx.bfloat16), run_mlx(case))
    table(case.network, case.generation, "float32, ours (bfloat16)", error, 2e-2)
