"""Sound alone: the audio half of the transformer, one guided stage.

Source: official `ltx_pipelines.t2a_one_stage` 1.2.0: modality guidance is off, there being one modality.
"""

from __future__ import annotations

from dataclasses import replace

from mlx_ltx2.errors import RequestError
from mlx_ltx2.pipelines import parts
from mlx_ltx2.pipelines.plan import Plan
from mlx_ltx2.pipelines.request import Filled
from mlx_ltx2.shapes import VideoShape, check_fps, check_frames
from mlx_ltx2.stages.plan import StagePlan


def recipe(filled: Filled, card: parts.ModelCard) -> Plan:
    if filled.images or filled.audio_file is not None:
        raise RequestError("pipeline text-to-audio takes a prompt alone; drop the image or the audio file.")
    if not filled.audio:
        raise RequestError("pipeline text-to-audio makes nothing but sound; drop --no-audio.")
    check_frames(filled.num_frames, card.traits.video_scale)
    check_fps(filled.fps)
    shape = VideoShape(filled.num_frames, filled.height, filled.width, float(filled.fps))
    stage = StagePlan(
        name="sound",
        shape=shape,
        sigmas=parts.schedule(filled),
        sampler=filled.sampler,
        video=None,
        audio=parts.audio_stream(filled, replace(parts.guidance(filled, "audio"), modality=1.0)),
        loras=parts.user_loras(filled, 1),
    )
    return parts.assemble(filled, card, (stage,), 0, video_out=False)
