"""Distilled, steered by reference videos through an IC-LoRA.

Source: official `ltx_pipelines.ic_lora` 1.2.0: references and LoRAs belong to the first stage alone; the second sees
images only. `skip_stage_2` ships the half-size clip.
"""

from __future__ import annotations

from mlx_ltx2.errors import RequestError, ShapeError
from mlx_ltx2.pipelines import parts
from mlx_ltx2.pipelines.plan import Plan
from mlx_ltx2.pipelines.request import Filled
from mlx_ltx2.stages.plan import StagePlan, StreamPlan


def recipe(filled: Filled, card: parts.ModelCard) -> Plan:
    full = parts.clip_shape(filled, card)
    half = full.halved()
    second = parts.as_sigmas(filled.stage_2_sigmas, "stage_2_sigmas")
    references = parts.references(filled, card)
    if not references:
        raise RequestError("pipeline ic-lora needs at least one reference video; give --reference FILE.")
    for reference in references:
        step = reference.downscale * card.traits.video_scale.space
        if half.height % step or half.width % step:
            raise ShapeError(
                f"{filled.width}x{filled.height} with a reference at 1/{reference.downscale} size: height and width "
                f"must be multiples of {2 * step}."
            )
    image_uses = parts.images(filled, card)
    loras = parts.distillation(filled, card)
    first = StagePlan(
        name="half size",
        shape=half,
        sigmas=parts.schedule(filled),
        sampler=filled.sampler,
        video=StreamPlan(guidance=parts.guidance(filled, "video")),
        audio=parts.audio_stream(filled, parts.guidance(filled, "audio")),
        images=image_uses,
        references=references,
        loras=parts.user_loras(filled, 1) + loras,
    )
    if filled.skip_stage_2:
        return parts.assemble(filled, card, (first,), parts.audio_source(filled, 0))
    refine = StagePlan(
        name="full size",
        shape=full,
        sigmas=second,
        sampler="euler",
        video=StreamPlan(start="previous", noise_scale=second[0]),
        audio=parts.audio_stream(filled, None, start="previous", noise_scale=second[0]),
        upsample="spatial-x2",
        images=image_uses,
        loras=loras,
    )
    return parts.assemble(filled, card, (first, refine), parts.audio_source(filled, 1))
