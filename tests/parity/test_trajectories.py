"""Whole runs against the official pipeline classes: same checkpoint file, same prompt, same noise, float32.

The oracle is ltx-pipelines 1.0.0 as it comes from the package index, run by tests/parity/official.py. The runs here are
those where its rules are also those of 1.2.0; test_trajectories_conditioned.py holds the others.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from ltx_core.components.guiders import MultiModalGuiderParams
from PIL import Image

from mlx_ltx2.cli import cli, run
from mlx_ltx2.media.audio import read_audio
from mlx_ltx2.pipelines.run import Run
from tests.cases import as_numpy, relative_error
from tests.cases.trajectories import AUDIO_GUIDANCE, NEGATIVE, PROMPT, VIDEO_GUIDANCE, guidance_options
from tests.parity.official import ORACLE, run_official
from tests.parity.trajectories import BOUND, Model, model, run_ours, worst

DISTILLED = "distilled.DistilledPipeline"


def distilled_files(kind: Model) -> dict:
    files = kind.files
    return {
        "distilled_checkpoint_path": str(files.checkpoint),
        "gemma_root": str(files.gemma),
        "spatial_upsampler_path": str(files.upsampler),
        "loras": [],
    }


def size(height: int, width: int, frames: int, fps: float, seed: int = 10) -> tuple[dict, dict]:
    """The same request in both spellings."""
    common = {"height": height, "width": width, "num_frames": frames, "seed": seed}
    return {**common, "frame_rate": fps, "images": []}, {**common, "fps": fps}


CASES = [
    ("2.0", (64, 128, 9, 24.0)),
    ("2.3", (64, 128, 9, 24.0)),
    ("2.0", (192, 128, 17, 25.0)),
    ("2.3", (128, 192, 17, 25.0)),
    ("2.3", (64, 128, 1, 30.0)),
    ("2.3", (128, 64, 25, 29.97)),
]


@pytest.mark.parametrize(("generation", "shape"), CASES, ids=str)
def test_distilled(generation: str, shape: tuple, table) -> None:
    kind = model(generation)
    theirs, mine = size(*shape, seed=shape[2])
    official = run_official(DISTILLED, distilled_files(kind), {"prompt": PROMPT, **theirs})
    error = worst(run_ours(kind.pipeline(), pipeline="distilled", **mine), official)
    table("trajectory: distilled", generation, ORACLE, error, BOUND)


def test_distilled_to_the_end(table) -> None:
    """From the prompt to frames and sound; 1 of 255 may differ where a value sits on the edge of truncation."""
    kind, generation = model("2.3"), "2.3"
    theirs, mine = size(64, 64, 9, 25.0, seed=4)
    official = run_official(DISTILLED, distilled_files(kind), {"prompt": PROMPT, **theirs}, decode=True)
    clip = kind.pipeline()(PROMPT, pipeline="distilled", tiling="none", **mine)
    error = max(
        relative_error(np.array(clip.latents), official.video[-1]),
        relative_error(np.array(clip.audio_latents), official.audio[-1]),
    )
    table("trajectory: distilled", generation, ORACLE, error, BOUND)
    difference = np.abs(clip.frames.astype(int) - official.frames)
    assert difference.max() <= 1 and (difference > 0).mean() < 2e-3
    assert clip.audio.rate_hz == official.rate_hz
    table(
        "trajectory: waveform",
        generation,
        ORACLE,
        relative_error(clip.audio.samples, official.samples),
        BOUND,
    )


def test_commands(table, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`mlx-ltx2 convert` and `mlx-ltx2 generate` on the official file give the official latents, pictures, sound."""
    kind, generation = model("2.0"), "2.0"
    theirs, mine = size(64, 64, 9, 25.0, seed=5)
    official = run_official(DISTILLED, distilled_files(kind), {"prompt": PROMPT, **theirs}, decode=True)
    kept, latents_of = [], Run.latents
    monkeypatch.setattr(Run, "latents", lambda self: kept.append(latents_of(self)) or kept[-1])
    folder, clip, wav = (str(tmp_path / name) for name in ("model", "clip.mp4", "sound.wav"))
    source = str(kind.files.checkpoint)
    convert = ["convert", "--source", source, "--output", folder, "--dtype", "float32", "--progress", "none"]
    assert run(cli, convert) == 0
    options = [
        "--height",
        "64",
        "--width",
        "64",
        "--num-frames",
        "9",
        "--fps",
        "25",
        "--seed",
        str(mine["seed"]),
    ]
    outputs = [
        "--output",
        clip,
        "--output-audio",
        wav,
        "--save-frames",
        "--tiling",
        "none",
        "--progress",
        "none",
    ]
    assert run(cli, ["generate", "--model", folder, "--prompt", PROMPT, *options, *outputs]) == 0
    error = max(
        relative_error(as_numpy(kept[0].video), official.video[-1]),
        relative_error(as_numpy(kept[0].audio), official.audio[-1]),
    )
    table("trajectory: commands", generation, ORACLE, error, BOUND)
    frames = np.stack([np.asarray(Image.open(path)) for path in sorted((tmp_path / "clip_frames").iterdir())])
    difference = np.abs(frames.astype(int) - official.frames)
    assert difference.max() <= 1 and (difference > 0).mean() < 2e-3
    sound = read_audio(wav)
    assert sound.rate_hz == official.rate_hz
    length = min(len(sound.samples), len(official.samples))
    written = np.clip(official.samples[:length], -1, 1)
    assert np.abs(sound.samples[:length] - written).max() < 1e-4  # 16 bits a sample


@pytest.mark.parametrize("generation", ["2.0", "2.3"])
def test_text(generation: str, table) -> None:
    """Prompt -> tokenizer -> Gemma -> projections, with ltx-core's tokenizer, encoder and embeddings processor."""
    from mlx_ltx2.memory import PeakReport
    from mlx_ltx2.progress import SilentProgress
    from mlx_ltx2.stages.encode_text import encode_text

    kind = model(generation)
    theirs, _ = size(64, 128, 1, 24.0)
    networks = kind.pipeline().networks
    for prompt in (PROMPT, "  Zwölf Boxkämpfer, 日本 🎈\n(loud)  ", "a"):
        official = run_official(DISTILLED, distilled_files(kind), {"prompt": prompt, **theirs})
        (context,) = encode_text(
            [prompt],
            networks.load_text_encoder,
            lambda: networks.load("text_projections"),
            SilentProgress(),
            PeakReport(),
        )
        video, audio = official.contexts[0]
        error = max(relative_error(np.array(context.video), video), relative_error(np.array(context.audio), audio))
        table("trajectory: text", generation, ORACLE, error, BOUND)


@pytest.mark.parametrize("generation", ["2.0", "2.3"])
def test_video_only(generation: str, table, monkeypatch: pytest.MonkeyPatch) -> None:
    """--no-audio builds the transformer without audio; the official loops, which always carry both streams, are
    given the official video-only network and a stand-in for the sound."""
    from ltx_core.model.transformer import LTXVideoOnlyModelConfigurator, X0Model
    from ltx_pipelines.utils.model_ledger import ModelLedger

    kind = model(generation)

    def transformer(ledger: ModelLedger):
        from dataclasses import replace

        builder = replace(ledger.transformer_builder, model_class_configurator=LTXVideoOnlyModelConfigurator)
        network = X0Model(builder.build(device=torch.device("cpu"), dtype=torch.float32)).eval()

        def without_audio(video, audio, perturbations=None):
            return network(video=video, audio=None, perturbations=perturbations)[0], audio.latent

        return without_audio

    monkeypatch.setattr(ModelLedger, "transformer", transformer)
    theirs, mine = size(128, 192, 17, 25.0)
    official = run_official(DISTILLED, distilled_files(kind), {"prompt": PROMPT, **theirs})
    ours = run_ours(kind.pipeline(), pipeline="distilled", audio=False, **mine)
    assert not ours.audio
    table("trajectory: distilled, no audio", generation, ORACLE, worst(ours, official, audio=False), BOUND)


def guidance(video: dict | None = None, audio: dict | None = None) -> tuple[dict, dict]:
    """Guidance of both streams in both spellings: every kind on, but for the changes given."""
    settings = {**VIDEO_GUIDANCE, **(video or {})}, {**AUDIO_GUIDANCE, **(audio or {})}
    params = [
        MultiModalGuiderParams(g["cfg"], g["stg"], g["blocks"], g["rescale"], g["modality"], g["skip"])
        for g in settings
    ]
    theirs = {"video_guider_params": params[0], "audio_guider_params": params[1]}
    return theirs, guidance_options(*settings)


GUIDED = [
    ("2.0", (64, 96, 9, 24.0), {}),
    ("2.3", (64, 96, 9, 24.0), {}),
    (
        "2.3",
        (96, 64, 17, 25.0),
        {"video": {"cfg": 1.0, "modality": 1.0}, "audio": {"stg": 0.0, "blocks": []}},
    ),
    ("2.3", (32, 64, 9, 50.0), {"video": {"skip": 1}, "audio": {"skip": 1, "rescale": 0.0}}),
]


@pytest.mark.parametrize(("generation", "shape", "changes"), GUIDED, ids=str)
def test_one_stage(generation: str, shape: tuple, changes: dict, table) -> None:
    """CFG, STG, modality guidance and rescaling, apart for video and audio."""
    kind = model(generation, "dev")
    theirs, mine = size(*shape)
    guided, ours_guided = guidance(**changes)
    files = {"checkpoint_path": str(kind.files.checkpoint), "gemma_root": str(kind.files.gemma), "loras": []}
    call = {"prompt": PROMPT, "negative_prompt": NEGATIVE, "num_inference_steps": 5, **theirs, **guided}
    official = run_official("ti2vid_one_stage.TI2VidOneStagePipeline", files, call, stages=1)
    ours = run_ours(kind.pipeline(), pipeline="one-stage", negative_prompt=NEGATIVE, steps=5, **mine, **ours_guided)
    table("trajectory: one-stage", generation, ORACLE, worst(ours, official), BOUND)
