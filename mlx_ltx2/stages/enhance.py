"""Prompt -> a longer prompt, written by the text encoder's own language model."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import mlx.core as mx
import numpy as np

from mlx_ltx2.errors import RequestError
from mlx_ltx2.memory import PeakReport, phase
from mlx_ltx2.progress import Progress
from mlx_ltx2.stages.plan import EnhanceUse

if TYPE_CHECKING:
    from mlx_ltx2.weights.text_encoder import TextEncoder

TEXT_TO_VIDEO = """You turn a short idea into the description of one video shot with sound.
Write a single paragraph in English, present tense, 80 to 180 words, in the order in which things happen.
Say what is seen: subject, looks, setting, light, colours. Say how it moves from beginning to end, and what the camera \
does. Say what is heard: voices, music, noises, and when. Put spoken words in double quotes with the speaker's manner \
and language.
Keep everything the idea states, change nothing in it, and add only what makes it concrete. One shot, no cuts, no \
titles, no lists, no comments. Begin with the scene at once."""

IMAGE_TO_VIDEO = """You turn a short idea into the description of one video shot with sound that begins with a given \
image. You do not see the image; what the idea says about it holds.
Write a single paragraph in English, present tense, 60 to 140 words, in the order in which things happen.
Say what moves and changes from that image on, how fast, and what the camera does. Say what is heard: voices, music, \
noises, and when. Put spoken words in double quotes with the speaker's manner and language.
Do not describe looks, places or people that the idea does not name, since the image shows them. One shot, no cuts, no \
titles, no lists, no comments. Begin with the movement at once."""

PREFILL_TOKENS = 256
"""Tokens of the turn that are read at a time."""

_PLAIN = str.maketrans(
    {
        "\u2018": "'", "\u2019": "'", "\u201a": "'", "\u201b": "'", "\u201c": '"', "\u201d": '"', "\u201e": '"',
        "\u2010": "-", "\u2011": "-", "\u2012": "-", "\u2013": "-", "\u2014": "-", "\u2015": "-", "\u2212": "-",
        "\u2026": "...", "\u00a0": " ", "\u202f": " ", "\ufffd": "",
    }
)  # fmt: skip


def enhance_prompt(
    prompt: str,
    use: EnhanceUse,
    seed: int,
    load_encoder: Callable[[], TextEncoder],
    progress: Progress,
    report: PeakReport,
    system: str | None = None,
) -> str:
    """The prompt written out; the same seed gives the same text.

    The image itself is not looked at: Gemma's vision part is not loaded. system: instructions instead of our own.
    Temperature 0 takes the likeliest word. A text without a letter leaves the prompt as it was, and that is said.
    Raises: RequestError if the prompt is empty.
    Source: official `ltx_core.text_encoders.gemma` 1.2.0 for temperature, length, user turn and cleaning; own wording.
    """
    if not prompt.strip():
        raise RequestError("the prompt is empty; describe the video in a few words.")
    if use.image is not None:
        progress.note("the prompt is written out from its text alone; no part of the model here can look at the image.")
    system = system or (TEXT_TO_VIDEO if use.image is None else IMAGE_TO_VIDEO)
    with (
        phase("enhance prompt", report),
        progress.phase("enhance prompt", use.max_tokens, "token") as advance,
    ):
        encoder = load_encoder()
        ids: list[int] = []
        turn = encoder.tokenizer.chat(system, f"user prompt: {prompt.strip()}")
        tokens = _sampled(encoder, turn, use.temperature, seed)
        for token in itertools.islice(tokens, use.max_tokens):
            ids.append(token)
            advance(1)
        text = clean(encoder.tokenizer.decode(ids))
        del encoder, tokens
    if not text:
        progress.note("the language model wrote nothing that could be used; the prompt stays as it is.")
        return prompt.strip()
    return text


def clean(text: str) -> str:
    """Typographic quotes, dashes and blanks in ASCII, blanks joined, nothing before the first letter."""
    text = "".join(c for c in text.translate(_PLAIN) if c.isprintable() or c.isspace())
    text = " ".join(text.split())
    first = next((i for i, character in enumerate(text) if character.isalpha()), len(text))
    if first and text[first - 1 : first] == '"':
        first -= 1  # a prompt may begin with speech
    return text[first:]


def _sampled(encoder: TextEncoder, prompt: tuple[int, ...], temperature: float, seed: int) -> Iterator[int]:
    """Token ids until the model ends its turn. Keys come from the seed, no global generator is touched."""
    model: Any = encoder.model
    cache = model.make_cache()
    ends = {encoder.tokenizer.end_of_turn_id, *_single(encoder.tokenizer.encode_text("<eos>"))}
    for start in range(0, len(prompt) - 1, PREFILL_TOKENS):
        part = prompt[start : min(start + PREFILL_TOKENS, len(prompt) - 1)]
        model(mx.array([part], dtype=mx.int32), cache=cache)
        mx.eval([layer.state for layer in cache])
    last = prompt[-1]
    for step in itertools.count():
        logits = model(mx.array([[last]], dtype=mx.int32), cache=cache)[0, -1].astype(mx.float32)
        if temperature == 0:
            chosen = mx.argmax(logits)
        else:
            low, high = seed & 0xFFFFFFFF, seed >> 32
            key = mx.random.key((low * 1_000_003 + high * 8191 + step) & 0xFFFFFFFFFFFFFFFF)
            chosen = mx.random.categorical(logits / temperature, key=key)
        last = int(np.array(chosen))
        if last in ends:
            return
        yield last


def _single(ids: Any) -> tuple[int, ...]:
    """The id of a special token, unless the tokenizer takes its text apart."""
    return tuple(ids) if len(ids) == 1 else ()
