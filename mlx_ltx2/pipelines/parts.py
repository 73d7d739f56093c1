"""The parts that recipes are assembled from: validated shapes, streams, images and LoRAs of a stage."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mlx_ltx2.diffusion.guidance import GuidanceParams
from mlx_ltx2.diffusion.schedules import checked_sigmas, ltx2_schedule
from mlx_ltx2.diffusion.steppers import SAMPLERS
from mlx_ltx2.errors import RequestError
from mlx_ltx2.media.frame_rate import exact_fps
from mlx_ltx2.pipelines.plan import Plan
from mlx_ltx2.pipelines.presets import GUIDED, TWO_STAGE, UNGUIDED
from mlx_ltx2.pipelines.request import Filled
from mlx_ltx2.pipelines.source import check_video_options
from mlx_ltx2.shapes import MAX_SECONDS, VideoShape, check_video_shape
from mlx_ltx2.stages.decode_video import tile_size
from mlx_ltx2.stages.plan import EnhanceUse, ImageUse, LoraUse, ReferenceUse, StagePlan, StreamPlan
from mlx_ltx2.traits import Traits

IMAGE_MODES = ("auto", "replace", "keyframe")


@dataclass(frozen=True)
class ModelCard:
    """What a recipe may know about the model: its name, traits and which extra files it has.

    lora_metadata: LoRA path -> the metadata in its header (IC-LoRAs carry their factors there).
    """

    name: str
    traits: Traits
    distilled_lora: str | None = None
    upsamplers: frozenset[str] = frozenset({"spatial-x2"})
    lora_metadata: Mapping[str, Mapping[str, str]] = field(default_factory=dict)


def clip_shape(filled: Filled, card: ModelCard) -> VideoShape:
    """The finished clip's shape, checked against the grid of the pipeline and the model.

    Raises: ShapeError.
    """
    shape = VideoShape(filled.num_frames, filled.height, filled.width, float(filled.fps))
    check_video_shape(shape, two_stage=filled.pipeline in TWO_STAGE, scale=card.traits.video_scale)
    return shape


def check_request(filled: Filled, card: ModelCard) -> None:
    """Everything about a request that needs no file but the model's header.

    Raises: RequestError.
    """
    if not filled.prompt.strip():
        raise RequestError("the prompt is empty; describe what should be seen and heard.")
    if not isinstance(filled.seed, int) or not 0 <= filled.seed < 2**63:
        raise RequestError(f"seed {filled.seed!r} is no whole number from 0 to 2^63-1.")
    if not isinstance(filled.steps, int) or not 1 <= filled.steps <= 1000:
        raise RequestError(f"steps {filled.steps!r} must be a whole number from 1 to 1000.")
    if filled.sampler not in SAMPLERS:
        raise RequestError(f"sampler {filled.sampler!r} does not exist; choose one of {', '.join(SAMPLERS)}.")
    if filled.image_mode not in IMAGE_MODES:
        raise RequestError(f"image mode {filled.image_mode!r} does not exist; choose one of {', '.join(IMAGE_MODES)}.")
    if filled.audio_file is not None and not filled.audio:
        raise RequestError("an audio file was given together with no audio; drop one of the two.")
    _check_track(filled)
    for name in ("image_strength", "audio_strength", "attention_strength", "denoising_strength"):
        check_share(name, getattr(filled, name))
    _check_numbers(filled)
    _check_blocks(filled, card)
    check_enhancement(filled.max_tokens, filled.temperature)
    check_video_options(filled)
    _check_reference_options(filled)
    _check_lora_strengths(filled)
    if (card.traits.distilled or filled.pipeline in UNGUIDED) and not filled.force_guidance:
        _refuse_guidance(filled)


def _check_track(filled: Filled) -> None:
    track = filled.audio_track
    if track is None:
        return
    if not isinstance(track, int) or isinstance(track, bool) or track < 1:
        raise RequestError(f"audio_track {track!r} is no number of a track; 1 is the first.")
    if filled.audio_file is None and filled.video is None:
        raise RequestError(f"audio_track {track} is asked for, and no file; give --audio-file or --video, or drop it.")
    if not filled.audio:
        raise RequestError("an audio track was chosen together with no audio; drop one of the two.")


def _check_reference_options(filled: Filled) -> None:
    """Nothing that steers through references may be dropped without a word."""
    request = filled.request
    if filled.pipeline != "ic-lora":
        wanted = [n for n in ("references", "attention_mask", "skip_stage_2") if getattr(request, n)]
        if wanted:
            raise RequestError(
                f"{wanted[0]} belongs to pipeline ic-lora, not to {filled.pipeline}; use --pipeline ic-lora or drop it."
            )


def _check_lora_strengths(filled: Filled) -> None:
    given = [(f"LoRA {lora.path}: strength", lora.strength) for lora in (*filled.loras, filled.distilled_lora) if lora]
    given += [(name, getattr(filled, name)) for name in ("lora_strength_stage_1", "lora_strength_stage_2")]
    for name, strength in given:
        if not isinstance(strength, int | float) or not math.isfinite(strength):
            raise RequestError(f"{name} {strength!r} is no number; 1 is the usual one.")


def check_share(name: str, value: float) -> None:
    if not isinstance(value, int | float) or not 0 <= value <= 1:
        raise RequestError(f"{name} {value!r} must be between 0 and 1.")


def check_enhancement(max_tokens: int, temperature: float) -> None:
    if not isinstance(max_tokens, int) or not 1 <= max_tokens <= 4096:
        raise RequestError(f"max_tokens {max_tokens!r} must be a whole number from 1 to 4096.")
    if not isinstance(temperature, int | float) or not 0 <= temperature <= 5:
        raise RequestError(f"temperature {temperature!r} must be a number from 0 (always the likeliest word) to 5.")


_SCALES = ("cfg_scale", "stg_scale", "modality_scale", "cfg_rescale", "apg_eta", "apg_norm_threshold")


def _check_numbers(filled: Filled) -> None:
    for name in (*_SCALES, *(f"audio_{n}" for n in _SCALES[:4])):
        value = getattr(filled, name)
        if not isinstance(value, int | float) or not math.isfinite(value) or abs(value) > 100:
            raise RequestError(f"{name} {value!r} must be a number between -100 and 100.")
    for name in ("skip_step", "audio_skip_step"):
        if not isinstance(getattr(filled, name), int) or getattr(filled, name) < 0:
            raise RequestError(f"{name} {getattr(filled, name)!r} must be a whole number, 0 or more.")
    if not isinstance(filled.max_batch_size, int) or filled.max_batch_size < 1:
        raise RequestError(f"max_batch_size {filled.max_batch_size!r} must be a whole number, 1 or more.")


def _check_blocks(filled: Filled, card: ModelCard) -> None:
    for name in ("stg_blocks", "audio_stg_blocks"):
        for block in getattr(filled, name) or ():
            if not isinstance(block, int) or not 0 <= block < card.traits.num_blocks:
                raise RequestError(
                    f"{name} {block!r}: {card.name} has the transformer blocks 0 to {card.traits.num_blocks - 1}."
                )


_GUIDANCE_OFF = {
    name: off
    for plain, off in (("cfg_scale", 1), ("stg_scale", 0), ("modality_scale", 1))
    for name in (plain, f"audio_{plain}")
}


def _refuse_guidance(filled: Filled) -> None:
    asked = [
        name
        for name, off in _GUIDANCE_OFF.items()
        if filled.origin.get(name) == "given" and getattr(filled, name) != off
    ]
    guided = filled.pipeline in GUIDED
    if asked or guided:
        what = ", ".join(asked) or f"pipeline {filled.pipeline}"
        raise RequestError(
            f"{what}: guidance on a distilled model ruins its picture. Use the distilled pipeline without it, "
            "a dev model, or --force-guidance to try all the same."
        )


def guidance(filled: Filled, stream: str) -> GuidanceParams:
    """The guidance of "video" or "audio" as the request and the defaults have it."""
    prefix = "audio_" if stream == "audio" else ""
    return GuidanceParams(
        cfg=float(getattr(filled, f"{prefix}cfg_scale")),
        stg=float(getattr(filled, f"{prefix}stg_scale")),
        stg_blocks=getattr(filled, f"{prefix}stg_blocks"),
        modality=float(getattr(filled, f"{prefix}modality_scale")),
        rescale=float(getattr(filled, f"{prefix}cfg_rescale")),
        skip_step=getattr(filled, f"{prefix}skip_step"),
        apg=bool(filled.apg),
        apg_eta=float(filled.apg_eta),
        apg_norm_threshold=float(filled.apg_norm_threshold),
    )


def schedule(filled: Filled, tokens: int | None = None) -> tuple[float, ...]:
    """The first stage's sigmas: those given, the pipeline's fixed list, or the shifted schedule.

    tokens: the token count that shifts the schedule; None keeps the official 4096 of every pipeline but HQ.
    """
    if filled.sigmas is not None:
        return as_sigmas(filled.sigmas)
    values = ltx2_schedule(filled.steps, tokens=tokens) if tokens else ltx2_schedule(filled.steps)
    return tuple(float(s) for s in values)


def as_sigmas(values: Sequence[float], name: str = "sigmas") -> tuple[float, ...]:
    """A schedule checked and rounded to float32, as plain numbers."""
    return tuple(float(s) for s in checked_sigmas(values, name))


def images(filled: Filled, card: ModelCard) -> tuple[ImageUse, ...]:
    """The request's images with frames resolved and modes decided.

    Official rule: an image at frame 0 replaces the first latent frame's tokens, any other is appended as a keyframe.
    Raises: RequestError for a frame outside the clip, two images at one frame or a strength outside [0, 1].
    """
    uses: list[ImageUse] = []
    for image in filled.images:
        frame = image.frame + filled.num_frames if image.frame < 0 else image.frame
        if not 0 <= frame < filled.num_frames:
            raise RequestError(
                f"image {image.path} at frame {image.frame}: the clip has frames 0 to {filled.num_frames - 1}."
            )
        if any(u.frame == frame for u in uses):
            raise RequestError(f"two images are given for frame {frame}; give one.")
        strength = filled.image_strength if image.strength is None else image.strength
        check_share("image strength", strength)
        crf = filled.image_crf if image.crf is None else image.crf
        if not isinstance(crf, int) or not 0 <= crf <= 51:
            raise RequestError(f"image crf {crf!r} must be a whole number from 0 to 51.")
        uses.append(ImageUse(str(image.path), frame, float(strength), crf, _image_mode(filled, card, frame)))
    return tuple(uses)


def _image_mode(filled: Filled, card: ModelCard, frame: int) -> str:
    mode = filled.image_mode
    if mode == "auto":
        return "replace" if frame == 0 else "keyframe"
    step = card.traits.video_scale.time
    if mode == "replace" and frame and (frame - 1) % step:
        raise RequestError(
            f"image at frame {frame}: replacing works at frame 0 and frames {step}k+1; use mode keyframe."
        )
    return str(mode)


def user_loras(filled: Filled, stage: int) -> tuple[LoraUse, ...]:
    return tuple(LoraUse(str(lo.path), float(lo.strength)) for lo in filled.loras if lo.stage in (0, stage))


def distilled_lora(filled: Filled, card: ModelCard, stage: int) -> tuple[LoraUse, ...]:
    """The distilled LoRA at the stage's strength: the one given, or the one that came with the model.

    Raises: RequestError if the stage needs it and there is none.
    """
    strength = filled.lora_strength_stage_1 if stage == 1 else filled.lora_strength_stage_2
    given = filled.distilled_lora
    if strength == 0 or (card.traits.distilled and given is None):
        return ()
    path = given.path if given else card.distilled_lora
    if path is None:
        raise RequestError(
            f"pipeline {filled.pipeline} needs the distilled LoRA in stage {stage}, and {card.name} has none; "
            "give --distilled-lora FILE, or convert the model again from a source that holds it."
        )
    own = given.strength if given and filled.origin.get(f"lora_strength_stage_{stage}") != "given" else 1.0
    if filled.pipeline == "two-stage-hq":
        own = 1.0  # the official HQ pipeline takes its two strengths from their own options alone
    return (LoraUse(str(path), float(strength) * float(own)),)


def distillation(filled: Filled, card: ModelCard) -> tuple[LoraUse, ...]:
    """What makes the model a distilled one: nothing if it is, its distilled LoRA at full strength otherwise.

    Raises: RequestError if a dev model has no distilled LoRA.
    """
    if card.traits.distilled and filled.distilled_lora is None:
        return ()
    given = filled.distilled_lora
    if given is None and card.distilled_lora is None:
        raise RequestError(
            f"pipeline {filled.pipeline} needs a distilled model, and {card.name} is a dev model without its distilled "
            "LoRA; use --pipeline dev, give --distilled-lora FILE, or use the distilled model."
        )
    return (LoraUse(str(given.path if given else card.distilled_lora), float(given.strength if given else 1.0)),)


def audio_input(filled: Filled) -> dict[str, Any] | None:
    """The given recording: where it is and which part of it is wanted."""
    if filled.audio_file is None:
        return None
    start, longest = filled.audio_start_time, filled.audio_max_duration
    if not 0 <= start < math.inf:
        raise RequestError(f"audio_start_time {start!r} must be 0 or more seconds.")
    if longest is not None and not 0 < longest < math.inf:
        raise RequestError(f"audio_max_duration {longest!r} must be more than 0 seconds.")
    return {"path": str(filled.audio_file), "start": float(start), "max_seconds": longest, "track": filled.audio_track}


def audio_stream(filled: Filled, params: GuidanceParams | None, **later: Any) -> StreamPlan | None:
    """The audio stream of a stage: absent, a given recording (held unless its strength is below 1), or generated."""
    if not filled.audio:
        return None
    if filled.audio_file is not None:
        whole = filled.audio_strength == 1
        return StreamPlan(
            start="input", noise_scale=0.0 if whole else 1.0, frozen=whole, strength=filled.audio_strength
        )
    return StreamPlan(guidance=params, **later)


def audio_source(filled: Filled, stage: int) -> int | str | None:
    """Which audio ships: a stage's, the given recording, or none."""
    if not filled.audio:
        return None
    return "input" if filled.audio_file is not None else stage


def references(filled: Filled, card: ModelCard) -> tuple[ReferenceUse, ...]:
    """Reference videos with the factors that the IC-LoRAs' metadata name.

    Raises: RequestError if two LoRAs disagree.
    """
    factors = {"reference_downscale_factor": 1, "reference_temporal_scale_factor": 1}
    for lora in filled.loras:
        metadata = card.lora_metadata.get(str(lora.path), {})
        for key, known in factors.items():
            value = _factor(lora.path, key, metadata.get(key, "1"))
            if value != 1 and known not in (1, value):
                raise RequestError(f"two IC-LoRAs disagree on {key}: {known} and {value}; use one at a time.")
            factors[key] = max(known, value)
    mask = None if filled.attention_mask is None else str(filled.attention_mask)
    for reference in filled.references:
        check_share("reference strength", reference.strength)
    return tuple(
        ReferenceUse(
            str(r.path),
            float(r.strength),
            factors["reference_downscale_factor"],
            factors["reference_temporal_scale_factor"],
            float(filled.attention_strength),
            mask,
        )
        for r in filled.references
    )


def _factor(lora: object, key: str, text: str) -> int:
    if not str(text).isdigit() or int(text) < 1:
        raise RequestError(f"LoRA {lora}: its metadata says {key} = {text!r}; a whole number from 1 is needed.")
    return int(text)


def notes(filled: Filled, shape: VideoShape) -> tuple[str, ...]:
    found = [] if filled.source is None else [*filled.source.notes, *_other_rate(filled, shape)]
    if shape.seconds > MAX_SECONDS:
        found.append(
            f"{shape.seconds:.1f} s is longer than the {MAX_SECONDS:g} s the model was trained for; expect drift"
        )
    if filled.audio_file is not None and filled.origin.get("audio_cfg_scale") == "given":
        found.append("audio guidance has no effect: the audio is given, not generated")
    return tuple(found)


def _other_rate(filled: Filled, shape: VideoShape) -> list[str]:
    own, fps = filled.source.fps if filled.source else 0, exact_fps(shape.fps)
    if not own or own == fps:
        return []
    return [f"{filled.request.video}: its {float(own):g} fps are read as {float(fps):g} fps, by time"]


def assemble(
    filled: Filled, card: ModelCard, stages: tuple[StagePlan, ...], audio_from: int | str | None, **more: Any
) -> Plan:
    """The plan around a recipe's stages."""
    tiling = {
        "mode": filled.tiling,
        **{k: getattr(filled, k) for k in _TILE_SIZES if getattr(filled, k) is not None},
    }
    last = stages[-1]
    scale = card.traits.video_scale
    tiles = tile_size(tiling, last.shape.latent(scale), scale)
    if tiles is not None:
        tiles.check(scale)
    guided = any("uncond" in s.passes for s in stages)
    upscaler = None if filled.spatial_upscaler is None else str(Path(filled.spatial_upscaler))
    return Plan(
        pipeline=filled.pipeline,
        model=card.name,
        prompt=filled.prompt.strip(),
        negative_prompt=filled.negative_prompt if guided else None,
        seed=filled.seed,
        shape=last.shape,
        stages=stages,
        audio_from=audio_from,
        tiling=tiling,
        max_batch_size=filled.max_batch_size,
        audio_input=audio_input(filled),
        enhance=_enhancement(filled),
        spatial_upscaler=upscaler,
        request=filled.request.given(),
        origin=filled.origin,
        **{"notes": notes(filled, last.shape), **more},
    )


def _enhancement(filled: Filled) -> EnhanceUse | None:
    if not filled.enhance_prompt:
        return None
    image = str(filled.images[0].path) if filled.images else None
    return EnhanceUse(filled.max_tokens, float(filled.temperature), image)


_TILE_SIZES = ("tile_size", "tile_overlap", "tile_frames", "tile_frame_overlap")
