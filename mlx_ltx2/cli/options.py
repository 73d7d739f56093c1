"""Option groups that commands share. An option that is not given stays unset; the table of defaults fills it later."""

from __future__ import annotations

import codecs
import json
import sys
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import click

from mlx_ltx2.cli.refused import refuse_options
from mlx_ltx2.pipelines.request import ImageInput, LoraInput, ReferenceInput

F = TypeVar("F", bound=Callable[..., Any])
SEPARATOR = "\x1f"

_VALUES = {
    "--image": 4, "-i": 4, "--lora": 2, "--lora-path": 2, "--distilled-lora": 2, "--reference": 2,
    "--video-conditioning": 2, "--conditioning-attention-mask": 2, "--attention-mask": 2, "--sigmas": 999,
    "--stage-2-sigmas": 999, "--stg-blocks": 999, "--video-stg-blocks": 999, "--audio-stg-blocks": 999,
}  # fmt: skip
"""Options that take several values: the first as it is, up to so many in all while they are numbers."""

_LISTS = {n for n, count in _VALUES.items() if count == 999}


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def gather_values(args: Sequence[str]) -> list[str]:
    """Join the values of options that take several into one, since click wants a fixed number of them.

    `--audio FILE` (one peer's spelling) becomes `--audio-file FILE`; `--audio` alone stays a switch.
    """
    out: list[str] = []
    rest = list(args)
    while rest:
        arg = rest.pop(0)
        if arg == "--audio" and rest and not rest[0].startswith("-"):
            arg = "--audio-file"
        out.append(arg)
        if arg not in _VALUES or not rest:
            continue
        values = [rest.pop(0)]
        while rest and len(values) < _VALUES[arg] and _is_number(rest[0]):
            values.append(rest.pop(0))
        out.append(SEPARATOR.join(values))
    return out


class Command(click.Command):
    """A click command whose options may take a varying number of values."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        refuse_options(args)
        return super().parse_args(ctx, gather_values(args))


class Parts(click.ParamType):  # type: ignore[type-arg]  # generic in new versions of click alone
    """PATH [NUMBER ...] as a tuple of the given types."""

    name = "path [number ...]"

    def __init__(self, *types: type):
        self.types = types

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if not isinstance(value, str):
            return value
        pieces = value.split(SEPARATOR)
        try:  # fewer pieces than types: the numbers may be left out; more, `gather_values` does not join
            return tuple(kind(piece) for kind, piece in zip(self.types, pieces, strict=False))
        except ValueError:
            self.fail(f"{' '.join(pieces)}: wants {' '.join(t.__name__ for t in self.types)}", param, ctx)


class Numbers(click.ParamType):  # type: ignore[type-arg]  # as above
    """Several numbers, separated by blanks or commas."""

    name = "numbers"

    def __init__(self, kind: type):
        self.kind = kind

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if not isinstance(value, str):
            return value
        try:
            return tuple(self.kind(v) for v in value.replace(SEPARATOR, " ").replace(",", " ").split())
        except ValueError:
            self.fail(f"{value!r} is no list of numbers", param, ctx)


def _stack(*options: Callable[[F], F]) -> Callable[[F], F]:
    def decorate(function: F) -> F:
        for option in reversed(options):
            function = option(function)
        return function

    return decorate


O = click.option

text_options = _stack(
    O("--prompt", "-p", default=None, help="What should be seen and heard."),
    O("--negative-prompt", default=None, help="What should not (guided pipelines)."),
    O("--enhance-prompt", is_flag=True, help="Let the text encoder's language model write the prompt out first."),
    O("--max-tokens", type=int, default=None, help="Longest prompt that --enhance-prompt may write (512)."),
    O("--temperature", type=float, default=None, help="How freely --enhance-prompt writes (0.7)."),
    O("--pipeline", default=None, help="distilled, dev, dev-two-stage, dev-two-stage-hq, keyframes, ic-lora, text-to-audio, retake, extend."),
)  # fmt: skip

size_options = _stack(
    O("--height", "-H", type=int, default=None, help="Pixels; a multiple of 64 (two-stage) or 32."),
    O("--width", "-W", type=int, default=None, help="Pixels; a multiple of 64 (two-stage) or 32."),
    O("--num-frames", "-n", type=int, default=None, help="Frames, 8k+1."),
    O("--fps", "--frame-rate", "fps", type=float, default=None, help="Frames per second."),
    O("--seed", "-s", type=int, default=None, help="The same seed gives the same clip."),
)

sampling_options = _stack(
    O("--steps", "--num-inference-steps", "steps", type=int, default=None, help="Steps of the first stage."),
    O("--sigmas", type=Numbers(float), default=None, help="The first stage's noise levels, ending in 0."),
    O("--stage-2-sigmas", type=Numbers(float), default=None, help="The second stage's noise levels."),
    O("--sampler", default=None, help="euler, euler-ancestral, euler-ge or res2s."),
    O("--denoising-strength", type=float, default=None, help="0..1, how much of a given video is made anew."),
    O("--max-batch-size", type=int, default=None, help="Guidance passes to run at once (default 1)."),
)

guidance_options = _stack(
    O("--cfg-scale", "--video-cfg-guidance-scale", "--cfg-guidance-scale", "cfg_scale", type=float, default=None, help="Classifier-free guidance of the video; 1 = off."),
    O("--audio-cfg-scale", "--audio-cfg-guidance-scale", "audio_cfg_scale", type=float, default=None, help="The same for the audio."),
    O("--cfg-rescale", "--video-rescale-scale", "cfg_rescale", type=float, default=None, help="Rescaling of guided video, 0..1."),
    O("--audio-cfg-rescale", "--audio-rescale-scale", "audio_cfg_rescale", type=float, default=None, help="The same for the audio."),
    O("--stg-scale", "--video-stg-guidance-scale", "stg_scale", type=float, default=None, help="Spatio-temporal guidance of the video; 0 = off."),
    O("--audio-stg-scale", "--audio-stg-guidance-scale", "audio_stg_scale", type=float, default=None, help="The same for the audio."),
    O("--stg-blocks", "--video-stg-blocks", "stg_blocks", type=Numbers(int), default=None, help="Transformer blocks it perturbs."),
    O("--audio-stg-blocks", type=Numbers(int), default=None, help="The same for the audio."),
    O("--modality-scale", "--a2v-guidance-scale", "modality_scale", type=float, default=None, help="How much the picture heeds the sound; 1 = off."),
    O("--audio-modality-scale", "--v2a-guidance-scale", "audio_modality_scale", type=float, default=None, help="How much the sound heeds the picture; 1 = off."),
    O("--skip-step", "--video-skip-step", "skip_step", type=int, default=None, help="Guide every (n+1)th step only."),
    O("--audio-skip-step", type=int, default=None, help="The same for the audio."),
    O("--apg", is_flag=True, default=None, help="Adaptive projected guidance instead of plain guidance."),
    O("--apg-eta", type=float, default=None, help="Share of the parallel part that it keeps."),
    O("--apg-norm-threshold", type=float, default=None, help="Longest guidance step; 0 = no limit."),
    O("--force-guidance", is_flag=True, help="Guide a distilled model all the same."),
)  # fmt: skip

image_options = _stack(
    O("--image", "-i", "images", type=Parts(str, int, float, int), multiple=True, metavar="PATH [FRAME [STRENGTH [CRF]]]", help="An image that a frame must meet; repeatable."),
    O("--image-strength", type=float, default=None, help="Strength of images that name none."),
    O("--image-frame-idx", type=int, default=None, help="Frame of images that name none."),
    O("--image-crf", type=int, default=None, help="Compression of images that name none; 0 = none."),
    O("--image-mode", default=None, help="auto, replace or keyframe."),
)  # fmt: skip

audio_options = _stack(
    O(
        "--audio/--no-audio",
        "-a",
        "audio",
        default=None,
        help="Generate sound (default), or leave the audio half out.",
    ),
    O("--audio-file", "--audio-path", "audio_file", default=None, help="Sound that the picture follows."),
    O("--audio-start-time", type=float, default=None, help="Seconds into the file."),
    O("--audio-max-duration", type=float, default=None, help="Seconds of it at most."),
    O("--audio-strength", type=float, default=None, help="0..1, 1 keeps it as it is."),
    O(
        "--audio-track",
        type=int,
        default=None,
        help="Sound track of --audio-file or --video, 1 is the first (default: the one players choose).",
    ),
)

video_options = _stack(
    O("--reference", "--video-conditioning", "references", type=Parts(str, float), multiple=True, metavar="PATH [STRENGTH]", help="Reference video of an IC-LoRA."),
    O("--attention-mask", "--conditioning-attention-mask", "attention_mask", type=Parts(str, float), default=None, metavar="PATH [STRENGTH]", help="Mask video: where references count."),
    O("--attention-strength", type=float, default=None, help="0..1, how strongly references count."),
    O("--skip-stage-2", is_flag=True, help="Stop after the half-size stage (ic-lora)."),
    O("--video", "--video-path", "video", default=None, help="Clip to retake or extend."),
    O("--start-time", type=float, default=None, help="Start of the stretch, seconds."),
    O("--end-time", type=float, default=None, help="End of the stretch, seconds."),
    O("--no-retake-video", is_flag=True, help="Keep the picture."),
    O("--no-retake-audio", is_flag=True, help="Keep the sound."),
    O("--extend-frames", type=int, default=None, help="Frames to add (extend), a multiple of 8."),
    O("--extend-before", is_flag=True, help="Add them before the clip."),
)  # fmt: skip

lora_options = _stack(
    O("--lora", "--lora-path", "loras", type=Parts(str, float), multiple=True, metavar="PATH|REPO[::FILE] [STRENGTH]", help="A LoRA; repeatable."),
    O("--lora-strength", type=float, default=None, help="Strength of LoRAs that name none."),
    O("--distilled-lora", type=Parts(str, float), default=None, metavar="PATH [STRENGTH]", help="The distilled LoRA of two-stage pipelines."),
    O("--lora-strength-stage-1", "--distilled-lora-strength-stage-1", "lora_strength_stage_1", type=float, default=None, help="Distilled LoRA, stage 1."),
    O("--lora-strength-stage-2", "--distilled-lora-strength-stage-2", "lora_strength_stage_2", type=float, default=None, help="Distilled LoRA, stage 2."),
)  # fmt: skip

model_options = _stack(
    O("--model", "--model-repo", "--checkpoint-path", "--distilled-checkpoint-path", "model", default=None, help="Converted folder, official file or hub id; 'demo' is built in."),
    O("--text-encoder", "--text-encoder-repo", "--gemma-root", "--text-encoder-path", "text_encoder", default=None, help="Gemma 3 folder or hub id, if the model has none."),
    O("--spatial-upscaler", "--spatial-upsampler-path", "spatial_upscaler", default=None, help="Another latent upsampler file or folder."),
)  # fmt: skip

decode_options = _stack(
    O("--tiling", default=None, help="auto, none, default, aggressive, conservative, spatial or temporal."),
    O("--tile-size", type=int, default=None, help="Pixels, a multiple of 32."),
    O("--tile-overlap", type=int, default=None, help="Pixels, a multiple of 32."),
    O("--tile-frames", type=int, default=None, help="Frames, a multiple of 8."),
    O("--tile-frame-overlap", type=int, default=None, help="Frames, a multiple of 8."),
)

memory_options = _stack(
    O("--memory-limit", default=None, metavar="BYTES", help="Memory that the run may use, such as 12GB (default: what the machine recommends)."),
    O("--low-memory", is_flag=True, help="Read transformer and text encoder from disk block by block."),
    O("--offload", type=click.Choice(["none", "cpu", "disk"]), default=None, help="disk is --low-memory; none and cpu keep networks whole (memory is shared)."),
    O("--no-prompt-cache", is_flag=True, help="Neither look prompt embeddings up on disk nor keep them there."),
    O("--resident-blocks", type=click.IntRange(0), default=None, help="Transformer blocks that stay in memory when it is streamed."),
)  # fmt: skip


def take_memory_options(given: dict[str, Any]) -> dict[str, Any]:
    """The memory and cache options among parsed ones, taken out, as options of `LTX2Pipeline.from_pretrained`.

    Raises: RequestError if they contradict each other.
    """
    from mlx_ltx2.errors import RequestError
    from mlx_ltx2.memory import parse_bytes

    limit, low = given.pop("memory_limit", None), given.pop("low_memory", False)
    offload, blocks = given.pop("offload", None), given.pop("resident_blocks", None)
    if low and offload in ("none", "cpu"):
        raise RequestError(f"--low-memory and --offload {offload} contradict each other; drop one.")
    streamed = True if low or offload == "disk" else None if offload is None else False
    if blocks is not None and streamed is False:
        raise RequestError(f"--resident-blocks needs a streamed transformer; drop --offload {offload}.")
    return {
        "memory_limit": None if limit is None else parse_bytes(limit),
        "low_memory": streamed if blocks is None else True,
        "resident_blocks": blocks,
        "prompt_cache": not given.pop("no_prompt_cache", False),
    }


overwrite_option = O(
    "--overwrite",
    is_flag=True,
    help="Replace files that this program did not make; its own earlier outputs it replaces anyway.",
)

output_options = _stack(
    O("--output", "-o", "--output-path", "output", default=None, help="File to write: .mp4 .mov .gif .webp .png .jpg .wav."),
    O("--output-audio", default=None, help="Write the sound to this WAV file as well."),
    O("--save-frames", is_flag=True, help="Write every frame as PNG into a folder beside the output."),
    O("--save-latents", is_flag=True, help="Keep the latents beside the output, so that retake and extend encode nothing again."),
    O("--crf", type=float, default=None, help="H.264 quality, lower is better, 0 is lossless (default 19)."),
    overwrite_option,
    O("--stream", is_flag=True, hidden=True, help="Frames always stream; accepted for compatibility."),
    O("--no-fp8", is_flag=True, hidden=True, help="Accepted for compatibility."),
    O("--quantization", default=None, hidden=True, help="Weights are quantized when they are converted."),
    O("--enhance-static-cache", is_flag=True, hidden=True, help="Accepted for compatibility."),
    O("--compile", "compile_", is_flag=True, hidden=True, help="Accepted for compatibility."),
)  # fmt: skip

report_options = _stack(
    O("--progress", type=click.Choice(["bar", "json", "plain", "none"]), default=None, help="bar on a terminal, json for programs."),
    O("--verbose", is_flag=True, help="Show the plan before it runs."),
    O("--quiet", is_flag=True, help="No progress."),
)  # fmt: skip

request_options = _stack(
    text_options, size_options, sampling_options, guidance_options, image_options, audio_options, video_options,
    lora_options, decode_options,
)  # fmt: skip

_INVERTED = {"no_retake_video": "retake_video", "no_retake_audio": "retake_audio"}


def request_values(options: dict[str, Any]) -> dict[str, Any]:
    """Parsed request options -> keyword options of `generate`, unset ones left out."""
    options = dict(options)
    frame = options.pop("image_frame_idx", None)
    strength = options.pop("lora_strength", None)
    if strength is not None and not options.get("loras") and options.get("lora_strength_stage_2") is None:
        options["lora_strength_stage_2"] = strength  # one peer's way to set the distilled LoRA's strength
    values: dict[str, Any] = {}
    for name, value in options.items():
        if value is None or (value is False and name != "audio") or value == ():
            continue
        if name in _INVERTED:
            values[_INVERTED[name]] = False
        elif name == "images":
            values[name] = tuple(ImageInput(*_with(image, 1, frame)) for image in value)
        elif name == "loras":
            values[name] = tuple(LoraInput(*_with(lora, 1, strength)) for lora in value)
        elif name == "references":
            values[name] = tuple(ReferenceInput(*reference) for reference in value)
        elif name == "distilled_lora":
            values[name] = LoraInput(*value)
        elif name == "attention_mask":
            values[name] = value[0]
            if len(value) > 1:
                values["attention_strength"] = value[1]
        else:
            values[name] = value
    return values


def _with(parts: tuple[Any, ...], place: int, default: Any) -> tuple[Any, ...]:
    """The parts with a default at `place` if they end before it."""
    return (*parts, default) if len(parts) == place and default is not None else parts


def json_text(value: Any) -> str:
    """Indented JSON for stdout; on a terminal that cannot show all of Unicode, in ASCII."""
    unicode = codecs.lookup(sys.stdout.encoding or "ascii").name.startswith("utf")
    return json.dumps(value, indent=2, ensure_ascii=not unicode, default=str)


def progress_style(progress: str | None, quiet: bool) -> str:
    if quiet:
        return "none"
    return progress or ("bar" if sys.stderr.isatty() else "plain")
