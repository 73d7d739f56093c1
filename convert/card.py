"""The model card: README.md beside the weights."""

from __future__ import annotations

from mlx_ltx2_convert.plan import Plan
from mlx_ltx2_convert.report import Report

_HEAD = """---
library_name: mlx
pipeline_tag: text-to-video
tags:
- mlx
- ltx-2
- text-to-video
- image-to-video
- audio
license: other
license_name: ltx-2-community-license
---
"""


def model_card(plan: Plan, report: Report, tool: str) -> str:
    """Markdown that says what the weights are, where they come from and how to run them."""
    traits = plan.traits
    lines = [
        f"{_HEAD}",
        f"# {traits.title} {traits.variant}, for MLX",
        "",
        f"Converted from `{report.source_name}` (SHA-256 `{report.sha256}`) with {tool}.",
        f"Weights: {report.precision}.",
        "The licence is that of the original weights by Lightricks; the text encoder's is that of Gemma 3.",
        "",
        "```bash",
        f'mlx-ltx2 generate --model {report.output.name} --prompt "..."',
        "```",
        "",
        "| component | tensors | parameters | GB |",
        "|---|---|---|---|",
    ]
    lines += [
        f"| {name} | {part.tensors} | {part.parameters:,} | {part.nbytes / 1e9:.2f} |"
        for name, part in report.components.items()
    ]
    return "\n".join(lines) + "\n"
