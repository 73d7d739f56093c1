"""Enlarge an image or a clip in space, in time or both: VAE encode, latent upsampler, refine if asked, VAE decode."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import mlx.core as mx

from mlx_ltx2 import memory
from mlx_ltx2.diffusion.noise import NoiseSource
from mlx_ltx2.diffusion.schedules import STAGE_2_SIGMAS
from mlx_ltx2.diffusion.state import StatePair, result_video, video_state
from mlx_ltx2.diffusion.tiles import TILING_MODES
from mlx_ltx2.errors import LTX2Error, RequestError, ShapeError
from mlx_ltx2.generate import DEFAULT_MODEL, Decoded, LTX2Pipeline, Output, not_written
from mlx_ltx2.library import DEMO
from mlx_ltx2.media.audio import read_audio
from mlx_ltx2.media.estimate import clip_bytes
from mlx_ltx2.media.files import VIDEO_SUFFIXES
from mlx_ltx2.media.frame_rate import exact_fps
from mlx_ltx2.media.images import load_image
from mlx_ltx2.media.outputs import check_writable
from mlx_ltx2.media.pictures import read_picture
from mlx_ltx2.media.sound_track import probe_sound
from mlx_ltx2.media.video import probe, read_frames
from mlx_ltx2.media.writer import FITTED_SOUND
from mlx_ltx2.pipelines.plan import as_json
from mlx_ltx2.pipelines.text import valid_text
from mlx_ltx2.progress import Progress, SilentProgress, make_progress
from mlx_ltx2.shapes import LatentShape, VideoShape, check_video_shape
from mlx_ltx2.stages.decode_video import decode_video, decode_ways
from mlx_ltx2.stages.denoise import Guided, denoise, started
from mlx_ltx2.stages.encode_media import encode_clip
from mlx_ltx2.stages.encode_text import encode_text
from mlx_ltx2.stages.upsample import cropped, padded, upsample
from mlx_ltx2.stages.write import Clip, copy_track, stream_clip
from mlx_ltx2.version import VERSION
from mlx_ltx2.weights.networks import UPSAMPLERS, Networks

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff", ".heic", ".avif")
SPATIAL = {2.0: "spatial-x2", 1.5: "spatial-x1.5"}


@dataclass(frozen=True)
class UpscalePlan:
    """What an enlargement does.

    kinds: upsamplers in order. original, shape: of the source and of the result. sigmas: of the refining stage, or ().
    """

    source: str
    model: str
    still: bool
    has_audio: bool
    kinds: tuple[str, ...]
    original: VideoShape
    shape: VideoShape
    sigmas: tuple[float, ...]
    prompt: str | None
    seed: int
    tiling: str
    video_out: bool = True
    audio_track: int | None = None
    notes: tuple[str, ...] = ()


def plan_upscale(
    source: str | Path,
    model: str,
    *,
    scale: float | None = None,
    temporal: bool = False,
    refine: bool = False,
    prompt: str | None = None,
    seed: int = 10,
    tiling: str = "auto",
    even: bool = True,
    audio_track: int | None = None,
) -> UpscalePlan:
    """What `upscale` would do; looks at every picture of the source. even: the result is H.264, which wants even sides.
    audio_track: the sound that is kept, 1 is the first; None for the one that players choose.

    Raises: RequestError, MediaError.
    """
    prompt = None if prompt is None else valid_text("prompt", prompt)
    scale = (None if temporal else 2.0) if scale is None else float(scale)
    if scale is not None and scale not in SPATIAL:
        raise RequestError(f"scale {scale:g} is not possible; use {' or '.join(f'{s:g}' for s in SPATIAL)}.")
    if refine != (prompt is not None) or (prompt is not None and not prompt.strip()):
        raise RequestError("refining and a prompt belong together: give --refine --prompt TEXT, or neither.")
    if tiling not in TILING_MODES:
        raise RequestError(f"tiling {tiling!r} is not known; use one of {', '.join(TILING_MODES)}.")
    if not isinstance(seed, int) or not 0 <= seed < 2**63:
        raise RequestError(f"seed {seed!r} is no whole number from 0 to 2^63-1.")
    original, still, has_audio, notes = _measured(Path(source))
    if has_audio:
        probe_sound(source, audio_track)
    elif audio_track is not None:
        raise RequestError(f"audio_track {audio_track} is asked for, and {source} has no sound; drop it.")
    if temporal and still:
        raise RequestError(f"{source} is one image; it has no time to be doubled. Drop --temporal.")
    step = 2 if even else 1
    height, width = (int(side * (scale or 1)) // step * step for side in (original.height, original.width))
    shape = replace(original, height=height, width=width)
    if temporal:
        shape = replace(shape, frames=2 * shape.frames - 1, fps=2 * shape.fps)
    kinds = (*([SPATIAL[scale]] if scale else []), *(["temporal-x2"] if temporal else []))
    sigmas = STAGE_2_SIGMAS if refine else ()
    return UpscalePlan(
        str(source), model, still, has_audio, kinds, original, shape, sigmas, prompt, seed, tiling,
        audio_track=audio_track, notes=notes,
    )  # fmt: skip


def _measured(source: Path) -> tuple[VideoShape, bool, bool, tuple[str, ...]]:
    """Shape, whether it is a still, whether it has sound, what reading it changes."""
    if source.suffix.lower() in IMAGE_SUFFIXES:
        picture = read_picture(source)
        return VideoShape(1, *picture.pixels.shape[:2]), True, False, picture.notes
    info = probe(source, count=True)
    if not info.fps or not info.frames:
        raise ShapeError(f"{source} does not say its frame rate or length; write it anew as .mp4.")
    shape = VideoShape(info.frames, info.height, info.width, float(info.fps))
    return shape, False, info.has_audio, info.notes


def upscale(
    source: str | Path,
    output: str | Path | None = None,
    *,
    model: str | Path = DEFAULT_MODEL,
    text_encoder: str | Path | None = None,
    crf: float = 19,
    keep_frames: bool = True,
    overwrite: bool = False,
    progress: Progress | str | None = None,
    **options: Any,
) -> Clip:
    """Enlarge an image or a clip.

    source: .png, .jpg and other stills, or a video of any size and length. output: file to write. scale: 2 (default)
    or 1.5. temporal: double the frame rate, F frames become 2F - 1; alone it leaves the size. refine, prompt: run
    the three steps of a second stage on the enlarged latents of the picture. seed: of their noise. tiling: of the
    decoder. audio_track: which sound is kept, 1 is the first; None for the one that players choose. overwrite: replace
    a file that this program did not make.
    Returns the clip; its frames are None if keep_frames is False.
    Raises: RequestError, MediaError, WeightsError, ResourceError.
    """
    shown = make_progress(progress) if isinstance(progress, str) else progress or SilentProgress()
    target = None if output is None else Path(output)
    even = target is not None and target.suffix.lower() in VIDEO_SUFFIXES
    plan = plan_upscale(source, str(model), even=even, **options)
    if not 0 <= crf <= 51:
        raise RequestError(f"crf {crf} is outside 0 (lossless) to 51; 19 is the default.")
    wanted = Output(target, crf=crf, keep_frames=keep_frames, overwrite=overwrite)
    inputs = [Path(source), *(Path(name) for name in (model, text_encoder) if name is not None and name != DEMO)]
    if target is not None:
        wanted.check(inputs)
        check_writable(
            target, num_frames=plan.shape.frames, bytes_needed=_bytes_needed(plan, target, crf), overwrite=overwrite
        )
    pipeline = LTX2Pipeline.from_pretrained(model, text_encoder=text_encoder, progress=shown)
    run = _Upscale(plan, pipeline.networks, shown)
    run.check()
    with wanted.claimed(), memory.limits():
        clip = run(wanted)
    clip.inputs = inputs
    clip.peaks = dict(run.report.peaks)
    return clip


def _bytes_needed(plan: UpscalePlan, target: Path, crf: float) -> int:
    shape = plan.shape
    return clip_bytes(target.suffix, shape.frames, shape.height, shape.width, shape.fps, crf, plan.has_audio)


class _Upscale:
    """One enlargement: stations in a row, each owning its network while it works."""

    def __init__(self, plan: UpscalePlan, networks: Networks, progress: Progress):
        self.plan, self.networks, self.progress = plan, networks, progress
        self.scale = networks.traits.video_scale
        self.report = memory.PeakReport()

    def check(self) -> None:
        names = ["video_encoder", "video_decoder", *(UPSAMPLERS[kind] for kind in self.plan.kinds)]
        self.networks.check(*names, *(("transformer", "text_encoder", "text_projections") if self.plan.sigmas else ()))
        if self.plan.sigmas:
            self._loras()

    def __call__(self, output: Output) -> Clip:
        plan = self.plan
        for note in plan.notes:
            self.progress.note(note)
        latent = self._encoded()
        for kind in plan.kinds:
            load = partial(self.networks.load_upsampler, kind)
            latent = upsample(latent, load, self.networks.load_statistics, self.report)
        if plan.sigmas:
            latent = self._refined(latent)
        seconds = float(plan.original.frames / exact_fps(plan.original.fps))
        sound = read_audio(plan.source, max_seconds=seconds, track=plan.audio_track) if plan.has_audio else None
        clip = Clip(plan.shape.fps, plan, audio=sound, latents=latent)
        clip.metadata = {"tool": f"mlx-ltx2 {VERSION}", "model": plan.model, "upscale": as_json(asdict(plan))}
        hashes = self.networks.lora_hashes(path for path, _ in self._loras()) if plan.sigmas else {}
        if hashes:
            clip.metadata = {**clip.metadata, "loras": as_json(hashes)}
        self._written(clip, output)
        return clip

    def _encoded(self) -> mx.array:
        plan = self.plan
        fps = exact_fps(plan.original.fps)
        frames = load_image(plan.source)[None] if plan.still else read_frames(plan.source, fps=fps)
        if len(frames) != plan.original.frames:
            raise ShapeError(f"{plan.source} has {len(frames)} frames and says it has {plan.original.frames}.")
        grid = padded(frames, self.scale, 2 if "spatial-x1.5" in plan.kinds else 1)
        if grid.shape != frames.shape:
            self.progress.note(
                f"{plan.source} was filled up from {frames.shape[2]}x{frames.shape[1]}, {len(frames)} frames to "
                f"{grid.shape[2]}x{grid.shape[1]}, {len(grid)} frames, the model's grid; the result is cut back."
            )
        with (
            memory.phase("encode media", self.report),
            self.progress.phase("encode media", 1, "input") as advance,
            memory.resident(lambda: self.networks.load("video_encoder")) as encoder,
        ):
            latent = encode_clip(encoder, grid, self.scale)
            advance(1)
            del encoder
        return latent

    def _loras(self) -> Sequence[tuple[str, float]]:
        model = self.networks.model
        if model.traits.distilled:
            return ()
        if not model.loras:
            raise RequestError(
                f"{self.plan.model} is a dev model without its distilled LoRA; refine with a distilled one."
            )
        return ((str(model.loras[0]), 1.0),)

    def _refined(self, latent: mx.array) -> mx.array:
        plan, networks = self.plan, self.networks
        assert plan.prompt is not None
        if plan.has_audio:
            self.progress.note("the picture alone is refined; the sound stays as it is")
        grid = LatentShape(*latent.shape[1:4])
        check_video_shape(grid.pixels(plan.shape.fps, self.scale), two_stage=False, scale=self.scale)
        context = encode_text(
            [plan.prompt],
            networks.load_text_encoder,
            lambda: networks.load("text_projections"),
            self.progress,
            self.report,
        )[0]
        noise = NoiseSource(plan.seed, 1)
        with (
            memory.phase("denoise refine", self.report),
            self.progress.phase("refine", len(plan.sigmas) - 1) as advance,
            memory.resident(lambda: networks.load_transformer(video=True, audio=False, loras=self._loras())) as network,
        ):
            state = video_state(
                grid, latent.shape[-1], plan.shape.fps, latent=latent, dtype=network.dtype, scale=self.scale
            )
            states = StatePair(started(state, "video", noise, noise_scale=plan.sigmas[0]), None)
            states = denoise(network, states, Guided(context), plan.sigmas, "euler", noise, lambda *_: advance(1))
            del network
        assert states.video is not None
        return result_video(states.video, grid)

    def _written(self, clip: Clip, output: Output) -> None:
        plan = self.plan
        assert clip.latents is not None
        decoded = decode_video(
            clip.latents,
            lambda: self.networks.load("video_decoder"),
            decode_ways({"mode": plan.tiling}, LatentShape(*clip.latents.shape[1:4]), self.scale)[0],
            NoiseSource(plan.seed, 2),
            self.scale,
            self.progress,
            self.report,
        )

        frames = Decoded(cropped(decoded, plan.shape), output.keep_frames or output.path is None)
        try:
            self._write(clip, frames, output)
        except LTX2Error as error:
            if frames.failed:
                raise
            clip.frames = frames.rest()
            raise not_written(error, clip, output, self.networks) from error
        clip.frames = frames.kept()

    def _write(self, clip: Clip, frames: Decoded, output: Output) -> None:
        if output.path is None:
            for _ in frames:
                pass
            return
        notes = stream_clip(
            frames, output.path, fps=clip.fps, crf=output.crf, audio=clip.audio, metadata=clip.metadata,
            overwrite=output.overwrite,
        )  # fmt: skip
        read: tuple[str, ...] = ()
        if clip.audio is not None and output.path.suffix.lower() in VIDEO_SUFFIXES:
            plan = self.plan
            changed = copy_track(output.path, plan.source, plan.audio_track)
            read = clip.audio.notes if changed else probe_sound(plan.source, plan.audio_track).notes
            notes = [note for note in notes if changed or not note.startswith(FITTED_SOUND)]
            notes += [changed] if changed else []
        for note in (*read, *notes):
            self.progress.note(note)
        clip.path = output.path


if __name__ == "__main__":
    import importlib

    # The command line imports this module; naming it here statically would turn the arrow round.
    importlib.import_module("mlx_ltx2.cli").upscale_main()
