"""Prompts -> text contexts. The text encoder is freed before the projections load, and these before anything else."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import mlx.core as mx

from mlx_ltx2.memory import PeakReport, phase, resident
from mlx_ltx2.progress import Progress
from mlx_ltx2.stages.sanity import refuse_non_finite
from mlx_ltx2.states import PromptTokens, TextContext

if TYPE_CHECKING:
    from mlx_ltx2.models.text import TextProjections
    from mlx_ltx2.weights.text_encoder import TextEncoder

_SHOWN = 200
"""Characters of a cut text that are quoted."""


def encode_text(
    prompts: Sequence[str],
    load_encoder: Callable[[], TextEncoder],
    load_projections: Callable[[], TextProjections],
    progress: Progress,
    report: PeakReport,
) -> list[TextContext]:
    """One context per prompt, in the projections' dtype; equal prompts are encoded once.

    Only the real tokens run through the encoder; the projections fill the rest of the context with learned registers.
    Prompts after the first may be empty: guidance then leads away from the unprompted.
    Raises: RequestError for an empty prompt, WeightsError if encoder and projections do not belong together.
    """
    distinct = list(dict.fromkeys(prompts))
    with phase("text encoder", report), resident(load_encoder) as encoder:
        tokens = [
            encoder.tokenizer.nothing() if number and not prompt.strip() else encoder.tokenize(prompt)
            for number, prompt in enumerate(distinct)
        ]
        for ids in tokens:
            if ids.cut:
                progress.note(_cut_note(ids))
        with progress.phase("encode text", len(distinct) * (encoder.layers + 1), "layer") as advance:

            def layer_done(index: int, state: mx.array) -> None:
                mx.eval(state)  # one layer per command buffer
                advance(1)

            states = encoder.states_of(tokens, layer_done)
            for hidden in states:
                mx.eval(hidden)
        del encoder
    contexts: dict[str, TextContext] = {}
    with phase("text projections", report), resident(load_projections) as projections:
        while states:
            prompt = distinct[len(contexts)]
            context = projections(states.pop(0))
            for stream in (context.video, context.audio):
                if stream is not None:
                    refuse_non_finite(stream, "the text encoder")
            contexts[prompt] = context
        del projections
    return [contexts[prompt] for prompt in prompts]


def _cut_note(tokens: PromptTokens) -> str:
    lost = tokens.cut_text if len(tokens.cut_text) <= _SHOWN else f"{tokens.cut_text[:_SHOWN]}..."
    return (
        f"the prompt has {len(tokens.ids) + tokens.cut} tokens and the model reads {len(tokens.ids)}; "
        f"its last {tokens.cut} are cut off: {lost!r}"
    )
