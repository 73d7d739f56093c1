"""The detectors give the truth on clips that the world itself draws; the world is the same for the same seed."""

import numpy as np
import pytest

from tests.semantic import detectors
from tests.semantic.studio import hollow, judge
from training.world import (
    COLOURS,
    FPS,
    KINDS,
    LINE,
    MOTIONS,
    caption,
    held_out,
    render,
    sample_scene,
    scenes,
    sound,
)

POOL = scenes(5, 16, "any", two=0.0)


@pytest.mark.parametrize("size", [64, 128])
def test_what_is_seen(size):
    for scene in POOL if size == 64 else POOL[:5]:
        pixels, _ = render(scene, size)
        mask = detectors.foreground(pixels)
        shape = scene.shapes[0]
        assert detectors.colour(pixels, mask) == shape.colour
        assert detectors.motion(detectors.track(mask)) == shape.motion
        assert detectors.motion(detectors.track(detectors.enclosed(mask))) == shape.motion
        assert detectors.kind(mask) == shape.kind


def _blurred(pixels: np.ndarray, width: int) -> np.ndarray:
    soft = pixels.astype(np.float32)
    for axis in (1, 2):
        soft = np.mean([np.roll(soft, shift, axis) for shift in range(-width // 2, width // 2 + 1)], axis=0)
    return soft.astype(np.uint8)


@pytest.mark.parametrize("width", [3, 5])
def test_a_blurred_shape_keeps_its_kind(width):
    for scene in POOL[:8]:
        pixels = _blurred(render(scene, 128)[0], width)
        assert detectors.kind(detectors.foreground(pixels)) == scene.shapes[0].kind


@pytest.mark.parametrize("width", [1, 3])
def test_a_blurred_line_keeps_its_colour_and_is_hollow(width):
    for scene in (s for s in POOL if s.shapes[0].motion != "still"):
        lined, filled = (_blurred(render(scene, 128, outline=line)[0], width) for line in (LINE, 0.0))
        assert detectors.colour(lined) == detectors.colour(filled) == scene.shapes[0].colour
        assert hollow(lined) and not hollow(filled)


def test_an_outline_has_the_kind_of_what_it_encloses():
    for scene in POOL[:8]:
        lined, _ = render(scene, 128, outline=LINE)
        assert judge(scene, lined, outlined=True)["shape"]


def test_what_an_outline_encloses_moves_and_grows_as_its_shape():
    rng = np.random.default_rng(0)
    for scene in POOL:
        line, filled = (detectors.foreground(render(scene, 64, outline=width)[0]) for width in (LINE, 0.0))
        strays = filled & (rng.random(filled.shape) < 0.3) & (rng.random((len(filled), 1, 1)) < 0.5)
        path = detectors.track(detectors.enclosed(line | strays))
        assert detectors.motion(path) == scene.shapes[0].motion
        assert detectors.enclosed(line).sum() >= filled.sum()


def test_a_rough_disc_is_no_star():
    rng = np.random.default_rng(0)
    for scene in scenes(8, 24, "any", two=0.0):
        if scene.shapes[0].kind == "circle":
            mask = detectors.foreground(render(scene, 128)[0])
            edge = np.abs(mask.astype(int) - np.roll(mask, 1, 1)) + np.abs(mask.astype(int) - np.roll(mask, 1, 2)) > 0
            assert detectors.kind(mask ^ (edge & (rng.random(mask.shape) < 0.5))) == "circle"


def test_what_is_heard():
    for scene in POOL:
        samples, shape = sound(scene), scene.shapes[0]
        assert detectors.silent(samples, 48000) == (shape.motion == "still")
        if shape.motion in ("left", "right", "up", "down"):
            heard = detectors.pitch(samples, 48000)
            true = shape.pitch((np.arange(len(heard)) + 0.5) / FPS, scene.duration)
            assert np.nanmean(np.abs(heard - true) < 60) > 0.85


def test_clicks_are_at_the_landings():
    rng = np.random.default_rng(3)
    found = 0
    while found < 4:
        scene = sample_scene(rng, "any", two=0.0)
        if scene.shapes[0].motion != "bounce":
            continue
        found += 1
        clicks = scene.shapes[0].bounces(scene.duration)
        seen = detectors.landings(detectors.track(detectors.foreground(render(scene, 64)[0])))
        heard = detectors.onsets(sound(scene), 48000)
        for t in clicks:
            assert min(abs(t - s) for s in heard) < 0.03
        for t in clicks[1:-1]:
            assert min(abs(t - s) for s in seen) < 2 / FPS


def test_two_shapes_are_counted():
    for scene in scenes(6, 3, "any", two=1.0):
        assert len(detectors.parts(detectors.foreground(render(scene, 64)[0]))) == 2


def test_the_world_is_deterministic():
    a, b = scenes(9, 3), scenes(9, 3)
    assert a == b
    assert (render(a[0], 64)[0] == render(b[0], 64)[0]).all()
    assert (sound(a[0]) == sound(b[0])).all()
    assert caption(a[0], np.random.default_rng(1)) == caption(b[0], np.random.default_rng(1))


def test_held_out_combinations():
    held = [(k, c, m) for k in KINDS for c in COLOURS for m in MOTIONS if held_out(k, c, m)]
    assert len(held) == len(KINDS) * len(COLOURS) * len(MOTIONS) // 8
    for values, position in ((KINDS, 0), (COLOURS, 1), (MOTIONS, 2)):
        assert {row[position] for row in held} == set(values)
    assert not any(held_out(s.kind, s.colour, s.motion) for scene in scenes(1, 200) for s in scene.shapes)
