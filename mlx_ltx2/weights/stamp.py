"""Which files are meant: what is remembered of a file is keyed by these, never by its path alone."""

from __future__ import annotations

from pathlib import Path

FileStamp = tuple[str, int, int, int, int]
"""Name, inode, bytes, times of change of content and of entry in ns."""


def file_stamp(path: Path) -> FileStamp:
    """Another one as soon as the file is written anew, exchanged or moved over.

    Raises: OSError if there is no such file.
    """
    found = path.stat()
    return path.name, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns


def folder_stamp(folder: Path) -> tuple[FileStamp, ...]:
    """Stamps of a folder's files, in the order of their names; folders inside do not count.

    Raises: OSError if there is no such folder.
    """
    return tuple(file_stamp(path) for path in sorted(folder.iterdir()) if path.is_file())
