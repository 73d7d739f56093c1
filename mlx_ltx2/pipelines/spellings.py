"""Call parameters of diffusers and DiffSynth that are more than another name for one of ours.

Sources: the call signatures of diffusers 0.42.1 `LTX2Pipeline`, `LTX2ConditionPipeline`, `LTX2InContextPipeline` and of
DiffSynth-Studio's `LTX2AudioVideoPipeline`. Plain renamings stand in `request.ALIASES`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from mlx_ltx2.errors import RequestError

WITHOUT_EFFECT = frozenset(
    {
        "audio_sample_rate",
        "clear_lora_before_state_two",
        "decode_noise_scale",
        "decode_timestep",
        "in_context_downsample_factor",
        "max_sequence_length",
        "progress_bar_cmd",
        "rand_device",
        "return_dict",
        "use_cross_timestep",
    }
)
"""Parameters of machinery that is not ours: where noise is drawn, what is returned, what a LoRA says by itself."""

ONLY = {"num_videos_per_prompt": 1, "attention_kwargs": None, "timesteps": None, "prompt_embeds": None,
        "negative_prompt_embeds": None, "prompt_attention_mask": None, "stage2_spatial_upsample_factor": 2}  # fmt: skip
"""Parameters that are accepted with this one value, which is what happens anyway."""

LATENT_FRAMES = 8


def translate(options: Mapping[str, Any]) -> dict[str, Any]:
    """Options with those of other programs put into our words.

    Raises: RequestError for a value that has no counterpart here.
    """
    ours: dict[str, Any] = {}
    for name, value in options.items():
        if name in WITHOUT_EFFECT:
            continue
        if name in ONLY:
            if value is not None and not (isinstance(value, int) and value == ONLY[name]):
                raise RequestError(f"{name} {value!r} is not supported; leave it out.")
        elif name in _RULES:
            ours |= _RULES[name](value, options)
        else:
            ours[name] = value
    return ours


def _generator(value: Any, _: Mapping[str, Any]) -> dict[str, Any]:
    if value is None:
        return {}
    return {"seed": value if isinstance(value, int) else int(value.initial_seed())}


def _input_images(value: Any, options: Mapping[str, Any]) -> dict[str, Any]:
    images = list(value) if isinstance(value, list | tuple) else [value]
    frames = options.get("input_images_indexes") or ([0] if len(images) == 1 else None)
    strength = options.get("input_images_strength", 1.0)
    if frames is None or len(frames) != len(images):
        raise RequestError(f"{len(images)} input_images need as many input_images_indexes.")
    return {"images": [(image, frame, strength) for image, frame in zip(images, frames, strict=True)]}


def _conditions(value: Any, _: Mapping[str, Any]) -> dict[str, Any]:
    """diffusers counts latent frames: 0 is the first frame, n the frame 8 (n - 1) + 1, negative ones from the end."""
    images = []
    for item in value if isinstance(value, list | tuple) else [value]:
        get = item.get if isinstance(item, Mapping) else lambda name, default, item=item: getattr(item, name, default)
        index = get("index", 0)
        frame = index if index <= 0 else LATENT_FRAMES * (index - 1) + 1
        if index < -1:
            raise RequestError(f"condition at latent index {index}: of negative ones only -1 has a counterpart.")
        images.append((get("frames", None), frame, get("strength", 1.0)))
    return {"images": images}


def _references(value: Any, _: Mapping[str, Any]) -> dict[str, Any]:
    return {"references": list(value) if isinstance(value, list | tuple) else [value]}


def _retake_video(value: Any, options: Mapping[str, Any]) -> dict[str, Any]:
    if isinstance(value, bool):
        return {"retake_video": value}
    return {"video": value} if value is not None else {}


def _retake_audio(value: Any, options: Mapping[str, Any]) -> dict[str, Any]:
    if isinstance(value, bool):
        return {"retake_audio": value}
    if value is None or options.get("retake_video") is not None:
        return {}  # the clip that is retaken brings its own sound
    return {"audio_file": value}


def _regions(value: Any, _: Mapping[str, Any]) -> dict[str, Any]:
    if not value:
        return {}
    if len(value) != 1:
        raise RequestError(f"{len(value)} regions were given; retake one at a time.")
    return {"pipeline": "retake", "start_time": value[0][0], "end_time": value[0][1]}


def _switch(**when_true: Any) -> Callable[[Any, Mapping[str, Any]], dict[str, Any]]:
    return lambda value, _: dict(when_true) if value else {}


def _nothing(value: Any, options: Mapping[str, Any]) -> dict[str, Any]:
    return {}


def _two_stage(value: Any, options: Mapping[str, Any]) -> dict[str, Any]:
    return {"pipeline": "two-stage"} if value and not options.get("use_distilled_pipeline") else {}


def _distilled(value: Any, options: Mapping[str, Any]) -> dict[str, Any]:
    """With a video in context the distilled pipeline is the one that is steered by references."""
    if not value:
        return {}
    return {"pipeline": "ic-lora" if options.get("in_context_videos") else "distilled"}


def _tiled(value: Any, _: Mapping[str, Any]) -> dict[str, Any]:
    return {} if value else {"tiling": "none"}


def _tile(name: str) -> Callable[[Any, Mapping[str, Any]], dict[str, Any]]:
    return lambda value, options: {name: value} if options.get("tiled", True) else {}


_RULES: dict[str, Callable[[Any, Mapping[str, Any]], dict[str, Any]]] = {
    "generator": _generator,
    "input_images": _input_images,
    "input_images_indexes": _nothing,
    "input_images_strength": _nothing,
    "conditions": _conditions,
    "reference_conditions": _references,
    "in_context_videos": _references,
    "retake_video": _retake_video,
    "retake_video_regions": _regions,
    "retake_audio": _retake_audio,
    "retake_audio_regions": _nothing,
    "use_two_stage_pipeline": _two_stage,
    "use_distilled_pipeline": _distilled,
    "enable_prompt_enhancement": _switch(enhance_prompt=True),
    "tiled": _tiled,
    "tile_size_in_pixels": _tile("tile_size"),
    "tile_overlap_in_pixels": _tile("tile_overlap"),
    "tile_size_in_frames": _tile("tile_frames"),
    "tile_overlap_in_frames": _tile("tile_frame_overlap"),
}

NAMES: Iterable[str] = (*WITHOUT_EFFECT, *ONLY, *_RULES)
"""Every name that `translate` understands."""
