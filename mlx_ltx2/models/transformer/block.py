"""One block: self-attention and text cross-attention per stream, attention between the streams, feed-forward.

Reference: ltx_core.model.transformer.transformer.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import mlx.core as mx
import numpy as np
from mlx import nn

from mlx_ltx2.models.layers.attention import Attention
from mlx_ltx2.models.layers.feed_forward import FeedForward
from mlx_ltx2.models.layers.norm import rms_norm
from mlx_ltx2.models.layers.rope import Rope
from mlx_ltx2.models.transformer.config import TransformerConfig
from mlx_ltx2.models.transformer.modulation import Levels, add_gated, norm_modulate
from mlx_ltx2.states import Perturbation

Prefix = Literal["", "audio_"]
KeysValues = tuple[mx.array, mx.array]

_SCALES = {"a2v": (0, 1), "v2a": (2, 3)}
"""Rows of the audio-video tables: scale before shift, unlike in every other table."""


@dataclass(frozen=True)
class CrossInputs:
    """What one stream brings to the attention between the streams.

    levels, rows: (B, K, 4, dim) scales and shifts. gate_levels, gate: (B, K, 1, dim).
    """

    rope: Rope
    levels: Levels
    rows: mx.array
    gate_levels: Levels
    gate: mx.array


@dataclass(frozen=True)
class StreamInputs:
    """What all blocks need of one stream during one evaluation; the tokens themselves are handed from block to block.

    rows: (B, K, 6 or 9, dim) modulation at `levels`; embedded: (B, K, dim) for the output head. context: (B, S, dim)
    text; prompt: (B, 1, 2, dim) its modulation. self_mask: (B, 1, N, N), context_mask: (B, 1, 1, S), both additive.
    """

    levels: Levels
    rows: mx.array
    embedded: mx.array
    context: mx.array
    rope: Rope
    prompt: mx.array | None = None
    self_mask: mx.array | None = None
    context_mask: mx.array | None = None
    cross: CrossInputs | None = None
    enabled: bool = True


def skipped(perturbations: Sequence[Perturbation] | None, kind: str, block: int) -> bool | mx.array:
    """Whether all samples leave `kind` out in `block`; (B,) bool if some do and some do not."""
    flags = [p.skips(kind, block) for p in perturbations or ()]
    return mx.array(np.array(flags)) if any(flags) and not all(flags) else any(flags)


class TransformerBlock(nn.Module):
    """Attributes of the video stream have no prefix, those of the audio stream start with audio_."""

    def __init__(self, config: TransformerConfig):
        super().__init__()
        self.eps = config.norm_eps
        self.modulated_text = config.modulated_text
        for prefix, s in config.streams():
            sizes = (s.heads, s.head_dim, config.gated)
            self[f"{prefix}attn1"] = Attention(s.dim, s.dim, *sizes, eps=self.eps)
            self[f"{prefix}attn2"] = Attention(s.dim, s.context_dim, *sizes, eps=self.eps)
            self[f"{prefix}ff"] = FeedForward(s.dim)
            self[f"{prefix}scale_shift_table"] = mx.zeros((config.rows, s.dim))
            if config.modulated_text:
                self[f"{prefix}prompt_scale_shift_table"] = mx.zeros((2, s.dim))
        if config.video is not None and config.audio is not None:
            video, audio = config.video.dim, config.audio.dim
            sizes = (config.audio.heads, config.audio.head_dim, config.gated)
            self.audio_to_video_attn = Attention(video, audio, *sizes, eps=self.eps)
            self.video_to_audio_attn = Attention(audio, video, *sizes, eps=self.eps)
            self.scale_shift_table_a2v_ca_video = mx.zeros((5, video))
            self.scale_shift_table_a2v_ca_audio = mx.zeros((5, audio))

    def _rows(self, rows: mx.array, table: mx.array) -> mx.array:
        return rows + table.astype(rows.dtype)

    def text_keys_values(self, prefix: Prefix, stream: StreamInputs) -> KeysValues:
        """Keys and values of the text. They depend on the prompt and, where text is modulated, on sigma."""
        context = stream.context
        if stream.prompt is not None:
            rows = self._rows(stream.prompt, self[f"{prefix}prompt_scale_shift_table"])
            context = context * (1 + rows[:, :, 1]) + rows[:, :, 0]
        return self[f"{prefix}attn2"].keys_values(context)

    def _attend(
        self,
        prefix: Prefix,
        x: mx.array,
        stream: StreamInputs,
        rows: mx.array,
        skip: bool | mx.array,
        text: KeysValues | None,
    ) -> mx.array:
        """Self-attention, then text cross-attention."""
        h = norm_modulate(x, rows[:, :, 1], rows[:, :, 0], stream.levels, self.eps)
        update = self[f"{prefix}attn1"](h, rope=stream.rope, mask=stream.self_mask, skip=skip)
        x = add_gated(x, update, rows[:, :, 2], stream.levels)
        if text is None:
            text = self.text_keys_values(prefix, stream)
        if not self.modulated_text:
            return x + self[f"{prefix}attn2"].attend(rms_norm(x, self.eps), text, mask=stream.context_mask)
        h = norm_modulate(x, rows[:, :, 7], rows[:, :, 6], stream.levels, self.eps)
        update = self[f"{prefix}attn2"].attend(h, text, mask=stream.context_mask)
        return add_gated(x, update, rows[:, :, 8], stream.levels)

    def _feed_forward(self, prefix: Prefix, x: mx.array, stream: StreamInputs, rows: mx.array) -> mx.array:
        h = norm_modulate(x, rows[:, :, 4], rows[:, :, 3], stream.levels, self.eps)
        return add_gated(x, self[f"{prefix}ff"](h), rows[:, :, 5], stream.levels)

    def _cross(
        self,
        direction: Literal["a2v", "v2a"],
        x: mx.array,
        other: mx.array,
        into: CrossInputs,
        source: CrossInputs,
        skip: bool | mx.array,
    ) -> mx.array:
        """x after attention to the tokens of the other stream."""
        if skip is True:
            return x
        to_video = direction == "a2v"
        video_table, audio_table = self.scale_shift_table_a2v_ca_video, self.scale_shift_table_a2v_ca_audio
        table, other_table = (video_table, audio_table) if to_video else (audio_table, video_table)
        scale, shift = _SCALES[direction]
        mine, theirs = self._rows(into.rows, table[:4]), self._rows(source.rows, other_table[:4])
        queries = norm_modulate(x, mine[:, :, scale], mine[:, :, shift], into.levels, self.eps)
        context = norm_modulate(other, theirs[:, :, scale], theirs[:, :, shift], source.levels, self.eps)
        attention = self.audio_to_video_attn if to_video else self.video_to_audio_attn
        update = attention(queries, context, rope=into.rope, key_rope=source.rope)
        if skip is not False:
            update = update * mx.logical_not(skip)[:, None, None].astype(update.dtype)
        return add_gated(x, update, self._rows(into.gate, table[4:])[:, :, 0], into.gate_levels)

    def __call__(
        self,
        index: int,
        streams: tuple[StreamInputs | None, StreamInputs | None],
        tokens: tuple[mx.array | None, mx.array | None],
        perturbations: Sequence[Perturbation] | None = None,
        texts: tuple[KeysValues | None, KeysValues | None] = (None, None),
    ) -> tuple[mx.array | None, mx.array | None]:
        """Tokens (B, N, dim) of video and audio, either may be None -> the same after this block.

        index: number of this block, for perturbations that name blocks. texts: kept `text_keys_values`.
        """
        video, audio = streams
        vx, ax = tokens
        run_video, run_audio = video is not None and video.enabled, audio is not None and audio.enabled
        if run_video:
            video_rows = self._rows(video.rows, self["scale_shift_table"])
            skip = skipped(perturbations, "video_self", index)
            vx = self._attend("", vx, video, video_rows, skip, texts[0])
        if run_audio:
            audio_rows = self._rows(audio.rows, self["audio_scale_shift_table"])
            skip = skipped(perturbations, "audio_self", index)
            ax = self._attend("audio_", ax, audio, audio_rows, skip, texts[1])
        if video is not None and audio is not None:
            before = vx  # both directions read the tokens as they were before either wrote
            if run_video:
                skip = skipped(perturbations, "audio_to_video", index)
                vx = self._cross("a2v", vx, ax, video.cross, audio.cross, skip)
            if run_audio:
                skip = skipped(perturbations, "video_to_audio", index)
                ax = self._cross("v2a", ax, before, audio.cross, video.cross, skip)
        if run_video:
            vx = self._feed_forward("", vx, video, video_rows)
        if run_audio:
            ax = self._feed_forward("audio_", ax, audio, audio_rows)
        return vx, ax
