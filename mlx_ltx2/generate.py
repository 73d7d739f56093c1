"""One way in: a prompt and options become a Plan, the Plan becomes a Clip."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np

from mlx_ltx2 import memory
from mlx_ltx2.diffusion.patchify import audio_to_tokens, video_to_tokens
from mlx_ltx2.errors import RequestError
from mlx_ltx2.library import open_lora, open_model, open_text_encoder, prompt_folder
from mlx_ltx2.media.audio import write_wav
from mlx_ltx2.media.files import VIDEO_SUFFIXES, check_writable, replacing
from mlx_ltx2.pipelines import parts, presets, recipes
from mlx_ltx2.pipelines.budget import MemoryOptions, MemoryPlan, plan_memory
from mlx_ltx2.pipelines.plan import Plan, as_json, describe
from mlx_ltx2.pipelines.request import Request
from mlx_ltx2.pipelines.run import Run, Session, StepCallback, required_components
from mlx_ltx2.progress import Progress, SilentProgress, make_progress
from mlx_ltx2.stages.keep_latents import keep_latents
from mlx_ltx2.stages.source import facts, same_file
from mlx_ltx2.stages.write import Clip, copy_track, stream_clip
from mlx_ltx2.states import DenoisedPair, Waveform
from mlx_ltx2.version import VERSION
from mlx_ltx2.weights.embedding_cache import EmbeddingCache
from mlx_ltx2.weights.networks import Networks
from mlx_ltx2.weights.text_encoder import locate_text_encoder

DEFAULT_MODEL = "Lightricks/LTX-2.3"
OUTPUT_TYPES = ("frames", "latent")
OUTPUT_ALIASES = {"np": "frames", "pil": "frames"}
"""What diffusers calls them; a clip holds its frames as one array either way."""
DEFAULT_CRF = 19


@dataclass(frozen=True)
class Output:
    """What to do with the result.

    path: file to write while frames decode, or None. audio_path: WAV file for the sound. save_frames: PNGs in a folder
    beside `path`. crf: H.264 quality. keep_frames: hold the frames in the clip as well. save_latents: keep the latents
    beside `path`, for retake and extend.
    """

    path: Path | None = None
    audio_path: Path | None = None
    save_frames: bool = False
    crf: float = DEFAULT_CRF
    keep_frames: bool = True
    save_latents: bool = False

    @property
    def frames_folder(self) -> Path | None:
        if not self.save_frames:
            return None
        base = self.path or Path("output.mp4")
        return base.with_name(f"{base.stem}_frames")


class LTX2Pipeline:
    """A model, ready to make clips. Weights are read when a stage needs them and freed after it."""

    def __init__(
        self,
        networks: Networks,
        name: str,
        *,
        memory: MemoryOptions | None = None,
        prompt_cache: bool = False,
    ):
        self.networks = networks
        self.name = name
        self.prompt_cache = prompt_cache
        self.memory = memory or MemoryOptions()

    @classmethod
    def from_pretrained(
        cls,
        model: str | Path = DEFAULT_MODEL,
        *,
        text_encoder: str | Path | None = None,
        quantize: int | None = None,
        memory_limit: int | None = None,
        low_memory: bool | None = None,
        resident_blocks: int | None = None,
        dtype: mx.Dtype | None = None,
        variant: str | None = None,
        prompt_cache: bool = True,
        progress: Progress | None = None,
    ) -> LTX2Pipeline:
        """Open a model.

        model: a converted folder, a hub id, an official file (converted once into the cache), or "demo".
        text_encoder: a Gemma 3 folder or hub id in place of the model's own. quantize: bits of the conversion, if one
        is needed. dtype: compute in this type instead of the stored one.
        memory_limit: bytes that a run may use; by default what the machine recommends. low_memory: True reads the
        transformer and the text encoder block by block, False never does, None does where nothing else fits.
        resident_blocks: blocks of the transformer that stay meanwhile.
        variant: "dev" or "distilled" where the source holds both; None takes "distilled".
        prompt_cache: keep prompt embeddings on disk, so that a prompt that was used before loads no text encoder.
        Raises: WeightsError, ResourceError.
        """
        if text_encoder is not None:
            locate_text_encoder(text_encoder)  # a mistyped one is said before the model is fetched
        folder = open_model(
            model,
            quantize=quantize,
            progress=progress or SilentProgress(),
            variant=variant,
            text_encoder=text_encoder is None,
        )
        encoder = None if text_encoder is None else open_text_encoder(text_encoder, progress or SilentProgress())
        networks = Networks(folder, encoder, dtype, *([progress.note] if progress else []))
        options = MemoryOptions(memory_limit, low_memory, resident_blocks)
        return cls(networks, str(model), memory=options, prompt_cache=prompt_cache)

    def card(self, request: Request) -> parts.ModelCard:
        """What recipes may know about this model."""
        model = self.networks.model
        lora = str(model.loras[0]) if model.loras else None
        metadata = self.networks.lora_metadata([str(lo.path) for lo in request.loras])
        return parts.ModelCard(self.name, model.traits, lora, lora_metadata=metadata)

    def plan(self, prompt: str, **options: Any) -> Plan:
        """What a call with these options would do. Touches no weights.

        Raises: RequestError, ShapeError, MediaError.
        """
        request = Request.from_options({"prompt": prompt, **options})
        found = None if request.video is None else facts(request.video)
        loras = tuple(replace(lora, path=open_lora(lora.path)) for lora in request.loras)
        request = request.with_values(video=_named(request.video), loras=loras)
        card = self.card(request)
        filled = presets.fill(request, card.traits, found)
        parts.check_request(filled, card)
        return recipes.RECIPES[filled.pipeline](filled, card)

    def plan_memory(self, plan: Plan, *, contexts_given: bool = False) -> MemoryPlan:
        """What the plan's phases will need, and what is streamed so that they fit. Touches no weights.

        Prompts whose embeddings are kept on disk need no text encoder.
        Raises: ResourceError if they do not fit.
        """
        known = self._kept_prompts() if self.prompt_cache and not contexts_given else ()
        return plan_memory(plan, self.networks, self.memory, contexts_given=contexts_given, known=known)

    def _kept_prompts(self) -> EmbeddingCache | tuple[()]:
        """Embeddings of this model's text encoder on disk; none where it has no encoder."""
        if not self.networks.has_text_encoder():
            return ()
        return self.networks.embedding_cache(prompt_folder())

    def __call__(
        self,
        prompt: str,
        *,
        output: str | Path | None = None,
        output_type: str = "frames",
        latents: mx.array | np.ndarray | None = None,
        audio_latents: mx.array | np.ndarray | None = None,
        callback: StepCallback | None = None,
        progress: Progress | str | None = None,
        **options: Any,
    ) -> Clip:
        """Make a clip.

        prompt: what should be seen and heard. output: file to write. output_type: "frames", or "latent" to stop before
        decoding. latents, audio_latents: initial noise of the first stage, (1, F, H, W, C) and (1, T, mel, C), in place
        of the seed's. callback: called with (stage, steps done, steps in all). progress: "bar", "json", "none" or an
        object. options: every field of `Request`, with the spellings of the official tools accepted. `video` may be a
        Clip of an earlier run: its latents are used as they are, so that nothing is encoded a second time.
        Raises: RequestError, MediaError, WeightsError, ResourceError.
        """
        plan = self.plan(prompt, **options)
        noise = first_noise(latents, audio_latents)
        shown = make_progress(progress) if isinstance(progress, str) else progress or SilentProgress()
        earlier = next((value for value in options.values() if isinstance(value, Clip)), None)
        session = Session(
            shown,
            callback=callback,
            noise={0: noise} if noise else {},
            source=earlier,
        )
        return self.execute(plan, Output(path=None if output is None else Path(output)), session, output_type)

    def execute(self, plan: Plan, output: Output, session: Session, output_type: str = "frames") -> Clip:
        """Run a plan that was made before, and write what comes out."""
        output_type = OUTPUT_ALIASES.get(output_type, output_type)
        if output_type not in OUTPUT_TYPES:
            raise RequestError(f"output_type {output_type!r} does not exist; choose one of {', '.join(OUTPUT_TYPES)}.")
        _check_outputs(plan, output)
        self.networks.check(*required_components(plan))
        space = self.networks.latent_space() if output.save_latents else None
        self.networks.check_loras(plan.loras)
        for note in plan.notes:
            session.progress.note(note)
        if self.prompt_cache and not session.contexts and session.prompt_cache is None:
            session.prompt_cache = self.networks.embedding_cache(prompt_folder(), session.progress.note)
        session.memory = self.plan_memory(plan, contexts_given=bool(session.contexts))
        plan = replace(plan, memory=session.memory.to_dict())
        with memory.limits(memory_bytes=session.memory.budget, say=session.progress.note):
            running = Run(plan, self.networks, session)
            latents = running.latents()
            plan = running.plan  # the prompt may have been written out
            clip = Clip(plan.shape.fps, plan, latents=latents.video, audio_latents=latents.audio)
            clip.metadata = {**record(plan), **self._origin(plan, output)}
            if output_type == "frames":
                self._finish(clip, running, latents, output)
            if space is not None and clip.path is not None:
                kept = keep_latents(clip.path, latents, space)
                session.progress.note(f"latents are kept in {kept}")
        clip.peaks = dict(session.report.peaks)
        clip.plan = replace(plan, memory={**plan.memory, "actual": clip.peaks})
        return clip

    def _origin(self, plan: Plan, output: Output) -> dict[str, str]:
        """What `rerun` needs beside the plan; "loras" is JSON: path -> SHA-256."""
        values = {"crf": f"{output.crf:g}"}
        if self.networks.text_encoder:
            values["text_encoder"] = str(self.networks.text_encoder)
        hashes = self.networks.lora_hashes(plan.loras)
        if hashes:
            values["loras"] = as_json(hashes)
        return values

    def _finish(self, clip: Clip, running: Run, latents: DenoisedPair, output: Output) -> None:
        clip.audio = running.audio(latents)
        with ExitStack() as together:  # the files get their names together, or none does
            if output.audio_path is not None and clip.audio is not None:
                wav = together.enter_context(replacing(output.audio_path))
                write_wav(wav, clip.audio, metadata=clip.metadata)
            if running.plan.video_out:
                _write_video(clip, running, latents, output)
                _keep_track(running, output)
            elif output.path is not None:
                clip.save(output.path)


def _named(video: Any) -> str | None:
    """What a record says about a source clip."""
    if isinstance(video, Clip):
        return str(video.path or "a clip in memory")
    return None if video is None else str(video)


def _keep_track(running: Run, output: Output) -> None:
    """Copy the source's sound track as it is where the plan keeps it and the container can hold it."""
    source = running.source
    if running.plan.audio_from != "source" or source is None or output.path is None:
        return
    path = source.use.path if source.clip is None else source.clip.path
    if path is not None and output.path.suffix.lower() in VIDEO_SUFFIXES:
        note = copy_track(output.path, path)
        if note:
            running.session.progress.note(note)


def _write_video(clip: Clip, running: Run, latents: DenoisedPair, output: Output) -> None:
    chunks = running.frames(latents)
    kept: list[np.ndarray] = []

    def tee() -> Any:
        for chunk in chunks:
            if output.keep_frames:
                kept.append(chunk)
            yield chunk

    if output.path is None:
        for _ in tee():
            pass
    else:
        notes = stream_clip(
            tee(), output.path, fps=clip.fps, crf=output.crf, audio=clip.audio, metadata=clip.metadata,
            frames_folder=output.frames_folder, picture=running.kept_picture,
        )  # fmt: skip
        clip.path = output.path
        for note in notes:
            running.session.progress.note(note)
    if output.keep_frames:
        clip.frames = np.concatenate(kept)
        kept.clear()


def _check_outputs(plan: Plan, output: Output) -> None:
    if output.path is not None:
        check_writable(
            output.path,
            num_frames=plan.shape.frames if plan.video_out else None,
            sound_only=not plan.video_out,
        )
    if output.save_latents and (output.path is None or output.path.suffix.lower() not in VIDEO_SUFFIXES):
        raise RequestError(
            f"latents are kept beside a {' or '.join(VIDEO_SUFFIXES)} file; name one as output, or drop --save-latents."
        )
    if plan.video_input and same_file(output.path, plan.video_input.path):
        raise RequestError(f"{output.path} is the source clip itself; name another output.")
    if output.audio_path is not None:
        if plan.audio_from is None:
            raise RequestError("there will be no sound to write; drop --output-audio or --no-audio.")
        check_writable(output.audio_path, sound_only=True)
    if not 0 <= output.crf <= 51:
        raise RequestError(f"crf {output.crf} is outside 0 (lossless) to 51; 19 is the default.")


def first_noise(
    latents: mx.array | np.ndarray | None, audio_latents: mx.array | np.ndarray | None
) -> dict[Any, np.ndarray]:
    """Initial noise in latent layout -> the keys of a `NoiseSource`.

    Raises: RequestError if an array is not of its rank.
    """
    noise: dict[Any, np.ndarray] = {}
    for name, value, rank, tokens in (
        ("video", latents, 5, video_to_tokens),
        ("audio", audio_latents, 4, audio_to_tokens),
    ):
        if value is None:
            continue
        array = mx.array(value).astype(mx.float32)
        if array.ndim != rank:
            raise RequestError(f"{name} latents of shape {array.shape}: {rank} axes are needed, channels last.")
        noise[(name, "initial", 0)] = np.array(tokens(array))
    return noise


def record(plan: Plan) -> Mapping[str, str]:
    """What a finished file says about how it was made."""
    values = {"prompt": plan.prompt, "seed": str(plan.seed), "model": plan.model, "pipeline": plan.pipeline}
    if plan.enhanced_prompt:
        values["enhanced_prompt"] = plan.enhanced_prompt
    if plan.negative_prompt:
        values["negative_prompt"] = plan.negative_prompt
    return {**values, "tool": f"mlx-ltx2 {VERSION}", "request": as_json(plan.request), "plan": _lasting(plan).to_json()}


def _lasting(plan: Plan) -> Plan:
    """Without what depends on whether the prompt was kept on this machine: a rerun writes the same bytes."""
    memory = dict(plan.memory)
    for key in {"phases", "components"} & memory.keys():
        memory[key] = {name: size for name, size in memory[key].items() if not name.startswith("text")}
    return replace(plan, memory=memory)


def generate(
    prompt: str,
    *,
    model: str | Path = DEFAULT_MODEL,
    text_encoder: str | Path | None = None,
    output: str | Path | None = None,
    prompt_cache: bool = True,
    progress: Progress | str | None = None,
    **options: Any,
) -> Clip:
    """Make one clip; see `LTX2Pipeline.from_pretrained` for `model` and `LTX2Pipeline.__call__` for the options.

    clip = generate("A red kite over a beach", model="LTX-2-distilled", image="kite.jpg", output="kite.mp4")
    """
    shown = make_progress(progress) if isinstance(progress, str) else progress
    variant = presets.wanted_variant(options.get("pipeline"), bool(options.get("force_guidance")))
    pipeline = LTX2Pipeline.from_pretrained(
        model, text_encoder=text_encoder, variant=variant, prompt_cache=prompt_cache, progress=shown
    )
    return pipeline(prompt, output=output, progress=shown, **options)


__all__ = ["Clip", "LTX2Pipeline", "Output", "Plan", "Waveform", "describe", "generate"]

if __name__ == "__main__":
    import importlib

    # The command line imports this module; naming it here statically would turn the arrow round.
    importlib.import_module("mlx_ltx2.cli").generate_main()
