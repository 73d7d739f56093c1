"""The denoiser as one module: frozen Gemma, connectors and transformer, with the forward pass that is trained.

It differs from diffusers' forward pass in two ways. The modulation between audio and video follows ltx-core 1.2.0
(own per-token timesteps for scale and shift, the other stream's sigma for the gates). And a text context can be
computed on fewer than 1024 slots: registers repeat, so a slot that stands for m of them gets log m added to its
attention logits.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import torch
from diffusers.pipelines.ltx2.connectors import per_token_rms_norm
from torch import nn

from training import text
from training.models import AUDIO_DIM, LATENT, REGISTERS, VIDEO_DIM, connectors, transformer
from training.world import FPS

FULL_SLOTS = 1024
PERIOD = 32  # the registers are trained as 32 that repeat


@dataclass
class Context:
    """Text contexts (B, S, D) of both streams and the additive bias (B, 1, S) of their attention, None for zeros."""

    video: torch.Tensor
    audio: torch.Tensor
    bias: torch.Tensor | None

    def repeat(self, count: int) -> Context:
        return Context(*(None if t is None else t.repeat(count, 1, 1) for t in (self.video, self.audio, self.bias)))


@dataclass
class Stream:
    """Tokens of one modality: noisy x (B, N, C), per-token sigmas (B, N) or (B, 1), sigma (B,), positions (N, axes)."""

    x: torch.Tensor
    timesteps: torch.Tensor
    sigma: torch.Tensor
    positions: tuple[tuple[float, ...], ...]


def video_positions(
    frames: int, height: int, width: int, keyframes: Sequence[int] = ()
) -> tuple[tuple[float, ...], ...]:
    """Midpoints (seconds, pixels, pixels) of latent cells in (f h w) order, then of appended keyframes."""
    rows = []
    for f in range(frames):
        t = (0.5 if f == 0 else 8 * f - 3) / FPS
        rows += [(t, 32 * h + 16, 32 * w + 16) for h in range(height) for w in range(width)]
    for k in keyframes:
        rows += [((k + 0.5) / FPS, 32 * h + 16, 32 * w + 16) for h in range(height) for w in range(width)]
    return tuple(rows)


def audio_positions(count: int) -> tuple[tuple[float, ...], ...]:
    return tuple((0.005 if i == 0 else (4 * i - 1) * 0.01,) for i in range(count))


class Denoiser(nn.Module):
    """Gemma (frozen), connectors and transformer."""

    def __init__(self, out: Path):
        super().__init__()
        self.tokenizer, gemma = text.load(out)
        self.gemma = [gemma]  # in a list: it is no part of what is trained or saved here
        self.connectors = connectors(text.CONFIG["hidden_size"], text.STATES)
        self.transformer = transformer()

    def start(self) -> None:
        """Weights to begin with: open gates, no modulation, no output."""
        for name, p in self.named_parameters():
            if p.ndim == 2 and "table" not in name and "registers" not in name:
                nn.init.orthogonal_(p, 0.5 if "to_out" in name or "net.2" in name else 1.0)
            elif p.ndim == 1 and "norm" not in name:
                nn.init.zeros_(p)
        t = self.transformer
        with torch.no_grad():
            for name, p in t.named_parameters():
                if "scale_shift_table" in name:
                    p.zero_()
                    if p.shape[0] == 9:
                        p[[2, 5, 8]] = 0.5
                    elif p.shape[0] == 5:
                        p[4] = 0.5
                if "proj_out" in name or "to_gate_logits" in name or name.endswith((".linear.weight", ".linear.bias")):
                    p.zero_()
            for c in (self.connectors.video_connector, self.connectors.audio_connector):
                c.learnable_registers.normal_(0, 0.5)
        self.tie_registers()

    @torch.no_grad()
    def tie_registers(self) -> None:
        """Make the registers periodic again after an update."""
        for c in (self.connectors.video_connector, self.connectors.audio_connector):
            r = c.learnable_registers
            r.copy_(r[: 2 * PERIOD].unflatten(0, (2, PERIOD)).mean(0).repeat(REGISTERS // PERIOD, 1))

    def states(self, prompts: list[str]) -> tuple[torch.Tensor, torch.Tensor]:
        """Gemma's states (B, T, D, layers + 1), padded on the right, and the mask (B, T)."""
        ids, mask = text.encode_prompts(self.tokenizer, prompts)
        return text.hidden_states(self.gemma[0], ids), mask

    def context(self, prompts: list[str], slots: int = FULL_SLOTS) -> Context:
        """Contexts of prompts on `slots` slots."""
        hidden, mask = self.states(prompts)
        hidden = per_token_rms_norm(hidden).flatten(2, 3) * mask[..., None]
        count = mask.sum(1)
        slot = torch.arange(slots)
        is_text = slot[None] < count[:, None]
        bias = None
        if slots < FULL_SLOTS:
            copies = (FULL_SLOTS - count) / (slots - count)
            bias = torch.where(is_text, 0.0, copies.log()[:, None])[:, None]
        found = []
        c = self.connectors
        for project, connector, width in (
            (c.video_text_proj_in, c.video_connector, VIDEO_DIM),
            (c.audio_text_proj_in, c.audio_connector, AUDIO_DIM),
        ):
            x = project(hidden * math.sqrt(width / text.CONFIG["hidden_size"]))
            x = nn.functional.pad(x, (0, 0, 0, slots - x.shape[1]))
            x = torch.where(is_text[..., None], x, connector.learnable_registers[slot % REGISTERS])
            rope = tuple(r.expand(x.shape[0], -1, -1, -1) for r in connector.rope(1, slots, device=x.device))
            for block in connector.transformer_blocks:
                x = block(x, attention_mask=bias, rotary_emb=rope)
            found.append(connector.norm_out(x))
        return Context(found[0], found[1], bias)

    @lru_cache(maxsize=64)  # noqa: B019 - one denoiser lives as long as its run
    def rope(self, video: tuple, audio: tuple) -> tuple:
        """Rotary tables of self-attention and of the cross-attention between the streams."""
        t = self.transformer
        v = torch.tensor(video, dtype=torch.float32).T[None]
        a = torch.tensor(audio, dtype=torch.float32).T[None]
        return t.rope(v), t.audio_rope(a), t.cross_attn_rope(v[:, :1]), t.cross_attn_audio_rope(a[:, :1])

    def forward(self, video: Stream, audio: Stream, context: Context) -> tuple[torch.Tensor, torch.Tensor]:
        """Velocities (B, N, C) of both streams."""
        t = self.transformer
        b = video.x.shape[0]
        video_rope, audio_rope, cross_video_rope, cross_audio_rope = (
            tuple(part.expand(b, -1, -1, -1) for part in table) for table in self.rope(video.positions, audio.positions)
        )
        x, y = t.proj_in(video.x), t.audio_proj_in(audio.x)

        def embed(module: nn.Module, value: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            modulation, embedded = module(1000 * value.flatten(), batch_size=b, hidden_dtype=x.dtype)
            return modulation.view(b, -1, modulation.shape[-1]), embedded.view(b, -1, embedded.shape[-1])

        temb, embedded = embed(t.time_embed, video.timesteps)
        temb_audio, embedded_audio = embed(t.audio_time_embed, audio.timesteps)
        shared = {
            "encoder_hidden_states": context.video,
            "audio_encoder_hidden_states": context.audio,
            "temb": temb,
            "temb_audio": temb_audio,
            "temb_ca_scale_shift": embed(t.av_cross_attn_video_scale_shift, video.timesteps)[0],
            "temb_ca_audio_scale_shift": embed(t.av_cross_attn_audio_scale_shift, audio.timesteps)[0],
            "temb_ca_gate": embed(t.av_cross_attn_video_a2v_gate, audio.sigma)[0],
            "temb_ca_audio_gate": embed(t.av_cross_attn_audio_v2a_gate, video.sigma)[0],
            "temb_prompt": embed(t.prompt_adaln, video.sigma)[0],
            "temb_prompt_audio": embed(t.audio_prompt_adaln, audio.sigma)[0],
            "video_rotary_emb": video_rope,
            "audio_rotary_emb": audio_rope,
            "ca_video_rotary_emb": cross_video_rope,
            "ca_audio_rotary_emb": cross_audio_rope,
            "encoder_attention_mask": context.bias,
            "audio_encoder_attention_mask": context.bias,
        }
        for block in t.transformer_blocks:
            x, y = block(hidden_states=x, audio_hidden_states=y, **shared)

        def head(
            h: torch.Tensor, norm: nn.Module, table: torch.Tensor, emb: torch.Tensor, out: nn.Module
        ) -> torch.Tensor:
            shift, scale = (table[None, None] + emb[:, :, None]).unbind(2)
            return out(norm(h) * (1 + scale) + shift).float()

        return (
            head(x, t.norm_out, t.scale_shift_table, embedded, t.proj_out),
            head(y, t.audio_norm_out, t.audio_scale_shift_table, embedded_audio, t.audio_proj_out),
        )


def normalise(z: torch.Tensor, vae: nn.Module) -> torch.Tensor:
    """Video latents (B, C, F, H, W) by the VAE's statistics."""
    shape = (1, LATENT, 1, 1, 1)
    return (z - vae.latents_mean.view(shape)) / vae.latents_std.view(shape)


def denormalise(z: torch.Tensor, vae: nn.Module) -> torch.Tensor:
    shape = (1, LATENT, 1, 1, 1)
    return z * vae.latents_std.view(shape) + vae.latents_mean.view(shape)


def to_tokens(z: torch.Tensor) -> torch.Tensor:
    """(B, C, F, H, W) to tokens (B, F H W, C)."""
    return z.flatten(2).transpose(1, 2)


def to_latent(tokens: torch.Tensor, frames: int, height: int, width: int) -> torch.Tensor:
    return tokens.transpose(1, 2).unflatten(2, (frames, height, width))
