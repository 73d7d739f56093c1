"""The main job on real input: prompt in, playable file out."""

from __future__ import annotations

import json
from pathlib import Path

import av
import mlx.core as mx
import numpy as np
import pytest

from tests.cli.test_bad_input import no_weights
from tests.conftest import SMALL


def streams(path: Path) -> tuple[int, int, int, float, float, int]:
    """Frames, width, height, seconds of picture, seconds of sound and sample rate.

    Everything is decoded; the sound's length is the track's, since the last AAC block is always full.
    """
    with av.open(str(path)) as container:
        frames = list(container.decode(video=0))
        rate = container.streams.video[0].average_rate
    seconds, sample_rate = 0.0, 0
    with av.open(str(path)) as container:
        if container.streams.audio:
            track = container.streams.audio[0]
            seconds, sample_rate = float(track.duration * track.time_base), track.rate
            assert sum(b.samples for b in container.decode(audio=0)) >= round(seconds * sample_rate)
    return len(frames), frames[0].width, frames[0].height, float(len(frames) / rate), seconds, sample_rate


@pytest.mark.parametrize(("generation", "rate"), [("2.0", 24000), ("2.3", 48000)])
@pytest.mark.parametrize("fps", ["24", "25", "29.97"])
def test_prompt_to_playable_clip(generation, rate, fps, tiny_model, run_cli, tmp_path) -> None:
    size = ("--height", "128", "--width", "128", "--num-frames", "9")  # reflect padding needs two latent rows
    out = tmp_path / "new folder" / "clip.mp4"
    code, said, err = run_cli(
        "generate", "--model", tiny_model(generation), "-p", "a red circle", "-o", out, "--fps", fps, *size
    )
    assert code == 0, err
    assert str(out) in said
    frames, width, height, seconds, sound, sample_rate = streams(out)
    assert (frames, width, height, sample_rate) == (9, 128, 128, rate)
    assert abs(seconds - sound) <= 1 / float(fps)


def test_no_audio_reads_no_audio_weights(tiny_model, run_cli, tmp_path, monkeypatch) -> None:
    from mlx_ltx2.weights import networks

    asked = []
    load = networks.load_component
    monkeypatch.setattr(
        networks,
        "load_component",
        lambda model, name, **kw: asked.append((name, kw)) or load(model, name, **kw),
    )
    out = tmp_path / "silent.mp4"
    code, said, err = run_cli("generate", "--model", tiny_model(), "-p", "x", "-o", out, "--no-audio", *SMALL)
    assert code == 0, err
    assert streams(out)[4] == 0
    assert "no sound" in said
    names = [name for name, _ in asked]
    assert not {"audio_decoder", "vocoder", "audio_encoder"} & set(names)
    assert next(kw for name, kw in asked if name == "transformer")["audio"] is False


def test_same_seed_same_bytes_and_rerun(tiny_model, run_cli, tmp_path) -> None:
    model = tiny_model()
    first, second, other, again = (tmp_path / f"{n}.mp4" for n in "abcd")
    for path, seed in ((first, 3), (second, 3), (other, 4)):
        code, _, err = run_cli("generate", "--model", model, "-p", "a blue star", "-s", seed, "-o", path, *SMALL)
        assert code == 0, err
    assert first.read_bytes() == second.read_bytes()
    assert first.read_bytes() != other.read_bytes()
    code, _, err = run_cli("rerun", first, "-o", again)
    assert code == 0, err
    assert again.read_bytes() == first.read_bytes()
    code, _, err = run_cli("rerun", first, "-o", again, "--set", "seed=4")
    assert code == 0, err
    assert again.read_bytes() == other.read_bytes()


def test_json_progress_is_one_object_a_line(tiny_model, run_cli, tmp_path) -> None:
    code, out, err = run_cli(
        "generate", "--model", tiny_model(), "-p", "x", "-o", tmp_path / "a.mp4", "--progress", "json", *SMALL
    )
    assert code == 0, err
    events = [json.loads(line) for line in out.splitlines()]
    steps = [e for e in events if e["event"] == "step" and e["name"] == "half size"]
    assert [e["done"] for e in steps] == list(range(1, 9))
    assert {"half size", "full size", "decode video", "decode audio"} <= {
        e["name"] for e in events if e["event"] == "done"
    }


def test_plan_says_the_forwards_and_touches_no_weights(tiny_model, run_cli, monkeypatch) -> None:
    import mlx.core as mx

    model = tiny_model()
    monkeypatch.setattr(mx, "load", no_weights(mx.load))
    code, out, err = run_cli("plan", "--model", model, "-p", "x", *SMALL)
    assert code == 0, err
    assert "8 forwards" in out and "3 forwards" in out and "11 in all" in out
    code, out, err = run_cli("plan", "--model", model, "-p", "x", "--json", *SMALL)
    assert json.loads(out)["shape"] == {"frames": 9, "height": 64, "width": 64, "fps": 24.0}


def test_info_shows_clip_and_model(tiny_model, run_cli, tmp_path) -> None:
    clip = tmp_path / "a.mp4"
    run_cli("generate", "--model", tiny_model(), "-p", "grün und blau", "-o", clip, *SMALL)
    code, out, err = run_cli("info", clip, "--json")
    assert code == 0, err
    facts = json.loads(out)
    assert facts["prompt"] == "grün und blau" and facts["plan"]["pipeline"] == "distilled"
    code, out, err = run_cli("info", tiny_model(), "--json")
    assert code == 0, err
    assert json.loads(out)["title"] == "LTX-2.3" and "transformer" in json.loads(out)["components"]


def test_outputs_besides_the_clip(tiny_model, run_cli, tmp_path) -> None:
    out, wav = tmp_path / "a.gif", tmp_path / "a.wav"
    code, _, err = run_cli(
        "generate",
        "--model",
        tiny_model(),
        "-p",
        "x",
        "-o",
        out,
        "--output-audio",
        wav,
        "--save-frames",
        *SMALL,
    )
    assert code == 0, err
    assert len(list((tmp_path / "a_frames").glob("*.png"))) == 9
    assert out.stat().st_size > 0 and wav.read_bytes()[:4] == b"RIFF"


def test_api_returns_frames_latents_and_takes_noise(tiny_model) -> None:
    from mlx_ltx2 import LTX2Pipeline

    pipe = LTX2Pipeline.from_pretrained(tiny_model())
    size = {"height": 64, "width": 64, "num_frames": 9}
    seen: list[tuple[str, int, int]] = []
    clip = pipe("x", callback=lambda *step: seen.append(step), **size)
    assert clip.frames.shape == (9, 64, 64, 3) and clip.frames.dtype == np.uint8
    assert seen[0] == ("half size", 1, 8) and seen[-1] == ("full size", 3, 3)
    assert clip.latents.shape[1:4] == (2, 2, 2)
    assert max(clip.peaks.values()) > 0
    noise = np.random.default_rng(0).standard_normal((1, 2, 1, 1, clip.latents.shape[-1])).astype(np.float32)
    one, two = (pipe("x", latents=noise, output_type="latent", **size) for _ in range(2))
    assert one.frames is None
    assert mx.array_equal(one.latents, two.latents)
    assert not mx.array_equal(one.latents, clip.latents)


def test_official_file_is_converted_once(tiny_sources, run_cli, tmp_path, cache) -> None:
    source = tiny_sources()
    out = tmp_path / "a.mp4"
    code, _, err = run_cli("generate", "--model", source, "-p", "x", "-o", out, *SMALL)
    assert code == 0, err

    def weights() -> dict[Path, int]:
        return {p: p.stat().st_mtime_ns for p in cache.rglob("*.safetensors") if p.parent.name != "prompts"}

    before = weights()
    assert before
    code, _, err = run_cli("generate", "--model", source, "-p", "x", "-o", out, *SMALL)
    assert code == 0, err
    assert weights() == before


def test_quantized_model_generates(tiny_model, run_cli, tmp_path) -> None:
    model = tiny_model(q_bits=8, q_group_size=32)
    out = tmp_path / "a.mp4"
    code, _, err = run_cli("generate", "--model", model, "-p", "x", "-o", out, *SMALL)
    assert code == 0, err
    assert streams(out)[0] == 9
