"""Names that a run holds while it writes: no second run writes the same file, and unfinished files are its own.

Beside an output lie, as long as it is written, a lock and the partial files that the lock lists. Their names do not
grow with the output's, so that they fit where it fits. A run that was killed leaves both; the next run that wants the
same name finds the lock free and removes what is listed in it, and nothing else. Where the file system has no locks
(some network disks), runs go on without: their partial files are apart all the same.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import os
import secrets
import shutil
import sys
import threading
import unicodedata
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType

from mlx_ltx2.errors import RequestError

_PREFIX = ".mlx-ltx2-"
_NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL)


def real_path(path: str | os.PathLike[str]) -> Path:
    """The file that is written for a name: a symbolic link stays, and what it points to is written.

    Raises RequestError for what can be no name.
    """
    try:
        return Path(os.path.realpath(path))
    except ValueError as error:  # a zero byte ends a name
        raise RequestError(f"{os.fspath(path)!r} is no name of a file ({error}); choose another.") from error


def is_partial(path: str | os.PathLike[str]) -> bool:
    """Whether a running claim of this process made this file, so that it may be written into."""
    real = real_path(path)
    return any(real in hold.partials for hold in list(_HELD.values()))


@dataclass
class _Hold:
    """handle: of the open lock file. locked: whether the file system granted the lock. made: folders that are new."""

    lock: Path
    handle: int
    locked: bool
    thread: int
    made: list[Path]
    uses: int = 0
    partials: set[Path] = field(default_factory=set)


_HELD: dict[Path, _Hold] = {}
_GUARD = threading.Lock()


class Claim:
    """The right to write one file or folder, until it is released; a thread may hold a name several times.

    target: what is really written, see `real_path`. Missing folders are made, and removed again if they stay empty.

    Raises RequestError if another run writes this name now, OSError if the folder cannot be written to.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.target = real_path(path)
        self._mine: list[Path] = []
        self._open = True
        with _GUARD:
            hold = _HELD.get(self.target)
            if hold is None:
                hold = _HELD[self.target] = _take(self.target)
            elif hold.thread != threading.get_ident():
                raise _busy(self.target)
            hold.uses += 1
            self._hold = hold

    def partial(self, suffix: str) -> Path:
        """A new, empty file beside the target."""
        path = self._new_name(suffix)
        os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666))
        return path

    def partial_folder(self) -> Path:
        """A new, empty folder beside the target."""
        path = self._new_name("")
        path.mkdir()
        return path

    def release(self) -> None:
        """Remove what is left of the partial files and let the name go; a second call does nothing."""
        if not self._open:
            return
        self._open = False
        for path in self._mine:
            _remove(path)
        with _GUARD:
            hold = self._hold
            hold.partials.difference_update(self._mine)
            hold.uses -= 1
            if hold.uses == 0:
                del _HELD[self.target]
                _let_go(hold)

    def __enter__(self) -> Claim:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.release()

    def _new_name(self, suffix: str) -> Path:
        self.target.parent.mkdir(parents=True, exist_ok=True)  # it may have been removed meanwhile
        path = self.target.with_name(f"{_PREFIX}{secrets.token_hex(6)}.partial{suffix}")
        os.write(self._hold.handle, f"{path.name}\n".encode())  # listed first: a killed run leaves nothing unknown
        self._mine.append(path)
        self._hold.partials.add(path)
        return path


def _take(target: Path) -> _Hold:
    made = _make_folders(target.parent)
    lock = target.with_name(f"{_PREFIX}{_fingerprint(target.name)}.lock")
    try:
        handle, locked = _locked(lock, target)
    except BaseException:
        _remove_folders(made)
        raise
    if locked:
        for name in os.pread(handle, 1 << 16, 0).decode("ascii", "replace").split():
            if name.startswith(_PREFIX) and os.sep not in name:
                _remove(target.with_name(name))
        os.ftruncate(handle, 0)
    return _Hold(lock, handle, locked, threading.get_ident(), made)


def _locked(lock: Path, target: Path) -> tuple[int, bool]:
    """An open lock file, and whether it is really locked."""
    while True:
        handle = os.open(lock, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW, 0o666)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if _is_at(handle, lock):  # else the run before has just removed it
                return handle, True
        except BlockingIOError:
            os.close(handle)
            raise _busy(target) from None
        except OSError as error:
            if error.errno in _NO_LOCKS:
                return handle, False
            os.close(handle)
            raise
        os.close(handle)


def _is_at(handle: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(handle), os.stat(path))
    except FileNotFoundError:
        return False


def _let_go(hold: _Hold) -> None:
    with suppress(OSError):  # its folder may be gone, or writable no more
        hold.lock.unlink()
    os.close(hold.handle)
    _remove_folders(hold.made)


def _busy(target: Path) -> RequestError:
    return RequestError(f"another run is writing {target} now; wait for its end, or name another output.")


def _fingerprint(name: str) -> str:
    """Of a file name, as the file system tells names apart: Macs ignore case and the way accents are written."""
    if sys.platform == "darwin":
        name = unicodedata.normalize("NFC", name).casefold()
    return hashlib.sha256(os.fsencode(name)).hexdigest()[:16]


def _make_folders(folder: Path) -> list[Path]:
    missing = []
    while not os.path.lexists(folder):
        missing.append(folder)
        folder = folder.parent
    made: list[Path] = []
    try:
        for new in reversed(missing):
            new.mkdir(exist_ok=True)
            made.append(new)
    except OSError:
        _remove_folders(made)
        raise
    return made


def _remove_folders(made: list[Path]) -> None:
    for folder in reversed(made):
        with suppress(OSError):  # something lies in it by now, or it is gone
            folder.rmdir()


def _remove(path: Path) -> None:
    """Remove a partial file or folder; a link is removed itself, never what it points to."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        with suppress(OSError):
            path.unlink(missing_ok=True)
