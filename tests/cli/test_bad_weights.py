"""Models that cannot be used and runs that are stopped: a clear sentence, exit code 3 or 130, nothing left behind."""

from __future__ import annotations

import json
import os
import shutil
import signal
import struct
from collections.abc import Iterator
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest

from tests.cli.test_bad_input import command, contents
from tests.conftest import SMALL

WEIGHTS, REQUEST, FAILED, INTERRUPTED = 3, 2, 1, 130


@pytest.fixture(autouse=True)
def sigint_heard() -> Iterator[None]:
    """A shell starts background jobs with SIGINT ignored, and Python keeps it so; these tests need it heard."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def model(tiny_model, here) -> Path:
    """A converted model that a test may damage; hard links keep the copy cheap, so replace files, never edit them."""
    folder = here / "model"
    shutil.copytree(tiny_model(), folder, copy_function=os.link)
    return folder


@pytest.fixture
def source(tiny_sources, here) -> Path:
    """An official folder that a test may damage."""
    folder = here / "source"
    shutil.copytree(tiny_sources(), folder)
    return folder


@pytest.fixture
def refused(run_cli, here):
    def check(args: list[object], code: int, *words: str) -> str:
        before = contents(here)
        got, out, err = run_cli(*args)
        assert got == code, out + err
        assert "error: " in err and "unexpected" not in err
        for word in words:
            assert word in err, f"{word!r} is not in: {err}"
        assert contents(here) == before
        return err

    return check


def replace(path: Path, data: bytes) -> None:
    path.unlink()
    path.write_bytes(data)


def edit_json(path: Path, **changes: object) -> None:
    """Change keys of a JSON file; None removes one."""
    content = {**json.loads(path.read_text()), **changes}
    replace(path, json.dumps({k: v for k, v in content.items() if v is not None}).encode())


def shard(model: Path, component: str) -> Path:
    return next((model / component).glob("*.safetensors"))


def header_of(data: bytes) -> tuple[dict[str, object], bytes]:
    length = int.from_bytes(data[:8], "little")
    return json.loads(data[8 : 8 + length]), data[8 + length :]


def with_header(header: dict[str, object], rest: bytes) -> bytes:
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + rest


# the model itself


def test_no_model(refused, here) -> None:
    (here / "empty").mkdir()
    (here / "other").mkdir()
    (here / "other" / "config.json").write_text("{}")
    (here / "notes.txt").write_text("no weights")
    (here / "half.partial").mkdir()
    refused(command(here / "missing"), WEIGHTS, "missing", "no such folder", "convert")
    refused(command(here / "empty"), WEIGHTS, "empty", "no converted model", "model_index.json")
    refused(command(here / "other"), WEIGHTS, "other", "no converted model")
    refused(command(here / "notes.txt"), WEIGHTS, "notes.txt")
    refused(command(here / "half"), WEIGHTS, "interrupted", "same convert command")
    refused(command(here / "half.partial"), WEIGHTS, "interrupted conversion")
    refused(["info", here / "missing"], WEIGHTS, "missing")
    refused(["convert", "--source", here / "missing", "--output", "m"], WEIGHTS, "missing", "no such file")
    refused(["convert", "--source", here / "empty", "--output", "m"], WEIGHTS, "no monolithic LTX-2 checkpoint")
    refused(["convert", "--source", here / "notes.txt", "--output", "m"], WEIGHTS, "notes.txt")


def test_index_of_another_format_or_unreadable(refused, model) -> None:
    index = model / "model_index.json"
    edit_json(index, format=99)
    refused(command(model), WEIGHTS, "format 99", "format 1")
    edit_json(index, format=1, components=None)
    refused(command(model), WEIGHTS, "'components'")
    replace(index, b'{"format": 1,')
    refused(command(model), WEIGHTS, "is no JSON")
    replace(index, b"[]")
    refused(command(model), WEIGHTS, "no JSON object")


def test_unknown_generation_or_missing_config(refused, model) -> None:
    config = model / "transformer" / "config.json"
    kept = config.read_bytes()
    edit_json(model / "model_index.json", version=[3, 1])
    refused(command(model), WEIGHTS, "generation 3.1", "supported are")
    edit_json(model / "model_index.json", version="new")
    refused(command(model), WEIGHTS, "model_index.json", "generation")
    edit_json(model / "model_index.json", version=[2, 3])
    replace(config, b"{}")  # every absent key has the official value, so nothing fits
    refused(command(model), WEIGHTS, "3840")
    config.unlink()
    refused(command(model), WEIGHTS, "transformer", "config.json is missing")
    config.write_bytes(kept)


@pytest.mark.parametrize("key", ["rope_type", "activation_fn"])
def test_config_with_a_value_that_is_not_supported(key, refused, model) -> None:
    edit_json(model / "transformer" / "config.json", **{key: "interleaved-in-time"})
    refused(command(model), WEIGHTS, key, "interleaved-in-time")


def test_missing_components(refused, model, here) -> None:
    index = model / "model_index.json"
    components = json.loads(index.read_text())["components"]
    for name, words in {
        "spatial_upsampler": ["spatial_upsampler", "upscaler x2"],
        "text_encoder": ["text_encoder", "--text-encoder"],
        "video_decoder": ["video_decoder"],
        "vocoder": ["vocoder"],
    }.items():
        edit_json(index, components={k: v for k, v in components.items() if k != name})
        refused(command(model), WEIGHTS, *words)
    edit_json(index, components={**components, "transformer": "../elsewhere"})
    refused(command(model), WEIGHTS, "inside the model")


# damaged files of weights


@pytest.mark.parametrize("component", ["transformer", "vae/decoder", "vocoder", "text_encoder"])
@pytest.mark.parametrize("kept", [0.5, 0.0, "header"])
def test_truncated_weights(component, kept, refused, model) -> None:
    path = shard(model, component)
    data = path.read_bytes()
    end = 20 if kept == "header" else int(len(data) * kept)
    replace(path, data[:end])
    refused(command(model), WEIGHTS, path.name)


def test_header_that_claims_more_than_the_file_holds(refused, model) -> None:
    path = shard(model, "transformer")
    header, rest = header_of(path.read_bytes())
    replace(path, with_header(header, rest[:-64]))
    refused(command(model), WEIGHTS, path.name, "claims", "truncated")
    replace(path, struct.pack("<Q", 1 << 60) + b"{}")
    refused(command(model), WEIGHTS, path.name, "header length", "absurd")
    replace(path, with_header(header, rest + bytes(64)))
    refused(command(model), WEIGHTS, path.name, "more than its header")


def test_tensor_of_another_shape_name_or_type(refused, model) -> None:
    path = shard(model, "transformer")
    header, rest = header_of(path.read_bytes())
    name = next(n for n, t in header.items() if n != "__metadata__" and len(t["shape"]) == 2)
    shape = header[name]["shape"]
    turned = {**header, name: {**header[name], "shape": [shape[0] * 2, shape[1] // 2]}}
    replace(path, with_header(turned, rest))
    refused(command(model), WEIGHTS, name, "wrong shape")
    renamed = {(f"{n}_x" if n == name else n): t for n, t in header.items()}
    replace(path, with_header(renamed, rest))
    refused(command(model), WEIGHTS, name)
    typed = {**header, name: {**header[name], "dtype": "F7"}}
    replace(path, with_header(typed, rest))
    refused(command(model), WEIGHTS, name, "F7")


def flip(path: Path, place: int, bit: int = 3) -> None:
    data = bytearray(path.read_bytes())
    data[place] ^= 1 << bit
    replace(path, bytes(data))


def test_bit_flip_in_a_header(refused, model) -> None:
    path = shard(model, "transformer")
    flip(path, 30, 7)
    refused(command(model), WEIGHTS, path.name)


def test_bit_flip_in_the_data_is_found_by_its_hash(refused, run_cli, model) -> None:
    code, out, err = run_cli("info", model, "--verify", "--quiet")
    assert code == 0 and "agree with their hashes" in out, err
    path = shard(model, "vae/decoder")
    flip(path, path.stat().st_size - 100)
    refused(["info", model, "--verify", "--quiet"], WEIGHTS, "vae/decoder", "SHA-256")
    path.unlink()
    refused(["info", model, "--verify", "--quiet"], WEIGHTS, path.name, "is missing")


def test_verify_needs_a_model(refused, tiny_sources, here) -> None:
    file = next(tiny_sources().glob("ltx-*.safetensors"))
    refused(["info", file, "--verify"], REQUEST, "--verify", "converted model")


def poison(path: Path, value: float) -> None:
    """Overwrite every tensor of a file with one value, as a broken disk or a wrong cast might."""
    arrays = mx.load(str(path))
    floats = {k: mx.full(v.shape, value, v.dtype) for k, v in arrays.items() if mx.issubdtype(v.dtype, mx.floating)}
    beside = path.with_name("beside.safetensors")
    mx.save_safetensors(str(beside), {**arrays, **floats})
    beside.replace(path)


@pytest.mark.parametrize(
    ("component", "who"),
    [
        ("transformer", "the transformer (stage 'half size')"),
        ("vae/decoder", "the video decoder"),
        ("audio_vae/decoder", "the audio decoder"),
        ("vocoder", "the vocoder"),
        ("text_projections", "the text encoder"),
    ],
)
def test_weights_that_are_no_numbers_are_found_before_a_clip_is_written(component, who, refused, model, here) -> None:
    (here / "clip.mp4").write_bytes(b"an older clip")
    poison(shard(model, component), float("nan"))
    refused(command(model, "--overwrite"), FAILED, who, "no numbers", "--verify")


def test_decoder_that_paints_one_colour_is_found(refused, model) -> None:
    poison(shard(model, "vae/decoder"), 0.0)
    refused(command(model), FAILED, "the video decoder", "same value", "--verify")


# official files


def test_damaged_official_file(refused, source) -> None:
    file = next(source.glob("ltx-2.3-22b-distilled-1.1.safetensors"))
    data = file.read_bytes()
    args = ["convert", "--source", source, "--output", "model", "--quiet"]
    header, rest = header_of(data)
    replace(file, data[: len(data) // 2])
    refused(args, WEIGHTS, file.name, "truncated")
    metadata = header["__metadata__"]
    replace(file, with_header({**header, "__metadata__": {}}, rest))
    refused(args, WEIGHTS, file.name, "config")
    replace(file, with_header({**header, "__metadata__": {**metadata, "config": "{"}}, rest))
    refused(args, WEIGHTS, file.name, "config")
    replace(file, with_header({**header, "__metadata__": {**metadata, "model_version": "7.0.0"}}, rest))
    refused(args, WEIGHTS, file.name, "7.0")
    fewer = {n: t for n, t in header.items() if n != "__metadata__"}
    lost = next(n for n in fewer if n.endswith("to_q.weight"))
    renamed = {("model.diffusion_model.odd" if n == lost else n): t for n, t in header.items()}
    replace(file, with_header(renamed, rest))
    refused(args, WEIGHTS, "odd", "to_q.weight")


# the text encoder


@pytest.fixture
def other_gemma(here):
    from mlx_ltx2.demo.tiny_gemma import write_tiny_gemma

    def write(**options: object) -> Path:
        return write_tiny_gemma(here / "gemma", **{"width": 64, "layers": 7, **options})

    return write


def test_text_encoder_of_another_width(refused, model, other_gemma) -> None:
    refused(command(model, "--text-encoder", other_gemma(width=32)), WEIGHTS, "32", "64")


def test_text_encoder_of_another_depth(refused, model, other_gemma) -> None:
    refused(command(model, "--text-encoder", other_gemma(layers=3)), WEIGHTS, "layers")


def test_text_encoder_of_another_vocabulary(refused, model, other_gemma) -> None:
    folder = other_gemma()
    content = json.loads((folder / "tokenizer.json").read_text())
    content["added_tokens"].append({**content["added_tokens"][-1], "id": 99999, "content": "<far>"})
    (folder / "tokenizer.json").write_text(json.dumps(content))
    refused(command(model, "--text-encoder", folder), WEIGHTS, "tokenizer", "embedding")


def test_text_encoder_without_parts(refused, model, other_gemma, here) -> None:
    folder = other_gemma()
    refused(command(model, "--text-encoder", here / "nowhere"), WEIGHTS, "nowhere", "no such folder")
    (folder / "tokenizer.json").rename(here / "away")
    refused(command(model, "--text-encoder", folder), WEIGHTS, "tokenizer")
    (here / "away").rename(folder / "tokenizer.json")
    edit_json(folder / "config.json", model_type="llama", text_config=None)
    refused(command(model, "--text-encoder", folder), WEIGHTS, "llama", "Gemma 3")


# Ctrl-C


PHASES = [
    "encode text",
    "encode media",
    "encode audio",
    "half size",
    "full size",
    "decode audio",
    "decode video",
]


@pytest.fixture
def older(here) -> Path:
    (here / "clip.mp4").write_bytes(b"an older clip")
    return here


@pytest.fixture
def inputs(here) -> list[object]:
    from PIL import Image

    from tests.fixtures.media_files import sine, write_sound

    Image.fromarray(np.full((64, 64, 3), 90, np.uint8)).save(here / "photo.png")
    write_sound(here / "tone.wav", sine(0.5, 16000), 16000, "s16")
    return ["--image", "photo.png"]


@pytest.mark.parametrize("phase", PHASES)
def test_interrupt_in_every_phase(phase, tiny_model, refused, older, inputs, monkeypatch) -> None:
    """A real SIGINT to this process when the phase advances for the first time."""
    from mlx_ltx2 import progress

    real = progress.SilentProgress.phase
    hit = []

    def watched(self, name: str, *args: object, **options: object):
        from contextlib import contextmanager

        @contextmanager
        def inner():
            with real(self, name, *args, **options) as advance:

                def step(n: int = 1) -> None:
                    advance(n)
                    if name == phase and not hit:
                        hit.append(name)
                        os.kill(os.getpid(), signal.SIGINT)

                yield step

        return inner()

    monkeypatch.setattr(progress.SilentProgress, "phase", watched)
    more = [
        *inputs,
        "-p",
        phase,
        "--output-audio",
        "sound.wav",
        "--save-frames",
        "--overwrite",
        "--quiet",
    ]  # a prompt nobody kept
    if phase == "encode audio":
        more += ["--audio-file", "tone.wav"]
    refused(command(tiny_model(), *more), INTERRUPTED, "interrupted", "nothing was left behind")
    assert hit


@pytest.mark.parametrize("where", ["upsample", "text projections", "add", "finish", "write_wav"])
def test_interrupt_between_the_steps(where, tiny_model, refused, older, inputs, monkeypatch) -> None:
    """Where no progress is shown: the upsampler, the projections, the encoder of the file and the WAV writer."""
    from mlx_ltx2 import generate as _function  # noqa: F401  (loads the module)
    from mlx_ltx2.media import writer
    from mlx_ltx2.models.text.projections import TextProjections
    from mlx_ltx2.pipelines import run

    def stop(*args: object, **options: object) -> None:
        os.kill(os.getpid(), signal.SIGINT)

    owner = {
        "upsample": (run, "upsample"),
        "text projections": (TextProjections, "__call__"),
        "add": (writer.VideoSink, "add"),
        "finish": (writer.VideoSink, "finish"),
        "write_wav": (__import__("sys").modules["mlx_ltx2.generate"], "write_wav"),
    }[where]
    monkeypatch.setattr(*owner, stop)
    more = [*inputs, "-p", where, "--output-audio", "sound.wav", "--save-frames", "--overwrite", "--quiet"]
    refused(command(tiny_model(), *more), INTERRUPTED, "interrupted", "nothing was left behind")


def test_interrupt_in_a_conversion_keeps_what_is_done(tiny_sources, run_cli, here, monkeypatch) -> None:
    from mlx_ltx2 import progress

    real = progress.SilentProgress.phase
    counted = []

    def watched(self, name: str, *args: object, **options: object):
        from contextlib import contextmanager

        @contextmanager
        def inner():
            with real(self, name, *args, **options):

                def step(n: int = 1) -> None:
                    counted.append(n)
                    if len(counted) == 3:
                        os.kill(os.getpid(), signal.SIGINT)

                yield step

        return inner()

    monkeypatch.setattr(progress.SilentProgress, "phase", watched)
    args = ["convert", "--source", tiny_sources(), "--output", here / "model", "--quiet"]
    code, _, err = run_cli(*args)
    assert code == INTERRUPTED, err
    assert "interrupted" in err and "same command goes on" in err and "nothing was left" not in err
    assert not (here / "model").exists()
    code, _, err = run_cli("generate", "--model", here / "model", "-p", "x", *SMALL)
    assert code == WEIGHTS and "interrupted" in err
    code, _, err = run_cli(*args)
    assert code == 0, err
    code, _, err = run_cli("info", here / "model", "--verify", "--quiet")
    assert code == 0, err


def test_out_of_memory_is_exit_code_4(tiny_model, refused, monkeypatch) -> None:
    from mlx_ltx2.pipelines import run

    def full(*args: object, **options: object) -> None:
        raise MemoryError

    monkeypatch.setattr(run, "denoise", full)
    refused(command(tiny_model()), 4, "out of memory", "smaller size")
