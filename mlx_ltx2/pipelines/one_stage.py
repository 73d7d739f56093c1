"""One guided stage at full size.

Source: official `ltx_pipelines.ti2vid_one_stage` 1.2.0: the schedule is always shifted for 4096 tokens.
A source clip is made over from the middle of the schedule on.
"""

from __future__ import annotations

from mlx_ltx2.pipelines import parts, source
from mlx_ltx2.pipelines.plan import Plan
from mlx_ltx2.pipelines.request import Filled
from mlx_ltx2.stages.plan import StagePlan, StreamPlan


def recipe(filled: Filled, card: parts.ModelCard) -> Plan:
    sigmas, start, source_clip = source.made_over(filled, parts.schedule(filled))
    stage = StagePlan(
        name="full size",
        shape=parts.clip_shape(filled, card),
        sigmas=sigmas,
        sampler=filled.sampler,
        video=StreamPlan(guidance=parts.guidance(filled, "video"), **start),
        audio=parts.audio_stream(filled, parts.guidance(filled, "audio"), **start),
        images=parts.images(filled, card),
        loras=parts.user_loras(filled, 1),
    )
    return parts.assemble(filled, card, (stage,), parts.audio_source(filled, 0), **source_clip)
