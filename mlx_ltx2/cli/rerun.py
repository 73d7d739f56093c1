"""mlx-ltx2 rerun"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from mlx_ltx2.cli import options as opts
from mlx_ltx2.errors import RequestError

if TYPE_CHECKING:
    from mlx_ltx2.pipelines.plan import Plan
    from mlx_ltx2.pipelines.request import Request

_ELSEWHERE = {"model": "--model", "output": "--output"}


@click.command("rerun", context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("clip")
@click.option("--set", "changes", multiple=True, metavar="NAME=VALUE", help="Change one thing, e.g. seed=7 or crf=12.")
@click.option("--output", "-o", default=None, help="File to write (default: beside the clip).")
@click.option("--model", default=None, help="Where the model is now.")
@opts.overwrite_option
@click.option("--progress", type=click.Choice(["bar", "json", "plain", "none"]), default=None)
@click.option("--quiet", is_flag=True)
def command(
    clip: str,
    changes: tuple[str, ...],
    output: str | None,
    model: str | None,
    overwrite: bool,
    progress: str | None,
    quiet: bool,
) -> None:
    """Make CLIP again from what it says about itself; with the CPU backend, to the same bytes.

    An image, a video, a sound or a LoRA that is another file than then is refused, unless --set names it anew, such as
    --set image=new.png or --set loras=[]. A file that is not where it was is looked for beside the clip.
    """
    from mlx_ltx2.cli.generate import summary
    from mlx_ltx2.generate import LTX2Pipeline, Output
    from mlx_ltx2.media.metadata import read_metadata
    from mlx_ltx2.pipelines.changes import parse_changes
    from mlx_ltx2.pipelines.inputs import check_inputs, moved_inputs
    from mlx_ltx2.pipelines.presets import wanted_variant
    from mlx_ltx2.pipelines.run import Session
    from mlx_ltx2.progress import make_progress

    stored = read_metadata(clip)
    wanted = parse_changes(changes, ("crf", *_ELSEWHERE))
    for name in _ELSEWHERE.keys() & wanted.keys():
        raise RequestError(f"--set {name}=...: give {_ELSEWHERE[name]} instead.")
    crf = _crf(wanted.pop("crf", stored.get("crf", "19")))
    shown = make_progress(opts.progress_style(progress, quiet))
    request = _recorded(clip, stored, wanted)
    request, moved = moved_inputs(request, Path(clip).absolute().parent)
    for old, new in moved.items():
        shown.note(f"{old} is not there; {new} beside the clip is taken.")
    hashes = None if "inputs" not in stored else _renamed(json.loads(stored["inputs"]), moved)
    unknown = check_inputs(request, hashes, wanted)
    if unknown:
        shown.note(f"the clip does not say which files it was made from; {', '.join(unknown)} are taken as they are.")
    if not model and "model" not in stored:
        raise RequestError(f"{clip} does not say which model made it; name it with --model.")
    pipeline = LTX2Pipeline.from_pretrained(
        model or stored["model"],
        text_encoder=stored.get("text_encoder"),
        variant=wanted_variant(request.pipeline, request.force_guidance),
        progress=shown,
    )
    plan = pipeline.plan(**request.given())
    if not {"loras", "distilled_lora"} & wanted.keys():  # named anew, they may differ
        loras = _renamed(json.loads(stored.get("loras", "{}")), moved)
        pipeline.networks.check_lora_hashes({path: loras[path] for path in plan.loras if path in loras})
    source = Path(clip)
    target = Path(output) if output else _target(source, plan)
    result = Output(target, crf=crf, keep_frames=False, overwrite=overwrite, inputs=(source,))
    done = pipeline.execute(plan, result, Session(shown))
    click.echo(summary(done))


def _recorded(clip: str, stored: Mapping[str, str], wanted: Mapping[str, Any]) -> Request:
    """The request that the clip holds, with what is wanted anew.

    Raises: RequestError if it holds none, or one that this version does not understand.
    """
    from mlx_ltx2.pipelines.request import Request
    from mlx_ltx2.version import VERSION

    if "upscale" in stored:
        raise RequestError(f"{clip} was enlarged by `upscale`, which cannot be rerun; enlarge its source again.")
    if "request" not in stored:
        raise RequestError(f"{clip} does not say how it was made; it is no clip of this program, or was re-encoded.")
    try:
        request = json.loads(stored["request"])
        if not isinstance(request, dict) or not isinstance(request.get("prompt"), str):
            raise ValueError("no prompt")
        return Request.from_options({**request, **wanted})
    except (ValueError, TypeError, RequestError) as error:
        maker = stored.get("tool", "another version")
        raise RequestError(
            f"{clip} was made by {maker} and holds a request that mlx-ltx2 {VERSION} does not understand ({error}); "
            "use the version that made it."
        ) from error


def _renamed(hashes: Mapping[str, str], moved: Mapping[str, str]) -> dict[str, str]:
    return {**hashes, **{new: hashes[old] for old, new in moved.items() if old in hashes}}


def _crf(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise RequestError(f"--set crf={text}: it is a number from 0 to 51.") from None


def _target(clip: Path, plan: Plan) -> Path:
    """A name beside the clip, with a suffix that can hold what is made: the clip may be its sound, or one frame."""
    from mlx_ltx2.media.files import AUDIO_SUFFIXES, STILL_SUFFIXES

    suffix = clip.suffix
    frame = suffix.lower() in STILL_SUFFIXES and plan.shape.frames > 1
    if plan.video_out and (frame or suffix.lower() in AUDIO_SUFFIXES):
        suffix = ".mp4"
    return clip.with_name(f"{clip.stem}-rerun{suffix}")
