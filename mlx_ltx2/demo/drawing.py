"""What the demo model may be given: pictures and sounds by the rules of the world that it was trained on.

The rules are those of training/world.py. Lengths are fractions of the picture's side, y grows downwards.
"""

from __future__ import annotations

import numpy as np

from mlx_ltx2.states import Waveform

COLOURS = {
    "red": (225, 35, 35),
    "green": (35, 175, 60),
    "blue": (45, 85, 235),
    "yellow": (245, 225, 50),
    "orange": (245, 130, 25),
    "purple": (145, 50, 200),
    "cyan": (50, 215, 225),
    "white": (245, 245, 245),
}
_BLACK = np.array((12, 12, 12), np.float32)
RATE_HZ = 48000
_STEP = RATE_HZ // 100  # pitches change every 10 ms, where all of them cross zero
_FLOOR, _HEIGHT = 0.75, 0.47  # lowest and highest centre of a bouncing circle of radius 0.2


def picture(kind: str, colour: str, x: float, y: float, *, radius: float = 0.2, size: int = 128) -> np.ndarray:
    """A shape on black: uint8 (size, size, 3). kind: "circle", "square", "triangle" or "star"."""
    grid = (np.arange(size) + 0.5) / size
    inside = np.clip(0.5 - size * _distance(kind, grid[None] - x, grid[:, None] - y, radius), 0, 1)
    return np.round(_BLACK + inside[..., None] * (np.array(COLOURS[colour]) - _BLACK)).astype(np.uint8)


def bouncing_sound(seconds: float, bounces: float = 2.2, phase: float = 0.35) -> Waveform:
    """What a bouncing circle sounds like: higher is higher, with a click at each landing.

    bounces: how many there are in the clip. phase: 0..1, where in a bounce it begins.
    """
    count = round(seconds * RATE_HZ)
    steps = -(-count // _STEP)
    cycle = (np.arange(steps) + 0.5) / 100 / seconds * bounces + phase
    y = _FLOOR - _HEIGHT * (1 - (2 * np.mod(cycle, 1) - 1) ** 2)
    pitch_hz = np.repeat(100 * np.round(3 + 9 * (1 - y)), _STEP)
    t = np.arange(steps * _STEP) / RATE_HZ
    sound = 0.6 * np.sin(2 * np.pi * pitch_hz * t)
    for landing in landings(seconds, bounces, phase):
        start = round(landing * 100) * _STEP
        n = np.arange(2 * _STEP) / RATE_HZ
        click = sum(gain * np.sin(2 * np.pi * hz * n) for hz, gain in ((2500, 1.0), (5100, 1.0), (10000, 0.6)))
        sound[start : start + len(n)] += 0.5 * np.exp(-n / 0.004) * click
    middle = 0.5 * np.sqrt(0.5)  # of the stereo picture
    return Waveform(np.repeat(middle * sound[:count, None], 2, axis=1).astype(np.float32), RATE_HZ)


def landings(seconds: float, bounces: float = 2.2, phase: float = 0.35) -> list[float]:
    """Seconds at which the circle of `bouncing_sound` touches the floor."""
    times = [(n - phase) / bounces * seconds for n in range(1, int(bounces + phase) + 1)]
    return [t for t in times if t < seconds - 0.05]


def _distance(kind: str, x: np.ndarray, y: np.ndarray, radius: float) -> np.ndarray:
    """Distance of points from the edge of a shape around 0, negative inside."""
    if kind == "circle":
        return np.asarray(np.hypot(x, y) - radius)
    if kind == "square":
        return np.asarray(np.maximum(np.abs(x), np.abs(y)) - 0.86 * radius)
    if kind == "triangle":
        return np.asarray(np.maximum(np.sqrt(0.75) * np.abs(x) - 0.5 * y, y) - 0.58 * radius)
    fifth = 2 * np.pi / 5
    angle = np.mod(np.arctan2(x, -y) + fifth / 2, fifth) - fifth / 2
    along, across = np.hypot(x, y) * np.cos(angle), np.abs(np.hypot(x, y) * np.sin(angle))
    inner_x, inner_y = 0.48 * np.cos(fifth / 2), 0.48 * np.sin(fifth / 2)  # where two points of the star meet
    length = np.hypot(inner_y, 1.1 - inner_x)
    return np.asarray(((along - 1.1 * radius) * inner_y + across * (1.1 - inner_x)) / length)
