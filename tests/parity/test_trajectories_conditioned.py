"""Whole runs with images, given sound, reference videos and other samplers, against ltx-pipelines 1.0.0.

Release 1.2.0 decides what this package does. Where 1.0.0 differs, one side is told the other's rule, by name:
the audio-video modulation of conditioned tokens (`cross_modulation="1.0.0"` here), the time span of appended keyframes
(eight frames here), the noise level of frozen sound (zero there). With the rules of 1.2.0 alone, runs are compared with
recorded ones in test_trajectories_120.py.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from ltx_core.loader import LTXV_LORA_COMFY_RENAMING_MAP, LoraPathStrengthAndSDOps
from ltx_pipelines import retake
from ltx_pipelines.utils.args import ImageConditioningInput
from ltx_pipelines.utils.model_ledger import ModelLedger

from mlx_ltx2.diffusion.conditioning import Keyframe
from mlx_ltx2.stages import encode_media
from tests.cases import relative_error
from tests.cases.trajectories import NEGATIVE, NO_STG, PROMPT, picture, reference_clip, sound
from tests.parity.official import ORACLE, run_official
from tests.parity.test_trajectories import DISTILLED, distilled_files, guidance, size
from tests.parity.trajectories import BOUND, model, run_ours, worst

OLD = "1.0.0"


def images(folder: Path, *frames_and_strengths: tuple[int, float]) -> tuple[list, list]:
    """Pictures at frames, in both spellings; without the detour through H.264, which is not exact."""
    uses = [(picture(folder / f"{f}.png", f), f, s, 0) for f, s in frames_and_strengths]
    return [ImageConditioningInput(*use) for use in uses], uses


@pytest.fixture
def eight_frames(monkeypatch: pytest.MonkeyPatch) -> None:
    """Keyframes span what release 1.0.0 let them span."""
    monkeypatch.setattr(encode_media, "Keyframe", partial(Keyframe, pixel_frames=8))


IMAGES = [
    ("2.0", (64, 128, 9, 24.0), [(0, 1.0)]),
    ("2.3", (128, 64, 9, 24.0), [(0, 1.0)]),
    ("2.3", (64, 128, 17, 25.0), [(8, 1.0)]),
    ("2.0", (64, 128, 17, 25.0), [(0, 1.0), (16, 1.0), (5, 1.0)]),
]


@pytest.mark.parametrize(("generation", "shape", "frames"), IMAGES, ids=str)
def test_images(generation: str, shape: tuple, frames: list, table, tmp_path: Path, eight_frames) -> None:
    """Frame 0 replaces latents, any other frame is appended; encoded anew for each stage."""
    kind = model(generation)
    theirs, mine = size(*shape)
    theirs["images"], uses = images(tmp_path, *frames)
    official = run_official(DISTILLED, distilled_files(kind), {"prompt": PROMPT, **theirs})
    ours = run_ours(kind.pipeline(cross_modulation=OLD), pipeline="distilled", images=uses, **mine)
    table("trajectory: distilled, images", generation, ORACLE, worst(ours, official), BOUND)


def two_stage_files(kind) -> dict:
    files = distilled_files(kind)
    lora = LoraPathStrengthAndSDOps(str(kind.files.lora), 1.0, LTXV_LORA_COMFY_RENAMING_MAP)
    return {"checkpoint_path": files.pop("distilled_checkpoint_path"), "distilled_lora": [lora], **files}


@pytest.mark.parametrize("generation", ["2.0", "2.3"])
def test_two_stage(generation: str, table, tmp_path: Path) -> None:
    """Guided at half size with an image, then three steps at full size with the distilled LoRA."""
    kind = model(generation, "dev")
    theirs, mine = size(64, 128, 9, 25.0)
    theirs["images"], uses = images(tmp_path, (0, 1.0))
    guided, ours_guided = guidance()
    call = {"prompt": PROMPT, "negative_prompt": NEGATIVE, "num_inference_steps": 4, **theirs, **guided}
    official = run_official("ti2vid_two_stages.TI2VidTwoStagesPipeline", two_stage_files(kind), call)
    ours = run_ours(
        kind.pipeline(cross_modulation=OLD),
        pipeline="two-stage",
        negative_prompt=NEGATIVE,
        steps=4,
        images=uses,
        **mine,
        **ours_guided,
    )
    table("trajectory: two-stage", generation, ORACLE, worst(ours, official), BOUND)


def test_keyframes(table, tmp_path: Path, eight_frames) -> None:
    """Every image is appended, the first frame's too."""
    kind = model("2.3", "dev")
    theirs, mine = size(64, 128, 17, 24.0)
    theirs["images"], uses = images(tmp_path, (0, 1.0), (16, 1.0))
    guided, ours_guided = guidance()
    call = {"prompt": PROMPT, "negative_prompt": NEGATIVE, "num_inference_steps": 3, **theirs, **guided}
    official = run_official("keyframe_interpolation.KeyframeInterpolationPipeline", two_stage_files(kind), call)
    ours = run_ours(
        kind.pipeline(cross_modulation=OLD),
        pipeline="keyframes",
        negative_prompt=NEGATIVE,
        steps=3,
        images=uses,
        **mine,
        **ours_guided,
    )
    table("trajectory: keyframes", "2.3", ORACLE, worst(ours, official), BOUND)


@pytest.mark.parametrize("generation", ["2.0", "2.3"])
def test_hq(generation: str, table, tmp_path: Path) -> None:
    """res_2s and the LoRA in both stages, the sampler's noise given, with a schedule shifted by the token count."""
    kind = model(generation, "dev")
    theirs, mine = size(64, 128, 9, 24.0)
    theirs["images"], uses = images(tmp_path, (0, 1.0))
    guided, ours_guided = guidance(video=NO_STG, audio=NO_STG)
    call = {"prompt": PROMPT, "negative_prompt": NEGATIVE, "num_inference_steps": 4, **theirs, **guided}
    strengths = {"distilled_lora_strength_stage_1": 0.25, "distilled_lora_strength_stage_2": 0.5}
    files = {**two_stage_files(kind), **strengths}
    official = run_official("ti2vid_two_stages_hq.TI2VidTwoStagesHQPipeline", files, call)
    ours = run_ours(
        kind.pipeline(cross_modulation=OLD),
        pipeline="two-stage-hq",
        negative_prompt=NEGATIVE,
        steps=4,
        images=uses,
        **mine,
        **ours_guided,
    )
    table("trajectory: two-stage-hq", generation, ORACLE, worst(ours, official), BOUND)


def _silent_sigma(build: Callable) -> Callable:
    """Frozen sound at noise level 0, the rule of release 1.2.0."""

    def transformer(ledger: ModelLedger):
        network = build(ledger)

        def run(video, audio, perturbations=None):
            return network(video=video, audio=replace(audio, sigma=0 * audio.sigma), perturbations=perturbations)

        return run

    return transformer


@pytest.mark.parametrize("generation", ["2.0", "2.3"])
def test_given_sound(generation: str, table, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Sound from a file, encoded by the audio encoder and frozen in both stages, with an image."""
    kind = model(generation, "dev")
    monkeypatch.setattr(ModelLedger, "transformer", _silent_sigma(ModelLedger.transformer))
    theirs, mine = size(64, 128, 9, 24.0)
    theirs["images"], uses = images(tmp_path, (0, 1.0))
    wav = sound(tmp_path / "sound.wav")
    guided, ours_guided = guidance()
    guided.pop("audio_guider_params")
    call = {"prompt": PROMPT, "negative_prompt": NEGATIVE, "num_inference_steps": 3, **theirs, **guided}
    call["audio_path"] = wav
    official = run_official("a2vid_two_stage.A2VidPipelineTwoStage", two_stage_files(kind), call)
    ours = run_ours(
        kind.pipeline(cross_modulation=OLD),
        pipeline="two-stage",
        negative_prompt=NEGATIVE,
        steps=3,
        images=uses,
        audio_file=wav,
        **mine,
        **ours_guided,
    )
    table("trajectory: given sound", generation, ORACLE, worst(ours, official, audio=False), BOUND)


REFERENCES = [("2.0", 1, 1.0, 1.0, False), ("2.3", 1, 1.0, 0.6, True), ("2.3", 2, 1.0, 0.4, False)]


@pytest.mark.parametrize(("generation", "downscale", "strength", "attention", "image"), REFERENCES)
def test_reference_video(
    generation: str,
    downscale: int,
    strength: float,
    attention: float,
    image: bool,
    table,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """IC-LoRA conditioning: reference tokens with scaled positions and weighted attention, in the first stage alone."""
    from ltx_pipelines import ic_lora

    kind = model(generation)
    theirs, mine = size(64 * downscale, 128, 9, 24.0)
    theirs["images"], uses = images(tmp_path, (0, 1.0)) if image else ([], [])
    clip = reference_clip(tmp_path / "reference.mkv", 9)
    loader = ic_lora.ICLoraPipeline.__init__

    def built(self, **options) -> None:
        loader(self, **options)
        self.reference_downscale_factor = downscale

    monkeypatch.setattr(ic_lora.ICLoraPipeline, "__init__", built)
    call = {"prompt": PROMPT, "video_conditioning": [(clip, strength)], **theirs}
    call["conditioning_attention_strength"] = attention
    official = run_official("ic_lora.ICLoraPipeline", distilled_files(kind), call)
    ours = run_ours(
        kind.pipeline(cross_modulation=OLD),
        downscale=downscale,
        pipeline="ic-lora",
        reference=(clip, strength),
        attention_strength=attention,
        images=uses,
        **mine,
    )
    table("trajectory: ic-lora", generation, ORACLE, worst(ours, official), BOUND)


@pytest.mark.parametrize("generation", ["2.0", "2.3"])
def test_retake(generation: str, table, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The middle of a clip and of its sound made anew, the rest held."""
    kind = model(generation)
    clip = reference_clip(tmp_path / "clip.mov", 17, 32, 64, sound_seconds=0.9)
    kept: list = []

    def states(steps):
        def loop(*args, **kwargs):
            kept.append(steps(*args, **kwargs))
            return kept[-1]

        return loop

    monkeypatch.setattr(retake, "euler_denoising_loop", states(retake.euler_denoising_loop))
    files = {"checkpoint_path": str(kind.files.checkpoint), "gemma_root": str(kind.files.gemma), "loras": []}
    call = {
        "video_path": clip,
        "prompt": PROMPT,
        "start_time": 0.4,
        "end_time": 0.75,
        "seed": 3,
        "distilled": True,
    }
    run_official("retake.RetakePipeline", files, call, stages=1)
    video, audio = (state.latent.numpy() for state in kept[0])
    ours = run_ours(
        kind.pipeline(cross_modulation=OLD),
        pipeline="retake",
        video=clip,
        start_time=0.4,
        end_time=0.75,
        seed=3,
    )
    got_audio = ours.audio[0].transpose(0, 1, 3, 2)
    error = max(
        relative_error(ours.video[0].reshape(video.shape), video),
        relative_error(got_audio.reshape(audio.shape), audio),
    )
    table("trajectory: retake", generation, ORACLE, error, BOUND)


def test_noise_can_be_given(table) -> None:
    """`latents` and `audio_latents` in place of the seed's noise give the seed's run."""
    from mlx_ltx2.diffusion.noise import NoiseSource

    kind = model("2.3")
    theirs, mine = size(64, 128, 9, 24.0)
    official = run_official(DISTILLED, distilled_files(kind), {"prompt": PROMPT, **theirs})
    source = NoiseSource(mine["seed"])
    video = source.normal("video", (1, 2 * 1 * 2, 128)).reshape(1, 2, 1, 2, 128)
    tokens = official.audio[0].shape[1]
    audio = source.normal("audio", (1, tokens, 128)).reshape(1, tokens, 8, 16).transpose(0, 1, 3, 2)
    clip = kind.pipeline()(
        PROMPT, pipeline="distilled", output_type="latent", latents=video, audio_latents=audio, **mine
    )
    error = relative_error(np.array(clip.latents), official.video[-1])
    table("trajectory: distilled", "2.3", ORACLE, error, BOUND)
