"""The one table of defaults, by pipeline and generation.

Numbers are those of the official release 1.2.0 (`ltx_pipelines.utils.constants`) but for size, length and name of the
output, where a laptop's patience decides.
"""

from __future__ import annotations

from typing import Any

from mlx_ltx2.diffusion.guidance import GuidanceParams
from mlx_ltx2.diffusion.schedules import DISTILLED_SIGMAS, STAGE_2_SIGMAS
from mlx_ltx2.errors import RequestError
from mlx_ltx2.media.video import MediaInfo
from mlx_ltx2.pipelines.request import Filled, Request
from mlx_ltx2.traits import Traits

PIPELINES = {
    "distilled": "two stages without guidance (8 + 3 steps); the fastest",
    "one-stage": "one guided stage at full size",
    "two-stage": "a guided stage at half size, then 3 steps at full size with the distilled LoRA",
    "two-stage-hq": "as two-stage with the second-order res_2s sampler and the LoRA in both stages",
    "keyframes": "two-stage, every image appended as a keyframe",
    "ic-lora": "distilled, steered by reference videos through an IC-LoRA",
    "text-to-audio": "sound alone; only the audio half of the transformer is read",
    "retake": "regenerate a stretch of an existing clip",
    "extend": "continue an existing clip before its start or after its end",
}
PIPELINE_ALIASES = {
    "dev": "one-stage",
    "dev-two-stage": "two-stage",
    "full": "two-stage",
    "dev-two-stage-hq": "two-stage-hq",
    "keyframe-interpolation": "keyframes",
    "t2a": "text-to-audio",
    "a2v": "two-stage",
}
TWO_STAGE = {"distilled", "two-stage", "two-stage-hq", "keyframes", "ic-lora"}
UNGUIDED = {"distilled", "ic-lora"}
GUIDED = {"one-stage", "two-stage", "two-stage-hq", "keyframes"}

# The wording is part of the released models' settings: the 1.0.0 text as diffusers carries it (Apache-2.0), with the
# five tags that 1.2.0 puts in front.
DEFAULT_NEGATIVE_PROMPT = (
    "has_subtitles, has_blurbox, transition from black, transition to black, speech_ending_short, "
    "blurry, out of focus, overexposed, underexposed, low contrast, washed out colors, excessive noise, "
    "grainy texture, poor lighting, flickering, motion blur, distorted proportions, unnatural skin tones, "
    "deformed facial features, asymmetrical face, missing facial features, extra limbs, disfigured hands, "
    "wrong hand count, artifacts around text, inconsistent perspective, camera shake, incorrect depth of "
    "field, background too sharp, background clutter, distracting reflections, harsh shadows, inconsistent "
    "lighting direction, color banding, cartoonish rendering, 3D CGI look, unrealistic materials, uncanny "
    "valley effect, incorrect ethnicity, wrong gender, exaggerated expressions, wrong gaze direction, "
    "mismatched lip sync, silent or muted audio, distorted voice, robotic voice, echo, background noise, "
    "off-sync audio, incorrect dialogue, added dialogue, repetitive speech, jittery movement, awkward "
    "pauses, incorrect timing, unnatural transitions, inconsistent framing, tilted camera, flat lighting, "
    "inconsistent tone, cinematic oversaturation, stylized filters, or AI artifacts."
)

_CLIP = {"height": 512, "width": 768, "num_frames": 97, "fps": 24.0, "seed": 10}
_NOTHING = object()
_STEPS = {"2.0": 40, "2.3": 30}


def canonical_pipeline(name: str) -> str:
    """The pipeline's own name for one of its spellings.

    Raises: RequestError listing the pipelines.
    """
    name = PIPELINE_ALIASES.get(name, name)
    if name not in PIPELINES:
        raise RequestError(f"there is no pipeline {name!r}; choose one of {', '.join(PIPELINES)}.")
    return name


def wanted_variant(pipeline: str | None, force_guidance: bool = False) -> str | None:
    """Which checkpoint a pipeline needs where a model comes in two: "dev", or None for the one it takes by itself.

    Raises: RequestError if there is no such pipeline.
    """
    if pipeline is None or canonical_pipeline(pipeline) not in GUIDED or force_guidance:
        return None
    return "dev"


def defaults(pipeline: str, traits: Traits) -> dict[str, Any]:
    """Every default of one pipeline on one model, under the names of `Request`."""
    table = {
        **_CLIP,
        "pipeline": pipeline,
        "negative_prompt": DEFAULT_NEGATIVE_PROMPT,
        "max_batch_size": 1,
        "image_strength": 1.0,
        "image_crf": traits.image_crf,
        "image_mode": "keyframe" if pipeline == "keyframes" else "auto",
        "audio_start_time": 0.0,
        "audio_strength": 1.0,
        "attention_strength": 1.0,
        "denoising_strength": 1.0,
        "sampler": "res2s" if pipeline == "two-stage-hq" else "euler",
        "tiling": "auto",
        "apg": False,
        "apg_eta": 1.0,
        "apg_norm_threshold": 0.0,
        "lora_strength_stage_1": 0.25 if pipeline == "two-stage-hq" else 0.0,
        "lora_strength_stage_2": 0.5 if pipeline == "two-stage-hq" else 1.0,
        "stage_2_sigmas": STAGE_2_SIGMAS,
        "max_tokens": 512,
        "temperature": 0.7,
    }
    if pipeline in UNGUIDED or (pipeline in ("retake", "extend") and traits.distilled):
        fixed = {"sigmas": DISTILLED_SIGMAS, "steps": len(DISTILLED_SIGMAS) - 1, **_guidance(None, traits)}
        return table | traits.recommended | fixed
    table |= {"steps": 15 if pipeline == "two-stage-hq" else _STEPS[traits.generation]}
    return table | _guidance(pipeline, traits) | traits.recommended


def _guidance(pipeline: str | None, traits: Traits) -> dict[str, Any]:
    """Guidance defaults, None = off. Official rows: cfg 3 / 7, stg 1, rescale .7, modality 3; HQ without stg."""
    if pipeline is None:
        video = audio = GuidanceParams()
    elif pipeline == "two-stage-hq":
        video = GuidanceParams(cfg=3.0, modality=3.0, rescale=0.45)
        audio = GuidanceParams(cfg=7.0, modality=3.0, rescale=1.0)
    else:
        blocks = (traits.stg_block,)
        video = GuidanceParams(cfg=3.0, stg=1.0, stg_blocks=blocks, modality=3.0, rescale=0.7)
        audio = GuidanceParams(cfg=7.0, stg=1.0, stg_blocks=blocks, modality=3.0, rescale=0.7)
    if pipeline == "text-to-audio":
        audio = GuidanceParams(cfg=7.0, stg=1.0, stg_blocks=(traits.stg_block,), modality=1.0, rescale=0.7)
    fields = {"cfg_scale": "cfg", "cfg_rescale": "rescale", "stg_scale": "stg", "modality_scale": "modality"}
    fields |= {"stg_blocks": "stg_blocks", "skip_step": "skip_step"}
    values = {name: getattr(video, key) for name, key in fields.items()}
    audio_names = {"cfg_rescale": "audio_cfg_rescale"}
    return values | {audio_names.get(n, f"audio_{n}"): getattr(audio, key) for n, key in fields.items()}


def fill(request: Request, traits: Traits, source: MediaInfo | None = None) -> Filled:
    """Give every unset option its default and remember which were given.

    source: what the clip that `request.video` names says about itself; size, length and rate default to its own.
    """
    pipeline = canonical_pipeline(_natural_pipeline(request, traits) if request.pipeline is None else request.pipeline)
    own = {} if source is None else _of_source(request, pipeline, source)
    table = {**defaults(pipeline, traits), **own}
    values, origin = dict(table), {}
    for name, default in table.items():
        given = getattr(request, name)
        if name == "pipeline":
            origin[name] = "given" if request.pipeline is not None else "the model's natural one"
        elif given is not None:
            values[name], origin[name] = given, "given"
        else:
            where = "model" if traits.recommended.get(name, _NOTHING) == default else f"{pipeline} {traits.generation}"
            values[name], origin[name] = default, "source clip" if name in own else where
    if request.steps is not None and request.sigmas is None and values.get("sigmas") is not None:
        _check_distilled_steps(request.steps, len(values["sigmas"]) - 1)
    return Filled(request, values, origin, source)


def _of_source(request: Request, pipeline: str, source: MediaInfo) -> dict[str, Any]:
    more = request.extend_frames if pipeline == "extend" and isinstance(request.extend_frames, int) else 0
    return {
        "height": source.height,
        "width": source.width,
        "num_frames": (source.frames or 0) + more,
        "fps": float(source.fps),
    }


def _check_distilled_steps(steps: int, allowed: int) -> None:
    if steps != allowed:
        raise RequestError(
            f"steps {steps}: a distilled model runs its fixed {allowed} steps; leave --steps out, or give --sigmas."
        )


def _natural_pipeline(request: Request, traits: Traits) -> str:
    if request.video is not None and request.start_time is not None:
        return "retake"
    if request.video is not None and request.extend_frames is not None:
        return "extend"
    if request.references:
        return "ic-lora"
    return "distilled" if traits.distilled else "one-stage"
