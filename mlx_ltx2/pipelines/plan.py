"""A Plan is what will run, decided before anything loads; it is also the record that a finished clip carries."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from mlx_ltx2.diffusion.guidance import OFF, GuidanceParams
from mlx_ltx2.shapes import AudioScale, VideoScale, VideoShape
from mlx_ltx2.stages.plan import EnhanceUse, Sizes, SourceUse, StagePlan


@dataclass(frozen=True)
class Plan:
    """pipeline, prompts, seed and stages of a run, ready for JSON.

    request: the options as they were given, from which `rerun` makes the plan again.
    inputs: path -> SHA-256 of the files that it reads (`inputs.input_hashes`), known once it runs.
    audio_from: number of the stage whose audio ships, "input" for the given recording, "source" for a retaken clip's
    own track, or None. enhanced_prompt: what the language model wrote, known once it ran.
    memory: predicted bytes by component and phase and what is streamed (`budget.MemoryPlan`), known once the machine
    is; after a run also "actual" peaks by phase.
    origin: field -> "given" or where its default came from.
    """

    pipeline: str
    model: str
    prompt: str
    negative_prompt: str | None
    seed: int
    shape: VideoShape
    stages: tuple[StagePlan, ...]
    audio_from: int | str | None
    tiling: Mapping[str, Any]
    max_batch_size: int = 1
    audio_input: Mapping[str, Any] | None = None
    video_input: SourceUse | None = None
    enhance: EnhanceUse | None = None
    enhanced_prompt: str | None = None
    spatial_upscaler: str | None = None
    video_out: bool = True
    memory: Mapping[str, Any] = field(default_factory=dict)
    request: Mapping[str, Any] = field(default_factory=dict)
    inputs: Mapping[str, str] = field(default_factory=dict)
    origin: Mapping[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    @property
    def forwards(self) -> int:
        return sum(s.forwards for s in self.stages)

    @property
    def loras(self) -> tuple[str, ...]:
        """Every LoRA that changes something, as it was named, each once."""
        return tuple(dict.fromkeys(use.path for stage in self.stages for use in stage.loras if use.strength))

    def to_dict(self) -> dict[str, Any]:
        return dataclasses.asdict(self)

    def to_json(self) -> str:
        return as_json({**self.to_dict(), "request": None, "inputs": None})


def as_json(value: Any) -> str:
    """Compact JSON of plain values, dataclasses and paths."""

    def plain(item: Any) -> Any:
        return dataclasses.asdict(item) if dataclasses.is_dataclass(item) and not isinstance(item, type) else str(item)

    return json.dumps(value, default=plain, ensure_ascii=False, separators=(",", ":"))


def describe(plan: Plan, video: VideoScale = VideoScale(), audio: AudioScale = AudioScale()) -> str:
    """The plan as a page of text."""
    clip = plan.shape
    lines = [
        f"pipeline  {plan.pipeline} on {plan.model}",
        f"clip      {clip.width}x{clip.height}, {clip.frames} frames at {clip.fps:g} fps, {clip.seconds:.2f} s",
        f"seed      {plan.seed}",
        f"prompt    {plan.prompt}",
    ]
    if plan.enhance:
        lines.append(f"          written out by the language model, at most {plan.enhance.max_tokens} tokens")
    if plan.video_input:
        lines.append(f"source    {_describe_source(plan.video_input)}")
    if plan.negative_prompt:
        lines.append(f"negative  {plan.negative_prompt}")
    for number, stage in enumerate(plan.stages, 1):
        lines += _describe_stage(number, stage, video, audio)
    lines.append(f"audio     {_describe_audio(plan)}")
    lines.append(f"decode    {plan.tiling.get('mode')}")
    lines.append(f"forwards  {plan.forwards} in all")
    lines += [f"note      {note}" for note in plan.notes]
    for source in sorted(set(plan.origin.values())):
        names = [name for name, origin in plan.origin.items() if origin == source]
        lines.append(f"{'given' if source == 'given' else 'from ' + source}: {', '.join(names)}")
    return "\n".join(lines)


def _describe_source(use: SourceUse) -> str:
    first, end = use.made
    made = f"frames {first} to {end - 1} are made anew" if first < end else "every frame is kept"
    return f"{use.path}, {use.frames} frames from frame {use.at} on; {made}"


def _describe_stage(number: int, stage: StagePlan, video: VideoScale, audio: AudioScale) -> list[str]:
    sizes = Sizes.of(stage.shape, video, audio)
    head = f"stage {number}   {stage.name}: "
    if stage.upsample:
        head += f"{stage.upsample} upsampler, then "
    head += f"{len(stage.sigmas) - 1} steps of {stage.sampler}"
    tokens = []
    if stage.video:
        tokens.append(f"{stage.shape.width}x{stage.shape.height} = {sizes.latent.tokens} video tokens")
    if stage.audio:
        tokens.append(f"{sizes.audio_latents} audio tokens")
    lines = [
        f"{head}; {', '.join(tokens)}",
        f"          passes {' + '.join(stage.passes)}, {stage.forwards} forwards",
        f"          sigmas {' '.join(f'{s:.6g}' for s in stage.sigmas)}",
    ]
    for name, stream in (("video", stage.video), ("audio", stage.audio)):
        if stream and stream.guidance and stream.guidance != OFF:
            lines.append(f"          {name} guidance {_describe_guidance(stream.guidance)}")
    lines += [f"          image {i.path} at frame {i.frame}, strength {i.strength:g}, {i.mode}" for i in stage.images]
    lines += [f"          reference {r.path}, strength {r.strength:g}" for r in stage.references]
    lines += [f"          LoRA {lora.path}, strength {lora.strength:g}" for lora in stage.loras]
    return lines


def _describe_guidance(g: GuidanceParams) -> str:
    return f"cfg {g.cfg:g}, stg {g.stg:g} {list(g.stg_blocks or ())}, modality {g.modality:g}, rescale {g.rescale:g}"


def _describe_audio(plan: Plan) -> str:
    if plan.audio_from is None:
        return "none"
    if isinstance(plan.audio_from, str):
        return {"input": "the given recording, unchanged", "source": "the source clip's own track"}[plan.audio_from]
    return f"generated in stage {plan.audio_from + 1}"
