"""Schedules, guidance, conditioning, tiles and whole sampler runs against ltx-core and ltx-pipelines 1.0.0.

What release 1.2.0 answers is recorded in tests/recorded/diffusion_120.safetensors and replayed in tests/unit.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch

from tests.cases import diffusion_answers, relative_error
from tests.cases.diffusion import SCENES, run_scene, video_state_of
from tests.parity import official_answers, official_loops

GROUPS = ["schedule", "guidance", "position", "item", "step"]


@pytest.mark.parametrize("group", GROUPS)
def test_answers(group: str, table) -> None:
    ours = getattr(diffusion_answers, f"{group}_answers")()
    for name, want in getattr(official_answers, f"{group}_answers")().items():
        error = relative_error(ours[name], want)
        table(f"diffusion: {group}s", "both", f"ltx-core {official_loops.RELEASE}", error, 1e-6)


def test_tiles(table) -> None:
    ours = diffusion_answers.tile_answers()
    for name, want in official_answers.axis_answers().items():
        table("diffusion: tiles", "both", "ltx-core 1.0.0", relative_error(ours[name], want), 1e-6)


@pytest.mark.parametrize("scene", SCENES, ids=lambda scene: scene.name)
def test_trajectory(scene, table) -> None:
    video, audio, passes = official_loops.run(scene)
    ours_video, ours_audio, ours_passes = run_scene(scene)
    assert ours_passes == passes
    error = max(relative_error(ours_video, video), relative_error(ours_audio, audio))
    table(f"sampler: {scene.sampler}", "both", "ltx-pipelines 1.0.0", error, 1e-5)


@pytest.mark.parametrize("tokens", [None, 8160])
@pytest.mark.parametrize("sampler", ["euler", "euler-ge", "res2s"])
def test_official_schedules(sampler: str, tokens: int | None, table) -> None:
    from mlx_ltx2.diffusion.schedules import ltx2_schedule
    from tests.cases.diffusion import FULL, STRONG, Scene

    sigmas = tuple(float(s) for s in ltx2_schedule(15, tokens or 4096))
    scene = Scene("long", sampler=sampler, sigmas=sigmas, video=FULL, audio=STRONG, image=True, seed=40)
    video, audio, passes = official_loops.run(scene)
    ours_video, ours_audio, ours_passes = run_scene(scene)
    assert ours_passes == passes
    error = max(relative_error(ours_video, video), relative_error(ours_audio, audio))
    table(f"sampler: {sampler}, 15 steps", "both", "ltx-pipelines 1.0.0", error, 1e-4)


def test_noiser_of_whole_masks(table) -> None:
    """Releases agree wherever the mask is 0 or 1 and nothing is mixed in."""
    for scene in SCENES:
        video, _ = official_loops.states(scene)
        error = relative_error(np.array(video_state_of(scene).latent), video.latent.numpy())
        table("diffusion: noise", "both", "ltx-core 1.0.0", error, 1e-6)


def test_diffusers_schedule(table) -> None:
    """diffusers shifts by the real token count; at 4096 tokens it agrees with the official pipelines."""
    from diffusers import FlowMatchEulerDiscreteScheduler

    from mlx_ltx2.diffusion.schedules import ltx2_schedule

    scheduler = FlowMatchEulerDiscreteScheduler(
        use_dynamic_shifting=True,
        base_shift=0.95,
        max_shift=2.05,
        base_image_seq_len=1024,
        max_image_seq_len=4096,
        shift_terminal=0.1,
    )
    for steps in (8, 30, 40):
        scheduler.set_timesteps(sigmas=np.linspace(1.0, 1 / steps, steps), mu=2.05)
        error = relative_error(ltx2_schedule(steps), scheduler.sigmas.numpy())
        table("diffusion: schedules", "both", "diffusers 0.42.1", error, 1e-6)


def test_diffusers_positions(table) -> None:
    from diffusers.models.transformers.transformer_ltx2 import LTX2AudioVideoRotaryPosEmbed

    from mlx_ltx2.diffusion.positions import audio_positions, video_positions
    from mlx_ltx2.shapes import LatentShape

    video = LTX2AudioVideoRotaryPosEmbed(dim=24, modality="video")
    audio = LTX2AudioVideoRotaryPosEmbed(dim=24, modality="audio", scale_factors=(4,))
    cpu = torch.device("cpu")
    for frames, height, width, fps in ((3, 2, 3, 24.0), (1, 4, 1, 25.0), (5, 1, 2, 30.0)):
        want = video.prepare_video_coords(2, frames, height, width, cpu, fps=fps).numpy()
        got = video_positions(LatentShape(frames, height, width), fps, batch=2)
        table("diffusion: positions", "both", "diffusers 0.42.1", relative_error(got, want), 1e-6)
    for frames in (1, 7, 126):
        want = audio.prepare_audio_coords(1, frames, cpu).numpy()
        table(
            "diffusion: positions",
            "both",
            "diffusers 0.42.1",
            relative_error(audio_positions(frames), want),
            1e-6,
        )
