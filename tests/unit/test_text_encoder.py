"""Text encoder: the tokenizer's rules and the loading of Gemma folders."""

from __future__ import annotations

import json
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
from mlx_ltx2.models.text import PromptTokenizer
from mlx_ltx2.states import PromptTokens
from mlx_ltx2.weights.text_encoder import check_text_encoder, load_text_encoder
from tests.cases import as_numpy, relative_error


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_gemma(tmp_path_factory.mktemp("gemma"), words=("red", "kite", "beach"))


@pytest.fixture
def copy(folder: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(folder, tmp_path / "copy"))


@pytest.fixture(scope="module")
def tokenizer(folder: Path) -> PromptTokenizer:
    return PromptTokenizer.from_folder(folder)


def edit_config(folder: Path, **text: Any) -> None:
    config = json.loads((folder / "config.json").read_text())
    config["text_config"] |= text
    (folder / "config.json").write_text(json.dumps(config))


def rewrite(folder: Path, change) -> None:
    weights = mx.load(str(folder / "model.safetensors"))
    mx.eval(weights)
    mx.save_safetensors(str(folder / "model.safetensors"), change(dict(weights)))


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


def test_a_tokenizer_of_another_size_is_refused(tokenizer: PromptTokenizer, copy: Path, tmp_path: Path) -> None:
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
    assert (info.width, info.layers, info.quantized) == (encoder.width, encoder.layers, False) == (64, 7, False)
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
    (copy / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": "model-1.safetensors"}}))
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


@pytest.mark.parametrize(("bits", "group_size", "mode"), [(4, 64, "affine"), (8, 32, "affine"), (4, 32, "mxfp4")])
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
