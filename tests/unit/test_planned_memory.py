"""What a plan says of memory and what a run does: LoRAs, stages that differ, ways of decoding, files that change."""

from __future__ import annotations

import gc
import os
import shutil
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import mlx.core as mx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from mlx import nn
from mlx.utils import tree_flatten

from benchmarks.peaks import source
from mlx_ltx2 import LTX2Pipeline, convert
from mlx_ltx2.demo.tiny import write_tiny_checkpoint
from mlx_ltx2.diffusion.tiles import TileSize
from mlx_ltx2.errors import ResourceError
from mlx_ltx2.footprint import footprint
from mlx_ltx2.memory import limits, release
from mlx_ltx2.models.layers import kernels
from mlx_ltx2.models.layers.linear import turned
from mlx_ltx2.pipelines import run as runner
from mlx_ltx2.pipelines.budget import MemoryOptions, MemoryPlan, gigabytes, plan_memory
from mlx_ltx2.pipelines.needs import Needs
from mlx_ltx2.pipelines.run import Run, Session
from mlx_ltx2.pipelines.stack import Stack
from mlx_ltx2.stages.decode_video import DecodeWay
from mlx_ltx2.states import TextContext
from mlx_ltx2.weights.quantize import is_quantizable
from tests.fixtures.lora_files import write_lora

ALONE = "PYTEST_XDIST_WORKER" not in os.environ
TOO_LOW, TOO_HIGH = (0.05, 0.15) if ALONE else (0.2, 0.25)
"""What other tests left in a shared process shifts where MLX's tens of kernels begin."""

SMALL: dict[str, Any] = {"height": 64, "width": 64, "num_frames": 9, "sigmas": (1.0, 0.0), "stage_2_sigmas": (0.5, 0.0)}
BLOCKS = 4


@pytest.fixture(scope="module", autouse=True)
def set_aside():
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()


@pytest.fixture(scope="module")
def opened(tmp_path_factory: pytest.TempPathFactory):
    """opened(bits, variant): a pipeline on a tiny model of few blocks."""
    made: dict[tuple[int | None, str], LTX2Pipeline] = {}

    def pipeline(bits: int | None = None, variant: str = "distilled") -> LTX2Pipeline:
        if (bits, variant) not in made:
            folder = tmp_path_factory.mktemp("planned")
            source = write_tiny_checkpoint(folder / "source", variant=variant, blocks=BLOCKS)
            options = {} if bits is None else {"q_bits": bits, "q_group_size": 32}
            convert(source.folder, folder / "model", variant=variant, **options)
            made[bits, variant] = LTX2Pipeline.from_pretrained(
                folder / "model", text_encoder=source.text_encoder, prompt_cache=False
            )
        return made[bits, variant]

    return pipeline


CONTEXTS = [
    TextContext(*(mx.random.normal((1, 1024, w), key=mx.random.key(seed)).astype(mx.bfloat16) for w in (64, 32)))
    for seed in (1, 2)
]


def denoised(pipeline: LTX2Pipeline, plan, memory: MemoryPlan) -> dict[str, int]:
    """Peaks up to the last latents, without the text stage."""
    given = CONTEXTS[: 1 if plan.negative_prompt is None else 2]
    mx.eval([a for context in given for a in (context.video, context.audio)])
    release()
    own = sum(a.nbytes for context in given for a in (context.video, context.audio))
    held = 0 if ALONE else mx.get_active_memory() - own
    session = Session(memory=memory, contexts=given)
    with limits():
        Run(plan, pipeline.networks, session).latents()
    return {name: peak - held for name, peak in session.report.peaks.items()}


def assert_planned(memory: MemoryPlan, actual: dict[str, int], phases: tuple[str, ...]) -> None:
    off = {name: memory.phases[name] / actual[name] - 1 for name in actual if name.startswith(phases)}
    assert off and all(-TOO_LOW <= error <= TOO_HIGH for error in off.values()), off


# --- LoRAs ---


def in_first_block(name: str) -> bool:
    return "blocks.0." in name


LORAS = {
    "every layer": [{"rank": 96}],
    "float32 file": [{"rank": 64, "dtype": mx.float32}],
    "one block": [{"rank": 200, "wanted": in_first_block}],
    "around the blocks": [{"rank": 64, "wanted": lambda name: "blocks" not in name}],
    "two files": [{"rank": 32}, {"rank": 32, "dtype": mx.float16}],
}


@pytest.mark.parametrize(
    ("which", "bits", "streamed"),
    [
        ("every layer", 8, None),
        ("every layer", 8, True),
        pytest.param("every layer", None, True, marks=pytest.mark.slow),
        pytest.param("float32 file", 8, None, marks=pytest.mark.slow),
        pytest.param("one block", 8, None, marks=pytest.mark.slow),
        pytest.param("around the blocks", 8, None, marks=pytest.mark.slow),
        pytest.param("two files", 8, None, marks=pytest.mark.slow),
    ],
)
def test_what_loras_take_is_planned(opened, tmp_path, bits, which, streamed) -> None:
    pipeline = opened(bits)
    shapes = pipeline.networks.linear_shapes()
    loras = [(write_lora(tmp_path / f"{i}.safetensors", shapes, **k), 1.0) for i, k in enumerate(LORAS[which])]
    plan = pipeline.plan("a red kite", loras=loras, **SMALL)
    memory = plan_memory(plan, pipeline.networks, MemoryOptions(streamed=streamed))
    assert_planned(memory, denoised(pipeline, plan, memory), ("denoise", "upsample"))
    if bits and which == "every layer":  # of the file, what belongs to quantized layers stands beside them
        sizes = [sum(shape) for name, shape in shapes.items() if is_quantizable(name)]
        assert memory.components["loras"] == 96 * 2 * sum(sizes) < Path(loras[0][0]).stat().st_size
    if bits is None or which == "around the blocks":
        assert "loras" not in memory.components


def test_a_lora_that_does_not_fit_is_streamed_or_refused(opened, tmp_path) -> None:
    pipeline = opened(8)
    path = write_lora(tmp_path / "a.safetensors", pipeline.networks.linear_shapes(), 96)
    plain, with_lora = (pipeline.plan("a kite", loras=loras, **SMALL) for loras in ([], [(path, 1.0)]))
    whole = plan_memory(with_lora, pipeline.networks, contexts_given=True)
    budget = int(0.8 * max(size for name, size in whole.phases.items() if name.startswith("denoise")))
    budget = max(budget, whole.phases["decode video"])
    assert plan_memory(plain, pipeline.networks, MemoryOptions(budget), contexts_given=True).resident_blocks is None
    tight = plan_memory(with_lora, pipeline.networks, MemoryOptions(budget), contexts_given=True)
    if tight.resident_blocks is not None:
        assert tight.step_reads > (BLOCKS - tight.resident_blocks) * 1000
    assert tight.peak <= budget
    with pytest.raises(ResourceError, match="denoise"):
        plan_memory(with_lora, pipeline.networks, MemoryOptions(budget // 8), contexts_given=True)


def test_stacks_count_what_stands_beside_their_blocks() -> None:
    stack = Stack(around=10, block=100, count=6, beside=(50, 0, 0, 7, 0, 9), read=(5,) * 6, applying=(150,) * 6)
    assert stack.whole == 10 + 600 + 66
    assert stack.with_resident(0) == 10 + 100 + 150 + 50
    assert stack.with_resident(2) == 10 + 200 + 50 + 100 + 150 + 9
    assert replace(stack, applying=(150,) + (0,) * 5).with_resident(1) == 10 + 100 + 50 + 200 + 9
    assert [stack.between(kept) for kept in (None, 0, 1, 4)] == [676, 10, 160, 467]
    assert stack.step_reads(4) == 2 * 105
    rooms = range(200, 700)
    kept = [6 if (n := stack.fitting(room)) is None else n for room in rooms]
    assert kept == sorted(kept) and kept[0] == -1 and kept[-1] == 6
    assert all(n < 0 or stack.with_resident(n) <= room for room, n in zip(rooms, kept, strict=True) if n < 6)
    # Applying LoRAs to the whole may take more than the whole: then it is streamed.
    assert replace(stack, loading=800).fitting(700) == 3 and replace(stack, loading=800).fitting(700, 100) is None


# --- Stages that do not share a transformer ---


@pytest.mark.parametrize(
    ("pipeline_name", "bits"),
    [
        ("two-stage", 8),
        pytest.param("two-stage-hq", 8, marks=pytest.mark.slow),
        pytest.param("ic-lora", 8, marks=pytest.mark.slow),
    ],
)
def test_a_transformer_that_the_next_stage_cannot_use_is_gone(opened, tmp_path, pipeline_name, bits) -> None:
    variant = "distilled" if pipeline_name == "ic-lora" else "dev"
    pipeline = opened(bits, variant)
    path = write_lora(tmp_path / "l.safetensors", pipeline.networks.linear_shapes(), 64)
    options: dict[str, Any] = {"pipeline": pipeline_name, **SMALL}
    if pipeline_name == "ic-lora":
        options |= {"loras": [(path, 1.0)], "references": [(source((64, 64, 9))(tmp_path)["video"], 1.0)]}
    else:
        options |= {"distilled_lora": (path, 1.0), "cfg_scale": 1, "stg_scale": 0, "modality_scale": 1}
        options |= {"audio_cfg_scale": 1, "audio_stg_scale": 0, "audio_modality_scale": 1}
    plan = pipeline.plan("a red kite", **options)
    assert len({stage.loras for stage in plan.stages}) == 2
    memory = plan_memory(plan, pipeline.networks)
    assert_planned(memory, denoised(pipeline, plan, memory), ("denoise", "upsample"))
    assert memory.phases["upsample"] < memory.components["transformer"] + memory.components["spatial_upsampler"]


def test_a_transformer_that_the_next_stage_needs_stays_and_is_counted(opened, tmp_path) -> None:
    pipeline = opened(8)
    path = write_lora(tmp_path / "l.safetensors", pipeline.networks.linear_shapes(), 96)
    plan = pipeline.plan("a red kite", loras=[(path, 1.0)], **SMALL)
    memory = plan_memory(plan, pipeline.networks)
    assert memory.phases["upsample"] > memory.components["transformer"] + memory.components["loras"]
    assert_planned(memory, denoised(pipeline, plan, memory), ("upsample",))


@pytest.fixture(scope="module")
def upsampler_file(tmp_path_factory) -> str:
    """An official file of an upsampler, beside a tiny checkpoint."""
    source = write_tiny_checkpoint(tmp_path_factory.mktemp("file"), blocks=2).folder
    (found,) = source.glob("*spatial-upscaler-x2*.safetensors")
    return str(found)


def test_an_upsampler_in_a_file_of_its_own_is_planned(opened, upsampler_file) -> None:
    pipeline = opened()
    plan = pipeline.plan("a red kite", spatial_upscaler=upsampler_file, **SMALL)
    memory = plan_memory(plan, pipeline.networks)
    assert memory.components["spatial_upsampler"] > 0
    assert_planned(memory, denoised(pipeline, plan, memory), ("upsample",))


# --- Ways of decoding ---

sides = st.sampled_from([64, 128, 192, 320, 448])
shapes = st.tuples(sides, sides, st.sampled_from([9, 17, 41]))
tilings = st.sampled_from(["auto", "none", "spatial", "temporal", "default", "aggressive"])


@settings(max_examples=5, deadline=None, suppress_health_check=list(HealthCheck))
@given(shape=shapes, tiling=tilings, shares=st.lists(st.floats(0.01, 1.5), min_size=6, max_size=10))
def test_more_memory_is_never_worse(opened, shape, tiling, shares) -> None:
    pipeline = opened()
    height, width, frames = shape
    plan = pipeline.plan("a kite", height=height, width=width, num_frames=frames, tiling=tiling, audio=False)
    needs = Needs(plan, pipeline.networks)
    ways = needs.decode_ways()
    top = plan_memory(plan, pipeline.networks, MemoryOptions(10**12), contexts_given=True).peak
    accepted = False
    before: tuple[float, ...] | None = None
    for budget in sorted(int(share * top) for share in shares):
        try:
            memory = plan_memory(plan, pipeline.networks, MemoryOptions(budget), contexts_given=True)
        except ResourceError:
            assert not accepted, f"{budget} bytes are refused, and fewer are not"
            continue
        accepted = True
        assert memory.peak <= budget and memory.decode is not None
        assert memory.phases["decode video"] == needs.decode_video(memory.decode)
        blocks = BLOCKS if memory.resident_blocks is None else memory.resident_blocks
        now = (ways.index(memory.decode), -blocks, memory.reload)
        assert before is None or all(new <= old for new, old in zip(now, before, strict=True))
        before = now


@pytest.mark.parametrize("size", [(1088, 1920, 49), (128, 128, 9)])
def test_a_refusal_names_a_budget_that_works(opened, size) -> None:
    pipeline = opened()
    height, width, frames = size
    plan = pipeline.plan("a kite", height=height, width=width, num_frames=frames, audio=False)
    with pytest.raises(ResourceError) as refusal:
        plan_memory(plan, pipeline.networks, MemoryOptions(10**6), contexts_given=True)
    needs = Needs(plan, pipeline.networks)
    leanest = min(needs.decode_video(way) for way in needs.decode_ways())
    assert f"decode video needs {gigabytes(leanest)}" in str(refusal.value)
    at = max(leanest, *(needs.denoise(n) + needs.transformer(s).with_resident(0) for n, s in enumerate(plan.stages)))
    assert plan_memory(plan, pipeline.networks, MemoryOptions(at), contexts_given=True).peak <= at


WAYS = [
    DecodeWay(None, 1),
    *(
        pytest.param(way, marks=pytest.mark.slow)
        for way in (DecodeWay(None, 3), DecodeWay(None, 0), DecodeWay(TileSize(96, 96, 64), 2))
    ),
]


@pytest.mark.parametrize("way", WAYS, ids=DecodeWay.text)
def test_the_run_decodes_as_the_record_says(opened, monkeypatch, way) -> None:
    pipeline = opened()
    plan = pipeline.plan("a kite", **{**SMALL, "height": 128, "width": 128})
    memory = plan_memory(plan, pipeline.networks)  # no limit is given
    assert memory.to_dict()["decode"] == {"tiles": None, "chunk": 4}
    assert f"decoded {memory.decode.text()}" in "\n".join(memory.describe())
    taken: list[DecodeWay] = []
    plain = runner.decode_video
    monkeypatch.setattr(runner, "decode_video", lambda *a, **k: taken.append(a[2]) or plain(*a, **k))
    running = Run(plan, pipeline.networks, Session(memory=replace(memory, decode=way), contexts=CONTEXTS[:1]))
    frames = list(running.frames(running.latents()))
    assert taken == [way] and sum(map(len, frames)) == 9
    # a block is fed `chunk` frames and may give two for one
    assert len(frames) == 1 or max(map(len, frames)) <= 2 * way.chunk


@pytest.mark.parametrize("way", WAYS, ids=DecodeWay.text)
def test_every_way_of_decoding_is_planned(opened, way) -> None:
    pipeline = opened()
    plan = pipeline.plan("a kite", audio=False, **{**SMALL, "height": 128, "width": 128})
    needs = Needs(plan, pipeline.networks)
    memory = MemoryPlan(10**12, phases={"decode video": needs.decode_video(way)}, decode=way)
    session = Session(memory=memory, contexts=CONTEXTS[:1])
    running = Run(plan, pipeline.networks, session)
    latents = running.latents()
    release()
    held = 0 if ALONE else mx.get_active_memory() - latents.video.nbytes
    with limits():
        for _ in running.frames(latents):
            pass
    assert_planned(memory, {"decode video": session.report.peaks["decode video"] - held}, ("decode",))


# --- Files that change ---


def test_a_model_that_was_converted_anew_has_its_new_sizes(tmp_path) -> None:
    sizes, beside = {}, {}
    for number, (blocks, bits) in enumerate([(2, None), (3, None), (3, 8)]):
        written = write_tiny_checkpoint(tmp_path / f"source{number}", blocks=blocks)
        options = {} if bits is None else {"q_bits": bits, "q_group_size": 32}
        shutil.rmtree(tmp_path / "model", ignore_errors=True)
        convert(written.folder, tmp_path / "model", variant="distilled", text_encoder=False, **options)
        pipeline = LTX2Pipeline.from_pretrained(
            tmp_path / "model", text_encoder=written.text_encoder, prompt_cache=False
        )
        path = write_lora(tmp_path / "l.safetensors", pipeline.networks.linear_shapes(), 8 * (number + 1))
        plan = pipeline.plan("a kite", loras=[(path, 1.0)], **SMALL)
        memory = plan_memory(plan, pipeline.networks, contexts_given=True)
        sizes[number], beside[number] = memory.components["transformer"], memory.components.get("loras", 0)
        loaded = pipeline.networks.load_transformer(video=True, audio=True)
        assert sizes[number] == pytest.approx(sum(a.nbytes for _, a in tree_flatten(loaded.parameters())), rel=0.02)
    assert sizes[1] == pytest.approx(1.3 * sizes[0], rel=0.2) and sizes[2] < 0.8 * sizes[1]
    assert beside[0] == beside[1] == 0 and beside[2] > 0


def test_another_text_encoder_in_the_same_place(opened, tmp_path) -> None:
    pipeline = opened()
    plan = pipeline.plan("a kite", **SMALL)
    here = tmp_path / "encoder"
    networks = replace(pipeline.networks, text_encoder=here)
    found = []
    for bits in (None, 8):
        shutil.rmtree(here, ignore_errors=True)
        if bits is None:
            shutil.copytree(pipeline.networks.text_encoder, here)
        else:
            convert(
                write_tiny_checkpoint(tmp_path / "s", blocks=2).folder,
                tmp_path / "m",
                variant="distilled",
                text_encoder=pipeline.networks.text_encoder,
                q_bits=8,
                q_group_size=32,
            )
            shutil.copytree(tmp_path / "m" / "text_encoder", here)
        found.append(plan_memory(plan, networks).components["text_encoder"])
    assert found[1] < found[0]


def test_another_lora_in_the_same_place(opened, tmp_path) -> None:
    pipeline = opened(8)
    shapes, found, hashes = pipeline.networks.linear_shapes(), [], set()
    for rank in (16, 32):
        path = write_lora(tmp_path / "l.safetensors", shapes, rank)
        os.utime(path, ns=(1, 1))
        plan = pipeline.plan("a kite", loras=[(path, 1.0)], **SMALL)
        found.append(plan_memory(plan, pipeline.networks).components["loras"])
        hashes.add(pipeline.networks.lora_hashes([path])[path])
    assert found[1] == 2 * found[0] and len(hashes) == 2


def test_a_lora_of_the_same_size_and_time_is_hashed_anew(opened, tmp_path) -> None:
    path, hashes = tmp_path / "l.safetensors", set()
    for value in (1.0, 2.0):
        mx.save_safetensors(str(path), {"x": mx.full((4,), value)})
        os.utime(path, ns=(1, 1))
        hashes.add(opened().networks.lora_hashes([str(path)])[str(path)])
    assert len(hashes) == 2


# --- Planning beside other work ---


def patched_names() -> list[Any]:
    """All that planning used to exchange."""
    return [mx.contiguous, nn.silu, nn.gelu_approx, nn.leaky_relu, kernels.silu, nn.layers.activations.silu]


def test_another_thread_computes_as_always_while_a_plan_is_made(opened, tmp_path) -> None:
    pipeline = opened()
    before = patched_names()
    x = mx.random.normal((4, 64), key=mx.random.key(1))
    weight = mx.random.normal((16, 4), key=mx.random.key(2))
    want = [nn.silu(x), kernels.silu(x), kernels.contiguous(x.T)]
    mx.eval(want, weight)
    started, done, faults = threading.Event(), threading.Event(), []

    def compute() -> None:
        while not done.is_set():
            if any(a is not b for a, b in zip(patched_names(), before, strict=True)):
                faults.append("exchanged")
            got = [nn.silu(x), kernels.silu(x), kernels.contiguous(x.T)]
            turned(weight)
            faults.extend("other numbers" for a, b in zip(got, want, strict=True) if not mx.array_equal(a, b).item())
            started.set()

    thread = threading.Thread(target=compute)
    thread.start()
    started.wait(10)
    try:
        for height in (96, 160, 224):  # new sizes, which are traced
            plan_memory(pipeline.plan("a kite", **{**SMALL, "height": height - height % 64 + 64}), pipeline.networks)
            footprint(lambda a: nn.silu(kernels.contiguous(a.T)), mx.zeros((height, 8)))
    finally:
        done.set()
        thread.join()
    assert not faults


def test_threads_that_plan_at_once_find_the_same(opened) -> None:
    pipeline = opened(8, "dev")
    plans = [pipeline.plan("a kite", pipeline="dev", height=64, width=w, num_frames=9) for w in (320, 384)]
    found: list[dict[str, int]] = []

    def plan(number: int) -> None:
        found.append(dict(plan_memory(plans[number % 2], pipeline.networks, contexts_given=True).phases))

    threads = [threading.Thread(target=plan, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 4
    for plan_ in plans:
        want = dict(plan_memory(plan_, pipeline.networks, contexts_given=True).phases)
        assert found.count(want) == 2


def test_a_graph_is_shown_to_the_thread_that_asks_alone() -> None:
    x, seen = mx.zeros((4, 4)), []
    with kernels.shown():
        thread = threading.Thread(target=lambda: seen.append(kernels._shown.get()))
        thread.start()
        thread.join()
        assert kernels._shown.get()
    assert seen == [False] and not kernels._shown.get()
    found = footprint(kernels.silu, x)
    assert found.peak == found.result == x.nbytes  # one kernel
