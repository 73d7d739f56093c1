"""mlx-ltx2 demo"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from mlx_ltx2.cli import options as opts
from mlx_ltx2.errors import ResourceError

if TYPE_CHECKING:
    from mlx_ltx2.generate import LTX2Pipeline
    from mlx_ltx2.progress import Progress

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
@opts.overwrite_option
@click.option("--progress", type=click.Choice(["bar", "json", "plain", "none"]), default=None)
@click.option("--quiet", is_flag=True)
def command(
    prompt: str, output: str, everything: bool, seed: int, overwrite: bool, progress: str | None, quiet: bool
) -> None:
    """Run the whole chain without any download: checkpoint, converter, pipeline, MP4 with sound, contact sheet."""
    from mlx_ltx2.cli.generate import summary
    from mlx_ltx2.demo import says
    from mlx_ltx2.demo.sheet import contact_sheet
    from mlx_ltx2.demo.show import Show
    from mlx_ltx2.media.images import save_image
    from mlx_ltx2.media.outputs import replacing
    from mlx_ltx2.progress import make_progress

    shown = make_progress(opts.progress_style(progress, quiet))
    target = Path(output)
    sheet = target.with_name(f"{target.stem}-sheet.png" if target.suffix == ".png" else f"{target.stem}.png")
    _check(target, sheet, everything, overwrite)
    show = Show(_model(shown), target, seed, shown, overwrite=overwrite)
    rows = [show.text(prompt), *(show.rest() if everything else ())]
    for clip in show.clips:
        click.echo(summary(clip))
    with replacing(sheet, overwrite=overwrite) as partial:
        save_image(partial, contact_sheet(rows))
    click.echo(f"wrote {sheet}: what the clip{'s show' if everything else ' shows'}, and the sound below")
    click.echo(says())


def _check(target: Path, sheet: Path, everything: bool, overwrite: bool) -> None:
    """Refuse what would lose a file before the first clip is made."""
    from mlx_ltx2.demo.show import clip_files, given_files
    from mlx_ltx2.media.files import check_place
    from mlx_ltx2.media.outputs import check_apart, check_replaceable, check_writable

    check_writable(target, num_frames=2, overwrite=overwrite)
    files = [*clip_files(target, everything), sheet, *(given_files(target) if everything else ())]
    check_apart(files, ())
    for path in files:
        check_replaceable(path, overwrite=overwrite)
        check_place(path)


def _model(progress: Progress) -> LTX2Pipeline:
    """The demo model. Raises: ResourceError where its folder cannot be written to."""
    from mlx_ltx2.generate import LTX2Pipeline
    from mlx_ltx2.library import cache_folder

    try:
        return LTX2Pipeline.from_pretrained("demo", progress=progress)
    except OSError as error:
        raise ResourceError(
            f"the folder of converted models, {cache_folder()}, cannot be written to ({error.strerror}); "
            "name another one with MLX_LTX2_CACHE."
        ) from error
