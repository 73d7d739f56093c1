"""mlx-ltx2 enhance"""

from __future__ import annotations

from pathlib import Path

import click

from mlx_ltx2.cli import options as opts
from mlx_ltx2.errors import RequestError


@click.command("enhance", context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--prompt", "-p", required=True, help="The idea to write out.")
@click.option("--image", "-i", default=None, help="The clip will begin with this image.")
@click.option(
    "--model", "--model-repo", "model", default=None, help="Model whose text encoder writes; 'demo' is built in."
)
@click.option(
    "--text-encoder", "--text-encoder-repo", "--gemma-root", default=None, help="Gemma 3 folder or hub id instead."
)
@click.option("--max-tokens", type=int, default=512, show_default=True, help="Longest text, in tokens.")
@click.option("--temperature", type=float, default=0.7, show_default=True, help="0 always takes the likeliest word.")
@click.option("--seed", "-s", type=int, default=10, show_default=True, help="The same seed gives the same text.")
@click.option("--system-prompt", default=None, metavar="FILE", help="Instructions instead of the built-in ones.")
@click.option("--progress", type=click.Choice(["bar", "json", "plain", "none"]), default=None)
@click.option("--quiet", is_flag=True)
def command(
    prompt: str,
    image: str | None,
    model: str | None,
    text_encoder: str | None,
    max_tokens: int,
    temperature: float,
    seed: int,
    system_prompt: str | None,
    progress: str | None,
    quiet: bool,
) -> None:
    """Rewrite a prompt with the text encoder's language model and print it."""
    from mlx_ltx2.generate import DEFAULT_MODEL
    from mlx_ltx2.library import open_model, open_text_encoder
    from mlx_ltx2.media.pictures import read_picture
    from mlx_ltx2.memory import PeakReport
    from mlx_ltx2.pipelines.parts import check_enhancement
    from mlx_ltx2.pipelines.text import valid_text
    from mlx_ltx2.progress import make_progress
    from mlx_ltx2.stages.enhance import enhance_prompt
    from mlx_ltx2.stages.plan import EnhanceUse
    from mlx_ltx2.weights.networks import Networks
    from mlx_ltx2.weights.text_encoder import load_text_encoder

    prompt = valid_text("prompt", prompt)
    check_enhancement(max_tokens, temperature)
    if not 0 <= seed < 2**63:
        raise RequestError(f"seed {seed} is no whole number from 0 to 2^63-1.")
    system = None if system_prompt is None else _instructions(Path(system_prompt))
    shown = make_progress(opts.progress_style(progress, quiet))
    if image is not None:  # a file that is no image is said now, though nobody looks at it
        for note in read_picture(image).notes:
            shown.note(note)
    if text_encoder is not None and model is None:
        folder = open_text_encoder(text_encoder, shown)
        text = enhance_prompt(
            prompt, EnhanceUse(max_tokens, temperature, image), seed, lambda: load_text_encoder(folder), shown,
            PeakReport(), system,
        )  # fmt: skip
    else:
        encoder = None if text_encoder is None else open_text_encoder(text_encoder, shown)
        networks = Networks(open_model(DEFAULT_MODEL if model is None else model, progress=shown), encoder)
        networks.check("text_encoder")
        text = enhance_prompt(
            prompt, EnhanceUse(max_tokens, temperature, image), seed, networks.load_text_encoder, shown,
            PeakReport(), system,
        )  # fmt: skip
    click.echo(text)


def _instructions(path: Path) -> str:
    try:
        text = path.read_text("utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise RequestError(f"system prompt {path} cannot be read as text ({error}); give a text file.") from None
    if not text:
        raise RequestError(f"system prompt {path} is empty; write the instructions into it, or leave it out.")
    return text
