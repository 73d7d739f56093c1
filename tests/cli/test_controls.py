"""For each control, that it acts: on random weights a result can be compared with the one without it, or with its input."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from PIL import Image

from mlx_ltx2.errors import MediaError
from mlx_ltx2.generate import LTX2Pipeline
from mlx_ltx2.media.audio import read_audio
from mlx_ltx2.media.images import prepare_image
from mlx_ltx2.memory import PeakReport
from mlx_ltx2.pipelines.run import Run, Session
from mlx_ltx2.progress import SilentProgress
from mlx_ltx2.stages import encode_media
from mlx_ltx2.stages.encode_text import encode_text
from mlx_ltx2.states import DenoisedPair
from tests.fixtures.media_files import counting_clip, sine, write_plain_video, write_sound

SIZE = {"height": 64, "width": 64, "num_frames": 9}
FEW = {"sigmas": (1.0, 0.5, 0.0), "stage_2_sigmas": (0.5, 0.0)}
PLAIN = {"cfg_scale": 1.0, "audio_cfg_scale": 1.0, "stg_scale": 0.0, "audio_stg_scale": 0.0, "modality_scale": 1.0,
         "audio_modality_scale": 1.0, "cfg_rescale": 0.0, "audio_cfg_rescale": 0.0}  # fmt: skip
CFG = {**PLAIN, "cfg_scale": 3.0, "audio_cfg_scale": 3.0}
STG = {**PLAIN, "stg_scale": 1.0}
REFERENCE = {"references": ["clip.mp4"], "skip_stage_2": True}
SOUND = {"audio_file": "tone.wav"}

PAIRS: dict[str, tuple[str, dict[str, Any], dict[str, Any]]] = {
    "seed": ("distilled", {}, {"seed": 1}),
    "image": ("distilled", {}, {"images": [("a.png", 0)]}),
    "last image": ("distilled", {}, {"images": [("a.png", -1)]}),
    "image strength": ("distilled", {"image": ("a.png", 0, 1.0)}, {"image": ("a.png", 0, 0.5)}),
    "image crf": ("distilled", {"image": ("a.png", 0, 1.0, 0)}, {"image": ("a.png", 0, 1.0, 45)}),
    "given sound": ("distilled", {}, SOUND),
    "start of the sound": ("distilled", SOUND, {**SOUND, "audio_start_time": 0.2}),
    "strength of the sound": ("distilled", SOUND, {**SOUND, "audio_strength": 0.5}),
    "reference": ("distilled", {"skip_stage_2": True, "references": ["other.mp4"]}, REFERENCE),
    "reference strength": ("distilled", REFERENCE, {**REFERENCE, "references": [("clip.mp4", 0.3)]}),
    "attention strength": ("distilled", REFERENCE, {**REFERENCE, "attention_strength": 0.3}),
    "attention mask": ("distilled", REFERENCE, {**REFERENCE, "attention_mask": "other.mp4"}),
    "denoising strength": (
        "distilled", {"video": "clip.mp4", "denoising_strength": 0.9}, {"video": "clip.mp4", "denoising_strength": 0.4},
    ),
    "LoRA": ("distilled", {}, {"loras": [("style.safetensors", 1.0)]}),
    "LoRA strength": ("distilled", {"loras": [("style.safetensors", 1.0)]}, {"loras": [("style.safetensors", -0.5)]}),
    "sampler": ("distilled", {}, {"sampler": "euler-ancestral"}),
    "schedule": ("distilled", {}, {"sigmas": (1.0, 0.8, 0.0)}),
    "second schedule": ("distilled", {}, {"stage_2_sigmas": (0.8, 0.0)}),
    "CFG": ("dev", PLAIN, CFG),
    "CFG of the sound": ("dev", PLAIN, {**PLAIN, "audio_cfg_scale": 3.0}),
    "rescale": ("dev", CFG, {**CFG, "cfg_rescale": 0.7}),
    "rescale of the sound": ("dev", CFG, {**CFG, "audio_cfg_rescale": 0.7}),
    "APG": ("dev", CFG, {**CFG, "apg": True, "apg_eta": 0.0}),
    "skip step": ("dev", CFG, {**CFG, "skip_step": 1}),
    "STG": ("dev", PLAIN, STG),
    "STG of the sound": ("dev", PLAIN, {**PLAIN, "audio_stg_scale": 1.0}),
    "STG blocks": ("dev", {**STG, "stg_blocks": (0,)}, {**STG, "stg_blocks": (1,)}),
    "modality": ("dev", PLAIN, {**PLAIN, "modality_scale": 3.0}),
    "modality of the sound": ("dev", PLAIN, {**PLAIN, "audio_modality_scale": 3.0}),
    "distilled LoRA, stage 1": (
        "dev", {**PLAIN, "pipeline": "two-stage"}, {**PLAIN, "pipeline": "two-stage", "lora_strength_stage_1": 1.0},
    ),
}  # fmt: skip
SOUND_ALONE = {"CFG of the sound", "rescale of the sound", "STG of the sound", "modality of the sound"}


@pytest.fixture(scope="module")
def media(tiny_sources, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder, rng = tmp_path_factory.mktemp("media"), np.random.default_rng(0)
    for name in ("a.png", "b.png"):
        Image.fromarray(rng.integers(0, 255, (64, 64, 3), np.uint8)).save(folder / name)
    write_plain_video(folder / "clip.mp4", counting_clip(9, 64, 64), 24)
    write_plain_video(folder / "other.mp4", rng.integers(0, 255, (9, 64, 64, 3), np.uint8), 24)
    ramp = np.linspace(0.1, 1, 12000, dtype=np.float32)[:, None]
    write_sound(folder / "tone.wav", ramp * sine(0.75, 16000), 16000, "f32")
    lora = next(tiny_sources().glob("*distilled-lora*"))
    (folder / "style.safetensors").write_bytes(lora.read_bytes())
    return folder


@pytest.fixture(scope="module")
def result(tiny_model, media):
    """result(variant, options): latents of a short run with fixed texts."""
    pipes: dict[str, tuple[LTX2Pipeline, Any]] = {}
    known: dict[str, DenoisedPair] = {}

    def run(variant: str, options: dict[str, Any]) -> DenoisedPair:
        if variant not in pipes:
            pipe = LTX2Pipeline.from_pretrained(tiny_model("2.3", variant))
            pipes[variant] = pipe, texts(pipe)
        if str((variant, options)) not in known:
            pipe, contexts = pipes[variant]
            given = {**({} if "video" in options else SIZE), **FEW, **options}
            plan = pipe.plan("a red circle", negative_prompt="blur", **given)
            known[str((variant, options))] = Run(plan, pipe.networks, Session(contexts=contexts)).latents()
        return known[str((variant, options))]

    return run


def texts(pipe: LTX2Pipeline) -> Any:
    networks = pipe.networks
    return encode_text(
        ["a red circle", "blur"], networks.load_text_encoder, lambda: networks.load("text_projections"),
        SilentProgress(), PeakReport(),
    )  # fmt: skip


@pytest.mark.parametrize("name", PAIRS)
def test_it_acts(name, result, media, monkeypatch) -> None:
    monkeypatch.chdir(media)
    variant, without, with_it = PAIRS[name]
    one, other = result(variant, without), result(variant, with_it)
    pick = "audio" if name in SOUND_ALONE else "video"
    a, b = (np.array(getattr(pair, pick).astype(mx.float32)) for pair in (one, other))
    assert a.shape == b.shape
    assert np.abs(a - b).max() > 1e-3 * np.abs(a).max()


def test_a_reference_that_nothing_attends_to_is_as_none(result, media, monkeypatch) -> None:
    monkeypatch.chdir(media)
    options = {"skip_stage_2": True, "attention_strength": 0.0, "audio": False}  # sound would hear of it
    one, other = (result("distilled", {**options, "references": [name]}) for name in ("clip.mp4", "other.mp4"))
    assert mx.allclose(one.video.astype(mx.float32), other.video.astype(mx.float32), atol=1e-2)


def test_conditioned_frames_come_back(tiny_model, media, monkeypatch) -> None:
    """The first image replaces the first latent and comes out as it went in; the last one is held beside the result."""
    from mlx_ltx2.pipelines import run as runner

    monkeypatch.chdir(media)
    pipe = LTX2Pipeline.from_pretrained(tiny_model())
    encoder = pipe.networks.load("video_encoder")
    want = {n: encoder(mx.array(prepare_image(n, 64, 64, 0)[None])) for n in ("a.png", "b.png")}
    ends: list[Any] = []
    denoise = runner.denoise
    monkeypatch.setattr(runner, "denoise", lambda *a, **k: ends.append(denoise(*a, **k)) or ends[-1])
    images = [("a.png", 0, 1.0, 0), ("b.png", -1, 1.0, 0)]
    plan = pipe.plan("x", images=images, **SIZE, **FEW)
    video = Run(plan, pipe.networks, Session(contexts=texts(pipe))).latents().video
    assert mx.array_equal(video[:, :1], want["a.png"].astype(video.dtype))
    state = ends[-1].video  # of the last stage, keyframe included
    held = state.latent[:, state.target_tokens :]
    tokens = want["b.png"].reshape(1, -1, want["b.png"].shape[-1])
    assert mx.array_equal(held, tokens.astype(held.dtype))
    assert not state.denoise_mask[:, state.target_tokens :].any()
    times = state.positions[0, 0, state.target_tokens :]
    assert np.allclose(times, [8 / 24, 9 / 24])  # the last frame's own time


def test_a_given_recording_reaches_clip_and_muxer_unchanged(tiny_model, media, tmp_path, monkeypatch) -> None:
    from mlx_ltx2.media import writer

    monkeypatch.chdir(media)
    muxed: list[Any] = []
    encode = writer._encode_audio
    monkeypatch.setattr(writer, "_encode_audio", lambda c, audio, *a: muxed.append(audio) or encode(c, audio, *a))
    pipe = LTX2Pipeline.from_pretrained(tiny_model())
    clip = pipe("a red circle", audio_file="tone.wav", audio_start_time=0.1, output=tmp_path / "a.mp4", **SIZE, **FEW)
    own = read_audio("tone.wav").samples[1600 : 1600 + 6000]  # 9 frames at 24 fps, 16 kHz
    assert clip.audio.rate_hz == 16000 and np.array_equal(clip.audio.samples, own)
    assert len(muxed) == 1 and muxed[0].rate_hz == 16000 and np.array_equal(muxed[0].samples, own)


def test_a_reference_at_another_rate_is_read_by_time_and_that_is_said(tiny_model, tmp_path) -> None:
    pipe = LTX2Pipeline.from_pretrained(tiny_model())
    fast = write_plain_video(tmp_path / "fast.mp4", counting_clip(24, 64, 64), 60)
    given = {**SIZE, "references": [str(fast)], "attention_mask": str(fast), "fps": 24}
    plan = pipe.plan("a red circle", **given)
    assert plan.notes.count(f"{fast}: its 60 fps were read as 24 fps, by time") == 1
    seen = []

    def encoded(pixels: np.ndarray) -> mx.array:
        seen.extend(round((float(frame.mean()) + 1) * 127.5 - 10) / 8 for frame in pixels)
        return mx.zeros((1, 2, 2, 2, 8))

    stage = plan.stages[0]
    encode_media._reference(stage.references[0], stage.shape, pipe.networks.traits, encoded)
    assert np.rint(seen).tolist() == [0, 2, 5, 7, 10, 12, 15, 17, 20]
    short = write_plain_video(tmp_path / "short.mp4", counting_clip(12, 64, 64), 60)
    for references, mask in (([str(short)], None), ([str(fast)], str(short))):
        with pytest.raises(MediaError, match=r"short\.mp4 has 5 frames at 24 fps \(0\.208 s\) and the clip 9"):
            pipe.plan("a red circle", **{**given, "references": references, "attention_mask": mask})
