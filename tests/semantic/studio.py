"""The demo model's pipelines, opened once, and what the detectors say of their clips."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np

from mlx_ltx2 import LTX2Pipeline
from mlx_ltx2.stages.write import Clip
from tests.semantic import detectors
from training.world import Scene, Shape, caption, held_out, render, sample_scene

SIZE = 128
Verdict = dict[str, bool]


@dataclass
class Studio:
    """folder: where given pictures, sounds and clips are written. count: how many captions are asked for."""

    folder: Path
    count: int = 40
    _pipelines: dict[tuple[str, int | None], LTX2Pipeline] = field(default_factory=dict)
    _asked: dict[str, list[Clip]] = field(default_factory=dict)

    @cached_property
    def scenes(self) -> list[Scene]:
        """One shape each, of combinations that were never trained on."""
        rng = np.random.default_rng(2024)
        return [sample_scene(rng, "held", two=0.0) for _ in range(self.count)]

    @cached_property
    def captions(self) -> list[str]:
        rng = np.random.default_rng(2025)
        return [caption(scene, rng) for scene in self.scenes]

    def pipeline(self, variant: str = "distilled", quantize: int | None = None) -> LTX2Pipeline:
        key = (variant, quantize)
        if key not in self._pipelines:
            self._pipelines[key] = LTX2Pipeline.from_pretrained(
                "demo", variant=variant, quantize=quantize, dtype=mx.float32
            )
        return self._pipelines[key]

    def ask(self, name: str, variant: str = "distilled", quantize: int | None = None, **options: Any) -> list[Clip]:
        """The clips of all captions under one set of options, made once per name; clip i has seed i."""
        if name not in self._asked:
            pipe = self.pipeline(variant, quantize)
            self._asked[name] = [pipe(text, seed=i, **options) for i, text in enumerate(self.captions)]
        return self._asked[name]

    def judge(self, clips: Sequence[Clip], outlined: bool = False) -> dict[str, float]:
        """Share of clips that show what their caption says: "colour", "motion", "shape"."""
        rows = [judge(scene, clip.frames, outlined) for scene, clip in zip(self.scenes, clips, strict=True)]
        return {key: float(np.mean([row[key] for row in rows])) for key in rows[0]}


def judge(scene: Scene, frames: np.ndarray | None, outlined: bool = False) -> Verdict:
    """What the detectors say of a clip of one shape against its scene. outlined: the shape is what a line encloses."""
    assert frames is not None
    shape, mask = scene.shapes[0], detectors.foreground(frames)
    enclosed = detectors.enclosed(mask)
    return {
        "colour": detectors.colour(frames, mask) == shape.colour,
        "motion": detectors.motion(detectors.track(enclosed)) == shape.motion,
        "shape": detectors.kind(enclosed if outlined else mask) == shape.kind,
    }


def drawn(scene: Scene) -> np.ndarray:
    """The scene as the world draws it: uint8 (F, SIZE, SIZE, 3)."""
    return render(scene, SIZE)[0]


def bouncing(count: int) -> list[Scene]:
    """Bouncing circles on black in untrained colours, each with a rhythm of its own."""
    rng = np.random.default_rng(31)
    colours = [c for c in ("red", "green", "yellow", "cyan", "orange", "white", "purple", "blue")]
    colours.sort(key=lambda c: not held_out("circle", c, "bounce"))
    return [
        Scene(
            (Shape("circle", colours[i % 4], "bounce", 0.5, 0.5, 0.2, rng.uniform(1.8, 2.6), rng.uniform()),), "black"
        )
        for i in range(count)
    ]


def hollow(frames: np.ndarray | None) -> bool:
    """Whether the middle of the shape is background in most frames, as outlines have it."""
    assert frames is not None
    mask = detectors.foreground(frames)
    path, size = detectors.track(mask), frames.shape[1]
    seen = np.flatnonzero(path.seen)
    holes = [not mask[f, int(path.y[f] * size) % size, int(path.x[f] * size) % size] for f in seen]
    return bool(holes) and float(np.mean(holes)) > 0.5
