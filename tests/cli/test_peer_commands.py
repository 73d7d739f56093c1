"""The one table of other programs' commands; every row runs on tiny models and must give a playable result.

Only the program's name is replaced. What a row may add: sizes, and `--steps` where a schedule would be long. Hub names
resolve to tiny models through a stand-in for the hub.
"""

from __future__ import annotations

import re
import shlex
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image

from tests.fixtures.media_files import counting_clip, sine, write_plain_video, write_sound

pytestmark = pytest.mark.slow


@dataclass(frozen=True)
class Row:
    """command: as its source has it but for the program's name. more: sizes and steps that are added."""

    source: str
    command: str
    more: str = "-H 64 -W 64 -n 9"
    output: str = "output.mp4"
    size: tuple[int, int] = (64, 64)
    frames: int = 9
    rate: str = "24"
    sound: bool = True
    also: tuple[str, ...] = ()


GUIDED = "-H 64 -W 64 -n 9 --steps 2"
G = "mlx_ltx2.generate"
DEV = "--model-repo prince-canuma/LTX-2-dev"


def readme(command: str, more: str = "-H 64 -W 64 -n 9", **expected: object) -> Row:
    return Row("mlx-video README", command, more, **expected)


README = [
    readme(f'{G} --prompt "Two dogs wearing sunglasses, cinematic, sunset" -n 97 --width 768'),
    readme(f'{G} --pipeline dev --prompt "A cinematic scene" --cfg-scale 3.0', GUIDED),
    readme(
        f'{G} --pipeline dev-two-stage --prompt "Two dogs of the poodle breed wearing sunglasses, close up, cinematic, '
        f'sunset" -n 145 --width 1024 --height 768 {DEV} --cfg-scale 3.0 --lora-strength 0.8 --enhance-prompt',
        f"{GUIDED} --max-tokens 3",
    ),
    readme(
        f'{G} --pipeline dev-two-stage-hq --prompt "A cinematic scene of ocean waves at golden hour" {DEV}',
        GUIDED,
    ),
    readme(
        f'{G} --pipeline dev-two-stage-hq --prompt "A sunset over mountains" {DEV} '
        "--lora-strength-stage-1 0.3 --lora-strength-stage-2 0.6",
        GUIDED,
    ),
    readme(f'{G} --prompt "A person dancing" --image photo.jpg'),
    readme(f'{G} --pipeline dev --prompt "Waves crashing" --image beach.png --cfg-scale 3.5', GUIDED),
    readme(f'{G} --audio-file music.wav --prompt "A band playing music"'),
    readme(f'{G} --pipeline dev --audio-file ocean.wav --prompt "Ocean waves"', GUIDED),
    readme(f'{G} --pipeline dev-two-stage --audio-file music.wav --prompt "A band playing music" {DEV}', GUIDED),
    readme(
        f'{G} --pipeline dev-two-stage-hq --audio-file music.wav --prompt "A band playing music" {DEV}',
        GUIDED,
    ),
    readme(f'{G} --audio-file rain.wav --image forest.jpg --prompt "Rain in forest"'),
    readme(f'{G} --audio-file song.mp3 --audio-start-time 30.0 --prompt "Concert"'),
    readme(f'{G} --prompt "Ocean waves crashing" --audio'),
    readme(
        f'{G} --pipeline dev --prompt "A jazz band playing" --audio --enhance-prompt',
        f"{GUIDED} --max-tokens 3",
    ),
    readme(
        f'{G} --pipeline dev --prompt "Ocean waves crashing" --audio --stg-scale 1.0 --stg-blocks 29 --modality-scale 3.0',
        f"{GUIDED} --model 30-blocks",
    ),
    readme(
        f'{G} --pipeline dev-two-stage --prompt "Camera dolly out of a forest" '
        "--lora-path Lightricks/LTX-2-19b-LoRA-Camera-Control-Dolly-Out --lora-strength 1.0",
        GUIDED,
    ),
    readme(f'{G} --pipeline dev-two-stage --prompt "A scene" --lora-path ./my-lora/weights.safetensors', GUIDED),
    readme(f'{G} --pipeline dev-two-stage --prompt "A scene" --lora-path ./LTX-2-distilled/lora', GUIDED),
]

P = f"{G} -p x"

README_OPTIONS = [
    readme(f"{P} --pipeline distilled --seed 42 --fps 24 --output-path clip.mp4", output="clip.mp4"),
    readme(f"{P} -s 7 --fps 30 -o clip.mov", output="clip.mov", rate="30"),
    readme(f"{P} --model-repo Lightricks/LTX-2"),
    readme(f"{P} --model-repo prince-canuma/LTX-2-distilled --text-encoder-repo some/gemma-3"),
    readme(f"{P} --save-frames", also=("output_frames/frame_00000.png", "output_frames/frame_00008.png")),
    readme(f"{P} -i photo.jpg --image-strength 0.8 --image-frame-idx 0"),
    readme(f"{P} -a"),
    *[
        readme(f"{P} --tiling {mode} --stream")
        for mode in ("auto", "none", "default", "aggressive", "conservative", "spatial", "temporal")
    ],
    readme(
        f'{P} --pipeline dev --steps 30 --cfg-scale 3.0 --cfg-rescale 0.7 --negative-prompt "blurry" --apg '
        "--apg-eta 0.9 --apg-norm-threshold 5 --stg-scale 0.0 --modality-scale 1.0 --audio-cfg-scale 7.0",
        GUIDED,
    ),
    readme(
        f"{P} --verbose --max-tokens 512 --temperature 0.7 --output-audio sound.wav "
        "--spatial-upscaler upscaler.safetensors",
        also=("sound.wav",),
    ),
]

OFFICIAL_FILES = "--checkpoint-path dev.safetensors --gemma-root gemma --spatial-upsampler-path upscaler.safetensors"
OFFICIAL_LORA = "--distilled-lora distilled_lora.safetensors 0.8"
TAIL = '--prompt "A beautiful sunset over the ocean" --output-path output.mp4'
OFFICIAL_GUIDANCE = (
    "--video-cfg-guidance-scale 3 --video-stg-guidance-scale 1 --video-rescale-scale 0.7 --video-stg-blocks 1 "
    "--a2v-guidance-scale 3 --video-skip-step 0 --audio-cfg-guidance-scale 7 --audio-stg-guidance-scale 1 "
    "--audio-rescale-scale 0.7 --audio-stg-blocks 1 --v2a-guidance-scale 3 --audio-skip-step 0"
)


def official(pipeline: str, flags: str, more: str = GUIDED, **expected: object) -> Row:
    return Row("ltx-pipelines 1.2.0", f"{G} --pipeline {pipeline} {flags}", more, **expected)


OFFICIAL = [
    official("two-stage", f"{OFFICIAL_FILES} {OFFICIAL_LORA} {TAIL}"),
    official(
        "one-stage",
        f"--checkpoint-path dev.safetensors --gemma-root gemma {TAIL} --seed 10 --height 512 --width 768 "
        f"--num-frames 121 --frame-rate 24.0 --num-inference-steps 30 --negative-prompt blurry {OFFICIAL_GUIDANCE} "
        "--image photo.jpg 0 1.0 33 --max-batch-size 1 --lora my-lora/weights.safetensors 0.5 --compile",
    ),
    official(
        "two-stage-hq",
        f"{OFFICIAL_FILES} --distilled-lora distilled_lora.safetensors --distilled-lora-strength-stage-1 0.25 "
        f"--distilled-lora-strength-stage-2 0.5 {TAIL} --quantization fp8-cast",
    ),
    official(
        "distilled",
        "--distilled-checkpoint-path distilled.safetensors --gemma-root gemma --spatial-upsampler-path "
        f"upscaler.safetensors {TAIL} --image photo.jpg 0 0.9 --image photo.jpg 8 0.5 0",
        "-H 64 -W 64 -n 9",
    ),
    official(
        "keyframes",
        f"{OFFICIAL_FILES} {OFFICIAL_LORA} {TAIL} --image photo.jpg 0 1.0 --image forest.jpg 8 1.0",
    ),
    official(
        "a2v",
        f"{OFFICIAL_FILES} {OFFICIAL_LORA} {TAIL} --audio-path music.wav --audio-start-time 0.1 --audio-max-duration 0.2",
    ),
    official(
        "ic-lora",
        "--distilled-checkpoint-path distilled.safetensors --gemma-root gemma --spatial-upsampler-path "
        f"upscaler.safetensors --lora my-lora/weights.safetensors 1.0 --video-conditioning source.mp4 1.0 {TAIL}",
        "-H 64 -W 64 -n 9",
    ),
    official(
        "ic-lora",
        "--distilled-checkpoint-path distilled.safetensors --gemma-root gemma --spatial-upsampler-path "
        "upscaler.safetensors --lora my-lora/weights.safetensors --video-conditioning source.mp4 0.8 "
        f"--conditioning-attention-mask source.mp4 0.5 --skip-stage-2 {TAIL}",
        "-H 128 -W 128 -n 9",
    ),
    official(
        "text-to-audio",
        "--checkpoint-path dev.safetensors --gemma-root gemma --prompt rain --output-path output.wav",
        "-n 9 --steps 2",
        output="output.wav",
        frames=0,
    ),
    Row(
        "ltx-pipelines 1.2.0",
        "mlx_ltx2.retake --checkpoint-path distilled.safetensors --gemma-root gemma --video-path source.mp4 "
        '--start-time 0.1 --end-time 0.3 --prompt "a dog" --output-path output.mp4',
        "",
    ),
]

CVL = [
    Row("cvl", command, more)
    for command, more in (
        (f'{G} --prompt "A serene mountain landscape at sunset"', "-H 64 -W 64 -n 9"),
        (
            f'{G} --pipeline full --prompt "A cat playing with yarn" --num-inference-steps 40 --cfg-guidance-scale 4.0',
            GUIDED,
        ),
        (f'{G} --image portrait.jpg --prompt "The person smiles and waves"', "-H 64 -W 64 -n 9"),
        (f"{P} --height 512 --width 768 --num-frames 33 --frame-rate 24.0 --no-fp8", "-H 64 -W 64 -n 9"),
        (
            f'{G} --audio speech.wav --audio-strength 0.8 --prompt "A presenter speaks in sync"',
            "-H 64 -W 64 -n 9",
        ),
        (f"{P} --lora kabachuha/ltx2-inflate-it 1.0 --output output.mp4", "-H 64 -W 64 -n 9"),
        (f"{P} --lora kabachuha/ltx2-inflate-it::ltx2-inflate.safetensors 1.0", "-H 64 -W 64 -n 9"),
        (f"{P} --lora my-lora/weights.safetensors 0.8 --enhance-prompt", "-H 64 -W 64 -n 9 --max-tokens 3"),
    )
]

U = "mlx_ltx2.upscale"
UPSCALE = [
    Row(
        "mlx-video README",
        f"{U} --input photo.png --output upscaled.png",
        "",
        "upscaled.png",
        (128, 128),
        1,
        "0",
        False,
    ),
    Row("mlx-video README", f"{U} --input video.mp4 --output upscaled.mp4", "", "upscaled.mp4", (128, 128)),
    Row(
        "mlx-video README",
        f'{U} --input video.mp4 --output upscaled.mp4 --refine --prompt "A cinematic scene"',
        "",
        "upscaled.mp4",
        (128, 128),
    ),
]

ROWS = [*README, *README_OPTIONS, *OFFICIAL, *CVL, *UPSCALE]


# the stage on which the rows run


@pytest.fixture(scope="session")
def shelf(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Tiny models smaller than the usual ones: the text connectors, nothing of which depends on a row, shrink."""
    from mlx_ltx2 import convert
    from mlx_ltx2.demo import tiny

    folder = tmp_path_factory.mktemp("shelf")
    small = {"connector_num_layers": 1, "connector_num_attention_heads": 1, "connector_attention_head_dim": 64,
             "audio_connector_num_attention_heads": 1, "audio_connector_attention_head_dim": 32}  # fmt: skip
    with pytest.MonkeyPatch.context() as patch:
        for key, value in small.items():
            patch.setitem(tiny._TRANSFORMER_23, key, value)
        for variant in ("distilled", "dev"):
            tiny.write_tiny_checkpoint(folder / "official", variant=variant)
        tiny.write_tiny_checkpoint(folder / "deep", variant="dev", blocks=30)
    for variant in ("distilled", "dev"):
        convert(folder / "official", folder / variant, variant=variant)
    convert(folder / "deep", folder / "30-blocks", variant="dev")
    lora = next((folder / "official").glob("*lora*"))
    for name in ("ltx2-inflate.safetensors", "weights.safetensors"):
        (folder / name.split(".")[0]).mkdir()
        (folder / name.split(".")[0] / name).write_bytes(lora.read_bytes())
    return {p.name: p for p in folder.iterdir()}


@pytest.fixture
def desk(shelf, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with every file that the rows name, and a hub that has every repo that they name."""
    from mlx_ltx2.pipelines import presets

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(presets, "DEFAULT_NEGATIVE_PROMPT", "blurry")  # 1,000 tokens cost most of a tiny run
    rng = np.random.default_rng(0)
    for name in ("photo.jpg", "photo.png", "beach.png", "forest.jpg", "portrait.jpg"):
        Image.fromarray(rng.integers(0, 255, (64, 64, 3), np.uint8)).save(name)
    for name in ("music.wav", "ocean.wav", "rain.wav", "speech.wav"):
        write_sound(Path(name), sine(0.5, 16000), 16000, "s16")
    write_sound(Path("song.mp3"), sine(31, 16000, 1), 16000, "mp3")
    for name in ("video.mp4", "source.mp4"):
        write_plain_video(Path(name), counting_clip(9, 64, 64), 24, late_sound=0.0)
    official = shelf["official"]
    links = {
        "dev.safetensors": next(official.glob("ltx-2.3-22b-dev.safetensors")),
        "distilled.safetensors": next(official.glob("ltx-2.3-22b-distilled-1.1.safetensors")),
        "distilled_lora.safetensors": next(official.glob("*distilled-lora*")),
        "upscaler.safetensors": next(official.glob("*spatial-upscaler-x2*")),
        "gemma": official / "gemma-3-tiny",
        "my-lora": shelf["weights"],
        "LTX-2-distilled/lora": shelf["weights"],
        "30-blocks": shelf["30-blocks"],
    }
    for name, target in links.items():
        Path(name).parent.mkdir(exist_ok=True)
        Path(name).symlink_to(target)
    _stand_in_hub(shelf, monkeypatch)
    return tmp_path


def _stand_in_hub(shelf: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    from mlx_ltx2.weights import hub

    repos = {
        "Lightricks/LTX-2.3": shelf["official"],
        "Lightricks/LTX-2": shelf["official"],
        "prince-canuma/LTX-2-dev": shelf["dev"],
        "prince-canuma/LTX-2-distilled": shelf["distilled"],
        hub.TEXT_ENCODER_REPO: shelf["official"] / "gemma-3-tiny",
        "some/gemma-3": shelf["official"] / "gemma-3-tiny",
        "Lightricks/LTX-2-19b-LoRA-Camera-Control-Dolly-Out": shelf["weights"],
        "kabachuha/ltx2-inflate-it": shelf["ltx2-inflate"],
    }

    def list_files(repo: str, revision: str | None = None) -> list[hub.HubFile]:
        files = sorted(p for p in repos[repo].rglob("*") if p.is_file())
        return [hub.HubFile(p.relative_to(repos[repo]).as_posix(), p.stat().st_size) for p in files]

    def download_files(repo: str, files: list[hub.HubFile], revision: str | None = None, *, say) -> list[Path]:
        return [repos[repo] / f.name for f in files]

    monkeypatch.setattr(hub, "list_files", list_files)
    monkeypatch.setattr(hub, "download_files", download_files)


@pytest.fixture
def program(capfd: pytest.CaptureFixture[str]):
    """program("mlx_ltx2.generate", args): what the console script of that name does, in this process."""
    import importlib

    from mlx_ltx2.cli import run

    def call(name: str, args: list[str]) -> tuple[int, str, str]:
        command = importlib.import_module(f"mlx_ltx2.cli.{name.removeprefix('mlx_ltx2.')}").command
        code = run(command, args, name)
        out, err = capfd.readouterr()
        assert "Traceback" not in out + err
        return code, out, err

    return call


@dataclass(frozen=True)
class Played:
    frames: int
    size: tuple[int, int]
    rate: str
    seconds: float
    sound_seconds: float


def play(path: Path) -> Played:
    """Decode everything that a file holds."""
    frames, size, rate, sound = 0, (0, 0), "0", 0.0
    with av.open(str(path)) as container:
        if container.streams.video:
            stream = container.streams.video[0]
            rate = str(Fraction(stream.average_rate)) if path.suffix != ".png" else "0"
            for frame in container.decode(stream):
                frames, size = frames + 1, (frame.width, frame.height)
    with av.open(str(path)) as container:
        if container.streams.audio:
            track = container.streams.audio[0]
            assert sum(block.samples for block in container.decode(track)) > 0
            sound = float(track.duration * track.time_base)
    return Played(frames, size, rate, frames / float(Fraction(rate)) if rate != "0" else 0.0, sound)


@pytest.mark.parametrize("row", ROWS, ids=lambda row: re.sub(r"[^\w.-]+", "_", f"{row.source}:{row.command}")[:120])
def test_row(row: Row, desk: Path, program) -> None:
    name, *args = shlex.split(row.command)
    if name == U:
        args += ["--model", "prince-canuma/LTX-2-distilled"]
    code, _, err = program(name, [*args, *shlex.split(row.more)])
    assert code == 0, err
    clip = play(desk / row.output)
    assert clip.frames == row.frames
    if row.frames:
        assert (clip.size, clip.rate) == (row.size if "-H 128" not in row.more else (64, 64), row.rate)
    if row.sound:
        assert clip.sound_seconds > 0
        lasts = play(desk / "video.mp4").sound_seconds if name == U else clip.seconds or clip.sound_seconds
        assert abs(clip.sound_seconds - lasts) <= 1 / 24
    for path in row.also:
        assert (desk / path).is_file(), path


def test_every_option_of_the_peers_tables_is_known() -> None:
    """mlx-video's README and HEAD, cvl, and the official argument parser for LTX-2 and 2.3."""
    from mlx_ltx2.cli.generate import command

    known = {name for p in command.params for name in (*p.opts, *p.secondary_opts)}
    wanted = set(
        """--prompt -p --pipeline --height -H --width -W --num-frames -n --seed -s --fps --output-path -o --model-repo
        --text-encoder-repo --save-frames --enhance-prompt --image -i --image-strength --audio -a --audio-file
        --audio-start-time --tiling --stream --steps --cfg-scale --cfg-rescale --negative-prompt --apg --stg-scale
        --stg-blocks --modality-scale --lora-path --lora-strength --lora-strength-stage-1 --lora-strength-stage-2
        --audio-cfg-scale --verbose --max-tokens --temperature --image-frame-idx --output-audio --apg-eta
        --apg-norm-threshold --spatial-upscaler
        --output --audio-strength --frame-rate --num-inference-steps --cfg-guidance-scale --lora --list-lora-files --no-fp8
        --checkpoint-path --distilled-checkpoint-path --gemma-root --text-encoder-path --spatial-upsampler-path
        --distilled-lora --video-cfg-guidance-scale --video-stg-guidance-scale --video-rescale-scale
        --video-stg-blocks --a2v-guidance-scale --video-skip-step --audio-cfg-guidance-scale
        --audio-stg-guidance-scale --audio-rescale-scale --audio-stg-blocks --v2a-guidance-scale --audio-skip-step
        --enhance-static-cache --quantization --max-batch-size --compile --distilled-lora-strength-stage-1
        --distilled-lora-strength-stage-2 --audio-path --audio-max-duration --video-conditioning
        --conditioning-attention-mask --skip-stage-2 --video-path --start-time --end-time""".split()
    )
    assert wanted <= known, sorted(wanted - known)


# conversion


@pytest.mark.parametrize("variant", ["distilled", "dev"])
def test_conversion_commands(variant, desk, program) -> None:
    command = f"--source Lightricks/LTX-2 --output ./LTX-2-{variant}-made --variant {variant}"
    code, _, err = program("mlx_ltx2.convert", shlex.split(command))
    assert code == 0, err
    for part in ("transformer", "vae/decoder", "vae/encoder", "audio_vae/decoder", "audio_vae/encoder", "vocoder",
                 "text_projections"):  # fmt: skip
        assert (desk / f"LTX-2-{variant}-made" / part / "config.json").is_file()


def test_convert_is_a_function_and_a_module() -> None:
    import subprocess
    import sys

    code = (
        "import mlx_ltx2.convert, mlx_ltx2.generate; from mlx_ltx2 import convert, generate; "
        "assert callable(convert) and callable(generate)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
    done = subprocess.run(
        [sys.executable, "-m", "mlx_ltx2.convert", "--help"], capture_output=True, text=True, check=True
    )
    assert "--source" in done.stdout


def test_listing_loras(desk, program) -> None:
    code, out, err = program("mlx_ltx2.generate", ["--list-lora-files", "kabachuha/ltx2-inflate-it"])
    assert code == 0, err
    assert "ltx2-inflate.safetensors" in out


# call parameters of the Python libraries


SIZE = {"height": 64, "width": 64, "num_frames": 9}


class Generator:
    """What torch.Generator shows of its seed."""

    def initial_seed(self) -> int:
        return 42


CALLS = {
    "diffusers, dev": (
        "dev",
        {
            "prompt": "A beautiful sunset over the ocean",
            "negative_prompt": "shaky",
            "frame_rate": 24.0,
            "num_inference_steps": 2,
            "sigmas": None,
            "guidance_scale": 4.0,
            "output_type": "latent",
            "return_dict": False,
        },
        {"cfg_scale": 4.0, "steps": 2, "pipeline": "one-stage"},
    ),
    "diffusers, distilled": (
        "distilled",
        {
            "prompt": "x",
            "num_inference_steps": 8,
            "guidance_scale": 1.0,
            "generator": Generator(),
            "output_type": "np",
            "num_videos_per_prompt": 1,
            "use_cross_timestep": True,
            "max_sequence_length": 1024,
        },
        {"seed": 42, "pipeline": "distilled"},
    ),
    "diffusers, guidance": (
        "dev",
        {
            "prompt": "x",
            "num_inference_steps": 2,
            "guidance_scale": 3.0,
            "stg_scale": 1.0,
            "modality_scale": 3.0,
            "guidance_rescale": 0.7,
            "audio_guidance_scale": 7.0,
            "audio_stg_scale": 1.0,
            "audio_modality_scale": 3.0,
            "audio_guidance_rescale": 0.7,
            "spatio_temporal_guidance_blocks": [1],
        },
        {"stg_blocks": (1,), "audio_cfg_rescale": 0.7},
    ),
    "diffusers, conditions": (
        "distilled",
        {"prompt": "x", "conditions": [{"frames": "photo.jpg", "index": 1, "strength": 0.9}], "image_crf": 0},
        {},
    ),
    "DiffSynth, one stage": (
        "dev",
        {
            "prompt": "x",
            "negative_prompt": "",
            "seed": 43,
            "tiled": True,
            "tile_size_in_pixels": 512,
            "tile_overlap_in_pixels": 128,
            "tile_size_in_frames": 128,
            "tile_overlap_in_frames": 24,
            "num_inference_steps": 2,
            "cfg_scale": 3.0,
            "rand_device": "cpu",
            "progress_bar_cmd": print,
        },
        {"seed": 43, "tile_size": 512, "tile_frame_overlap": 24},
    ),
    "DiffSynth, two stages": (
        "dev",
        {
            "prompt": "x",
            "use_two_stage_pipeline": True,
            "num_inference_steps": 2,
            "stage2_lora_strength": 0.8,
        },
        {"pipeline": "two-stage", "lora_strength_stage_2": 0.8},
    ),
    "DiffSynth, images": (
        "distilled",
        {
            "prompt": "x",
            "use_distilled_pipeline": True,
            "input_images": ["photo.jpg", "forest.jpg"],
            "input_images_indexes": [0, 8],
            "input_images_strength": 0.9,
            "tiled": False,
        },
        {"pipeline": "distilled", "tiling": {"mode": "none"}},
    ),
    "DiffSynth, A2V": (
        "distilled",
        {"prompt": "x", "retake_audio": "music.wav"},
        {"audio_file": "music.wav"},
    ),
    "DiffSynth, retake": (
        "distilled",
        {"prompt": "x", "retake_video": "source.mp4", "retake_video_regions": [(0.1, 0.3)]},
        {"pipeline": "retake"},
    ),
}


@pytest.mark.parametrize("name", CALLS)
def test_call(name: str, shelf, desk) -> None:
    from mlx_ltx2 import LTX2Pipeline

    model, options, expected = CALLS[name]
    size = {} if "retake_video" in options else SIZE
    pipe = LTX2Pipeline.from_pretrained(shelf[model])
    clip = pipe(**{**size, **options})
    if options.get("output_type") == "latent":
        assert clip.latents.shape[1:4] == (2, 2, 2) and clip.frames is None
    else:
        assert clip.frames.shape == (9, 64, 64, 3)
        assert clip.audio.samples.shape[0] > 0
    for key, value in expected.items():
        found = getattr(clip.plan, key, None) if hasattr(clip.plan, key) else clip.plan.request.get(key)
        assert found == value, key


def test_parameters_without_a_counterpart_are_refused(shelf) -> None:
    from mlx_ltx2 import LTX2Pipeline, RequestError

    pipe = LTX2Pipeline.from_pretrained(shelf["distilled"])
    for options in (
        {"num_videos_per_prompt": 4},
        {"prompt_embeds": np.zeros(3)},
        {"conditions": {"frames": "a.png", "index": -5}},
        {"input_images": ["a.png", "b.png"]},
        {"retake_video_regions": [(0, 1), (2, 3)]},
    ):
        with pytest.raises(RequestError):
            pipe.plan("x", **SIZE, **options)
