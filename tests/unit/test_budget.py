"""Predicted memory against MLX's own allocator, what is chosen for a budget, and refusals."""

from __future__ import annotations

import gc
import importlib
import os

import mlx.core as mx
import pytest

from mlx_ltx2 import LTX2Pipeline
from mlx_ltx2.errors import RequestError, ResourceError
from mlx_ltx2.footprint import footprint
from mlx_ltx2.memory import limits, parse_bytes, release
from mlx_ltx2.pipelines.budget import MemoryOptions, plan_memory
from mlx_ltx2.pipelines.run import Run, Session

WITHIN = 0.1
ALONE = "PYTEST_XDIST_WORKER" not in os.environ
"""Run with `-n 0`, this file has its process to itself."""
SIZES = ((64, 64, 9), (128, 192, 17))


@pytest.fixture(scope="module", autouse=True)
def set_aside():
    """Every phase collects garbage; what was imported need not be walked through each time."""
    importlib.import_module("mlx_lm.models.gemma3_text")
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()


@pytest.fixture(scope="module")
def opened(tmp_path_factory: pytest.TempPathFactory):
    """opened(generation, variant): a pipeline on a tiny model with six blocks."""
    from mlx_ltx2 import convert
    from mlx_ltx2.demo.tiny import write_tiny_checkpoint

    made: dict[tuple[str, str], LTX2Pipeline] = {}

    def pipeline(generation: str = "2.3", variant: str = "distilled") -> LTX2Pipeline:
        key = (generation, variant)
        if key not in made:
            folder = tmp_path_factory.mktemp("budget")
            source = write_tiny_checkpoint(folder / "source", generation=generation, variant=variant, blocks=6)
            convert(source.folder, folder / "model", variant=variant)
            made[key] = LTX2Pipeline.from_pretrained(folder / "model", text_encoder=source.text_encoder)
        return made[key]

    return pipeline


def planned(model: LTX2Pipeline, size: tuple[int, int, int], **options: object):
    height, width, frames = size
    short = {"sigmas": (1.0, 0.7, 0.0), **({} if "pipeline" in options else {"stage_2_sigmas": (0.5, 0.0)})}
    options = {**short, **options}
    return model.plan("a red kite over the sea", height=height, width=width, num_frames=frames, **options)


def actual_peaks(pipeline: LTX2Pipeline, plan, memory=None, sound_runs: int = 1) -> dict[str, int]:
    """Peaks of a run, the highest of some for the phase whose kernels are few and large.

    MLX takes kernels in tens; some more before shift where a ten begins.
    """
    session = Session(memory=memory)
    release()
    held = 0 if ALONE else mx.get_active_memory()  # by tests that ran before in this process
    with limits():
        running = Run(plan, pipeline.networks, session)
        latents = running.latents()
        for more in range(sound_runs):
            running.audio(latents)
            for _ in range(more):
                mx.eval(mx.ones(3) + 1)
        for _ in running.frames(latents):
            pass
    return {name: peak - held for name, peak in session.report.peaks.items()}


def assert_close(predicted, actual, lucky: tuple[str, ...] = ("decode audio",)) -> None:
    """lucky: phases that were not run often enough to meet their worst case, which is what is predicted."""
    off = {name: round(predicted[name] / size - 1, 3) for name, size in actual.items()}
    # What earlier tests left in this process shifts where MLX's tens of kernels begin; alone, the file holds WITHIN.
    within = WITHIN if ALONE else 2.5 * WITHIN
    assert not {n: error for n, error in off.items() if error < -within or (error > within and n not in lucky)}
    assert predicted.keys() == actual.keys()


@pytest.mark.parametrize("size", SIZES)
def test_every_phase_is_predicted(opened, size):
    pipeline = opened()
    plan = planned(pipeline, size)
    memory = plan_memory(plan, pipeline.networks)
    assert memory.resident_blocks is None
    if size == SIZES[0]:
        assert_close(memory.phases, actual_peaks(pipeline, plan, memory, sound_runs=7), lucky=())
    else:
        assert_close(memory.phases, actual_peaks(pipeline, plan, memory))


@pytest.mark.parametrize("generation", ["2.0", "2.3"])
def test_guided_passes_are_predicted(opened, generation):
    pipeline = opened(generation, "dev")
    plan = planned(pipeline, (96, 96, 9), pipeline="dev")
    memory = plan_memory(plan, pipeline.networks)
    assert len(plan.stages[0].passes) > 1
    assert_close(memory.phases, actual_peaks(pipeline, plan, memory))


def test_streamed_phases_are_predicted(opened):
    pipeline = opened()
    plan = planned(pipeline, SIZES[1])
    memory = plan_memory(plan, pipeline.networks, MemoryOptions(streamed=True))
    assert (memory.resident_blocks, memory.resident_layers) == (1, 0)
    assert_close(memory.phases, actual_peaks(pipeline, plan, memory))


def test_a_smaller_budget_streams_more_and_keeps_what_fits(opened):
    pipeline = opened()
    plan = planned(pipeline, SIZES[0], audio=False)
    # The text projections of a tiny model are its highest phase; they are not what is chosen here.
    whole = plan_memory(plan, pipeline.networks, contexts_given=True)
    kept = []
    for share in (1.0, 0.9, 0.8, 0.75):
        budget = int(max(v for k, v in whole.phases.items() if k.startswith("denoise")) * share)
        budget = max(budget, whole.phases["decode video"])
        memory = plan_memory(plan, pipeline.networks, MemoryOptions(limit=budget), contexts_given=True)
        assert all(size <= budget for size in memory.phases.values())
        kept.append(6 if memory.resident_blocks is None else memory.resident_blocks)
    assert kept == sorted(kept, reverse=True)


def test_what_does_not_fit_is_refused_with_all_reasons(opened):
    pipeline = opened()
    plan = planned(pipeline, SIZES[1])
    with pytest.raises(ResourceError) as refusal:
        plan_memory(plan, pipeline.networks, MemoryOptions(limit=1_000_000))
    text = str(refusal.value)
    assert refusal.value.exit_code == 4
    for phase in ("text projections", "denoise half size", "denoise full size", "decode video", "decode audio"):
        assert phase in text
    assert "smallest budget" in text


def test_the_smallest_budget_that_is_named_works(opened):
    pipeline = opened()
    plan = planned(pipeline, SIZES[0])
    whole = plan_memory(plan, pipeline.networks)
    memory = plan_memory(plan, pipeline.networks, MemoryOptions(limit=whole.peak))
    assert memory.peak <= whole.peak


def test_a_clip_carries_predicted_and_actual_peaks(opened):
    clip = opened()("a red kite", height=64, width=64, num_frames=9, sigmas=(1.0, 0.0), stage_2_sigmas=(0.5, 0.0))
    assert clip.plan.memory["actual"] == clip.peaks
    assert clip.plan.memory["phases"].keys() == clip.peaks.keys()


def test_streamed_and_resident_runs_give_the_same_clip(opened):
    pipeline = opened()
    options = {"height": 64, "width": 64, "num_frames": 9, "output_type": "latent", "sigmas": (1.0, 0.5, 0.0)}
    whole = pipeline("a red kite", **options)
    low = LTX2Pipeline(pipeline.networks, pipeline.name, memory=MemoryOptions(streamed=True))("a red kite", **options)
    assert mx.array_equal(whole.latents, low.latents).item()
    assert mx.array_equal(whole.audio_latents, low.audio_latents).item()


@pytest.mark.parametrize("width", [64, 256])
def test_footprint_counts_buffers_donations_and_views(width):
    x, w = mx.zeros((1, 512, width)), mx.zeros((width, width))

    def layers(x: mx.array, w: mx.array) -> mx.array:
        h = x @ w.T
        h = mx.exp(h) * 2 + 1  # in place
        return (h.transpose(0, 2, 1)[:, :8] @ h).sum(axis=1)

    found = footprint(layers, x, w, device=mx.Device(mx.cpu))
    assert found.peak == pytest.approx(512 * width * 4, rel=WITHIN)
    assert found.result == width * 4


def test_footprint_of_arrays_larger_than_any_memory():
    x = mx.zeros((1 << 21, 1 << 20))

    def turned(x: mx.array) -> mx.array:
        return x[:, :256].T.reshape(-1)  # cannot be a view

    found = footprint(turned, x, device=mx.Device(mx.cpu))
    assert found.peak == found.result == (1 << 21) * 256 * 4


@pytest.mark.parametrize(
    ("text", "size"), [("12GB", 12e9), ("800 MB", 8e8), ("2GiB", 2**31), ("1.5g", 1.5e9), ("1000", 1000)]
)
def test_amounts_of_memory(text, size):
    assert parse_bytes(text) == size


@pytest.mark.parametrize("text", ["", "lots", "-1GB", "0", "12 XB"])
def test_no_amounts_of_memory(text):
    with pytest.raises(RequestError, match="amount of memory"):
        parse_bytes(text)
