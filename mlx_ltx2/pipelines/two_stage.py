"""A guided stage at half size, the latent upsampler, and a few unguided steps at full size with the distilled LoRA.

Source: official `ltx_pipelines.ti2vid_two_stages`, `..._hq` and `keyframe_interpolation` 1.2.0. What tells them apart:
HQ runs res_2s in both stages, shifts its schedule by the real token count and applies the LoRA in both stages;
keyframes appends every image and ships the second stage's audio, where the other two ship the first stage's.
"""

from __future__ import annotations

from mlx_ltx2.pipelines import parts
from mlx_ltx2.pipelines.plan import Plan
from mlx_ltx2.pipelines.request import Filled
from mlx_ltx2.stages.plan import StagePlan, StreamPlan


def recipe(filled: Filled, card: parts.ModelCard) -> Plan:
    hq = filled.pipeline == "two-stage-hq"
    full = parts.clip_shape(filled, card)
    half = full.halved()
    second = parts.as_sigmas(filled.stage_2_sigmas, "stage_2_sigmas")
    image_uses = parts.images(filled, card)
    tokens = half.latent(card.traits.video_scale).tokens if hq else None
    stages = (
        StagePlan(
            name="half size",
            shape=half,
            sigmas=parts.schedule(filled, tokens),
            sampler=filled.sampler,
            video=StreamPlan(guidance=parts.guidance(filled, "video")),
            audio=parts.audio_stream(filled, parts.guidance(filled, "audio")),
            images=image_uses,
            loras=parts.user_loras(filled, 1) + parts.distilled_lora(filled, card, 1),
        ),
        StagePlan(
            name="full size",
            shape=full,
            sigmas=second,
            sampler="res2s" if hq else "euler",
            video=StreamPlan(start="previous", noise_scale=second[0]),
            audio=parts.audio_stream(filled, None, start="previous", noise_scale=second[0]),
            upsample="spatial-x2",
            images=image_uses,
            loras=parts.user_loras(filled, 2) + parts.distilled_lora(filled, card, 2),
        ),
    )
    return parts.assemble(filled, card, stages, parts.audio_source(filled, 1 if filled.pipeline == "keyframes" else 0))
