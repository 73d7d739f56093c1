"""Audio VAE, log-mel front end and resampler against ltx-core, diffusers and torchaudio's definition."""

from __future__ import annotations

import mlx.core as mx
import numpy as np
import pytest
import torch
from ltx_core.model.audio_vae import AudioDecoderConfigurator, AudioEncoderConfigurator, AudioProcessor
from ltx_core.types import Audio

from mlx_ltx2.models.audio_vae import AudioVAEConfig
from tests.cases import (
    Arrays,
    Case,
    built,
    load_official,
    official_weights,
    relative_error,
    run_mlx,
    worst_error,
)
from tests.cases.audio_vae import CASES
from tests.fixtures.torchaudio_stand_in import resample as torch_resample

VAE_CASES = [c for c in CASES if c.network in ("audio encoder", "audio decoder")]
ORACLE = {"resampler": "torchaudio's definition"}


def first(x: np.ndarray) -> torch.Tensor:
    """(B, T, mel, C) -> (B, C, T, mel)."""
    return torch.from_numpy(np.ascontiguousarray(np.moveaxis(x, -1, 1)))


def last(x: torch.Tensor) -> np.ndarray:
    return np.moveaxis(x.detach().float().numpy(), 1, -1)


def state_dict(weights: Arrays) -> dict[str, torch.Tensor]:
    return {k: torch.from_numpy(np.array(v)) for k, v in weights.items()}


@torch.no_grad()
def reference(case: Case) -> Arrays:
    """ltx-core's outputs for the case (the resampler: torchaudio's definition)."""
    inputs = case.inputs(case.rng())
    if case.network == "resampler":
        samples = torch.from_numpy(inputs["samples"].T.copy())
        return {"samples": torch_resample(samples, case.config["from_hz"], case.config["to_hz"]).numpy().T}
    if case.network == "log-mel front end":
        config = AudioVAEConfig.from_dict(case.config)
        processor = AudioProcessor(config.rate_hz, config.mel_bins, config.hop_length, config.n_fft)
        waveform = torch.from_numpy(inputs["samples"]).transpose(1, 2)
        return {"mel": last(processor.waveform_to_mel(Audio(waveform, config.rate_hz)))}
    weights = official_weights(case.build(case.config), case.seed)
    encoder = case.network == "audio encoder"
    configurator = AudioEncoderConfigurator if encoder else AudioDecoderConfigurator
    model = configurator.from_config({"audio_vae": case.config}).eval()
    model.load_state_dict(state_dict(weights), strict=True)
    if encoder:
        return {"latent": last(model(first(inputs["mel"])))}
    return {"mel": last(model(first(inputs["latent"])))}


@pytest.mark.parametrize("case", CASES, ids=lambda c: c.name)
def test_against_ltx_core(case, table):
    oracle = ORACLE.get(case.network, "ltx-core 1.0.0")
    table(case.network, case.generation, oracle, worst_error(run_mlx(case), reference(case)), case.bound)


def _diffusers_model(case: Case, weights: Arrays):
    """AutoencoderKLLTX2Audio with the case's half of the weights and untouched values in the other half."""
    from diffusers import AutoencoderKLLTX2Audio

    config = AudioVAEConfig.from_dict(case.config)
    dd = case.config["model"]["params"]["ddconfig"]
    model = AutoencoderKLLTX2Audio(
        base_channels=config.base_channels,
        output_channels=config.out_channels,
        ch_mult=config.multipliers,
        num_res_blocks=config.num_res_blocks,
        in_channels=config.in_channels,
        latent_channels=config.latent_channels,
        norm_type=dd["norm_type"],
        causality_axis=dd["causality_axis"],
        mel_bins=config.mel_bins,
    ).eval()
    half = "encoder." if case.network == "audio encoder" else "decoder."
    renames = {
        "per_channel_statistics.mean-of-means": "latents_mean",
        "per_channel_statistics.std-of-means": "latents_std",
    }
    ours = {renames.get(k, half + k): v for k, v in state_dict(weights).items()}
    other = {k: v for k, v in model.state_dict().items() if not k.startswith((half, "latents_"))}
    model.load_state_dict({**other, **ours}, strict=True)
    return model


@pytest.mark.parametrize("case", VAE_CASES, ids=lambda c: c.name)
@torch.no_grad()
def test_against_diffusers(case, table):
    weights = official_weights(case.build(case.config), case.seed)
    model = _diffusers_model(case, weights)
    inputs = case.inputs(case.rng())

    def flat(x):
        return x.transpose(1, 2).flatten(2, 3)

    if case.network == "audio encoder":
        mean = model.encode(first(inputs["mel"])).latent_dist.mode()
        _, c, _, f = mean.shape
        latent = (flat(mean) - model.latents_mean) / model.latents_std
        want = {"latent": last(latent.unflatten(2, (c, f)).transpose(1, 2))}
    else:
        latent = first(inputs["latent"])
        _, c, _, f = latent.shape
        latent = (flat(latent) * model.latents_std + model.latents_mean).unflatten(2, (c, f)).transpose(1, 2)
        want = {"mel": last(model.decode(latent).sample)}
    table(case.network, case.generation, "diffusers 0.42.1", worst_error(run_mlx(case), want), case.bound)


@pytest.mark.parametrize("network", ["audio encoder", "audio decoder"])
def test_bfloat16_weights(network, table):
    """All cases of a network together: a single tiny one scatters around the bound, in torch as here."""
    got, want = [], []
    for case in (c for c in VAE_CASES if c.network == network):
        module, weights = built(case)
        low = load_official(case.build(case.config), weights, mx.bfloat16)
        inputs = case.inputs(case.rng())
        assert low(mx.array(next(iter(inputs.values())))).dtype == mx.bfloat16
        for outputs, runner in ((got, low), (want, module)):
            outputs += [x.ravel() for x in case.run(runner, inputs).values()]
    error = relative_error(np.concatenate(got), np.concatenate(want))
    table(f"{network}, bfloat16", "both", "float32, ours", error, 2e-2)
