"""Where each token lies: [start, end) bounds in seconds and pixels, float32 on the host.

Video axes are (seconds, pixel rows, pixel columns), audio has seconds only. The video VAE is causal: latent
frame 0 covers one pixel frame, every later one `scale.time` of them (reference:
ltx_core.components.patchifiers and the conditioning items of release 1.2.0).
"""

from __future__ import annotations

import numpy as np

from mlx_ltx2.shapes import AudioScale, LatentShape, VideoScale


def _grid(shape: LatentShape) -> np.ndarray:
    """(3, N, 2) integer bounds on the latent grid in the order frame, row, column."""
    axes = np.meshgrid(
        np.arange(shape.frames), np.arange(shape.height), np.arange(shape.width), indexing="ij", sparse=False
    )
    starts = np.stack([axis.reshape(-1) for axis in axes])
    return np.stack([starts, starts + 1], axis=-1)


def _pixel_bounds(shape: LatentShape, scale: VideoScale, causal: bool = True) -> np.ndarray:
    """(3, N, 2) float32 bounds in pixel frames, rows and columns."""
    bounds = _grid(shape) * np.array([scale.time, scale.space, scale.space])[:, None, None]
    if causal:
        bounds[0] = np.maximum(bounds[0] + 1 - scale.time, 0)
    result: np.ndarray = bounds.astype(np.float32)
    return result


def _batched(bounds: np.ndarray, batch: int) -> np.ndarray:
    return np.repeat(bounds[None], batch, axis=0)


def video_positions(shape: LatentShape, fps: float, batch: int = 1, scale: VideoScale = VideoScale()) -> np.ndarray:
    """Bounds of a clip's tokens: (B, 3, N, 2) float32. Frame 0 is [0, 1/fps), frame k [(8k-7)/fps,
    (8k+1)/fps).
    """
    bounds = _pixel_bounds(shape, scale)
    bounds[0] /= np.float32(fps)
    return _batched(bounds, batch)


def audio_positions(frames: int, batch: int = 1, scale: AudioScale = AudioScale(), first: int = 0) -> np.ndarray:
    """Bounds of audio latents `first` .. `first + frames`: (B, 1, T, 2) float32 seconds; latent 0 is [0,
    0.01).
    """
    edges = np.arange(first, first + frames + 1, dtype=np.float32) * scale.downsample
    edges = np.maximum(edges + 1 - scale.downsample, 0)
    seconds = edges * np.float32(scale.hop_length) / np.float32(scale.rate_hz)
    return _batched(np.stack([seconds[:-1], seconds[1:]], axis=-1)[None], batch)


def keyframe_positions(
    shape: LatentShape,
    frame: int,
    fps: float,
    batch: int = 1,
    scale: VideoScale = VideoScale(),
    pixel_frames: int = 1,
) -> np.ndarray:
    """Bounds of keyframe latents appended at pixel frame `frame`: (B, 3, N, 2) float32.

    A keyframe that encodes one pixel frame spans one pixel frame (release 1.2.0; 1.0.0 let it span eight).
    The causal shift applies at frame 0 only.
    """
    bounds = _pixel_bounds(shape, scale, causal=frame == 0)
    bounds[0] += frame
    if pixel_frames == 1:
        bounds[0, :, 1] = bounds[0, :, 0] + 1
    bounds[0] /= np.float32(fps)
    return _batched(bounds, batch)


def reference_positions(
    shape: LatentShape,
    fps: float,
    batch: int = 1,
    scale: VideoScale = VideoScale(),
    downscale: int = 1,
    temporal_scale: int = 1,
) -> np.ndarray:
    """Bounds of reference-video tokens laid over the target: (B, 3, N, 2) float32.

    downscale: target size / reference size. temporal_scale: target fps / reference fps; such a reference
    shows frame 0 and then every S-th frame, so its times are stretched by S and shifted back by S - 1 target
    frames.
    """
    bounds = _pixel_bounds(shape, scale)
    bounds[0] /= np.float32(fps / temporal_scale)
    if temporal_scale != 1:
        frame_seconds = np.float32(1) / np.float32(fps)
        bounds[0] = np.maximum(bounds[0] - (temporal_scale - 1) * frame_seconds, 0)
    bounds[1:] *= downscale
    return _batched(bounds, batch)


def reference_audio_positions(
    frames: int, batch: int = 1, scale: AudioScale = AudioScale(), gap_seconds: float = 0.04
) -> np.ndarray:
    """Bounds of reference audio that lies wholly before time 0, `gap_seconds` ahead of it: (B, 1, T, 2)
    float32.

    Official dubbing subtracts the reference's own duration (frames / latents per second) plus one latent.
    """
    duration = frames / scale.latents_per_second + gap_seconds
    return audio_positions(frames, batch, scale) - np.float32(duration)
