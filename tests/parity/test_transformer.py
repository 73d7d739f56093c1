"""The transformer against ltx-core 1.0.0 and diffusers 0.42.1."""

from __future__ import annotations

import mlx.core as mx
import numpy as np
import pytest
import torch
from diffusers import LTX2VideoTransformer3DModel

from tests.cases import Arrays, Case, official_weights, run_mlx, worst_error
from tests.cases.transformer import CASES, CASES_OWN, PERTURBATIONS, Scene
from tests.parity.official_transformer import run_official


def reference(case: Case) -> Arrays:
    """Outputs of ltx-core 1.0.0."""
    return run_official(case)


@pytest.mark.parametrize("case", CASES, ids=lambda c: c.name)
def test_equals_ltx_core(case: Case, table) -> None:
    error = worst_error(run_mlx(case), reference(case))
    table(case.network, case.generation, "ltx-core 1.0.0", error, case.bound)


# Names of diffusers by names of the checkpoint; the first match wins.
RENAMES = {
    "av_ca_video_scale_shift_adaln_single": "av_cross_attn_video_scale_shift",
    "av_ca_audio_scale_shift_adaln_single": "av_cross_attn_audio_scale_shift",
    "av_ca_a2v_gate_adaln_single": "av_cross_attn_video_a2v_gate",
    "av_ca_v2a_gate_adaln_single": "av_cross_attn_audio_v2a_gate",
    "scale_shift_table_a2v_ca_video": "video_a2v_cross_attn_scale_shift_table",
    "scale_shift_table_a2v_ca_audio": "audio_a2v_cross_attn_scale_shift_table",
    "prompt_adaln_single": "prompt_adaln",
    "adaln_single": "time_embed",
    "patchify_proj": "proj_in",
    "q_norm": "norm_q",
    "k_norm": "norm_k",
}


def diffusers_name(name: str) -> str:
    for ours, theirs in RENAMES.items():
        if ours in name:
            return name.replace(ours, theirs)
    return name


def diffusers_network(s: dict) -> LTX2VideoTransformer3DModel:
    new = s.get("cross_attention_adaln", False)
    gated = s.get("apply_gated_attention", False)
    return LTX2VideoTransformer3DModel(
        in_channels=s["in_channels"],
        out_channels=s["out_channels"],
        num_attention_heads=s["num_attention_heads"],
        attention_head_dim=s["attention_head_dim"],
        cross_attention_dim=s["cross_attention_dim"],
        gated_attn=gated,
        cross_attn_mod=new,
        audio_in_channels=s["audio_in_channels"],
        audio_out_channels=s["audio_out_channels"],
        audio_num_attention_heads=s["audio_num_attention_heads"],
        audio_attention_head_dim=s["audio_attention_head_dim"],
        audio_cross_attention_dim=s["audio_cross_attention_dim"],
        audio_gated_attn=gated,
        audio_cross_attn_mod=new,
        num_layers=s["num_layers"],
        caption_channels=s["caption_channels"],
        rope_type=s["rope_type"],
        use_prompt_embeddings=not s.get("caption_proj_before_connector", False),
        cross_attn_timestep_scale_multiplier=s["av_ca_timestep_scale_multiplier"],
        perturbed_attn=True,
    )


def run_diffusers(case: Case, use_cross_timestep: bool) -> Arrays:
    scene: Scene = case.options["scene"]
    network = diffusers_network(case.config["transformer"])
    weights = official_weights(case.build(case.config), case.seed)
    network.load_state_dict({diffusers_name(k): torch.tensor(v) for k, v in weights.items()}, strict=True)
    given = {k: torch.tensor(v) for k, v in case.inputs(case.rng()).items()}
    skips = {"spatio_temporal_guidance_blocks": [], "isolate_modalities": False}
    if scene.skips == PERTURBATIONS["stg"]:
        skips["spatio_temporal_guidance_blocks"] = [1]
    if scene.skips == PERTURBATIONS["isolated"]:
        skips["isolate_modalities"] = True
    with torch.no_grad():
        video, audio = network(
            hidden_states=given["video_latent"],
            audio_hidden_states=given["audio_latent"],
            encoder_hidden_states=given["video_context"],
            audio_encoder_hidden_states=given["audio_context"],
            timestep=given["video_timesteps"] * 1000,
            audio_timestep=given["audio_timesteps"] * 1000,
            sigma=given["video_sigma"] * 1000,
            audio_sigma=given["audio_sigma"] * 1000,
            video_coords=given["video_positions"],
            audio_coords=given["audio_positions"],
            encoder_attention_mask=given.get("video_context_mask"),
            audio_encoder_attention_mask=given.get("audio_context_mask"),
            use_cross_timestep=use_cross_timestep,
            return_dict=False,
            **skips,
        )
    return {"video": np.asarray(video), "audio": np.asarray(audio)}


def _diffusers_can(case: Case) -> bool:
    """It always has both streams, one perturbation for both, and masks and rope limits of its own."""
    scene: Scene = case.options["scene"]
    return (
        scene.video
        and scene.audio
        and scene.video_enabled
        and scene.audio_enabled
        and not scene.video_mask
        and case.config["transformer"]["frequencies_precision"] == "float64"
        and case.config["transformer"]["positional_embedding_max_pos"] == [20, 2048, 2048]
        and scene.skips in (None, PERTURBATIONS["stg"], PERTURBATIONS["isolated"])
    )


@pytest.mark.parametrize("case", [c for c in CASES + CASES_OWN if _diffusers_can(c)], ids=lambda c: c.name)
def test_equals_diffusers(case: Case, table) -> None:
    crossed = case.config.get("cross_modulation") != "own"
    error = worst_error(run_mlx(case), run_diffusers(case, use_cross_timestep=crossed))
    table(case.network, case.generation, "diffusers 0.42.1", error, case.bound)


@pytest.mark.parametrize("generation", ["19B", "22B"])
def test_bfloat16_stays_close(generation: str, table) -> None:
    case = next(c for c in CASES if c.generation == generation and c.name.endswith("4 heads of 32 and 16"))
    error = worst_error(run_mlx(case, mx.bfloat16), run_mlx(case))
    table(case.network, f"{generation} bf16", "float32, ours", error, 2e-2)
