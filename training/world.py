"""The demo world: coloured shapes that move and sound, with captions. numpy only, deterministic by seed.

A clip has one or two shapes on a plain or gradient background. Each shape has a kind, a colour and a motion; its
sound has a timbre by kind, a pitch by height (by size when it grows or shrinks), stereo panning by horizontal
position, a click at each bounce and silence when it is still. Every pitch is a multiple of 100 Hz and changes on a
10 ms grid, where all partials cross zero, so the sound has no jumps.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

KINDS = ("circle", "square", "triangle", "star")
COLOURS: dict[str, tuple[int, int, int]] = {
    "red": (225, 35, 35),
    "green": (35, 175, 60),
    "blue": (45, 85, 235),
    "yellow": (245, 225, 50),
    "orange": (245, 130, 25),
    "purple": (145, 50, 200),
    "cyan": (50, 215, 225),
    "white": (245, 245, 245),
}
MOTIONS = ("left", "right", "up", "down", "bounce", "circle", "grow", "shrink", "still")
VERTICAL_MOTIONS = ("up", "down", "bounce", "grow", "shrink", "still")
BACKGROUNDS: dict[str, tuple[tuple[int, int, int], tuple[int, int, int]]] = {  # colour at the top, at the bottom
    "black": ((12, 12, 12), (12, 12, 12)),
    "grey": ((95, 95, 95), (95, 95, 95)),
    "navy": ((18, 22, 70), (18, 22, 70)),
    "brown": ((80, 48, 26), (80, 48, 26)),
    "grey gradient": ((20, 20, 20), (115, 115, 115)),
    "blue gradient": ((10, 10, 35), (45, 60, 115)),
}
PARTIALS: dict[str, tuple[tuple[int, float], ...]] = {
    "circle": ((1, 1.0),),
    "square": ((1, 0.7), (3, 0.45), (5, 0.3)),
    "triangle": ((1, 0.7), (2, 0.6)),
    "star": ((1, 0.5), (2, 0.3), (4, 0.4), (6, 0.35)),
}
FPS = 24
FRAMES = 49
RATE_HZ = 48000
GRID_HZ = 100  # sounds change on this grid, and every pitch is a multiple of it


@dataclass(frozen=True)
class Shape:
    """One moving shape. Lengths are fractions of the picture; `phase` and `speed` mean what the motion needs."""

    kind: str
    colour: str
    motion: str
    x: float
    y: float
    radius: float
    speed: float
    phase: float
    place: str = ""  # "left" or "right" in a scene of two

    def track(self, seconds: np.ndarray, duration: float) -> np.ndarray:
        """Centre and radius at the given times: (T, 3) = x, y (0 at the top), radius."""
        u = np.asarray(seconds, np.float64) / duration
        x, y, r = (np.full_like(u, v) for v in (self.x, self.y, self.radius))
        if self.motion in ("left", "right"):
            x = self.x + (1 if self.motion == "right" else -1) * self.speed * (u - 0.5)
        elif self.motion in ("up", "down"):
            y = self.y + (1 if self.motion == "down" else -1) * self.speed * (u - 0.5)
        elif self.motion == "bounce":
            cycle = np.mod(u * self.speed + self.phase, 1.0)
            y = self.floor - self.height * (1 - (2 * cycle - 1) ** 2)
        elif self.motion == "circle":
            angle = 2 * np.pi * (u * self.speed + self.phase)
            x, y = self.x + 0.24 * np.cos(angle), self.y + 0.24 * np.sin(angle)
        elif self.motion in ("grow", "shrink"):
            v = u if self.motion == "grow" else 1 - u
            r = self.radius * (0.45 + 0.95 * v)
        return np.stack([x, y, r], axis=-1)

    @property
    def floor(self) -> float:
        return 0.95 - self.radius

    @property
    def height(self) -> float:
        return self.floor - self.radius - 0.08

    def bounces(self, duration: float) -> list[float]:
        """Times in seconds at which a bouncing shape touches the floor."""
        if self.motion != "bounce":
            return []
        first = int(np.ceil(self.phase))
        times = [(n - self.phase) / self.speed * duration for n in range(first, first + 8)]
        return [t for t in times if 0.02 < t < duration - 0.05]

    def pitch(self, seconds: np.ndarray, duration: float) -> np.ndarray:
        """Pitch in hertz on the 100 Hz ladder: 300..1200 by height, or by size when growing or shrinking."""
        track = self.track(seconds, duration)
        step = 12 - 32 * (track[:, 2] - 0.06) if self.motion in ("grow", "shrink") else 3 + 9 * (1 - track[:, 1])
        return GRID_HZ * np.clip(np.round(step), 3, 12)


@dataclass(frozen=True)
class Scene:
    shapes: tuple[Shape, ...]
    background: str
    frames: int = FRAMES

    @property
    def duration(self) -> float:
        return self.frames / FPS


def held_out(kind: str, colour: str, motion: str) -> bool:
    """Whether this combination is kept for the tests: one in eight, every value appears in both parts."""
    index = KINDS.index(kind) * 3 + list(COLOURS).index(colour) * 5 + MOTIONS.index(motion) * 7
    return index % 8 == 3


def sample_shape(rng: np.random.Generator, split: str, motions: Sequence[str] = MOTIONS, place: str = "") -> Shape:
    """Draw one shape; `split` is "train", "held" or "any"."""
    while True:
        kind, colour = str(rng.choice(KINDS)), str(rng.choice(list(COLOURS)))
        motion = str(rng.choice(motions))
        if split == "any" or held_out(kind, colour, motion) == (split == "held"):
            break
    return make_shape(rng, kind, colour, motion, place)


def make_shape(rng: np.random.Generator, kind: str, colour: str, motion: str, place: str = "") -> Shape:
    """A shape of the given kind, colour and motion with random size, place and speed."""
    radius = float(rng.uniform(0.13, 0.15) if place else rng.uniform(0.17, 0.22))
    if motion in ("grow", "shrink"):
        radius = 0.15 if place else 0.2
    x = {"left": 0.27, "right": 0.73}.get(place, float(rng.uniform(0.3, 0.7)))
    y = float(rng.uniform(0.35, 0.65))
    speed, phase = float(rng.uniform(0.36, 0.52)), float(rng.uniform(0, 1))
    if motion in ("left", "right"):
        x = float(rng.uniform(0.46, 0.54))
    elif motion in ("up", "down"):
        y = float(rng.uniform(0.46, 0.54))
    elif motion == "bounce":
        speed = float(rng.uniform(1.8, 2.6))
    elif motion == "circle":
        x, y, speed = 0.5, 0.5, float(rng.uniform(0.9, 1.2))
    return Shape(kind, colour, motion, x, y, radius, speed, phase, place)


def sample_scene(rng: np.random.Generator, split: str = "train", two: float = 0.15, frames: int = FRAMES) -> Scene:
    """Draw a scene; `two` is the probability of two shapes (side by side, with vertical motions)."""
    background = str(rng.choice(list(BACKGROUNDS)))
    if rng.random() < two:
        shapes = tuple(sample_shape(rng, split, VERTICAL_MOTIONS, place) for place in ("left", "right"))
    else:
        shapes = (sample_shape(rng, split),)
    return Scene(shapes, background, frames)


def signed_distance(kind: str, x: np.ndarray, y: np.ndarray, r: np.ndarray) -> np.ndarray:
    """Signed distance (negative inside) of points relative to the centre of a shape of radius r, y downwards."""
    if kind == "circle":
        return np.sqrt(x * x + y * y) - r
    if kind == "square":
        return np.maximum(np.abs(x), np.abs(y)) - 0.86 * r
    if kind == "triangle":  # pointing up
        side = 0.8660254 * np.abs(x) - 0.5 * y
        return np.maximum(side, y) - 0.58 * r
    angle = np.mod(np.arctan2(x, -y) + np.pi / 5, 2 * np.pi / 5) - np.pi / 5
    rho = np.sqrt(x * x + y * y)
    px, py = rho * np.cos(angle), np.abs(rho * np.sin(angle))
    # The edge of a five-pointed star runs from (1.1 r, 0) to the inner vertex at 36 degrees, 0.48 r out.
    ax, bx, by = 1.1, 0.48 * np.cos(np.pi / 5), 0.48 * np.sin(np.pi / 5)
    nx, ny = by, ax - bx
    return ((px - ax * r) * nx + py * ny) / np.hypot(nx, ny)


LINE = 0.04
"""Width of an outline as a share of the picture's side."""


def render(
    scene: Scene, size: int, *, frames: Sequence[int] | None = None, outline: float = 0.0, inside: bool = False
) -> tuple[np.ndarray, np.ndarray]:
    """Draw a scene: uint8 pixels (F, size, size, 3) and a foreground mask (F, size, size), float32 in 0..1.

    outline: width of the line as a share of the picture's side; 0 fills the shapes. The line runs around the shape, so
    that what it leaves empty is the whole shape; inside: along its inner edge instead.
    """
    index = np.arange(scene.frames) if frames is None else np.asarray(frames)
    seconds = index / FPS
    grid = ((np.arange(size) + 0.5) / size).astype(np.float32)
    top, bottom = (np.array(c, np.float32) for c in BACKGROUNDS[scene.background])
    column = top + (bottom - top) * grid[:, None]
    picture = np.broadcast_to(column[None, :, None, :], (len(index), size, size, 3)).astype(np.float32)
    mask = np.zeros((len(index), size, size), np.float32)
    for shape in scene.shapes:
        track = shape.track(seconds, scene.duration).astype(np.float32)
        x = grid[None, None, :] - track[:, 0, None, None]
        y = grid[None, :, None] - track[:, 1, None, None]
        distance = signed_distance(shape.kind, x, y, track[:, 2, None, None]) * size
        if outline:
            half = outline / 2 * size
            distance = np.abs(distance + (half if inside else -half)) - half
        cover = np.clip(0.5 - distance, 0, 1)
        colour = np.array(COLOURS[shape.colour], np.float32)
        picture = picture + cover[..., None] * (colour - picture)
        mask = np.maximum(mask, cover)
    return np.round(picture).astype(np.uint8), mask


def sound(scene: Scene, rate_hz: int = RATE_HZ) -> np.ndarray:
    """The sound of a scene: float32 (N, 2) in [-1, 1], N = round(duration * rate)."""
    count = round(scene.duration * rate_hz)
    hop = rate_hz // GRID_HZ
    steps = -(-count // hop)
    middle = (np.arange(steps) + 0.5) / GRID_HZ
    t = np.arange(steps * hop) / rate_hz
    out = np.zeros((steps * hop, 2))
    for shape in scene.shapes:
        pan = np.interp(t, middle, np.clip(shape.track(middle, scene.duration)[:, 0], 0, 1))
        gains = 0.5 * np.stack([np.sqrt(1 - pan), np.sqrt(pan)], axis=-1) / np.sqrt(len(scene.shapes))
        if shape.motion != "still":
            pitch = np.repeat(shape.pitch(middle, scene.duration), hop)
            wave = sum(a * np.sin(2 * np.pi * h * pitch * t) for h, a in PARTIALS[shape.kind])
            out += 0.6 * wave[:, None] * gains
        for at in shape.bounces(scene.duration):
            start = round(at * GRID_HZ) * hop
            n = np.arange(min(2 * hop, len(t) - start)) / rate_hz
            click = np.exp(-n / 0.004) * (np.sin(2 * np.pi * 2500 * n) + np.sin(2 * np.pi * 5100 * n))
            if rate_hz > 32000:
                click += 0.6 * np.exp(-n / 0.004) * np.sin(2 * np.pi * 10000 * n)
            out[start : start + len(n)] += 0.5 * click[:, None] * gains[start : start + len(n)]
    return np.clip(out[:count], -1, 1).astype(np.float32)


MOVES: dict[str, tuple[str, ...]] = {
    "left": (
        "moving left",
        "moving to the left",
        "sliding left",
        "going left",
        "that moves left",
        "gliding leftwards",
    ),
    "right": (
        "moving right",
        "moving to the right",
        "sliding right",
        "going right",
        "that moves right",
        "gliding rightwards",
    ),
    "up": ("moving up", "rising", "going up", "that rises", "moving upwards", "floating up"),
    "down": ("moving down", "falling", "going down", "that sinks", "moving downwards", "sinking"),
    "bounce": ("bouncing", "bouncing up and down", "that bounces", "bouncing on the floor", "hopping"),
    "circle": ("moving in a circle", "going round in circles", "circling", "orbiting", "that goes round"),
    "grow": ("growing", "getting bigger", "that grows", "growing larger", "becoming bigger"),
    "shrink": ("shrinking", "getting smaller", "that shrinks", "becoming smaller"),
    "still": ("standing still", "not moving", "at rest", "that stays still", "without moving", "resting"),
}
GROUNDS = ("on a {} background", "in front of a {} background", "over {}", "with a {} background", "on {}")
OPENINGS = ("", "", "", "a video of ", "a clip of ", "an animation of ", "there is ", "we see ")
NAMES = {"circle": ("circle", "circle", "disc", "ball"), "square": ("square",), "triangle": ("triangle",)}


def caption(scene: Scene, rng: np.random.Generator) -> str:
    """One of many English captions of a scene. The background is named about half the time."""
    phrases = []
    for shape in scene.shapes:
        name = str(rng.choice(NAMES.get(shape.kind, (shape.kind,))))
        colour = shape.colour
        article = "an" if colour[0] in "aeiou" else "a"
        move = str(rng.choice(MOVES[shape.motion]))
        if rng.random() < 0.1 and not shape.place:
            other = str(rng.choice([c for c in COLOURS if c != colour]))
            move += f", not {other}"
        where = f" on the {shape.place}" if shape.place else ""
        phrases.append(f"{article} {colour} {name}{where} {move}")
    text = " and ".join(phrases)
    if rng.random() < 0.5:
        text += " " + str(rng.choice(GROUNDS)).format(scene.background)
    text = str(rng.choice(OPENINGS)) + text
    if rng.random() < 0.3:
        text = text[0].upper() + text[1:]
    if rng.random() < 0.3:
        text += "."
    return text


def scenes(seed: int, count: int, split: str = "train", two: float = 0.15) -> list[Scene]:
    """`count` scenes of a split, the same for the same seed."""
    rng = np.random.default_rng(seed)
    return [sample_scene(rng, split, two) for _ in range(count)]


def train_pool(count: int) -> list[Scene]:
    """The scenes that the denoiser learns from; a longer pool begins with a shorter one."""
    return scenes(11, count)
