"""What may be written: nothing that this program did not make is replaced, and no input of a run is one of its outputs.

Files are told apart by what they are on the disk, not by their names: a link, another way to write a path and, where
the file system ignores it, another case all name the same file.
"""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import combinations
from pathlib import Path

from mlx_ltx2.errors import MediaError, RequestError
from mlx_ltx2.media.claims import is_partial, real_path
from mlx_ltx2.media.files import AUDIO_SUFFIXES, CLIP_SUFFIXES
from mlx_ltx2.media.metadata import made_here

FRAME_NAME = re.compile(r"frame_\d+\.png")
"""Numbered frames in a folder of them; all other names there are the user's."""

_WRITTEN = (*CLIP_SUFFIXES, *AUDIO_SUFFIXES, ".latents.safetensors")


def check_replaceable(
    path: str | os.PathLike[str],
    *,
    overwrite: bool = False,
    ours: Callable[[Path], bool] = made_here,
) -> None:
    """Refuse an output that exists, unless it is this program's own earlier one, is empty, or overwrite is True.

    ours: what tells a file that this program wrote. A symbolic link is judged by the file that it points to.

    Raises MediaError for a folder, a pipe or a device, whatever overwrite is, and RequestError for a file of others.
    """
    real = real_path(path)
    try:
        facts = os.stat(real)
    except (FileNotFoundError, NotADirectoryError):
        return
    except OSError as error:
        raise MediaError(f"output {path} cannot be written ({error.strerror}); choose another output.") from error
    if stat.S_ISDIR(facts.st_mode):
        raise MediaError(f"output {path} is a folder; name a file in it, such as {Path(path) / 'clip.mp4'}.")
    if not stat.S_ISREG(facts.st_mode):
        raise MediaError(f"output {path} is a pipe or a device; name a file.")
    if overwrite or facts.st_size == 0 or is_partial(real):
        return
    if not ours(real):
        raise RequestError(
            f"{path} exists and is no file of this program; name another output, or add --overwrite "
            "(in Python overwrite=True) to replace it."
        )
    if not os.access(real, os.W_OK):
        raise RequestError(f"{path} exists and is write-protected; name another output, or add --overwrite.")


def check_frames_folder(folder: str | os.PathLike[str], *, overwrite: bool = False) -> None:
    """Refuse a folder for numbered frames that holds some of others, unless overwrite is True.

    Raises MediaError if it is no folder, RequestError for frames of others.
    """
    if os.path.lexists(folder) and not os.path.isdir(folder):
        raise MediaError(f"{folder} is no folder, and frames are to go into it; move it, or name another output.")
    if overwrite:
        return
    foreign = [path.name for path in numbered_frames(folder) if not is_own_frame(path)]
    if foreign:
        more = f" and {len(foreign) - 1} more" if len(foreign) > 1 else ""
        raise RequestError(
            f"{folder} holds {foreign[0]}{more}, no frames of this program; name another output, or add --overwrite "
            "(in Python overwrite=True) to replace those of the same number."
        )


def numbered_frames(folder: str | os.PathLike[str]) -> list[Path]:
    """What is named like a frame in a folder, in order; nothing if there is no such folder."""
    if not os.path.isdir(folder):
        return []
    return sorted(Path(folder) / name for name in os.listdir(folder) if FRAME_NAME.fullmatch(name))


def is_own_frame(path: Path) -> bool:
    """Whether a frame in a folder is this program's own: a file by itself, no link, with its mark."""
    return not path.is_symlink() and made_here(path)


def check_apart(
    outputs: Sequence[str | os.PathLike[str]],
    inputs: Iterable[str | os.PathLike[str]],
    *,
    frames_folder: str | os.PathLike[str] | None = None,
) -> None:
    """Refuse a run that would write into one of its inputs, or twice into one file.

    inputs: files and whole folders; what does not exist, such as a hub's id, is none. frames_folder: see
    `check_frames_folder`; its numbered frames are outputs too.

    Raises RequestError.
    """
    for one, other in combinations(outputs, 2):
        if _identity(one) == _identity(other) or _spelling(one) == _spelling(other):
            raise RequestError(f"{one} and {other} are the same file and are both to be written; name two files.")
    frames = [] if frames_folder is None else numbered_frames(frames_folder)
    written = {_identity(path): path for path in (*outputs, *frames)}
    for given in inputs:
        for file in _files(given):
            path = written.get(_identity(file))
            if path is not None:
                also = "" if os.fspath(path) == os.fspath(file) else f", the same file as {path},"
                raise RequestError(
                    f"{file}{also} is an input of this run and would be written over; name another output."
                )


def _identity(path: str | os.PathLike[str]) -> tuple[int, int] | str:
    """Device and number of a file, behind all links; its real path if it does not exist."""
    try:
        facts = os.stat(path)
    except (OSError, ValueError):
        return os.fspath(real_path(path))
    return facts.st_dev, facts.st_ino


def _spelling(path: str | os.PathLike[str]) -> str:
    return os.fspath(real_path(path)).casefold()


def _files(path: str | os.PathLike[str]) -> Iterator[str]:
    """A file, or what a folder of weights holds; clips that were written into it are no part of it."""
    if os.path.isdir(path):
        for folder, _, names in os.walk(path):
            yield from (os.path.join(folder, name) for name in names if not name.endswith(_WRITTEN))
    else:
        yield os.fspath(path)
