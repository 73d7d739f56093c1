"""Vocoders against ltx-core and diffusers."""

from __future__ import annotations

from functools import partial

import mlx.core as mx
import numpy as np
import pytest
import torch
from ltx_core.model.audio_vae import Vocoder as CoreVocoder
from ltx_core.model.audio_vae import VocoderConfigurator

from mlx_ltx2.models.vocoder import Vocoder
from tests.cases import Arrays, Case, as_numpy, built, load_official, official_weights, run_mlx, worst_error
from tests.cases.vocoder import CASES


def state_dict(weights: Arrays) -> dict[str, torch.Tensor]:
    return {k: torch.from_numpy(np.array(v)) for k, v in weights.items()}


def mel_of(case: Case) -> torch.Tensor:
    return torch.from_numpy(np.moveaxis(case.inputs(case.rng())["mel"], -1, 1).copy())


def samples_of(x: torch.Tensor) -> Arrays:
    return {"samples": x.detach().numpy().transpose(0, 2, 1)}


def activated(case: Case) -> bool:
    return not (isinstance(case.build, partial) and case.build.keywords == {"activated": False})


def reference(case: Case) -> Arrays:
    """ltx-core's waveform for the case."""
    return core_waveform(case, official_weights(case.build(case.config), case.seed))


@torch.no_grad()
def core_waveform(case: Case, weights: Arrays) -> Arrays:
    if case.network.startswith("generator"):
        config = {k: v for k, v in case.config.items() if k != "stereo"}
        model = CoreVocoder(**config, apply_final_activation=activated(case))
    else:
        model = VocoderConfigurator.from_config({"vocoder": case.config})
    model.load_state_dict(state_dict(weights), strict=True)
    return samples_of(model.eval()(mel_of(case)))


@pytest.mark.parametrize("case", CASES, ids=lambda c: c.name)
def test_against_ltx_core(case, table):
    want = reference(case)
    assert want["samples"].std() > 1e-2
    assert (np.abs(want["samples"]) >= 1).mean() < 0.4, "a clipped sound compares nothing"
    table(case.network, case.generation, "ltx-core 1.0.0", worst_error(run_mlx(case), want), case.bound)


_RENAMES = (
    ("conv_pre.", "conv_in."),
    ("conv_post.", "conv_out."),
    ("ups.", "upsamplers."),
    ("resblocks.", "resnets."),
    ("act_post.", "act_out."),
    ("downsample.lowpass.", "downsample."),
)


def _renamed(key: str) -> str:
    for ours, theirs in _RENAMES:
        parts = key.split(".")
        joined = f".{'.'.join(parts)}"
        key = joined.replace(f".{ours}", f".{theirs}")[1:]
    return key


def _final(config, applied: bool) -> str | None:
    if not applied:
        return None
    return "tanh" if config.get("use_tanh_at_final", True) else "clamp"


def _settings(config, applied: bool, prefix: str = "") -> dict:
    amp = config["resblock"] == "AMP1"
    settings = {
        "hidden_channels": config["upsample_initial_channel"],
        "upsample_kernel_sizes": config["upsample_kernel_sizes"],
        "upsample_factors": config["upsample_rates"],
        "resnet_kernel_sizes": config["resblock_kernel_sizes"],
        "resnet_dilations": config["resblock_dilation_sizes"],
        "act_fn": config["activation"] if amp else "leaky_relu",
        "antialias": amp,
        "final_act_fn": _final(config, applied),
        "final_bias": config.get("use_bias_at_final", True),
    }
    return {prefix + key: value for key, value in settings.items()}


@pytest.mark.parametrize("case", CASES, ids=lambda c: c.name)
@torch.no_grad()
def test_against_diffusers(case, table):
    from diffusers.pipelines.ltx2.vocoder import LTX2Vocoder, LTX2VocoderWithBWE

    module = case.build(case.config)
    if isinstance(module, Vocoder):
        model = LTX2Vocoder(**_settings(case.config, activated(case)))
    else:
        core, bwe = case.config["vocoder"], case.config["bwe"]
        model = LTX2VocoderWithBWE(
            **_settings(core, True),
            **_settings(bwe, False, "bwe_"),
            filter_length=bwe["n_fft"],
            window_length=bwe["n_fft"],
            hop_length=bwe["hop_length"],
            input_sampling_rate=bwe["input_sampling_rate"],
            output_sampling_rate=bwe["output_sampling_rate"],
        )
        model.hop_length = bwe["hop_length"]
    weights = {_renamed(k): v for k, v in official_weights(module, case.seed).items()}
    model.load_state_dict(state_dict(weights), strict=True)
    want = samples_of(model.eval()(mel_of(case)))
    table(case.network, case.generation, "diffusers 0.42.1", worst_error(run_mlx(case), want), case.bound)


@pytest.mark.parametrize("name", ["flat-t2-batch2", "nested-t4-batch2", "nested-uneven-t5-batch2"])
def test_bfloat16_weights(name, table):
    """Rounded weights, float32 arithmetic, as in 1.2.0: the reference agrees, given the rounded values."""
    case = next(c for c in CASES if c.name == name)
    module, weights = built(case)
    inputs = case.inputs(case.rng())
    low = load_official(case.build(case.config), weights, mx.bfloat16)
    assert low(mx.array(inputs["mel"])).dtype == mx.float32
    got = case.run(low, inputs)
    row = f"{case.network}, bfloat16"
    table(row, case.generation, "float32, ours", worst_error(got, case.run(module, inputs)), 2e-2)
    rounded = {k: as_numpy(mx.array(v).astype(mx.bfloat16)) for k, v in weights.items()}
    want = core_waveform(case, rounded)
    table(row, case.generation, "ltx-core 1.0.0, rounded", worst_error(got, want), case.bound)
