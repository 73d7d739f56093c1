"""The transformer without torch: names, shapes, builds, noise levels, dtypes, the 1.2.0 rule, errors."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest
from mlx import nn
from mlx.utils import tree_flatten, tree_map_with_path

from mlx_ltx2.errors import WeightsError
from mlx_ltx2.models.layers import feed_forward
from mlx_ltx2.models.layers.attention import Attention
from mlx_ltx2.models.layers.feed_forward import FeedForward, gelu_tanh
from mlx_ltx2.models.layers.rope import RopeConfig, build_rope, frequencies, midpoints
from mlx_ltx2.models.transformer import Transformer, TransformerConfig, modulation
from mlx_ltx2.models.transformer.modulation import Levels
from mlx_ltx2.states import Modality, Perturbation
from tests.cases import Arrays, Case, as_numpy, built, relative_error, run_mlx, worst_error
from tests.cases.transformer import (
    CASES,
    CASES_120,
    GENERATION_KEYS,
    REAL,
    STG,
    Scene,
    audio_positions,
    case,
    modality,
    section,
    video_positions,
)

RECORDED_120 = Path(__file__).parents[1] / "recorded" / "transformer_120.safetensors"
GENERATIONS = sorted(GENERATION_KEYS)


# --- Names and shapes at full size ---


def shapes(config: TransformerConfig) -> dict[str, tuple[int, ...]]:
    """Nothing here is ever evaluated, so the full size costs no memory."""
    return {name: tuple(x.shape) for name, x in tree_flatten(Transformer(config).parameters())}


def linear(name: str, out: int, into: int) -> dict[str, tuple[int, ...]]:
    return {f"{name}.weight": (out, into), f"{name}.bias": (out,)}


def expected_shapes(generation: str) -> dict[str, tuple[int, ...]]:
    """The published inventory: V 4096, A 2048, 48 blocks, rows 6 (19B) or 9 (22B)."""
    new = generation == "22B"
    rows, tree = 9 if new else 6, {}
    adaln = [("adaln_single", 4096, rows), ("audio_adaln_single", 2048, rows)]
    adaln += [
        ("av_ca_video_scale_shift_adaln_single", 4096, 4),
        ("av_ca_audio_scale_shift_adaln_single", 2048, 4),
    ]
    adaln += [("av_ca_a2v_gate_adaln_single", 4096, 1), ("av_ca_v2a_gate_adaln_single", 2048, 1)]
    adaln += [("prompt_adaln_single", 4096, 2), ("audio_prompt_adaln_single", 2048, 2)] if new else []
    for name, dim, k in adaln:
        tree |= linear(f"{name}.emb.timestep_embedder.linear_1", dim, 256)
        tree |= linear(f"{name}.emb.timestep_embedder.linear_2", dim, dim) | linear(f"{name}.linear", k * dim, dim)
    for prefix, dim in (("", 4096), ("audio_", 2048)):
        tree |= linear(f"{prefix}patchify_proj", dim, 128) | linear(f"{prefix}proj_out", 128, dim)
        tree[f"{prefix}scale_shift_table"] = (2, dim)
        if not new:
            tree |= linear(f"{prefix}caption_projection.linear_1", dim, 3840)
            tree |= linear(f"{prefix}caption_projection.linear_2", dim, dim)
    attentions = {
        "attn1": (4096, 4096, 4096),
        "attn2": (4096, 4096, 4096),
        "audio_attn1": (2048, 2048, 2048),
        "audio_attn2": (2048, 2048, 2048),
        "audio_to_video_attn": (2048, 4096, 2048),
        "video_to_audio_attn": (2048, 2048, 4096),
    }
    for i in range(48):
        block = f"transformer_blocks.{i}."
        for name, (inner, query, context) in attentions.items():
            name = block + name
            tree |= linear(f"{name}.to_q", inner, query) | linear(f"{name}.to_k", inner, context)
            tree |= linear(f"{name}.to_v", inner, context) | linear(f"{name}.to_out.0", query, inner)
            tree |= {f"{name}.q_norm.weight": (inner,), f"{name}.k_norm.weight": (inner,)}
            tree |= linear(f"{name}.to_gate_logits", 32, query) if new else {}
        for prefix, dim in (("", 4096), ("audio_", 2048)):
            tree[f"{block}{prefix}scale_shift_table"] = (rows, dim)
            tree |= {f"{block}{prefix}prompt_scale_shift_table": (2, dim)} if new else {}
            tree |= linear(f"{block}{prefix}ff.net.0.proj", 4 * dim, dim)
            tree |= linear(f"{block}{prefix}ff.net.2", dim, 4 * dim)
        tree[f"{block}scale_shift_table_a2v_ca_video"] = (5, 4096)
        tree[f"{block}scale_shift_table_a2v_ca_audio"] = (5, 2048)
    return tree


@pytest.mark.parametrize(
    ("generation", "tensors", "parameters"), [("19B", 3510, 18_876_174_592), ("22B", 4186, 18_988_838_144)]
)
def test_full_size_has_the_published_names_and_shapes(generation: str, tensors: int, parameters: int) -> None:
    tree = shapes(TransformerConfig.from_dict({**REAL, **GENERATION_KEYS[generation]}))
    assert tree == expected_shapes(generation)
    assert len(tree) == tensors
    assert sum(int(np.prod(s)) for s in tree.values()) == parameters


def test_full_size_pass_waits_for_nothing() -> None:
    network = Transformer(TransformerConfig.from_dict({**REAL, **GENERATION_KEYS["22B"]}))
    arrays = {
        "video": (mx.zeros((1, 6, 128)), video_positions((1, 2, 3), 24.0), mx.zeros((1, 4, 4096))),
        "audio": (mx.zeros((1, 3, 128)), audio_positions(3), mx.zeros((1, 4, 2048))),
    }
    level = np.array([0.5], np.float32)
    streams = {n: Modality(x, level, level[:, None], p, c) for n, (x, p, c) in arrays.items()}
    before = mx.get_active_memory()
    video, audio = network(streams["video"], streams["audio"])
    assert video.shape == (1, 6, 128) and audio.shape == (1, 3, 128)
    # Any evaluation inside the pass would have made the weights it needs, hundreds of megabytes at the least.
    assert mx.get_active_memory() - before < 30e6


@pytest.mark.parametrize("generation", GENERATIONS)
@pytest.mark.parametrize("streams", [{"audio": False}, {"video": False}])
def test_reduced_build_is_what_it_keeps_of_the_full_one(generation: str, streams: dict[str, bool]) -> None:
    full = shapes(TransformerConfig.from_dict(section(generation)))
    config = TransformerConfig.from_dict(section(generation), **streams)
    assert shapes(config) == {name: shape for name, shape in full.items() if config.keeps(name)}


def test_connectors_are_never_kept() -> None:
    for streams in ({}, {"audio": False}, {"video": False}):
        config = TransformerConfig.from_dict(section("22B"), **streams)
        for stream in ("video", "audio"):
            assert not config.keeps(f"{stream}_embeddings_connector.transformer_1d_blocks.0.attn1.to_q.weight")


# --- The rule for the audio-video modulation ---


@pytest.mark.parametrize("case", CASES_120, ids=lambda c: c.name)
def test_equals_the_recorded_outputs_of_1_2_0(case: Case) -> None:
    recorded = mx.load(str(RECORDED_120))
    want = {name: np.array(recorded[f"{case.name}/{name}"]) for name in ("video", "audio")}
    assert worst_error(run_mlx(case), want) <= case.bound


def test_rules_agree_where_all_tokens_have_one_level() -> None:
    first, *others = (run_mlx(case("22B", "uniform", Scene(), cross_modulation=r)) for r in ("1.2.0", "1.0.0", "own"))
    for other in others:
        assert worst_error(other, first) < 1e-6


def test_default_rule_is_that_of_1_2_0() -> None:
    assert TransformerConfig.from_dict(section("19B")).cross_modulation == "1.2.0"


# --- Noise levels ---


@pytest.mark.parametrize("generation", GENERATIONS)
@pytest.mark.parametrize("batch", [1, 2])
def test_runs_equal_one_level_per_token(generation: str, batch: int, monkeypatch: pytest.MonkeyPatch) -> None:
    runs = case(generation, "runs", Scene(levels="runs", batch=batch, sigmas=(0.8, 0.6)))
    want = run_mlx(runs)
    monkeypatch.setattr(modulation, "MAX_RUNS", 1)
    assert worst_error(run_mlx(runs), want) < 2e-6


def test_one_level_is_a_weighted_norm(monkeypatch: pytest.MonkeyPatch) -> None:
    weights, norm = [], mx.fast.rms_norm
    monkeypatch.setattr(mx.fast, "rms_norm", lambda x, w, eps: weights.append(w is not None) or norm(x, w, eps))
    run_mlx(case("22B", "plain", Scene(), layers=1))
    assert all(weights)


def test_levels_take_their_shortest_form() -> None:
    per_token = np.array([[0, 0, 0.5, 0.5, 0.5]], np.float32)
    levels = Levels.of(per_token, None, 5)
    assert levels.runs == (2, 3) and levels.values.tolist() == [[0, 0.5]]
    assert Levels.of(np.full((2, 5), 0.3), None, 5).runs is None
    assert Levels.of(np.full((1, 3), 0.3), (1, 2, 2), 5).values.shape == (1, 1)
    mixed = Levels.of(np.tile(np.float32([0, 1]), (2, 20)), None, 40)
    assert mixed.values.tolist() == [[0, 1]] and mixed.index.shape == (2, 40)


@pytest.mark.parametrize(("shape", "runs"), [((1, 3), None), ((1, 2), (2, 2)), ((1, 2), (1, 1, 3)), ((5,), None)])
def test_levels_must_cover_the_tokens(shape: tuple[int, ...], runs: tuple[int, ...] | None) -> None:
    with pytest.raises(ValueError, match="token"):
        Levels.of(np.zeros(shape), runs, 5)


# --- Running it in pieces ---


def prepared(generation: str = "22B", scene: Scene | None = None) -> tuple[Transformer, Scene, Arrays]:
    c = case(generation, "pieces", scene or Scene(levels="runs"))
    module, _ = built(c)
    return module, c.options["scene"], c.inputs(c.rng())


@pytest.mark.parametrize("generation", GENERATIONS)
def test_call_is_prepare_blocks_finish(generation: str) -> None:
    network, scene, arrays = prepared(generation)
    video, audio = (modality(arrays, scene, n) for n in ("video", "audio"))
    seen: list[int] = []
    want = network(video, audio, perturbations=[STG], between_blocks=lambda i, _: seen.append(i))
    rope = network.rope(video.positions, audio.positions, mx.float32)
    inputs, tokens = network.prepare(video, audio, rope=rope, perturbations=[STG])
    for i, block in enumerate(network.transformer_blocks):
        texts = {p: block.text_keys_values(p, s) for p, s in inputs.streams.items()}
        tokens = network.block(i, inputs, tokens, texts)
    assert seen == [0, 1]
    for got, x in zip(network.finish(inputs, tokens), want, strict=True):
        assert mx.array_equal(got, x)


def test_disabled_stream_keeps_its_tokens_and_serves_the_other() -> None:
    network, scene, arrays = prepared()
    video, audio = (modality(arrays, scene, n) for n in ("video", "audio"))
    inputs, tokens = network.prepare(replace(video, enabled=False), audio)
    after = network.block(0, inputs, tokens)
    assert mx.array_equal(after[""], tokens[""])
    moved = replace(video, latent=video.latent + 1, enabled=False)
    assert not mx.array_equal(network(moved, audio)[1], network(replace(video, enabled=False), audio)[1])


def test_perturbation_touches_only_its_sample() -> None:
    scene = Scene(batch=2, skips=(Perturbation(), replace(STG, skip_audio_to_video="all")))
    mixed = run_mlx(case("22B", "mixed", scene))
    plain = run_mlx(case("22B", "mixed", replace(scene, skips=None)))
    for name in ("video", "audio"):
        assert relative_error(mixed[name][0], plain[name][0]) < 1e-6
        assert relative_error(mixed[name][1], plain[name][1]) > 1e-3


def test_misfits_are_refused() -> None:
    network, scene, arrays = prepared()
    video, audio = (modality(arrays, scene, n) for n in ("video", "audio"))
    with pytest.raises(ValueError, match="give a video stream"):
        network(None, None)
    with pytest.raises(ValueError, match="perturbations 2"):
        network(video, audio, perturbations=[STG, STG])
    with pytest.raises(ValueError, match="rope"):
        network(video, audio, rope=network.rope(video.positions, audio.positions, mx.bfloat16))
    with pytest.raises(ValueError, match="rope"):
        network(video, audio, rope=network.rope(video.positions, None))
    only_video = Transformer(TransformerConfig.from_dict(section("22B"), audio=False))
    with pytest.raises(ValueError, match="without its audio stream"):
        only_video(video, audio)


# --- Data types ---


@pytest.mark.parametrize("generation", GENERATIONS)
@pytest.mark.parametrize("levels", ["uniform", "runs"])
def test_nothing_widens_in_bfloat16(generation: str, levels: str, monkeypatch: pytest.MonkeyPatch) -> None:
    scene = Scene(batch=2, levels=levels, skips=(STG, Perturbation()), video_mask=True, context_mask=True)
    network, scene, arrays = prepared(generation, scene)

    def narrow(path: str, x: mx.array) -> mx.array:
        # Published files hold modulation tables in float32 among weights in bfloat16.
        return x.astype(mx.float32 if "table" in path else mx.bfloat16)

    network.update(tree_map_with_path(narrow, network.parameters()))
    types: set[mx.Dtype] = set()

    def spy(call):
        def spied(*args, **kwargs):
            out = call(*args, **kwargs)
            types.update(a.dtype for a in (*args, *kwargs.values(), out) if isinstance(a, mx.array))
            return out

        return spied

    monkeypatch.setattr(nn.Linear, "__call__", spy(nn.Linear.__call__))
    for name in ("rms_norm", "layer_norm", "scaled_dot_product_attention"):
        monkeypatch.setattr(mx.fast, name, spy(getattr(mx.fast, name)))
    video, audio = (modality(arrays, scene, n) for n in ("video", "audio"))
    steps: list[mx.Dtype] = []
    out = network(
        video,
        audio,
        perturbations=scene.skips,
        between_blocks=lambda _, t: steps.extend(x.dtype for x in t.values()),
    )
    assert types == {mx.bfloat16}
    assert set(steps) == {mx.bfloat16} and {x.dtype for x in out} == {mx.bfloat16}
    assert all(np.isfinite(as_numpy(x)).all() for x in out)


def test_fully_masked_tokens_stay_finite_in_bfloat16() -> None:
    network, scene, arrays = prepared("22B", Scene(video_mask=True))
    arrays["video_mask"][:, 0] = 0
    network.set_dtype(mx.bfloat16)
    out, _ = network(modality(arrays, scene, "video"), modality(arrays, scene, "audio"))
    assert np.isfinite(as_numpy(out)).all()


# --- Configuration ---


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("dropout", 0.1),
        ("num_vector_embeds", 8),
        ("activation_fn", "silu"),
        ("qk_norm", None),
        ("use_middle_indices_grid", False),
        ("positional_embedding_type", "absolute"),
        ("use_prompt_adaln_single", False),
        ("ff_bias", False),
        ("rope_type", "spiral"),
        ("audio_num_attention_heads", 4),
        ("audio_cross_attention_dim", 24),
    ],
)
def test_other_models_are_refused_by_key(key: str, value: object) -> None:
    with pytest.raises(WeightsError, match=key):
        TransformerConfig.from_dict({**section("19B"), key: value})


def test_missing_caption_width_is_named() -> None:
    config = section("19B")
    del config["caption_channels"]
    with pytest.raises(WeightsError, match="caption_channels"):
        TransformerConfig.from_dict(config)
    assert TransformerConfig.from_dict({**config, "caption_proj_before_connector": True}).video.caption_channels is None


def test_absent_keys_take_the_documented_fallbacks() -> None:
    config = TransformerConfig.from_dict({"caption_proj_before_connector": True})
    assert (config.layers, config.video.dim, config.audio.dim, config.cross_rope_dim) == (
        48,
        4096,
        2048,
        2048,
    )
    assert config.rope == RopeConfig(10000.0, "split", "float32")
    assert (config.timestep_scale, config.gate_timestep_scale) == (1000, 1)
    assert not config.gated and not config.modulated_text


def test_a_build_needs_a_stream() -> None:
    with pytest.raises(ValueError, match="stream"):
        TransformerConfig.from_dict(section("19B"), video=False, audio=False)


# --- Layers ---


def test_feed_forward_in_pieces_is_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    layer, x = FeedForward(8), mx.random.normal((2, 11, 8), key=mx.random.key(0))
    want = layer(x)
    monkeypatch.setattr(feed_forward, "ROWS", 4)
    assert mx.allclose(layer(x), want, rtol=1e-6, atol=1e-6)


def test_attention_gates_of_zero_change_nothing() -> None:
    layer, x = Attention(8, 6, 2, 4, gated=True), mx.random.normal((1, 3, 8), key=mx.random.key(1))
    context = mx.random.normal((1, 5, 6), key=mx.random.key(2))
    layer.to_gate_logits.weight = mx.zeros_like(layer.to_gate_logits.weight)
    layer.to_gate_logits.bias = mx.zeros_like(layer.to_gate_logits.bias)
    plain = Attention(8, 6, 2, 4)
    plain.load_weights([(k, v) for k, v in tree_flatten(layer.parameters()) if "gate" not in k])
    assert mx.allclose(layer(x, context), plain(x, context), atol=1e-6)
    assert mx.array_equal(layer(x, context), layer.attend(x, layer.keys_values(context)))


def test_skipped_attention_is_the_value_projection() -> None:
    layer, x = Attention(8, 8, 2, 4), mx.random.normal((2, 3, 8), key=mx.random.key(3))
    want = layer.to_out[0](layer.to_v(x))
    assert mx.allclose(layer(x, skip=True), want, atol=1e-6)
    some = layer(x, skip=mx.array([True, False]))
    assert mx.allclose(some[0], want[0], atol=1e-6) and mx.allclose(some[1], layer(x)[1], atol=1e-6)


def rope_of(positions: np.ndarray, dim: int, heads: int, **config):
    limits = [20, 2048, 2048][: positions.shape[1]]
    return build_rope(positions, dim=dim, heads=heads, max_positions=limits, config=RopeConfig(**config))


def test_video_rope_leaves_two_pairs_of_the_first_head_unrotated() -> None:
    rope = rope_of(midpoints(video_positions((2, 1, 2), 24.0)), 4096, 32)
    assert rope.cos.shape == (1, 4, 32, 1, 64) and rope.sin.shape == (1, 4, 32, 2, 64)
    cos, sin = np.array(rope.cos)[0, :, :, 0], np.array(rope.sin)[0, :, :, 1]
    assert (cos[:, 0, :2] == 1).all() and (sin[:, 0, :2] == 0).all()
    # The first rotated pair is the lowest frequency on the time axis: pi/2 * (2*seconds/20 - 1).
    angle = np.pi / 2 * (2 * (0.5 / 24) / 20 - 1)
    assert abs(cos[0, 0, 2] - np.cos(angle)) < 1e-6 and abs(sin[0, 0, 2] - np.sin(angle)) < 1e-6


def test_rope_keeps_lengths_and_depends_on_distance_only() -> None:
    q, k = (mx.random.normal((1, 1, 2, 8), key=mx.random.key(i)) for i in range(2))
    for layout in ("split", "interleaved"):
        products = []
        for shift in (0.0, 3.0):
            rq, rk = (rope_of(np.full((1, 1, 1), p + shift), 16, 2, theta=10.0, layout=layout) for p in (1.0, 2.5))
            products.append(np.array((rq(q) * rk(k)).sum(-1)))
            assert np.allclose(np.linalg.norm(np.array(rq(q))), np.linalg.norm(np.array(q)), rtol=1e-5)
        assert np.allclose(*products, atol=1e-5)


def test_rope_shares_equal_positions_of_a_batch() -> None:
    positions = midpoints(audio_positions(4))
    assert rope_of(np.repeat(positions, 3, 0), 16, 2).cos.shape[0] == 1
    assert rope_of(np.concatenate([positions, positions + 1]), 16, 2).cos.shape[0] == 2
    with pytest.raises(ValueError, match="axes"):
        build_rope(positions, dim=16, heads=2, max_positions=[1, 2], config=RopeConfig())


def test_frequencies_span_the_ratio() -> None:
    for precision in ("float64", "float32"):
        grid = frequencies(10000.0, 682, precision)
        assert grid.dtype == np.float32 and abs(grid[0] - np.pi / 2) < 1e-6
        assert abs(grid[-1] / grid[0] - 10000) < 0.1 and (np.diff(grid) > 0).all()


def test_case_names_are_unique() -> None:
    names = [c.name for c in CASES + CASES_120]
    assert len(set(names)) == len(names)


def test_gelu_is_rounded_once() -> None:
    x = mx.linspace(-6, 6, 1001)
    want = np.array(nn.gelu_approx(x), np.float64)
    assert relative_error(np.array(gelu_tanh(x)), want) < 1e-6
    narrow = gelu_tanh(x.astype(mx.bfloat16))
    assert narrow.dtype == mx.bfloat16
    exact = nn.gelu_approx(x.astype(mx.bfloat16).astype(mx.float32)).astype(mx.bfloat16)
    assert relative_error(as_numpy(narrow), as_numpy(exact)) < 1e-4
