"""Schedules, positions and token layout."""

from __future__ import annotations

import mlx.core as mx
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mlx_ltx2.diffusion.patchify import audio_to_tokens, tokens_to_audio, tokens_to_video, video_to_tokens
from mlx_ltx2.diffusion.positions import (
    audio_positions,
    keyframe_positions,
    reference_audio_positions,
    reference_positions,
    video_positions,
)
from mlx_ltx2.diffusion.schedules import (
    beta_schedule,
    checked_sigmas,
    distilled_schedule,
    linear_quadratic_schedule,
    ltx2_schedule,
    stage_2_schedule,
    truncated_schedule,
)
from mlx_ltx2.errors import RequestError, ShapeError
from mlx_ltx2.shapes import LatentShape


def near(got, want, tolerance=1e-6) -> None:
    assert np.allclose(got, want, atol=tolerance, rtol=0), (got, want)


def test_ltx2_anchors() -> None:
    near(ltx2_schedule(8), [1, 0.965712, 0.921875, 0.863856, 0.783445, 0.664579, 0.471003, 0.1, 0])
    near(ltx2_schedule(30)[[1, 10, 20, 28, 29]], [0.994957, 0.930994, 0.766363, 0.266120, 0.1])
    near(ltx2_schedule(40)[[1, 39]], [0.996449, 0.1])
    near(ltx2_schedule(15, 8160)[[1, 7, 12, 13]], [0.993491, 0.922140, 0.673897, 0.503378])


def test_distilled_lists() -> None:
    assert np.array_equal(distilled_schedule(), linear_quadratic_schedule(8))
    assert np.array_equal(stage_2_schedule(), distilled_schedule()[-4:])


def test_beta_anchors() -> None:
    near(beta_schedule(8), [1, 0.994360, 0.980464, 0.956117, 0.914542, 0.840117, 0.695283, 0.394019, 0])


@settings(max_examples=20, deadline=None)
@given(st.integers(2, 100), st.integers(64, 60000))
def test_schedules_fall_to_zero(steps: int, tokens: int) -> None:
    for sigmas in (ltx2_schedule(steps, tokens), linear_quadratic_schedule(steps), beta_schedule(steps)):
        assert sigmas.dtype == np.float32 and sigmas[0] == 1
        assert np.array_equal(checked_sigmas(sigmas), sigmas)


def test_one_step() -> None:
    assert ltx2_schedule(1).tolist() == [1, 0] == linear_quadratic_schedule(1).tolist()


@pytest.mark.parametrize("steps", [0, -1, 2.5])
def test_bad_steps(steps) -> None:
    for schedule in (ltx2_schedule, linear_quadratic_schedule, beta_schedule):
        with pytest.raises(RequestError, match="steps"):
            schedule(steps)


@pytest.mark.parametrize(
    ("sigmas", "word"),
    [
        ([1.0], "two numbers"),
        ([], "two numbers"),
        ([[1.0, 0.0]], "one list"),
        ([1.0, 0.5], "end at 0"),
        ([1.0, 0.5, 0.5, 0.0], "strictly"),
        ([0.5, 0.9, 0.0], "strictly"),
        ([1.5, 0.0], r"\[0, 1\]"),
        ([1.0, -0.1, 0.0], r"\[0, 1\]"),
        ([1.0, float("nan"), 0.0], "finite"),
        (["a", "b"], "not a list of numbers"),
    ],
)
def test_bad_sigmas(sigmas, word: str) -> None:
    with pytest.raises(RequestError, match=word):
        checked_sigmas(sigmas, "stage_2_sigmas")


def test_denoising_strength() -> None:
    sigmas = distilled_schedule()
    assert np.array_equal(truncated_schedule(sigmas, 1.0), sigmas)
    assert np.array_equal(truncated_schedule(sigmas, 0.375), stage_2_schedule())
    assert len(truncated_schedule(sigmas, 0.01)) == 2
    for strength in (0, -1, 1.1, float("nan")):
        with pytest.raises(RequestError, match="strength"):
            truncated_schedule(sigmas, strength)


def test_token_order() -> None:
    shape = LatentShape(2, 3, 4)
    latent = mx.random.normal((2, 2, 3, 4, 5))
    tokens = video_to_tokens(latent)
    assert mx.array_equal(tokens[1, 1 * 12 + 2 * 4 + 3], latent[1, 1, 2, 3])
    assert mx.array_equal(tokens_to_video(tokens, shape), latent)
    sound = mx.random.normal((2, 6, 16, 8))
    tokens = audio_to_tokens(sound)
    assert tokens[1, 4, 3 * 16 + 9] == sound[1, 4, 9, 3]
    assert mx.array_equal(tokens_to_audio(tokens), sound)
    with pytest.raises(ShapeError):
        tokens_to_video(tokens, shape)
    with pytest.raises(ShapeError):
        tokens_to_audio(tokens, 8, 8)


def test_video_position_anchors() -> None:
    bounds = video_positions(LatentShape(3, 2, 2), 24.0, batch=2)
    assert bounds.shape == (2, 3, 12, 2) and bounds.dtype == np.float32
    near(bounds[1, 0, ::4] * 24, [[0, 1], [1, 9], [9, 17]])
    assert bounds[0, 1, 2].tolist() == [32, 64] and bounds[0, 2, 1].tolist() == [32, 64]


def test_audio_position_anchors() -> None:
    near(audio_positions(3)[0, 0], [[0, 0.01], [0.01, 0.05], [0.05, 0.09]])
    near(audio_positions(2, first=1)[0, 0], [[0.01, 0.05], [0.05, 0.09]])


def test_keyframe_and_reference_anchors() -> None:
    one = LatentShape(1, 1, 1)
    near(keyframe_positions(one, 0, 24.0)[0, 0, 0] * 24, [0, 1])
    near(keyframe_positions(one, 8, 24.0)[0, 0, 0] * 24, [8, 9])
    near(keyframe_positions(one, 8, 24.0, pixel_frames=9)[0, 0, 0] * 24, [8, 16])
    bounds = reference_positions(LatentShape(2, 1, 2), 24.0, downscale=2, temporal_scale=4)
    near(bounds[0, 0, ::2] * 24, [[0, 1], [1, 33]], 1e-5)
    assert bounds[0, 2].tolist() == [[0, 64], [64, 128]] * 2
    assert reference_audio_positions(25).max() < 0
