"""Folders for work in progress that do not outlive it: each is locked by its process, and one that nobody holds goes.

A process that is killed cannot tidy up, but the system lets go of its lock; whoever comes next removes the folder.
"""

from __future__ import annotations

import errno
import fcntl
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

PREFIX = ".making-"


@contextmanager
def scratch_folder(parent: Path) -> Iterator[Path]:
    """A new folder in `parent`, held by this process and removed at the end, however the work ends.

    Raises: OSError if it cannot be made.
    """
    folder, handle = _new(parent)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        os.close(handle)


def sweep(parent: Path, *, old_prefix: str | None = None) -> None:
    """Remove what killed processes left in `parent`: scratch folders that nobody holds.

    old_prefix: of the folders that release 0.1 worked in, which hold nothing but `source` and `model`.
    """
    for folder in parent.glob(f"{PREFIX}*"):
        _remove_if_free(folder)
    for folder in parent.glob(f"{old_prefix}*-????????") if old_prefix else ():
        inside = {p.name for p in folder.iterdir()} if folder.is_dir() else {""}
        if inside <= {"source", "model", "model.partial"} and not _is_held(folder / "model.partial"):
            _remove_if_free(folder)


def _new(parent: Path) -> tuple[Path, int]:
    while True:
        folder = Path(tempfile.mkdtemp(prefix=PREFIX, dir=parent))
        try:
            handle = os.open(folder, os.O_RDONLY)
        except FileNotFoundError:  # swept before it was held
            continue
        if not _lock(handle) or not folder.exists():
            os.close(handle)
            continue
        return folder, handle


def _lock(handle: int) -> bool:
    """Take the lock of an open folder; True as well where the disk has no locks."""
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        if error.errno not in (errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.ENOLCK):
            raise
    return True


def _is_held(folder: Path) -> bool:
    """Whether a process holds a folder; True as well where nobody can tell."""
    try:
        handle = os.open(folder, os.O_RDONLY)
    except FileNotFoundError:
        return False
    except OSError:
        return True
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return True
    finally:
        os.close(handle)
    return False


def _remove_if_free(folder: Path) -> None:
    """Remove a folder unless a process holds it, or nobody can tell; its lock is held meanwhile."""
    if folder.is_symlink():
        return
    try:
        handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    except OSError:
        return
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        shutil.rmtree(folder, ignore_errors=True)
    except OSError:
        return
    finally:
        os.close(handle)
