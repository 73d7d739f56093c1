"""One block: self-attention and text cross-attention per stream, attention between the streams, feed-forward.

Reference: ltx_core.model.transformer.transformer.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial

import mlx.core as mx
import numpy as np
from mlx import nn

from mlx_ltx2.models.layers.attention import Attention
from mlx_ltx2.models.layers.feed_forward import FeedForward
from mlx_ltx2.models.layers.norm import rms_norm
from mlx_ltx2.models.layers.rope import Rope
from mlx_ltx2.models.transformer.config import Prefix, TransformerConfig
from mlx_ltx2.models.transformer.kept import Kept, KeysValues
from mlx_ltx2.models.transformer.modulation import Levels, add_gated, add_table, norm_modulate, scale_shift
from mlx_ltx2.states import Perturbation

Tokens = Mapping[Prefix, mx.array]
"""(B, N, dim) per stream, by the prefix of its attributes: "" for video, "audio_" for audio."""

SELF_ATTENTION: dict[Prefix, str] = {"": "video_self", "audio_": "audio_self"}
CROSS_ATTENTION: dict[Prefix, str] = {"": "audio_to_video", "audio_": "video_to_audio"}
"""Names that `Perturbation` has for the attentions that write to a stream."""

_OTHER: dict[Prefix, Prefix] = {"": "audio_", "audio_": ""}
_SELF, _FEED_FORWARD, _TEXT = 0, 1, 2
"""Sub-layers in the order in which a block's table holds their shift, scale and gate."""
_CROSS: dict[Prefix, int] = {"": 0, "audio_": 1}
"""Pairs of the audio-video tables, by the stream that is written to; in them the scale comes before the shift."""


@dataclass(frozen=True)
class StreamInputs:
    """What all blocks need of one stream during one evaluation, beside its tokens.

    rows: (B, K, 6 or 9, dim) modulation at `levels`; embedded: (B, K, dim) for the output head.
    context: (B, S, dim) text; prompt: (B, 1, 2, dim) its modulation. texts, text_levels: the texts as they were given,
    one after the other along the batch, and the noise level of each row; by them keys and values are known again.
    self_mask: (B, 1, N, N) and context_mask: (B, 1, 1, S) are additive.
    """

    levels: Levels
    rows: mx.array
    embedded: mx.array
    context: mx.array
    rope: Rope
    prompt: mx.array | None = None
    self_mask: mx.array | None = None
    context_mask: mx.array | None = None
    enabled: bool = True
    texts: tuple[mx.array, ...] = ()
    text_levels: tuple[float, ...] = ()

    def of_rows(self, rows: slice) -> StreamInputs:
        """The text of some samples alone."""
        prompt = None if self.prompt is None else self.prompt[rows]
        return replace(self, context=self.context[rows], prompt=prompt)


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
class Pass:
    """One evaluation: what every block reads. cross is empty unless there are two streams.

    kept: what this evaluation shares with others, if anything.
    """

    streams: Mapping[Prefix, StreamInputs]
    cross: Mapping[Prefix, CrossInputs] = field(default_factory=dict)
    perturbations: tuple[Perturbation, ...] | None = None
    kept: Kept | None = None


def skipped(perturbations: Sequence[Perturbation] | None, kind: str, block: int) -> bool | mx.array:
    """Whether all samples leave `kind` out in `block`; (B,) bool if some do and some do not."""
    flags = [p.skips(kind, block) for p in perturbations or ()]
    return mx.array(np.array(flags)) if any(flags) and not all(flags) else any(flags)


@dataclass(frozen=True)
class Rows:
    """Modulation of one stream by one table, sub-layer by sub-layer: weights (1 + scale), shifts and gates.

    Each: (B, K, sub-layers, dim). Made for all sub-layers at once, since each is a kernel over next to nothing.
    """

    weights: mx.array
    shifts: mx.array
    gates: mx.array | None = None

    @classmethod
    def of_block(cls, rows: mx.array, table: mx.array) -> Rows:
        """Tables of shift, scale, gate, shift, ..."""
        rows = add_table(rows, table)
        return cls(1 + rows[:, :, 1::3], rows[:, :, 0::3], rows[:, :, 2::3])

    @classmethod
    def of_cross(cls, rows: mx.array, table: mx.array) -> Rows:
        """Tables of scale, shift, scale, shift."""
        rows = add_table(rows, table)
        return cls(1 + rows[:, :, 0::2], rows[:, :, 1::2])

    def normed(self, x: mx.array, layer: int, levels: Levels, eps: float) -> mx.array:
        """Input of sub-layer number `layer`."""
        return norm_modulate(x, self.weights[:, :, layer], self.shifts[:, :, layer], levels, eps)

    def added(self, x: mx.array, update: mx.array, layer: int, levels: Levels) -> mx.array:
        """x after sub-layer number `layer`, whose output is `update`."""
        assert self.gates is not None
        return add_gated(x, update, self.gates[:, :, layer], levels)


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

    def text_keys_values(self, prefix: Prefix, stream: StreamInputs) -> KeysValues:
        """Keys and values of the text. They depend on the prompt and, where text is modulated, on sigma."""
        context = stream.context
        if stream.prompt is not None:
            rows = add_table(stream.prompt, self[f"{prefix}prompt_scale_shift_table"])
            context = scale_shift(context, 1 + rows[:, :, 1], rows[:, :, 0])
        attention: Attention = self[f"{prefix}attn2"]
        return attention.keys_values(context)

    def _text(self, index: int, prefix: Prefix, stream: StreamInputs, kept: Kept | None) -> KeysValues:
        if kept is None or not stream.texts:
            return self.text_keys_values(prefix, stream)
        found, start = [], 0
        for text in stream.texts:  # each by itself: passes that run together share their prompts too
            rows = slice(start, start + len(text))
            part = stream if len(stream.texts) == 1 else stream.of_rows(rows)
            make = partial(self.text_keys_values, prefix, part)
            found.append(kept.keys_values(index, prefix, text, stream.text_levels[rows], make))
            start = rows.stop
        if len(found) == 1:
            return found[0]
        return mx.concatenate([keys for keys, _ in found]), mx.concatenate([values for _, values in found])

    def _attend(self, prefix: Prefix, x: mx.array, stream: StreamInputs, rows: Rows, skip: bool | mx.array) -> mx.array:
        """x after self-attention."""
        h = rows.normed(x, _SELF, stream.levels, self.eps)
        update = self[f"{prefix}attn1"](h, rope=stream.rope, mask=stream.self_mask, skip=skip)
        return rows.added(x, update, _SELF, stream.levels)

    def _attend_to_text(
        self, prefix: Prefix, x: mx.array, stream: StreamInputs, rows: Rows, text: KeysValues
    ) -> mx.array:
        """x after attention to the text."""
        attention: Attention = self[f"{prefix}attn2"]
        if not self.modulated_text:
            return x + attention.attend(rms_norm(x, self.eps), text, mask=stream.context_mask)
        h = rows.normed(x, _TEXT, stream.levels, self.eps)
        update = attention.attend(h, text, mask=stream.context_mask)
        return rows.added(x, update, _TEXT, stream.levels)

    def _attend_across(
        self,
        prefix: Prefix,
        tokens: Tokens,
        inputs: Mapping[Prefix, CrossInputs],
        rows: Mapping[Prefix, Rows],
        skip: bool | mx.array,
    ) -> mx.array:
        """Tokens of stream `prefix` after attention to those of the other stream."""
        x, other = tokens[prefix], _OTHER[prefix]
        if skip is True:
            return x
        pair = _CROSS[prefix]
        queries, context = (rows[p].normed(tokens[p], pair, inputs[p].levels, self.eps) for p in (prefix, other))
        attention = self.video_to_audio_attn if prefix else self.audio_to_video_attn
        update = attention(queries, context, rope=inputs[prefix].rope, key_rope=inputs[other].rope)
        if not isinstance(skip, bool):
            update = update * mx.logical_not(skip)[:, None, None].astype(update.dtype)
        gate = add_table(inputs[prefix].gate, self._cross_table(prefix)[4:])[:, :, 0]
        return add_gated(x, update, gate, inputs[prefix].gate_levels)

    def _cross_table(self, prefix: Prefix) -> mx.array:
        return self.scale_shift_table_a2v_ca_audio if prefix else self.scale_shift_table_a2v_ca_video

    def _feed_forward(self, prefix: Prefix, x: mx.array, stream: StreamInputs, rows: Rows) -> mx.array:
        h = rows.normed(x, _FEED_FORWARD, stream.levels, self.eps)
        return rows.added(x, self[f"{prefix}ff"](h), _FEED_FORWARD, stream.levels)

    def __call__(
        self, index: int, inputs: Pass, tokens: Tokens, texts: Mapping[Prefix, KeysValues] | None = None
    ) -> Tokens:
        """Tokens after this block.

        index: its number, for perturbations that name blocks. texts: kept `text_keys_values`, if any.
        """
        x, skips = dict(tokens), inputs.perturbations
        running = {prefix: stream for prefix, stream in inputs.streams.items() if stream.enabled}
        rows = {p: Rows.of_block(s.rows, self[f"{p}scale_shift_table"]) for p, s in running.items()}
        for p, stream in running.items():
            x[p] = self._attend(p, x[p], stream, rows[p], skipped(skips, SELF_ATTENTION[p], index))
            text = texts[p] if texts is not None else self._text(index, p, stream, inputs.kept)
            x[p] = self._attend_to_text(p, x[p], stream, rows[p], text)
        if inputs.cross:
            before = dict(x)  # both directions read the tokens as they were before either wrote
            cross = {p: Rows.of_cross(c.rows, self._cross_table(p)[:4]) for p, c in inputs.cross.items()}
            for p in running:
                skip = skipped(skips, CROSS_ATTENTION[p], index)
                x[p] = self._attend_across(p, before, inputs.cross, cross, skip)
        for p, stream in running.items():
            x[p] = self._feed_forward(p, x[p], stream, rows[p])
        return x
