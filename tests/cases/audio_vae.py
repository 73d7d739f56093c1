"""Cases of the audio VAE, its log-mel front end and the resampler."""

from __future__ import annotations

from functools import partial

import mlx.core as mx
import mlx.nn as nn
import numpy as np

from mlx_ltx2.media.resample import resample
from mlx_ltx2.models.audio_vae import AudioDecoder, AudioEncoder, AudioVAEConfig, log_mel
from tests.cases import Arrays, Case, as_numpy

OFFICIAL = {
    "model": {
        "params": {
            "sampling_rate": 16000,
            "ddconfig": {
                "double_z": True,
                "mel_bins": 64,
                "z_channels": 8,
                "resolution": 256,
                "downsample_time": False,
                "in_channels": 2,
                "out_ch": 2,
                "ch": 128,
                "ch_mult": [1, 2, 4],
                "num_res_blocks": 2,
                "attn_resolutions": [],
                "dropout": 0.0,
                "mid_block_add_attention": False,
                "norm_type": "pixel",
                "causality_axis": "height",
            },
        }
    },
    "preprocessing": {
        "audio": {
            "sampling_rate": 16000,
            "max_wav_value": 32768.0,
            "duration": 5.12,
            "stereo": True,
            "causal_padding": 3,
        },
        "stft": {"filter_length": 1024, "hop_length": 160, "win_length": 1024, "causal": True},
        "mel": {"n_mel_channels": 64, "mel_fmin": 0, "mel_fmax": 8000},
    },
}
"""The section as LTX-2 and LTX-2.3 checkpoints have it."""


def section(**changes) -> dict:
    """The official section with keys of `ddconfig` changed."""
    params = OFFICIAL["model"]["params"]
    return {**OFFICIAL, "model": {"params": {**params, "ddconfig": {**params["ddconfig"], **changes}}}}


# The reference sizes its statistics by `ch`, so ch must equal z_channels * latent mel rows in every case.
TINY = section(ch=16, z_channels=4, mel_bins=16)
ODD_MEL = section(ch=15, z_channels=5, mel_bins=14, num_res_blocks=1)
TWO_LEVELS = section(ch=24, z_channels=3, mel_bins=16, ch_mult=[1, 1], num_res_blocks=1)
MONO = section(ch=8, z_channels=2, mel_bins=16, in_channels=1, out_ch=1, ch_mult=[1, 3, 2])


def encoder(config: dict) -> nn.Module:
    return AudioEncoder(AudioVAEConfig.from_dict(config))


def decoder(config: dict) -> nn.Module:
    return AudioDecoder(AudioVAEConfig.from_dict(config))


def mel_input(rng: np.random.Generator, *, shape: tuple[int, ...]) -> Arrays:
    return {"mel": rng.standard_normal(shape, dtype=np.float32) * 2 - 4}


def latent_input(rng: np.random.Generator, *, shape: tuple[int, ...]) -> Arrays:
    return {"latent": rng.standard_normal(shape, dtype=np.float32)}


def encode(module: nn.Module, inputs: Arrays) -> Arrays:
    return {"latent": as_numpy(module(mx.array(inputs["mel"])))}


def decode(module: nn.Module, inputs: Arrays) -> Arrays:
    return {"mel": as_numpy(module(mx.array(inputs["latent"])))}


def _vae_cases() -> list[Case]:
    encodings = [
        ("tiny-t1", TINY, (1, 1, 16, 2), 0),
        ("tiny-t9-batch2", TINY, (2, 9, 16, 2), 1),
        ("tiny-t12", TINY, (1, 12, 16, 2), 2),
        ("tiny-t2", TINY, (1, 2, 16, 2), 6),
        ("odd-mel", ODD_MEL, (1, 7, 14, 2), 3),
        ("two-levels", TWO_LEVELS, (1, 10, 16, 2), 4),
        ("mono-batch3", MONO, (3, 5, 16, 1), 5),
    ]
    decodings = [
        ("tiny-t1", TINY, (1, 1, 4, 4), 0),
        ("tiny-t3-batch2", TINY, (2, 3, 4, 4), 1),
        ("tiny-t4", TINY, (1, 4, 4, 4), 2),
        ("tiny-t2", TINY, (1, 2, 4, 4), 6),
        ("odd-mel", ODD_MEL, (1, 5, 3, 5), 3),
        ("mono-batch3", MONO, (3, 2, 4, 2), 5),
    ]
    recorded = {"tiny-t9-batch2", "odd-mel", "tiny-t3-batch2"}
    cases = []
    for network, build, make, run, rows in (
        ("audio encoder", encoder, mel_input, encode, encodings),
        ("audio decoder", decoder, latent_input, decode, decodings),
    ):
        for name, config, shape, seed in rows:
            cases.append(
                Case(
                    network=network,
                    generation="both",
                    name=f"{network.split()[1]}-{name}",
                    config=config,
                    build=build,
                    inputs=partial(make, shape=shape),
                    run=run,
                    seed=seed,
                    record=name in recorded,
                )
            )
    return cases


def no_weights(config: dict) -> nn.Module:
    return nn.Module()


def sound(rng: np.random.Generator, *, shape: tuple[int, ...], rate_hz: int = 16000, quiet: bool = False) -> Arrays:
    """Two tones and noise; the second half is silence if `quiet`."""
    time = np.arange(shape[-2])[:, None] / rate_hz
    tones = 0.4 * np.sin(2 * np.pi * 440 * time) + 0.2 * np.sin(2 * np.pi * 3000 * time + 1)
    samples = tones + 0.1 * rng.standard_normal(shape)
    if quiet:
        samples[..., shape[-2] // 2 :, :] = 0
    return {"samples": samples.astype(np.float32)}


def run_log_mel(module: nn.Module, inputs: Arrays, *, config: dict) -> Arrays:
    return {"mel": as_numpy(log_mel(mx.array(inputs["samples"]), AudioVAEConfig.from_dict(config)))}


def run_resample(module: nn.Module, inputs: Arrays, *, config: dict) -> Arrays:
    return {"samples": resample(inputs["samples"], config["from_hz"], config["to_hz"])}


def _mel_cases() -> list[Case]:
    small = section(mel_bins=20)
    small["preprocessing"] = {**OFFICIAL["preprocessing"], "stft": {"filter_length": 256, "hop_length": 96}}
    rows = [
        ("stereo", OFFICIAL, (1, 3200, 2), False, 0),
        ("odd-batch2", OFFICIAL, (2, 2345, 2), False, 1),
        ("shortest", OFFICIAL, (1, 513, 2), False, 2),
        ("silence", OFFICIAL, (1, 5000, 2), True, 3),
        ("mono-256", small, (1, 1000, 1), False, 4),
    ]
    return [
        Case(
            network="log-mel front end",
            generation="both",
            name=f"log-mel-{name}",
            config=config,
            build=no_weights,
            inputs=partial(sound, shape=shape, quiet=quiet),
            run=partial(run_log_mel, config=config),
            seed=seed,
            bound=1e-4,
            record=name in ("stereo", "silence"),
        )
        for name, config, shape, quiet, seed in rows
    ]


def _resample_cases() -> list[Case]:
    rates = [
        (44100, 16000, 2001),
        (48000, 16000, 1500),
        (16000, 48000, 700),
        (24000, 16000, 999),
        (22050, 44100, 801),
        (8000, 16000, 300),
        (16000, 11025, 640),
        (8000, 7990, 500),
        (96000, 8000, 2500),
        (16000, 44100, 1),
    ]
    return [
        Case(
            network="resampler",
            generation="both",
            name=f"resample-{old}-{new}",
            config={"from_hz": old, "to_hz": new},
            build=no_weights,
            inputs=partial(sound, shape=(n, 2), rate_hz=old),
            run=partial(run_resample, config={"from_hz": old, "to_hz": new}),
            seed=seed,
            bound=1e-4,
            record=(old, new) in ((44100, 16000), (24000, 16000)),
        )
        for seed, (old, new, n) in enumerate(rates)
    ]


CASES: list[Case] = _vae_cases() + _mel_cases() + _resample_cases()
