"""What the video latents mean: a code of each 32x32x8 cell, computed from the scene. numpy only.

A VAE that has to find its own code learns shapes late: colour and place come first, outlines after many thousands of
steps. Here the code is given, from the world's own description. Encoder, decoder and denoiser then learn apart from
each other, from exact targets, at the same time; the decoder sees the code with noise, and the encoder's own output.

The 32 channels of a cell, in pixels of the rendered size and the block's 8 frames (1 for the first cell in time):
0-15 coverage of its 4x4 sub-cells in the middle of the block; 16-19 coverage of its quarters at the end minus at the
start; 20-22 colour, 23-26 kind, 27 size and 28 outline of the nearest shape, fading to zero 8 pixels away from it;
29-31 mean background colour.
"""

from __future__ import annotations

import numpy as np

from training.world import BACKGROUNDS, COLOURS, FPS, KINDS, Scene, signed_distance

CHANNELS = 32
CELL = 32


def _coverage(scene: Scene, size: int, frames: np.ndarray) -> np.ndarray:
    """Share of each 8x8 sub-cell that shapes cover: (F, size / 8, size / 8). Drawn at half the resolution."""
    fine = size // 2
    grid = ((np.arange(fine) + 0.5) / fine).astype(np.float32)
    mask = np.zeros((len(frames), fine, fine), np.float32)
    for shape in scene.shapes:
        path = shape.track(frames / FPS, scene.duration).astype(np.float32)
        x, y = grid[None, None] - path[:, 0, None, None], grid[None, :, None] - path[:, 1, None, None]
        distance = signed_distance(shape.kind, x, y, path[:, 2, None, None]) * fine
        mask = np.maximum(mask, np.clip(0.5 - distance, 0, 1))
    return mask.reshape(len(frames), size // 8, 4, size // 8, 4).mean((2, 4))


def _cells(values: np.ndarray, parts: int) -> np.ndarray:
    """(F, H, W) with `parts` values per cell and axis -> (F, h, w, parts * parts)."""
    f, h, w = values.shape
    split = values.reshape(f, h // parts, parts, w // parts, parts)
    return split.transpose(0, 1, 3, 2, 4).reshape(f, h // parts, w // parts, parts * parts)


def _attributes(scene: Scene, size: int, middles: np.ndarray, outline: bool) -> np.ndarray:
    """Colour, kind, size and outline of the nearest shape: (F, h, w, 9)."""
    side = size // CELL
    edge = np.arange(side) * CELL
    best = np.full((len(middles), side, side), np.inf)
    found = np.zeros((len(middles), side, side, 9), np.float32)
    for shape in scene.shapes:
        path = shape.track(middles / FPS, scene.duration) * size
        gap_x, gap_y = (
            np.maximum(np.maximum(edge[None] - path[:, i, None], path[:, i, None] - edge[None] - CELL), 0)
            for i in (0, 1)
        )
        gap = np.hypot(gap_x[:, None, :], gap_y[:, :, None]) - path[:, 2, None, None]
        presence = np.clip(1 - gap / 8, 0, 1)[..., None]
        about = np.zeros((len(middles), 9), np.float32)
        about[:, :3] = np.array(COLOURS[shape.colour]) / 127.5 - 1
        about[:, 3 + KINDS.index(shape.kind)] = 1
        about[:, 7] = path[:, 2] / 20 - 0.5
        about[:, 8] = float(outline)
        nearer = (gap < best)[..., None]
        found = np.where(nearer, presence * about[:, None, None], found)
        best = np.minimum(best, gap)
    return found


_GROUPS = (  # channels, mean, deviation, over the scenes of the world
    (16, 0.09, 0.25),
    (4, 0.0, 0.13),
    (3, 0.1, 0.6),
    (4, 0.23, 0.42),
    (1, 0.08, 0.16),
    (1, 0.0, 0.3),
    (3, -0.62, 0.26),
)
MEAN = np.concatenate([np.full(n, m, np.float32) for n, m, _ in _GROUPS])
STD = np.concatenate([np.full(n, s, np.float32) for n, _, s in _GROUPS])


def scene_code(
    scene: Scene, size: int, *, start: int = 0, frames: int | None = None, outline: bool = False
) -> np.ndarray:
    """Code of a clip's frames `start`, `start + 1`, ... (8k + 1 of them, all by default): float32 (k + 1, h, w, 32)."""
    blocks = ((scene.frames if frames is None else frames) - 1) // 8
    first = start + np.array([0, *(8 * k + 1 for k in range(blocks))])
    last = start + np.array([0, *(8 * k + 8 for k in range(blocks))])
    middle = (first + last) / 2
    times, where = np.unique(np.concatenate([first, middle, last]), return_inverse=True)
    coverage = _coverage(scene, size, times)[where].reshape(3, len(middle), size // 8, size // 8)
    change = coverage[2] - coverage[0]
    quarters = change.reshape(len(middle), size // 16, 2, size // 16, 2).mean((2, 4))
    top, bottom = (np.array(c) / 127.5 - 1 for c in BACKGROUNDS[scene.background])
    rows = (np.arange(size // CELL) + 0.5) / (size // CELL)
    ground = top + (bottom - top) * rows[:, None]
    ground = np.broadcast_to(ground[None, :, None], (len(middle), size // CELL, size // CELL, 3))
    pieces = (_cells(coverage[1], 4), _cells(quarters, 2), _attributes(scene, size, middle, outline), ground)
    return np.concatenate(pieces, axis=-1).astype(np.float32)


def normalised(code: np.ndarray) -> np.ndarray:
    return (code - MEAN) / STD
