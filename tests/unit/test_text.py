"""Text networks: full-size shapes, config rules, projections and connectors."""

from __future__ import annotations

import math
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
from mlx.utils import tree_flatten

from mlx_ltx2.errors import RequestError, WeightsError
from mlx_ltx2.models.text import TextProjections, TextProjectionsConfig
from mlx_ltx2.models.text.gemma import build_gemma, gemma_args, hidden_states
from mlx_ltx2.models.text.projections import normalize_by_range, normalize_by_rms
from tests.cases import Case, as_numpy, built, load_official, run_mlx
from tests.cases.text import CASES, GEMMA, PER_STREAM, SHARED

LTX_2: dict[str, Any] = {
    "caption_channels": 3840,
    "num_attention_heads": 32,
    "attention_head_dim": 128,
    "audio_num_attention_heads": 32,
    "audio_attention_head_dim": 64,
    "rope_type": "split",
    "frequencies_precision": "float64",
    "use_embeddings_connector": True,
    "connector_norm_output": True,
    "connector_num_layers": 2,
    "connector_num_attention_heads": 30,
    "connector_attention_head_dim": 128,
    "connector_num_learnable_registers": 128,
    "connector_positional_embedding_max_pos": [4096],
}
LTX_2_3: dict[str, Any] = {
    **LTX_2,
    "caption_proj_before_connector": True,
    "caption_projection_first_linear": False,
    "caption_projection_second_linear": False,
    "caption_proj_input_norm": False,
    "connector_num_layers": 8,
    "connector_num_attention_heads": 32,
    "audio_connector_num_attention_heads": 32,
    "audio_connector_attention_head_dim": 64,
    "connector_apply_gated_attention": True,
}
GEMMA_12B: dict[str, Any] = {
    "model_type": "gemma3",
    "text_config": {
        "model_type": "gemma3_text",
        "hidden_size": 3840,
        "intermediate_size": 15360,
        "num_attention_heads": 16,
        "num_hidden_layers": 48,
        "num_key_value_heads": 8,
        "rope_scaling": {"factor": 8.0, "rope_type": "linear"},
        "sliding_window": 1024,
    },
}
"""The released config.json leaves the rest to transformers' defaults."""


def projections(config: dict[str, Any]) -> TextProjections:
    return TextProjections(TextProjectionsConfig.from_dict(config))


def shapes(module: nn.Module) -> dict[str, tuple[int, ...]]:
    return {name: tuple(value.shape) for name, value in tree_flatten(module.parameters())}


# Full-size shapes, never evaluated


def count(tree: dict[str, tuple[int, ...]], start: str) -> tuple[int, int]:
    found = [math.prod(shape) for name, shape in tree.items() if name.startswith(start)]
    return len(found), sum(found)


def test_ltx_2_tree() -> None:
    tree = shapes(projections(LTX_2))
    assert tree["text_embedding_projection.aggregate_embed.weight"] == (3840, 188160)
    assert count(tree, "text_embedding_projection.") == (1, 722_534_400)
    for stream in ("video", "audio"):
        at = f"{stream}_embeddings_connector."
        assert count(tree, at) == (29, 354_470_400)
        assert tree[f"{at}learnable_registers"] == (128, 3840)
        assert tree[f"{at}transformer_1d_blocks.1.attn1.to_out.0.weight"] == (3840, 3840)
        assert tree[f"{at}transformer_1d_blocks.0.ff.net.0.proj.weight"] == (15360, 3840)
        assert tree[f"{at}transformer_1d_blocks.0.ff.net.2.weight"] == (3840, 15360)
    assert len(tree) == 1 + 2 * 29


def test_ltx_2_3_tree() -> None:
    tree = shapes(projections(LTX_2_3))
    assert count(tree, "text_embedding_projection.video") == (2, 770_707_456)
    assert count(tree, "text_embedding_projection.audio") == (2, 385_353_728)
    assert count(tree, "video_embeddings_connector.") == (129, 1_612_546_304)
    assert count(tree, "audio_embeddings_connector.") == (129, 403_620_096)
    assert tree["audio_embeddings_connector.learnable_registers"] == (128, 2048)
    assert tree["audio_embeddings_connector.transformer_1d_blocks.7.attn1.to_gate_logits.weight"] == (
        32,
        2048,
    )
    assert len(tree) == 4 + 2 * 129


def test_gemma_12b_tree() -> None:
    model = build_gemma(gemma_args(GEMMA_12B))
    tree = shapes(model)
    layer = "model.layers.47."
    assert tree["model.embed_tokens.weight"] == (262208, 3840)
    assert tree[f"{layer}self_attn.q_proj.weight"] == (4096, 3840)
    assert tree[f"{layer}self_attn.k_proj.weight"] == (2048, 3840)
    assert tree[f"{layer}self_attn.o_proj.weight"] == (3840, 4096)
    assert tree[f"{layer}self_attn.q_norm.weight"] == (256,)
    assert tree[f"{layer}mlp.down_proj.weight"] == (3840, 15360)
    assert len(tree) == 2 + 48 * 13
    kinds = [layer.self_attn.is_sliding for layer in model.layers]
    assert kinds == [(index + 1) % 6 != 0 for index in range(48)]
    assert model.layers[5].self_attn.rope.scale == 1 / 8 and model.layers[5].self_attn.rope.base == 1e6
    assert model.layers[0].self_attn.rope.scale == 1 and model.layers[0].self_attn.rope.base == 1e4


# Config


def test_the_feature_extractor_needs_all_four_keys() -> None:
    assert not TextProjectionsConfig.from_dict(LTX_2).per_stream
    assert TextProjectionsConfig.from_dict(LTX_2_3).per_stream
    for key in ("caption_proj_before_connector", "caption_proj_input_norm"):
        with pytest.raises(WeightsError, match="feature extractor"):
            TextProjectionsConfig.from_dict({k: v for k, v in LTX_2_3.items() if k != key})
        with pytest.raises(WeightsError, match="feature extractor"):
            TextProjectionsConfig.from_dict({**LTX_2_3, key: not LTX_2_3[key]})


def test_fallbacks_of_absent_keys() -> None:
    config = TextProjectionsConfig.from_dict({})
    assert (config.width, config.num_states) == (3840, 49)
    assert config.video == config.audio
    assert (config.video.heads, config.video.head_dim, config.video.num_layers) == (30, 128, 2)
    assert (config.video.max_position, config.video.num_registers, config.video.gated) == (1, 128, False)
    assert (config.video.rope.layout, config.video.rope.frequencies_precision) == ("split", "float32")
    audio = TextProjectionsConfig.from_dict(LTX_2_3).audio
    assert (audio.num_layers, audio.dim) == (8, 2048)


@pytest.mark.parametrize(
    "change",
    [
        {"rope_type": "spiral"},
        {"connector_norm_output": False},
        {"connector_ff_bias": False},
        {"connector_attention_head_dim": 64},
        {"connector_positional_embedding_max_pos": [20, 2048]},
    ],
    ids=str,
)
def test_unknown_projection_configs_are_refused(change: dict[str, Any]) -> None:
    with pytest.raises(WeightsError):
        TextProjectionsConfig.from_dict({**LTX_2, **change})


@pytest.mark.parametrize(
    "change",
    [
        {"model_type": "llama"},
        {"model_type": "gemma3"},
        {"hidden_activation": "relu"},
        {"attn_logit_softcapping": 50.0},
        {"rope_scaling": {"rope_type": "yarn", "factor": 8.0}},
        {"layer_types": ["full_attention", "sliding_attention"] * 3 + ["sliding_attention"]},
        {"layer_types": ["sliding_attention"] * 3},
    ],
    ids=str,
)
def test_other_text_models_are_refused(change: dict[str, Any]) -> None:
    with pytest.raises(WeightsError):
        gemma_args({**GEMMA, **change})


def test_both_spellings_of_a_gemma_config_mean_the_same() -> None:
    flat = {**GEMMA, "sliding_window_pattern": 3, "rope_theta": 5e5, "rope_local_base_freq": 2e4}
    nested = {key: value for key, value in GEMMA.items() if key != "rope_scaling"} | {
        "layer_types": [("full" if i % 3 == 2 else "sliding") + "_attention" for i in range(7)],
        "rope_parameters": {
            "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 5e5},
            "sliding_attention": {"rope_type": "default", "rope_theta": 2e4},
        },
    }
    assert gemma_args(flat) == gemma_args(nested)


# Networks


def test_embedding_scale_rounds_with_the_dtype() -> None:
    """sqrt(3840) = 61.97 is 62 in bfloat16."""
    args = gemma_args({**GEMMA, "hidden_size": 3840, "num_hidden_layers": 0, "vocab_size": 4})
    model = build_gemma(args)
    model.model.embed_tokens.weight = mx.ones((4, 3840))
    for dtype, want in ((mx.float32, math.sqrt(3840)), (mx.bfloat16, 62.0)):
        model.set_dtype(dtype)
        seen: list[mx.array] = []
        hidden_states(model, mx.array([[2]]), lambda _, state: seen.append(state))
        assert seen[0].dtype == dtype
        assert seen[0][0, 0, 0].item() == pytest.approx(want, rel=1e-7)


def test_slots_behind_the_prompt_hold_registers() -> None:
    """Without blocks the connector shows its input, normalised."""
    module = projections({**SHARED, "connector_num_layers": 0})
    registers = mx.random.normal((128, 24), key=mx.random.key(1))
    module.video_embeddings_connector.learnable_registers = registers
    features = mx.random.normal((1, 130, 24), key=mx.random.key(2))
    got = as_numpy(module.video_embeddings_connector(features, 384))[0]
    want = np.concatenate([as_numpy(features)[0], np.tile(as_numpy(registers), (3, 1))[130:]])
    want /= np.sqrt((want**2).mean(-1, keepdims=True) + 1e-6)
    np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-6)


def test_feature_order_is_channel_major() -> None:
    hidden = mx.random.normal((1, 5, 3, 4), key=mx.random.key(0)) + mx.arange(4)
    x = as_numpy(hidden)
    mean, spread = x.mean(axis=(1, 2), keepdims=True), np.ptp(x, axis=(1, 2), keepdims=True)
    got = as_numpy(normalize_by_range(hidden))
    np.testing.assert_allclose(got, (8 * (x - mean) / spread).reshape(1, 5, 12), rtol=1e-4, atol=1e-5)
    got = as_numpy(normalize_by_rms(hidden))
    want = x / np.sqrt((x**2).mean(axis=2, keepdims=True))
    np.testing.assert_allclose(got, want.reshape(1, 5, 12), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("config", [SHARED, PER_STREAM], ids=("2.0", "2.3"))
def test_shapes_and_dtypes(config: dict[str, Any]) -> None:
    case = next(case for case in CASES if case.config == config and case.record)
    _, weights = built(case)
    for dtype in (mx.float32, mx.bfloat16):
        module = load_official(projections(config), weights, dtype)
        context = module(mx.ones((1, 3, 24, 5)), length=256)
        assert context.video.dtype == context.audio.dtype == dtype
        assert context.video.shape == (1, 256, module.config.video.dim)
        assert context.audio.shape == (1, 256, module.config.audio.dim)


def test_prompts_that_do_not_fit_are_refused() -> None:
    module = projections(SHARED)
    with pytest.raises(RequestError, match="at most 128"):
        module(mx.ones((1, 129, 24, 5)), length=128)
    with pytest.raises(RequestError, match="multiple of 128"):
        module(mx.ones((1, 3, 24, 5)), length=200)
    for shape in ((1, 3, 32, 5), (1, 3, 24, 6), (2, 3, 24, 5)):
        with pytest.raises(WeightsError, match="do not fit"):
            module(mx.ones(shape), length=128)


@pytest.mark.parametrize("case", [case for case in CASES if case.record], ids=lambda case: case.name)
def test_cases_run_and_repeat(case: Case) -> None:
    first, second = run_mlx(case), run_mlx(case)
    assert all(np.array_equal(first[name], second[name]) for name in first)
