"""mlx-ltx2 plan"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import click

from mlx_ltx2.cli import options as opts
from mlx_ltx2.cli.generate import split_options
from mlx_ltx2.errors import RequestError


@click.command("plan", cls=opts.Command, context_settings={"help_option_names": ["-h", "--help"]})
@opts.request_options
@opts.model_options
@opts.memory_options
@opts.output_options
@opts.report_options
@click.option("--json", "as_json", is_flag=True, help="Print the plan as JSON.")
def command(as_json: bool, **given: Any) -> None:
    """Say what a generate command with the same options would do. Touches no weights."""
    from mlx_ltx2.generate import DEFAULT_MODEL, LTX2Pipeline, describe
    from mlx_ltx2.pipelines.presets import wanted_variant
    from mlx_ltx2.pipelines.run import required_components
    from mlx_ltx2.progress import make_progress

    request, model, _, report = split_options(given)
    prompt = request.pop("prompt", None)
    if prompt is None:
        raise RequestError("no prompt was given; add --prompt TEXT.")
    progress = make_progress(opts.progress_style(report["progress"], report["quiet"]))
    pipeline = LTX2Pipeline.from_pretrained(
        DEFAULT_MODEL if model["model"] is None else model["model"],
        text_encoder=model["text_encoder"],
        variant=wanted_variant(request.get("pipeline"), request.get("force_guidance", False)),
        progress=progress,
        **model["memory"],
    )
    plan = pipeline.plan(prompt, **request)
    memory = pipeline.plan_memory(plan)
    plan = replace(plan, memory=memory.to_dict())
    if as_json:
        click.echo(opts.json_text(plan.to_dict()))
        return
    traits = pipeline.networks.traits
    click.echo(describe(plan, traits.video_scale, traits.audio_scale))
    click.echo("\n".join(memory.describe()))
    click.echo(f"reads     {', '.join(required_components(plan))}")
