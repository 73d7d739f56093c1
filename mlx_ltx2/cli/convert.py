"""mlx-ltx2 convert"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from mlx_ltx2.cli import options as opts

DTYPES = ("bfloat16", "float16", "float32")


@click.command("convert", context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--source", "--hf-path", required=True, help="Official file, a folder that holds one, or a hub id.")
@click.option("--output", "--mlx-path", required=True, help="Folder to write.")
@click.option("--variant", type=click.Choice(["distilled", "dev"]), default=None, help="Which checkpoint of several.")
@click.option("-q", "--quantize", is_flag=True, help="Quantize the transformer's large layers.")
@click.option("--q-bits", type=int, default=None, help="2, 3, 4, 5, 6 or 8 (default 8).")
@click.option("--q-group-size", type=int, default=None, help="32, 64 or 128 (default 64).")
@click.option("--q-mode", default="affine", show_default=True, help="affine, mxfp4, mxfp8 or nvfp4.")
@click.option(
    "--dtype",
    type=click.Choice(DTYPES),
    default="bfloat16",
    show_default=True,
    help="Of what is not quantized.",
)
@click.option("--keep-dtype", is_flag=True, help="Keep every tensor's stored type instead.")
@click.option("--text-encoder", default=None, help="Gemma 3 folder or hub id to bring along.")
@click.option("--no-text-encoder", is_flag=True, help="Leave the text encoder out.")
@click.option("--revision", default=None, help="Revision of the hub repo.")
@click.option("--verify", is_flag=True, help="Read everything again and compare hashes.")
@click.option("--overwrite", is_flag=True, help="Replace another model in the folder.")
@click.option("--progress", type=click.Choice(["bar", "json", "plain", "none"]), default=None)
@click.option("--quiet", is_flag=True)
def command(
    source: str,
    output: str,
    keep_dtype: bool,
    no_text_encoder: bool,
    progress: str | None,
    quiet: bool,
    **given: Any,
) -> None:
    """Split an official checkpoint into a model folder, once.

    \b
    mlx-ltx2 convert --source Lightricks/LTX-2.3 --output ./LTX-2.3-distilled --variant distilled -q --q-bits 8
    Interrupted, the same command goes on where it stopped.
    """
    from mlx_ltx2.library import convert_with_progress
    from mlx_ltx2.progress import make_progress

    if keep_dtype:
        given["dtype"] = None
    if no_text_encoder:
        given["text_encoder"] = False
    shown = make_progress(opts.progress_style(progress, quiet))
    report = convert_with_progress(source, Path(output), shown, **given)
    for line in report.lines():
        click.echo(line)
