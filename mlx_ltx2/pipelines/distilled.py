"""Distilled: 8 steps at half size, the latent upsampler, 3 steps at full size; no guidance unless it is forced.

Source: official `ltx_pipelines.distilled` 1.2.0. The audio of the second stage ships. A dev model runs it through its
distilled LoRA.
"""

from __future__ import annotations

from mlx_ltx2.pipelines import parts, source
from mlx_ltx2.pipelines.plan import Plan
from mlx_ltx2.pipelines.request import Filled
from mlx_ltx2.stages.plan import StagePlan, StreamPlan


def recipe(filled: Filled, card: parts.ModelCard) -> Plan:
    full = parts.clip_shape(filled, card)
    second = parts.as_sigmas(filled.stage_2_sigmas, "stage_2_sigmas")
    image_uses = parts.images(filled, card)
    loras = parts.distillation(filled, card)
    sigmas, start, source_clip = source.made_over(filled, parts.schedule(filled))
    stages = (
        StagePlan(
            name="half size",
            shape=full.halved(),
            sigmas=sigmas,
            sampler=filled.sampler,
            video=StreamPlan(guidance=parts.guidance(filled, "video"), **start),
            audio=parts.audio_stream(filled, parts.guidance(filled, "audio"), **start),
            images=image_uses,
            loras=parts.user_loras(filled, 1) + loras,
        ),
        StagePlan(
            name="full size",
            shape=full,
            sigmas=second,
            sampler="euler",
            video=StreamPlan(start="previous", noise_scale=second[0]),
            audio=parts.audio_stream(filled, None, start="previous", noise_scale=second[0]),
            upsample="spatial-x2",
            images=image_uses,
            loras=parts.user_loras(filled, 2) + loras,
        ),
    )
    return parts.assemble(filled, card, stages, parts.audio_source(filled, 1), **source_clip)
