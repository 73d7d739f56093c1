"""Video autoencoder against ltx-core and diffusers, same random weights, float32."""

from __future__ import annotations

import re
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
import torch
from diffusers import AutoencoderKLLTX2Video
from ltx_core.model.video_vae.model_configurator import VideoDecoderConfigurator, VideoEncoderConfigurator

from tests.cases import Arrays, Case, built, load_official, run_mlx, worst_error
from tests.cases.video_vae import CASES, VAES, decode, decoder_case, small

LTX_CORE = "ltx-core 1.0.0"
DIFFUSERS = "diffusers 0.42.1"
STRIDES = {"space": "spatial", "time": "temporal", "all": "spatiotemporal"}


def _first(x: np.ndarray) -> torch.Tensor:
    """Channels-last numpy -> channels-first torch."""
    return torch.from_numpy(np.ascontiguousarray(np.moveaxis(x, -1, 1)))


def _last(x: torch.Tensor) -> np.ndarray:
    return np.moveaxis(x.detach().float().numpy(), 1, -1)


def _tensors(weights: Arrays) -> dict[str, torch.Tensor]:
    return {k: torch.from_numpy(np.array(v)) for k, v in weights.items()}


def _is_encoder(case: Case) -> bool:
    return case.network == "video encoder"


@torch.no_grad()
def _ltx_core(
    case: Case, weights: Arrays, monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype = torch.float32
) -> Arrays:
    configurator = VideoEncoderConfigurator if _is_encoder(case) else VideoDecoderConfigurator
    model = configurator.from_config({"vae": case.config}).eval()
    model.load_state_dict(_tensors(weights), strict=True)
    model = model.to(dtype)
    inputs = {k: _first(v).to(dtype) for k, v in case.inputs(case.rng()).items()}
    if _is_encoder(case):
        return {"latent": _last(model(inputs["pixels"]))}
    timestep = None
    if "noise" in inputs:
        monkeypatch.setattr(torch, "randn", lambda *_, **__: inputs["noise"])
        timestep = torch.full((inputs["noise"].shape[0],), case.options["timestep"], dtype=dtype)
    return {"pixels": _last(model(inputs["latent"], timestep=timestep))}


def reference(case: Case) -> Arrays:
    """What ltx-core 1.0.0 computes for the case."""
    _, weights = built(case)
    with pytest.MonkeyPatch.context() as monkeypatch:
        return _ltx_core(case, weights, monkeypatch)


@pytest.mark.parametrize("case", CASES, ids=lambda c: c.name)
def test_ltx_core(case: Case, table) -> None:
    table(case.network, case.generation, LTX_CORE, worst_error(run_mlx(case), reference(case)), case.bound)


GENERATIONS = [c for c in CASES if c.generation != "any"]


def _diffusers_config(section: dict[str, Any]) -> dict[str, Any]:
    encoder, decoder = section["encoder_blocks"], section["decoder_blocks"][::-1]
    down, up = encoder[1::2], decoder[1::2]
    channels, outs = section["latent_channels"], []
    for _, parameters in down:
        channels *= parameters["multiplier"]
        outs.append(channels)
    base = section["decoder_base_channels"]
    decoder_outs = []
    for _, parameters in up[::-1]:
        base *= parameters["multiplier"]
        decoder_outs.append(base)
    padding = section.get("spatial_padding_mode")
    return {
        "latent_channels": section["latent_channels"],
        "block_out_channels": tuple(outs),
        "down_block_types": ("LTX2VideoDownBlock3D",) * len(down),
        "layers_per_block": tuple(p["num_layers"] for _, p in encoder[::2]),
        "downsample_type": tuple(STRIDES[k.split("_")[1]] for k, _ in down),
        "spatio_temporal_scaling": (True,) * len(down),
        "decoder_block_out_channels": tuple(decoder_outs),
        "decoder_layers_per_block": tuple(p["num_layers"] for _, p in decoder[::2])[::-1],
        "decoder_spatio_temporal_scaling": (True,) * len(up),
        "decoder_inject_noise": (False,) * (len(up) + 1),
        "upsample_type": tuple(STRIDES[k.split("_")[1]] for k, _ in up),
        "upsample_residual": tuple(p.get("residual", False) for _, p in up)[::-1],
        "upsample_factor": tuple(p["multiplier"] for _, p in up)[::-1],
        "timestep_conditioning": section["timestep_conditioning"],
        "patch_size": section["patch_size"],
        "encoder_causal": True,
        "decoder_causal": section["causal_decoder"],
        "encoder_spatial_padding_mode": padding or "zeros",
        "decoder_spatial_padding_mode": padding or "reflect",
    }


def _renamed(name: str, side: str, blocks: int) -> str:
    """Official name -> diffusers name; groups of residual blocks and resamplers are paired there."""
    name = re.sub(r"^per_channel_statistics\.mean-of-means", "latents_mean", name)
    name = re.sub(r"^per_channel_statistics\.std-of-means", "latents_std", name)
    if name.startswith("latents"):
        return name
    name = name.replace("last_time_embedder", "time_embedder").replace("last_scale_shift", "scale_shift")
    found = re.match(r"(down|up)_blocks\.(\d+)\.(.*)", name)
    if found:
        way, index, rest = found[1], int(found[2]), found[3].replace("res_blocks", "resnets")
        middle = index == (blocks - 1 if way == "down" else 0)
        pair = index // 2 if way == "down" else (index - 1) // 2
        if rest.startswith("conv."):
            rest = f"{way}samplers.0.{rest}"
        name = f"mid_block.{rest}" if middle else f"{way}_blocks.{pair}.{rest}"
    return f"{side}.{name}"


@torch.no_grad()
def _diffusers(case: Case, weights: Arrays) -> Arrays:
    side = "encoder" if _is_encoder(case) else "decoder"
    blocks = len(case.config[f"{side}_blocks"])
    model = AutoencoderKLLTX2Video(**_diffusers_config(case.config)).eval()
    ours = {_renamed(k, side, blocks): v for k, v in _tensors(weights).items()}
    theirs = {k for k in model.state_dict() if k.startswith((f"{side}.", "latents_"))}
    assert ours.keys() == theirs
    model.load_state_dict({**model.state_dict(), **ours}, strict=True)
    mean, std = (getattr(model, f"latents_{k}").view(1, -1, 1, 1, 1) for k in ("mean", "std"))
    inputs = case.inputs(case.rng())
    if _is_encoder(case):
        pixels = _first(inputs["pixels"])
        pixels = pixels[:, :, : (pixels.shape[2] - 1) // 8 * 8 + 1]
        return {"latent": _last((model.encode(pixels).latent_dist.mode() - mean) / std)}
    latent, timestep = _first(inputs["latent"]), None
    if "noise" in inputs:
        latent = 0.025 * _first(inputs["noise"]) + 0.975 * latent
        timestep = torch.full((latent.shape[0],), case.options["timestep"])
    return {"pixels": _last(model.decode(latent * std + mean, timestep, return_dict=False)[0])}


@pytest.mark.parametrize("case", GENERATIONS, ids=lambda c: c.name)
def test_diffusers(case: Case, table) -> None:
    _, weights = built(case)
    error = worst_error(run_mlx(case), _diffusers(case, weights))
    table(case.network, case.generation, DIFFUSERS, error, case.bound)


def test_stored_timestep_multiplier_counts(table, monkeypatch) -> None:
    case = decoder_case("19B distilled", "multiplier 916", small(VAES["19B distilled"]), (1, 1, 2, 2), seed=9)
    module, weights = built(case)
    before = case.run(module, case.inputs(case.rng()))
    weights["timestep_scale_multiplier"] = np.asarray(916.0, np.float32)
    after = decode(load_official(module, weights), case.inputs(case.rng()))
    table(
        case.network,
        case.generation,
        LTX_CORE,
        worst_error(after, _ltx_core(case, weights, monkeypatch)),
        1e-5,
    )
    assert worst_error(after, before) > 1e-4


@pytest.mark.parametrize("case", [c for c in GENERATIONS if c.seed == 1], ids=lambda c: c.name)
def test_bfloat16(case: Case, table) -> None:
    error = worst_error(run_mlx(case, mx.bfloat16), run_mlx(case))
    table(case.network, case.generation, "float32, ours (bfloat16)", error, 2e-2)


@pytest.mark.parametrize("case", [c for c in GENERATIONS if c.seed == 0], ids=lambda c: c.name)
def test_bfloat16_loses_no_more_than_torch(case: Case) -> None:
    exact = reference(case)
    _, weights = built(case)
    with pytest.MonkeyPatch.context() as monkeypatch:
        theirs = worst_error(_ltx_core(case, weights, monkeypatch, torch.bfloat16), exact)
    assert worst_error(run_mlx(case, mx.bfloat16), exact) <= 1.25 * theirs
