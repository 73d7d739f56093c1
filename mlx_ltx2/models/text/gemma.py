"""Gemma 3 as a text encoder: the embedding and the output of every layer, on the real tokens only.

The modules are mlx-lm's, so its converted and quantized folders fit. The forward pass is this file's own:
mlx-lm returns the last state only and rounds where Hugging Face does not. It scales embeddings by a bfloat16
root of the width whatever the dtype, and in bfloat16 it rounds 1 + norm weight and evaluates the GELU.
The official pipeline pads to 1024 tokens on the left. Pads are masked and rotary positions count only as
differences, so the real tokens' states are the same without them.
References: transformers.models.gemma3; ltx_core.text_encoders.gemma.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import mlx.core as mx
from mlx import nn

from mlx_ltx2.errors import WeightsError
from mlx_ltx2.models.layers.kernels import gelu_approx

if TYPE_CHECKING:
    from mlx_lm.models.gemma3_text import Model, ModelArgs

_MODEL_TYPES = ("gemma3", "gemma3_text")

_DEFAULTS: dict[str, Any] = {
    "hidden_size": 2304,
    "intermediate_size": 9216,
    "num_hidden_layers": 26,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "head_dim": 256,
    "rms_norm_eps": 1e-6,
    "vocab_size": 262208,
    "query_pre_attn_scalar": 256,
    "sliding_window": 4096,
    "sliding_window_pattern": 6,
    "max_position_embeddings": 131072,
    "rope_theta": 1_000_000.0,
    "rope_local_base_freq": 10_000.0,
    "rope_scaling": None,
}
"""Values of absent keys as transformers' Gemma3TextConfig has them; mlx-lm's are those of the 1B model."""

_FIXED: dict[str, tuple[Any, ...]] = {
    "hidden_activation": ("gelu_pytorch_tanh",),
    "attention_bias": (False, None),
    "attn_logit_softcapping": (None,),
    "use_bidirectional_attention": (False, None),
}


def gemma_args(config: Mapping[str, Any]) -> ModelArgs:
    """mlx-lm's arguments from a Hugging Face config.json, with vision parts or of the text model alone.

    Raises: WeightsError if it describes no Gemma 3 text model, or one that this forward pass does not cover.
    """
    from mlx_lm.models.gemma3_text import ModelArgs

    kind = config.get("model_type")
    if kind not in _MODEL_TYPES:
        raise WeightsError(
            f"text encoder: model_type {kind!r} is not supported; give a Gemma 3 folder ({' or '.join(_MODEL_TYPES)})."
        )
    text = config.get("text_config") if kind == "gemma3" else config
    if not isinstance(text, Mapping):
        raise WeightsError("text encoder: config.json has no section 'text_config'; download the folder again.")
    for key, allowed in _FIXED.items():
        if text.get(key, allowed[0]) not in allowed:
            raise WeightsError(f"text encoder: {key} {text[key]!r} is not supported; Gemma 3 has {allowed[0]!r}.")
    values = {key: default if text.get(key) is None else text[key] for key, default in _DEFAULTS.items()}
    if kind == "gemma3" and "vocab_size" not in text and config.get("vocab_size"):
        values["vocab_size"] = config["vocab_size"]
    values |= _rope(text)
    values["sliding_window_pattern"] = _pattern(text, values)
    return ModelArgs(model_type="gemma3_text", **values)


def _rope(text: Mapping[str, Any]) -> dict[str, Any]:
    """Rotary settings from `rope_parameters` (transformers 5) or from the older flat keys."""
    nested = text.get("rope_parameters") or {}
    layers_global, layers_local = nested.get("full_attention") or {}, nested.get("sliding_attention") or {}
    found: dict[str, Any] = {}
    if "rope_theta" in layers_global:
        found["rope_theta"] = layers_global["rope_theta"]
    if "rope_theta" in layers_local:
        found["rope_local_base_freq"] = layers_local["rope_theta"]
    scaling = layers_global or text.get("rope_scaling") or {}
    kind = scaling.get("rope_type") or scaling.get("type") or "default"
    if kind not in ("default", "linear") or layers_local.get("rope_type", "default") != "default":
        raise WeightsError(f"text encoder: rope scaling {kind!r} is not supported; Gemma 3 has 'linear'.")
    found["rope_scaling"] = {"rope_type": "linear", "factor": float(scaling["factor"])} if kind == "linear" else None
    return found


def _pattern(text: Mapping[str, Any], values: Mapping[str, Any]) -> int:
    """Every so many layers one attends globally; from `layer_types` where the file lists them."""
    pattern: int = text.get("_sliding_window_pattern") or values["sliding_window_pattern"]
    types = text.get("layer_types")
    if not types:
        return pattern
    is_global = [kind == "full_attention" for kind in types]
    pattern = is_global.index(True) + 1 if True in is_global else len(types) + 1
    if is_global != [(i + 1) % pattern == 0 for i in range(values["num_hidden_layers"])]:
        raise WeightsError("text encoder: layer_types is no repeating pattern; give a Gemma 3 folder.")
    return pattern


def build_gemma(args: ModelArgs) -> Model:
    """mlx-lm's model with the output head tied to the embedding, as in every released Gemma 3."""
    from mlx_lm.models.gemma3_text import Model

    model = Model(args)
    model.sanitize({})
    return model


def hidden_states(model: Model, ids: mx.array, on_layer: Callable[[int, mx.array], None] | None = None) -> mx.array:
    """States of all layers.

    ids: (1, T) integers, real tokens, BOS first. on_layer: called with (index, state (1, T, D)) as a state is
    built, from 0 for the embedding to the number of layers; a caller may evaluate there to bound the graph.
    Returns: (1, T, D, layers + 1) in the weights' dtype. State 0 is the scaled embedding, the last has
    passed the final norm (Hugging Face's `output_hidden_states`).
    """
    return hidden_states_of(model, [ids], on_layer)[0]


def hidden_states_of(
    model: Model, prompts: Sequence[mx.array], on_layer: Callable[[int, mx.array], None] | None = None
) -> list[mx.array]:
    """`hidden_states` of several prompts, which go through each layer one after the other.

    Layers that are read from disk are thus read once. on_layer: called once per prompt and layer.
    """
    gemma, args = model.model, model.args
    states: list[list[mx.array]] = [[] for _ in prompts]

    def keep(number: int, state: mx.array) -> None:
        if on_layer is not None:
            on_layer(len(states[number]), state)
        states[number].append(state)

    masks: list[mx.array | str] = []
    tokens: list[mx.array] = []
    for number, ids in enumerate(prompts):
        length, window = ids.shape[1], args.sliding_window
        masks.append("causal" if length <= window else _sliding_mask(length, window))
        x = gemma.embed_tokens(ids)
        tokens.append(x * mx.array(args.hidden_size**0.5, x.dtype))
        keep(number, tokens[number])
    last = len(gemma.layers) - 1
    for index, layer in enumerate(gemma.layers):
        for number, local_mask in enumerate(masks):
            x = _layer(layer, tokens[number], local_mask if layer.self_attn.is_sliding else "causal")
            tokens[number] = x
            keep(number, _norm(gemma.norm, x) if index == last else x)
    return [mx.stack(of_prompt, axis=2).swapaxes(2, 3) for of_prompt in states]


def _sliding_mask(tokens: int, window: int) -> mx.array:
    """(T, T) bool: a token sees itself and the window - 1 tokens before it."""
    rows, columns = mx.arange(tokens)[:, None], mx.arange(tokens)[None]
    return (columns <= rows) & (columns > rows - window)


def _norm(norm: nn.Module, x: mx.array) -> mx.array:
    """x / rms(x) * (1 + weight) in float32, rounded once to x's dtype."""
    weight = 1.0 + norm.weight.astype(mx.float32)
    return mx.fast.rms_norm(x.astype(mx.float32), weight, norm.eps).astype(x.dtype)


def _attention(attention: nn.Module, x: mx.array, mask: mx.array | str) -> mx.array:
    def heads(y: mx.array) -> mx.array:
        return y.reshape(*y.shape[:2], -1, attention.head_dim).transpose(0, 2, 1, 3)

    queries = attention.rope(_norm(attention.q_norm, heads(attention.q_proj(x))))
    keys = attention.rope(_norm(attention.k_norm, heads(attention.k_proj(x))))
    values = heads(attention.v_proj(x))
    mixed = mx.fast.scaled_dot_product_attention(queries, keys, values, scale=attention.scale, mask=mask)
    out: mx.array = attention.o_proj(mixed.transpose(0, 2, 1, 3).flatten(2))
    return out


def _mlp(mlp: nn.Module, x: mx.array) -> mx.array:
    gate = gelu_approx(mlp.gate_proj(x).astype(mx.float32)).astype(x.dtype)
    out: mx.array = mlp.down_proj(gate * mlp.up_proj(x))
    return out


def _layer(layer: nn.Module, x: mx.array, mask: mx.array | str) -> mx.array:
    attended = _attention(layer.self_attn, _norm(layer.input_layernorm, x), mask)
    x = x + _norm(layer.post_attention_layernorm, attended)
    fed = _mlp(layer.mlp, _norm(layer.pre_feedforward_layernorm, x))
    return x + _norm(layer.post_feedforward_layernorm, fed)
