"""The transformer in its plain form: what the equations say, operation by operation, with the weights of our network.

Every token carries its own noise level, so all modulation exists once per token; tables stay in float32; norms,
modulation, rotation and gates are separate operations; rotation tables are made in every pass. It is the arm that the
lean form is measured against, and it must give the same numbers.
"""

from __future__ import annotations

from typing import Any

import mlx.core as mx
import numpy as np
from mlx import nn

from mlx_ltx2.models.layers.attention import Attention
from mlx_ltx2.models.layers.rope import frequencies, midpoints
from mlx_ltx2.models.transformer import Transformer, TransformerBlock
from mlx_ltx2.states import Modality

Rotation = tuple[mx.array, mx.array]
Streams = dict[str, Any]


def plain_pass(network: Transformer, video: Modality, audio: Modality) -> tuple[mx.array, mx.array]:
    """Velocities of both streams; batch 1, the split rotation layout, no masks, no perturbations."""
    given = {"": video, "audio_": audio}
    rope = _rotations(network, video, audio)
    x, own, embedded, cross, gates, texts = {}, {}, {}, {}, {}, {}
    for p, m in given.items():
        other = given["audio_" if p == "" else ""]
        levels = _per_token(m)
        x[p] = network[f"{p}patchify_proj"](m.latent)
        own[p], embedded[p] = network[f"{p}adaln_single"](levels * 1000, mx.float32)
        name = "audio" if p else "video"
        cross[p], _ = network[f"av_ca_{name}_scale_shift_adaln_single"](levels * 1000, mx.float32)
        gate = network.av_ca_v2a_gate_adaln_single if p else network.av_ca_a2v_gate_adaln_single
        factor = np.float32(network.config.gate_timestep_scale)
        gates[p], _ = gate(other.sigma[:, None] * factor, mx.float32)
        texts[p] = _text(network, p, m)
    for block in network.transformer_blocks:
        x = _block(block, x, own, cross, gates, texts, rope)
    return _head(network, "", x[""], embedded[""]), _head(network, "audio_", x["audio_"], embedded["audio_"])


def _per_token(m: Modality) -> np.ndarray:
    tokens = m.latent.shape[1]
    if m.timesteps.shape[1] == tokens:
        return m.timesteps
    return np.repeat(m.timesteps, m.runs or [tokens], axis=1)


def _text(network: Transformer, p: str, m: Modality) -> tuple[mx.array, mx.array | None]:
    if f"{p}caption_projection" in network:
        projection = network[f"{p}caption_projection"]
        return projection.linear_2(nn.gelu_approx(projection.linear_1(m.context))), None
    if not network.config.modulated_text:
        return m.context, None
    rows, _ = network[f"{p}prompt_adaln_single"](m.sigma[:, None] * 1000, mx.float32)
    return m.context, rows


def _rotations(network: Transformer, video: Modality, audio: Modality) -> dict[str, Rotation]:
    c = network.config
    time = (max(c.video.max_positions[0], c.audio.max_positions[0]),)
    v, a = midpoints(video.positions), midpoints(audio.positions)
    return {
        "": _rotation(v, c.video.dim, c.video.heads, c.video.max_positions, c.rope.theta),
        "audio_": _rotation(a, c.audio.dim, c.audio.heads, c.audio.max_positions, c.rope.theta),
        "cross": _rotation(v[:, :1], c.cross_rope_dim, c.audio.heads, time, c.rope.theta),
        "audio_cross": _rotation(a[:, :1], c.cross_rope_dim, c.audio.heads, time, c.rope.theta),
    }


def _rotation(positions: np.ndarray, dim: int, heads: int, limits: tuple[float, ...], theta: float) -> Rotation:
    """(B, H, N, D/2) cosines and sines of every token."""
    axes = len(limits)
    grid = frequencies(theta, dim // (2 * axes))
    fractions = positions.transpose(0, 2, 1) / np.asarray(limits, np.float32)
    angles = (fractions * 2 - 1)[..., None, :].astype(np.float32) * grid[:, None]
    angles = mx.array(angles.reshape(*angles.shape[:2], -1))
    padding = [(0, 0), (0, 0), (dim // 2 - angles.shape[-1], 0)]
    cos, sin = mx.pad(mx.cos(angles), padding, constant_values=1.0), mx.pad(mx.sin(angles), padding)
    shape = (*cos.shape[:2], heads, -1)
    return cos.reshape(shape).transpose(0, 2, 1, 3), sin.reshape(shape).transpose(0, 2, 1, 3)


def _rotate(x: mx.array, rope: Rotation | None) -> mx.array:
    if rope is None:
        return x
    cos, sin = rope
    first, second = mx.split(x, 2, axis=-1)
    return mx.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)


def _attention(a: Attention, x: mx.array, context: mx.array, q_rope=None, k_rope=None) -> mx.array:
    def heads(y: mx.array) -> mx.array:
        return y.reshape(*y.shape[:2], a.heads, -1).transpose(0, 2, 1, 3)

    queries, keys = _rotate(heads(a.q_norm(a.to_q(x))), q_rope), _rotate(heads(a.k_norm(a.to_k(context))), k_rope)
    out = mx.fast.scaled_dot_product_attention(queries, keys, heads(a.to_v(context)), scale=a.scale)
    out = out.transpose(0, 2, 1, 3)
    if "to_gate_logits" in a:
        out = out * (2 * mx.sigmoid(a.to_gate_logits(x)))[..., None]
    return a.to_out[0](out.flatten(2))


def _norm(x: mx.array, eps: float) -> mx.array:
    return mx.fast.rms_norm(x, None, eps)


def _modulated(x: mx.array, shift: mx.array, scale: mx.array, eps: float) -> mx.array:
    return _norm(x, eps) * (1 + scale) + shift


def _block(
    block: TransformerBlock, x: Streams, own: Streams, cross: Streams, gates: Streams, texts: Streams, rope: Streams
) -> Streams:
    x, eps, rows = dict(x), block.eps, {}
    for p in x:
        rows[p] = own[p] + block[f"{p}scale_shift_table"]
        r = [rows[p][:, :, i] for i in range(rows[p].shape[2])]
        h = _modulated(x[p], r[0], r[1], eps)
        x[p] = x[p] + _attention(block[f"{p}attn1"], h, h, rope[p], rope[p]) * r[2]
        context, prompt = texts[p]
        if prompt is None:
            x[p] = x[p] + _attention(block[f"{p}attn2"], _norm(x[p], eps), context)
            continue
        table = prompt + block[f"{p}prompt_scale_shift_table"]
        context = context * (1 + table[:, :, 1]) + table[:, :, 0]
        x[p] = x[p] + _attention(block[f"{p}attn2"], _modulated(x[p], r[6], r[7], eps), context) * r[8]
    tables = {"": block.scale_shift_table_a2v_ca_video, "audio_": block.scale_shift_table_a2v_ca_audio}
    before = dict(x)
    for p, other, k, attention in (
        ("", "audio_", 0, block.audio_to_video_attn),
        ("audio_", "", 2, block.video_to_audio_attn),
    ):
        mod = {s: cross[s] + tables[s][:4] for s in x}
        q, kv = (_modulated(before[s], mod[s][:, :, k + 1], mod[s][:, :, k], eps) for s in (p, other))
        update = _attention(attention, q, kv, rope[f"{p}cross"], rope[f"{other}cross"])
        x[p] = x[p] + update * (gates[p] + tables[p][4:])[:, :, 0]
    for p in x:
        r = rows[p]
        ff = block[f"{p}ff"]
        h = nn.gelu_approx(ff.net[0].proj(_modulated(x[p], r[:, :, 3], r[:, :, 4], eps)))
        x[p] = x[p] + ff.net[2](h) * r[:, :, 5]
    return x


def _head(network: Transformer, p: str, x: mx.array, embedded: mx.array) -> mx.array:
    rows = embedded[:, :, None] + network[f"{p}scale_shift_table"]
    x = mx.fast.layer_norm(x, None, None, network.config.norm_eps) * (1 + rows[:, :, 1]) + rows[:, :, 0]
    return network[f"{p}proj_out"](x)
