"""Making a clip again: its inputs are the same files, and what is changed has the type of its field."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mlx_ltx2.cli import cli, run
from mlx_ltx2.errors import MediaError, RequestError
from mlx_ltx2.media.metadata import read_metadata
from mlx_ltx2.media.writer import ClipWriter
from mlx_ltx2.pipelines.changes import parse_changes
from mlx_ltx2.pipelines.request import ImageInput, LoraInput
from tests.conftest import SMALL
from tests.fixtures.media_files import corners, sine, write_sound


def photo(path: Path, value: int = 200) -> Path:
    picture = corners(64, 64)
    picture[:8] = value
    Image.fromarray(picture).save(path)
    return path


def clip_with(path: Path, **metadata: str) -> Path:
    with ClipWriter(path, fps=24, metadata=metadata) as writer:
        writer.write(np.zeros((2, 32, 32, 3), np.uint8))
    return path


@pytest.fixture(scope="module")
def made_once(tiny_model, tmp_path_factory) -> Path:
    """A folder with a clip, and the image and the sound that it was made from, named relatively."""
    here = tmp_path_factory.mktemp("made")
    photo(here / "photo.png")
    write_sound(here / "song.wav", sine(1.0, 16000), 16000, "s16")
    args = ["generate", "--model", tiny_model(), "-p", "a kite", "--image", "photo.png", "--audio-file", "song.wav"]
    with contextlib.chdir(here):
        assert run(cli, [str(a) for a in (*args, "-o", "clip.mp4", *SMALL, "--quiet")]) == 0
    return here


@pytest.fixture
def made(made_once, tmp_path, monkeypatch) -> Path:
    """The same clip in a folder of this test's own, `here`, which is the present one."""
    here = tmp_path / "here"
    shutil.copytree(made_once, here)
    monkeypatch.chdir(here)
    return here / "clip.mp4"


def test_inputs_are_known_by_their_content(made, run_cli, tmp_path, monkeypatch) -> None:
    here = made.parent
    assert json.loads(read_metadata(made)["inputs"]) == {
        name: hashlib.sha256((here / name).read_bytes()).hexdigest() for name in ("photo.png", "song.wav")
    }
    code, _, err = run_cli("rerun", made, "-o", "again.mp4")
    assert code == 0 and "does not say" not in err, err
    assert (here / "again.mp4").read_bytes() == made.read_bytes()
    # elsewhere: the files beside the clip are taken, and that is said
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    code, _, err = run_cli("rerun", made, "-o", "again.mp4")
    assert code == 0 and f"{here / 'photo.png'} beside the clip is taken" in err, err
    # another picture under the same relative name
    photo(Path("photo.png"), 10)
    code, _, err = run_cli("rerun", made, "-o", "other.mp4")
    assert code and "photo.png is another file" in err and not Path("other.mp4").exists()
    code, _, err = run_cli("rerun", made, "-o", "other.mp4", "--set", "images=photo.png")
    assert code == 0, err
    # the sound changed, and with everything named anew nothing is asked of the record
    os.remove("photo.png")
    write_sound(here / "song.wav", sine(0.5, 16000), 16000, "s16")
    code, _, err = run_cli("rerun", made, "-o", "third.mp4")
    assert code and "song.wav is another file" in err
    (here / "photo.png").unlink()
    code, _, err = run_cli("rerun", made, "-o", "third.mp4", "--set", f"audio_file={here / 'song.wav'}")
    assert code == 1 and "photo.png is not there, nor beside the clip" in err


def test_a_clip_without_hashes_is_rerun_and_that_is_said(made, run_cli) -> None:
    stored = {name: value for name, value in read_metadata(made).items() if name != "inputs"}
    old = clip_with(made.with_name("old.mp4"), **stored)
    code, _, err = run_cli("rerun", old, "-o", "again.mp4", "--set", "crf=30", "--set", "seed=3")
    assert code == 0 and "photo.png, song.wav are taken as they are" in err, err
    again = read_metadata("again.mp4")
    assert again["crf"] == "30" and again["seed"] == "3" and "inputs" in again


def test_a_retaken_clip_knows_its_source(made, tiny_model, run_cli) -> None:
    base = ("retake", "--model", tiny_model(), "--video", "clip.mp4", "-p", "a star")
    code, _, err = run_cli(*base, "--start-time", 0.1, "--end-time", 0.3, "-o", "retaken.mp4")
    assert code == 0, err
    clip_with(made, prompt="x")
    code, _, err = run_cli("rerun", "retaken.mp4", "-o", "again.mp4")
    assert code == 1 and "clip.mp4 is another file" in err


def test_clips_that_cannot_be_rerun_say_why(run_cli, tmp_path) -> None:
    good = json.dumps({"prompt": "x"})
    for metadata, words in (
        ({}, "does not say how it was made"),
        ({"upscale": "{}", "model": "m"}, "`upscale`"),
        ({"request": "{", "model": "m"}, "does not understand"),
        ({"request": '["x"]', "model": "m"}, "does not understand"),
        ({"request": '{"prompt":"x","warp_drive":9}', "tool": "mlx-ltx2 9.9"}, "mlx-ltx2 9.9"),
        ({"request": '{"prompt":"x","images":[{"path":"a","new":1}]}', "tool": "mlx-ltx2 9.9"}, "mlx-ltx2 9.9"),
        ({"request": good}, "--model"),
        ({"request": '{"prompt":"x","video":"a clip in memory"}', "model": "demo"}, "--set video=FILE"),
    ):
        clip = clip_with(tmp_path / "a.mp4", **metadata)
        code, _, err = run_cli("rerun", clip, "-o", tmp_path / "b.mp4")
        assert code in (1, 2) and words in err and "unexpected" not in err, err


@pytest.mark.parametrize(
    ("text", "field", "value"),
    [
        ("prompt=1984", "prompt", "1984"),
        ("prompt=true", "prompt", "true"),
        ("prompt=null", "prompt", "null"),
        ("prompt=[a] = b", "prompt", "[a] = b"),
        ('prompt="Go!" he says "now"', "prompt", '"Go!" he says "now"'),
        ('prompt="a\\nb"', "prompt", "a\nb"),
        ("negative_prompt=7", "negative_prompt", "7"),
        ("negative_prompt=null", "negative_prompt", None),
        ("seed=7", "seed", 7),
        ("num-frames=9", "num_frames", 9),
        ("frame_rate=25", "fps", 25.0),
        ("cfg_scale=3", "cfg_scale", 3.0),
        ("audio=false", "audio", False),
        ("audio=on", "audio", True),
        ("apg=1", "apg", True),
        ("sigmas=[1, 0.5, 0]", "sigmas", (1.0, 0.5, 0.0)),
        ("stg_blocks=28,29", "stg_blocks", (28, 29)),
        ("images=a b.png", "images", (ImageInput("a b.png"),)),
        ("image=2024.png", "images", (ImageInput("2024.png"),)),
        ('images=["a.png", ["b.png", -1, 0.5]]', "images", (ImageInput("a.png"), ImageInput("b.png", -1, 0.5))),
        ('images={"path": "a.png", "crf": 20}', "images", (ImageInput("a.png", crf=20),)),
        ("images=[]", "images", ()),
        ('loras=[{"path": "a", "strength": 1}]', "loras", (LoraInput("a", 1),)),
        ("distilled_lora=a.safetensors", "distilled_lora", LoraInput("a.safetensors")),
        ("audio_path=12", "audio_file", "12"),
    ],
)
def test_changes_have_the_type_of_their_field(text, field, value) -> None:
    assert parse_changes([text]) == {field: value}


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("seed", "NAME=VALUE"),
        ("=7", "NAME=VALUE"),
        ("sed=7", "'seed'"),
        ("num_frame=9", "'num_frames'"),
        ("seed=7.5", "whole number"),
        ("seed=null7", "whole number"),
        ("fps=fast", "a number"),
        ("fps=nan", "a number"),
        ("audio=maybe", "true or false"),
        ("audio=null", "true or false"),
        ("sigmas=1,x", "a number"),
        ("images=[", "no JSON"),
        ("images=[7]", "a path"),
        ('images=[{"frame": 1}]', "a path"),
        ('images=[{"path": "a", "fram": 1}]', "'fram'"),
        ('images=[{"path": "a", "frame": "1"}]', "int"),
        ('images=[{"path": 5}]', "str"),
        ('loras=[["a", true]]', "float"),
        ('images=[["a", 1, 2, 3, 4]]', "a path"),
    ],
)
def test_changes_of_another_type_are_refused(text, words) -> None:
    with pytest.raises(RequestError, match="--set") as caught:
        parse_changes([text])
    assert words in str(caught.value)


def test_the_command_refuses_other_settings_of_the_tool(run_cli, tmp_path) -> None:
    clip = clip_with(tmp_path / "a.mp4", request='{"prompt":"x"}', model="demo")
    for change, words in (("model=demo", "--model"), ("output=b.mp4", "--output"), ("crf=x", "a number")):
        code, _, err = run_cli("rerun", clip, "--set", change)
        assert code == 2 and words in err


# names and texts that are no UTF-8

NAME = os.fsdecode(b"caf\xe9.png")


@pytest.fixture
def odd_photo(tmp_path: Path) -> Path:
    try:
        return photo(tmp_path / NAME)
    except OSError:
        pytest.skip("this file system takes names in UTF-8 alone")


def test_names_that_are_no_utf8_are_read_recorded_and_printed(odd_photo, tiny_model, run_cli, tmp_path) -> None:
    out = tmp_path / "a.mp4"
    base = ("--model", tiny_model(), "-p", "x", "--image", odd_photo, "--no-audio", *SMALL)
    code, _, err = run_cli("generate", *base, "-o", out, "--verbose")
    assert code == 0 and "caf\\udce9.png" in err, err
    code, said, err = run_cli("plan", *base, "--json")
    assert code == 0 and json.loads(said)["stages"][0]["images"][0]["path"] == str(odd_photo)
    assert run_cli("plan", *base)[0] == 0 and run_cli("info", out)[0] == 0
    assert str(odd_photo) in json.loads(read_metadata(out)["inputs"])
    assert run_cli("rerun", out, "-o", tmp_path / "b.mp4")[0] == 0
    assert (tmp_path / "b.mp4").read_bytes() == out.read_bytes()
    photo(odd_photo, 1)
    code, _, err = run_cli("rerun", out, "-o", tmp_path / "c.mp4")
    assert code == 1 and "caf\\udce9.png is another file" in err


def test_prompts_that_are_no_utf8_are_refused_or_understood(run_cli, tiny_model) -> None:
    bad, garbled = os.fsdecode(b"gr\xfcn"), "grün".encode().decode("ascii", "surrogateescape")
    for command in (["plan"], ["enhance"], ["plan", "--negative-prompt", bad]):
        prompt = "x" if len(command) > 1 else bad
        code, _, err = run_cli(*command, "--model", tiny_model(), "-p", prompt)
        assert code == 2 and "character 3" in err and "UTF-8" in err, err
    if sys.getfilesystemencoding() == "utf-8":
        code, said, _ = run_cli("plan", "--model", tiny_model(), "-p", garbled, "--json", *SMALL)
        assert code == 0 and json.loads(said)["prompt"] == "grün"


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "utf-8"])
def test_any_terminal_is_printed_to(encoding) -> None:
    code = (
        "from mlx_ltx2.cli import options, run; import click, os;"
        "c = click.Command('c', callback=lambda: (click.echo('日本 ' + os.fsdecode(b'caf\\xe9')),"
        " click.echo(options.json_text({'a': 'é😀'})))); raise SystemExit(run(c, []))"
    )
    environment = {**os.environ, "PYTHONIOENCODING": f"{encoding}:strict"}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, check=False)
    assert done.returncode == 0, done.stderr
    first, rest = done.stdout.split(b"\n", 1)
    assert b"caf\\udce9" in first
    assert json.loads(rest.decode("utf-8"))["a"] == "é😀"


def test_notes_on_pictures_are_said_once_by_every_command(tiny_model, run_cli, tmp_path) -> None:
    logo = tmp_path / "logo.png"
    Image.fromarray(np.dstack([corners(64, 64), np.full((64, 64), 9, np.uint8)])).save(logo)
    line = f"{logo}: transparent parts were put on grey."
    model = ("--model", tiny_model())
    image = ("--image", logo, "--no-audio", *SMALL)
    code, _, err = run_cli("generate", *model, "-p", "x", *image, "-o", tmp_path / "a.mp4")
    assert code == 0 and err.count(line) == 1
    code, out, err = run_cli("plan", *model, "-p", "x", *image)
    assert code == 0 and (out + err).count(line) == 1
    code, _, err = run_cli("enhance", *model, "-p", "x", "--max-tokens", 2, "--image", logo)
    assert code == 0 and err.count(line) == 1
    code, _, err = run_cli("upscale", *model, "-i", logo, "-o", tmp_path / "b.png")
    assert code == 0 and err.count(line) == 1


def test_metadata_of_a_picture_by_name_alone_are_not_read(tmp_path) -> None:
    (tmp_path / "a.png").write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n")
    with pytest.raises(MediaError, match="PostScript"):
        read_metadata(tmp_path / "a.png")
