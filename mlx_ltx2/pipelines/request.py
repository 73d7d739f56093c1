"""What the user wants. A field that was not given is None; `presets` fills it once the model is known."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mlx_ltx2.errors import RequestError

if TYPE_CHECKING:
    from mlx_ltx2.media.video import MediaInfo
from mlx_ltx2.pipelines.spellings import translate
from mlx_ltx2.pipelines.text import valid_text

PathLike = str | Path


@dataclass(frozen=True)
class ImageInput:
    """An image that a pixel frame must meet.

    path: file. frame: pixel frame, 0 the first, -1 the last. strength: 0..1, 1 keeps the image as it is.
    crf: H.264 quality that the image passes through before encoding (0 = none, None = the model's default);
    the model was trained on such frames and moves more willingly from them.
    """

    path: PathLike
    frame: int = 0
    strength: float | None = None
    crf: int | None = None


@dataclass(frozen=True)
class LoraInput:
    """path: file, folder or hub id, REPO::FILE for one file of a repo. strength: any number. stage: 0 = every stage."""

    path: PathLike
    strength: float = 1.0
    stage: int = 0


@dataclass(frozen=True)
class ReferenceInput:
    """A reference video of an IC-LoRA. strength: 0..1, how firmly its tokens are kept."""

    path: PathLike
    strength: float = 1.0


@dataclass(frozen=True)
class Request:
    """Everything that may be asked of a run. None means: the pipeline's default.

    Sizes are those of the finished clip, in pixels; times are seconds; guidance scales follow the official names
    (1 turns classifier-free and modality guidance off, 0 turns spatio-temporal guidance and rescaling off).
    """

    prompt: str = ""
    pipeline: str | None = None
    negative_prompt: str | None = None
    height: int | None = None
    width: int | None = None
    num_frames: int | None = None
    fps: float | None = None
    seed: int | None = None
    steps: int | None = None
    sigmas: tuple[float, ...] | None = None
    stage_2_sigmas: tuple[float, ...] | None = None
    sampler: str | None = None
    denoising_strength: float | None = None
    # guidance
    cfg_scale: float | None = None
    audio_cfg_scale: float | None = None
    cfg_rescale: float | None = None
    audio_cfg_rescale: float | None = None
    stg_scale: float | None = None
    audio_stg_scale: float | None = None
    stg_blocks: tuple[int, ...] | None = None
    audio_stg_blocks: tuple[int, ...] | None = None
    modality_scale: float | None = None
    audio_modality_scale: float | None = None
    skip_step: int | None = None
    audio_skip_step: int | None = None
    apg: bool | None = None
    apg_eta: float | None = None
    apg_norm_threshold: float | None = None
    max_batch_size: int | None = None
    force_guidance: bool = False
    # images
    images: tuple[ImageInput, ...] = ()
    image_strength: float | None = None
    image_crf: int | None = None
    image_mode: str | None = None
    # audio
    audio: bool = True
    audio_file: PathLike | None = None
    audio_start_time: float | None = None
    audio_max_duration: float | None = None
    audio_strength: float | None = None
    audio_track: int | None = None
    # video to video
    video: PathLike | None = None
    start_time: float | None = None
    end_time: float | None = None
    retake_video: bool = True
    retake_audio: bool = True
    extend_frames: int | None = None
    extend_before: bool = False
    references: tuple[ReferenceInput, ...] = ()
    attention_mask: PathLike | None = None
    attention_strength: float | None = None
    skip_stage_2: bool = False
    # weights
    loras: tuple[LoraInput, ...] = ()
    distilled_lora: LoraInput | None = None
    lora_strength_stage_1: float | None = None
    lora_strength_stage_2: float | None = None
    spatial_upscaler: PathLike | None = None
    # text
    enhance_prompt: bool = False
    max_tokens: int | None = None
    temperature: float | None = None
    # decoding
    tiling: str | None = None
    tile_size: int | None = None
    tile_overlap: int | None = None
    tile_frames: int | None = None
    tile_frame_overlap: int | None = None

    @classmethod
    def from_options(cls, options: Mapping[str, Any]) -> Request:
        """A request from keyword options; conveniences such as image="a.png" or audio_path=... are understood.

        Raises: RequestError for an option that does not exist, with the nearest one that does.
        """
        values = _normalised(options)
        for name in ("prompt", "negative_prompt"):
            if isinstance(values.get(name), str):
                values[name] = valid_text(name.replace("_", " "), values[name])
        return cls(**values)

    def given(self) -> dict[str, Any]:
        """The fields that differ from an empty request: what the user really asked for."""
        return {f.name: getattr(self, f.name) for f in fields(self) if getattr(self, f.name) != f.default}

    def with_values(self, **values: Any) -> Request:
        return replace(self, **values)

    def files(self) -> tuple[Path, ...]:
        """Everything that it names to be read: files, folders, and hub ids, which are neither."""
        inputs = (*self.images, *self.references, *self.loras, self.distilled_lora)
        named: list[Any] = [item.path for item in inputs if item is not None]
        named += [self.audio_file, self.video, self.attention_mask, self.spatial_upscaler]
        return tuple(Path(str(path).split("::", 1)[0]) for path in named if isinstance(path, str | Path))


ALIASES = {
    "frame_rate": "fps",
    "num_inference_steps": "steps",
    "guidance_scale": "cfg_scale",
    "cfg_guidance_scale": "cfg_scale",
    "video_cfg_guidance_scale": "cfg_scale",
    "audio_guidance_scale": "audio_cfg_scale",
    "audio_cfg_guidance_scale": "audio_cfg_scale",
    "guidance_rescale": "cfg_rescale",
    "video_rescale_scale": "cfg_rescale",
    "audio_guidance_rescale": "audio_cfg_rescale",
    "audio_rescale_scale": "audio_cfg_rescale",
    "video_stg_guidance_scale": "stg_scale",
    "audio_stg_guidance_scale": "audio_stg_scale",
    "video_stg_blocks": "stg_blocks",
    "spatio_temporal_guidance_blocks": "stg_blocks",
    "a2v_guidance_scale": "modality_scale",
    "v2a_guidance_scale": "audio_modality_scale",
    "video_skip_step": "skip_step",
    "audio_path": "audio_file",
    "video_path": "video",
    "retake_source": "video",
    "spatial_upsampler_path": "spatial_upscaler",
    "noise_scale": "denoising_strength",
    "prompt_max_new_tokens": "max_tokens",
    "stage2_lora_config": "distilled_lora",
    "stage2_lora_strength": "lora_strength_stage_2",
    "conditioning_attention_mask": "attention_mask",
    "conditioning_attention_strength": "attention_strength",
}
"""Spellings of the official tools, diffusers, DiffSynth and mlx-video: their command lines and call signatures."""

_TUPLES = {"sigmas", "stage_2_sigmas", "stg_blocks", "audio_stg_blocks"}


def _normalised(options: Mapping[str, Any]) -> dict[str, Any]:
    known = {f.name for f in fields(Request)}
    values: dict[str, Any] = {}
    for name, value in translate(options).items():
        target = ALIASES.get(name, name)
        if target in ("image", "lora", "reference"):
            values[f"{target}s"] = (*values.get(f"{target}s", ()), *_several(target, value))
        elif target in ("images", "loras", "references"):
            values[target] = (*values.get(target, ()), *_several(target[:-1], value))
        elif target == "distilled_lora":
            values[target] = None if value is None else _one("lora", value)
        elif target in known:
            values[target] = tuple(value) if target in _TUPLES and value is not None else value
        else:
            near = difflib.get_close_matches(name, [*known, *ALIASES], n=1)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            raise RequestError(f"there is no option {name!r}{hint}")
    return values


_KINDS = {"image": ImageInput, "lora": LoraInput, "reference": ReferenceInput}


def _several(kind: str, value: Any) -> tuple[Any, ...]:
    if value is None:
        return ()
    if isinstance(value, list):
        return tuple(_one(kind, v) for v in value)
    if isinstance(value, tuple) and value and not isinstance(value[0], str | Path):
        return tuple(_one(kind, v) for v in value)
    return (_one(kind, value),)


def _one(kind: str, value: Any) -> Any:
    cls = _KINDS[kind]
    if isinstance(value, cls):
        return value
    if isinstance(value, str | Path):
        return cls(value)
    if isinstance(value, tuple):
        return cls(*value)
    if isinstance(value, Mapping):
        settings = [f.name for f in fields(cls)]
        for name in value:
            if name not in settings:
                raise RequestError(f"{kind} {value!r}: there is no setting {name!r}; use {', '.join(settings)}.")
        if "path" in value:
            return cls(**value)
    raise RequestError(f"{kind} {value!r} is no path; give a path, or (path, ...) with its settings.")


@dataclass(frozen=True)
class Filled:
    """A request without gaps: `value(name)` never returns an unset default. `origin` says where each came from.

    source: what the clip says that `request.video` names.
    """

    request: Request
    values: Mapping[str, Any]
    origin: Mapping[str, str] = field(default_factory=dict)
    source: MediaInfo | None = None

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_") or name in ("request", "values", "origin", "source"):
            raise AttributeError(name)
        values = self.__dict__["values"]
        return values[name] if name in values else getattr(self.__dict__["request"], name)
