"""The loop with a tiny real transformer in place of the toy."""

from __future__ import annotations

import mlx.core as mx
import pytest

from mlx_ltx2.diffusion import state as states
from mlx_ltx2.diffusion.conditioning import Keyframe, LatentAt, ReferenceVideo, WithAttention
from mlx_ltx2.diffusion.denoisers import Evaluator, GuidedDenoiser
from mlx_ltx2.diffusion.guidance import GuidanceParams
from mlx_ltx2.diffusion.loop import denoise
from mlx_ltx2.diffusion.noise import NoiseSource
from mlx_ltx2.diffusion.steppers import make_stepper
from mlx_ltx2.shapes import LatentShape
from mlx_ltx2.states import TextContext
from tests.cases import load_official, official_weights
from tests.cases.transformer import build, section

SHAPE, FPS, SIGMAS = LatentShape(2, 2, 2), 24.0, (1.0, 0.8, 0.4, 0.0)
GUIDED = GuidanceParams(cfg=3.0, stg=1.0, stg_blocks=(1,), modality=2.0, rescale=0.5, skip_step=1)


def network(generation: str):
    channels = {"in_channels": 6, "audio_in_channels": 6, "audio_out_channels": 6}
    module = build({"transformer": section(generation, **channels)})
    return load_official(module, official_weights(module, 3))


def clip(noise: NoiseSource):
    video = states.video_state(SHAPE, 6, FPS, dtype=mx.float32)
    video = states.conditioned(
        video,
        [
            LatentAt(mx.ones((1, 1, 2, 2, 6)), 0, 0.9),
            WithAttention(ReferenceVideo(mx.ones((1, 1, 2, 2, 6)), FPS), 0.5),
            Keyframe(mx.ones((1, 1, 2, 2, 6)), 8, FPS),
        ],
    )
    audio = states.audio_state(5, bins=3, channels=2, dtype=mx.float32)
    video = states.add_noise(video, noise.normal("video", video.latent.shape))
    return video, states.add_noise(audio, noise.normal("audio", audio.latent.shape))


@pytest.mark.parametrize("generation", ["19B", "22B"])
@pytest.mark.parametrize("sampler", ["euler", "res2s"])
def test_batched_and_single_passes_agree(generation: str, sampler: str) -> None:
    model, noise = network(generation), NoiseSource(1)
    mx.random.seed(0)
    widths = (12, 12) if generation == "19B" else (32, 16)
    contexts = [TextContext(*(mx.random.normal((1, 4, width)) for width in widths)) for _ in range(2)]
    results = []
    for batch in (1, 4):
        evaluator = Evaluator(model, lambda v, a: model.rope(v, a, mx.float32), batch)
        audio_params = GuidanceParams(cfg=2.0)
        denoiser = GuidedDenoiser(evaluator, *contexts, video=GUIDED, audio=audio_params)
        results.append(denoise(denoiser, *clip(noise), SIGMAS, make_stepper(sampler, noise)))
    for one, many in zip(*results, strict=True):
        assert mx.isfinite(one.latent).all()
        assert mx.allclose(one.latent, many.latent, atol=2e-4)
    held = results[0].video.denoise_mask[0] == 0
    assert held.sum() == 8
