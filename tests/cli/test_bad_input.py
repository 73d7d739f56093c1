"""Requests that cannot be fulfilled: a clear sentence, the documented exit code, nothing written, nothing lost.

Every row runs the real command in this process. A row is bad before any weights are read, unless it says otherwise.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests.conftest import SMALL
from tests.fixtures.media_files import counting_clip, sine, write_plain_video, write_sound

REQUEST, MEDIA, WEIGHTS, RESOURCE, INTERRUPTED = 2, 1, 3, 4, 130


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def refused(run_cli, here, monkeypatch):
    """refused(args, code, *words): the command fails with the code and the words, and changes no file."""
    import mlx.core as mx

    def check(args: list[object], code: int, *words: str, reads_weights: bool = False) -> str:
        before = contents(here)
        with monkeypatch.context() as patch:
            if not reads_weights:
                patch.setattr(mx, "load", no_weights(mx.load))
            got, out, err = run_cli(*args)
        assert got == code, out + err
        assert err.startswith("error: ") and "unexpected" not in err
        for word in words:
            assert word in err, f"{word!r} is not in: {err}"
        assert contents(here) == before
        return err

    return check


def no_weights(load: Any) -> Any:
    """`mx.load` that fails on anything but a kept prompt, which a plan may look up."""

    def guarded(path: str, *args: Any, **options: Any) -> Any:
        if Path(path).parent.name != "prompts":
            pytest.fail("weights were read for a bad request")
        return load(path, *args, **options)

    return guarded


def contents(folder: Path) -> dict[str, bytes | None]:
    """Every file and folder below, with what it holds."""
    return {str(p.relative_to(folder)): p.read_bytes() if p.is_file() else None for p in folder.rglob("*")}


def command(model: Path, *more: object, output: object = "clip.mp4") -> list[object]:
    return ["generate", "--model", model, "-p", "a red circle", "-o", output, *SMALL, *more]


# sizes and numbers


SHAPES = {
    "height off the two-stage grid": (["--height", "96"], ["height 96", "multiple of 64", "64 or 128"]),
    "width off the two-stage grid": (["--width", "100"], ["width 100", "multiple of 64", "64 or 128"]),
    "frames": (["--num-frames", "20"], ["num_frames 20", "8k+1", "17 or 25"]),
    "two frames": (["--num-frames", "2"], ["num_frames 2", "1 or 9"]),
    "no frames": (["--num-frames", "0"], ["num_frames 0", "positive"]),
    "negative frames": (["--num-frames", "-7"], ["num_frames -7", "positive"]),
    "height zero": (["--height", "0"], ["height 0", "positive"]),
    "negative width": (["--width", "-64"], ["width -64", "positive"]),
    "absurd height": (["--height", "640000"], ["640000", "8192"]),
    "absurd frames": (["--num-frames", "80001"], ["80001", "at most"]),
    "fps zero": (["--fps", "0"], ["fps 0", "above 0"]),
    "fps negative": (["--fps", "-24"], ["fps -24"]),
    "fps nan": (["--fps", "nan"], ["fps nan"]),
    "fps infinite": (["--fps", "inf"], ["fps inf"]),
    "fps word": (["--fps", "fast"], ["--fps", "fast"]),
    "steps zero": (["--steps", "0"], ["steps 0"]),
    "steps of a distilled model": (["--steps", "30"], ["steps 30", "8 steps", "--sigmas"]),
    "seed negative": (["--seed", "-1"], ["seed -1", "2^63"]),
    "seed beyond 63 bits": (["--seed", str(2**70)], ["seed", "2^63"]),
    "batch zero": (["--max-batch-size", "0"], ["max_batch_size 0", "1 or more"]),
    "crf": (["--crf", "99"], ["crf 99", "51"]),
    "crf negative": (["--crf", "-3"], ["crf -3"]),
    "sigmas not falling": (["--sigmas", "0.5", "1.0", "0"], ["sigmas"]),
    "sigmas nan": (["--sigmas", "1.0", "nan", "0"], ["sigmas"]),
    "sigmas no numbers": (["--sigmas", "many"], ["--sigmas", "many"]),
    "sampler": (["--sampler", "dpm"], ["sampler 'dpm'", "euler"]),
    "pipeline": (["--pipeline", "fast"], ["no pipeline 'fast'", "distilled"]),
    "image mode": (["--image-mode", "glue"], ["image mode 'glue'", "replace"]),
    "tiling": (["--tiling", "huge"], ["huge", "auto"]),
    "tile size": (["--tile-size", "100"], ["100", "multiple of 32"]),
    "option that does not exist": (["--colour", "red"], ["--colour"]),
    "skip step": (["--skip-step", "-1"], ["skip_step -1"]),
    "audio strength": (["--audio-strength", "1.5"], ["audio_strength 1.5", "between 0 and 1"]),
    "image strength nan": (["--image-strength", "nan"], ["image_strength nan", "between 0 and 1"]),
    "denoising strength": (["--denoising-strength", "-0.1"], ["denoising_strength -0.1"]),
}


@pytest.mark.parametrize("row", SHAPES)
def test_sizes_and_numbers(row, tiny_model, refused) -> None:
    more, words = SHAPES[row]
    refused(command(tiny_model(), *more), REQUEST, *words)


def test_one_stage_grid_is_finer(tiny_model, refused) -> None:
    args = command(tiny_model("2.3", "dev"), "--pipeline", "dev", "--height", "48")
    refused(args, REQUEST, "height 48", "multiple of 32", "32 or 64")


@pytest.mark.parametrize("value", ["nan", "inf", "1e9"])
@pytest.mark.parametrize("name", ["cfg-scale", "stg-scale", "modality-scale", "cfg-rescale", "apg-eta"])
def test_guidance_numbers(name, value, tiny_model, refused) -> None:
    args = command(tiny_model("2.3", "dev"), "--pipeline", "dev", f"--{name}", value)
    refused(args, REQUEST, name.replace("-", "_"), "between -100 and 100")


def test_stg_block_that_the_model_does_not_have(tiny_model, refused) -> None:
    args = command(tiny_model("2.3", "dev"), "--pipeline", "dev", "--stg-blocks", "29")
    refused(args, REQUEST, "stg_blocks", "29", "0 to 1")


# prompts


@pytest.mark.parametrize("prompt", ["", "   ", "\n\t"])
def test_empty_prompt(prompt, tiny_model, refused) -> None:
    args = ["generate", "--model", tiny_model(), "--prompt", prompt, "-o", "clip.mp4", *SMALL]
    refused(args, REQUEST, "prompt is empty")


def test_no_prompt(tiny_model, refused) -> None:
    refused(["generate", "--model", tiny_model(), "-o", "clip.mp4"], REQUEST, "no prompt", "--prompt")


def test_long_prompt_says_what_is_cut(tiny_model, run_cli, here) -> None:
    prompt = "red " * 1100 + "the very last words"
    code, out, err = run_cli(
        "generate", "--model", tiny_model(), "-p", prompt, "-o", "a.mp4", "--progress", "json", *SMALL
    )
    assert code == 0, err
    note = next(line for line in out.splitlines() if "cut off" in line)
    assert ("the model reads 1024" in note and "the very last words"[-12:] in note.replace("...", "")) or "red" in note
    total = int(note.split("the prompt has ")[1].split()[0])
    lost = int(note.split("its last ")[1].split()[0])
    assert total == 1024 + lost


# outputs


def test_output_names(tiny_model, refused, here) -> None:
    (here / "folder.mp4").mkdir()
    (here / "file").write_text("kept")
    model = tiny_model()
    refused(command(model, output="clip.avi"), REQUEST, ".avi", ".mp4")
    refused(command(model, output="clip"), REQUEST, "no suffix", ".mp4")
    refused(command(model, output="clip.png"), REQUEST, "still image", "9 frames")
    refused(command(model, output="folder.mp4"), MEDIA, "is a folder")
    refused(command(model, output="file/clip.mp4"), MEDIA, "is a file, not a folder")
    refused(command(model, "--save-latents", output="clip.gif"), REQUEST, "--save-latents", ".mp4")
    refused(command(model, "--output-audio", "sound.mp3"), REQUEST, ".mp3", ".wav")
    refused(command(model, "--output-audio", "file/sound.wav"), MEDIA, "is a file, not a folder")


def test_unwritable_output(tiny_model, refused, here, monkeypatch) -> None:
    """As root every folder can be written to, so the system's answer is put in its mouth."""
    import tempfile

    def deny(*args: object, **options: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(tempfile, "NamedTemporaryFile", deny)
    refused(command(tiny_model()), MEDIA, "cannot be written to", "Permission denied")


def test_full_disk_at_the_start(tiny_model, refused, small_disk) -> None:
    disk = small_disk(4096 * 2)
    (disk / "fill").write_bytes(b"x" * 8192)
    refused(command(tiny_model(), output=disk / "clip.mp4"), RESOURCE, "no space left", "disk")


def test_disk_fills_while_writing(tiny_model, refused, small_disk) -> None:
    disk = small_disk(4096 * 4)  # the clip has about 20 kB
    (disk / "clip.mp4").write_bytes(b"an older clip")
    args = command(tiny_model(), "--crf", "0", "--overwrite", output=disk / "clip.mp4")
    refused(args, RESOURCE, "no space left", "clip.mp4", reads_weights=True)


def test_disk_fills_while_writing_frames(tiny_model, run_cli, here, monkeypatch) -> None:
    """The latents alone stay; tests/cli/test_outputs.py goes on from them."""
    from mlx_ltx2.stages import write

    def full(*args: object, **options: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(write, "save_frames", full)
    code, _, err = run_cli(*command(tiny_model(), "--save-frames"))
    assert code == RESOURCE and "no space left" in err and "latents are kept" in err, err
    assert list(contents(here)) == ["clip-unwritten.latents.safetensors"]


def test_disk_fills_while_converting(tiny_sources, refused, small_disk) -> None:
    disk = small_disk(4096 * 256)
    args = ["convert", "--source", tiny_sources(), "--output", disk / "model", "--quiet"]
    refused(args, RESOURCE, "disk", "free")


# images


@pytest.fixture
def image(here) -> Path:
    path = here / "photo.png"
    Image.fromarray(np.full((40, 60, 3), 128, np.uint8)).save(path)
    return path


def test_images(tiny_model, refused, here, image) -> None:
    (here / "broken.jpg").write_bytes(b"\xff\xd8\xff\xe0 no picture")
    (here / "note.txt").write_text("no picture either")
    (here / "empty.png").write_bytes(b"")
    model = tiny_model()
    refused(command(model, "--image", "missing.png"), MEDIA, "missing.png", "does not exist")
    refused(command(model, "--image", here), MEDIA, "is a folder")
    for name in ("broken.jpg", "note.txt", "empty.png"):
        refused(command(model, "--image", name), MEDIA, name, "cannot be read as an image")
    refused(command(model, "--image", image, "9"), REQUEST, "at frame 9", "frames 0 to 8")
    refused(command(model, "--image", image, "-10"), REQUEST, "at frame -10", "frames 0 to 8")
    refused(command(model, "--image", image, "--image", image), REQUEST, "two images", "frame 0")
    refused(command(model, "--image", image, "8", "--image", image, "-1"), REQUEST, "two images", "frame 8")
    refused(command(model, "--image", image, "0", "1.5"), REQUEST, "strength 1.5", "between 0 and 1")
    refused(command(model, "--image", image, "0", "1", "77"), REQUEST, "crf 77", "51")
    refused(command(model, "--image", image, "0.5"), REQUEST, "--image")
    args = command(model, "--image", image, "3", "--image-mode", "replace")
    refused(args, REQUEST, "frame 3", "8k+1", "keyframe")


def test_image_with_absurdly_many_pixels(tiny_model, refused, image, monkeypatch) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    refused(command(tiny_model(), "--image", image), MEDIA, "photo.png", "pixels")


# sound


def test_sound(tiny_model, refused, here) -> None:
    write_sound(here / "tone.wav", sine(0.5, 16000), 16000, "s16")
    write_sound(here / "empty.wav", np.zeros((0, 1), np.float32), 16000, "s16")
    bad = sine(0.5, 16000)
    bad[100] = np.nan
    write_sound(here / "nan.wav", bad, 16000, "f32")
    write_plain_video(here / "silent.mp4", counting_clip(5), 24)
    (here / "noise.mp3").write_bytes(b"this is no sound")
    model = tiny_model()
    refused(command(model, "--audio-file", "missing.wav"), MEDIA, "missing.wav", "does not exist")
    refused(command(model, "--audio-file", "noise.mp3"), MEDIA, "noise.mp3", "cannot be read as sound")
    refused(command(model, "--audio-file", "silent.mp4"), MEDIA, "silent.mp4", "no sound track")
    refused(command(model, "--audio-file", "empty.wav"), MEDIA, "empty.wav")
    refused(command(model, "--audio-file", "nan.wav"), MEDIA, "nan.wav", "NaN")
    late = command(model, "--audio-file", "tone.wav", "--audio-start-time", "30")
    refused(late, MEDIA, "tone.wav", "30", "0.5")
    early = command(model, "--audio-file", "tone.wav", "--audio-start-time", "-1")
    refused(early, REQUEST, "audio_start_time -1", "0 or more")
    nan = command(model, "--audio-file", "tone.wav", "--audio-start-time", "nan")
    refused(nan, REQUEST, "audio_start_time nan")
    none = command(model, "--audio-file", "tone.wav", "--audio-max-duration", "0")
    refused(none, REQUEST, "audio_max_duration 0", "more than 0")


# reference videos and masks


def clips(here: Path, **sizes: tuple[int, int, int]) -> None:
    for name, size in sizes.items():
        write_plain_video(here / f"{name}.mp4", counting_clip(*size), 24)


def test_references(tiny_model, refused, here) -> None:
    clips(here, short=(5, 64, 64), whole=(9, 64, 64))
    (here / "broken.mp4").write_bytes(b"no video")
    write_sound(here / "tone.wav", sine(0.5, 16000), 16000, "s16")
    ic = [*command(tiny_model()), "--pipeline", "ic-lora", "--reference"]
    refused([*ic, "short.mp4"], MEDIA, "short.mp4 has 5 frames", "the clip 9", "fewer frames")
    refused([*ic, "whole.mp4", "--reference", "short.mp4"], MEDIA, "short.mp4 has 5 frames")
    refused([*ic, "missing.mp4"], MEDIA, "missing.mp4", "does not exist")
    refused([*ic, "broken.mp4"], MEDIA, "broken.mp4", "cannot be read")
    refused([*ic, "tone.wav"], MEDIA, "tone.wav", "no video stream")
    refused([*ic, "whole.mp4", "1.5"], REQUEST, "reference strength 1.5", "between 0 and 1")
    other = [*command(tiny_model()), "--pipeline", "distilled", "--reference", "whole.mp4"]
    refused(other, REQUEST, "references", "--pipeline ic-lora")


def test_masks(tiny_model, refused, here) -> None:
    clips(here, whole=(9, 64, 64), flat=(9, 32, 64), short=(5, 64, 64))
    (here / "broken.mp4").write_bytes(b"no video")
    ic = [*command(tiny_model()), "--pipeline", "ic-lora", "--reference", "whole.mp4", "--attention-mask"]
    refused([*ic, "flat.mp4"], MEDIA, "flat.mp4 is 64x32", "reference 64x64")
    refused([*ic, "short.mp4"], MEDIA, "short.mp4 has 5 frames", "the clip 9")
    refused([*ic, "missing.mp4"], MEDIA, "missing.mp4", "does not exist")
    refused([*ic, "broken.mp4"], MEDIA, "broken.mp4", "cannot be read")
    refused([*ic, "whole.mp4", "-0.5"], REQUEST, "attention_strength -0.5", "between 0 and 1")
    refused(command(tiny_model(), "--attention-mask", "whole.mp4"), REQUEST, "attention_mask", "--pipeline ic-lora")
    refused(command(tiny_model(), "--skip-stage-2"), REQUEST, "skip_stage_2", "--pipeline ic-lora")


# clips to retake or to extend


def test_retakes(tiny_model, refused, here) -> None:
    clips(here, source=(9, 64, 64))
    model = tiny_model()

    def retake(*more: object) -> list[object]:
        return ["retake", "--model", model, "--video", "source.mp4", "-p", "x", "-o", "clip.mp4", *more]

    refused(retake("--start-time", "0.2", "--end-time", "0.2"), REQUEST, "from 0.2 to 0.2 s is empty")
    refused(retake("--start-time", "0.3", "--end-time", "0.1"), REQUEST, "from 0.3 to 0.1 s is empty")
    refused(retake("--start-time", "5"), REQUEST, "from 5 s lies outside the clip", "0.375 s")
    refused(retake("--start-time", "0.1", "--end-time", "5"), REQUEST, "from 0.1 s to 5 s lies outside the clip")
    refused(retake("--start-time", "nan"), REQUEST, "start_time nan")
    both = retake("--start-time", "0.1", "--no-retake-video", "--no-retake-audio")
    refused(both, REQUEST, "nothing would be made anew")
    refused(retake("--extend-frames", "7"), REQUEST, "extend_frames 7", "use 8 or 16")
    refused(["retake", "--model", model, "-p", "x", "--start-time", "0"], REQUEST, "--video")


# LoRAs


def test_loras(tiny_model, tiny_sources, refused, here) -> None:
    """Found by headers alone; the other kinds of broken files stand in tests/unit/test_lora.py."""
    import mlx.core as mx

    own = next(tiny_sources().glob("*distilled-lora*"))
    arrays = mx.load(str(own))
    up = next(name for name in arrays if name.endswith("lora_B.weight"))
    mx.save_safetensors("ranks.safetensors", {**arrays, up: arrays[up][:, :1]})
    dora = up.replace("lora_B.weight", "dora_scale")
    mx.save_safetensors("dora.safetensors", {**arrays, dora: mx.ones((arrays[up].shape[0], 1))})
    mx.save_safetensors(
        "foreign.safetensors", {f"unet.{i}.lora_{m}.weight": mx.ones((2, 2)) for i in (1, 2) for m in "AB"}
    )
    older = next(tiny_sources("2.0").glob("*distilled-lora*"))
    wider = mx.zeros((2 * arrays[up].shape[0], arrays[up].shape[1]), arrays[up].dtype)
    mx.save_safetensors("wider.safetensors", {**arrays, up: wider})
    (here / "weights.ckpt").write_bytes(b"pickled")
    model = tiny_model()
    refused(command(model, "--lora", "ranks.safetensors"), WEIGHTS, "ranks.safetensors", "do not fit each other")
    refused(command(model, "--lora", older), WEIGHTS, older.name, "is made for LTX-2,", "LTX-2.3")
    refused(command(model, "--lora", "wider.safetensors"), WEIGHTS, "wider.safetensors", "another generation")
    refused(command(model, "--lora", "dora.safetensors"), WEIGHTS, "dora.safetensors", "DoRA")
    refused(command(model, "--lora", "foreign.safetensors"), WEIGHTS, "none of its 4 keys", "another model")
    refused(command(model, "--lora", "weights.ckpt"), WEIGHTS, "only safetensors")
    refused(command(model, "--lora", "missing.safetensors"), WEIGHTS, "missing.safetensors", "no such file")
    refused(command(model, "--lora", own, "nan"), REQUEST, "strength nan", "no number")


# options that contradict each other


def test_contradictions(tiny_model, refused, here, image) -> None:
    write_sound(here / "tone.wav", sine(0.5, 16000), 16000, "s16")
    model = tiny_model()
    refused(command(model, "--audio-file", "tone.wav", "--no-audio"), REQUEST, "no audio", "drop one")
    refused(command(model, "--output-audio", "a.wav", "--no-audio"), REQUEST, "no sound to write")
    sound = command(model, "--pipeline", "text-to-audio", "--image", image, output="a.wav")
    refused(sound, REQUEST, "text-to-audio", "prompt alone")
    silent = command(model, "--pipeline", "text-to-audio", "--no-audio", output="a.wav")
    refused(silent, REQUEST, "text-to-audio", "--no-audio")
    refused(command(model, "--pipeline", "text-to-audio"), REQUEST, "clip.mp4", ".wav")
    refused(command(model, "--pipeline", "ic-lora"), REQUEST, "reference")


@pytest.mark.parametrize(
    "more",
    [["--cfg-scale", "3"], ["--stg-scale", "1"], ["--audio-cfg-scale", "7"], ["--modality-scale", "3"]],
    ids=lambda more: more[0],
)
def test_guidance_on_a_distilled_model(more, tiny_model, refused) -> None:
    refused(command(tiny_model(), *more), REQUEST, more[0][2:].replace("-", "_"), "distilled", "--force-guidance")


@pytest.mark.parametrize("pipeline", ["dev", "dev-two-stage", "dev-two-stage-hq", "keyframes"])
def test_guided_pipeline_on_a_distilled_model(pipeline, tiny_model, refused) -> None:
    args = command(tiny_model(), "--pipeline", pipeline)
    refused(args, REQUEST, "distilled model", "dev model", "--force-guidance")


def test_forced_guidance_is_let_through(tiny_model, run_cli) -> None:
    code, out, err = run_cli("plan", *command(tiny_model(), "--cfg-scale", "3", "--force-guidance")[1:])
    assert code == 0, err
    assert "video guidance cfg 3" in out


def test_official_options_without_a_counterpart(tiny_model, refused) -> None:
    from mlx_ltx2.cli.refused import REFUSED

    differences = (Path(__file__).parents[2] / "CONTRIBUTING.md").read_text("utf-8")
    for option, reason in REFUSED.items():
        for more in ([option, "1"], [f"{option}=1"]):
            refused(command(tiny_model(), *more), REQUEST, f"{option} is not supported", reason)
        assert f"`{option}`" in differences, option


# plan refuses what generate refuses


def test_plan_refuses_the_same(tiny_model, refused) -> None:
    for more, words in list(SHAPES.values())[:12]:
        refused(["plan", *command(tiny_model(), *more)[1:]], REQUEST, *words)


def test_the_python_api_raises_what_the_commands_say(tiny_model) -> None:
    from mlx_ltx2 import LTX2Error, LTX2Pipeline, RequestError, ShapeError

    pipe = LTX2Pipeline.from_pretrained(tiny_model())
    with pytest.raises(ShapeError, match="17 or 25"):
        pipe("x", num_frames=20)
    with pytest.raises(RequestError, match=r"no option 'num_frame'.*'num_frames'"):
        pipe("x", num_frame=9)
    with pytest.raises(RequestError, match="output_type 'gif'"):
        pipe("x", height=64, width=64, num_frames=9, output_type="gif")
    with pytest.raises(RequestError, match="5 axes"):
        pipe("x", height=64, width=64, num_frames=9, latents=np.zeros((1, 2, 3)))
    with pytest.raises(LTX2Error, match="shape"):
        pipe("x", height=64, width=64, num_frames=9, latents=np.zeros((1, 2, 3, 3, 128)))
    with pytest.raises(RequestError, match="whole number"):
        pipe("x", num_frames=9.5)
