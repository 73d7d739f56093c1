"""Frozen objects that stations hand to each other. They hold arrays and no behaviour worth a test.

Layout is channels-last everywhere: video latents (B, F, H, W, C), audio latents (B, T, mel, C), tokens (B, N, C).
Small control data (positions, masks, timesteps) is host numpy in float32, so that a denoising step never has to
wait for the device to decide anything.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import mlx.core as mx
import numpy as np

Blocks = frozenset[int] | Literal["all"]
"""Which transformer blocks a perturbation touches."""


@dataclass(frozen=True)
class TextContext:
    """What the text stage leaves behind for one prompt.

    video: (B, S, Dv) output of the video connector. audio: (B, S, Da), or None in a video-only build.
    """

    video: mx.array | None
    audio: mx.array | None = None


@dataclass(frozen=True)
class Modality:
    """One stream's input to one transformer evaluation.

    latent: (B, N, C) tokens. sigma: (B,) global noise level in [0, 1], 0 for a frozen stream.
    timesteps: (B, K) float32 noise levels, and `runs` says which tokens they hold for:
    K == 1 for every token; `runs` of K lengths that sum to N for consecutive stretches of tokens;
    `runs` None and K == N for each token by itself.
    positions: (B, axes, N, 2) float32 [start, end) bounds; axes are (seconds, px, px) for video, (seconds,) for audio.
    context: (B, S, D) text. texts: what `context` was joined from along the batch, in order, where the same arrays come
    again in other evaluations: results that depend on them alone may be kept.
    attention_mask: (B or 1, N, N) float32 in [0, 1], or None for full attention.
    enabled: False leaves the stream's own tokens untouched; they still serve the other stream as keys and values.
    """

    latent: mx.array
    sigma: np.ndarray
    timesteps: np.ndarray
    positions: np.ndarray
    context: mx.array
    runs: tuple[int, ...] | None = None
    attention_mask: mx.array | None = None
    context_mask: mx.array | None = None
    enabled: bool = True
    texts: tuple[mx.array, ...] = ()


@dataclass(frozen=True)
class Perturbation:
    """What one sample of a batch leaves out, block by block (spatio-temporal and modality guidance).

    A skipped self-attention outputs its value projection, which still passes the gates and the output projection;
    a skipped cross-modal attention adds nothing.
    """

    skip_video_self: Blocks = frozenset()
    skip_audio_self: Blocks = frozenset()
    skip_audio_to_video: Blocks = frozenset()
    skip_video_to_audio: Blocks = frozenset()

    def skips(self, kind: str, block: int) -> bool:
        """True if `kind` ("video_self", "audio_self", "audio_to_video", "video_to_audio") is left out in `block`."""
        blocks: Blocks = getattr(self, f"skip_{kind}")
        return blocks == "all" or block in blocks


@dataclass(frozen=True)
class LatentState:
    """One stream while it is denoised, in tokens.

    latent, clean_latent: (B, N, C). denoise_mask: (B, N) float32, 1 = generate, 0 = keep clean_latent.
    positions: (B, axes, N, 2) float32. attention_mask: (B, N, N) float32 or None.
    target_tokens: the first so many tokens are the result; conditioning tokens only ever follow them.
    frozen: the stream is held at sigma 0 and only read.
    """

    latent: mx.array
    clean_latent: mx.array
    denoise_mask: np.ndarray
    positions: np.ndarray
    target_tokens: int
    attention_mask: mx.array | None = None
    frozen: bool = False

    def with_latent(self, latent: mx.array) -> LatentState:
        return replace(self, latent=latent)


@dataclass(frozen=True)
class Waveform:
    """samples: float32 (N, channels) in [-1, 1]. rate_hz: samples per second.

    notes: what reading a file changed, in words.
    """

    samples: np.ndarray
    rate_hz: int
    notes: tuple[str, ...] = ()

    @property
    def seconds(self) -> float:
        return len(self.samples) / self.rate_hz


@dataclass(frozen=True)
class PromptTokens:
    """ids: the real tokens, BOS first. cut: how many tokens of the prompt did not fit. cut_text: their text."""

    ids: Sequence[int]
    cut: int = 0
    cut_text: str = ""


@dataclass(frozen=True)
class DenoisedPair:
    """Latents after the last stage: video (B, F, H, W, C) and audio (B, T, mel, C), either may be None."""

    video: mx.array | None
    audio: mx.array | None
    notes: Mapping[str, Any] = field(default_factory=dict)
