"""The demo's own files, names and pictures; its clips are judged in tests/semantic."""

from __future__ import annotations

import numpy as np
import pytest

from mlx_ltx2 import LTX2Pipeline, RequestError
from mlx_ltx2.demo import demo_lora, drawing, trained
from mlx_ltx2.demo.sheet import FRAMES, GAP, STRIP, Row, contact_sheet, spectrogram
from mlx_ltx2.pipelines import presets
from mlx_ltx2.pipelines.request import Request
from mlx_ltx2.states import Waveform
from mlx_ltx2.traits import Traits
from training import world


@pytest.mark.parametrize("kind", world.KINDS)
def test_pictures_are_the_worlds(kind: str) -> None:
    shape = world.Shape(kind, "cyan", "still", 0.4, 0.6, 0.2, 0.4, 0.0)
    pixels, _ = world.render(world.Scene((shape,), "black"), 128, frames=[0])
    drawn = drawing.picture(kind, "cyan", 0.4, 0.6)
    assert np.abs(drawn.astype(int) - pixels[0]).max() <= 2  # single against double precision
    assert drawing.COLOURS == world.COLOURS


def test_the_sound_is_the_worlds() -> None:
    shape = world.Shape("circle", "red", "bounce", 0.5, 0.5, 0.2, 2.2, 0.35)
    scene = world.Scene((shape,), "black")
    made = drawing.bouncing_sound(scene.duration)
    assert made.samples.shape == (round(scene.duration * 48000), 2)
    assert np.abs(made.samples - world.sound(scene)).max() < 1e-5
    assert drawing.landings(scene.duration) == pytest.approx(shape.bounces(scene.duration))


def test_contact_sheet() -> None:
    """Every ninth of the clip stands in its row, what was given before it, its tone as a bright line on black below it."""
    frames = np.zeros((49, 64, 64, 3), np.uint8)
    frames[...] = 4 * np.arange(49)[:, None, None, None]
    tone = np.sin(2 * np.pi * 1000 * np.arange(48000) / 48000, dtype=np.float32)
    rows = [
        Row("text: grey", frames, Waveform(np.stack([tone, tone], -1), 48000)),
        Row("with a picture", frames, given=(np.full((64, 64, 3), 200, np.uint8),)),
    ]
    sheet = contact_sheet(rows)
    assert sheet.shape[1] == (FRAMES + 1) * (64 + GAP) + GAP
    level = sheet[len(sheet) * 3 // 4 - 10].mean(-1)
    centres = GAP + 32 + np.arange(FRAMES + 1) * (64 + GAP)
    assert level[centres[0]] == 200
    assert list(level[centres[1:]]) == [24 * i for i in range(FRAMES)]
    strip = sheet[20 + 64 + 2 * GAP : 20 + 64 + 2 * GAP + STRIP, 600].mean(-1)
    assert strip.min() < 10 and strip.max() == 255


def pitch_row(hertz: float) -> float:
    """Where a strip shows a pitch: 250 Hz at its foot, 4000 Hz at its top."""
    return (STRIP - 1) * (1 - np.log(hertz / 250) / np.log(16))


@pytest.mark.parametrize("gain", [1.0, 0.05])
def test_a_strip_shows_pitch_partials_and_clicks(gain) -> None:
    """Read off the picture: the pitch on its row, the partial dimmer, a click as a column, and not only when loud."""
    t = np.arange(96000) / 48000
    low, high = 300.0, 1200.0
    sweep = np.sin(2 * np.pi * np.cumsum(np.where(t < 1, low, high)) / 48000)
    partial = 0.2 * np.sin(2 * np.pi * 2400 * t)
    sound = np.stack([gain * (sweep + partial)] * 2, -1).astype(np.float32)
    sound[72000:72480] += np.float32(0.3 * gain) * np.random.default_rng(0).standard_normal((480, 1))
    level = spectrogram(Waveform(sound, 48000), 400, STRIP).sum(-1)
    for column, hertz in ((100, low), (250, high)):
        assert abs(int(level[:, column].argmax()) - pitch_row(hertz)) <= 1
        overtone = level[round(pitch_row(2400)), column]
        assert 100 < overtone < level[:, column].max()
        assert (level[:, column] > 100).sum() >= 3, "a line that nobody can see"
        assert (level[:, column] < 60).sum() >= STRIP // 3, "no contrast"
    assert (level[:, 300] > 60).mean() > 2 * (level[:, 250] > 60).mean()


def test_silence_is_drawn_dark() -> None:
    quiet = Waveform(np.full((48000, 2), 1e-6, np.float32), 48000)
    assert spectrogram(quiet, 50, STRIP).max() < 20


def test_its_loras_have_names() -> None:
    with pytest.raises(RequestError, match="outlines"):
        demo_lora("sepia")


def test_another_process_may_make_the_model_meanwhile(monkeypatch, tmp_path) -> None:
    from mlx_ltx2 import library
    from mlx_ltx2.demo import demo_model
    from mlx_ltx2.progress import SilentProgress

    monkeypatch.setenv("MLX_LTX2_CACHE", str(tmp_path))
    convert, faster = library.convert_with_progress, []

    def convert_late(*arguments, **options):
        if not faster:
            faster.append(None)
            faster.append(demo_model(SilentProgress()))
        return convert(*arguments, **options)

    monkeypatch.setattr(library, "convert_with_progress", convert_late)
    assert demo_model(SilentProgress()) == faster[1]
    assert [p.name for p in tmp_path.iterdir()] == [faster[1].name]
    assert LTX2Pipeline.from_pretrained("demo").plan("a red circle").stages


def traits(recommended: dict[str, object], variant: str) -> Traits:
    return Traits(
        (2, 3), variant, {"transformer": {"num_layers": 4, "caption_channels": 64, "recommended": recommended}}
    )


def test_a_model_recommends_guidance_to_guided_pipelines_alone() -> None:
    own = {"cfg_scale": 5.0, "stg_scale": 0.0, "negative_prompt": "", "width": 128, "steps": 12}
    dev = presets.fill(Request(prompt="x"), traits(own, "dev"))
    assert (dev.cfg_scale, dev.stg_scale, dev.negative_prompt, dev.width, dev.steps) == (5.0, 0.0, "", 128, 12)
    assert dev.origin["cfg_scale"] == "model" and dev.origin["modality_scale"] != "model"
    distilled = presets.fill(Request(prompt="x"), traits(own, "distilled"))
    assert (distilled.cfg_scale, distilled.steps, distilled.width) == (1.0, 8, 128)
    assert presets.fill(Request(prompt="x", cfg_scale=2.0), traits(own, "dev")).cfg_scale == 2.0


@pytest.mark.skipif(not trained.is_packed(), reason="the trained weights are not packed yet")
def test_the_style_lora_is_a_file(cache) -> None:
    plan = LTX2Pipeline.from_pretrained("demo").plan("a red circle", loras="demo::outlines")
    (lora,) = plan.stages[0].loras
    assert lora.path.endswith("outlines.safetensors") and str(cache) in lora.path


@pytest.mark.skipif(not trained.is_packed(), reason="the trained weights are not packed yet")
def test_processes_that_write_the_style_lora_at_once_do_not_meet(tmp_path, monkeypatch) -> None:
    import safetensors.numpy

    path, save, others = tmp_path / "loras" / "outlines.safetensors", safetensors.numpy.save_file, []

    def meanwhile(tensors, name):
        save(tensors, name)
        if not others:
            others.append(True)
            trained.write_style("outlines", path)

    monkeypatch.setattr(safetensors.numpy, "save_file", meanwhile)
    trained.write_style("outlines", path)
    assert others and [file.name for file in path.parent.iterdir()] == [path.name]
