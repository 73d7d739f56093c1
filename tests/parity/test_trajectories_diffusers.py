"""One stage of diffusers' own pipeline on the same weights, texts and noise.

Its second stage is the caller's to assemble and its schedule shifts by the real token count, so it is given one stage
and a list of sigmas. Its spatio-temporal guidance perturbs the same blocks of both streams.
"""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from diffusers.pipelines.ltx2.pipeline_ltx2 import LTX2Pipeline as DiffusersPipeline
from safetensors.torch import load_file

from mlx_ltx2.diffusion.noise import NoiseSource
from mlx_ltx2.diffusion.schedules import DISTILLED_SIGMAS
from tests.cases import relative_error
from tests.cases.trajectories import config, run_stages
from tests.parity.test_transformer import diffusers_name, diffusers_network
from tests.parity.trajectories import BOUND, Model, model

PREFIX = "model.diffusion_model."
WIDTHS = {"2.0": (64, 64), "2.3": (64, 32)}


class Bare(DiffusersPipeline):
    """The pipeline with a transformer and texts alone; latents leave it as they are after the last step."""

    _execution_device = torch.device("cpu")
    _denormalize_latents = staticmethod(lambda latents, *_: latents)
    _denormalize_audio_latents = staticmethod(lambda latents, *_: latents)


def bare(network: torch.nn.Module, texts: list[tuple[torch.Tensor, torch.Tensor]]) -> Bare:
    unshifted = FlowMatchEulerDiscreteScheduler(shift=1.0, use_dynamic_shifting=False)
    pipeline = Bare(unshifted, None, None, None, None, None, network, None)
    pipeline.set_progress_bar_config(disable=True)
    statistics = {"latents_mean": torch.zeros(128), "latents_std": torch.ones(128)}
    settings = SimpleNamespace(mel_bins=64, latent_channels=8, scaling_factor=1.0)
    video, audio = (torch.cat(stream) for stream in zip(*texts, strict=True))
    mask = torch.ones(video.shape[:2], dtype=torch.int64)
    pipeline.__dict__["vae"] = SimpleNamespace(config=settings, **statistics)
    pipeline.__dict__["audio_vae"] = SimpleNamespace(config=settings, **statistics)
    pipeline.__dict__["connectors"] = lambda *_, **__: (video, audio, mask)
    return pipeline


def network(kind: Model, generation: str) -> torch.nn.Module:
    section = {"audio_in_channels": 128, **config(generation, "dev")["transformer"]}
    built = diffusers_network(section)
    weights = {
        diffusers_name(name.removeprefix(PREFIX)): tensor
        for name, tensor in load_file(kind.files.checkpoint).items()
        if name.startswith(PREFIX) and "_embeddings_connector" not in name
    }
    built.load_state_dict(weights, strict=True)
    return built.eval()


def run_diffusers(kind: Model, generation: str, texts: list, seed: int, **options: Any) -> list[np.ndarray]:
    shape = options["height"] // 32, options["width"] // 32
    frames, sound = (
        (options["num_frames"] - 1) // 8 + 1,
        round(options["num_frames"] / options["frame_rate"] * 25),
    )
    noise = NoiseSource(seed)
    latents = torch.from_numpy(noise.normal("video", (1, frames * shape[0] * shape[1], 128)))
    audio = torch.from_numpy(noise.normal("audio", (1, sound, 128)))
    guided = len(texts) > 1
    order = [texts[1], texts[0]] if guided else texts  # it puts the negative prompt first
    pipeline = bare(network(kind, generation), [tuple(map(torch.from_numpy, pair)) for pair in order])
    nothing, mask = torch.zeros(1, 1, 1), torch.ones(1, 1, dtype=torch.int64)
    given = {"prompt_embeds": nothing, "prompt_attention_mask": mask}
    if guided:
        given |= {"negative_prompt_embeds": nothing, "negative_prompt_attention_mask": mask}
    sigmas = list(DISTILLED_SIGMAS[:-1])
    video, sounds = pipeline(
        latents=latents,
        audio_latents=audio,
        sigmas=sigmas,
        num_inference_steps=len(sigmas),
        output_type="latent",
        return_dict=False,
        **given,
        **options,
    )
    return [video.numpy().transpose(0, 2, 3, 4, 1), sounds.numpy().transpose(0, 2, 3, 1)]


CASES = [
    ("2.0", {}),
    ("2.3", {}),
    ("2.3", {"cfg": 3.0, "modality": 2.0, "rescale": 0.7}),
    ("2.0", {"cfg": 4.0, "stg": 1.0, "rescale": 0.5}),
]


@pytest.mark.parametrize(("generation", "guidance"), CASES, ids=str)
@torch.no_grad()
def test_one_stage(generation: str, guidance: dict, table) -> None:
    kind, seed = model(generation, "dev"), 21
    rng = np.random.default_rng(seed)
    texts = [
        tuple(rng.standard_normal((1, 24, width), dtype=np.float32) for width in WIDTHS[generation])
        for _ in range(2 if guidance else 1)
    ]
    full = {"cfg": 1.0, "stg": 0.0, "modality": 1.0, "rescale": 0.0, **guidance}
    names = {
        "cfg": "guidance_scale",
        "stg": "stg_scale",
        "modality": "modality_scale",
        "rescale": "guidance_rescale",
    }
    scales = {f"{who}{names[key]}": value for who in ("", "audio_") for key, value in full.items()}
    common = {"height": 64, "width": 96, "num_frames": 17}
    blocks = {"spatio_temporal_guidance_blocks": [1] if full["stg"] else None}
    official = run_diffusers(kind, generation, texts, seed, frame_rate=25.0, **common, **scales, **blocks)
    mine = {"pipeline": "one-stage", "fps": 25.0, "seed": seed, "sigmas": DISTILLED_SIGMAS, **common}
    mine |= scales | {"stg_blocks": (1,), "audio_stg_blocks": (1,), "negative_prompt": "n"}
    video, audio, _ = run_stages(kind.pipeline(), "p", mine, texts)
    error = max(relative_error(video[0], official[0]), relative_error(audio[0], official[1]))
    table("trajectory: one-stage", generation, "diffusers 0.42.1", error, BOUND)
