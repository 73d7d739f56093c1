"""Hidden states of Gemma -> text contexts of both streams: feature extractor, then a connector per stream.

References: ltx_core.text_encoders.gemma.{feature_extractor,embeddings_connector,embeddings_processor}.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import mlx.core as mx
import numpy as np
from mlx import nn

from mlx_ltx2.errors import RequestError, WeightsError
from mlx_ltx2.models.layers.attention import Attention
from mlx_ltx2.models.layers.feed_forward import FeedForward
from mlx_ltx2.models.layers.norm import rms_norm
from mlx_ltx2.models.layers.rope import Rope, RopeConfig, build_rope
from mlx_ltx2.states import TextContext

CONTEXT_TOKENS = 1024
_EPS = 1e-6

_PER_STREAM = {
    "caption_proj_before_connector": True,
    "caption_projection_first_linear": False,
    "caption_proj_input_norm": False,
    "caption_projection_second_linear": False,
}
"""All four keys with these values: one projection per stream (LTX-2.3); none of them: a shared one."""

_FIXED = {"use_embeddings_connector": True, "connector_norm_output": True, "connector_ff_bias": True}


@dataclass(frozen=True)
class ConnectorConfig:
    """num_registers: learnable rows that fill the slots behind the prompt. max_position: slot that maps to 1.
    gated: attention scales each head. rope: which frequencies and pairs."""

    heads: int
    head_dim: int
    num_layers: int
    num_registers: int
    max_position: float
    gated: bool
    rope: RopeConfig

    @property
    def dim(self) -> int:
        return self.heads * self.head_dim


@dataclass(frozen=True)
class TextProjectionsConfig:
    """width: of the text encoder. num_states: its layers + 1. per_stream: LTX-2.3's feature extractor."""

    width: int
    num_states: int
    per_stream: bool
    video: ConnectorConfig
    audio: ConnectorConfig

    @classmethod
    def from_dict(cls, section: Mapping[str, Any]) -> TextProjectionsConfig:
        """From the checkpoint's `transformer` section.

        `text_encoder_num_layers` is this package's own key for small test models; official files, which lack
        it, mean Gemma 3 12B with 48. The connectors' theta is 10000 whatever `positional_embedding_theta` is,
        and `connector_positional_embedding_max_pos` falls back to [1], as in the reference.
        Raises: WeightsError if the section describes a feature extractor or a connector that is not known.
        """
        for key, value in _FIXED.items():
            if section.get(key, value) != value:
                raise WeightsError(f"config.transformer: {key} {section[key]!r} is not supported; expected {value!r}.")
        heads = section.get("connector_num_attention_heads", 30)
        head_dim = section.get("connector_attention_head_dim", 128)
        layers = section.get("connector_num_layers", 2)
        config = cls(
            width=int(section.get("caption_channels", 3840)),
            num_states=int(section.get("text_encoder_num_layers", 48)) + 1,
            per_stream=_is_per_stream(section),
            video=_connector(section, heads, head_dim, layers),
            audio=_connector(
                section,
                section.get("audio_connector_num_attention_heads", heads),
                section.get("audio_connector_attention_head_dim", head_dim),
                section.get("audio_connector_num_layers", layers),
            ),
        )
        config._check_widths(section)
        return config

    def _check_widths(self, section: Mapping[str, Any]) -> None:
        wanted = {"video": self.width, "audio": self.width}
        if self.per_stream:
            for stream, prefix in (("video", ""), ("audio", "audio_")):
                heads = section.get(f"{prefix}num_attention_heads", 32)
                wanted[stream] = heads * section.get(f"{prefix}attention_head_dim", 128 if stream == "video" else 64)
        for stream, connector in (("video", self.video), ("audio", self.audio)):
            if connector.dim != wanted[stream]:
                raise WeightsError(
                    f"config.transformer: the {stream} connector is {connector.dim} wide and its features "
                    f"{wanted[stream]}; the config is damaged or of another model."
                )


def _is_per_stream(section: Mapping[str, Any]) -> bool:
    present = {key: section[key] for key in _PER_STREAM if key in section}
    if not present:
        return False
    if present != _PER_STREAM:
        raise WeightsError(
            f"config.transformer: the text feature extractor {present} is not known; expected none of these "
            f"keys (LTX-2) or all of {_PER_STREAM} (LTX-2.3)."
        )
    return True


def _connector(section: Mapping[str, Any], heads: int, head_dim: int, layers: int) -> ConnectorConfig:
    layout = section.get("rope_type", "split")
    if layout not in ("split", "interleaved"):
        raise WeightsError(f"config.transformer: rope_type {layout!r} is not known; expected 'split' or 'interleaved'.")
    precise = section.get("frequencies_precision") == "float64"
    positions = section.get("connector_positional_embedding_max_pos", [1])
    if len(positions) != 1:
        raise WeightsError(
            f"config.transformer: connector_positional_embedding_max_pos {positions!r} must have one entry."
        )
    return ConnectorConfig(
        heads=int(heads),
        head_dim=int(head_dim),
        num_layers=int(layers),
        num_registers=int(section.get("connector_num_learnable_registers", 128)),
        max_position=float(positions[0]),
        gated=bool(section.get("connector_apply_gated_attention", False)),
        rope=RopeConfig(10000.0, layout, "float64" if precise else "float32"),
    )


class SharedProjection(nn.Module):
    """LTX-2: each layer's states normalised by mean and range over the prompt; one biasless projection."""

    def __init__(self, config: TextProjectionsConfig):
        super().__init__()
        self.aggregate_embed = nn.Linear(config.width * config.num_states, config.width, bias=False)

    @property
    def dtype(self) -> mx.Dtype:
        return self.aggregate_embed.weight.dtype

    def __call__(self, hidden: mx.array) -> tuple[mx.array, mx.array]:
        features = self.aggregate_embed(normalize_by_range(hidden))
        return features, features


class StreamProjections(nn.Module):
    """LTX-2.3: each token's and layer's states divided by their RMS, one projection with bias per stream."""

    def __init__(self, config: TextProjectionsConfig):
        super().__init__()
        wide = config.width * config.num_states
        self.video_aggregate_embed = nn.Linear(wide, config.video.dim)
        self.audio_aggregate_embed = nn.Linear(wide, config.audio.dim)

    @property
    def dtype(self) -> mx.Dtype:
        return self.video_aggregate_embed.weight.dtype

    def __call__(self, hidden: mx.array) -> tuple[mx.array, mx.array]:
        normed = normalize_by_rms(hidden)
        width = hidden.shape[2]

        def project(linear: nn.Module) -> mx.array:
            out: mx.array = linear(normed * math.sqrt(linear.weight.shape[0] / width))
            return out

        return project(self.video_aggregate_embed), project(self.audio_aggregate_embed)


def normalize_by_range(hidden: mx.array) -> mx.array:
    """(1, T, D, L) -> (1, T, D*L), index d*L + l: 8 (x - mean) / range, over tokens and channels of a layer.

    In bfloat16 the sum and the range are rounded to bfloat16 and the rest is float32, as in the reference.
    """
    dtype = hidden.dtype
    total = hidden.astype(mx.float32).sum(axis=(1, 2), keepdims=True).astype(dtype).astype(mx.float32)
    mean = total / (hidden.shape[1] * hidden.shape[2] + _EPS)
    spread = hidden.max(axis=(1, 2), keepdims=True) - hidden.min(axis=(1, 2), keepdims=True) + _EPS
    normed = 8 * (hidden.astype(mx.float32) - mean) / spread.astype(mx.float32)
    return normed.astype(dtype).flatten(2)


def normalize_by_rms(hidden: mx.array) -> mx.array:
    """(1, T, D, L) -> (1, T, D*L), index d*L + l: x / rms over the channels of each token and layer."""
    return rms_norm(hidden.swapaxes(2, 3), _EPS).swapaxes(2, 3).flatten(2)


class ConnectorBlock(nn.Module):
    """Self-attention and feed-forward, each after a weightless RMS norm."""

    def __init__(self, config: ConnectorConfig):
        super().__init__()
        self.attn1 = Attention(config.dim, config.dim, config.heads, config.head_dim, config.gated)
        self.ff = FeedForward(config.dim)

    def __call__(self, x: mx.array, rope: Rope) -> mx.array:
        x = x + self.attn1(rms_norm(x), rope=rope)
        return x + self.ff(rms_norm(x))


class EmbeddingsConnector(nn.Module):
    """Prompt features (1, n, dim) -> (1, length, dim): slots behind the prompt are filled with learnable
    registers, slot p with register p modulo their number, and all slots attend to each other."""

    def __init__(self, config: ConnectorConfig):
        super().__init__()
        self.config = config
        self.learnable_registers = mx.zeros((config.num_registers, config.dim))
        self.transformer_1d_blocks = [ConnectorBlock(config) for _ in range(config.num_layers)]

    def __call__(self, features: mx.array, length: int) -> mx.array:
        real, count = features.shape[1], self.config.num_registers
        registers = mx.tile(self.learnable_registers.astype(features.dtype), (length // count, 1))
        x = mx.concatenate([features, registers[None, real:]], axis=1)
        rope = self.rope(length, features.dtype)
        for block in self.transformer_1d_blocks:
            x = block(x, rope)
        return rms_norm(x)

    def rope(self, length: int, dtype: mx.Dtype) -> Rope:
        """Tables for slots 0..length-1; a slot is a point, so there is no midpoint."""
        config = self.config
        return build_rope(
            np.arange(length, dtype=np.float32)[None, None],
            dim=config.dim,
            heads=config.heads,
            max_positions=(config.max_position,),
            config=config.rope,
            dtype=dtype,
        )


class TextProjections(nn.Module):
    """Feature extractor and both connectors, under the checkpoint's names."""

    def __init__(self, config: TextProjectionsConfig):
        super().__init__()
        self.config = config
        projection = StreamProjections if config.per_stream else SharedProjection
        self.text_embedding_projection = projection(config)
        self.video_embeddings_connector = EmbeddingsConnector(config.video)
        self.audio_embeddings_connector = EmbeddingsConnector(config.audio)

    def __call__(self, hidden: mx.array, *, length: int = CONTEXT_TOKENS) -> TextContext:
        """hidden: (1, T, D, L) states of the real tokens -> contexts (1, length, dim) of both streams, in the
        projection's dtype whatever that of the states.

        length: slots of the context, a multiple of the number of registers and at least T; 1024 officially.
        Raises: RequestError if the prompt does not fit, WeightsError if the states are another encoder's.
        """
        config = self.config
        if hidden.shape[0] != 1 or hidden.shape[2:] != (config.width, config.num_states):
            raise WeightsError(
                f"text encoder states of shape {hidden.shape} do not fit: expected (1, tokens, "
                f"{config.width}, {config.num_states}). Use the text encoder of this checkpoint."
            )
        for connector in (config.video, config.audio):
            if length % connector.num_registers:
                raise RequestError(f"context length {length} must be a multiple of {connector.num_registers}.")
        if hidden.shape[1] > length:
            raise RequestError(f"the prompt has {hidden.shape[1]} tokens; at most {length} fit.")
        video, audio = self.text_embedding_projection(hidden.astype(self.text_embedding_projection.dtype))
        return TextContext(
            self.video_embeddings_connector(video, length), self.audio_embeddings_connector(audio, length)
        )
