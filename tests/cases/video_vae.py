"""Cases of the video autoencoder: both block lists at few channels, and every block kind by itself."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np

from mlx_ltx2.models.video_vae import VideoDecoder, VideoEncoder, VideoVAEConfig
from tests.cases import Arrays, Case, as_numpy

ENCODER_19B = [
    ["res_x", {"num_layers": 4}],
    ["compress_space_res", {"multiplier": 2}],
    ["res_x", {"num_layers": 6}],
    ["compress_time_res", {"multiplier": 2}],
    ["res_x", {"num_layers": 6}],
    ["compress_all_res", {"multiplier": 2}],
    ["res_x", {"num_layers": 2}],
    ["compress_all_res", {"multiplier": 2}],
    ["res_x", {"num_layers": 2}],
]
DECODER_19B = [
    *[
        ["res_x", {"num_layers": 5, "inject_noise": False}],
        ["compress_all", {"residual": True, "multiplier": 2}],
    ]
    * 3,
    ["res_x", {"num_layers": 5, "inject_noise": False}],
]
ENCODER_22B = [
    ["res_x", {"num_layers": 4}],
    ["compress_space_res", {"multiplier": 2}],
    ["res_x", {"num_layers": 6}],
    ["compress_time_res", {"multiplier": 2}],
    ["res_x", {"num_layers": 4}],
    ["compress_all_res", {"multiplier": 2}],
    ["res_x", {"num_layers": 2}],
    ["compress_all_res", {"multiplier": 1}],
    ["res_x", {"num_layers": 2}],
]
DECODER_22B = [
    ["res_x", {"num_layers": 4}],
    ["compress_space", {"multiplier": 2}],
    ["res_x", {"num_layers": 6}],
    ["compress_time", {"multiplier": 2}],
    ["res_x", {"num_layers": 4}],
    ["compress_all", {"multiplier": 1}],
    ["res_x", {"num_layers": 2}],
    ["compress_all", {"multiplier": 2}],
    ["res_x", {"num_layers": 2}],
]

SHARED: dict[str, Any] = {
    "_class_name": "CausalVideoAutoencoder",
    "dims": 3,
    "in_channels": 3,
    "out_channels": 3,
    "latent_channels": 128,
    "patch_size": 4,
    "norm_layer": "pixel_norm",
    "latent_log_var": "uniform",
    "causal_decoder": False,
}
VAE_19B_DEV: dict[str, Any] = {
    **SHARED,
    "encoder_blocks": ENCODER_19B,
    "decoder_blocks": DECODER_19B,
    "timestep_conditioning": False,
}
VAE_19B_DISTILLED: dict[str, Any] = {**VAE_19B_DEV, "timestep_conditioning": True}
VAE_22B: dict[str, Any] = {
    **SHARED,
    "encoder_blocks": ENCODER_22B,
    "decoder_blocks": DECODER_22B,
    "timestep_conditioning": False,
    "spatial_padding_mode": "zeros",
    "encoder_base_channels": 128,
    "decoder_base_channels": 128,
}
VAES = {"19B": VAE_19B_DEV, "19B distilled": VAE_19B_DISTILLED, "22B": VAE_22B}

Shape = tuple[int, int, int, int]


def small(section: dict[str, Any], **changes: Any) -> dict[str, Any]:
    """The section with 8 latent and 8 base channels."""
    return {
        **section,
        "latent_channels": 8,
        "encoder_base_channels": 8,
        "decoder_base_channels": 8,
        **changes,
    }


def build_encoder(section: dict[str, Any]) -> nn.Module:
    return VideoEncoder(VideoVAEConfig.from_dict(section))


def build_decoder(section: dict[str, Any]) -> nn.Module:
    return VideoDecoder(VideoVAEConfig.from_dict(section))


def _pixels(shape: Shape, channels: int) -> Callable[[np.random.Generator], Arrays]:
    def draw(rng: np.random.Generator) -> Arrays:
        return {"pixels": rng.uniform(-1, 1, (*shape, channels)).astype(np.float32)}

    return draw


def _latent(shape: Shape, channels: int, noise: bool) -> Callable[[np.random.Generator], Arrays]:
    def draw(rng: np.random.Generator) -> Arrays:
        names = ("latent", "noise") if noise else ("latent",)
        return {name: rng.standard_normal((*shape, channels), dtype=np.float32) for name in names}

    return draw


def _encode(module: nn.Module, inputs: Arrays) -> Arrays:
    return {"latent": as_numpy(module(mx.array(inputs["pixels"])))}


def decode(module: nn.Module, inputs: Arrays, timestep: float = 0.05) -> Arrays:
    noise = mx.array(inputs["noise"]) if "noise" in inputs else None
    return {"pixels": as_numpy(module(mx.array(inputs["latent"]), noise=noise, timestep=timestep))}


def encoder_case(
    generation: str, name: str, section: dict[str, Any], shape: Shape, *, seed: int = 0, record: bool = False
) -> Case:
    """shape: batch, frames, height, width in pixels."""
    return Case(
        "video encoder",
        generation,
        f"encoder {name}",
        section,
        build_encoder,
        _pixels(shape, section.get("in_channels", 3)),
        _encode,
        seed=seed,
        record=record,
    )


def decoder_case(
    generation: str,
    name: str,
    section: dict[str, Any],
    shape: Shape,
    *,
    seed: int = 0,
    timestep: float = 0.05,
    record: bool = False,
) -> Case:
    """shape: batch, frames, rows, columns of the latent."""
    return Case(
        "video decoder",
        generation,
        f"decoder {name}",
        section,
        build_decoder,
        _latent(shape, section["latent_channels"], section.get("timestep_conditioning", True)),
        lambda module, inputs: decode(module, inputs, timestep),
        seed=seed,
        record=record,
        options={"timestep": timestep},
    )


def _generations() -> list[Case]:
    cases = []
    pixels: list[Shape] = [(1, 9, 64, 32), (2, 1, 32, 64), (1, 12, 32, 32), (1, 1, 96, 32), (1, 17, 32, 64)]
    latents: list[Shape] = [(1, 2, 2, 3), (2, 1, 2, 2), (1, 3, 3, 2), (1, 1, 2, 4), (1, 2, 3, 3)]
    for generation in ("19B", "22B"):
        for seed, shape in enumerate(pixels):
            name = f"{generation} {shape}"
            section = small(VAES[generation])
            cases.append(encoder_case(generation, name, section, shape, seed=seed, record=seed == 1))
    for generation, section in VAES.items():
        for seed, shape in enumerate(latents):
            name, timestep = f"{generation} {shape}", (0.05, 0.0, 0.3, 1.0, 0.05)[seed]
            cases.append(
                decoder_case(generation, name, small(section), shape, seed=seed, timestep=timestep, record=seed == 1)
            )
    return cases


def _encoder_kinds() -> list[Case]:
    kinds: dict[str, list[Any]] = {
        "res_x": [["res_x", 2]],
        "compress_space": [["compress_space", {}]],
        "compress_time": [["compress_time", {}]],
        "compress_all": [["compress_all", 1]],
        "compress_all_x_y": [["compress_all_x_y", {"multiplier": 3}]],
        "compress_space_res": [["compress_space_res", {}]],
        "compress_space_res x1": [["compress_space_res", {"multiplier": 1}]],
        "compress_time_res": [["compress_time_res", {"multiplier": 1}]],
        "compress_all_res x4": [["compress_all_res", {"multiplier": 4}]],
    }
    cases = []
    for padding in ("zeros", "reflect"):
        for seed, (kind, blocks) in enumerate(kinds.items()):
            section = small(SHARED, encoder_blocks=blocks, patch_size=2, spatial_padding_mode=padding)
            cases.append(encoder_case("any", f"{kind} {padding}", section, (1, 9, 8, 12), seed=seed))
    for log_var in ("constant", "per_channel"):
        section = small(SHARED, encoder_blocks=[["res_x", 1]], patch_size=1, latent_log_var=log_var)
        cases.append(encoder_case("any", f"log-var {log_var}", section, (1, 1, 4, 5), seed=7))
    grey = small(SHARED, encoder_blocks=[["res_x", 1]], patch_size=8, in_channels=1)
    cases.append(encoder_case("any", "one channel, patch 8", grey, (1, 1, 16, 24), seed=8))
    return cases


def _decoder_kinds() -> list[Case]:
    # Multipliers multiply to 8: ltx-core 1.0.0 takes the bottleneck for 8 times the base.
    kinds: dict[str, list[Any]] = {
        "compress_all": [["compress_all", {"multiplier": 8}], ["res_x", 1]],
        "compress_all residual x8": [["compress_all", {"multiplier": 8, "residual": True}]],
        "compress_all residual x4": [
            ["compress_time", {"multiplier": 2}],
            ["compress_all", {"multiplier": 4, "residual": True}],
        ],
        "compress_all residual x1": [
            ["compress_space", {"multiplier": 8}],
            ["compress_all", {"residual": True}],
        ],
        "compress_space": [["compress_space", {"multiplier": 8}]],
        "compress_time": [["compress_time", {"multiplier": 8}]],
        "compress_time residual is not read": [["compress_time", {"multiplier": 8, "residual": True}]],
    }
    cases = []
    for padding in ("zeros", "reflect"):
        for seed, (kind, blocks) in enumerate(kinds.items()):
            section = small(
                SHARED,
                decoder_blocks=blocks,
                patch_size=2,
                timestep_conditioning=seed % 2 == 1,
                spatial_padding_mode=padding,
                causal_decoder=seed % 3 == 2,
            )
            cases.append(decoder_case("any", f"{kind} {padding}", section, (1, 3, 3, 4), seed=seed))
    causal = small(VAE_22B, causal_decoder=True)
    cases.append(decoder_case("any", "22B blocks, causal", causal, (1, 2, 2, 2), seed=3))
    wide = small(VAE_19B_DISTILLED, latent_channels=12, out_channels=4, patch_size=2, decoder_base_channels=16)
    cases.append(decoder_case("any", "16 base, 12 latent, 4 out", wide, (1, 2, 2, 2), seed=4))
    return cases


CASES: list[Case] = [*_generations(), *_encoder_kinds(), *_decoder_kinds()]
