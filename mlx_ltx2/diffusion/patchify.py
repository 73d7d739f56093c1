"""Latents to token sequences and back. One token is one latent cell (video) or one latent frame (audio).

Token order is frame, row, column; features keep the checkpoint's order: channels for video, channel *
mel_bins + bin for audio (reference: ltx_core.components.patchifiers, patch size 1).
"""

from __future__ import annotations

import mlx.core as mx

from mlx_ltx2.errors import ShapeError
from mlx_ltx2.shapes import LatentShape


def video_to_tokens(latent: mx.array) -> mx.array:
    """(B, F, H, W, C) -> (B, F * H * W, C)."""
    batch, frames, height, width, channels = latent.shape
    return latent.reshape(batch, frames * height * width, channels)


def tokens_to_video(tokens: mx.array, shape: LatentShape) -> mx.array:
    """(B, N, C) -> (B, F, H, W, C).

    Raises: ShapeError if N is not the number of cells in `shape`.
    """
    batch, count, channels = tokens.shape
    if count != shape.tokens:
        raise ShapeError(f"{count} video tokens do not fill {shape}; it has {shape.tokens} cells.")
    return tokens.reshape(batch, shape.frames, shape.height, shape.width, channels)


def audio_to_tokens(latent: mx.array) -> mx.array:
    """(B, T, mel, C) -> (B, T, C * mel), channel-major."""
    batch, frames, bins, channels = latent.shape
    return latent.transpose(0, 1, 3, 2).reshape(batch, frames, channels * bins)


def tokens_to_audio(tokens: mx.array, bins: int = 16, channels: int = 8) -> mx.array:
    """(B, T, C * mel) -> (B, T, mel, C).

    Raises: ShapeError if a token does not hold bins * channels features.
    """
    batch, frames, features = tokens.shape
    if features != bins * channels:
        raise ShapeError(f"An audio token of {features} features is not {channels} channels of {bins} mel bins.")
    return tokens.reshape(batch, frames, channels, bins).transpose(0, 1, 3, 2)
