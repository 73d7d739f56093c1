"""Reading and writing media files: one place that turns system errors into ours and makes output atomic."""

from __future__ import annotations

import errno
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import av.error

from mlx_ltx2.errors import LTX2Error, MediaError, ResourceError
from mlx_ltx2.media.claims import Claim, real_path

VIDEO_SUFFIXES = (".mp4", ".mov")
ANIMATION_SUFFIXES = (".gif", ".webp")
STILL_SUFFIXES = (".png", ".jpg", ".jpeg")
AUDIO_SUFFIXES = (".wav",)
CLIP_SUFFIXES = VIDEO_SUFFIXES + ANIMATION_SUFFIXES + STILL_SUFFIXES


@contextmanager
def reading(path: str | os.PathLike[str], what: str) -> Iterator[None]:
    """Turn every failure to open or decode `path` into a MediaError that names the file and the reason.

    what: the noun of the message: "image", "video" or "audio".
    """
    if not os.path.exists(path):
        raise MediaError(f"{what.removesuffix(' file')} file {path} does not exist; check the path.")
    if os.path.isdir(path):
        raise MediaError(f"{path} is a folder, not a file that holds {_article(what)}; name one file.")
    if not os.path.isfile(path):  # a pipe or a device may never end
        raise MediaError(f"{path} is a pipe or a device, not a file that holds {_article(what)}; save it as a file.")
    try:
        yield
    except LTX2Error:
        raise
    except (av.error.FFmpegError, OSError, ValueError, SyntaxError, EOFError) as error:
        raise MediaError(
            f"{path} cannot be read as {_article(what)} ({_reason(error)}); "
            "the file is damaged or of a kind that is not supported."
        ) from error


@contextmanager
def writing(path: str | os.PathLike[str]) -> Iterator[None]:
    """Turn every failure to write `path` into a ResourceError (disk full) or a MediaError."""
    try:
        yield
    except LTX2Error:
        raise
    except (av.error.FFmpegError, OSError) as error:
        if getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT):
            raise ResourceError(
                f"no space left on the disk while writing {path}; free some or choose another folder."
            ) from error
        raise MediaError(f"{path} cannot be written ({_reason(error)}); choose another output.") from error


def check_place(path: str | os.PathLike[str], bytes_needed: int = 0) -> None:
    """Try whether a file of this name can be made where it is wanted, and has room. Leaves nothing behind.

    Raises MediaError, ResourceError, and RequestError if another run writes this name now.
    """
    target = real_path(path)
    folder = next(parent for parent in target.parents if os.path.lexists(parent))
    if not folder.is_dir():
        raise MediaError(f"output {path} cannot be written: {folder} is a file, not a folder.")
    try:
        with tempfile.NamedTemporaryFile(dir=folder, prefix=".mlx-ltx2-check-") as probe:
            probe.write(b"\0" * 4096)
            probe.flush()
        with Claim(target):
            _try_name(target)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise ResourceError(f"no space left on the disk that holds {folder}; free some space.") from error
        if error.errno in (errno.ENAMETOOLONG, errno.EINVAL, errno.EILSEQ):
            raise MediaError(
                f"output {path} is a name that the file system refuses ({_reason(error)}); choose another."
            ) from error
        raise MediaError(f"folder {folder} cannot be written to ({_reason(error)}); choose another output.") from error
    free = shutil.disk_usage(folder).free
    if free < bytes_needed:
        raise ResourceError(
            f"no space left on the disk that holds {folder}: {path} may need {bytes_needed / 1e6:.1f} MB, "
            f"{free / 1e6:.1f} MB are free; make room."
        )


def _try_name(target: Path) -> None:
    try:
        os.close(os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL))
    except FileExistsError:
        return
    target.unlink()


def holds_audio(path: str | os.PathLike[str]) -> bool:
    """True if a file with this suffix can carry sound."""
    return Path(path).suffix.lower() in VIDEO_SUFFIXES + AUDIO_SUFFIXES


def _article(what: str) -> str:
    return {"audio": "sound"}.get(what, f"{'an' if what[0] in 'aeiou' else 'a'} {what}")


def _reason(error: Exception) -> str:
    return getattr(error, "strerror", None) or str(error) or type(error).__name__
