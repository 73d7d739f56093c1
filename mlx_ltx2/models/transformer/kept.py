"""What the evaluations of one clip by one transformer have in common, computed once and kept.

Text keys and values depend on the prompt alone in LTX-2; in LTX-2.3 also on the noise level, so that only the passes of
one step share them. They take 25 MB per block and prompt at full size.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Generic, Literal, TypeVar

import mlx.core as mx

from mlx_ltx2.models.transformer.config import Prefix, TransformerConfig

KeysValues = tuple[mx.array, mx.array]
T = TypeVar("T")
PROMPTS = 2
"""Results kept at a time: those of the positive and of the negative prompt."""


class _Recent(Generic[T]):
    """The last results, by the very array they were made from and the noise levels they hold for."""

    def __init__(self) -> None:
        self.entries: list[tuple[mx.array, tuple[float, ...], T]] = []

    def get(self, source: mx.array, levels: tuple[float, ...], make: Callable[[], T]) -> T:
        for given, at, result in self.entries:
            if given is source and at == levels:
                return result
        result = make()
        # Noise levels only fall: results of another one are not asked for again.
        still = [entry for entry in self.entries if entry[1] == levels]
        self.entries = [*still[1 - PROMPTS :], (source, levels, result)]
        return result


class Kept:
    """Hand it to one transformer for one clip, with `RopeTables`; the clip's end frees it.

    text: "block" keeps keys and values of the block that runs, which serves passes that go through each block together;
    "clip" keeps those of all blocks, `text_bytes` in all. Results are found by the identity of a prompt's array: where
    several passes run as one batch, hand in their prompts one by one (`Modality.texts`), never the joined array, which
    is another one each time.
    """

    def __init__(self, text: Literal["block", "clip"] = "block"):
        self.text = text
        self._texts: dict[tuple[int, Prefix], _Recent[KeysValues]] = {}
        self._contexts: dict[Prefix, _Recent[mx.array]] = {}
        self._biases: dict[Prefix, _Recent[mx.array]] = {}

    def keys_values(
        self,
        block: int,
        prefix: Prefix,
        text: mx.array,
        levels: tuple[float, ...],
        make: Callable[[], KeysValues],
    ) -> KeysValues:
        """Keys and values of one block. text: as the caller gave it; levels: the noise levels that modulate it."""
        if self.text == "block":
            self._texts = {at: kept for at, kept in self._texts.items() if at[0] == block}
        return self._texts.setdefault((block, prefix), _Recent()).get(text, levels, make)

    def context(self, prefix: Prefix, text: mx.array, make: Callable[[], mx.array]) -> mx.array:
        """The text at the width of the stream."""
        return self._contexts.setdefault(prefix, _Recent()).get(text, (), make)

    def bias(self, prefix: Prefix, mask: mx.array, make: Callable[[], mx.array]) -> mx.array:
        """The additive form of a self-attention mask."""
        return self._biases.setdefault(prefix, _Recent()).get(mask, (), make)

    @property
    def nbytes(self) -> int:
        """Of the keys and values that are kept now."""
        pairs = [pair for recent in self._texts.values() for _, _, pair in recent.entries]
        return sum(array.nbytes for pair in pairs for array in pair)


def text_bytes(config: TransformerConfig, text_tokens: int, prompts: int = 1, itemsize: int = 2) -> int:
    """What `Kept("clip")` holds at most for `prompts` prompts (two at the most are kept)."""
    width = sum(stream.dim for _, stream in config.streams())
    return config.layers * min(prompts, PROMPTS) * 2 * text_tokens * width * itemsize
