"""One way in: a prompt and options become a Plan, the Plan becomes a Clip."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np

from mlx_ltx2 import memory
from mlx_ltx2.diffusion.patchify import audio_to_tokens, video_to_tokens
from mlx_ltx2.errors import LTX2Error, RequestError
from mlx_ltx2.library import DEMO, cache_folder, open_lora, open_model, open_text_encoder, prompt_folder
from mlx_ltx2.media.audio import write_wav
from mlx_ltx2.media.claims import Claim
from mlx_ltx2.media.estimate import clip_bytes
from mlx_ltx2.media.files import VIDEO_SUFFIXES, check_place, writing
from mlx_ltx2.media.metadata import made_here
from mlx_ltx2.media.outputs import check_apart, check_frames_folder, check_replaceable, check_writable, replacing
from mlx_ltx2.media.sound_track import probe_sound
from mlx_ltx2.media.writer import FITTED_SOUND
from mlx_ltx2.pipelines import parts, presets, recipes
from mlx_ltx2.pipelines.budget import MemoryOptions, MemoryPlan, plan_memory
from mlx_ltx2.pipelines.inputs import IN_MEMORY, input_hashes
from mlx_ltx2.pipelines.plan import Plan, as_json, describe
from mlx_ltx2.pipelines.request import Request
from mlx_ltx2.pipelines.run import Run, Session, StepCallback, required_components
from mlx_ltx2.progress import Progress, SilentProgress, make_progress
from mlx_ltx2.stages.check_media import check_media
from mlx_ltx2.stages.keep_latents import is_latents_file, keep_latents, keep_unwritten, latents_path, read_unwritten
from mlx_ltx2.stages.source import facts
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
    beside `path`, for retake and extend. overwrite: replace files that this program did not make; its own earlier
    outputs are replaced in any case. inputs: files that the run is made from beside those of the request.
    """

    path: Path | None = None
    audio_path: Path | None = None
    save_frames: bool = False
    crf: float = DEFAULT_CRF
    keep_frames: bool = True
    save_latents: bool = False
    overwrite: bool = False
    inputs: tuple[Path, ...] = ()

    @property
    def frames_folder(self) -> Path | None:
        if not self.save_frames:
            return None
        base = self.path or Path("output.mp4")
        return base.with_name(f"{base.stem}_frames")

    @property
    def latents_file(self) -> Path | None:
        return latents_path(self.path) if self.save_latents and self.path is not None else None

    def files(self) -> tuple[Path, ...]:
        """Every file that is written, but the frames in `frames_folder`."""
        return tuple(path for path in (self.path, self.audio_path, self.latents_file) if path is not None)

    def check(self, inputs: Iterable[str | Path] = ()) -> None:
        """Refuse what would lose a file, before anything is loaded. inputs: everything that the run reads.

        Raises: RequestError for an input that is an output, for one output twice and for files of others, MediaError
        for a place that cannot be written to, ResourceError for a full disk.
        """
        check_apart(self.files(), (*self.inputs, *inputs), frames_folder=self.frames_folder)
        for path in self.files():
            ours = is_latents_file if path == self.latents_file else made_here
            check_replaceable(path, overwrite=self.overwrite, ours=ours)
            check_place(path)
        if self.frames_folder is not None:
            check_frames_folder(self.frames_folder, overwrite=self.overwrite)
            check_place(self.frames_folder / "frame_00000.png")

    @contextmanager
    def claimed(self) -> Iterator[None]:
        """No other run writes these names meanwhile. Raises: RequestError if one does now."""
        names = (*self.files(), *filter(None, [self.frames_folder]))
        with ExitStack() as held:
            for path in names:
                with writing(path):
                    held.enter_context(Claim(path))
            yield


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
        in_memory = isinstance(request.video, Clip)
        loras = tuple(replace(lora, path=open_lora(lora.path)) for lora in request.loras)
        request = request.with_values(video=_named(request.video), loras=loras)
        card = self.card(request)
        filled = presets.fill(request, card.traits, found)
        parts.check_request(filled, card)
        plan = recipes.RECIPES[filled.pipeline](filled, card)
        more = (*check_media(plan.stages), *_track_notes(plan, in_memory))
        return replace(plan, notes=tuple(dict.fromkeys((*plan.notes, *more))))

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
        overwrite: bool = False,
        output_type: str = "frames",
        latents: mx.array | np.ndarray | None = None,
        audio_latents: mx.array | np.ndarray | None = None,
        callback: StepCallback | None = None,
        progress: Progress | str | None = None,
        **options: Any,
    ) -> Clip:
        """Make a clip.

        prompt: what should be seen and heard. output: file to write; one that exists is replaced if this program made
        it, or overwrite is True. output_type: "frames", or "latent" to stop before decoding. latents, audio_latents:
        initial noise of the first stage, (1, F, H, W, C) and (1, T, mel, C), in place of the seed's. callback: called
        with (stage, steps done, steps in all). progress: "bar", "json", "none" or an object. options: every field of
        `Request`, with the spellings of the official tools accepted. `video` may be a Clip of an earlier run: its
        latents are used as they are, so that nothing is encoded a second time.
        Raises: RequestError, MediaError, WeightsError, ResourceError. If the file cannot be written in the end, the
        error says where the latents are kept, and its `clip` holds what was made.
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
        target = Output(path=None if output is None else Path(output), overwrite=overwrite)
        return self.execute(plan, target, session, output_type)

    def execute(self, plan: Plan, output: Output, session: Session, output_type: str = "frames") -> Clip:
        """Run a plan that was made before, and write what comes out."""
        output_type = OUTPUT_ALIASES.get(output_type, output_type)
        if output_type not in OUTPUT_TYPES:
            raise RequestError(f"output_type {output_type!r} does not exist; choose one of {', '.join(OUTPUT_TYPES)}.")
        inputs = self._inputs(plan, output)
        _check_outputs(plan, output, inputs)
        self.networks.check(*required_components(plan))
        space = self.networks.latent_space() if output.save_latents else None
        self.networks.check_loras(plan.loras)
        for note in plan.notes:
            session.progress.note(note)
        if self.prompt_cache and not session.contexts and session.prompt_cache is None:
            session.prompt_cache = self.networks.embedding_cache(prompt_folder(), session.progress.note)
        session.memory = self.plan_memory(plan, contexts_given=bool(session.contexts))
        plan = replace(plan, memory=session.memory.to_dict(), inputs=input_hashes(Request(**plan.request)))
        with output.claimed(), memory.limits(memory_bytes=session.memory.budget, say=session.progress.note):
            running = Run(plan, self.networks, session)
            latents = running.latents()
            clip = self._made(running, latents, output, inputs)
            if output_type == "frames":
                self._finish(clip, running, latents, output)
            if space is not None and clip.path is not None:
                kept = keep_latents(clip.path, latents, space, overwrite=output.overwrite)
                session.progress.note(f"latents are kept in {kept}")
        clip.peaks = dict(session.report.peaks)
        clip.plan = replace(clip.plan, memory={**clip.plan.memory, "actual": clip.peaks})
        return clip

    def decode(
        self,
        latents: str | Path,
        *,
        output: str | Path | None = None,
        overwrite: bool = False,
        progress: Progress | str | None = None,
    ) -> Clip:
        """Make the clip of a run whose file could not be written, from the latents that were kept then.

        latents: the file that the error named. output: file to write.
        Raises: WeightsError for another file, and what a call raises.
        """
        pair, stored = read_unwritten(Path(latents), self.networks.latent_space())
        request = json.loads(stored["request"])
        plan = replace(self.plan(request.pop("prompt"), **request), enhanced_prompt=stored.get("enhanced_prompt"))
        shown = make_progress(progress) if isinstance(progress, str) else progress or SilentProgress()
        target = Output(
            None if output is None else Path(output), crf=float(stored["crf"]), overwrite=overwrite,
            inputs=(Path(latents),),
        )  # fmt: skip
        inputs = self._inputs(plan, target)
        _check_outputs(plan, target, inputs)
        needed = self.plan_memory(plan)
        session = Session(shown, memory=needed)
        plan = replace(
            plan,
            memory=json.loads(stored["plan"])["memory"],
            inputs=input_hashes(Request(**plan.request)),
        )
        with target.claimed(), memory.limits(memory_bytes=needed.budget, say=shown.note):
            running = Run(plan, self.networks, session)
            clip = self._made(running, pair, target, inputs)
            self._finish(clip, running, pair, target)
        clip.peaks = dict(session.report.peaks)
        return clip

    def _made(self, running: Run, latents: DenoisedPair, output: Output, inputs: Sequence[Path]) -> Clip:
        """A clip that is latents yet."""
        plan = running.plan  # the prompt may have been written out
        clip = Clip(plan.shape.fps, plan, latents=latents.video, audio_latents=latents.audio, inputs=inputs)
        clip.metadata = {**record(plan), **self._origin(plan, output)}
        return clip

    def _inputs(self, plan: Plan, output: Output) -> tuple[Path, ...]:
        """Everything that a run reads: files of the request, the model, its text encoder."""
        request = Request(**plan.request)
        beside = [] if request.video is None else [latents_path(Path(request.video))]
        model = [Path(folder) for folder in (self.networks.model.path, self.networks.text_encoder) if folder]
        return (*output.inputs, *request.files(), *beside, *model)

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
        decoded = Decoded(running.frames(latents) if running.plan.video_out else (), output.keep_frames)
        try:
            self._write(clip, running, decoded, output)
        except LTX2Error as error:
            if decoded.failed:
                raise
            clip.frames = decoded.rest()
            raise not_written(error, clip, output, self.networks) from error
        clip.frames = decoded.kept()

    def _write(self, clip: Clip, running: Run, decoded: Decoded, output: Output) -> None:
        with ExitStack() as together:  # the files get their names together, or none does
            if output.audio_path is not None and clip.audio is not None:
                wav = together.enter_context(replacing(output.audio_path, overwrite=output.overwrite))
                write_wav(wav, clip.audio, metadata=clip.metadata)
            if running.plan.video_out:
                notes = _write_video(clip, running, decoded, output)
                copied = _keep_track(running, output)
                for note in notes:
                    if not (copied and note.startswith(FITTED_SOUND)):
                        running.session.progress.note(note)
            elif output.path is not None:
                clip.save(output.path, overwrite=output.overwrite)


def _named(video: Any) -> str | None:
    """What a record says about a source clip."""
    if isinstance(video, Clip):
        return str(video.path or IN_MEMORY)
    return None if video is None else str(video)


def _track_notes(plan: Plan, in_memory: bool) -> tuple[str, ...]:
    """Which sound track the plan reads, where a file has several; also finds out that it can be read.

    Raises: RequestError, MediaError.
    """
    given, use = plan.audio_input, plan.video_input
    if given is not None:
        return probe_sound(given["path"], given["track"]).notes
    if use is None or not use.has_audio or not any(s.audio and s.audio.start == "input" for s in plan.stages):
        return ()
    if not in_memory:
        return probe_sound(use.path, use.track).notes
    if use.track is not None:
        raise RequestError(f"audio_track {use.track} is asked for, and a clip in memory has one sound; drop it.")
    return ()


def _keep_track(running: Run, output: Output) -> bool:
    """Copy the source's sound track as it is where the plan keeps it and the container can hold it; True if it is."""
    source = running.source
    if running.plan.audio_from != "source" or source is None or output.path is None:
        return False
    path = source.use.path if source.clip is None else source.clip.path
    if path is None or output.path.suffix.lower() not in VIDEO_SUFFIXES:
        return False
    note = copy_track(output.path, path, source.use.track)
    if note:
        running.session.progress.note(note)
    return note is None


def not_written(error: LTX2Error, clip: Clip, output: Output, networks: Networks) -> LTX2Error:
    """The same error for a clip that could not be written, with its latents in a file that the error names.

    `clip` of the error holds what was made: latents, sound, and frames where they were to be kept.
    """
    name = output.path or output.audio_path or Path("output.mp4")
    folders = (name.absolute().parent, cache_folder() / "unwritten", Path(tempfile.gettempdir()))
    latents = DenoisedPair(clip.latents, clip.audio_latents)
    kept = keep_unwritten(name, folders, latents, networks.latent_space(), clip.metadata)
    if kept is None:
        told = type(error)(f"{error} Its latents could not be kept in any of {', '.join(map(str, folders))}.")
    elif "request" in clip.metadata:
        told = type(error)(
            f"{error} The clip's latents are kept in {kept}: in Python, LTX2Pipeline.from_pretrained(model)"
            f".decode({str(kept)!r}, output=...) makes the clip from them."
        )
    else:
        told = type(error)(f"{error} The clip's latents are kept in {kept}.")
    told.clip = clip
    return told


class Decoded:
    """Decoded chunks, uint8 (f, H, W, 3), as they are taken. failed: decoding itself ended with an error."""

    def __init__(self, chunks: Iterable[np.ndarray], keep: bool) -> None:
        self._chunks = iter(chunks)
        self._keep = keep
        self._held: list[np.ndarray] = []
        self.failed = False

    def __iter__(self) -> Iterator[np.ndarray]:
        return self

    def __next__(self) -> np.ndarray:
        try:
            chunk = next(self._chunks)
        except StopIteration:
            raise
        except BaseException:
            self.failed = True
            raise
        if self._keep:
            self._held.append(chunk)
        return chunk

    def rest(self) -> np.ndarray | None:
        """Every frame, those too that were not taken yet; None where frames are not kept."""
        for _ in self if self._keep else ():
            pass
        return self.kept()

    def kept(self) -> np.ndarray | None:
        return np.concatenate(self._held) if self._held else None


def _write_video(clip: Clip, running: Run, decoded: Decoded, output: Output) -> Sequence[str]:
    """Returns what the writer had to change."""
    if output.path is None:
        for _ in decoded:
            pass
        return ()
    notes = stream_clip(
        decoded, output.path, fps=clip.fps, crf=output.crf, audio=clip.audio, metadata=clip.metadata,
        frames_folder=output.frames_folder, picture=running.kept_picture, overwrite=output.overwrite,
    )  # fmt: skip
    clip.path = output.path
    return notes


def _check_outputs(plan: Plan, output: Output, inputs: Iterable[Path]) -> None:
    if not 0 <= output.crf <= 51:
        raise RequestError(f"crf {output.crf} is outside 0 (lossless) to 51; 19 is the default.")
    if output.save_latents and (output.path is None or output.path.suffix.lower() not in VIDEO_SUFFIXES):
        raise RequestError(
            f"latents are kept beside a {' or '.join(VIDEO_SUFFIXES)} file; name one as output, or drop --save-latents."
        )
    if output.audio_path is not None:
        if plan.audio_from is None:
            raise RequestError("there will be no sound to write; drop --output-audio or --no-audio.")
        check_writable(output.audio_path, sound_only=True, overwrite=output.overwrite)
    output.check(inputs)
    if output.path is not None:
        check_writable(
            output.path,
            num_frames=plan.shape.frames if plan.video_out else None,
            sound_only=not plan.video_out,
            bytes_needed=bytes_needed(output, plan),
            overwrite=output.overwrite,
        )


def bytes_needed(output: Output, plan: Plan) -> int:
    """How much a run's files take at most, beside its latents."""
    shape, sound = plan.shape, plan.audio_from is not None
    kinds = [path.suffix for path in (output.path, output.audio_path) if path is not None]
    kinds += [".png"] * output.save_frames
    sizes = (clip_bytes(kind, shape.frames, shape.height, shape.width, shape.fps, output.crf, sound) for kind in kinds)
    return sum(sizes)


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
    """What a finished file says about how it was made; "inputs" is JSON: path -> SHA-256."""
    values = {"prompt": plan.prompt, "seed": str(plan.seed), "model": plan.model, "pipeline": plan.pipeline}
    if plan.enhanced_prompt:
        values["enhanced_prompt"] = plan.enhanced_prompt
    if plan.negative_prompt:
        values["negative_prompt"] = plan.negative_prompt
    if plan.inputs:
        values["inputs"] = as_json(plan.inputs)
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
    overwrite: bool = False,
    prompt_cache: bool = True,
    progress: Progress | str | None = None,
    **options: Any,
) -> Clip:
    """Make one clip; see `LTX2Pipeline.from_pretrained` for `model` and `LTX2Pipeline.__call__` for the options.

    clip = generate("A red kite over a beach", model="LTX-2-distilled", image="kite.jpg", output="kite.mp4")
    """
    shown = make_progress(progress) if isinstance(progress, str) else progress
    if output is not None:
        check_before(Output(Path(output), overwrite=overwrite), model, text_encoder, options)
    variant = presets.wanted_variant(options.get("pipeline"), bool(options.get("force_guidance")))
    pipeline = LTX2Pipeline.from_pretrained(
        model, text_encoder=text_encoder, variant=variant, prompt_cache=prompt_cache, progress=shown
    )
    return pipeline(prompt, output=output, overwrite=overwrite, progress=shown, **options)


def check_before(
    output: Output, model: str | Path, text_encoder: str | Path | None, options: Mapping[str, Any]
) -> None:
    """Refuse outputs that would lose a file before a model is opened, which may take a download.

    options: of the request. Raises: see `Output.check`, and RequestError for options that do not exist.
    """
    model_files = [Path(name) for name in (model, text_encoder) if name is not None and name != DEMO]
    output.check((*Request.from_options(options).files(), *model_files))


__all__ = ["Clip", "LTX2Pipeline", "Output", "Plan", "Waveform", "describe", "generate"]

if __name__ == "__main__":
    import importlib

    # The command line imports this module; naming it here statically would turn the arrow round.
    importlib.import_module("mlx_ltx2.cli").generate_main()
