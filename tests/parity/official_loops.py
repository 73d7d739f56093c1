"""The scenes of tests/cases/diffusion.py through the official samplers.

Works with release 1.0.0 (the wheels of the parity group) and 1.2.0. To record the numbers of 1.2.0 again, put
its two `src` folders on PYTHONPATH:

    python -m tests.parity.official_loops tests/recorded/diffusion_120.safetensors
"""

from __future__ import annotations

import inspect
import sys
import types
from dataclasses import replace

import numpy as np
import torch
from ltx_core.components import diffusion_steps, guiders, noisers, patchifiers
from ltx_core.conditioning.types import keyframe_cond, latent_cond
from ltx_core.guidance.perturbations import PerturbationType
from ltx_core.tools import AudioLatentTools, VideoLatentTools
from ltx_core.types import AudioLatentShape, VideoLatentShape
from safetensors.numpy import save_file

import tests.parity.conftest  # noqa: F401  (stands in for torchaudio)

# Release 1.2.0 imports it for EXR files, which nothing here reads.
sys.modules.setdefault("OpenImageIO", types.ModuleType("OpenImageIO"))
from ltx_pipelines.utils import helpers, samplers
from ltx_pipelines.utils.res2s import get_res2s_coefficients  # noqa: F401

from tests.cases.diffusion import (
    AUDIO_CHANNELS,
    AUDIO_FRAMES,
    BINS,
    CHANNELS,
    FPS,
    NEW_SCENES,
    STG_BLOCK,
    VIDEO,
    Scene,
    Skips,
    Stream,
    Toy,
    row,
)

RELEASE = "1.2.0" if "transformer" in inspect.signature(samplers.euler_denoising_loop).parameters else "1.0.0"


def channels_first(x: np.ndarray) -> torch.Tensor:
    """(B, F, H, W, C) or (B, T, mel, C) in numpy -> the official layout."""
    order = (0, 4, 1, 2, 3) if x.ndim == 5 else (0, 3, 1, 2)
    return torch.from_numpy(np.ascontiguousarray(x.transpose(order)))


def video_tools(fps: float = FPS, shape=VIDEO, channels: int = CHANNELS) -> VideoLatentTools:
    target = VideoLatentShape(batch=1, channels=channels, frames=shape.frames, height=shape.height, width=shape.width)
    return VideoLatentTools(patchifiers.VideoLatentPatchifier(patch_size=1), target, fps)


def audio_tools(frames: int = AUDIO_FRAMES) -> AudioLatentTools:
    target = AudioLatentShape(batch=1, channels=AUDIO_CHANNELS, frames=frames, mel_bins=BINS)
    return AudioLatentTools(patchifiers.AudioPatchifier(patch_size=1), target)


class Injected(noisers.GaussianNoiser):
    """The official noiser with given noise."""

    def __init__(self, noise: np.ndarray) -> None:
        super().__init__(torch.Generator())
        self.noise = torch.from_numpy(noise)

    def _sample_noise(self, latent_state):
        return self.noise


class InjectedV1:
    """Release 1.0.0 draws inside its call, so its generator is replaced by patched draws."""

    def __init__(self, noise: np.ndarray) -> None:
        self.noise = torch.from_numpy(noise)

    def __call__(self, latent_state, noise_scale=1.0):
        drawn, torch.randn = torch.randn, lambda *a, **k: self.noise
        try:
            return noisers.GaussianNoiser(torch.Generator())(latent_state, noise_scale)
        finally:
            torch.randn = drawn


def noised(tools, items, noise: np.ndarray, scale: float, latent: np.ndarray | None):
    initial = None if latent is None else channels_first(latent)
    state = tools.create_initial_state(torch.device("cpu"), torch.float32, initial)
    for item in items:
        state = item.apply_to(latent_state=state, latent_tools=tools)
    noiser = Injected(noise) if RELEASE == "1.2.0" else InjectedV1(noise)
    return noiser(state, scale)


def states(scene: Scene):
    given = scene.arrays()
    items = []
    if scene.image:
        items.append(latent_cond.VideoConditionByLatentIndex(channels_first(given["image"]), scene.strength, 0))
    if scene.keyframe:
        items.append(
            keyframe_cond.VideoConditionByKeyframeIndex(
                channels_first(given["keyframe"]), frame_idx=9, strength=scene.strength
            )
        )
    start = scene.start_latents
    video = noised(
        video_tools(),
        items,
        given["video_noise"],
        scene.noise_scale,
        given["video_latent"] if start else None,
    )
    latent = given["audio_latent"] if start or scene.freeze_audio else None
    scale = 0.0 if scene.freeze_audio else scene.noise_scale
    audio = noised(audio_tools(), [], given["audio_noise"], scale, latent)
    if scene.freeze_audio:
        audio = replace(audio, denoise_mask=torch.zeros_like(audio.denoise_mask), frozen=True)
    return video, audio


class OfficialToy(torch.nn.Module):
    """The toy behind the official x0 interface; counts passes."""

    num_blocks = 3

    def __init__(self) -> None:
        super().__init__()
        self.toy = Toy()
        self.passes = 0

    def forward(self, video, audio, perturbations=None, **_):
        def seen(m) -> Stream | None:
            if m is None:
                return None
            batch = m.latent.shape[0]
            levels = m.timesteps.numpy().reshape(batch, -1)
            sigma = np.broadcast_to(m.sigma.numpy().reshape(-1), (batch,))
            return Stream(m.latent.numpy(), levels, sigma, m.positions.numpy(), m.context.numpy())

        streams = {"video": seen(video), "audio": seen(audio)}
        batch = next(s for s in streams.values() if s is not None).latent.shape[0]
        self.passes += batch

        def skips(kind: PerturbationType, i: int) -> bool:
            if perturbations is None:
                return False
            keep = (
                perturbations.mask(kind, STG_BLOCK)
                if RELEASE == "1.2.0"
                else perturbations.mask(kind, STG_BLOCK, torch.device("cpu"), torch.float32)
            )
            return not bool(keep.reshape(-1)[i])

        kinds = {
            "video": (PerturbationType.SKIP_VIDEO_SELF_ATTN, PerturbationType.SKIP_A2V_CROSS_ATTN),
            "audio": (PerturbationType.SKIP_AUDIO_SELF_ATTN, PerturbationType.SKIP_V2A_CROSS_ATTN),
        }
        out = []
        for name, other, m in (("video", "audio", video), ("audio", "video", audio)):
            if m is None:
                out.append(None)
                continue
            rows = [
                self.toy.stream(
                    name,
                    row(streams[name], i),
                    row(streams[other], i),
                    Skips(skips(kinds[name][0], i), skips(kinds[name][1], i)),
                )
                for i in range(batch)
            ]
            velocity = torch.from_numpy(np.concatenate(rows))
            out.append(m.latent - velocity * m.timesteps.reshape(batch, -1, 1))
        return tuple(out)


def guider(params, negative):
    return guiders.MultiModalGuider(
        params=guiders.MultiModalGuiderParams(
            cfg_scale=params.cfg,
            stg_scale=params.stg,
            stg_blocks=list(params.stg_blocks),
            rescale_scale=params.rescale,
            modality_scale=params.modality,
            skip_step=params.skip_step,
        ),
        negative_context=negative,
    )


def noise_feed(scene: Scene):
    """A `new_noise_fn` that hands out the scene's noise as the loops ask for it."""
    counts: dict[tuple[str, str], int] = {}
    substeps = scene.sampler == "res2s"

    def feed(x: torch.Tensor, generator) -> torch.Tensor:
        # A stream asks once a step, in res2s first for the substep.
        name = "video" if x.shape[1] == scene.video_tokens else "audio"
        asked = counts.get((name, "all"), 0)
        counts[name, "all"] = asked + 1
        stream = "substep" if substeps and asked % 2 == 0 else "step"
        step = asked // 2 if substeps else asked
        return torch.from_numpy(scene.fresh_noise(name, stream, step)).to(torch.float64)

    return feed


def run(scene: Scene) -> tuple[np.ndarray, np.ndarray, int]:
    """Final tokens of both streams, conditioning tokens included, and the number of passes."""
    given = scene.arrays()
    video, audio = states(scene)
    model = OfficialToy()
    text = {k: torch.from_numpy(given[k]) for k in ("video_text", "audio_text", "video_negative", "audio_negative")}
    video_guider = guider(scene.video, text["video_negative"])
    audio_guider = guider(scene.audio, None if scene.freeze_audio else text["audio_negative"])
    contexts = (text["video_text"], text["audio_text"])
    sigmas = torch.tensor(scene.sigmas, dtype=torch.float32)
    loop, stepper, extra = {
        "euler": lambda: (samplers.euler_denoising_loop, diffusion_steps.EulerDiffusionStep(), {}),
        "euler-ge": lambda: (
            samplers.gradient_estimating_euler_denoising_loop,
            diffusion_steps.EulerDiffusionStep(),
            {},
        ),
        "euler-ancestral": lambda: (
            samplers.euler_ancestral_denoising_loop,
            diffusion_steps.EulerAncestralDiffusionStep(),
            {"new_noise_fn": noise_feed(scene), "model_dtype": torch.float32},
        ),
        "res2s": lambda: (
            samplers.res2s_audio_video_denoising_loop,
            diffusion_steps.Res2sDiffusionStep(),
            {"new_noise_fn": noise_feed(scene), "model_dtype": torch.float32},
        ),
    }[scene.sampler]()
    if RELEASE == "1.2.0":
        from ltx_pipelines.utils.denoisers import GuidedDenoiser

        arguments = {"transformer": model, "denoiser": GuidedDenoiser(*contexts, video_guider, audio_guider)}
    else:
        step = helpers.multi_modal_guider_denoising_func(video_guider, audio_guider, *contexts, transformer=model)
        arguments = {"denoise_fn": step}
    with torch.no_grad():
        video, audio = loop(sigmas=sigmas, video_state=video, audio_state=audio, stepper=stepper, **arguments, **extra)
    return video.latent.numpy(), audio.latent.numpy(), model.passes


def main(path: str) -> None:
    assert RELEASE == "1.2.0", f"release {RELEASE} is on the path"
    recorded: dict[str, np.ndarray] = {}
    for scene in NEW_SCENES:
        video, audio, passes = run(scene)
        recorded |= {f"{scene.name}/video": video, f"{scene.name}/audio": audio}
        recorded[f"{scene.name}/passes"] = np.array(passes)
    from tests.parity import official_answers  # it imports this module

    recorded |= official_answers.all_answers()
    save_file({k: np.ascontiguousarray(v, dtype=np.float32) for k, v in recorded.items()}, path)
    print(f"{len(recorded)} arrays -> {path}")


if __name__ == "__main__":
    main(sys.argv[1])
