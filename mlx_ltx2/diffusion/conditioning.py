"""What a clip is conditioned on: images, keyframes, reference clips, masks. Each item turns a state into a
state.

Items run before noise is added. They either overwrite the clean latents of target tokens or append tokens
after them; appended tokens start as zeros with the given content as clean latents. `strength` s holds a token
at s * clean + (1 - s) * noise, with noise level (1 - s) * sigma (reference: ltx_core.conditioning of release
1.2.0).
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import mlx.core as mx
import numpy as np

from mlx_ltx2.diffusion.patchify import audio_to_tokens, video_to_tokens
from mlx_ltx2.diffusion.positions import (
    keyframe_positions,
    reference_audio_positions,
    reference_positions,
)
from mlx_ltx2.diffusion.state import ConditioningItem
from mlx_ltx2.errors import RequestError, ShapeError
from mlx_ltx2.shapes import AudioScale, LatentShape, VideoScale
from mlx_ltx2.states import LatentState


@dataclass(frozen=True)
class LatentAt:
    """Replace target tokens from latent frame `index` on: an image at frame 0, or the frames to extend.

    latent: (B, F, H, W, C) normalised. strength: 0 to 1.
    Raises (apply): ShapeError if size or length do not fit the target.
    """

    latent: mx.array
    index: int = 0
    strength: float = 1.0

    def apply(self, state: LatentState) -> LatentState:
        _check_strength(self.strength)
        grid = target_grid(state)
        frames, height, width = self.latent.shape[1:4]
        if (height, width) != (grid.height, grid.width):
            raise ShapeError(
                f"conditioning latents of {height}x{width} do not fit a clip of {grid.height}x{grid.width} latents."
            )
        if self.index < 0 or self.index + frames > grid.frames:
            raise ShapeError(
                f"latent frames {self.index} to {self.index + frames} lie outside the clip's {grid.frames}."
            )
        start = self.index * height * width
        tokens = video_to_tokens(self.latent)
        mask = state.denoise_mask.copy()
        mask[:, start : start + tokens.shape[1]] = 1 - np.float32(self.strength)
        return replace(state, clean_latent=_overwritten(state.clean_latent, tokens, start), denoise_mask=mask)


@dataclass(frozen=True)
class LatentAtAudio:
    """Replace target audio tokens from latent `index` on. latent: (B, T, mel, C) normalised."""

    latent: mx.array
    index: int = 0
    strength: float = 1.0

    def apply(self, state: LatentState) -> LatentState:
        _check_strength(self.strength)
        tokens = audio_to_tokens(self.latent)
        count = tokens.shape[1]
        if self.index < 0 or self.index + count > state.target_tokens:
            raise ShapeError(
                f"audio latents {self.index} to {self.index + count} lie outside the clip's {state.target_tokens}."
            )
        mask = state.denoise_mask.copy()
        mask[:, self.index : self.index + count] = 1 - np.float32(self.strength)
        return replace(state, clean_latent=_overwritten(state.clean_latent, tokens, self.index), denoise_mask=mask)


@dataclass(frozen=True)
class Keyframe:
    """Append keyframe latents that belong to pixel frame `frame`.

    latent: (B, F, H, W, C) normalised, usually one latent frame. fps: the clip's. pixel_frames: how many
    pixel frames the latent encodes; one narrows its time span to one frame.
    """

    latent: mx.array
    frame: int
    fps: float
    strength: float = 1.0
    pixel_frames: int = 1
    scale: VideoScale = field(default_factory=VideoScale)

    def apply(self, state: LatentState) -> LatentState:
        shape = _check_size(self.latent, state, "keyframe")
        if self.frame < 0:
            raise RequestError(f"keyframe at frame {self.frame}: frames count from 0.")
        positions = keyframe_positions(shape, self.frame, self.fps, self.latent.shape[0], self.scale, self.pixel_frames)
        return appended(state, video_to_tokens(self.latent), positions, self.strength)


@dataclass(frozen=True)
class ReferenceVideo:
    """Append a whole reference clip (IC-LoRA) laid over the target.

    latent: (B, F, H, W, C) normalised. downscale: target size / reference size. temporal_scale: target fps /
    reference fps. fps: the target's.
    """

    latent: mx.array
    fps: float
    downscale: int = 1
    temporal_scale: int = 1
    strength: float = 1.0
    scale: VideoScale = field(default_factory=VideoScale)

    def apply(self, state: LatentState) -> LatentState:
        batch, frames, height, width, _ = self.latent.shape
        positions = reference_positions(
            LatentShape(frames, height, width),
            self.fps,
            batch,
            self.scale,
            self.downscale,
            self.temporal_scale,
        )
        return appended(state, video_to_tokens(self.latent), positions, self.strength)


@dataclass(frozen=True)
class ReferenceAudio:
    """Append reference sound, before time 0 unless `positions` (B, 1, T, 2) in seconds say otherwise.

    latent: (B, T, mel, C) normalised.
    """

    latent: mx.array
    positions: np.ndarray | None = None
    strength: float = 1.0
    scale: AudioScale = field(default_factory=AudioScale)

    def apply(self, state: LatentState) -> LatentState:
        tokens = audio_to_tokens(self.latent)
        positions = self.positions
        if positions is None:
            positions = reference_audio_positions(tokens.shape[1], tokens.shape[0], self.scale)
        return appended(state, tokens, np.asarray(positions, np.float32), self.strength)


@dataclass(frozen=True)
class LatentMask:
    """Hold the masked cells of the target at given latents (inpainting).

    latent: (B, F, H, W, C) normalised, of the target's size. mask: (B, F, H, W), 1 = hold, 0 = generate.
    """

    latent: mx.array
    mask: np.ndarray
    strength: float = 1.0

    def apply(self, state: LatentState) -> LatentState:
        _check_strength(self.strength)
        grid = target_grid(state)
        want = (self.latent.shape[0], grid.frames, grid.height, grid.width)
        if self.mask.shape != want or self.latent.shape[:4] != want:
            raise ShapeError(
                f"mask {self.mask.shape} and latents {self.latent.shape[:4]} must both be (B, F, H, W) = {want}."
            )
        held = np.asarray(self.mask, np.float32).reshape(want[0], -1)
        tokens = video_to_tokens(self.latent).astype(mx.float32)
        weight = mx.array(held[..., None])
        head = state.clean_latent[:, : state.target_tokens].astype(mx.float32)
        mixed = (head * (1 - weight) + tokens * weight).astype(state.clean_latent.dtype)
        mask = state.denoise_mask.copy()
        target = mask[:, : state.target_tokens]
        mask[:, : state.target_tokens] = target * (1 - held) + (1 - np.float32(self.strength)) * held
        return replace(state, clean_latent=_overwritten(state.clean_latent, mixed, 0), denoise_mask=mask)


@dataclass(frozen=True)
class TemporalRegion:
    """Generate only target tokens that touch the open interval (start, end) in seconds; hold all others.

    Overwrites the mask of every target token, so it comes before items that set one. For video and audio
    alike.
    """

    start: float
    end: float

    def apply(self, state: LatentState) -> LatentState:
        if not self.start < self.end:
            raise RequestError(f"the region from {self.start} s to {self.end} s is empty; its end must be later.")
        times = state.positions[:, 0, : state.target_tokens]
        touched = (times[..., 1] > self.start) & (times[..., 0] < self.end)
        mask = state.denoise_mask.copy()
        mask[:, : state.target_tokens] = touched
        return replace(state, denoise_mask=mask)


@dataclass(frozen=True)
class WithAttention:
    """An appending item whose tokens exchange attention with the target at a given weight.

    weight: scalar, (M,) or (B, M) in [0, 1] for the M tokens that the item appends.
    """

    item: ConditioningItem
    weight: float | np.ndarray

    def apply(self, state: LatentState) -> LatentState:
        after = self.item.apply(state)
        count = after.latent.shape[1] - state.latent.shape[1]
        if count == 0:
            return after
        weight = np.asarray(self.weight, np.float32)
        if weight.ndim > 2 or (weight.ndim and weight.shape[-1] != count):
            raise ShapeError(f"attention weights of shape {weight.shape} do not fit {count} appended tokens.")
        if not (np.isfinite(weight).all() and weight.min() >= 0 and weight.max() <= 1):
            raise RequestError("attention weights must lie in [0, 1].")
        return replace(after, attention_mask=extended_attention(state, count, weight))


def target_grid(state: LatentState) -> LatentShape:
    """The latent grid of a video state, read off its positions."""
    times, rows = (state.positions[0, axis, : state.target_tokens, 0] for axis in (0, 1))
    per_frame = int((times == times[0]).sum())
    width = int((rows[:per_frame] == rows[0]).sum())
    return LatentShape(state.target_tokens // per_frame, per_frame // width, width)


def appended(state: LatentState, tokens: mx.array, positions: np.ndarray, strength: float) -> LatentState:
    """The state with conditioning tokens (B, M, C) after its own."""
    _check_strength(strength)
    batch, _, features = state.latent.shape
    if tokens.shape[0] not in (1, batch) or tokens.shape[2] != features:
        raise ShapeError(f"conditioning tokens of shape {tokens.shape} do not fit a state of {state.latent.shape}.")
    count = tokens.shape[1]
    tokens = mx.broadcast_to(tokens.astype(state.latent.dtype), (batch, count, features))
    positions = np.broadcast_to(positions, (batch, *positions.shape[1:]))
    mask = np.full((batch, count), 1 - np.float32(strength), np.float32)
    attention = None if state.attention_mask is None else extended_attention(state, count, np.float32(1))
    return replace(
        state,
        latent=mx.concatenate([state.latent, mx.zeros_like(tokens)], axis=1),
        clean_latent=mx.concatenate([state.clean_latent, tokens], axis=1),
        denoise_mask=np.concatenate([state.denoise_mask, mask], axis=1),
        positions=np.concatenate([state.positions, positions], axis=2),
        attention_mask=attention,
    )


def extended_attention(state: LatentState, count: int, weight: np.ndarray | np.float32) -> mx.array:
    """The attention mask of `state` (ones if it has none) grown by `count` new tokens: (B or 1, N+M, N+M)
    float32.

    New tokens see each other fully, the target at `weight` both ways, and earlier conditioning tokens not at
    all.
    """
    old = state.latent.shape[1]
    others = old - state.target_tokens
    weight = np.asarray(weight, np.float32)
    rows = weight.shape[0] if weight.ndim == 2 else 1
    mask = state.attention_mask if state.attention_mask is not None else mx.ones((1, old, old))
    rows = max(rows, mask.shape[0])
    cross = mx.array(np.broadcast_to(weight, (rows, count)))
    mask = mx.broadcast_to(mask, (rows, old, old))
    beside = mx.concatenate(
        [
            mx.broadcast_to(cross[:, None], (rows, state.target_tokens, count)),
            mx.zeros((rows, others, count)),
        ],
        axis=1,
    )
    below = mx.concatenate([beside.transpose(0, 2, 1), mx.ones((rows, count, count))], axis=2)
    return mx.concatenate([mx.concatenate([mask, beside], axis=2), below], axis=1)


def attention_weights(mask: np.ndarray, latent_frames: int, height: int, width: int) -> np.ndarray:
    """A pixel mask video as weights of reference tokens: (F, H, W) in [0, 1] -> (F' * H' * W',).

    Space is averaged over areas; the first frame stands alone and later ones are averaged in equal groups.
    Raises: ShapeError if frames or sizes do not divide.
    """
    frames, rows, columns = mask.shape
    if rows % height or columns % width:
        raise ShapeError(f"a mask of {rows}x{columns} does not divide into {height}x{width} latents.")
    if latent_frames > 1 and (frames - 1) % (latent_frames - 1):
        raise ShapeError(f"a mask of {frames} frames does not divide into {latent_frames} latent frames.")
    cells = mask.reshape(frames, height, rows // height, width, columns // width).mean(axis=(2, 4))
    later = cells[1:].reshape(latent_frames - 1, -1, height, width).mean(axis=1) if latent_frames > 1 else cells[:0]
    return np.concatenate([cells[:1], later]).reshape(-1).astype(np.float32)


def _overwritten(x: mx.array, tokens: mx.array, start: int) -> mx.array:
    tokens = mx.broadcast_to(tokens.astype(x.dtype), (x.shape[0], *tokens.shape[1:]))
    return mx.concatenate([x[:, :start], tokens, x[:, start + tokens.shape[1] :]], axis=1)


def _check_strength(strength: float) -> None:
    if not 0 <= strength <= 1:
        raise RequestError(f"conditioning strength {strength} is out of range; use 0 (ignore) to 1 (keep exactly).")


def _check_size(latent: mx.array, state: LatentState, what: str) -> LatentShape:
    grid = target_grid(state)
    shape = LatentShape(*latent.shape[1:4])
    if (shape.height, shape.width) != (grid.height, grid.width):
        raise ShapeError(
            f"{what} latents of {shape.height}x{shape.width} do not fit a clip of {grid.height}x{grid.width} latents."
        )
    return shape
