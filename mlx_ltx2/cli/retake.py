"""mlx-ltx2 retake"""

from __future__ import annotations

from typing import Any

import click

from mlx_ltx2.cli import options as opts
from mlx_ltx2.cli.generate import run
from mlx_ltx2.errors import RequestError


@click.command("retake", cls=opts.Command, context_settings={"help_option_names": ["-h", "--help"]})
@opts.request_options
@opts.model_options
@opts.output_options
@opts.report_options
def command(**given: Any) -> None:
    """Regenerate a stretch of a clip, or continue it; the rest is passed through.

    \b
    mlx-ltx2 retake --video clip.mp4 --start-time 1 --end-time 2.5 --prompt "the dog barks twice"
    mlx-ltx2 retake --video clip.mp4 --start-time 1 --no-retake-video --prompt "thunder"
    mlx-ltx2 retake --video clip.mp4 --extend-frames 48 --prompt "the dog runs off"
    """
    if given.get("pipeline") not in (None, "retake", "extend"):
        raise RequestError(f"retake runs the pipelines retake and extend, not {given['pipeline']}; use generate.")
    if given.get("pipeline") is None:
        given["pipeline"] = "retake" if given.get("extend_frames") is None else "extend"
    if given.get("video") is None:
        raise RequestError("no clip was given; add --video FILE.")
    run(given)
