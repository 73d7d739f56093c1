"""Text contexts on disk, so that a prompt that was seen before needs no text encoder.

One safetensors file per prompt, named by a hash of everything the context depends on. A file that does not hash to what
it says of itself is made again. Prompts are not stored, apart from the remark on one that had to be cut.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path

import mlx.core as mx

from mlx_ltx2.errors import WeightsError
from mlx_ltx2.states import TextContext
from mlx_ltx2.version import VERSION
from mlx_ltx2.weights.array_file import PARTIAL, read_arrays, write_arrays
from mlx_ltx2.weights.header import read_header

FORMAT = "2"
MAX_BYTES = 2 * 10**9
"""A context of LTX-2.3 takes 12.6 MB, so about 160 prompts are kept."""

_STREAMS = ("video", "audio")
_ABANDONED_S = 3600
"""Age at which a half-written file belongs to a run that was killed."""

Say = Callable[[str], None]


def _silent(text: str) -> None:
    pass


@dataclass(frozen=True)
class CachedContext:
    """A context as it was made, and the remark that was made with it, if any."""

    context: TextContext
    note: str | None = None


@dataclass(frozen=True)
class EmbeddingCache:
    """Contexts of one text encoder and one set of projections.

    folder: made when the first context is kept. identity: of encoder and projections, see `identity_of`. max_bytes: the
    contexts that were not used for longest go when there are more. say: takes remarks.
    """

    folder: Path
    identity: str
    max_bytes: int = MAX_BYTES
    say: Say = field(default=_silent, compare=False)

    def path(self, prompt: str) -> Path:
        """Where a prompt's context is, or would be."""
        name = hashlib.sha256(f"{FORMAT}\0{self.identity}\0{prompt}".encode()).hexdigest()
        return self.folder / f"{name}.safetensors"

    def __contains__(self, prompt: object) -> bool:
        """Whether there is a context of the prompt that can be trusted; a damaged one goes."""
        return isinstance(prompt, str) and self.get(prompt) is not None

    def get(self, prompt: str) -> CachedContext | None:
        """The prompt's context, or None if there is none that can be trusted."""
        path = self.path(prompt)
        if not path.is_file():
            return None
        try:
            found = _read(path)
        except (OSError, RuntimeError, ValueError, KeyError, WeightsError) as error:
            self.say(f"a kept prompt embedding is damaged and is made again ({path.name}: {error})")
            with contextlib.suppress(OSError):
                path.unlink()
            return None
        with contextlib.suppress(OSError):
            os.utime(path)  # the least recently used go first
        return found

    def put(self, prompt: str, context: TextContext, note: str | None = None) -> None:
        """Keep a context. One that cannot be written is said, and the run goes on."""
        path = self.path(prompt)
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            self._make_room()
            _write(path, context, note)
            self._make_room()
        except OSError as error:
            self.say(
                f"the prompt's embedding could not be kept in {self.folder} ({error.strerror or error}); the next run "
                "with this prompt will load the text encoder again"
            )

    def _make_room(self) -> None:
        """Remove what was not used for longest, and what runs that were killed left behind."""
        entries = []
        for path in self.folder.iterdir():
            with contextlib.suppress(FileNotFoundError):  # another run may be at it too
                found = path.stat()
                if path.suffix == PARTIAL and time.time() - found.st_mtime > _ABANDONED_S:
                    path.unlink()
                elif path.suffix == ".safetensors":
                    entries.append((found.st_mtime_ns, found.st_size, path))
        total = sum(size for _, size, _ in entries)
        for _, size, path in sorted(entries):
            if total <= self.max_bytes:
                return
            path.unlink(missing_ok=True)
            total -= size


def identity_of(*folders: Path, **more: object) -> str:
    """A hash that changes with the weights and configs of the folders, and with `more`.

    Weights count by their headers, sizes and times of change, so that gigabytes are not read; small files by content.
    The release of this package and of MLX and the kind of device belong to it, since they decide the last bits.
    """
    digest = hashlib.sha256(f"{VERSION} {version('mlx')} {mx.default_device()}".encode())
    for key, value in sorted(more.items()):
        digest.update(f"{key}={value}\0".encode())
    for folder in folders:
        digest.update(b"folder\0")
        for path in sorted(p for p in folder.iterdir() if p.is_file()):
            for part in _fingerprint(path):
                digest.update(part)
    return digest.hexdigest()


def _fingerprint(path: Path) -> Iterator[bytes]:
    found = path.stat()
    if path.suffix == ".safetensors":
        yield f"{path.name} {found.st_size} {found.st_mtime_ns}\0".encode()
        with path.open("rb") as file:
            yield file.read(read_header(path).data_begin)
    elif path.suffix in (".json", ".model", ".txt", ".jinja"):
        yield f"{path.name} {found.st_size}\0".encode()
        yield path.read_bytes()


def _read(path: Path) -> CachedContext:
    arrays, metadata = read_arrays(path)
    if metadata.get("format") != FORMAT:
        raise ValueError("it is of another format")
    return CachedContext(TextContext(arrays.get("video"), arrays.get("audio")), metadata.get("note"))


def _write(path: Path, context: TextContext, note: str | None) -> None:
    arrays = {name: array for name in _STREAMS if (array := getattr(context, name)) is not None}
    write_arrays(path, arrays, {"format": FORMAT, **({"note": note} if note else {})})
