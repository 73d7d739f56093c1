"""What a stage is told to do: the part of a Plan that stations read."""

from __future__ import annotations

from dataclasses import dataclass

from mlx_ltx2.diffusion.guidance import OFF, GuidanceParams, needed_passes
from mlx_ltx2.diffusion.loop import planned_forwards
from mlx_ltx2.diffusion.noise import NoiseSource
from mlx_ltx2.diffusion.steppers import make_stepper
from mlx_ltx2.shapes import AudioScale, LatentShape, VideoScale, VideoShape, audio_latent_frames


@dataclass(frozen=True)
class StreamPlan:
    """How one stream enters a stage.

    start: "noise", "previous" (the stage before), "input" (an encoded file) or "joined" (noise around a source clip,
    whose latents are held where it lies). noise_scale: share of noise mixed in.
    frozen: read only, at sigma 0. strength: how firmly an input is kept when it is not frozen (1 - mask value).
    region: [start, end) in seconds that is generated anew while the rest is kept. guidance: None = one plain pass.
    """

    start: str = "noise"
    noise_scale: float = 1.0
    frozen: bool = False
    strength: float = 0.0
    region: tuple[float, float] | None = None
    guidance: GuidanceParams | None = None


@dataclass(frozen=True)
class ImageUse:
    """path: file. frame: pixel frame. mode: "replace" overwrites latent tokens, "keyframe" appends some."""

    path: str
    frame: int
    strength: float
    crf: int
    mode: str


@dataclass(frozen=True)
class ReferenceUse:
    """A reference video: its tokens are appended with positions scaled by the LoRA's two factors."""

    path: str
    strength: float
    downscale: int = 1
    temporal_scale: int = 1
    attention_strength: float = 1.0
    mask: str | None = None


@dataclass(frozen=True)
class SourceUse:
    """The clip that a run starts from.

    frames: how many of its frames are used. at: the result's frame that its first one becomes. has_audio: it has
    sound. made: [first, end) of the result's frames that are decoded, all others are the source's own.
    sound: [start, end) in seconds of the result whose sound is new beside the source's own; None: all of it is.
    track: its sound track, 1 is the first; None for the one that players choose.
    fps: the rate that its file is read at; 0 is its own.
    """

    path: str
    frames: int
    has_audio: bool
    made: tuple[int, int]
    at: int = 0
    sound: tuple[float, float] | None = None
    track: int | None = None
    fps: float = 0


@dataclass(frozen=True)
class EnhanceUse:
    """How the prompt is written out first. image: an image that the clip starts from, or None."""

    max_tokens: int
    temperature: float
    image: str | None = None


@dataclass(frozen=True)
class LoraUse:
    path: str
    strength: float


@dataclass(frozen=True)
class StagePlan:
    """One denoising stage. `upsample` names the latent upsampler that runs before it, or None."""

    name: str
    shape: VideoShape
    sigmas: tuple[float, ...]
    sampler: str
    video: StreamPlan | None
    audio: StreamPlan | None
    upsample: str | None = None
    images: tuple[ImageUse, ...] = ()
    references: tuple[ReferenceUse, ...] = ()
    loras: tuple[LoraUse, ...] = ()

    @property
    def guidance(self) -> tuple[GuidanceParams | None, GuidanceParams | None]:
        """Settings of video and audio: None for an absent stream, off for one that is not guided."""
        video, audio = (None if s is None else s.guidance or OFF for s in (self.video, self.audio))
        return video, audio

    @property
    def passes(self) -> tuple[str, ...]:
        """The forward passes of one evaluation, in the order in which they run."""
        return needed_passes(*self.guidance)

    @property
    def forwards(self) -> int:
        """Forward passes of the whole stage."""
        return planned_forwards(self.sigmas, make_stepper(self.sampler, NoiseSource(0)), *self.guidance)


@dataclass(frozen=True)
class Sizes:
    """Token counts of a stage on a model's grids."""

    latent: LatentShape
    audio_latents: int

    @classmethod
    def of(cls, shape: VideoShape, video: VideoScale, audio: AudioScale) -> Sizes:
        return cls(shape.latent(video), audio_latent_frames(shape.seconds, audio))
