"""Progress: bars on a terminal, JSON lines for programs, silence for libraries. Nobody else prints.

A JSON line is one object: {"event": "phase", "name", "total"} when a phase begins, {"event": "step", "name", "done",
"total"} as it advances, {"event": "done", "name", "seconds"} when it ends, {"event": "note", "text"} for remarks.
"""

from __future__ import annotations

import contextlib
import json
import sys
import time
from collections.abc import Callable, Iterator
from typing import Protocol, TextIO

from tqdm import tqdm

Advance = Callable[[int], None]


class Progress(Protocol):
    def phase(
        self, name: str, total: int | None = None, unit: str = "step"
    ) -> contextlib.AbstractContextManager[Advance]:
        """Context of one phase; the function it yields advances the phase by n units."""
        ...

    def note(self, text: str) -> None:
        """A remark for the user."""
        ...


class SilentProgress:
    """Says nothing."""

    @contextlib.contextmanager
    def phase(self, name: str, total: int | None = None, unit: str = "step") -> Iterator[Advance]:
        def ignore(n: int = 1) -> None:
            pass

        yield ignore

    def note(self, text: str) -> None:
        pass


class TerminalProgress:
    """tqdm bars on stderr, redrawn at most four times a second."""

    def __init__(self, stream: TextIO | None = None):
        self._stream = stream or sys.stderr

    @contextlib.contextmanager
    def phase(self, name: str, total: int | None = None, unit: str = "step") -> Iterator[Advance]:
        scale = unit == "B"
        layout = None if total else "{desc}: {elapsed}"
        with tqdm(
            total=total, desc=f"{name:<16}", unit=unit, unit_scale=scale, unit_divisor=1000 if scale else 1,
            file=self._stream, mininterval=0.25, bar_format=layout,
        ) as bar:  # fmt: skip

            def advance(n: int = 1) -> None:
                bar.update(n)

            yield advance

    def note(self, text: str) -> None:
        tqdm.write(text, file=self._stream)


class JsonProgress:
    """One JSON object per line on the given stream."""

    def __init__(self, stream: TextIO | None = None):
        self._stream = stream or sys.stdout

    def _emit(self, **event: object) -> None:
        print(json.dumps(event), file=self._stream, flush=True)

    @contextlib.contextmanager
    def phase(self, name: str, total: int | None = None, unit: str = "step") -> Iterator[Advance]:
        self._emit(event="phase", name=name, total=total, unit=unit)
        begun, done, said = time.monotonic(), 0, 0.0

        def advance(n: int = 1) -> None:
            nonlocal done, said
            done += n
            now = time.monotonic()
            if unit != "B" or now - said > 0.5 or done == total:
                said = now
                self._emit(event="step", name=name, done=done, total=total)

        yield advance
        self._emit(event="done", name=name, seconds=round(time.monotonic() - begun, 3))

    def note(self, text: str) -> None:
        self._emit(event="note", text=text)


class PlainProgress(SilentProgress):
    """Remarks as lines on stderr and no bars: for logs and pipes."""

    def note(self, text: str) -> None:
        print(text, file=sys.stderr, flush=True)


def make_progress(style: str) -> Progress:
    """ "bar", "json", "plain" or "none"."""
    styles: dict[str, Callable[[], Progress]] = {
        "bar": TerminalProgress,
        "json": JsonProgress,
        "plain": PlainProgress,
        "none": SilentProgress,
    }
    return styles[style]()
