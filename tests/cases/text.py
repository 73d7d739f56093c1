"""Cases of the text room: Gemma's hidden states, and the projections and connectors behind them."""

from __future__ import annotations

from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np

from mlx_ltx2.models.text import TextProjections, TextProjectionsConfig, hidden_states
from mlx_ltx2.models.text.gemma import build_gemma, gemma_args
from tests.cases import Arrays, Case, as_numpy

GEMMA: dict[str, Any] = {
    "model_type": "gemma3_text",
    "hidden_size": 48,
    "intermediate_size": 96,
    "num_hidden_layers": 7,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "query_pre_attn_scalar": 256,
    "vocab_size": 320,
    "sliding_window": 8,
    "rope_scaling": {"rope_type": "linear", "factor": 8.0},
}

GEMMA_VARIANTS: dict[str, dict[str, Any]] = {
    "window 8": {},
    "window wider than the prompt": {"sliding_window": 64},
    "no rope scaling": {"rope_scaling": None},
    "other thetas": {"rope_theta": 50000.0, "rope_local_base_freq": 500.0},
    "sharp attention": {"query_pre_attn_scalar": 16},
    "one kv head, 13 layers": {"num_key_value_heads": 1, "num_hidden_layers": 13},
}

SHARED: dict[str, Any] = {
    "caption_channels": 24,
    "text_encoder_num_layers": 4,
    "num_attention_heads": 2,
    "attention_head_dim": 16,
    "audio_num_attention_heads": 2,
    "audio_attention_head_dim": 8,
    "connector_num_attention_heads": 2,
    "connector_attention_head_dim": 12,
    "connector_positional_embedding_max_pos": [4096],
    "positional_embedding_theta": 10000.0,
    "rope_type": "split",
    "frequencies_precision": "float64",
}
"""LTX-2: keys that it lacks are lacking here, as in the released config."""

PER_STREAM: dict[str, Any] = {
    **SHARED,
    "caption_proj_before_connector": True,
    "caption_projection_first_linear": False,
    "caption_proj_input_norm": False,
    "caption_projection_second_linear": False,
    "connector_num_layers": 3,
    "connector_num_attention_heads": 2,
    "connector_attention_head_dim": 16,
    "audio_connector_num_attention_heads": 2,
    "audio_connector_attention_head_dim": 8,
    "connector_num_learnable_registers": 128,
    "connector_apply_gated_attention": True,
}
"""LTX-2.3, scaled down."""

GENERATIONS = {"2.0": SHARED, "2.3": PER_STREAM}


def _build_gemma(config: dict[str, Any]) -> nn.Module:
    return build_gemma(gemma_args(config))


def _run_gemma(model: nn.Module, inputs: Arrays) -> Arrays:
    states = hidden_states(model, mx.array(inputs["ids"]))
    return {f"state {i}": as_numpy(states[..., i]) for i in range(states.shape[-1])}


def _gemma(variant: str, tokens: int, seed: int, **more: Any) -> Case:
    config = {**GEMMA, **GEMMA_VARIANTS[variant]}

    def inputs(rng: np.random.Generator) -> Arrays:
        return {"ids": np.concatenate([[[2]], rng.integers(3, 320, (1, tokens - 1))], 1).astype(np.int32)}

    name = f"gemma, {variant}, {tokens} tokens, seed {seed}"
    return Case("Gemma 3", "2.0, 2.3", name, config, _build_gemma, inputs, _run_gemma, seed, 1e-4, **more)


def _build_projections(config: dict[str, Any]) -> nn.Module:
    return TextProjections(TextProjectionsConfig.from_dict(config))


def _projections(generation: str, tokens: int, length: int, seed: int, **more: Any) -> Case:
    config = {**GENERATIONS[generation], **more.pop("config", {})}

    def inputs(rng: np.random.Generator) -> Arrays:
        shape = (1, tokens, config["caption_channels"], config["text_encoder_num_layers"] + 1)
        scales = np.float32([1, 3, 20, 60, 2])  # later layers of Gemma are far larger than its embedding
        offset = rng.standard_normal((1, 1, 1, shape[-1]), dtype=np.float32)
        return {"hidden": (rng.standard_normal(shape, dtype=np.float32) + offset) * scales}

    def run(model: nn.Module, arrays: Arrays) -> Arrays:
        dtype = model.video_embeddings_connector.learnable_registers.dtype
        context = model(mx.array(arrays["hidden"]).astype(dtype), length=length)
        return {"video": as_numpy(context.video), "audio": as_numpy(context.audio)}

    name = f"projections {generation}, {tokens} of {length}, seed {seed}{more.pop('label', '')}"
    return Case(
        "Text projections", generation, name, config, _build_projections, inputs, run, seed,
        options={"length": length}, **more,
    )  # fmt: skip


CASES: list[Case] = [
    *(_gemma(variant, 21, seed) for seed, variant in enumerate(GEMMA_VARIANTS)),
    *(_gemma("window 8", tokens, 10 + tokens) for tokens in (1, 2, 8, 9, 40)),
    _gemma("window 8", 12, 30, record=True),
    *(
        _projections(generation, tokens, 256, tokens)
        for generation in GENERATIONS
        for tokens in (1, 5, 127, 128, 129, 256)
    ),
    *(_projections(generation, 7, 128, seed) for generation in GENERATIONS for seed in (300, 301)),
    *(_projections(generation, 3, 128, 302, record=True) for generation in GENERATIONS),
    *(_projections(generation, 40, 1024, 303) for generation in GENERATIONS),
    *(
        _projections("2.3", 11, 128, 304, label=f", {key} {value}", config={key: value})
        for key, value in (
            ("rope_type", "interleaved"),
            ("frequencies_precision", "float32"),
            ("connector_positional_embedding_max_pos", [64]),
            ("connector_apply_gated_attention", False),
            ("audio_connector_num_layers", 1),
        )
    ),
]
