"""mlx-ltx2 demo"""

from __future__ import annotations

from pathlib import Path

import click

from mlx_ltx2.cli import options as opts

PROMPT = "a red circle moving right"


@click.command("demo", context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--prompt", "-p", default=PROMPT, show_default=True, help="What should be seen and heard.")
@click.option("--output", "-o", default="demo.mp4", show_default=True, help="File to write.")
@click.option("--seed", "-s", type=int, default=10, show_default=True)
@click.option("--progress", type=click.Choice(["bar", "json", "plain", "none"]), default=None)
@click.option("--quiet", is_flag=True)
def command(prompt: str, output: str, seed: int, progress: str | None, quiet: bool) -> None:
    """Run the whole chain without any download: checkpoint, converter, pipeline, MP4 with sound."""
    from mlx_ltx2.cli.generate import summary
    from mlx_ltx2.demo import says
    from mlx_ltx2.generate import LTX2Pipeline, Output
    from mlx_ltx2.pipelines.run import Session
    from mlx_ltx2.progress import make_progress

    shown = make_progress(opts.progress_style(progress, quiet))
    pipeline = LTX2Pipeline.from_pretrained("demo", progress=shown)
    plan = pipeline.plan(prompt, seed=seed)
    clip = pipeline.execute(plan, Output(Path(output), keep_frames=False), Session(shown))
    click.echo(summary(clip))
    click.echo(says())
