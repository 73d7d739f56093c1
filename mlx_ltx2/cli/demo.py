"""mlx-ltx2 demo"""

from __future__ import annotations

from pathlib import Path

import click

from mlx_ltx2.cli import options as opts

PROMPT = "a red circle moving right"


@click.command("demo", context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--prompt", "-p", default=PROMPT, show_default=True, help="What should be seen and heard.")
@click.option(
    "--output",
    "-o",
    default="demo.mp4",
    show_default=True,
    help="File to write; a picture of its frames lies beside it.",
)
@click.option(
    "--all",
    "everything",
    is_flag=True,
    help="More texts, a LoRA, and clips from a picture, a sound, another clip, first and last frame.",
)
@click.option("--seed", "-s", type=int, default=10, show_default=True)
@click.option("--progress", type=click.Choice(["bar", "json", "plain", "none"]), default=None)
@click.option("--quiet", is_flag=True)
def command(prompt: str, output: str, everything: bool, seed: int, progress: str | None, quiet: bool) -> None:
    """Run the whole chain without any download: checkpoint, converter, pipeline, MP4 with sound, contact sheet."""
    from mlx_ltx2.cli.generate import summary
    from mlx_ltx2.demo import says
    from mlx_ltx2.demo.sheet import contact_sheet
    from mlx_ltx2.demo.show import Show
    from mlx_ltx2.generate import LTX2Pipeline
    from mlx_ltx2.media.images import save_image
    from mlx_ltx2.progress import make_progress

    shown = make_progress(opts.progress_style(progress, quiet))
    target = Path(output)
    show = Show(LTX2Pipeline.from_pretrained("demo", progress=shown), target, seed, shown)
    rows = [show.text(prompt), *(show.rest() if everything else ())]
    for clip in show.clips:
        click.echo(summary(clip))
    sheet = target.with_name(f"{target.stem}-sheet.png" if target.suffix == ".png" else f"{target.stem}.png")
    save_image(sheet, contact_sheet(rows))
    click.echo(f"wrote {sheet}: what the clip{'s show' if everything else ' shows'}, and the sound below")
    click.echo(says())
