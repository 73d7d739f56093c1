"""Gemma against transformers, projections against ltx-core and diffusers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
import torch
from ltx_core.text_encoders.gemma.embeddings_connector import (
    AudioEmbeddings1DConnectorConfigurator,
    Embeddings1DConnectorConfigurator,
)
from ltx_core.text_encoders.gemma.embeddings_processor import EmbeddingsProcessor
from ltx_core.text_encoders.gemma.feature_extractor import FeatureExtractorV1, FeatureExtractorV2

from mlx_ltx2.demo.tiny_gemma import write_tiny_gemma
from mlx_ltx2.weights.text_encoder import load_text_encoder
from tests.cases import (
    Arrays,
    Case,
    built,
    load_official,
    official_weights,
    relative_error,
    run_mlx,
    worst_error,
)
from tests.cases.text import CASES, GEMMA

GEMMA_CASES = [case for case in CASES if case.network == "Gemma 3"]
PROJECTION_CASES = [case for case in CASES if case.network == "Text projections"]
LTX_CORE, DIFFUSERS, TRANSFORMERS = "ltx-core 1.0.0", "diffusers 0.42.1", "transformers"
PADDING = 11


def by_name(case: Case) -> str:
    return case.name


def torch_state(weights: Arrays, renames: dict[str, str]) -> dict[str, torch.Tensor]:
    """Weights under the reference's names: the first prefix of `renames` that fits is exchanged."""
    state = {}
    for name, value in weights.items():
        old = next(prefix for prefix in renames if name.startswith(prefix))
        state[renames[old] + name.removeprefix(old)] = torch.from_numpy(np.ascontiguousarray(value))
    return state


def padded_left(ids: np.ndarray, padding: int) -> dict[str, torch.Tensor]:
    pads = np.zeros((1, padding), np.int64)
    mask = np.concatenate([pads, np.ones_like(ids)], 1)
    return {
        "input_ids": torch.from_numpy(np.concatenate([pads, ids.astype(np.int64)], 1)),
        "attention_mask": torch.from_numpy(mask.astype(np.int64)),
    }


@torch.no_grad()
def gemma_reference(case: Case, padding: int = PADDING) -> Arrays:
    """States of the real tokens from transformers, the prompt padded on the left as official code does."""
    from transformers import Gemma3TextConfig, Gemma3TextModel

    model = Gemma3TextModel(Gemma3TextConfig(**case.config)).eval()
    weights = official_weights(case.build(case.config), case.seed)
    model.load_state_dict(torch_state(weights, {"model.": ""}), strict=True)
    given = padded_left(case.inputs(case.rng())["ids"], padding)
    states = model(**given, output_hidden_states=True).hidden_states
    return {f"state {i}": state[:, padding:].numpy() for i, state in enumerate(states)}


def padded_hidden(case: Case) -> tuple[torch.Tensor, torch.Tensor]:
    """States and mask with arbitrary rows for the pads on the left."""
    hidden = case.inputs(case.rng())["hidden"]
    padding = case.options["length"] - hidden.shape[1]
    rows = np.random.default_rng(1).standard_normal((1, padding, *hidden.shape[2:]), dtype=np.float32)
    mask = np.concatenate([np.zeros((1, padding)), np.ones((1, hidden.shape[1]))], 1)
    return torch.from_numpy(np.concatenate([50 * rows, hidden], 1)), torch.from_numpy(mask.astype(np.int64))


def ltx_core_module(config: dict[str, Any]) -> EmbeddingsProcessor:
    width = config["caption_channels"]
    flat = width * (config["text_encoder_num_layers"] + 1)
    whole = {"transformer": config}
    video = Embeddings1DConnectorConfigurator.from_config(whole)
    audio = AudioEmbeddings1DConnectorConfigurator.from_config(whole)
    if "caption_proj_before_connector" in config:
        extractor = FeatureExtractorV2(
            torch.nn.Linear(flat, video.inner_dim), width, torch.nn.Linear(flat, audio.inner_dim)
        )
    else:
        extractor = FeatureExtractorV1(torch.nn.Linear(flat, width, bias=False), is_av=True)
    return EmbeddingsProcessor(feature_extractor=extractor, video_connector=video, audio_connector=audio)


@torch.no_grad()
def projections_reference(case: Case) -> Arrays:
    module = ltx_core_module(case.config).float().eval()
    renames = {
        "text_embedding_projection.": "feature_extractor.",
        "video_embeddings_connector.": "video_connector.",
        "audio_embeddings_connector.": "audio_connector.",
    }
    weights = official_weights(case.build(case.config), case.seed)
    module.load_state_dict(torch_state(weights, renames), strict=True)
    hidden, mask = padded_hidden(case)
    out = module.process_hidden_states(hidden, mask, "left")
    return {"video": out.video_encoding.numpy(), "audio": out.audio_encoding.numpy()}


@torch.no_grad()
def diffusers_projections(case: Case) -> Arrays:
    from diffusers.pipelines.ltx2.connectors import LTX2TextConnectors

    config = case.config
    per_stream = "caption_proj_before_connector" in config
    heads, head_dim = config["connector_num_attention_heads"], config["connector_attention_head_dim"]
    layers, gated = (
        config.get("connector_num_layers", 2),
        config.get("connector_apply_gated_attention", False),
    )
    module = LTX2TextConnectors(
        caption_channels=config["caption_channels"],
        text_proj_in_factor=config["text_encoder_num_layers"] + 1,
        video_connector_num_attention_heads=heads,
        video_connector_attention_head_dim=head_dim,
        video_connector_num_layers=layers,
        video_gated_attn=gated,
        audio_connector_num_attention_heads=config.get("audio_connector_num_attention_heads", heads),
        audio_connector_attention_head_dim=config.get("audio_connector_attention_head_dim", head_dim),
        audio_connector_num_layers=config.get("audio_connector_num_layers", layers),
        audio_gated_attn=gated,
        connector_rope_base_seq_len=config["connector_positional_embedding_max_pos"][0],
        rope_double_precision=config["frequencies_precision"] == "float64",
        rope_type=config["rope_type"],
        per_modality_projections=per_stream,
        video_hidden_dim=config["num_attention_heads"] * config["attention_head_dim"],
        audio_hidden_dim=config["audio_num_attention_heads"] * config["audio_attention_head_dim"],
        proj_bias=per_stream,
    ).eval()
    weights = {
        name.replace("aggregate_embed", "text_proj_in")
        .replace("transformer_1d_blocks", "transformer_blocks")
        .replace("q_norm", "norm_q")
        .replace("k_norm", "norm_k"): value
        for name, value in official_weights(case.build(config), case.seed).items()
    }
    renames = {
        "text_embedding_projection.": "",
        "video_embeddings_connector.": "video_connector.",
        "audio_embeddings_connector.": "audio_connector.",
    }
    module.load_state_dict(torch_state(weights, renames), strict=True)
    hidden, mask = padded_hidden(case)
    video, audio, _ = module(hidden, mask, padding_side="left")
    return {"video": video.numpy(), "audio": audio.numpy()}


def reference(case: Case) -> Arrays:
    """Outputs of the case's main oracle."""
    return gemma_reference(case) if case in GEMMA_CASES else projections_reference(case)


@pytest.mark.parametrize("case", GEMMA_CASES, ids=by_name)
def test_gemma_states(case: Case, table) -> None:
    got, want = run_mlx(case), reference(case)
    assert list(got) == list(want), "every layer once"
    error = worst_error(got, want)
    table(case.network, case.generation, TRANSFORMERS, error, case.bound)


@pytest.mark.parametrize("case", GEMMA_CASES[:2], ids=by_name)
def test_padding_changes_nothing_in_the_reference(case: Case) -> None:
    assert worst_error(gemma_reference(case, 0), gemma_reference(case, 50)) < 1e-5


@pytest.mark.parametrize("case", PROJECTION_CASES, ids=by_name)
def test_projections(case: Case, table) -> None:
    got = run_mlx(case)
    table(case.network, case.generation, LTX_CORE, worst_error(got, reference(case)), case.bound)
    table(case.network, case.generation, DIFFUSERS, worst_error(got, diffusers_projections(case)), case.bound)


@pytest.mark.parametrize("case", [case for case in PROJECTION_CASES if case.record], ids=by_name)
def test_bfloat16_projections(case: Case, table) -> None:
    error = worst_error(run_mlx(case, mx.bfloat16), run_mlx(case))
    table(case.network, case.generation, "float32, ours in bfloat16", error, 2e-2)


@torch.no_grad()
def test_bfloat16_gemma_rounds_no_more_than_transformers(table) -> None:
    """Both in bfloat16 against float32 on the same rounded weights, root mean square over all states."""
    from transformers import Gemma3TextConfig, Gemma3TextModel

    ours, official = [], []
    for case in [case for case in GEMMA_CASES if case.config["query_pre_attn_scalar"] == 256]:
        module, weights = built(case)
        rounded = {k: np.array(mx.array(v).astype(mx.bfloat16).astype(mx.float32)) for k, v in weights.items()}
        model = Gemma3TextModel(Gemma3TextConfig(**case.config)).eval()
        model.load_state_dict(torch_state(rounded, {"model.": ""}), strict=True)
        inputs = case.inputs(case.rng())
        ids = torch.from_numpy(inputs["ids"].astype(np.int64))
        want = [state.numpy() for state in model(ids, output_hidden_states=True).hidden_states]
        theirs = model.to(torch.bfloat16)(ids, output_hidden_states=True).hidden_states
        mine = case.run(load_official(module, rounded, mx.bfloat16), inputs)
        for index in range(1, len(want)):
            official.append(relative_error(theirs[index].float().numpy(), want[index]))
            ours.append(relative_error(mine[f"state {index}"], want[index]))
    mean, bound = (float(np.sqrt(np.mean(np.square(errors)))) for errors in (ours, official))
    table("Gemma 3", "2.0, 2.3", "float32, ours in bfloat16", mean, min(2e-2, 1.1 * bound))


@torch.no_grad()
def test_transformers_reads_the_tiny_folder(tmp_path: Path, table) -> None:
    """One folder, both loaders: config, tensor names, tokenizer and states of real prompts."""
    from safetensors.torch import load_file
    from transformers import AutoConfig, AutoTokenizer, Gemma3TextModel

    folder = write_tiny_gemma(tmp_path / "a", words=("red", "kite", "beach"), seed=3)
    encoder = load_text_encoder(folder, 64, 7)
    tokenizer = AutoTokenizer.from_pretrained(str(folder), local_files_only=True, padding_side="left")
    model = Gemma3TextModel(AutoConfig.from_pretrained(str(folder)).text_config).eval()
    state = load_file(str(folder / "model.safetensors"))
    model.load_state_dict({k.removeprefix("language_model.model."): v for k, v in state.items()}, strict=True)
    prompts = (
        "a red kite over the beach, " * 3,
        "x",
        "Überraschung – 日本語 🙂",
        "two  spaces\nand a line",
        "red",
    )
    for prompt in prompts:
        tokens = encoder.tokenize(prompt)
        given = tokenizer(prompt.strip(), padding="max_length", max_length=160, truncation=True, return_tensors="pt")
        padding = 160 - len(tokens.ids)
        assert given["input_ids"][0, padding:].tolist() == list(tokens.ids)
        assert int(given["attention_mask"].sum()) == len(tokens.ids)
        want = model(**{k: given[k] for k in ("input_ids", "attention_mask")}, output_hidden_states=True)
        ours = np.array(encoder.states(tokens))
        error = max(relative_error(ours[..., i], w[:, padding:].numpy()) for i, w in enumerate(want.hidden_states))
        table("Gemma 3", "2.0, 2.3", TRANSFORMERS, error, 1e-4)


def test_a_folder_saved_by_transformers_loads(tmp_path: Path) -> None:
    """transformers 5 writes `rope_parameters` and `layer_types` instead of the older keys."""
    from transformers import Gemma3ForCausalLM, Gemma3TextConfig

    torch.manual_seed(0)
    folder = write_tiny_gemma(tmp_path, width=48, seed=1)
    (folder / "model.safetensors").unlink()
    size = load_vocabulary_size(folder)
    model = Gemma3ForCausalLM(Gemma3TextConfig(**{**GEMMA, "vocab_size": size})).eval()
    model.save_pretrained(str(folder))
    encoder = load_text_encoder(folder, 48, 7)
    tokens = encoder.tokenize("a red kite over the beach")
    with torch.no_grad():
        want = model.model(torch.tensor([list(tokens.ids)]), output_hidden_states=True).hidden_states
    ours = np.array(encoder.states(tokens))
    assert max(relative_error(ours[..., i], w.numpy()) for i, w in enumerate(want)) < 1e-4


def load_vocabulary_size(folder: Path) -> int:
    from tokenizers import Tokenizer

    return Tokenizer.from_file(str(folder / "tokenizer.json")).get_vocab_size()


@pytest.mark.parametrize("prompt", ["a", "red kite " * 40], ids=("short", "long"))
def test_official_tokenizer_agrees(tmp_path: Path, prompt: str) -> None:
    from ltx_core.text_encoders.gemma.tokenizer import LTXVGemmaTokenizer

    folder = write_tiny_gemma(tmp_path, words=("red",))
    official = LTXVGemmaTokenizer(str(folder), 128).tokenize_with_weights(f"  {prompt}\n")["gemma"]
    ours = load_text_encoder(folder).tokenizer(f"  {prompt}\n", limit=128)
    assert [int(i) for i, valid in official if valid] == list(ours.ids)
