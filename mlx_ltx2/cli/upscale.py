"""mlx-ltx2 upscale"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from mlx_ltx2.cli import options as opts


@click.command("upscale", context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--input", "-i", "source", required=True, help="Image or video to enlarge.")
@click.option("--output", "-o", default=None, help="File to write (default: beside the input, named -upscaled).")
@click.option("--scale", type=float, default=None, help="2 (default) or 1.5, in both directions.")
@click.option("--temporal", is_flag=True, help="Double the frame rate; without --scale, only that.")
@click.option("--refine", is_flag=True, help="Run three denoising steps on the enlarged picture; needs --prompt.")
@click.option("--prompt", "-p", default=None, help="What is seen, for --refine.")
@click.option("--seed", "-s", type=int, default=10, show_default=True, help="Of --refine's noise.")
@click.option("--tiling", default="auto", show_default=True, help="Of the decoder, as for generate.")
@click.option("--crf", type=float, default=19, show_default=True, help="H.264 quality, lower is better.")
@click.option(
    "--model", "--model-repo", "model", default=None, help="Converted folder, official file or hub id; or 'demo'."
)
@click.option("--text-encoder", "--text-encoder-repo", default=None, help="Gemma 3 folder or hub id, for --refine.")
@click.option(
    "--audio-track",
    type=int,
    default=None,
    help="Sound track to keep, 1 is the first (default: the one players choose).",
)
@opts.overwrite_option
@opts.report_options
def command(
    source: str,
    output: str | None,
    model: str | None,
    progress: str | None,
    verbose: bool,
    quiet: bool,
    **given: Any,
) -> None:
    """Enlarge an image or a video; its sound is copied as it is, with --refine too.

    \b
    mlx-ltx2 upscale --input photo.png --output upscaled.png
    mlx-ltx2 upscale --input video.mp4 --output upscaled.mp4 --refine --prompt "A cinematic scene"
    """
    from mlx_ltx2.cli.generate import summary
    from mlx_ltx2.generate import DEFAULT_MODEL
    from mlx_ltx2.progress import make_progress
    from mlx_ltx2.upscale import upscale

    path = Path(source)
    target = Path(output) if output is not None else path.with_name(f"{path.stem}-upscaled{path.suffix}")
    shown = make_progress(opts.progress_style(progress, quiet))
    clip = upscale(
        source, target, model=DEFAULT_MODEL if model is None else model, keep_frames=False, progress=shown, **given
    )
    if verbose:
        shown.note(f"{', '.join(clip.plan.kinds)} on {clip.plan.model}")
    if progress != "json":
        click.echo(summary(clip))
