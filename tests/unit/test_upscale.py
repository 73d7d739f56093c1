"""Enlarging: sizes, lengths, rates and sound, for images and clips on the grid and off it."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import av
import mlx.core as mx
import numpy as np
import pytest
from PIL import Image

from mlx_ltx2.errors import RequestError
from mlx_ltx2.media.metadata import read_metadata
from mlx_ltx2.media.video import probe
from mlx_ltx2.media.writer import ClipWriter
from mlx_ltx2.shapes import VideoScale, VideoShape
from mlx_ltx2.stages.upsample import cropped, padded
from mlx_ltx2.states import Waveform
from mlx_ltx2.upscale import plan_upscale, upscale
from tests.fixtures.media_files import corners, counting_clip, sine, write_plain_video
from tests.fixtures.odd_videos import write_shaped_video


@pytest.fixture(scope="module")
def picture(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("in") / "photo.png"
    Image.fromarray(corners(33, 50)).save(path)
    return path


@pytest.fixture(scope="module")
def video(tmp_path_factory) -> Path:
    """10 frames of 64x48 at 23.976 fps with sound: no side and no length is the model's."""
    path = tmp_path_factory.mktemp("in") / "video.mp4"
    with ClipWriter(path, fps=Fraction(24000, 1001), audio=Waveform(sine(0.5, 44100), 44100)) as writer:
        writer.write(counting_clip(10, 48, 64))
    return path


def packets(path: Path) -> list[bytes]:
    with av.open(str(path)) as container:
        return [bytes(p) for p in container.demux(container.streams.audio[0]) if p.dts is not None]


@pytest.mark.parametrize(("options", "size"), [((), (100, 66)), (("--scale", "1.5"), (75, 49))])
def test_an_image_of_any_size(options, size, picture, tiny_model, run_cli, tmp_path) -> None:
    out = tmp_path / "upscaled.png"
    code, said, err = run_cli(
        "upscale", "--input", picture, "--output", out, "--model", tiny_model(), "--progress", "bar", *options
    )
    assert code == 0, err
    assert Image.open(out).size == size
    assert "filled up from 50x33" in err and str(out) in said
    assert read_metadata(out)["upscale"]


def test_a_clip_keeps_its_length_rate_and_sound(video, tiny_model, run_cli, tmp_path) -> None:
    out = tmp_path / "upscaled.mp4"
    code, _, err = run_cli("upscale", "--input", video, "--output", out, "--model", tiny_model())
    assert code == 0, err
    info = probe(out, count=True)
    assert (info.width, info.height, info.frames, info.fps) == (128, 96, 10, Fraction(24000, 1001))
    assert packets(out) == packets(video)


def test_twice_the_rate_in_the_same_time(video, tiny_model, run_cli, tmp_path) -> None:
    out = tmp_path / "smooth.mov"
    code, _, err = run_cli("upscale", "-i", video, "-o", out, "--model", tiny_model(), "--temporal")
    assert code == 0, err
    info = probe(out, count=True)
    assert (info.width, info.height, info.frames, info.fps) == (64, 48, 19, Fraction(48000, 1001))
    assert abs(info.seconds - probe(video).seconds) <= 1 / 24
    assert packets(out) == packets(video)


def test_what_reading_changes_is_said_and_the_result_is_of_what_a_player_shows(tiny_model, run_cli, tmp_path) -> None:
    source, out = tmp_path / "wide.mp4", tmp_path / "out.mp4"
    write_shaped_video(source, counting_clip(3, 48, 72), Fraction(4, 3))
    given = ("upscale", "-i", source, "-o", out, "--model", tiny_model(), "--progress", "plain")
    code, _, err = run_cli(*given)
    assert code == 0 and err.count("its pixels are not square (4/3); 72x48 became 96x48") == 1, err
    info = probe(out, count=True)
    assert (info.width, info.height, info.frames, info.fps) == (192, 96, 3, 25)


def test_refining_follows_prompt_and_seed(tiny_model, tmp_path) -> None:
    source = write_plain_video(tmp_path / "a.mp4", counting_clip(1, 64, 64), 24)
    given = {"model": tiny_model(), "refine": True}
    one = upscale(source, prompt="A cinematic scene", seed=1, **given)
    other = upscale(source, prompt="A cinematic scene", seed=2, **given)
    text = upscale(source, prompt="A quiet lake", seed=1, **given)
    assert one.frames.shape == (1, 128, 128, 3)
    for different in (other, text):
        assert not mx.array_equal(one.latents, different.latents)


def test_refining_leaves_the_sound_and_says_so(video, tiny_model, run_cli, tmp_path) -> None:
    out = tmp_path / "refined.mp4"
    code, _, err = run_cli(
        "upscale", "-i", video, "-o", out, "--model", tiny_model(), "--refine", "-p", "x", "--progress", "plain"
    )
    assert code == 0 and "the picture alone is refined; the sound stays as it is" in err, err
    assert probe(out, count=True).frames == 10 and packets(out) == packets(video)


@pytest.mark.parametrize("size", [(1, 32, 32), (9, 64, 96), (10, 33, 64), (16, 1, 70)])
def test_what_is_filled_up_is_cut_away_again(size) -> None:
    frames = np.random.default_rng(0).integers(0, 255, (*size, 3), dtype=np.uint8)
    grid = padded(frames, VideoScale(), 2)
    assert (len(grid) - 1) % 8 == 0 and grid.shape[1] % 64 == grid.shape[2] % 64 == 0
    shape = VideoShape(*size)
    cut = np.concatenate(list(cropped((grid[i : i + 3] for i in range(0, len(grid), 3)), shape)))
    assert np.array_equal(cut, frames)
    assert (grid[len(frames) :] == grid[len(frames) - 1]).all()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"scale": 3}, "use 2 or 1.5"),
        ({"refine": True}, "--refine --prompt"),
        ({"prompt": "x"}, "--refine --prompt"),
        ({"refine": True, "prompt": " "}, "--refine --prompt"),
        ({"temporal": True}, "no time to be doubled"),
        ({"tiling": "often"}, "is not known"),
        ({"seed": -1}, "seed -1"),
    ],
)
def test_impossible_wishes_are_refused(options, message, picture, tiny_model) -> None:
    with pytest.raises(RequestError, match=message):
        plan_upscale(picture, tiny_model(), **options)


def test_bad_files_leave_nothing_behind(picture, video, tiny_model, run_cli, tmp_path) -> None:
    model, out = tiny_model(), tmp_path / "out.mp4"
    broken = tmp_path / "broken.mp4"
    broken.write_bytes(b"no video")
    cases = [
        (tmp_path / "missing.mp4", out, (), 1),
        (broken, out, (), 1),
        (video, tmp_path / "out.png", (), 2),  # ten frames into a still
        (video, video, (), 2),
        (picture, tmp_path / "out.xyz", (), 2),
        (video, out, ("--crf", "99"), 2),
    ]
    before = video.read_bytes()
    for source, target, options, expected in cases:
        code, _, err = run_cli("upscale", "-i", source, "-o", target, "--model", model, *options)
        assert code == expected and err.startswith("error: "), err
        assert target == video or not target.exists()
    assert video.read_bytes() == before


def test_a_missing_upsampler_is_named(picture, tiny_model, run_cli, tmp_path) -> None:
    code, _, err = run_cli(
        "upscale", "-i", picture, "-o", tmp_path / "a.png", "--model", tiny_model("2.0"), "--scale", "1.5"
    )
    assert code == 3 and "x1.5" in err
