"""Old sound beside new pictures, from the command to the file: it stays where it was."""

from __future__ import annotations

import json
from pathlib import Path

import av
import numpy as np
import pytest

from mlx_ltx2.errors import MediaError, RequestError
from mlx_ltx2.generate import LTX2Pipeline
from mlx_ltx2.media.audio import read_audio
from mlx_ltx2.media.sound_track import probe_sound
from mlx_ltx2.shapes import VideoShape
from mlx_ltx2.stages.plan import SourceUse
from mlx_ltx2.stages.source import Source, splice_sound
from mlx_ltx2.states import Waveform
from tests.fixtures.sound_files import Track, bursts, onsets, write_media


@pytest.fixture(scope="module")
def pipe(tiny_model) -> LTX2Pipeline:
    return LTX2Pipeline.from_pretrained(tiny_model())


@pytest.fixture(scope="module")
def sources(tmp_path_factory) -> dict[str, Path]:
    """Nine frames at 8 per second: 1.125 s, whose sound begins late, early, with a gap or in another track."""
    folder = tmp_path_factory.mktemp("sources")
    late = Track(bursts(0.8, 0, 0.5), codec="aac", start=0.25)
    early = Track(bursts(1.8, 0, 0.5, 1.0, 1.5), codec="aac")
    gap = Track(bursts(1.1, 0.1, 0.9), codec="flac", lost=[(0.3, 0.79)])
    first, second = Track(bursts(1.1, 0.2), codec="aac"), Track(bursts(1.1, 0.6), codec="aac", flags=["default"])
    return {
        "late": write_media(folder / "late.ts", late, pictures=9, fps=8),
        "early": write_media(folder / "early.mp4", early, pictures=9, picture_start=0.75, fps=8),
        "gap": write_media(folder / "gap.mkv", gap, pictures=9, fps=8),
        "two": write_media(folder / "two.mp4", first, second, pictures=9, fps=8),
        "vorbis": write_media(
            folder / "vorbis.mkv", Track(bursts(1.1, 0.1, 0.6, channels=2), 48000, "vorbis", "stereo"), pictures=9, fps=8
        ),
    }  # fmt: skip


HEARD = {"late": [0.25, 0.75], "early": [0.25, 0.75], "gap": [0.1, 0.9], "two": [0.6], "vorbis": [0.1, 0.6]}


def heard(path: Path) -> list[float]:
    """As the file's own stamps have it, relative to the first picture: read by PyAV alone."""
    with av.open(str(path)) as container:
        video = next(container.decode(video=0))
        zero = float(video.pts * video.time_base)
    sound = read_audio(path)
    with av.open(str(path)) as container:
        first = next(container.decode(audio=0))
        begins = float(first.pts * first.time_base) - zero
    assert abs(begins) < 0.6
    return onsets(sound.samples, sound.rate_hz)


@pytest.mark.parametrize(
    ("name", "options", "suffix"),
    [
        ("late", ("--temporal",), ".mp4"),
        pytest.param("late", (), ".mp4", marks=pytest.mark.slow),
        pytest.param("early", ("--temporal",), ".mp4", marks=pytest.mark.slow),
        pytest.param("gap", ("--temporal",), ".mp4", marks=pytest.mark.slow),
        pytest.param("two", ("--temporal",), ".mov", marks=pytest.mark.slow),
        pytest.param("vorbis", ("--temporal",), ".mov", marks=pytest.mark.slow),
    ],
)
def test_an_enlarged_clip_has_its_sound_in_place(name, options, suffix, sources, tiny_model, run_cli, tmp_path) -> None:
    out = tmp_path / f"larger{suffix}"
    code, _, err = run_cli(
        "upscale", "-i", sources[name], "-o", out, "--model", tiny_model(), "--progress", "plain", *options
    )
    assert code == 0, err
    assert heard(out) == pytest.approx(HEARD[name], abs=0.003)
    assert ("encoded anew" in err) == (name == "vorbis"), err
    assert ("sound track 2 of 2 is read" in err) == (name == "two")
    assert probe_sound(out).tracks == 1


@pytest.mark.parametrize(
    "name", ["early", *(pytest.param(name, marks=pytest.mark.slow) for name in ("late", "gap", "two"))]
)
def test_a_kept_track_stays_in_place(name, pipe, sources, run_cli, tmp_path) -> None:
    out = tmp_path / "new.mp4"
    code, _, err = run_cli(
        "retake", "--model", pipe.networks.model.path, "--video", sources[name], "--start-time", 0, "--end-time", 0.1,
        "--no-retake-audio", "-p", "rain", "-o", out, "--progress", "plain",
    )  # fmt: skip
    assert code == 0 and "encoded anew" not in err, err
    assert heard(out) == pytest.approx(HEARD[name], abs=0.003)
    words = {"late": "after the picture", "early": "before the picture", "gap": "a gap of", "two": "sound track 2 of 2"}
    assert err.count(words[name]) == 1, err
    assert "padded" not in err and "the sound was" not in err


@pytest.mark.parametrize("name", ["late", "early", "gap"])
def test_what_is_kept_of_a_retaken_sound_stays_in_place(name, sources) -> None:
    use = SourceUse(str(sources[name]), 9, True, (1, 9), sound=(1.0, 1.125))
    source, shape = Source(use), VideoShape(9, 64, 64, 8.0)
    made = Waveform(np.zeros((18000, 2), np.float32), 16000)
    mixed = splice_sound(source.sound(8.0), made, use, shape)
    assert len(mixed.samples) == round(9 / 8 * mixed.rate_hz)
    assert onsets(mixed.samples, mixed.rate_hz) == pytest.approx(HEARD[name], abs=0.003)


def test_a_recording_out_of_a_video_counts_from_its_picture(pipe, sources) -> None:
    size = {"height": 64, "width": 64, "num_frames": 9, "fps": 24}
    clip = pipe("rain", audio_file=str(sources["two"]), audio_track=1, audio_start_time=0.1, **size)
    assert onsets(clip.audio.samples, 48000) == pytest.approx([0.1], abs=0.003)
    assert clip.plan.audio_input["track"] == 1 and clip.plan.request["audio_track"] == 1


def test_the_plan_says_which_track_and_refuses_another(pipe, sources, run_cli) -> None:
    model = pipe.networks.model.path
    for options in (("--audio-file", sources["two"]), ("--video", sources["two"], "--start-time", 0.5)):
        code, out, err = run_cli("plan", "--model", model, "-p", "x", *options)
        assert code == 0 and "sound track 2 of 2 is read" in out, err
        code, out, err = run_cli("plan", "--model", model, "-p", "x", *options, "--audio-track", 1, "--json")
        assert code == 0, err
        plan = json.loads(out)
        assert 1 in ((plan["audio_input"] or {}).get("track"), (plan["video_input"] or {}).get("track"))
        assert not any("sound track" in note for note in plan["notes"])
        code, _, err = run_cli("plan", "--model", model, "-p", "x", *options, "--audio-track", 3)
        assert code == 2 and "has 2 sound tracks" in err
    with pytest.raises(MediaError, match="does not exist"):
        pipe.plan("x", audio_file="missing.wav")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({}, "give --audio-file or --video"),
        ({"audio_file": "two", "audio_track": 0}, "1 is the first"),
        ({"video": "two", "start_time": 0.5, "audio": False}, "together with no audio"),
    ],
)
def test_a_track_of_nothing_is_refused(options, words, pipe, sources) -> None:
    named = {k: str(sources[v]) if v in sources else v for k, v in options.items()}
    with pytest.raises(RequestError, match=words):
        pipe.plan("x", **{"audio_track": 1, **named})


def test_upscale_refuses_a_track_that_is_not_there(sources, tiny_model, run_cli, tmp_path) -> None:
    mute = write_media(tmp_path / "mute.mkv", pictures=2)
    for source, words in ((sources["two"], "has 2 sound tracks"), (mute, "has no sound")):
        code, _, err = run_cli(
            "upscale", "-i", source, "-o", tmp_path / "o.mp4", "--model", tiny_model(), "--audio-track", 4
        )
        assert code == 2 and words in err
