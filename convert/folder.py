"""The folder a conversion works in: `<output>.partial`, resumable, renamed to its name when it is complete."""

from __future__ import annotations

import errno
import fcntl
import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mlx_ltx2.errors import RequestError, ResourceError, WeightsError
from mlx_ltx2.weights.header import Header, read_header
from mlx_ltx2.weights.index import INDEX, MANIFEST, PARTIAL, is_model_folder, read_json, write_json
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
    """Hold a folder for this process alone; the system lets go of it when the process ends, however it ends."""
    try:
        handle = os.open(folder, os.O_RDONLY)
    except OSError as error:
        raise write_error(folder, error) from None
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
        yield
    finally:
        os.close(handle)


def _empty(folder: Path) -> None:
    for path in folder.iterdir():
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink()


@dataclass
class WorkFolder:
    """files: what is finished, path -> {"bytes", "sha256"}. sources: hashes of source files read completely."""

    output: Path
    path: Path
    key: dict[str, Any]
    files: dict[str, dict[str, object]] = field(default_factory=dict)
    sources: dict[str, str] = field(default_factory=dict)

    @classmethod
    @contextmanager
    def open(cls, output: Path, key: dict[str, Any], overwrite: bool) -> Iterator[WorkFolder]:
        """Make the folder, or go on in it if it belongs to the same conversion; no other process may until the end.

        Raises: RequestError if it belongs to another one, or cannot be written, or a process is at work in it.
        """
        work = cls(output, output.with_name(output.name + PARTIAL), key)
        try:
            work.path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise write_error(work.path, error) from None
        with _held(work.path):
            if not work._resume():
                if not overwrite:
                    raise RequestError(
                        f"{work.path} holds an unfinished conversion of another source or with other options. "
                        "Repeat that command to finish it, delete the folder, or allow overwriting."
                    )
                _empty(work.path)
            try:
                work.save()
            except OSError as error:
                raise write_error(work.path, error) from None
            yield work

    def _resume(self) -> bool:
        try:
            manifest = read_json(self.path / MANIFEST)
        except WeightsError:
            return not any(self.path.iterdir())  # interrupted before it was written, or not ours
        if manifest.get("key") != json.loads(json.dumps(self.key)):
            return False
        self.sources = dict(manifest.get("sources", {}))
        for name, entry in manifest.get("files", {}).items():
            path = self.path / name
            if path.is_file() and path.stat().st_size == entry["bytes"]:
                self.files[name] = entry
        return True

    def save(self) -> None:
        write_json(self.path / MANIFEST, {"key": self.key, "sources": self.sources, "files": self.files})

    def add(self, name: str, entry: dict[str, object]) -> None:
        """Remember a finished file."""
        self.files[name] = entry
        try:
            self.save()
        except OSError as error:
            raise write_error(self.path / MANIFEST, error) from None

    def drop_unless_begun(self) -> None:
        """Remove the folder if it holds no finished file."""
        if not self.files:
            shutil.rmtree(self.path, ignore_errors=True)

    def complete(self, index: dict[str, Any]) -> None:
        """Write the index, which makes it a model, and give the folder its name; an older model there is replaced."""
        try:
            self.save()
            write_json(self.path / INDEX, index)
            old = self.output.with_name(self.output.name + ".old")
            if self.output.is_dir() and any(self.output.iterdir()):
                shutil.rmtree(old, ignore_errors=True)
                self.output.rename(old)
            self.path.rename(self.output)
        except OSError as error:
            raise write_error(self.output, error) from None
        shutil.rmtree(old, ignore_errors=True)


def check_output(output: Path, key: dict[str, Any], overwrite: bool) -> bool:
    """True if `output` is the result of this very conversion already.

    Raises: RequestError if something else is there.
    """
    if not output.exists():
        return False
    if not output.is_dir():
        raise RequestError(f"{output} is a file; give a new folder.")
    if is_model_folder(output):
        manifest = read_json(output / MANIFEST) if (output / MANIFEST).is_file() else {}
        if manifest.get("key") == json.loads(json.dumps(key)):
            return True
        if overwrite:
            return False
        raise RequestError(
            f"{output} holds a model converted from another source or with other options. "
            "Choose another folder or allow overwriting."
        )
    if any(output.iterdir()):
        raise RequestError(f"{output} is not empty and no converted model. Choose a new folder.")
    return False


def check_disk(output: Path, needed: int) -> None:
    """Raise ResourceError unless `needed` bytes fit on the disk of `output`."""
    folder = next(p for p in output.absolute().parents if p.exists())
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise ResourceError(
            f"{output}: the conversion writes {needed / 1e9:.2f} GB and the disk has {free / 1e9:.2f} GB free. "
            "Free some space, choose another disk, or quantize to fewer bits."
        )
