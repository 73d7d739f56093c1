"""Building, noising, freezing and reading the latent state of one stream.

A state starts as the initial latents (or zeros) with mask 1; conditioning items then overwrite or append
tokens; noise comes last (reference: ltx_core.tools and ltx_core.components.noisers, release 1.2.0).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import NamedTuple, Protocol

import mlx.core as mx
import numpy as np

from mlx_ltx2.diffusion.patchify import audio_to_tokens, tokens_to_audio, tokens_to_video, video_to_tokens
from mlx_ltx2.diffusion.positions import audio_positions, video_positions
from mlx_ltx2.errors import RequestError, ShapeError
from mlx_ltx2.shapes import AudioScale, LatentShape, VideoScale
from mlx_ltx2.states import LatentState, Modality


class StatePair(NamedTuple):
    """Both streams of a clip; either may be absent."""

    video: LatentState | None
    audio: LatentState | None


class LatentPair(NamedTuple):
    """One array of tokens (B, N, C) per stream, None where there is nothing."""

    video: mx.array | None
    audio: mx.array | None


class ConditioningItem(Protocol):
    """Anything that changes a state before noise is added. Tokens may only be appended at the end."""

    def apply(self, state: LatentState) -> LatentState: ...


def video_state(
    shape: LatentShape,
    channels: int,
    fps: float,
    *,
    latent: mx.array | None = None,
    batch: int = 1,
    dtype: mx.Dtype = mx.bfloat16,
    scale: VideoScale = VideoScale(),
) -> LatentState:
    """A video stream before conditioning: mask 1 everywhere.

    latent: (B, F, H, W, C) normalised initial latents, zeros if not given. fps: frames per second of the
    clip.
    Raises: ShapeError if `latent` is not of `shape` and `channels`.
    """
    want = (batch, shape.frames, shape.height, shape.width, channels)
    if latent is not None and latent.shape != want:
        raise ShapeError(f"initial video latents of shape {latent.shape} were given; this clip needs {want}.")
    tokens = mx.zeros((batch, shape.tokens, channels)) if latent is None else video_to_tokens(latent)
    return _state(tokens.astype(dtype), video_positions(shape, fps, batch, scale))


def audio_state(
    frames: int,
    *,
    latent: mx.array | None = None,
    bins: int = 16,
    channels: int = 8,
    batch: int = 1,
    dtype: mx.Dtype = mx.bfloat16,
    scale: AudioScale = AudioScale(),
) -> LatentState:
    """An audio stream before conditioning: mask 1 everywhere.

    latent: (B, T, mel, C) normalised initial latents, zeros if not given.
    Raises: ShapeError if `latent` is not of the given size.
    """
    want = (batch, frames, bins, channels)
    if latent is not None and latent.shape != want:
        raise ShapeError(f"initial audio latents of shape {latent.shape} were given; this clip needs {want}.")
    tokens = mx.zeros((batch, frames, bins * channels)) if latent is None else audio_to_tokens(latent)
    return _state(tokens.astype(dtype), audio_positions(frames, batch, scale))


def _state(tokens: mx.array, positions: np.ndarray) -> LatentState:
    batch, count, _ = tokens.shape
    return LatentState(
        latent=tokens,
        clean_latent=tokens,
        denoise_mask=np.ones((batch, count), np.float32),
        positions=positions,
        target_tokens=count,
    )


def conditioned(state: LatentState, items: Iterable[ConditioningItem]) -> LatentState:
    """The state with every item applied in order."""
    for item in items:
        state = item.apply(state)
    return state


def add_noise(state: LatentState, noise: np.ndarray | mx.array, noise_scale: float = 1.0) -> LatentState:
    """Mix noise into the state: lerp(clean, lerp(latent, noise, noise_scale), mask), in float32.

    noise: (B, N, C) over all tokens, appended ones included. noise_scale: first sigma of the stage, in [0,
    1].
    Raises: ShapeError if the noise does not cover the state, RequestError if noise_scale is out of range.
    """
    if tuple(noise.shape) != state.latent.shape:
        raise ShapeError(f"noise of shape {tuple(noise.shape)} does not fit a state of {state.latent.shape}.")
    if not 0 <= noise_scale <= 1:
        raise RequestError(f"noise scale {noise_scale} is out of range; use 0 to 1.")
    noise = noise if isinstance(noise, mx.array) else mx.array(noise)
    latent = state.latent.astype(mx.float32)
    mixed = latent * (1 - noise_scale) + noise.astype(mx.float32) * noise_scale
    return state.with_latent(blend(state, mixed).astype(state.latent.dtype))


def freeze(state: LatentState) -> LatentState:
    """The state held at its clean latents: never stepped, read by the other stream at sigma 0."""
    return replace(
        state,
        latent=state.clean_latent,
        denoise_mask=np.zeros_like(state.denoise_mask),
        frozen=True,
    )


def blend(state: LatentState, x: mx.array) -> mx.array:
    """x * mask + clean * (1 - mask) in float32; (B, N, C)."""
    x = x.astype(mx.float32)
    if (state.denoise_mask == 1).all():
        return x
    mask = mx.array(state.denoise_mask[..., None])
    return x * mask + state.clean_latent.astype(mx.float32) * (1 - mask)


def target_latent(state: LatentState) -> mx.array:
    """The result's tokens, conditioning tokens cut off: (B, target_tokens, C)."""
    return state.latent[:, : state.target_tokens]


def result_video(state: LatentState, shape: LatentShape) -> mx.array:
    """The result as video latents (B, F, H, W, C)."""
    return tokens_to_video(target_latent(state), shape)


def result_audio(state: LatentState, bins: int = 16, channels: int = 8) -> mx.array:
    """The result as audio latents (B, T, mel, C)."""
    return tokens_to_audio(target_latent(state), bins, channels)


def mask_runs(mask: np.ndarray) -> tuple[int, ...]:
    """Lengths of the stretches of consecutive tokens with equal mask values in every sample. mask: (B, N)."""
    count = mask.shape[1]
    borders = np.flatnonzero((mask[:, 1:] != mask[:, :-1]).any(axis=0)) + 1
    edges = np.concatenate([[0], borders, [count]])
    return tuple(int(n) for n in np.diff(edges))


def token_sigmas(state: LatentState, sigma: float) -> np.ndarray:
    """Noise level of every token: mask * sigma, (B, N) float32; zeros for a frozen stream."""
    return state.denoise_mask * np.float32(0 if state.frozen else sigma)


def _timesteps(state: LatentState, sigma: float) -> tuple[np.ndarray, tuple[int, ...] | None]:
    """`Modality.timesteps` and `Modality.runs`: one level per stretch of tokens, (B, K)."""
    levels = token_sigmas(state, sigma)
    runs = mask_runs(levels)
    if len(runs) == 1:
        return levels[:, :1], None
    if len(runs) == levels.shape[1]:
        return levels, None
    return levels[:, np.cumsum([0, *runs[:-1]])], runs


def to_modality(
    state: LatentState, sigma: float, context: mx.array, *, repeat: int = 1, enabled: bool = True
) -> Modality:
    """The state as a transformer input at noise level `sigma`.

    context: (repeat * B, S, D) text, or one row for all. repeat: how many passes share the batch, samples
    innermost. enabled: False leaves the stream's own tokens untouched.
    """
    timesteps, runs = _timesteps(state, sigma)
    rows = repeat * state.latent.shape[0]
    mask = state.attention_mask
    if mask is not None and mask.shape[0] != rows:  # else handed on as it is, so that it is known again
        mask = mx.broadcast_to(mask, (rows, *mask.shape[1:])) if mask.shape[0] == 1 else mx.tile(mask, (repeat, 1, 1))
    if context.shape[0] != rows:
        context = mx.broadcast_to(context, (rows, *context.shape[1:]))
    return Modality(
        latent=mx.tile(state.latent, (repeat, 1, 1)) if repeat > 1 else state.latent,
        sigma=np.full(rows, 0 if state.frozen else sigma, np.float32),
        timesteps=np.tile(timesteps, (repeat, 1)),
        positions=np.tile(state.positions, (repeat, 1, 1, 1)),
        context=context,
        runs=runs,
        attention_mask=mask,
        enabled=enabled,
    )
