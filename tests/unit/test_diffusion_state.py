"""Noise, states, conditioning items and what the network is given."""

from __future__ import annotations

import mlx.core as mx
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mlx_ltx2.diffusion import state as states
from mlx_ltx2.diffusion.conditioning import (
    Keyframe,
    LatentAt,
    LatentAtAudio,
    LatentMask,
    ReferenceAudio,
    ReferenceVideo,
    TemporalRegion,
    WithAttention,
    attention_weights,
    target_grid,
)
from mlx_ltx2.diffusion.noise import NoiseSource
from mlx_ltx2.errors import RequestError, ShapeError
from mlx_ltx2.shapes import LatentShape

SHAPE, C, FPS = LatentShape(3, 2, 4), 6, 24.0


def video(**options):
    return states.video_state(SHAPE, C, FPS, dtype=mx.float32, **options)


def frames(count: int, height: int = 2, width: int = 4, value: float = 2.0) -> mx.array:
    return mx.full((1, count, height, width, C), value)


def test_noise_depends_on_its_key_only() -> None:
    source = NoiseSource(7, stage=1)
    first = source.normal("video", (1, 20, C))
    source.normal("audio", (1, 50, C))
    assert np.array_equal(first, NoiseSource(7, 1).normal("video", (1, 20, C)))
    others = [
        NoiseSource(8, 1).normal("video", (1, 20, C)),
        NoiseSource(7, 2).normal("video", (1, 20, C)),
        source.normal("audio", (1, 20, C)),
        source.normal("video", (1, 20, C), "step"),
        source.normal("video", (1, 20, C), step=1),
    ]
    assert all(not np.array_equal(first, other) for other in others)
    assert first.dtype == np.float32


PINNED = [-0.9194907546, -0.5487238169, 0.4856866896, -0.3554682434]


def test_noise_is_pinned() -> None:
    """A seed gives the same clip on every machine and in every release."""
    drawn = NoiseSource(10).normal("video", (1, 2, 2)).reshape(-1)
    assert np.allclose(drawn, PINNED, atol=1e-6), drawn.tolist()


def test_noise_of_a_clip_ignores_appended_tokens() -> None:
    source = NoiseSource(3)
    assert np.array_equal(source.normal("video", (1, 10, C)), source.normal("video", (1, 14, C))[:, :10])


@pytest.mark.parametrize("seed", [0, -1, 2**63, 2**70 + 1])
def test_any_seed(seed: int) -> None:
    assert np.isfinite(NoiseSource(seed).normal("audio", (1, 4, C))).all()


def test_normalized_noise() -> None:
    noise = NoiseSource(1).normalized("video", (2, 40, C), "step", 3).astype(np.float64)
    assert np.allclose(noise.mean(axis=(1, 2)), 0, atol=1e-6)
    assert np.allclose(noise.std(axis=(1, 2), ddof=1), 1, atol=1e-6)


def test_injected_noise() -> None:
    given_noise = np.full((1, 10, C), 5, np.float32)
    source = NoiseSource(3, injected={("video", "initial", 0): given_noise})
    assert np.array_equal(source.normal("video", (1, 10, C)), given_noise)
    longer = source.normal("video", (1, 12, C))
    assert np.array_equal(longer[:, :10], given_noise)
    assert np.array_equal(longer[:, 10:], NoiseSource(3).normal("video", (1, 12, C))[:, 10:])
    for shape in ((1, 9, C), (2, 10, C), (1, 10, C + 1)):
        with pytest.raises(ShapeError, match="needs"):
            source.normal("video", shape)


def test_noise_mixing() -> None:
    start = mx.random.normal((1, 3, 2, 4, C))
    noise = NoiseSource(1).normal("video", (1, SHAPE.tokens, C))
    full = states.add_noise(video(latent=start), noise, 1.0)
    assert np.array_equal(np.array(full.latent), noise)
    none = states.add_noise(video(latent=start), noise, 0.0)
    assert mx.array_equal(none.latent, none.clean_latent)
    with pytest.raises(ShapeError):
        states.add_noise(video(), noise[:, :3])
    with pytest.raises(RequestError):
        states.add_noise(video(), noise, 1.5)


def test_initial_latents_must_fit() -> None:
    with pytest.raises(ShapeError, match="needs"):
        video(latent=mx.zeros((1, 3, 2, 5, C)))
    with pytest.raises(ShapeError, match="needs"):
        states.audio_state(5, latent=mx.zeros((1, 4, 16, 8)))


def test_results_come_back() -> None:
    start = mx.random.normal((1, 3, 2, 4, C))
    state = Keyframe(frames(1), 16, FPS).apply(video(latent=start))
    assert mx.array_equal(states.result_video(state, SHAPE), start)
    sound = mx.random.normal((1, 5, 16, 8))
    state = states.audio_state(5, latent=sound, dtype=mx.float32)
    assert mx.array_equal(states.result_audio(state), sound)
    assert states.audio_state(5).latent.dtype == mx.bfloat16


def test_frozen_state_is_clean() -> None:
    sound = mx.random.normal((1, 5, 16, 8))
    state = states.freeze(states.audio_state(5, latent=sound, dtype=mx.float32))
    modality = states.to_modality(state, 0.7, mx.zeros((1, 2, 3)))
    assert state.frozen and modality.sigma.tolist() == [0] and modality.timesteps.tolist() == [[0]]
    assert mx.array_equal(modality.latent, state.clean_latent)


def test_modality_of_a_plain_clip() -> None:
    modality = states.to_modality(video(), 0.7, mx.zeros((1, 2, 3)), repeat=3)
    assert modality.timesteps.shape == (3, 1) and modality.runs is None
    assert modality.timesteps.dtype == modality.sigma.dtype == np.float32
    assert modality.latent.shape == (3, 24, C) and modality.context.shape == (3, 2, 3)
    assert modality.positions.shape == (3, 3, 24, 2)


def test_modality_of_a_conditioned_clip() -> None:
    state = LatentAt(frames(1), 0, 0.75).apply(video())
    state = Keyframe(frames(1), 16, FPS).apply(state)
    modality = states.to_modality(state, 0.8, mx.zeros((1, 2, 3)))
    assert modality.runs == (8, 16, 8)
    assert np.allclose(modality.timesteps, [[0.2, 0.8, 0.0]])


@settings(max_examples=25, deadline=None)
@given(st.lists(st.sampled_from([0.0, 0.5, 1.0]), min_size=1, max_size=30))
def test_runs_expand_to_the_mask(values: list[float]) -> None:
    mask = np.array([values, values[::-1]], np.float32)
    runs = states.mask_runs(mask)
    starts = np.cumsum([0, *runs[:-1]])
    assert sum(runs) == len(values)
    assert np.array_equal(np.repeat(mask[:, starts], runs, axis=1), mask)


def test_latent_at_writes_clean_only() -> None:
    before = video()
    after = LatentAt(frames(1), 2, 0.5).apply(before)
    assert mx.array_equal(after.latent, before.latent)
    assert np.array(after.clean_latent)[0, 16:].min() == 2 and np.array(after.clean_latent)[0, :16].max() == 0
    assert after.denoise_mask[0].tolist() == [1] * 16 + [0.5] * 8


def test_target_grid() -> None:
    assert target_grid(video()) == SHAPE
    assert target_grid(Keyframe(frames(1), 3, FPS).apply(video())) == SHAPE
    for shape in (LatentShape(1, 1, 1), LatentShape(2, 1, 3), LatentShape(1, 3, 1), LatentShape(4, 2, 1)):
        assert target_grid(states.video_state(shape, C, FPS)) == shape


@pytest.mark.parametrize(
    "item",
    [
        LatentAt(frames(1, 3), 0),
        LatentAt(frames(1), 3),
        LatentAt(frames(1), -1),
        Keyframe(frames(1, 2, 5), 8, FPS),
        LatentMask(frames(3), np.zeros((1, 3, 2, 3), np.float32)),
        WithAttention(ReferenceVideo(frames(1), FPS), np.ones(3, np.float32)),
        ReferenceVideo(mx.zeros((1, 1, 2, 4, C + 1)), FPS),
    ],
)
def test_items_that_do_not_fit(item) -> None:
    with pytest.raises(ShapeError):
        item.apply(video())


@pytest.mark.parametrize(
    "item",
    [
        LatentAt(frames(1), 0, 1.2),
        Keyframe(frames(1), 8, FPS, -0.1),
        Keyframe(frames(1), -8, FPS),
        TemporalRegion(1.0, 1.0),
        WithAttention(ReferenceVideo(frames(1), FPS), 1.5),
    ],
)
def test_items_out_of_range(item) -> None:
    with pytest.raises(RequestError):
        item.apply(video())


def test_audio_items() -> None:
    state = states.audio_state(6, bins=3, channels=2, dtype=mx.float32)
    held = LatentAtAudio(mx.ones((1, 2, 3, 2)), 4).apply(state)
    assert held.denoise_mask[0].tolist() == [1, 1, 1, 1, 0, 0]
    reference = ReferenceAudio(mx.ones((1, 4, 3, 2))).apply(state)
    assert reference.target_tokens == 6 and reference.latent.shape[1] == 10
    assert reference.positions[0, 0, 6:].max() < 0
    with pytest.raises(ShapeError):
        LatentAtAudio(mx.ones((1, 3, 3, 2)), 4).apply(state)


def test_attention_between_references() -> None:
    state = WithAttention(ReferenceVideo(frames(1), FPS), 0.5).apply(video())
    state = ReferenceVideo(frames(1), FPS).apply(state)
    mask = np.array(state.attention_mask)[0]
    assert np.array_equal(mask, mask.T)
    assert (mask[:24, 24:32] == 0.5).all() and (mask[:24, 32:] == 1).all() and (mask[24:32, 32:] == 0).all()
    assert ReferenceVideo(frames(1), FPS).apply(video()).attention_mask is None
    modality = states.to_modality(state, 1.0, mx.zeros((1, 1, 1)), repeat=2)
    assert modality.attention_mask.shape == (2, 40, 40)


def test_attention_weights_of_a_mask_video() -> None:
    mask = np.zeros((9, 4, 4), np.float32)
    mask[0] = 1
    mask[1:5, :2, :2] = 1
    weights = attention_weights(mask, 2, 2, 2).reshape(2, 2, 2)
    assert weights[0].tolist() == [[1, 1], [1, 1]] and weights[1].tolist() == [[0.5, 0], [0, 0]]
    with pytest.raises(ShapeError):
        attention_weights(mask, 4, 2, 2)
    with pytest.raises(ShapeError):
        attention_weights(mask, 2, 3, 2)


def test_region_boundaries_are_strict() -> None:
    start, end = float(np.float32(1) / np.float32(FPS)), float(np.float32(9) / np.float32(FPS))
    mask = TemporalRegion(start, end).apply(video()).denoise_mask[0, ::8]
    assert mask.tolist() == [0, 1, 0]
