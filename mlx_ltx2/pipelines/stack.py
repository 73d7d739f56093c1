"""Networks of equal blocks that stay in memory, or come from the disk one after the other."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Stack:
    """Bytes of a network of equal blocks, as computed in, LoRAs included.

    around: weights outside the blocks. block: the largest one. beside: by block, what LoRAs keep
    beside its quantized layers; () = nothing. read: by block, what is read for that from LoRA files.
    applying: by block, what its costliest layer takes beside all weights while LoRAs are applied.
    loading: highest point while LoRAs are applied to the whole network, which is read meanwhile.
    """

    around: int
    block: int
    count: int
    beside: tuple[int, ...] = ()
    read: tuple[int, ...] = ()
    applying: tuple[int, ...] = ()
    loading: int = 0

    @property
    def whole(self) -> int:
        return self.around + self.count * self.block + sum(self.beside)

    def with_resident(self, kept: int | None) -> int:
        """Weights in memory if `kept` blocks stay and the others come in turn.

        The next block is read while the current one computes, but not while LoRAs are applied to it.
        """
        if kept is None or kept + 2 >= self.count:
            return self.whole
        swept = 2 * self.block
        for beside, applying in zip(self.beside[kept:], self.applying[kept:], strict=True):
            swept = max(swept, self.block + max(self.block, applying) + beside)
        return self.between(kept) + max((swept, *self.applying[:kept]))

    def between(self, kept: int | None) -> int:
        """What stays from one stage to the next."""
        if kept is None:
            return self.whole
        return self.around + kept * self.block + sum(self.beside[:kept])

    def step_reads(self, kept: int) -> int:
        """Bytes that one sweep over the blocks reads from the disk."""
        return (self.count - kept) * self.block + sum(self.read[kept:])

    def fitting(self, room: int, more: int = 0) -> int | None:
        """How many blocks can stay in `room` bytes; -1 if not even two fit, None if all do.

        more: bytes that are free beside the room while the network is loaded.
        """
        if self.whole <= room and self.loading <= room + more:
            return None
        kept = -1
        while kept + 1 <= self.count - 3 and self.with_resident(kept + 1) <= room:
            kept += 1
        return kept
