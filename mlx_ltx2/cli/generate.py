"""mlx-ltx2 generate"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from mlx_ltx2.cli import options as opts
from mlx_ltx2.errors import RequestError

if TYPE_CHECKING:
    from mlx_ltx2.generate import Output

OUTPUT_FIELDS = ("output", "output_audio", "save_frames", "save_latents", "crf", "overwrite")
MODEL_FIELDS = ("model", "text_encoder")
IGNORED = ("stream", "no_fp8", "quantization", "enhance_static_cache", "compile_")


@click.command("generate", cls=opts.Command, context_settings={"help_option_names": ["-h", "--help"]})
@opts.request_options
@opts.model_options
@opts.memory_options
@opts.output_options
@opts.report_options
@click.option("--list-lora-files", metavar="REPO", default=None, help="List the LoRA files of a hub repo and stop.")
def command(list_lora_files: str | None, **given: Any) -> None:
    """Make a clip from text, images or sound.

    \b
    mlx-ltx2 generate --model demo --prompt "a red circle moving right"
    mlx-ltx2 generate --model ./LTX-2-distilled --prompt "A kite over a beach" --image kite.jpg
    """
    if list_lora_files is not None:
        _list_loras(list_lora_files)
        return
    run(given)


def _list_loras(repo: str) -> None:
    from mlx_ltx2.weights.hub import list_files

    for file in list_files(repo):
        if file.name.endswith(".safetensors"):
            click.echo(f"{file.nbytes / 1e6:10.1f} MB  {file.name}")


def split_options(
    given: dict[str, Any],
) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any], dict[str, Any]]:
    """All parsed options -> those of the request, the model, the output and the report."""
    report = {name: given.pop(name) for name in ("progress", "verbose", "quiet")}
    output = {name: given.pop(name) for name in OUTPUT_FIELDS if name in given}
    model = {name: given.pop(name) for name in MODEL_FIELDS}
    model["memory"] = opts.take_memory_options(given)
    for name in IGNORED:
        given.pop(name, None)
    return opts.request_values(given), model, output, report


def run(given: dict[str, Any]) -> None:
    """Generate from parsed options."""
    from mlx_ltx2.generate import DEFAULT_MODEL, LTX2Pipeline, check_before, describe
    from mlx_ltx2.pipelines.presets import wanted_variant
    from mlx_ltx2.pipelines.run import Session
    from mlx_ltx2.progress import make_progress

    request, model, output, report = split_options(given)
    prompt = request.pop("prompt", None)
    if prompt is None:
        raise RequestError("no prompt was given; add --prompt TEXT.")
    progress = make_progress(opts.progress_style(report["progress"], report["quiet"]))
    name = DEFAULT_MODEL if model["model"] is None else model["model"]
    wanted = _output(output, request.get("pipeline"))
    check_before(wanted, name, model["text_encoder"], request)
    pipeline = LTX2Pipeline.from_pretrained(
        name,
        text_encoder=model["text_encoder"],
        variant=wanted_variant(request.get("pipeline"), request.get("force_guidance", False)),
        progress=progress,
        **model["memory"],
    )
    plan = pipeline.plan(prompt, **request)
    traits = pipeline.networks.traits
    if report["verbose"]:
        progress.note(describe(plan, traits.video_scale, traits.audio_scale))
    session = Session(progress)
    clip = pipeline.execute(plan, wanted, session)
    if report["verbose"] and session.memory is not None:
        progress.note("\n".join(session.memory.describe(clip.peaks)))
    if report["progress"] != "json":
        click.echo(summary(clip))


def _output(given: dict[str, Any], pipeline: str | None) -> Output:
    from mlx_ltx2.generate import DEFAULT_CRF, Output
    from mlx_ltx2.pipelines.presets import PIPELINE_ALIASES

    name = given["output"]
    if name is None:
        sound_alone = PIPELINE_ALIASES.get(pipeline or "", pipeline) == "text-to-audio"
        name = "output.wav" if sound_alone else "output.mp4"
    sound = given["output_audio"]
    return Output(
        Path(name),
        None if sound is None else Path(sound),
        given["save_frames"],
        DEFAULT_CRF if given["crf"] is None else given["crf"],
        keep_frames=False,
        save_latents=given["save_latents"],
        overwrite=given["overwrite"],
    )


def summary(clip: Any) -> str:
    """One line about what was written and the highest use of memory, beside what the plan said."""
    from mlx_ltx2.media.files import holds_audio

    shape = clip.plan.shape
    size = f"{shape.width}x{shape.height}, {shape.frames} frames, " if clip.plan.video_out else ""
    sound = (
        f", sound at {clip.audio.rate_hz / 1000:g} kHz"
        if clip.audio is not None and (clip.path is None or holds_audio(clip.path))
        else ", no sound"
    )
    memory = f"peak memory {max(clip.peaks.values(), default=0) / 1e9:.2f} GB"
    predicted = getattr(clip.plan, "memory", {}).get("phases", {})  # an enlargement plans no memory
    if predicted:
        memory += f", {max(predicted.values()) / 1e9:.2f} GB predicted"
    return f"wrote {clip.path}: {size}{shape.seconds:.2f} s{sound}; {memory}"
