"""Tokenizer rules, loading of a Gemma folder, full-size shapes, connectors."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from mlx.utils import tree_flatten

from mlx_ltx2.demo.tiny_gemma import BOS, EOS, write_tiny_gemma
from mlx_ltx2.errors import RequestError, WeightsError
from mlx_ltx2.models.text import PromptTokenizer, TextProjections, TextProjectionsConfig
from mlx_ltx2.models.text.gemma import build_gemma, gemma_args, hidden_states
from mlx_ltx2.models.text.projections import normalize_by_range, normalize_by_rms
from mlx_ltx2.states import PromptTokens
from mlx_ltx2.weights.text_encoder import check_text_encoder, load_text_encoder
from tests.cases import Case, as_numpy, built, load_official, relative_error, run_mlx
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


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_gemma(tmp_path_factory.mktemp("gemma"), words=("red", "kite", "beach"))


@pytest.fixture
def copy(folder: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(folder, tmp_path / "copy"))


@pytest.fixture(scope="module")
def tokenizer(folder: Path) -> PromptTokenizer:
    return PromptTokenizer.from_folder(folder)


def projections(config: dict[str, Any]) -> TextProjections:
    return TextProjections(TextProjectionsConfig.from_dict(config))


def shapes(module: nn.Module) -> dict[str, tuple[int, ...]]:
    return {name: tuple(value.shape) for name, value in tree_flatten(module.parameters())}


def edit_config(folder: Path, **text: Any) -> None:
    config = json.loads((folder / "config.json").read_text())
    config["text_config"] |= text
    (folder / "config.json").write_text(json.dumps(config))


def rewrite(folder: Path, change) -> None:
    weights = mx.load(str(folder / "model.safetensors"))
    mx.eval(weights)
    mx.save_safetensors(str(folder / "model.safetensors"), change(dict(weights)))


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


# Tokenizer


def test_bos_once_and_no_eos(tokenizer: PromptTokenizer) -> None:
    for prompt in ("a red kite", "<bos>a red kite", "<bos><bos> a red kite"):
        ids = tokenizer(prompt).ids
        assert ids[0] == BOS and ids.count(BOS) == 1 and EOS not in ids


def test_whitespace_around_the_prompt_is_nothing(tokenizer: PromptTokenizer) -> None:
    assert tokenizer("\n  a red kite \t").ids == tokenizer("a red kite").ids
    assert tokenizer("a  red").ids != tokenizer("a red").ids


@pytest.mark.parametrize("prompt", ["", "   ", "\n\t"])
def test_an_empty_prompt_is_refused(tokenizer: PromptTokenizer, prompt: str) -> None:
    with pytest.raises(RequestError, match="empty"):
        tokenizer(prompt)


def test_what_does_not_fit_is_cut_and_counted(tokenizer: PromptTokenizer) -> None:
    assert tokenizer("x" * 1023) == PromptTokens(tokenizer("x" * 1023).ids, 0)
    tokens = tokenizer("x" * 1030)
    assert (len(tokens.ids), tokens.cut) == (1024, 7)
    assert tokens.ids == tokenizer("x" * 1023).ids


def test_truncation_and_padding_of_the_file_do_not_count(copy: Path, tokenizer: PromptTokenizer) -> None:
    from tokenizers import Tokenizer

    stored = Tokenizer.from_file(str(copy / "tokenizer.json"))
    stored.enable_truncation(4)
    stored.enable_padding(length=32)
    stored.save(str(copy / "tokenizer.json"))
    assert PromptTokenizer.from_folder(copy)("a red kite over") == tokenizer("a red kite over")


@settings(max_examples=40, deadline=None, database=None)
@given(text=st.text(min_size=1).filter(lambda text: text.strip() and "▁" not in text and "<" not in text))
def test_any_text_has_tokens_and_comes_back(tokenizer: PromptTokenizer, text: str) -> None:
    assert tokenizer.decode(tokenizer(text, limit=100_000).ids) == text.strip()


def test_chat_template(tokenizer: PromptTokenizer) -> None:
    ids = tokenizer.chat(" be brief\n", "red kite ")
    assert ids[0] == BOS and ids.count(BOS) == 1 and ids.count(tokenizer.end_of_turn_id) == 1
    assert tokenizer.decode(ids) == "user\nbe brief\n\nred kite\nmodel\n"


def test_missing_and_foreign_tokenizers_are_refused(copy: Path) -> None:
    path = copy / "tokenizer.json"
    text = path.read_text()
    path.write_text(text.replace("<bos>", "<s>"))
    with pytest.raises(WeightsError, match="no token <bos>"):
        load_text_encoder(copy)
    path.write_text("{}")
    with pytest.raises(WeightsError, match="cannot be read"):
        load_text_encoder(copy)
    path.unlink()
    for load in (load_text_encoder, check_text_encoder):
        with pytest.raises(WeightsError, match=r"neither tokenizer\.json nor tokenizer\.model"):
            load(copy)


def test_a_tokenizer_of_another_size_is_refused(
    tokenizer: PromptTokenizer, copy: Path, tmp_path: Path
) -> None:
    rows = tokenizer.ids_end
    tokenizer.check_fits(rows, "x")
    tokenizer.check_fits(rows + 63, "x")
    with pytest.raises(WeightsError, match="another model"):
        tokenizer.check_fits(rows + 65, "x")
    with pytest.raises(WeightsError, match="different models"):
        tokenizer.check_fits(rows - 1, "x")
    larger = write_tiny_gemma(tmp_path / "larger", words=("red", "kite", "beach", "sun"))
    shutil.copy(larger / "tokenizer.json", copy / "tokenizer.json")
    with pytest.raises(WeightsError, match="different models"):
        load_text_encoder(copy)


# Loading


def states(folder: Path, prompt: str = "a red kite over the beach") -> np.ndarray:
    encoder = load_text_encoder(folder)
    return as_numpy(encoder.states(encoder.tokenize(prompt)))


def test_check_reads_what_load_builds(folder: Path) -> None:
    info, encoder = check_text_encoder(folder, 64, 7), load_text_encoder(folder, 64, 7)
    assert (
        (info.width, info.layers, info.quantized) == (encoder.width, encoder.layers, False) == (64, 7, False)
    )
    assert info.num_bytes == sum(p.nbytes for _, p in tree_flatten(encoder.model.parameters()))


def test_two_prompts_differ(folder: Path) -> None:
    first, second = states(folder, "red kite"), states(folder, "beach kite")
    assert first.shape == second.shape == (1, 3, 64, 8)
    assert not np.array_equal(first, second)
    np.testing.assert_allclose(first[:, 0], second[:, 0], rtol=1e-5, atol=1e-6)  # BOS sees nothing but itself


def test_later_tokens_do_not_reach_back(folder: Path) -> None:
    short, long = states(folder, "red kite"), states(folder, "red kite" + " beach" * 40)
    np.testing.assert_allclose(long[:, : short.shape[1]], short, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("load", [load_text_encoder, check_text_encoder], ids=("load", "check"))
def test_wrong_size_is_refused(folder: Path, load) -> None:
    with pytest.raises(WeightsError, match="hidden_size is 64 and the checkpoint needs 3840"):
        load(folder, 3840, 48)
    with pytest.raises(WeightsError, match="num_hidden_layers is 7"):
        load(folder, 64, 48)


@pytest.mark.parametrize("prefix", ["model.language_model.", "model."])
def test_names_of_other_writers(copy: Path, folder: Path, prefix: str) -> None:
    def rename(weights: dict[str, mx.array]) -> dict[str, mx.array]:
        renamed = {k.replace("language_model.model.", prefix): v for k, v in weights.items()}
        return renamed | {f"{p}x.weight": mx.zeros((2,)) for p in ("vision_tower.", "multi_modal_projector.")}

    rewrite(copy, rename)
    np.testing.assert_array_equal(states(copy), states(folder))


def test_output_head_is_left_aside(copy: Path, folder: Path) -> None:
    rewrite(copy, lambda weights: weights | {"language_model.lm_head.weight": mx.zeros((2, 2))})
    np.testing.assert_array_equal(states(copy), states(folder))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda w: {k: v for k, v in w.items() if "layers.3.mlp.up" not in k},
            "missing model.layers.3.mlp.up_proj.w",
        ),
        (
            lambda w: w | {"language_model.model.extra.weight": mx.zeros((1,))},
            "unexpected model.extra.weight",
        ),
        (lambda w: w | {"decoder.weight": mx.zeros((1,))}, "unexpected tensors decoder.weight"),
        (
            lambda w: w | {"language_model.model.norm.weight": mx.zeros((5,))},
            r"norm.weight \(5,\) instead of \(64,\)",
        ),
        (lambda w: w | {"model.norm.weight": mx.zeros((64,))}, "stored twice"),
        (lambda w: {"vision_tower.x": mx.zeros((1,))}, "missing"),
    ],
    ids=("missing", "extra", "foreign", "shape", "twice", "vision only"),
)
def test_tensors_must_match_both_ways(copy: Path, change, message: str) -> None:
    rewrite(copy, change)
    for load in (load_text_encoder, check_text_encoder):
        with pytest.raises(WeightsError, match=message):
            load(copy)


def test_more_or_fewer_layers_than_config_says(copy: Path) -> None:
    edit_config(copy, num_hidden_layers=6)
    with pytest.raises(WeightsError, match="unexpected"):
        load_text_encoder(copy)
    edit_config(copy, num_hidden_layers=8)
    with pytest.raises(WeightsError, match="missing"):
        load_text_encoder(copy)


def test_missing_and_damaged_files(copy: Path) -> None:
    weights, config = copy / "model.safetensors", copy / "config.json"
    data = weights.read_bytes()
    weights.write_bytes(data[:-100])
    with pytest.raises(WeightsError, match="truncated"):
        load_text_encoder(copy)
    weights.unlink()
    with pytest.raises(WeightsError, match=r"no \.safetensors"):
        load_text_encoder(copy)
    (copy / "model.safetensors.index.json").write_text(
        json.dumps({"weight_map": {"a": "model-1.safetensors"}})
    )
    with pytest.raises(WeightsError, match=r"model-1\.safetensors"):
        load_text_encoder(copy)
    (copy / "model.safetensors.index.json").write_text("[]")
    with pytest.raises(WeightsError, match=r"index\.json"):
        load_text_encoder(copy)
    config.write_text("{")
    with pytest.raises(WeightsError, match="no JSON"):
        load_text_encoder(copy)
    config.unlink()
    with pytest.raises(WeightsError, match=r"config\.json"):
        load_text_encoder(copy)
    with pytest.raises(WeightsError):
        load_text_encoder(copy / "nowhere")


def test_shards_with_an_index(copy: Path, folder: Path) -> None:
    weights = mx.load(str(copy / "model.safetensors"))
    names = sorted(weights)
    parts = {"model-1.safetensors": names[::2], "model-2.safetensors": names[1::2]}
    for file, part in parts.items():
        mx.save_safetensors(str(copy / file), {name: weights[name] for name in part})
    (copy / "model.safetensors").rename(copy / "consolidated.safetensors")
    index = {"weight_map": {name: file for file, part in parts.items() for name in part}}
    (copy / "model.safetensors.index.json").write_text(json.dumps(index))
    np.testing.assert_array_equal(states(copy), states(folder))


def test_float16_is_loaded_as_bfloat16(copy: Path) -> None:
    rewrite(copy, lambda weights: {k: v.astype(mx.float16) for k, v in weights.items()})
    dtypes = {p.dtype for _, p in tree_flatten(load_text_encoder(copy).model.parameters())}
    assert dtypes == {mx.bfloat16}


@pytest.mark.parametrize(
    ("bits", "group_size", "mode"), [(4, 64, "affine"), (8, 32, "affine"), (4, 32, "mxfp4")]
)
def test_quantized_folders(copy: Path, folder: Path, bits: int, group_size: int, mode: str) -> None:
    """As mlx-community writes them, one layer with bits of its own."""
    encoder = load_text_encoder(copy)

    def packing(path: str, layer: nn.Module) -> bool | dict[str, Any]:
        if path.endswith("layers.2.mlp.up_proj"):
            return {"group_size": 32, "bits": 8, "mode": "affine"}
        return hasattr(layer, "to_quantized")

    nn.quantize(encoder.model, group_size, bits, mode=mode, class_predicate=packing)
    packed = {f"language_model.{name}": p for name, p in tree_flatten(encoder.model.parameters())}
    want = as_numpy(encoder.states(encoder.tokenize("a red kite")))
    mx.save_safetensors(str(copy / "model.safetensors"), packed)
    config = json.loads((copy / "config.json").read_text())
    config["quantization"] = {"group_size": group_size, "bits": bits, "mode": mode}
    (copy / "config.json").write_text(json.dumps(config))
    assert check_text_encoder(copy, 64, 7).quantized
    np.testing.assert_array_equal(states(copy, "a red kite"), want)
    assert 0 < relative_error(want[..., -1], states(folder, "a red kite")[..., -1]) < 0.8


def test_states_are_announced_layer_by_layer(folder: Path) -> None:
    encoder, seen = load_text_encoder(folder), []

    def on_layer(index: int, state: mx.array) -> None:
        mx.eval(state)
        seen.append((index, state))

    result = encoder.states(encoder.tokenize("red kite"), on_layer)
    assert [index for index, _ in seen] == list(range(8))
    for index, state in seen:
        np.testing.assert_array_equal(as_numpy(state), as_numpy(result[..., index]))


def test_tiny_folders_repeat(tmp_path: Path, folder: Path) -> None:
    again = write_tiny_gemma(tmp_path / "again", words=("red", "kite", "beach"))
    other = write_tiny_gemma(tmp_path / "other", words=("red", "kite", "beach"), seed=1)
    for name in ("config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"):
        assert (again / name).read_bytes() == (folder / name).read_bytes()
    assert (other / "model.safetensors").read_bytes() != (folder / "model.safetensors").read_bytes()


def test_tiny_folder_in_bfloat16(tmp_path: Path, folder: Path) -> None:
    half = write_tiny_gemma(tmp_path, words=("red", "kite", "beach"), dtype="BF16")
    weights, full = mx.load(str(half / "model.safetensors")), mx.load(str(folder / "model.safetensors"))
    assert all(mx.array_equal(weights[name], full[name].astype(mx.bfloat16)) for name in full)
    encoder = load_text_encoder(half)
    result = encoder.states(encoder.tokenize("red kite"))
    assert result.dtype == mx.bfloat16
    assert relative_error(as_numpy(result), states(folder, "red kite")) < 5e-2


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
