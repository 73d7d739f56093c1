"""What may be written: nothing that this program did not make is replaced, and no input of a run is one of its outputs.

Files are told apart by what they are on the disk, not by their names: a link, another way to write a path and, where
the file system ignores it, another case all name the same file.
"""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from itertools import combinations
from pathlib import Path

from mlx_ltx2.errors import MediaError, RequestError
from mlx_ltx2.media.claims import Claim, is_partial, real_path
from mlx_ltx2.media.files import AUDIO_SUFFIXES, CLIP_SUFFIXES, STILL_SUFFIXES, check_place, writing
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


@contextmanager
def replacing(path: str | os.PathLike[str], *, overwrite: bool = False) -> Iterator[Path]:
    """Yield a new, empty file beside `path`; it takes that name on success and is removed on any exception.

    A symbolic link stays a link, and the file that it points to is replaced. overwrite: see `check_writable`.

    Raises RequestError for a file of others and for a name that another run writes, MediaError, ResourceError.
    """
    with writing(path):
        check_replaceable(path, overwrite=overwrite)
        with Claim(path) as claim:
            partial = claim.partial(Path(path).suffix)
            yield partial
            check_replaceable(path, overwrite=overwrite)  # a file may have come meanwhile
            os.replace(partial, claim.target)


@contextmanager
def replacing_files(path: str | os.PathLike[str], *, overwrite: bool = False) -> Iterator[Path]:
    """Yield a new, empty folder for numbered frames; on success they move to the folder `path`, else they go.

    Frames of an earlier run are removed from `path`; all that others made stays, unless overwrite is True and a new
    frame has its number.

    Raises RequestError for frames of others and for a folder that another run writes, MediaError, ResourceError.
    """
    with writing(path):
        check_frames_folder(path, overwrite=overwrite)
        with Claim(path) as claim:
            partial = claim.partial_folder()
            yield partial
            check_frames_folder(path, overwrite=overwrite)
            claim.target.mkdir(parents=True, exist_ok=True)
            for old in filter(is_own_frame, numbered_frames(claim.target)):
                old.unlink()
            for new in partial.iterdir():
                os.replace(new, claim.target / new.name)


def check_writable(
    path: str | os.PathLike[str],
    *,
    num_frames: int | None = None,
    bytes_needed: int = 0,
    sound_only: bool = False,
    overwrite: bool = False,
) -> None:
    """Find out before anything is loaded whether a clip can be written to `path`. Leaves nothing behind.

    num_frames: frames the clip will have, so that several frames into a .png are refused now.
    bytes_needed: space that must be free, see `estimate.clip_bytes`. sound_only: the output is a .wav.
    overwrite: an existing file that this program did not make may be replaced; its own earlier output always may.

    Raises RequestError for a suffix that does not fit and for a file of others, MediaError for a folder that cannot be
    written to or a name that the file system refuses, ResourceError when the disk is full.
    """
    target = Path(path)
    _check_suffix(target, num_frames, sound_only)
    check_replaceable(target, overwrite=overwrite)
    check_place(target, bytes_needed)


def _check_suffix(target: Path, num_frames: int | None, sound_only: bool) -> None:
    allowed = AUDIO_SUFFIXES if sound_only else CLIP_SUFFIXES
    suffix = target.suffix.lower()
    if suffix not in allowed:
        raise RequestError(f"output {target} ends in {suffix or 'no suffix'!r}; use one of {', '.join(allowed)}.")
    if suffix in STILL_SUFFIXES and num_frames is not None and num_frames > 1:
        raise RequestError(
            f"{target} is a still image and the clip has {num_frames} frames; "
            "use .mp4, .mov, .gif or .webp, or save numbered frames into a folder."
        )
