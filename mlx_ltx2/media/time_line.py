"""Blocks of a stream put where their time stamps say: gaps stay open, and what only jitters is joined."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from fractions import Fraction
from typing import Generic, TypeVar

T = TypeVar("T")

JITTER_SECONDS = 0.01
"""A time stamp that is off by up to so much, or by half a block, is taken for a step only if those after it agree."""

_RESTART_SECONDS = 1.0
_AGREEING = 3


@dataclass(frozen=True)
class Block(Generic[T]):
    """at: time stamp in samples from the time line's 0, None if there is none. length: samples. content: what it is."""

    at: int | None
    length: int
    content: T


def placed(
    blocks: Iterable[Block[T]], rate_hz: int, tick: Fraction, *, restarts: bool = False
) -> Iterator[tuple[int, Block[T]]]:
    """(position in samples, block) in order. The first block lies at its time stamp, or at 0.

    A block follows the one before it unless its time stamp says otherwise by more than two ticks of the container's
    clock: files round their stamps to milliseconds, and a stamp alone may be wrong. A step is believed if it is larger
    than the jitter of files, or if the stamps after it say the same. Blocks that a step back lays over earlier ones
    are given where they lie. Where the clock falls back by more than a second it has begun anew, as in files that were
    joined without re-writing: what follows is joined. restarts: every step back is one, as in Ogg.

    tick: seconds of the clock of the time stamps.
    """
    fine = -(-2 * tick * rate_hz // 1) + 1
    ahead: deque[Block[T]] = deque()
    source = iter(blocks)
    end, before, moved = None, 0, 0
    while True:
        while len(ahead) <= _AGREEING and (block := next(source, None)) is not None:
            ahead.append(block)
        if not ahead:
            return
        block = ahead.popleft()
        if end is None:
            end = block.at or 0
        off = _off(block, end - moved)
        coarse = max(fine, min(block.length // 2, round(JITTER_SECONDS * rate_hz)))
        later = _later(block, ahead, end - moved)
        if abs(off) > coarse:
            step = 0 if later and abs(later[0]) <= coarse else off
            if step < 0 and (restarts or step < -_RESTART_SECONDS * rate_hz):
                moved, off, step = moved - off, 0, 0
        else:
            agreed = len(later) == _AGREEING and all(abs(other - off) <= fine for other in later)
            step = off if abs(off) > fine and abs(off - before) > fine and agreed else 0
        before = off - step
        position = end + step
        end = position + block.length
        yield position, block


def _off(block: Block[T], end: int) -> int:
    """Samples by which a time stamp lies after `end`, where the block would follow."""
    return 0 if block.at is None else block.at - end


def _later(block: Block[T], ahead: Iterable[Block[T]], end: int) -> list[int]:
    """The same for the blocks after it, as if each followed the one before it."""
    found, end = [], end + block.length
    for other in ahead:
        found.append(_off(other, end))
        end += other.length
    return found
