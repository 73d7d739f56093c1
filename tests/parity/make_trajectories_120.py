"""Writes tests/recorded/trajectories_120.safetensors: last latents of whole runs of the official release 1.2.0.

1.2.0 is on no package index, so it is no test dependency; these latents pin what it does where 1.0.0 does otherwise:
strengths between 0 and 1, the time span of keyframes, the noise level of given sound, the audio-video modulation of
conditioned tokens. Run once, from the repository root, with torch, einops and a checkout of the official code:

    python -m tests.parity.make_trajectories_120 <checkout>/packages

Checkpoint, texts, pictures and noise come from tests/cases/trajectories.py; the file holds results only.
"""

from __future__ import annotations

import contextlib
import importlib
import sys
import tempfile
import types
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from safetensors.numpy import save_file

from tests.cases.trajectories import (
    LORA_RANK,
    NEGATIVE,
    PROMPT,
    RECORDED,
    Recorded,
    file_name,
    upsampler,
    write_checkpoint,
)

OUTPUT = Path("tests/recorded/trajectories_120.safetensors")
CLASSES = {
    "distilled": ("distilled", "DistilledPipeline"),
    "one-stage": ("ti2vid_one_stage", "TI2VidOneStagePipeline"),
    "two-stage": ("ti2vid_two_stages", "TI2VidTwoStagesPipeline"),
    "two-stage-hq": ("ti2vid_two_stages_hq", "TI2VidTwoStagesHQPipeline"),
    "keyframes": ("keyframe_interpolation", "KeyframeInterpolationPipeline"),
    "given sound": ("a2vid_two_stage", "A2VidPipelineTwoStage"),
    "ic-lora": ("ic_lora", "ICLoraPipeline"),
    "text-to-audio": ("t2a_one_stage", "T2AOneStagePipeline"),
}


class NoDecoder:
    """Stands where a decoder would be built; latents are all that is recorded."""

    diffvae_optimization = None

    def __init__(self, checkpoint_path: str, *_: Any, **__: Any) -> None:
        self.checkpoint_path = checkpoint_path

    def __call__(self, *_: Any, **__: Any) -> None:
        return None


def build_arguments(case: Recorded, folder: Path) -> dict[str, Any]:
    from ltx_core.loader import LTXV_LORA_COMFY_RENAMING_MAP, LoraPathStrengthAndSDOps
    from ltx_pipelines.utils.model_paths import ModelPaths

    checkpoint = str(folder / file_name(case.generation, case.variant))
    build: dict[str, Any] = {"model_paths": ModelPaths.from_monolith(checkpoint, str(folder)), "loras": []}
    if case.pipeline not in ("one-stage", "text-to-audio"):
        build["spatial_upsampler_path"] = str(folder / f"{upsampler(case.generation)[0]}.safetensors")
    if case.pipeline in ("two-stage", "two-stage-hq", "keyframes"):
        lora = str(folder / file_name(case.generation, f"distilled-lora-{LORA_RANK}"))
        build["distilled_lora"] = [LoraPathStrengthAndSDOps(lora, 1.0, LTXV_LORA_COMFY_RENAMING_MAP)]
    if case.pipeline == "two-stage-hq":
        build |= {"distilled_lora_strength_stage_1": 0.25, "distilled_lora_strength_stage_2": 0.5}
    return build


def call_arguments(case: Recorded, folder: Path) -> dict[str, Any]:
    from ltx_core.components.guiders import MultiModalGuiderParams
    from ltx_pipelines.utils.args import ImageConditioningInput

    def params(g: Any) -> MultiModalGuiderParams:
        return MultiModalGuiderParams(g["cfg"], g["stg"], g["blocks"], g["rescale"], g["modality"], g["skip"])

    height, width, frames, fps = case.size
    files = case.files(folder)
    call = {"prompt": PROMPT, "seed": case.seed, "num_frames": frames, "frame_rate": fps}
    if case.pipeline != "text-to-audio":
        images = [ImageConditioningInput(*use) for use in files["images"]]
        call |= {"height": height, "width": width, "images": images}
        if case.pipeline != "one-stage":
            call["tiling_config"] = None
        call |= {"video_guider_params": params(case.video)} if case.guided else {}
    if case.guided:
        call |= {"negative_prompt": NEGATIVE, "num_inference_steps": case.steps}
        call |= {} if case.given_sound else {"audio_guider_params": params(case.audio)}
    if case.given_sound:
        call["audio_path"] = files["sound"]
    if case.reference:
        call["video_conditioning"] = [(files["clip"], case.reference[1])]
        call["conditioning_attention_strength"] = case.reference[2]
    return call


def run(case: Recorded, folder: Path) -> dict[str, np.ndarray]:
    from ltx_pipelines.utils import blocks, samplers

    from tests.parity.official_noise import Noise, channels_last

    module_name, class_name = CLASSES["given sound" if case.given_sound else case.pipeline]
    module = importlib.import_module(f"ltx_pipelines.{module_name}")
    contexts = [
        types.SimpleNamespace(video_encoding=torch.from_numpy(v), audio_encoding=torch.from_numpy(a))
        for v, a in case.contexts()
    ]
    noise = Noise(case.seed, 2)
    states: list[Any] = []
    stage = blocks.DiffusionStage.__call__

    def recorded(self: Any, *args: Any, **kwargs: Any) -> Any:
        states.append(stage(self, *args, **kwargs))
        return states[-1]

    with contextlib.ExitStack() as stack:

        def exchange(target: Any, name: str, value: Any) -> None:
            if hasattr(target, name):
                stack.enter_context(patch.object(target, name, value))

        exchange(torch, "bfloat16", torch.float32)
        exchange(torch.cuda, "synchronize", lambda *_: None)
        exchange(samplers, "tqdm", lambda items, **_: items)
        exchange(blocks.DiffusionStage, "__call__", recorded)
        exchange(module, "GaussianNoiser", noise.noiser)
        exchange(module, "PromptEncoder", lambda *_a, **_k: lambda *_c, **_o: contexts)
        exchange(module, "VideoDecoder", NoDecoder)
        exchange(module, "AudioDecoder", NoDecoder)
        loop = samplers.res2s_audio_video_denoising_loop

        def res2s(**options: Any) -> Any:
            return loop(**options, new_noise_fn=noise.steps(), model_dtype=torch.float32)

        exchange(module, "res2s_audio_video_denoising_loop", res2s)
        stack.enter_context(torch.inference_mode())
        pipeline = getattr(module, class_name)(**build_arguments(case, folder), device=torch.device("cpu"))
        if case.reference:
            pipeline.reference_downscale_factor = case.reference[0]
        pipeline(**call_arguments(case, folder))
    video = states[-1][0]
    audio = states[0 if case.pipeline in ("two-stage", "two-stage-hq") else -1][1]
    results = {} if video is None else {"video": channels_last(video.latent)}
    return results if case.given_sound else {**results, "audio": channels_last(audio.latent)}


def main(packages: str) -> None:
    sys.path[:0] = [f"{packages}/ltx-core/src", f"{packages}/ltx-pipelines/src"]
    sys.modules.setdefault("OpenImageIO", types.ModuleType("OpenImageIO"))  # for EXR files, which nothing here reads
    from ltx_core.loader.fuse_loras import bf16_fuse_rule

    import tests.parity.conftest  # noqa: F401  (stands in for torchaudio)

    # The rule holds its dtype since the import; it would round LoRAs to bfloat16 before adding them.
    object.__setattr__(bf16_fuse_rule, "aggregation_dtype", torch.float32)
    outputs = {}
    for case in RECORDED:
        with tempfile.TemporaryDirectory() as name:
            write_checkpoint(Path(name), case.generation, case.variant)
            outputs |= {f"{case.name}/{key}": x for key, x in run(case, Path(name)).items()}
        print(case.name, {k: x.shape for k, x in outputs.items() if k.startswith(f"{case.name}/")})
    made = {"source": "ltx-pipelines 1.2.0", "made_by": "tests.parity.make_trajectories_120"}
    save_file(outputs, str(OUTPUT), metadata=made)


if __name__ == "__main__":
    main(sys.argv[1])
