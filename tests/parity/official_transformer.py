"""Runs a case in the transformer of whichever ltx-core is importable.

That is 1.0.0 in the parity suite, 1.2.0 where make_transformer_120 records outputs.
"""

from __future__ import annotations

import numpy as np
import torch
from ltx_core.guidance import perturbations as guidance
from ltx_core.model.transformer.modality import Modality
from ltx_core.model.transformer.model import LTXModel, LTXModelType
from ltx_core.model.transformer.model_configurator import LTXModelConfigurator, LTXVideoOnlyModelConfigurator
from ltx_core.model.transformer.rope import LTXRopeType
from ltx_core.model.transformer.text_projection import create_caption_projection

from mlx_ltx2.states import Perturbation
from tests.cases import Arrays, Case, official_weights
from tests.cases.transformer import Scene

KINDS = {
    "video_self": "SKIP_VIDEO_SELF_ATTN",
    "audio_self": "SKIP_AUDIO_SELF_ATTN",
    "audio_to_video": "SKIP_A2V_CROSS_ATTN",
    "video_to_audio": "SKIP_V2A_CROSS_ATTN",
}


def _audio_only(s: dict) -> LTXModel:
    """1.0.0 has the audio-only network but no configurator for it."""
    captions = None if s.get("caption_proj_before_connector") else create_caption_projection(s, audio=True)
    return LTXModel(
        model_type=LTXModelType.AudioOnly,
        num_layers=s["num_layers"],
        audio_num_attention_heads=s["audio_num_attention_heads"],
        audio_attention_head_dim=s["audio_attention_head_dim"],
        audio_in_channels=s["audio_in_channels"],
        audio_out_channels=s["audio_out_channels"],
        audio_cross_attention_dim=s["audio_cross_attention_dim"],
        rope_type=LTXRopeType(s["rope_type"]),
        double_precision_rope=True,
        apply_gated_attention=s.get("apply_gated_attention", False),
        audio_caption_projection=captions,
        cross_attention_adaln=s.get("cross_attention_adaln", False),
    )


def _network(case: Case) -> LTXModel:
    config = {"transformer": case.config["transformer"]}
    if not case.config.get("video", True):
        return _audio_only(config["transformer"])
    configurator = LTXModelConfigurator if case.config.get("audio", True) else LTXVideoOnlyModelConfigurator
    if hasattr(configurator, "from_metadata"):
        return configurator.from_metadata({"config": config})
    return configurator.from_config(config)


def _sample(perturbation: Perturbation) -> guidance.PerturbationConfig:
    made = []
    for kind, name in KINDS.items():
        blocks = getattr(perturbation, f"skip_{kind}")
        if blocks:
            listed = None if blocks == "all" else sorted(blocks)
            made.append(guidance.Perturbation(guidance.PerturbationType[name], listed))
    return guidance.PerturbationConfig(made)


def _perturbations(scene: Scene, layers: int) -> guidance.BatchedPerturbationConfig:
    samples = [_sample(p) for p in scene.skips or [Perturbation()] * scene.batch]
    if "num_blocks" in guidance.BatchedPerturbationConfig.__init__.__code__.co_varnames:
        return guidance.BatchedPerturbationConfig(samples, layers, dtype=torch.float32)
    return guidance.BatchedPerturbationConfig(samples)


def _modality(arrays: Arrays, scene: Scene, name: str) -> Modality | None:
    if f"{name}_latent" not in arrays:
        return None
    given = {k.removeprefix(f"{name}_"): torch.tensor(v) for k, v in arrays.items() if k.startswith(name)}
    return Modality(
        latent=given["latent"],
        sigma=given["sigma"],
        timesteps=given["timesteps"][..., None],
        positions=given["positions"],
        context=given["context"],
        enabled=scene.video_enabled if name == "video" else scene.audio_enabled,
        context_mask=given.get("context_mask"),
        attention_mask=given.get("mask"),
    )


def run_official(case: Case) -> Arrays:
    """Outputs of the official network with the case's weights, loaded strictly by name."""
    scene: Scene = case.options["scene"]
    network = _network(case)
    weights = official_weights(case.build(case.config), case.seed)
    network.load_state_dict({k: torch.tensor(v) for k, v in weights.items()}, strict=True, assign=True)
    arrays = case.inputs(case.rng())
    with torch.no_grad():
        outputs = network(
            _modality(arrays, scene, "video"),
            _modality(arrays, scene, "audio"),
            _perturbations(scene, case.config["transformer"]["num_layers"]),
        )
    return {n: np.asarray(x) for n, x in zip(("video", "audio"), outputs, strict=True) if x is not None}
