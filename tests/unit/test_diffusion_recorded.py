"""Release 1.2.0's answers and sampler runs, recorded, against this package."""

from __future__ import annotations

import numpy as np
import pytest
from safetensors.numpy import load_file

from tests.cases import relative_error
from tests.cases.diffusion import NEW_SCENES, run_scene
from tests.cases.diffusion_answers import all_answers
from tests.record import RECORDED

ENTRIES = load_file(RECORDED / "diffusion_120.safetensors")


def test_every_answer() -> None:
    ours = all_answers()
    scenes = {f"{scene.name}/{part}" for scene in NEW_SCENES for part in ("video", "audio", "passes")}
    assert ENTRIES.keys() == ours.keys() | scenes
    errors = {name: relative_error(got, ENTRIES[name]) for name, got in ours.items()}
    assert max(errors.values()) <= 1e-6, sorted(errors.items(), key=lambda item: -item[1])[:3]


@pytest.mark.parametrize("scene", NEW_SCENES, ids=lambda scene: scene.name)
def test_trajectory(scene) -> None:
    video, audio, passes = run_scene(scene)
    assert passes == ENTRIES[f"{scene.name}/passes"].item()
    assert relative_error(video, ENTRIES[f"{scene.name}/video"]) <= 1e-5
    assert relative_error(audio, ENTRIES[f"{scene.name}/audio"]) <= 1e-5


def test_frozen_audio_is_untouched() -> None:
    scene = next(scene for scene in NEW_SCENES if scene.freeze_audio)
    _, audio, _ = run_scene(scene)
    assert np.array_equal(audio, np.array(scene.states()[1].clean_latent))
