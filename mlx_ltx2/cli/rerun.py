"""mlx-ltx2 rerun"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click

from mlx_ltx2.cli import options as opts
from mlx_ltx2.errors import RequestError


@click.command("rerun", context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("clip")
@click.option("--set", "changes", multiple=True, metavar="NAME=VALUE", help="Change one thing, e.g. seed=7.")
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

    A LoRA that is another file than then is refused, unless --set loras=... or --set distilled_lora=... names it.
    """
    from mlx_ltx2.cli.generate import summary
    from mlx_ltx2.generate import LTX2Pipeline, Output
    from mlx_ltx2.media.metadata import read_metadata
    from mlx_ltx2.pipelines.presets import wanted_variant
    from mlx_ltx2.pipelines.run import Session
    from mlx_ltx2.progress import make_progress

    stored = read_metadata(clip)
    if "request" not in stored:
        raise RequestError(f"{clip} does not say how it was made; it is no clip of this program, or was re-encoded.")
    request = {**json.loads(stored["request"]), **dict(_change(c) for c in changes)}
    shown = make_progress(opts.progress_style(progress, quiet))
    pipeline = LTX2Pipeline.from_pretrained(
        model or stored["model"],
        text_encoder=stored.get("text_encoder"),
        variant=wanted_variant(request.get("pipeline"), request.get("force_guidance", False)),
        progress=shown,
    )
    plan = pipeline.plan(request.pop("prompt"), **request)
    if not {"loras", "distilled_lora"} & {name for name, _ in map(_change, changes)}:  # named anew, they may differ
        recorded = json.loads(stored.get("loras", "{}"))
        pipeline.networks.check_lora_hashes({path: recorded[path] for path in plan.loras if path in recorded})
    source = Path(clip)
    target = Path(output) if output else source.with_name(f"{source.stem}-rerun{source.suffix}")
    wanted = Output(target, crf=float(stored.get("crf", 19)), keep_frames=False, overwrite=overwrite, inputs=(source,))
    done = pipeline.execute(plan, wanted, Session(shown))
    click.echo(summary(done))


def _change(text: str) -> tuple[str, Any]:
    name, sign, value = text.partition("=")
    if not sign:
        raise RequestError(f"--set {text!r}: write NAME=VALUE, for instance seed=7.")
    try:
        return name, json.loads(value)
    except ValueError:
        return name, value
