"""Pixel, latent and audio shapes; every snapping and validity rule, once.

Rules are those of the official release 1.2.0 (`ltx_core.types`): latent frames = (F - 1) // 8 + 1, audio latents =
round-half-even(seconds * 25). Sizes off the grid are refused with the two nearest that fit, never snapped in silence.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from mlx_ltx2.errors import ShapeError

MAX_SECONDS = 20.0
"""The rotary embedding's time axis ends here; longer clips extrapolate."""


@dataclass(frozen=True)
class VideoScale:
    """How much the video VAE compresses: frames per latent frame, pixels per latent row or column."""

    time: int = 8
    space: int = 32


@dataclass(frozen=True)
class AudioScale:
    """The audio VAE's clock: one latent covers hop_length * downsample samples at rate_hz."""

    rate_hz: int = 16000
    hop_length: int = 160
    downsample: int = 4

    @property
    def latents_per_second(self) -> float:
        return self.rate_hz / self.hop_length / self.downsample


@dataclass(frozen=True)
class VideoShape:
    """A clip in pixels."""

    frames: int
    height: int
    width: int
    fps: float = 24.0

    @property
    def seconds(self) -> float:
        return self.frames / self.fps

    def latent(self, scale: VideoScale = VideoScale()) -> LatentShape:
        return LatentShape((self.frames - 1) // scale.time + 1, self.height // scale.space, self.width // scale.space)

    def halved(self) -> VideoShape:
        return VideoShape(self.frames, self.height // 2, self.width // 2, self.fps)


@dataclass(frozen=True)
class LatentShape:
    """A clip on the latent grid."""

    frames: int
    height: int
    width: int

    @property
    def tokens(self) -> int:
        return self.frames * self.height * self.width

    def pixels(self, fps: float = 24.0, scale: VideoScale = VideoScale()) -> VideoShape:
        return VideoShape((self.frames - 1) * scale.time + 1, self.height * scale.space, self.width * scale.space, fps)


def audio_latent_frames(seconds: float, scale: AudioScale = AudioScale()) -> int:
    """Audio latents for a clip of `seconds`; Python's round, half to even, as the official code does."""
    return round(seconds * scale.latents_per_second)


def nearest_two(value: int, step: int, offset: int = 0) -> tuple[int, int]:
    """The two neighbours of `value` of the form offset + k * step, k >= 1 (or k >= 0 with an offset)."""
    least = offset if offset else step
    below = max(least, (value - offset) // step * step + offset)
    return below, below + step


def check_multiple(name: str, value: int, step: int, why: str) -> None:
    """Raise ShapeError unless `value` is a positive multiple of `step`."""
    if not isinstance(value, int) or value <= 0:
        raise ShapeError(f"{name} {value} must be a positive whole number; use a multiple of {step} ({why}).")
    if value % step:
        low, high = nearest_two(value, step)
        raise ShapeError(f"{name} {value} is not a multiple of {step} ({why}); use {low} or {high}.")


def check_frames(frames: int, scale: VideoScale = VideoScale()) -> None:
    """Raise ShapeError unless `frames` is 1 + k * scale.time."""
    if not isinstance(frames, int) or frames <= 0:
        raise ShapeError(f"num_frames {frames} must be a positive whole number of the form {scale.time}k+1.")
    if (frames - 1) % scale.time:
        low, high = nearest_two(frames, scale.time, 1)
        raise ShapeError(f"num_frames {frames} is not of the form {scale.time}k+1; use {low} or {high}.")


def check_fps(fps: float) -> None:
    if not (isinstance(fps, int | float) and math.isfinite(fps) and 0 < fps <= 240):
        raise ShapeError(f"fps {fps} is not a frame rate; use a number above 0 and at most 240.")


def check_video_shape(shape: VideoShape, *, two_stage: bool, scale: VideoScale = VideoScale()) -> None:
    """Every rule a requested clip must obey.

    Raises: ShapeError naming the value, the rule and the two nearest values that fit.
    """
    step = scale.space * (2 if two_stage else 1)
    why = "two-stage" if two_stage else "one-stage"
    check_multiple("height", shape.height, step, why)
    check_multiple("width", shape.width, step, why)
    check_frames(shape.frames, scale)
    check_fps(shape.fps)
    if max(shape.height, shape.width) > 8192:
        raise ShapeError(f"{shape.width}x{shape.height} is larger than the model's positions allow; use at most 8192.")
    if shape.frames > 8 * 512 + 1:
        raise ShapeError(f"num_frames {shape.frames} is beyond any useful clip; use at most {8 * 512 + 1}.")
