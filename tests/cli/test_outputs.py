"""No command loses a file: not a user's own, not an input, not a finished run's work, and none by being stopped."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image

from mlx_ltx2.media.claims import Claim
from mlx_ltx2.media.metadata import made_here, read_metadata
from mlx_ltx2.media.writer import ClipWriter
from tests.cli.test_bad_input import MEDIA, REQUEST, RESOURCE, command, contents, here, refused  # noqa: F401
from tests.conftest import SMALL
from tests.fixtures.media_files import counting_clip, sine, write_plain_video, write_sound

TOLD = "is an input of this run"


@pytest.fixture
def given(here) -> Path:  # noqa: F811
    """A user's own files: a photo, a song, a film and a LoRA's name."""
    Image.fromarray(np.full((64, 64, 3), 90, np.uint8)).save(here / "photo.png")
    write_sound(here / "song.wav", sine(1.0, 16000), 16000, "s16")
    write_plain_video(here / "film.mp4", counting_clip(9, 64, 64), 24)
    (here / "kite.latents.safetensors").write_bytes(b"a LoRA")
    return here


def own_clip(path: Path, seed: str = "1") -> Path:
    with ClipWriter(path, fps=24, metadata={"seed": seed}) as writer:
        writer.write(counting_clip(9, 64, 64))
    return path


def test_no_input_is_an_output(tiny_model, refused, given) -> None:  # noqa: F811
    model = tiny_model()
    os.link("photo.png", "hard.png")
    Path("link.mp4").symlink_to("film.mp4")
    one = ["--num-frames", "1"]
    refused(command(model, "--audio-file", "song.wav", "--output-audio", "song.wav"), REQUEST, "song.wav", TOLD)
    refused(command(model, "--image", "photo.png", *one, output="photo.png"), REQUEST, "photo.png", TOLD)
    refused(command(model, "--image", "photo.png", "--overwrite", *one, output="hard.png"), REQUEST, "hard.png", TOLD)
    ic = ["--pipeline", "ic-lora", "--reference", "film.mp4"]
    refused(command(model, *ic, output="./film.mp4"), REQUEST, "film.mp4", TOLD)
    refused(command(model, *ic, "--attention-mask", "link.mp4", output="../" + given.name + "/film.mp4"), REQUEST, TOLD)
    lora = ["--lora", "kite.latents.safetensors", "--save-latents", "--overwrite"]
    refused(command(model, *lora, output="kite.mp4"), REQUEST, "kite.latents.safetensors", TOLD)
    for more in (["--start-time", "0.1"], ["--extend-frames", "8"]):
        args = ["retake", "--model", model, "--video", "film.mp4", "-p", "x", *more, "--overwrite", "-o", "link.mp4"]
        refused(args, REQUEST, "film.mp4", TOLD)
    refused(["upscale", "-i", "film.mp4", "-o", "link.mp4", "--model", model, "--overwrite"], REQUEST, TOLD)
    refused(["upscale", "-i", "photo.png", "-o", "hard.png", "--model", model], REQUEST, TOLD)


def test_no_input_of_our_own_is_an_output_either(tiny_model, run_cli, refused, here) -> None:  # noqa: F811
    """What an earlier run made is replaced freely, but not while it is read."""
    model = tiny_model()
    code, _, err = run_cli(*command(model, "--save-frames", "--save-latents", output="kite.mp4"))
    assert code == 0, err
    refused(["rerun", "kite.mp4", "-o", "kite.mp4"], REQUEST, "kite.mp4", TOLD)
    last = ["--image", "kite_frames/frame_00008.png"]
    refused(command(model, *last, "--save-frames", output="kite.mp4"), REQUEST, "frame_00008.png", TOLD)
    retake = ["retake", "--model", model, "--video", "kite.mp4", "--start-time", "0.1", "-p", "x"]
    refused([*retake, "--save-latents", "-o", "kite.mov"], REQUEST, "kite.latents.safetensors", TOLD)
    code, _, err = run_cli(*command(model, *last, "-s", "5", "--save-latents", output="kite.mp4"))
    assert code == 0 and "--overwrite" not in err, err


def test_one_run_writes_no_file_twice(tiny_model, refused, here) -> None:  # noqa: F811
    args = command(tiny_model(), "--pipeline", "text-to-audio", "--output-audio", "./a.wav", output="a.wav")
    refused(args, REQUEST, "a.wav", "both to be written")


def test_files_of_others_stay_and_nothing_is_loaded(tiny_model, refused, given) -> None:  # noqa: F811
    model = tiny_model()
    (given / "clip_frames").mkdir()
    Image.new("RGB", (8, 8)).save(given / "clip_frames" / "frame_00100.png")
    for args in (
        command(model, output="film.mp4"),
        command(model, "--output-audio", "song.wav"),
        command(model, "--save-latents", output="kite.mp4"),
        command(model, "--save-frames"),
        command(model, "--num-frames", "1", output="photo.png"),
        ["upscale", "-i", own_clip(given / "own.mp4"), "-o", "film.mp4", "--model", model],
        ["demo", "-o", "film.mp4"],
        ["demo", "-o", "photo.mp4"],  # its sheet is photo.png
        ["generate", "--model", "Nobody/no-such-repository", "-p", "x", "-o", "film.mp4"],  # before any download
    ):
        refused(args, REQUEST, "no f", "of this program", "--overwrite")


def test_overwrite_replaces_them(tiny_model, run_cli, given) -> None:
    (given / "film_frames").mkdir()
    Image.new("RGB", (8, 8)).save(given / "film_frames" / "frame_00000.png")
    more = ["--overwrite", "--output-audio", "song.wav", "--save-frames", "--save-latents"]
    (given / "film.latents.safetensors").write_bytes(b"mine")
    code, _, err = run_cli(*command(tiny_model(), *more, output="film.mp4"))
    assert code == 0, err
    assert all(made_here(path) for path in ("film.mp4", "song.wav", "film_frames/frame_00000.png"))
    code, _, err = run_cli(*command(tiny_model(), *[m for m in more if m != "--overwrite"], output="film.mp4"))
    assert code == 0, err  # they are ours by now


def test_the_api_has_the_same_rule(tiny_model, given) -> None:
    from mlx_ltx2 import LTX2Pipeline, MediaError, RequestError, generate

    size = {"height": 64, "width": 64, "num_frames": 1}
    before = contents(given)
    with pytest.raises(RequestError, match="overwrite=True"):
        generate("x", model="Nobody/no-such-repository", output="film.mp4", **size)
    pipe = LTX2Pipeline.from_pretrained(tiny_model())
    with pytest.raises(RequestError, match="overwrite=True"):
        pipe("x", output="photo.png", **size)
    clip = pipe("x", image="photo.png", **size)
    for path, overwrite in (("film.mp4", False), ("photo.png", False), ("photo.png", True), ("song.wav", False)):
        with pytest.raises(RequestError, match=r"no file of this program|is an input of this run"):
            clip.save(path, overwrite=overwrite)
    with pytest.raises(MediaError, match="folder"):
        clip.save(_folder(given), overwrite=True)
    assert contents(given) == {**before, "folder.mp4": None}
    for _ in range(2):
        assert made_here(clip.save("own.png"))
    assert made_here(clip.save("film.mp4", overwrite=True))
    clip.save("lossless.mp4", crf=0)
    assert any("QuickTime" in note for note in clip.notes)


def _folder(here: Path) -> Path:  # noqa: F811
    (here / "folder.mp4").mkdir()
    return here / "folder.mp4"


# What a value of 0 does


@pytest.mark.parametrize("crf", ["0", "0.0", "19.5", "51"])
def test_crf_is_what_was_given(tiny_model, run_cli, here, crf) -> None:  # noqa: F811
    code, _, err = run_cli(*command(tiny_model(), "--crf", crf, "--no-audio", "--progress", "plain"))
    assert code == 0, err
    assert read_metadata("clip.mp4")["crf"] == f"{float(crf):g}"
    assert ("QuickTime" in err) == (float(crf) < 1)
    with av.open("clip.mp4") as container:
        assert ("4:4:4" in container.streams.video[0].codec_context.profile) == (float(crf) < 1)
    if float(crf) == 0:
        for args in (["rerun", "clip.mp4"], ["upscale", "-i", "clip.mp4", "--crf", "0", "--model", tiny_model()]):
            code, _, err = run_cli(*args, "-o", "again.mp4", "--progress", "plain")
            assert code == 0 and "QuickTime" in err, err
        assert read_metadata("again.mp4")["upscale"]


def test_empty_texts_are_values_too(tiny_model, refused, here) -> None:  # noqa: F811
    refused(command(tiny_model(), "--pipeline", ""), REQUEST, "no pipeline ''")
    refused(command(tiny_model(), output=""), MEDIA, "is a folder")
    refused(command(""), 3, "convert")


def test_no_memory_and_no_bits_are_no_defaults(tiny_model) -> None:
    from mlx_ltx2 import LTX2Pipeline, RequestError, ResourceError
    from mlx_ltx2.weights.quantize import Quantization

    pipe = LTX2Pipeline.from_pretrained(tiny_model(), memory_limit=0)
    with pytest.raises(ResourceError, match="0"):
        pipe.plan_memory(pipe.plan("x", height=64, width=64, num_frames=9))
    with pytest.raises(RequestError, match="0 bits"):
        Quantization.from_options("affine", 0, None)
    with pytest.raises(RequestError, match="0"):
        Quantization.from_options("affine", 4, 0)


def test_a_gif_is_not_said_to_sound(tiny_model, run_cli, here) -> None:  # noqa: F811
    for name, sounds in (("a.gif", False), ("a.mov", True)):
        code, said, err = run_cli(*command(tiny_model(), output=name))
        assert code == 0, err
        assert ("kHz" in said, "no sound" in said) == (sounds, not sounds)


# A file that cannot be written in the end


def test_latents_are_kept_and_give_the_same_clip(tiny_model, run_cli, here, monkeypatch) -> None:  # noqa: F811
    from mlx_ltx2 import LTX2Pipeline
    from mlx_ltx2.media import writer

    args = command(tiny_model(), "-s", "3", "--crf", "20")
    with monkeypatch.context() as patch:
        patch.setattr(writer.VideoSink, "finish", _full)
        code, _, err = run_cli(*args)
    assert code == RESOURCE and "no space left" in err and "clip-unwritten.latents.safetensors" in err, err
    assert list(contents(here)) == ["clip-unwritten.latents.safetensors"]
    pipe = LTX2Pipeline.from_pretrained(tiny_model())
    clip = pipe.decode("clip-unwritten.latents.safetensors", output="saved.mp4")
    assert clip.frames is not None and run_cli(*args)[0] == 0
    assert (here / "saved.mp4").read_bytes() == (here / "clip.mp4").read_bytes()


@pytest.mark.parametrize("wrong", ["disk", "folder", "meanwhile"])
def test_an_error_carries_the_clip_and_the_latents_find_a_place(tiny_model, here, cache, monkeypatch, wrong) -> None:  # noqa: F811
    from mlx_ltx2 import LTX2Error, LTX2Pipeline
    from mlx_ltx2.media import writer

    target = here / "new" / "clip.mp4"

    def step(stage: str, done: int, total: int) -> None:
        if wrong == "folder" and not target.parent.is_file():
            for leftover in target.parent.iterdir():
                leftover.unlink()
            target.parent.rmdir()
            target.parent.write_text("a file where the folder was")
        elif wrong == "meanwhile":
            target.write_bytes(b"somebody else's")

    pipe = LTX2Pipeline.from_pretrained(tiny_model())
    with monkeypatch.context() as patch, pytest.raises(LTX2Error, match="latents are kept in") as caught:
        if wrong == "disk":
            patch.setattr(writer.VideoSink, "add", _full)
        pipe("x", output=target, height=64, width=64, num_frames=9, callback=step)
    clip = caught.value.clip
    assert clip.frames.shape == (9, 64, 64, 3) and clip.audio is not None and clip.latents is not None
    place = cache / "unwritten" if wrong == "folder" else target.parent
    assert (place / "clip-unwritten.latents.safetensors").is_file()
    assert made_here(clip.save(here / "rescued.mp4"))
    if wrong == "meanwhile":
        assert target.read_bytes() == b"somebody else's"


def _full(*_: object) -> None:
    raise OSError(28, "No space left on device")


def test_other_files_are_no_unwritten_clips(tiny_model, here) -> None:  # noqa: F811
    from mlx_ltx2 import LTX2Pipeline, WeightsError

    pipe = LTX2Pipeline.from_pretrained(tiny_model())
    (here / "text.safetensors").write_text("no latents")
    for name in ("missing.safetensors", "text.safetensors"):
        with pytest.raises(WeightsError, match=name):
            pipe.decode(name)


# Stops


@pytest.fixture
def unheeded():
    """Signals as a terminal sends them, whatever the tests were started by: under nohup a hang-up is ignored."""
    kept = {n: signal.signal(n, signal.SIG_DFL) for n in (signal.SIGTERM, signal.SIGHUP)}
    yield
    for number, handler in kept.items():
        signal.signal(number, handler)


@pytest.mark.usefixtures("unheeded")
@pytest.mark.parametrize(
    ("name", "code", "where"), [("SIGTERM", 143, "add"), ("SIGHUP", 129, "finish"), ("SIGTERM", 143, "denoise")]
)
def test_signals_end_a_run_as_ctrl_c_does(tiny_model, run_cli, here, monkeypatch, name, code, where) -> None:  # noqa: F811
    from mlx_ltx2.media import writer
    from mlx_ltx2.pipelines import run

    def stop(*_: object, **__: object) -> None:
        os.kill(os.getpid(), getattr(signal, name))
        os.kill(os.getpid(), getattr(signal, name))  # a second one does not disturb the tidying up

    monkeypatch.setattr(*((run, "denoise") if where == "denoise" else (writer.VideoSink, where)), stop)
    before = signal.getsignal(getattr(signal, name))
    more = ["--output-audio", "sound.wav", "--save-frames", "--save-latents", "--quiet"]
    got, _, err = run_cli(*command(tiny_model(), *more))
    assert got == code and err.strip() == f"error: ended by {name}; nothing was left behind."
    assert contents(here) == {}
    assert signal.getsignal(getattr(signal, name)) is before


@pytest.mark.usefixtures("unheeded")
def test_a_conversion_is_ended_too(tiny_sources, run_cli, here, monkeypatch) -> None:  # noqa: F811
    from mlx_ltx2 import library

    def stop(*_: object, **__: object) -> None:
        os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr("mlx_ltx2_convert.convert", stop)
    with monkeypatch.context() as patch:
        patch.setattr(library, "is_model_folder", lambda path: False)
        code, _, err = run_cli(*command(tiny_sources()))
    assert code == 143 and "ended by SIGTERM" in err, err


def test_what_the_caller_ignores_or_handles_stays_so(run_cli, monkeypatch) -> None:
    from mlx_ltx2.cli import doctor

    seen: list[object] = []
    for handler in (signal.SIG_IGN, lambda *_: None):
        kept = signal.signal(signal.SIGHUP, handler)
        monkeypatch.setattr(doctor.command, "callback", lambda **_: seen.append(signal.getsignal(signal.SIGHUP)))
        run_cli("doctor")
        signal.signal(signal.SIGHUP, kept)
        assert seen.pop() is handler


def test_a_real_process_leaves_nothing(tiny_model, tmp_path) -> None:
    args = command(tiny_model(), "--num-frames", "97", "--save-frames", output=tmp_path / "new" / "a.webp")
    code = "import sys; from mlx_ltx2.cli import main; sys.argv[0] = 'mlx-ltx2'; main()"
    process = subprocess.Popen(
        [sys.executable, "-c", code, *map(str, args)], stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    for _ in range(400):
        if (tmp_path / "new").exists():
            break
        time.sleep(0.05)
    time.sleep(0.3)
    process.terminate()
    _, err = process.communicate(timeout=30)
    assert process.returncode == 143, err
    assert err.endswith("error: ended by SIGTERM; nothing was left behind.\n")
    assert list(tmp_path.iterdir()) == []


# Two at once


def test_a_second_run_is_refused_before_anything_loads(tiny_model, refused, here) -> None:  # noqa: F811
    import threading

    model, held, done = tiny_model(), threading.Event(), threading.Event()

    def first() -> None:
        with Claim("clip.mp4"), Claim("a.wav"), Claim("b_frames"):
            held.set()
            done.wait()

    worker = threading.Thread(target=first)
    worker.start()
    held.wait()
    try:
        refused(command(model), REQUEST, "another run is writing", "clip.mp4")
        refused(command(model, "--output-audio", "a.wav", output="b.mp4"), REQUEST, "another run is writing", "a.wav")
        refused(command(model, "--save-frames", output="b.mp4"), REQUEST, "another run is writing", "b_frames")
    finally:
        done.set()
        worker.join()


# The demo


def test_a_cache_that_cannot_be_made_is_named(run_cli, here, monkeypatch) -> None:  # noqa: F811
    (here / "file").write_text("")
    for folder in ("file/cache", "/proc/nothing/here"):
        monkeypatch.setenv("MLX_LTX2_CACHE", folder)
        code, _, err = run_cli("demo", "--quiet")
        assert code == RESOURCE and "MLX_LTX2_CACHE" in err and folder in err and "unexpected" not in err, err
    assert list(contents(here)) == ["file"]


def test_what_the_summary_says_is_json_safe(tiny_model, run_cli, here) -> None:  # noqa: F811
    name = os.fsdecode(b"clip \xff\n.mp4")
    code, said, err = run_cli("generate", "--model", tiny_model(), "-p", "x", "-o", name, *SMALL, "--progress", "json")
    assert code == 0, err
    assert all(json.loads(line) for line in said.splitlines()) and made_here(name)
