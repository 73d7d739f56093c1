"""Reading and writing media files: one place that turns system errors into ours and makes output atomic."""

from __future__ import annotations

import errno
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import av.error

from mlx_ltx2.errors import LTX2Error, MediaError, RequestError, ResourceError

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
        raise MediaError(f"{what} file {path} does not exist; check the path.")
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


def partial_path(path: str | os.PathLike[str]) -> Path:
    """Where a file is written before it takes its name: `.name.partial.mp4` beside `name.mp4`."""
    target = Path(path)
    return target.with_name(f".{target.stem}.partial{target.suffix}")


@contextmanager
def replacing(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Yield the partial path; it takes the name `path` on success and is removed on any exception."""
    target, partial = Path(path), partial_path(path)
    with writing(target):
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            yield partial
            os.replace(partial, target)
        except BaseException:
            with suppress(FileNotFoundError):
                partial.unlink()
            raise


@contextmanager
def replacing_files(path: str | os.PathLike[str], pattern: str) -> Iterator[Path]:
    """Yield a new, empty folder beside the folder `path`; on success its files move there, on any exception it goes.

    pattern: files in `path` that match it are of an earlier run and are removed; all others stay.
    """
    target, partial = Path(path), partial_path(path)
    with writing(target):
        shutil.rmtree(partial, ignore_errors=True)
        try:
            partial.mkdir(parents=True)
            yield partial
            target.mkdir(parents=True, exist_ok=True)
            for old in target.glob(pattern):
                old.unlink()
            for new in partial.iterdir():
                os.replace(new, target / new.name)
        finally:
            shutil.rmtree(partial, ignore_errors=True)


def check_writable(
    path: str | os.PathLike[str],
    *,
    num_frames: int | None = None,
    bytes_needed: int = 0,
    sound_only: bool = False,
) -> None:
    """Find out before anything is loaded whether a clip can be written to `path`. Leaves nothing behind.

    num_frames: frames the clip will have, so that several frames into a .png are refused now.
    bytes_needed: space that must be free. sound_only: the output is a .wav.

    Raises RequestError for a suffix that does not fit, MediaError for a folder that cannot be written to,
    ResourceError when the disk is full.
    """
    target = Path(path)
    _check_suffix(target, num_frames, sound_only)
    if target.is_dir():
        raise MediaError(f"output {target} is a folder; name a file in it, such as {target / 'clip.mp4'}.")
    folder = target.absolute().parent
    while not folder.exists():
        folder = folder.parent
    if not folder.is_dir():
        raise MediaError(f"output {target} cannot be written: {folder} is a file, not a folder.")
    try:
        with tempfile.NamedTemporaryFile(dir=folder, prefix=".mlx-ltx2-check-") as probe:
            probe.write(b"\0" * 4096)
            probe.flush()
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise ResourceError(f"no space left on the disk that holds {folder}; free some space.") from error
        raise MediaError(f"folder {folder} cannot be written to ({_reason(error)}); choose another output.") from error
    free = shutil.disk_usage(folder).free
    if free < bytes_needed:
        raise ResourceError(
            f"{target} needs about {bytes_needed / 1e6:.0f} MB, {free / 1e6:.0f} MB are free; make room."
        )


def holds_audio(path: str | os.PathLike[str]) -> bool:
    """True if a file with this suffix can carry sound."""
    return Path(path).suffix.lower() in VIDEO_SUFFIXES + AUDIO_SUFFIXES


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


def _article(what: str) -> str:
    return {"audio": "sound"}.get(what, f"{'an' if what[0] in 'aeiou' else 'a'} {what}")


def _reason(error: Exception) -> str:
    return getattr(error, "strerror", None) or str(error) or type(error).__name__
