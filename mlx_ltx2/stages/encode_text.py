"""Prompts -> text contexts. The text encoder is freed before the projections load, and these before anything else.

Contexts that are kept on disk are taken from there; if all are, neither network is loaded.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import mlx.core as mx

from mlx_ltx2.errors import RequestError
from mlx_ltx2.memory import PeakReport, phase, resident
from mlx_ltx2.progress import Progress
from mlx_ltx2.stages.sanity import refuse_non_finite
from mlx_ltx2.states import PromptTokens, TextContext

if TYPE_CHECKING:
    from mlx_ltx2.models.text import TextProjections
    from mlx_ltx2.weights.embedding_cache import EmbeddingCache
    from mlx_ltx2.weights.text_encoder import TextEncoder

_SHOWN = 200
"""Characters of a cut text that are quoted."""

SayOf = Callable[[str, str], None]
"""(prompt, remark about it)"""


def encode_text(
    prompts: Sequence[str],
    load_encoder: Callable[[], TextEncoder],
    load_projections: Callable[[], TextProjections],
    progress: Progress,
    report: PeakReport,
    cache: EmbeddingCache | None = None,
) -> list[TextContext]:
    """One context per prompt, in the projections' dtype; equal prompts are encoded once.

    prompts: what is wanted, then what is not.

    Only the real tokens run through the encoder; the projections fill the rest of the context with learned registers.
    Prompts after the first may be empty: guidance then leads away from the unprompted.
    cache: where contexts are looked up and kept; None encodes every prompt.
    Raises: RequestError for an empty prompt, WeightsError if encoder and projections do not belong together.
    """
    if not prompts[0].strip():
        raise RequestError("the prompt is empty; describe what should be seen and heard.")
    distinct = list(dict.fromkeys(prompts))

    def say(prompt: str, note: str) -> None:
        progress.note(f"{'the prompt' if prompt == prompts[0] else 'the negative prompt'} {note}")

    contexts = {} if cache is None else _kept(distinct, cache, say)
    missing = [prompt for prompt in distinct if prompt not in contexts]
    if missing:
        notes, states = _states(missing, load_encoder, progress, report, say)
        made = _projected(states, load_projections, report)
        for prompt, context in zip(missing, made, strict=True):
            contexts[prompt] = context
            if cache is not None:
                cache.put(prompt, context, notes.get(prompt))
    return [contexts[prompt] for prompt in prompts]


def _kept(prompts: Sequence[str], cache: EmbeddingCache, say: SayOf) -> dict[str, TextContext]:
    found = {}
    for prompt in prompts:
        entry = cache.get(prompt)
        if entry is not None:
            found[prompt] = entry.context
            if entry.note:
                say(prompt, entry.note)
    return found


def _states(
    prompts: Sequence[str],
    load_encoder: Callable[[], TextEncoder],
    progress: Progress,
    report: PeakReport,
    say: SayOf,
) -> tuple[dict[str, str], list[mx.array]]:
    """Remarks by prompt, and every prompt's hidden states; the encoder is freed when this returns."""
    notes: dict[str, str] = {}
    with phase("text encoder", report), resident(load_encoder) as encoder:
        tokens = [encoder.tokenize(p) if p.strip() else encoder.tokenizer.nothing() for p in prompts]
        for prompt, ids in zip(prompts, tokens, strict=True):
            if ids.cut:
                notes[prompt] = _cut_note(ids)
                say(prompt, notes[prompt])
        with progress.phase("encode text", len(prompts) * (encoder.layers + 1), "layer") as advance:

            def layer_done(index: int, state: mx.array) -> None:
                mx.eval(state)  # one layer per command buffer
                advance(1)

            states = encoder.states_of(tokens, layer_done)
            for hidden in states:
                mx.eval(hidden)
        del encoder
    return notes, states


def _projected(
    states: list[mx.array], load_projections: Callable[[], TextProjections], report: PeakReport
) -> list[TextContext]:
    """Contexts in the order of the states, each of which is let go when its context is there."""
    contexts = []
    with phase("text projections", report), resident(load_projections) as projections:
        while states:
            context = projections(states.pop(0))
            for stream in (context.video, context.audio):
                if stream is not None:
                    refuse_non_finite(stream, "the text encoder")
            contexts.append(context)
        del projections
    return contexts


def _cut_note(tokens: PromptTokens) -> str:
    """What is said after the prompt's name: a kept context may serve as either prompt later."""
    lost = tokens.cut_text if len(tokens.cut_text) <= _SHOWN else f"{tokens.cut_text[:_SHOWN]}..."
    return (
        f"has {len(tokens.ids) + tokens.cut} tokens and the model reads {len(tokens.ids)}; "
        f"its last {tokens.cut} are cut off: {lost!r}"
    )
