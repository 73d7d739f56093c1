"""The folder a conversion works in: `<output>.partial`, resumable, renamed to its name when it is complete."""

from __future__ import annotations

import errno
import fcntl
import hashlib
import json
import os
import shutil
from collections.abc import Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mlx_ltx2.errors import RequestError, ResourceError
from mlx_ltx2.weights import hub
from mlx_ltx2.weights.header import Header, read_header
from mlx_ltx2.weights.index import INDEX, MANIFEST, PARTIAL, is_model_folder, write_json
from mlx_ltx2_convert.made import REPLACED, finish_replacing, foreign_in, made_by, read_manifest, remove_made
from mlx_ltx2_convert.options import Options
from mlx_ltx2_convert.plan import Plan
from mlx_ltx2_convert.shards import write_error

_SAMPLES = 64
_SAMPLE_BYTES = 4096
_NO_LOCKS = (errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.ENOLCK)
"""What network disks without locks answer; a conversion runs there as well, but nothing keeps a second one away."""


def fingerprint(header: Header) -> str:
    """Tells two source files apart without reading them: size, header and samples spread over the data."""
    sha = hashlib.sha256(str(header.file_bytes).encode())
    with header.path.open("rb") as file:
        sha.update(file.read(header.data_begin))
        room = header.file_bytes - header.data_begin
        for i in range(_SAMPLES):
            file.seek(header.data_begin + room * i // _SAMPLES)
            sha.update(file.read(_SAMPLE_BYTES))
    return sha.hexdigest()


def conversion_key(plan: Plan, options: Options) -> dict[str, Any]:
    """What must be equal for two conversions to have the same result."""
    return {
        "sources": {plan.source_names[h.path]: fingerprint(h) for h in plan.headers},
        "loras": {p.name: fingerprint(read_header(p)) for p in plan.loras},
        "quantization": options.quantization.to_dict() if options.quantization else None,
        "dtype": options.dtype,
        "variant": plan.traits.variant,
        "components": sorted(plan.configs),
        "shard_bytes": options.shard_bytes,
    }


@contextmanager
def _held(folder: Path) -> Iterator[None]:
    """Make a folder and hold it for this process alone; the system lets go of it when the process ends, however."""
    handle = _open_folder(folder)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise RequestError(
                f"another process is converting into {folder}. Wait until it has ended, or choose another folder."
            ) from None
        except OSError as error:
            if error.errno not in _NO_LOCKS:
                raise write_error(folder, error) from None
        if not folder.exists() or not os.path.samestat(os.fstat(handle), folder.stat()):
            raise RequestError(
                f"another process has just finished converting into {folder}. Run the same command again."
            )
        yield
    finally:
        os.close(handle)


def _open_folder(folder: Path) -> int:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        return os.open(folder, os.O_RDONLY)
    except OSError as error:
        raise write_error(folder, error) from None


@dataclass
class WorkFolder:
    """files: what is finished, path -> {"bytes", "sha256"}. sources: hashes of source files read completely.

    made: every name that the conversion writes, relative to the folder.
    """

    output: Path
    path: Path
    key: dict[str, Any]
    made: tuple[str, ...] = ()
    files: dict[str, dict[str, object]] = field(default_factory=dict)
    sources: dict[str, str] = field(default_factory=dict)

    @classmethod
    @contextmanager
    def open(cls, output: Path, key: dict[str, Any], overwrite: bool, made: Iterable[str] = ()) -> Iterator[WorkFolder]:
        """Make the folder, or go on in it if it belongs to the same conversion; no other process may until the end.

        Raises: RequestError if it belongs to another one, or is the user's, or cannot be written, or a process is
            at work in it.
        """
        work = cls(output, output.with_name(output.name + PARTIAL), key, tuple(sorted(made)))
        with _held(work.path):
            try:
                work._begin(overwrite)
                work.save()
            except OSError as error:
                raise write_error(work.path, error) from None
            yield work

    def _begin(self, overwrite: bool) -> None:
        manifest = read_manifest(self.path)
        if manifest is None:
            self._refuse_unless_empty()
        elif manifest["key"] == json.loads(json.dumps(self.key)):
            self._resume(manifest)
        elif overwrite:
            self._start_anew(manifest)
        else:
            raise RequestError(
                f"{self.path} holds an unfinished conversion of another source or with other options. "
                "Repeat that command to finish it, delete the folder, or allow overwriting."
            )

    def _refuse_unless_empty(self) -> None:
        there = sorted(p.name for p in self.path.iterdir())
        if there and there != [f"{MANIFEST}.new"]:  # a run that was stopped before its first file was complete
            raise RequestError(
                f"{self.path} was not made by a conversion (it holds {_some(there)}) and is left as it is. "
                "Move it away, or choose another output folder."
            )

    def _resume(self, manifest: dict[str, Any]) -> None:
        self.sources = dict(manifest.get("sources", {}))
        for name, entry in manifest["files"].items():
            path = self.path / name
            if path.is_file() and path.stat().st_size == entry["bytes"]:
                self.files[name] = entry

    def _start_anew(self, manifest: dict[str, Any]) -> None:
        if (self.path / REPLACED).is_dir() and not self.output.exists():
            (self.path / REPLACED).rename(self.output)  # stopped between two names; the older model has its own again
        made = made_by(manifest)
        _refuse_foreign(self.path, made)
        remove_made(self.path, made, keep=MANIFEST)

    def save(self) -> None:
        """The manifest; its order does not depend on how often the conversion was stopped."""
        content = {
            "key": self.key,
            "sources": dict(sorted(self.sources.items())),
            "files": dict(sorted(self.files.items())),
            "made": list(self.made),
        }
        write_json(self.path / MANIFEST, content)

    def add(self, name: str, entry: dict[str, object], source: str | None = None) -> None:
        """Remember a finished file; source: the source file of which it is a copy, whose hash is known now."""
        self.files[name] = entry
        if source is not None:
            self.sources[source] = str(entry["sha256"])
        try:
            self.save()
        except OSError as error:
            raise write_error(self.path / MANIFEST, error) from None

    def drop_unless_begun(self) -> None:
        """Remove the folder if it holds no finished file."""
        if not self.files:
            remove_made(self.path, {*self.made, MANIFEST})

    def complete(self, index: dict[str, Any]) -> None:
        """Write the index, which makes it a model, and give the folder its name.

        An older model there moves into the new one first and is removed from it last, so that a stop at any moment
        leaves one of the two complete and nothing under a name that is not ours.
        """
        try:
            self.save()
            write_json(self.path / INDEX, index)
            if self.output.is_dir() and any(self.output.iterdir()):
                self._check_replaceable()
                self.output.rename(self.path / REPLACED)
            self.path.rename(self.output)
            finish_replacing(self.output)
        except OSError as error:
            raise write_error(self.output, error) from None

    def _check_replaceable(self) -> None:
        manifest = read_manifest(self.output)
        if manifest is None or not is_model_folder(self.output):
            raise RequestError(
                f"{self.output} was filled meanwhile by something else. The new model is complete in {self.path}; "
                "move one of the two."
            )
        _refuse_foreign(self.output, made_by(manifest))


def check_output(output: Path, key: dict[str, Any], overwrite: bool) -> bool:
    """True if `output` is the result of this very conversion already.

    Raises: RequestError if something else is there.
    """
    if not output.exists():
        return False
    if not output.is_dir():
        raise RequestError(f"{output} is a file; give a new folder.")
    if is_model_folder(output):
        manifest = read_manifest(output) or {}
        if manifest.get("key") == json.loads(json.dumps(key)):
            try:
                finish_replacing(output)
            except OSError as error:
                raise write_error(output, error) from None
            return True
        if not overwrite:
            raise RequestError(
                f"{output} holds a model converted from another source or with other options. "
                "Choose another folder or allow overwriting."
            )
        if not manifest:
            raise RequestError(
                f"{output} is a model without a readable {MANIFEST}, so that nobody can tell which of its files may "
                "be replaced. Move it away, or choose another folder."
            )
        _refuse_foreign(output, made_by(manifest))
        return False
    if any(output.iterdir()):
        raise RequestError(f"{output} is not empty and no converted model. Choose a new folder.")
    return False


def check_places(output: Path, sources: Iterable[Path]) -> None:
    """Refuse an output that would move or remove what the conversion reads, or that belongs to another program.

    Raises: RequestError.
    """
    real = output.resolve()
    if real == Path.cwd() or os.path.ismount(real):
        raise RequestError(f"{output} is the current folder or the root of a disk; give the name of a folder in it.")
    for source in sources:
        for place in (source.absolute(), source.resolve()):
            if real in place.parents or real.with_name(real.name + PARTIAL) in place.parents:
                raise RequestError(
                    f"the source {source} lies in the output folder {output}; choose an output beside it."
                )
    cache = hub.cache_folder().resolve()
    if real == cache or cache in real.parents:
        raise RequestError(f"{output} lies in the hub's own cache ({cache}); choose another output folder.")


def _refuse_foreign(folder: Path, made: Collection[str]) -> None:
    foreign = foreign_in(folder, made)
    if foreign:
        raise RequestError(
            f"{folder} also holds what the conversion did not make: {_some(foreign)}. Only the tool's own files are "
            "ever replaced; move yours away, or choose another folder."
        )


def _some(names: Sequence[str], shown: int = 4) -> str:
    return ", ".join(names[:shown]) + (f" and {len(names) - shown} more" if len(names) > shown else "")


def check_disk(output: Path, needed: int) -> None:
    """Raise ResourceError unless `needed` bytes fit on the disk of `output`."""
    folder = next(p for p in output.absolute().parents if p.exists())
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise ResourceError(
            f"{output}: the conversion writes {needed / 1e9:.2f} GB and the disk has {free / 1e9:.2f} GB free. "
            "Free some space, choose another disk, or quantize to fewer bits."
        )
