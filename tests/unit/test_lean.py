"""Every lean form gives what the plain form gives."""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import replace

import mlx.core as mx
import numpy as np
import pytest
from mlx import nn
from mlx.utils import tree_flatten

from benchmarks.formulas import pass_flops, total
from benchmarks.plain import plain_pass
from mlx_ltx2.diffusion import state as states
from mlx_ltx2.diffusion.conditioning import ReferenceVideo, WithAttention
from mlx_ltx2.diffusion.denoisers import Evaluator, GuidedDenoiser
from mlx_ltx2.diffusion.guidance import GuidanceParams
from mlx_ltx2.diffusion.loop import denoise
from mlx_ltx2.diffusion.noise import NoiseSource
from mlx_ltx2.diffusion.steppers import make_stepper
from mlx_ltx2.models.layers import attention, linear
from mlx_ltx2.models.layers.attention import Attention
from mlx_ltx2.models.layers.linear import QuantizedLinear, dequantize_when_wide, turned
from mlx_ltx2.models.transformer import Kept, Transformer, TransformerBlock, text_bytes
from mlx_ltx2.models.transformer import model as transformer_model
from mlx_ltx2.shapes import LatentShape
from mlx_ltx2.states import TextContext
from mlx_ltx2.weights import quantize
from mlx_ltx2.weights.lora import with_update
from tests.cases import as_numpy, built, load_official, official_weights, relative_error
from tests.cases.transformer import GENERATION_KEYS, Scene, build, case, modality, section
from tests.fixtures.flop_meter import metered

GENERATIONS = sorted(GENERATION_KEYS)


def scene_of(generation: str, scene: Scene, dtype: mx.Dtype = mx.float32):
    c = case(generation, "lean", scene)
    network, _ = built(c, dtype)
    arrays = c.inputs(c.rng())
    return network, modality(arrays, scene, "video"), modality(arrays, scene, "audio")


# --- The whole pass ---


@pytest.mark.parametrize("generation", GENERATIONS)
@pytest.mark.parametrize("levels", ["uniform", "runs", "tokens"])
def test_a_pass_is_the_plain_per_token_pass(generation: str, levels: str) -> None:
    network, video, audio = scene_of(generation, Scene(levels=levels, sigmas=(0.7, 0.4)))
    for lean, plain in zip(network(video, audio), plain_pass(network, video, audio), strict=True):
        assert relative_error(as_numpy(lean), as_numpy(plain)) < 2e-6


@contextmanager
def uncompiled():
    mx.disable_compile()
    try:
        yield
    finally:
        mx.enable_compile()


@pytest.mark.parametrize("generation", GENERATIONS)
@pytest.mark.parametrize("levels", ["uniform", "runs", "tokens"])
@pytest.mark.parametrize("dtype", [mx.float32, mx.bfloat16])
def test_fused_kernels_round_as_single_operations_do(generation: str, levels: str, dtype: mx.Dtype) -> None:
    network, video, audio = scene_of(generation, Scene(batch=2, levels=levels), dtype)
    fused = network(video, audio)
    mx.eval(fused)
    with uncompiled():
        single = network(video, audio)
        mx.eval(single)
    for a, b in zip(fused, single, strict=True):
        # GELU alone differs: its fused form never rounds between operations.
        assert relative_error(as_numpy(a), as_numpy(b)) < (1e-6 if dtype == mx.float32 else 1e-2)


# --- What a clip keeps ---


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Block by block, how often text keys and values were computed."""
    calls: list[int] = []
    plain = TransformerBlock.text_keys_values

    def counted(self, prefix, stream):
        calls.append(id(self))
        return plain(self, prefix, stream)

    monkeypatch.setattr(TransformerBlock, "text_keys_values", counted)
    return calls


@pytest.mark.parametrize("generation", GENERATIONS)
def test_kept_text_gives_the_same_bits(generation: str, made: list[int]) -> None:
    network, video, audio = scene_of(generation, Scene(sigmas=(0.7, 0.7)))
    kept = Kept("clip")
    tables = network.rope(video.positions, audio.positions)
    later = [replace(m, sigma=m.sigma / 2, timesteps=m.timesteps / 2) for m in (video, audio)]
    per_pass = 2 * network.config.layers
    for number, streams in enumerate([(video, audio), (video, audio), later, later]):
        want = network(*streams, rope=tables)
        made.clear()
        got = network(*streams, rope=replace(tables, kept=kept))
        assert all(mx.array_equal(a, b) for a, b in zip(got, want, strict=True))
        # LTX-2: once per prompt. LTX-2.3: once per prompt and noise level.
        fresh = number == 0 or (generation == "22B" and number == 2)
        assert len(made) == (per_pass if fresh else 0)
    assert kept.nbytes == text_bytes(network.config, video.context.shape[1], itemsize=4)


def test_kept_text_knows_prompts_apart_and_forgets() -> None:
    network, video, audio = scene_of("19B", Scene())
    tables = network.rope(video.positions, audio.positions)
    kept = Kept("clip")
    others = [replace(video, context=video.context + i) for i in range(4)]
    for m in [video, *others, video]:
        got, _ = network(m, audio, rope=replace(tables, kept=kept))
        assert mx.array_equal(got, network(m, audio, rope=tables)[0])
    assert kept.nbytes <= text_bytes(network.config, video.context.shape[1], prompts=2, itemsize=4)


def test_kept_for_a_block_holds_one_block_only(made: list[int]) -> None:
    network, video, audio = scene_of("22B", Scene())
    tables = replace(network.rope(video.positions, audio.positions), kept=Kept())
    passes = [network.prepare(video, audio, rope=tables) for _ in range(3)]
    tokens = [first for _, first in passes]
    for index in range(network.config.layers):
        for number, (inputs, _) in enumerate(passes):
            tokens[number] = network.block(index, inputs, tokens[number])
    assert len(made) == 2 * network.config.layers  # three passes, computed for one
    whole = text_bytes(network.config, video.context.shape[1], itemsize=4)
    assert tables.kept.nbytes == whole // network.config.layers


def test_kept_text_of_ltx_2_costs_nothing_after_the_first_pass() -> None:
    network, video, audio = scene_of("19B", Scene())
    tables = replace(network.rope(video.positions, audio.positions), kept=Kept("clip"))
    flops = []
    for _ in range(2):
        with metered() as meter:
            network(video, audio, rope=tables)
        flops.append(meter.flops)
    sizes = (network.config, video.latent.shape[1], audio.latent.shape[1], video.context.shape[1])
    assert flops == [total(pass_flops(*sizes)), total(pass_flops(*sizes, text_cached=True))]


# --- One step ---


def clip_of(noise: NoiseSource):
    video = states.video_state(LatentShape(2, 2, 2), 6, 24.0, dtype=mx.float32)
    reference = WithAttention(ReferenceVideo(mx.ones((1, 1, 2, 2, 6)), 24.0), 0.5)
    video = states.conditioned(video, [reference])
    audio = states.audio_state(5, bins=3, channels=2, dtype=mx.float32)
    video = states.add_noise(video, noise.normal("video", video.latent.shape))
    return video, states.add_noise(audio, noise.normal("audio", audio.latent.shape))


def guided_run(generation: str, kept: Kept | None, evaluate=mx.eval, at_once: int = 1):
    channels = {"in_channels": 6, "audio_in_channels": 6, "audio_out_channels": 6}
    network = build({"transformer": section(generation, **channels)})
    load_official(network, official_weights(network, 3))
    widths = (12, 12) if generation == "19B" else (32, 16)
    contexts = [TextContext(*(mx.random.normal((1, 4, w), key=mx.random.key(i)) for w in widths)) for i in range(2)]
    evaluator = Evaluator(network, lambda v, a: replace(network.rope(v, a, mx.float32), kept=kept), at_once)
    params = GuidanceParams(cfg=3.0, stg=1.0, stg_blocks=(1,), modality=2.0)
    denoiser = GuidedDenoiser(evaluator, *contexts, video=params, audio=params)
    noise = NoiseSource(1)
    clip = clip_of(noise)
    mx.eval([s.latent for s in clip])
    return denoise(denoiser, *clip, (1.0, 0.8, 0.4, 0.0), make_stepper("euler", noise), evaluate=evaluate)


@pytest.mark.parametrize("generation", GENERATIONS)
def test_a_guided_run_is_the_same_with_and_without_what_it_keeps(generation: str, made: list[int]) -> None:
    plain = guided_run(generation, None)
    plain_calls = len(made)
    kept = guided_run(generation, Kept("clip"))
    for a, b in zip(plain, kept, strict=True):
        assert mx.array_equal(a.latent, b.latent)
    # 3 steps of 4 passes, 2 blocks, 2 streams; two prompts, and in LTX-2.3 at each of three noise levels.
    assert plain_calls == 48 and len(made) - plain_calls == (8 if generation == "19B" else 24)


@pytest.mark.parametrize("generation", GENERATIONS)
@pytest.mark.parametrize("at_once", [2, 3, 4])
@pytest.mark.parametrize("text", ["clip", "block"])
def test_passes_that_run_together_find_what_is_kept(generation: str, at_once: int, text: str, made: list[int]) -> None:
    plain = guided_run(generation, None, at_once=at_once)
    made.clear()
    kept = Kept(text)
    got = guided_run(generation, kept, at_once=at_once)
    for a, b in zip(plain, got, strict=True):
        assert relative_error(as_numpy(a.latent), as_numpy(b.latent)) < 1e-5
    # As one pass at a time: two prompts in two blocks and two streams, in LTX-2.3 at each of three noise levels.
    steps = 1 if generation == "19B" else 3
    if text == "clip":
        assert len(made) == 8 * steps
        assert kept.nbytes == whole_text_bytes(generation)
    elif at_once == 4:  # all passes go through a block together
        assert len(made) == 8 * 3


def whole_text_bytes(generation: str) -> int:
    """Of two prompts of four tokens, as the plan counts them."""
    channels = {"in_channels": 6, "audio_in_channels": 6, "audio_out_channels": 6}
    network = build({"transformer": section(generation, **channels)})
    return text_bytes(network.config, 4, prompts=2, itemsize=4)


@pytest.mark.parametrize("at_once", [2, 4])
def test_a_mask_of_passes_that_run_together_is_turned_once(at_once: int, monkeypatch: pytest.MonkeyPatch) -> None:
    calls, plain = [], transformer_model.self_attention_bias
    monkeypatch.setattr(transformer_model, "self_attention_bias", lambda *a: calls.append(1) or plain(*a))
    guided_run("22B", Kept(), at_once=at_once)
    assert len(calls) == 1


def test_a_mask_is_turned_into_a_bias_once(monkeypatch: pytest.MonkeyPatch) -> None:
    calls, plain = [], transformer_model.self_attention_bias
    monkeypatch.setattr(transformer_model, "self_attention_bias", lambda *a: calls.append(1) or plain(*a))
    guided_run("22B", Kept())
    assert len(calls) == 1


def test_a_step_waits_for_nothing_but_its_end(monkeypatch: pytest.MonkeyPatch) -> None:
    waits: list[str] = []

    def counted(name: str, original):
        return lambda *args, **kwargs: waits.append(name) or original(*args, **kwargs)

    for name in ("item", "tolist", "__float__", "__int__", "__bool__", "__array__"):
        if hasattr(mx.array, name):
            monkeypatch.setattr(mx.array, name, counted(name, getattr(mx.array, name)))
    from_numpy = np.array
    monkeypatch.setattr(
        np,
        "array",
        lambda x, *a, **k: (waits.append("np.array") if isinstance(x, mx.array) else None) or from_numpy(x, *a, **k),
    )
    ends: list[int] = []

    def end(arrays) -> None:
        ends.append(len(waits))
        mx.eval(arrays)

    real_eval = mx.eval
    guided_run("22B", Kept(), evaluate=end)
    assert len(ends) == 3
    assert ends[-1] == ends[0], f"host reads inside a step: {waits[ends[0] :]}"
    assert mx.eval is real_eval


# --- Layers ---


@pytest.mark.skipif(mx.default_device() != mx.Device(mx.cpu), reason="the GPU has fused attention")
@pytest.mark.parametrize("masked", [None, "rows", "shared"])
def test_attention_in_pieces_is_the_same(masked: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    layer, x = Attention(16, 16, 2, 8), mx.random.normal((2, 11, 16), key=mx.random.key(0))
    mask = None if masked is None else mx.random.normal((2, 1, 11 if masked == "rows" else 1, 11))
    want = layer(x, mask=mask)
    monkeypatch.setattr(attention, "CPU_QUERIES", 4)
    with metered() as meter:
        got = layer(x, mask=mask)
    assert meter.counts["attention"] == 3 and relative_error(as_numpy(got), as_numpy(want)) < 1e-6


MODES = [("affine", 8, 64), ("affine", 6, 64), ("affine", 4, 32), ("mxfp8", 8, 32), ("mxfp4", 4, 32), ("nvfp4", 4, 16)]


@pytest.mark.parametrize(("mode", "bits", "group"), MODES)
@pytest.mark.parametrize("bias", [True, False])
def test_dequantize_and_multiply_is_the_quantized_product(mode: str, bits: int, group: int, bias: bool) -> None:
    layer = nn.QuantizedLinear.from_linear(nn.Linear(128, 64, bias=bias), group, bits, mode)
    wide, x = QuantizedLinear.of(layer, 16), mx.random.normal((2, 8, 128), key=mx.random.key(0))
    with metered() as meter:
        got = wide(x)
    assert meter.counts == {"matmul": 1}
    assert relative_error(as_numpy(got), as_numpy(layer(x))) < 2e-6
    with metered() as meter:
        narrow = wide(x[:, :4])
    assert meter.counts == {"quantized_matmul": 1} and mx.array_equal(narrow, layer(x[:, :4]))


def test_dequantized_bfloat16_stays_bfloat16() -> None:
    layer = nn.Linear(128, 64)
    layer.set_dtype(mx.bfloat16)
    for mode, bits, group in MODES:
        wide = QuantizedLinear.of(nn.QuantizedLinear.from_linear(layer, group, bits, mode), 1)
        with metered() as meter:
            assert wide(mx.zeros((4, 128), mx.bfloat16)).dtype == mx.bfloat16
        assert not meter.leaks()


def quantized_network(rows: int | None, monkeypatch: pytest.MonkeyPatch) -> Transformer:
    monkeypatch.setattr(quantize, "wide_rows", lambda: rows)
    network = build({"transformer": section("22B", head_dim=32, audio_head_dim=16)})
    load_official(network, official_weights(network, 0))
    quantize.quantize_module(network, quantize.Quantization("affine", 8, 32))
    return network


def test_the_choice_changes_no_name_and_no_result(monkeypatch: pytest.MonkeyPatch) -> None:
    never, always = (quantized_network(rows, monkeypatch) for rows in (None, 1))
    names = [[name for name, _ in tree_flatten(n.parameters())] for n in (never, always)]
    assert names[0] == names[1]
    layer = always.transformer_blocks[0].attn1.to_q
    assert isinstance(layer, QuantizedLinear) and layer.wide == 1
    dequantize_when_wide(always, 7)
    assert always.transformer_blocks[0].attn1.to_q.wide == 7
    dequantize_when_wide(always, 1)
    c = case("22B", "lean", Scene(), head_dim=32, audio_head_dim=16)
    arrays = c.inputs(c.rng())
    streams = [modality(arrays, Scene(), name) for name in ("video", "audio")]
    for a, b in zip(never(*streams), always(*streams), strict=True):
        assert relative_error(as_numpy(a), as_numpy(b)) < 2e-5


def test_a_lora_beside_a_quantized_layer_keeps_the_choice() -> None:
    layer = QuantizedLinear.of(nn.QuantizedLinear.from_linear(nn.Linear(64, 32), 32, 8), 4)
    parts = [(mx.random.normal((2, 64)), mx.random.normal((32, 2)), 0.5)]
    changed, x = with_update(layer, parts), mx.random.normal((8, 64))
    with metered() as meter:
        got = changed(x)
    assert "quantized_matmul" not in meter.counts
    want = layer(x) + 0.5 * (x @ parts[0][0].T) @ parts[0][1].T
    assert relative_error(as_numpy(got), as_numpy(want)) < 1e-5


def test_long_weights_are_turned_in_memory_only(monkeypatch: pytest.MonkeyPatch) -> None:
    weight = mx.random.normal((6, 40))
    assert turned(weight) is weight
    monkeypatch.setattr(linear, "LONG_AXIS", 40)
    layer = nn.Linear(40, 6)
    x = mx.random.normal((5, 40))
    want = layer(x)
    before = np.array(layer.weight)
    linear.turn_long_weights(layer)
    assert layer.weight.shape == (6, 40) and (np.array(layer.weight) == before).all()
    assert relative_error(as_numpy(layer(x)), as_numpy(want)) < 1e-6


@pytest.mark.parametrize(
    ("metal", "device", "architecture", "rows"),
    [
        (True, mx.gpu, "applegpu_g13s", 256),
        (True, mx.gpu, "applegpu_g14g", 256),
        (True, mx.gpu, "applegpu_g15d", None),
        (False, mx.cpu, "x86_64", 16),
        (False, mx.gpu, "sm_90", None),
    ],
)
def test_the_choice_follows_the_chip(monkeypatch, metal, device, architecture, rows) -> None:
    monkeypatch.setattr(mx.metal, "is_available", lambda: metal)
    monkeypatch.setattr(mx, "default_device", lambda: mx.Device(device, 0))
    monkeypatch.setattr(mx, "device_info", lambda: {"architecture": architecture})
    assert quantize.wide_rows() == rows
