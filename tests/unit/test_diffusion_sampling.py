"""Guidance, passes, samplers and the loop."""

from __future__ import annotations

import math

import mlx.core as mx
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mlx_ltx2.diffusion import state as states
from mlx_ltx2.diffusion.denoisers import Evaluator, GuidedDenoiser, SimpleDenoiser
from mlx_ltx2.diffusion.guidance import OFF, GuidanceParams, guide, needed_passes, params_at
from mlx_ltx2.diffusion.loop import denoise, planned_forwards
from mlx_ltx2.diffusion.noise import NoiseSource
from mlx_ltx2.diffusion.schedules import distilled_schedule, stage_2_schedule
from mlx_ltx2.diffusion.steppers import (
    SAMPLERS,
    Euler,
    EulerAncestral,
    GradientEstimatingEuler,
    Res2s,
    ancestral_coefficients,
    make_stepper,
    res2s_coefficients,
    sde_coefficients,
)
from mlx_ltx2.errors import RequestError
from mlx_ltx2.states import Perturbation, TextContext
from tests.cases.diffusion import FULL, SCENES, STG_BLOCK, Scene, SceneNoise, ToyModel

CFG = GuidanceParams(cfg=3.0)
PLAIN = Scene("plain")


def run(scene: Scene, **options):
    """(states after, model, evaluator) with any part replaced."""
    model = options.pop("model", None) or ToyModel()
    evaluator = Evaluator(model, options.pop("rope", None), options.pop("batch", 1))
    positive, negative = options.pop("contexts", scene.contexts())
    video, audio = options.pop("states", scene.states())
    denoiser = GuidedDenoiser(evaluator, positive, negative, video=scene.video, audio=scene.audio)
    stepper = options.pop("stepper", None) or make_stepper(scene.sampler, SceneNoise(scene))
    return denoise(denoiser, video, audio, scene.sigmas, stepper, **options), model, evaluator


def test_passes_that_are_needed() -> None:
    stg = GuidanceParams(stg=1.0, stg_blocks=(3,))
    assert needed_passes(OFF, OFF) == ("cond",)
    assert needed_passes(CFG, OFF) == ("cond", "uncond") == needed_passes(None, CFG)
    assert needed_passes(stg, None) == ("cond", "perturbed")
    assert needed_passes(GuidanceParams(stg=1.0), None) == ("cond",)
    assert needed_passes(GuidanceParams(stg=1.0, stg_blocks="all"), None) == ("cond", "perturbed")
    assert needed_passes(OFF, GuidanceParams(modality=2.0)) == ("cond", "isolated")
    assert needed_passes(None, GuidanceParams(modality=2.0)) == ("cond",)
    assert needed_passes(FULL, OFF) == ("cond", "uncond", "perturbed", "isolated")
    assert needed_passes(GuidanceParams(rescale=0.7), OFF) == ("cond",)


def test_guidance_by_sigma() -> None:
    bins = {1.0: CFG, 0.5: OFF}
    assert params_at(bins, 0.5) is OFF and params_at(bins, 0.51) is CFG and params_at({0.3: CFG}, 0.9) is CFG
    with pytest.raises(RequestError):
        params_at({}, 0.5)


@pytest.mark.parametrize(
    "options",
    [{"cfg": math.nan}, {"stg": math.inf}, {"skip_step": -1}, {"apg": True, "cfg_star": True}],
)
def test_bad_guidance(options) -> None:
    with pytest.raises(RequestError):
        GuidanceParams(**options)


def test_guidance_that_is_off_changes_nothing() -> None:
    x = mx.random.normal((1, 3, 4))
    assert mx.array_equal(guide(x, x + 1, x + 2, x + 3, GuidanceParams(rescale=0.7)), x)
    assert mx.array_equal(guide(x, None, None, None, FULL), x)


@settings(max_examples=15, deadline=None)
@given(st.floats(0, 10), st.floats(0, 1))
def test_rescale_bounds_the_deviation(cfg: float, rescale: float) -> None:
    cond, uncond = mx.random.normal((1, 30, 4)), mx.random.normal((1, 30, 4))
    plain = float(guide(cond, uncond, None, None, GuidanceParams(cfg=cfg)).std())
    got = float(guide(cond, uncond, None, None, GuidanceParams(cfg=cfg, rescale=rescale)).std())
    want = rescale * float(cond.std()) + (1 - rescale) * plain
    assert math.isclose(got, want, rel_tol=1e-4)


def test_pass_order_and_perturbations() -> None:
    scene = Scene("order", video=FULL, audio=GuidanceParams(stg=1.0, stg_blocks="all"), sigmas=(1.0, 0.0))
    _, model, _ = run(scene)
    own = Perturbation(skip_video_self=frozenset({STG_BLOCK}), skip_audio_self="all")
    crossed = Perturbation(skip_audio_to_video="all", skip_video_to_audio="all")
    assert model.calls == [[Perturbation()], [Perturbation()], [own], [crossed]]


@pytest.mark.parametrize(("batch", "calls"), [(1, 4), (2, 2), (3, 2), (4, 1), (9, 1)])
def test_batched_passes_agree(batch: int, calls: int) -> None:
    scene = Scene("batch", video=FULL, audio=CFG, image=True, sigmas=(1.0, 0.5, 0.0))
    one, _, _ = run(scene)
    many, _, evaluator = run(scene, batch=batch)
    assert evaluator.calls == 2 * calls and evaluator.evaluations == 8
    assert mx.allclose(one.video.latent, many.video.latent, atol=1e-6)


def test_samples_of_a_batch_are_independent() -> None:
    scene = Scene("two", video=CFG, audio=CFG, image=True, sigmas=(1.0, 0.6, 0.0))
    video, audio = scene.states()
    after, _, _ = run(scene)

    def doubled(state):
        twice = mx.concatenate([state.latent, state.latent], axis=0)
        clean = mx.concatenate([state.clean_latent, state.clean_latent], axis=0)
        mask, positions = np.repeat(state.denoise_mask, 2, 0), np.repeat(state.positions, 2, 0)
        return states.LatentState(twice, clean, mask, positions, state.target_tokens)

    both, _, _ = run(scene, states=(doubled(video), doubled(audio)), batch=4)
    for i in range(2):
        assert mx.allclose(both.video.latent[i : i + 1], after.video.latent, atol=1e-6)


def test_rope_is_built_once() -> None:
    built = []

    def rope(video, audio):
        built.append((video.shape, audio.shape))
        return "tables"

    class Checked(ToyModel):
        def __call__(self, video, audio, *, rope=None, perturbations=None):
            assert rope == "tables"
            return super().__call__(video, audio, perturbations=perturbations)

    run(Scene("rope", video=FULL, image=True), rope=rope, model=Checked())
    assert built == [((1, 3, 18, 2), (1, 1, 7, 2))]


@pytest.mark.parametrize("sampler", SAMPLERS)
@pytest.mark.parametrize(
    ("video", "audio"),
    [
        (OFF, OFF),
        (CFG, OFF),
        (FULL, FULL),
        (GuidanceParams(cfg=3.0, skip_step=1), GuidanceParams(cfg=2.0, skip_step=2)),
    ],
)
def test_planned_forwards(sampler: str, video: GuidanceParams, audio: GuidanceParams) -> None:
    scene = Scene("plan", sampler=sampler, video=video, audio=audio)
    _, _, evaluator = run(scene)
    stepper = make_stepper(sampler, NoiseSource(0))
    assert planned_forwards(scene.sigmas, stepper, video, audio) == evaluator.evaluations
    if video is OFF:
        assert evaluator.evaluations == stepper.evaluations(scene.sigmas)


def test_skip_step_reuses_the_last_prediction() -> None:
    scene = Scene("skip", video=GuidanceParams(cfg=3.0, skip_step=1), freeze_audio=True)
    _, model, evaluator = run(scene)
    assert evaluator.evaluations == 6 == len(model.calls)


def test_one_stream_alone() -> None:
    scene = Scene("alone", video=FULL, audio=FULL)
    video, audio = scene.states()
    after, _, evaluator = run(scene, states=(video, None))
    assert after.audio is None and evaluator.evaluations == 3 * 5
    after, _, evaluator = run(scene, states=(None, audio))
    assert after.video is None and evaluator.evaluations == 3 * 5
    assert planned_forwards(scene.sigmas, Euler(), None, FULL) == 15


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_frozen_stream_stays(sampler: str) -> None:
    scene = Scene("frozen", sampler=sampler, freeze_audio=True, video=FULL, image=True)
    before = scene.states()
    after, _, _ = run(scene, states=before)
    assert after.audio is before[1]
    assert mx.array_equal(after.video.latent[:, :6], before[0].clean_latent[:, :6])


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_conditioned_frame_comes_back(sampler: str) -> None:
    for scene in (Scene("image", sampler=sampler, image=True), Scene("key", sampler=sampler, keyframe=True)):
        after, _, _ = run(scene)
        held = scene.states()[0].denoise_mask[0] == 0
        got, want = np.array(after.video.latent)[0], np.array(after.video.clean_latent)[0]
        assert np.allclose(got[held], want[held], atol=1e-6)
        assert not np.allclose(got[~held], want[~held], atol=0.1)


def test_frozen_audio_keeps_its_positive_text() -> None:
    scene = Scene("a2v", freeze_audio=True, video=CFG, sigmas=(1.0, 0.0))
    positive, negative = scene.contexts()
    seen = []

    class Watching(ToyModel):
        def __call__(self, video, audio, *, rope=None, perturbations=None):
            seen.append((np.array(video.context), np.array(audio.context)))
            assert audio.sigma.tolist() == [0]
            return super().__call__(video, audio, perturbations=perturbations)

    run(scene, model=Watching())
    assert np.array_equal(seen[1][0], np.array(negative.video))
    assert np.array_equal(seen[1][1], np.array(positive.audio))


def test_missing_negative_text() -> None:
    scene = Scene("no negative", video=CFG, sigmas=(1.0, 0.0))
    positive, negative = scene.contexts()
    run(scene, contexts=(positive, TextContext(negative.video, None)))
    with pytest.raises(RequestError, match=r"video.*negative prompt"):
        run(scene, contexts=(positive, None))
    with pytest.raises(RequestError, match=r"audio.*negative prompt"):
        run(Scene("audio", audio=CFG), contexts=(positive, TextContext(negative.video, None)))
    with pytest.raises(RequestError, match="audio text context"):
        run(Scene("plain"), contexts=(TextContext(positive.video, None), None))


def test_nothing_to_denoise() -> None:
    video, _ = PLAIN.states()
    for pair in ((None, None), (states.freeze(video), None)):
        with pytest.raises(RequestError, match="nothing to denoise"):
            run(PLAIN, states=pair)


def test_steps_are_reported_and_can_stop() -> None:
    told = []
    run(PLAIN, on_step=lambda step, total, pair: told.append((step, total, pair.video.latent.shape)))
    assert told == [(i + 1, 5, (1, 18, 12)) for i in range(5)]

    class Stop(Exception):
        pass

    def stop(step, total, pair):
        if step == 2:
            raise Stop

    model = ToyModel()
    with pytest.raises(Stop):
        run(PLAIN, on_step=stop, model=model)
    assert len(model.calls) == 2


def test_each_step_is_evaluated_once() -> None:
    counted = []
    run(Scene("res", sampler="res2s"), evaluate=lambda arrays: counted.append(len(arrays)) or mx.eval(arrays))
    assert counted == [2] * 5


@pytest.mark.parametrize("sampler", SAMPLERS)
@pytest.mark.parametrize("schedule", [distilled_schedule(), stage_2_schedule()])
def test_perfect_prediction_is_reached(sampler: str, schedule: np.ndarray) -> None:
    """A network that knows the clean clip leads every sampler to it."""
    video, _ = PLAIN.states()
    goal = mx.random.normal(video.latent.shape)

    def knows(modality, other, *, rope=None, perturbations=None):
        t = mx.array(np.maximum(modality.timesteps, 1e-6))[..., None]
        return (modality.latent - goal) / t, None

    context, _ = PLAIN.contexts()
    stepper = make_stepper(sampler, NoiseSource(5))
    after = denoise(SimpleDenoiser(Evaluator(knows), context), video, None, schedule, stepper)
    assert mx.allclose(after.video.latent, goal, atol=2e-3)


def test_ancestral_with_eta_zero_is_euler() -> None:
    scene = Scene("eta", image=True)
    plain, _, _ = run(scene, stepper=Euler())
    other, _, _ = run(scene, stepper=EulerAncestral(SceneNoise(scene), eta=0))
    assert mx.allclose(plain.video.latent, other.video.latent, atol=1e-5)


def test_gradient_estimation_with_gamma_one_is_euler() -> None:
    scene = Scene("gamma", image=True)
    plain, _, _ = run(scene, stepper=Euler())
    stepper = GradientEstimatingEuler(gamma=1)
    for _ in range(2):
        other, _, _ = run(scene, stepper=stepper)
        assert mx.allclose(plain.video.latent, other.video.latent, atol=1e-5)


def test_coefficient_anchors() -> None:
    anchors = {
        0.1: (0.48770575, -0.01585779, 0.96748361),
        0.5: (0.44239843, -0.06530660, 0.85224528),
        1.0: (0.39346934, -0.10363832, 0.73575888),
    }
    for h, want in anchors.items():
        assert np.allclose(res2s_coefficients(h), want, atol=1e-7)
    for sigma, want in {0.9: (0.879423, 0.886289, 0.45), 0.5: (0.933013, 0.464102, 0.25)}.items():
        assert np.allclose(sde_coefficients(sigma), want, atol=1e-6)
    ancestral = {
        (1.0, 0.99375): (0.987539, 0.501567, 0.861510),
        (0.909375, 0.725): (0.578007, 0.651669, 0.619472),
        (0.725, 0.421875): (0.245488, 0.766223, 0.377621),
    }
    for (sigma, following), want in ancestral.items():
        assert np.allclose(ancestral_coefficients(sigma, following, 1.0), want, atol=2e-6)


@settings(max_examples=30, deadline=None)
@given(st.floats(1e-4, 8))
def test_res2s_coefficients_are_consistent(h: float) -> None:
    """b1 + b2 = phi1(-h), so that a constant prediction is integrated exactly."""
    a21, b1, b2 = res2s_coefficients(h)
    assert math.isclose(h * a21, -math.expm1(-h / 2), rel_tol=1e-9)
    assert math.isclose(h * (b1 + b2), -math.expm1(-h), rel_tol=1e-9)


@settings(max_examples=30, deadline=None)
@given(st.floats(0.01, 0.99), st.floats(0.01, 0.99), st.floats(0, 1))
def test_noise_levels_are_kept(following: float, eta: float, ancestral_eta: float) -> None:
    ratio, down, up = sde_coefficients(following, eta)
    assert math.isclose(math.hypot(ratio * down, up), following, rel_tol=1e-9)
    down, ratio, amount = ancestral_coefficients(1.0, following, ancestral_eta)
    assert math.isclose(math.hypot(ratio * down, amount), following, rel_tol=1e-9)


def test_bad_samplers() -> None:
    with pytest.raises(RequestError, match="euler-ancestral"):
        make_stepper("ddim", NoiseSource(0))
    with pytest.raises(RequestError, match="max_batch_size"):
        Evaluator(ToyModel(), max_batch_size=0)
    with pytest.raises(RequestError, match="res_2s"):
        run(Scene("low", sampler="res2s", sigmas=(0.001, 0.0)), stepper=Res2s(NoiseSource(0)))


def test_bfloat16_latents_stay_bfloat16() -> None:
    video, audio = PLAIN.states()
    low = [s.with_latent(s.latent.astype(mx.bfloat16)) for s in (video, audio)]
    for sampler in SAMPLERS:
        scene = Scene("low precision", sampler=sampler)
        after, _, _ = run(scene, states=low)
        exact, _, _ = run(scene)
        assert after.video.latent.dtype == mx.bfloat16
        got, want = np.array(after.video.latent.astype(mx.float32)), np.array(exact.video.latent)
        assert np.linalg.norm(got - want) <= 0.05 * np.linalg.norm(want)


def test_scenes_have_their_own_seeds() -> None:
    assert len({scene.seed for scene in SCENES}) == len(SCENES)
