"""The audio-video diffusion transformer of LTX-2 and LTX-2.3: noisy tokens to velocities.

`Transformer.__call__` is `prepare`, every `block`, `finish`; a runner that streams blocks from disk or keeps
text keys and values calls the three itself. Reference: ltx_core.model.transformer.model.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial

import mlx.core as mx
import numpy as np
from mlx import nn

from mlx_ltx2.models.layers.feed_forward import gelu_tanh
from mlx_ltx2.models.layers.rope import Rope, build_rope, midpoints
from mlx_ltx2.models.transformer.block import (
    CrossInputs,
    Pass,
    StreamInputs,
    Tokens,
    TransformerBlock,
)
from mlx_ltx2.models.transformer.config import Prefix, StreamConfig, TransformerConfig
from mlx_ltx2.models.transformer.kept import Kept, KeysValues
from mlx_ltx2.models.transformer.modulation import (
    AdaLayerNormSingle,
    Levels,
    add_table,
    over_tokens,
    scale_shift,
)
from mlx_ltx2.states import Modality, Perturbation

Velocities = tuple[mx.array | None, mx.array | None]
"""Video and audio, each (B, N, C) or None where the stream is absent."""


@dataclass(frozen=True)
class RopeTables:
    """Rotations of one clip's tokens; they depend on positions only and serve every step.

    kept: what else the evaluations of the clip share, if the caller wants it: give it here, once per clip and network.
    """

    video: Rope | None = None
    audio: Rope | None = None
    video_cross: Rope | None = None
    audio_cross: Rope | None = None
    kept: Kept | None = None


class CaptionProjection(nn.Module):
    """Text of the connector to the stream's width (19B only). Checkpoint names linear_1 and linear_2."""

    def __init__(self, channels: int, dim: int):
        super().__init__()
        self.linear_1 = nn.Linear(channels, dim)
        self.linear_2 = nn.Linear(dim, dim)

    def __call__(self, x: mx.array) -> mx.array:
        return self.linear_2(gelu_tanh(self.linear_1(x)))


def self_attention_bias(mask: mx.array, dtype: mx.Dtype) -> mx.array:
    """(B, N, N) attention strengths in [0, 1] -> (B, 1, N, N) additive: log, lowest number for 0."""
    # Clamped, because a device that flushes subnormal numbers would make their log infinite.
    smallest = float(np.finfo(np.float32).tiny)
    bias = mx.where(mask > 0, mx.log(mx.maximum(mask, smallest)), mx.finfo(dtype).min)
    return bias.astype(dtype)[:, None]


def context_bias(mask: mx.array, dtype: mx.Dtype) -> mx.array:
    """(B, S) text mask -> (B, 1, 1, S) additive. Integers and bools: 1 keeps; floats are additive already."""
    mask = mask.reshape(mask.shape[0], 1, -1, mask.shape[-1])
    if mx.issubdtype(mask.dtype, mx.floating):
        return mask.astype(dtype)
    return mx.where(mask.astype(mx.bool_), 0.0, -mx.finfo(dtype).max).astype(dtype)


class Transformer(nn.Module):
    """Blocks over video tokens, audio tokens or both. Parameters keep the checkpoint's names."""

    def __init__(self, config: TransformerConfig):
        super().__init__()
        self.config = config
        for prefix, s in config.streams():
            self[f"{prefix}patchify_proj"] = nn.Linear(s.in_channels, s.dim)
            if s.caption_channels is not None:
                self[f"{prefix}caption_projection"] = CaptionProjection(s.caption_channels, s.dim)
            self[f"{prefix}adaln_single"] = AdaLayerNormSingle(s.dim, config.rows)
            if config.modulated_text:
                self[f"{prefix}prompt_adaln_single"] = AdaLayerNormSingle(s.dim, 2)
            self[f"{prefix}scale_shift_table"] = mx.zeros((2, s.dim))
            self[f"{prefix}proj_out"] = nn.Linear(s.dim, s.out_channels)
        if config.video is not None and config.audio is not None:
            self.av_ca_video_scale_shift_adaln_single = AdaLayerNormSingle(config.video.dim, 4)
            self.av_ca_audio_scale_shift_adaln_single = AdaLayerNormSingle(config.audio.dim, 4)
            self.av_ca_a2v_gate_adaln_single = AdaLayerNormSingle(config.video.dim, 1)
            self.av_ca_v2a_gate_adaln_single = AdaLayerNormSingle(config.audio.dim, 1)
        self.transformer_blocks = [TransformerBlock(config) for _ in range(config.layers)]

    @property
    def dtype(self) -> mx.Dtype:
        """Type of the activations, which is that of the weights; biases have it in quantised networks too."""
        prefix = "" if self.config.video is not None else "audio_"
        bias: mx.array = self[f"{prefix}patchify_proj"].bias
        return bias.dtype

    def rope(
        self,
        video_positions: np.ndarray | None,
        audio_positions: np.ndarray | None,
        dtype: mx.Dtype | None = None,
    ) -> RopeTables:
        """Tables for tokens at these positions, (B, axes, N, 2) float32 bounds as in `Modality`.

        They depend on nothing else: build them once per clip. dtype: of the activations, `dtype` if None.
        """
        config, dtype = self.config, dtype or self.dtype

        def build(positions: np.ndarray, dim: int, heads: int, limits: Sequence[float]) -> Rope:
            centres = midpoints(positions)
            return build_rope(centres, dim=dim, heads=heads, max_positions=limits, config=config.rope, dtype=dtype)

        def own(positions: np.ndarray | None, stream: StreamConfig | None) -> Rope | None:
            if positions is None or stream is None:
                return None
            return build(positions, stream.dim, stream.heads, stream.max_positions)

        tables = RopeTables(own(video_positions, config.video), own(audio_positions, config.audio))
        if video_positions is None or audio_positions is None or config.video is None or config.audio is None:
            return tables
        limit = (max(config.video.max_positions[0], config.audio.max_positions[0]),)
        cross = (config.cross_rope_dim, config.audio.heads, limit)
        return replace(
            tables,
            video_cross=build(video_positions[:, :1], *cross),
            audio_cross=build(audio_positions[:, :1], *cross),
        )

    def _stream(self, prefix: Prefix, modality: Modality, rope: Rope, kept: Kept | None) -> StreamInputs:
        dtype, scale = self.dtype, np.float32(self.config.timestep_scale)
        levels = Levels.of(modality.timesteps, modality.runs, modality.latent.shape[1])
        rows, embedded = self[f"{prefix}adaln_single"](levels.values * scale, dtype)
        prompt, text_levels = None, ()
        if self.config.modulated_text:
            sigma = np.asarray(modality.sigma, np.float32).reshape(-1, 1)
            prompt, _ = self[f"{prefix}prompt_adaln_single"](sigma * scale, dtype)
            text_levels = tuple(sigma[:, 0].tolist())
        mask = modality.context_mask
        return StreamInputs(
            levels=levels,
            rows=rows,
            embedded=embedded,
            context=self._context(prefix, modality, kept),
            rope=rope,
            prompt=prompt,
            self_mask=self._bias(prefix, modality.attention_mask, kept),
            context_mask=None if mask is None else context_bias(mask, dtype),
            enabled=modality.enabled,
            texts=modality.texts or (modality.context,),
            text_levels=text_levels,
        )

    def _context(self, prefix: Prefix, modality: Modality, kept: Kept | None) -> mx.array:
        """The text at the width of the stream."""
        if f"{prefix}caption_projection" not in self:
            return modality.context.astype(self.dtype)

        def project(text: mx.array) -> mx.array:
            out: mx.array = self[f"{prefix}caption_projection"](text.astype(self.dtype))
            return out

        if kept is None:
            return project(modality.context)
        texts = modality.texts or (modality.context,)
        parts = [kept.context(prefix, text, partial(project, text)) for text in texts]
        return parts[0] if len(parts) == 1 else mx.concatenate(parts)

    def _bias(self, prefix: Prefix, mask: mx.array | None, kept: Kept | None) -> mx.array | None:
        if mask is None:
            return None
        make = partial(self_attention_bias, mask, self.dtype)
        return make() if kept is None else kept.bias(prefix, mask, make)

    def _cross(self, prefix: Prefix, stream: StreamInputs, other: Modality, rope: Rope) -> CrossInputs:
        config = self.config
        theirs = Levels(np.asarray(other.sigma, np.float32).reshape(-1, 1))
        levels = theirs if config.cross_modulation == "1.0.0" else stream.levels
        gate_levels = stream.levels if config.cross_modulation == "own" else theirs
        scale = np.float32(config.timestep_scale)
        gate_scale = np.float32(config.gate_timestep_scale / config.timestep_scale)
        name = "audio" if prefix else "video"
        gates = self.av_ca_v2a_gate_adaln_single if prefix else self.av_ca_a2v_gate_adaln_single
        rows, _ = self[f"av_ca_{name}_scale_shift_adaln_single"](levels.values * scale, self.dtype)
        gate, _ = gates(gate_levels.values * scale * gate_scale, self.dtype)
        return CrossInputs(rope, levels, rows, gate_levels, gate)

    def prepare(
        self,
        video: Modality | None,
        audio: Modality | None,
        *,
        rope: RopeTables | None = None,
        perturbations: Sequence[Perturbation] | None = None,
    ) -> tuple[Pass, Tokens]:
        """What every block reads, and the tokens for the first block.

        Raises ValueError for streams that are not built and for inputs that do not fit each other.
        """
        self._check(video, audio, perturbations)
        if rope is None:
            rope = self.rope(None if video is None else video.positions, None if audio is None else audio.positions)
        given: dict[Prefix, Modality] = {}
        if video is not None:
            given[""] = video
        if audio is not None:
            given["audio_"] = audio
        own: dict[Prefix, Rope | None] = {"": rope.video, "audio_": rope.audio}
        crossing: dict[Prefix, Rope | None] = {"": rope.video_cross, "audio_": rope.audio_cross}
        streams = {p: self._stream(p, m, self._table(own[p]), rope.kept) for p, m in given.items()}
        tokens = {p: self[f"{p}patchify_proj"](m.latent.astype(self.dtype)) for p, m in given.items()}
        cross: dict[Prefix, CrossInputs] = {}
        if video is not None and audio is not None:
            cross[""] = self._cross("", streams[""], audio, self._table(crossing[""]))
            cross["audio_"] = self._cross("audio_", streams["audio_"], video, self._table(crossing["audio_"]))
        skips = None if perturbations is None else tuple(perturbations)
        return Pass(streams, cross, skips, rope.kept), tokens

    def _table(self, rope: Rope | None) -> Rope:
        if rope is None or rope.cos.dtype != self.dtype:
            raise ValueError(f"rotation tables lack a stream or are not {self.dtype}; build them with rope()")
        return rope

    def _check(
        self,
        video: Modality | None,
        audio: Modality | None,
        perturbations: Sequence[Perturbation] | None,
    ) -> None:
        if video is None and audio is None:
            raise ValueError("give a video stream, an audio stream or both")
        for name, modality, built in (
            ("video", video, self.config.video),
            ("audio", audio, self.config.audio),
        ):
            if modality is not None and built is None:
                raise ValueError(f"this transformer was built without its {name} stream")
        batch = {m.latent.shape[0] for m in (video, audio) if m is not None}
        if len(batch) > 1 or (perturbations is not None and {len(perturbations)} != batch):
            given = "none" if perturbations is None else len(perturbations)
            raise ValueError(f"batch sizes differ: streams {sorted(batch)}, perturbations {given}")

    def block(
        self,
        index: int,
        inputs: Pass,
        tokens: Tokens,
        texts: Mapping[Prefix, KeysValues] | None = None,
    ) -> Tokens:
        """Tokens after block `index`. texts: kept results of `TransformerBlock.text_keys_values`."""
        return self.transformer_blocks[index](index, inputs, tokens, texts)

    def finish(self, inputs: Pass, tokens: Tokens) -> Velocities:
        """Velocities from the tokens after the last block."""
        heads = {p: self._head(p, stream, tokens[p]) for p, stream in inputs.streams.items()}
        return heads.get(""), heads.get("audio_")

    def _head(self, prefix: Prefix, stream: StreamInputs, x: mx.array) -> mx.array:
        rows = add_table(stream.embedded[:, :, None], self[f"{prefix}scale_shift_table"])
        eps = self.config.norm_eps

        def modulate(x: mx.array, scale: mx.array, shift: mx.array) -> mx.array:
            return scale_shift(mx.fast.layer_norm(x, None, None, eps), 1 + scale, shift)

        x = over_tokens(modulate, stream.levels, [x], [rows[:, :, 1], rows[:, :, 0]])
        out: mx.array = self[f"{prefix}proj_out"](x)
        return out

    def __call__(
        self,
        video: Modality | None,
        audio: Modality | None,
        *,
        rope: RopeTables | None = None,
        perturbations: Sequence[Perturbation] | None = None,
        between_blocks: Callable[[int, Tokens], None] | None = None,
    ) -> Velocities:
        """Velocities (B, N, C) of each stream in the weights' type; None for a stream that is None.

        rope: `rope` of the same positions, built here if None. perturbations: one per sample of the batch.
        between_blocks: called with the block's number and its tokens, where a caller may evaluate or give up.
        Raises ValueError as `prepare`.
        """
        inputs, tokens = self.prepare(video, audio, rope=rope, perturbations=perturbations)
        for index in range(len(self.transformer_blocks)):
            tokens = self.block(index, inputs, tokens)
            if between_blocks is not None:
                between_blocks(index, tokens)
        return self.finish(inputs, tokens)
