"""What a plan announces is what runs: forward passes counted at the transformer itself, pipeline by pipeline."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from PIL import Image

from mlx_ltx2.generate import LTX2Pipeline, describe
from mlx_ltx2.memory import PeakReport
from mlx_ltx2.models.transformer import Transformer
from mlx_ltx2.pipelines.run import Run, Session
from mlx_ltx2.progress import SilentProgress
from mlx_ltx2.stages.encode_text import encode_text
from tests.fixtures.media_files import counting_clip, sine, write_plain_video, write_sound

SIZE = {"height": 64, "width": 64, "num_frames": 9}
OFF = {"cfg_scale": 1.0, "audio_cfg_scale": 1.0, "stg_scale": 0.0, "audio_stg_scale": 0.0, "modality_scale": 1.0,
       "audio_modality_scale": 1.0}  # fmt: skip
FRAME_0, FRAME_4 = ("photo.png", 0), ("photo.png", 4, 0.5)

ROWS: dict[str, tuple[str, dict[str, Any], int]] = {
    "distilled": ("distilled", {}, 8 + 3),
    "distilled, images": ("distilled", {"images": [FRAME_0, FRAME_4]}, 8 + 3),
    "distilled, no audio": ("distilled", {"audio": False}, 8 + 3),
    "distilled, guidance by force": ("distilled", {"cfg_scale": 2.0, "force_guidance": True}, 2 * 8 + 3),
    "distilled, retake": ("distilled", {"video": "clip.mp4", "start_time": 0.1}, 8),
    "distilled, made over": ("distilled", {"video": "clip.mp4", "denoising_strength": 0.5}, 4 + 3),
    "ic-lora, one stage": ("distilled", {"references": ["clip.mp4"], "skip_stage_2": True}, 8),
    "dev, nothing": ("dev", {"steps": 3, **OFF}, 3),
    "dev, CFG": ("dev", {"steps": 3, **OFF, "cfg_scale": 3.0}, 2 * 3),
    "dev, CFG of the sound, image": ("dev", {"steps": 2, **OFF, "audio_cfg_scale": 7.0, "image": FRAME_0}, 2 * 2),
    "dev, STG": ("dev", {"steps": 2, **OFF, "stg_scale": 1.0}, 2 * 2),
    "dev, STG and modality": ("dev", {"steps": 2, **OFF, "stg_scale": 1.0, "modality_scale": 3.0}, 3 * 2),
    "dev, everything": ("dev", {"steps": 2}, 4 * 2),
    "dev, everything at once": ("dev", {"steps": 2, "max_batch_size": 4}, 4 * 2),
    "dev, no audio": ("dev", {"steps": 2, "audio": False}, 3 * 2),  # a lone stream has none to be isolated from
    "dev, given sound": ("dev", {"steps": 2, "audio_file": "tone.wav"}, 4 * 2),
    "dev, both skip": ("dev", {"steps": 4, "skip_step": 1, "audio_skip_step": 1}, 4 * 2),
    "dev, one skips": ("dev", {"steps": 4, **OFF, "cfg_scale": 3.0, "skip_step": 1}, 2 * 2 + 2),
    "dev, first step alone is guided": ("dev", {"steps": 3, "skip_step": 9, "audio_skip_step": 9}, 4),
    "dev, res2s": ("dev", {"steps": 2, **OFF, "cfg_scale": 3.0, "sampler": "res2s"}, 2 * 5),
    "two-stage": ("dev", {"pipeline": "two-stage", "steps": 2}, 4 * 2 + 3),
    "HQ": ("dev", {"pipeline": "two-stage-hq", "steps": 2}, 3 * 5 + 7),
    "HQ, image": ("dev", {"pipeline": "two-stage-hq", "steps": 2, "image": FRAME_0}, 3 * 5 + 7),
    "keyframes": ("dev", {"pipeline": "keyframes", "steps": 2, "images": [FRAME_0, ("photo.png", -1)]}, 4 * 2 + 3),
    "text-to-audio": ("dev", {"pipeline": "text-to-audio", "steps": 2}, 3 * 2),
}  # fmt: skip


@pytest.fixture(scope="module")
def pipes(tiny_model) -> dict[str, tuple[LTX2Pipeline, Any]]:
    """Per variant a pipeline and the contexts of two prompts."""
    made = {}
    for variant in ("distilled", "dev"):
        pipe = LTX2Pipeline.from_pretrained(tiny_model("2.3", variant))
        networks = pipe.networks
        contexts = encode_text(
            ["a red circle", "blur"], networks.load_text_encoder, lambda n=networks: n.load("text_projections"),
            SilentProgress(), PeakReport(),
        )  # fmt: skip
        made[variant] = pipe, contexts
    return made


@pytest.fixture(scope="module")
def media(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("media")
    Image.fromarray(np.full((64, 64, 3), 90, np.uint8)).save(folder / "photo.png")
    write_plain_video(folder / "clip.mp4", counting_clip(9, 64, 64), 24)
    write_sound(folder / "tone.wav", sine(0.5, 16000), 16000, "s16")
    return folder


@pytest.mark.parametrize("row", ROWS)
def test_forwards_that_run_are_those_announced(row, pipes, media, monkeypatch) -> None:
    variant, options, expected = ROWS[row]
    monkeypatch.chdir(media)
    pipe, contexts = pipes[variant]
    size = {} if "video" in options else SIZE
    plan = pipe.plan("a red circle", negative_prompt="blur", **size, **options)
    assert f"forwards  {expected} in all" in describe(plan)
    ran = []

    def counted(self, video, audio, **more):
        """The network's place in the loop; its arithmetic is tested elsewhere and would cost most of the time here."""
        ran.append((video or audio).latent.shape[0])  # a batch of three passes is three
        return tuple(None if stream is None else mx.zeros_like(stream.latent) for stream in (video, audio))

    monkeypatch.setattr(Transformer, "__call__", counted)
    Run(plan, pipe.networks, Session(contexts=contexts)).latents()
    assert sum(ran) == expected == plan.forwards
    if options.get("max_batch_size") == 4:
        assert ran == [4, 4]
