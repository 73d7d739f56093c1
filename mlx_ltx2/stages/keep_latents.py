"""A finished clip's latents in a file beside it, so that a later run goes on from them and encodes nothing."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import count
from pathlib import Path

import mlx.core as mx

from mlx_ltx2.errors import MediaError, ResourceError, WeightsError
from mlx_ltx2.media.claims import Claim
from mlx_ltx2.media.files import reading, writing
from mlx_ltx2.media.outputs import check_replaceable
from mlx_ltx2.states import DenoisedPair
from mlx_ltx2.weights.array_file import read_arrays, write_arrays
from mlx_ltx2.weights.header import read_header

FORMAT = "1"
SUFFIX = ".latents.safetensors"
UNWRITTEN = "unwritten"
"""Metadata of latents whose clip could not be written: everything that the clip would have said about itself."""


@dataclass(frozen=True)
class Found:
    """latents: those of the clip, or None. note: what there is to say about them, or None."""

    latents: DenoisedPair | None = None
    note: str | None = None


def latents_path(clip: Path) -> Path:
    """`clip.latents.safetensors` for `clip.mp4`."""
    return clip.with_name(f"{clip.stem}{SUFFIX}")


def is_latents_file(path: Path) -> bool:
    """Whether this program wrote a file of latents; only its header is read."""
    try:
        metadata = read_header(path).metadata
    except WeightsError:
        return False
    return "format" in metadata and "latent_space" in metadata


def keep_latents(clip: Path, latents: DenoisedPair, space: str, *, overwrite: bool = False) -> Path:
    """Write the latents of a finished file beside it, together with the file's own hash.

    latents: video (1, F, H, W, C), audio (1, T, mel, C) or None. space: see `Networks.latent_space`. overwrite: replace
    a file that this program did not make.
    Raises: RequestError for a file of others, MediaError or ResourceError if it cannot be written; nothing is left
    behind then.
    """
    path = latents_path(clip)
    with writing(path), Claim(path) as claim:
        check_replaceable(path, overwrite=overwrite, ours=is_latents_file)
        write_arrays(claim.target, _arrays(latents), {"clip_sha256": _sha256(clip), **_marks(space)})
    return path


def keep_unwritten(
    clip: Path, folders: Iterable[Path], latents: DenoisedPair, space: str, metadata: Mapping[str, str]
) -> Path | None:
    """Write the latents of a clip that could not be written into the first folder that takes them, under a free name.

    metadata: of the clip. Returns the file, or None if no folder takes it.
    """
    values = {**_marks(space), UNWRITTEN: json.dumps(dict(metadata))}
    for folder in folders:
        path = _free_name(folder, clip.stem)
        try:
            with writing(path):
                folder.mkdir(parents=True, exist_ok=True)
                write_arrays(path, _arrays(latents), values)
        except (MediaError, ResourceError):
            continue  # the caller names the first failure; this is only about where there is room
        return path
    return None


def read_unwritten(path: Path, space: str) -> tuple[DenoisedPair, dict[str, str]]:
    """What `keep_unwritten` wrote: latents, and the metadata of their clip.

    Raises: WeightsError if it is another or a damaged file, or of a model with other encoders.
    """
    try:
        arrays, metadata = read_arrays(path)
    except (OSError, RuntimeError, ValueError) as error:
        raise WeightsError(
            f"{path} holds no latents of a clip ({error}); give the file that the error named."
        ) from error
    if UNWRITTEN not in metadata:
        raise WeightsError(f"{path} holds no latents of an unwritten clip; give the file that the error named.")
    if metadata.get("latent_space") != space:
        raise WeightsError(f"{path} was written by a model with other encoders; open the model that made it.")
    return DenoisedPair(arrays.get("video"), arrays.get("audio")), json.loads(metadata[UNWRITTEN])


def _free_name(folder: Path, stem: str) -> Path:
    """A name that no file has yet, short enough for every file system."""
    short = stem.encode("utf-8", "replace")[:80].decode("utf-8", "ignore")
    names = (f"{short}-unwritten{'' if n == 1 else f'-{n}'}{SUFFIX}" for n in count(1))
    return next(folder / name for name in names if not (folder / name).exists())


def _arrays(latents: DenoisedPair) -> dict[str, mx.array]:
    return {name: a for name in ("video", "audio") if (a := getattr(latents, name)) is not None}


def _marks(space: str) -> dict[str, str]:
    return {"format": FORMAT, "latent_space": space}


def find_latents(clip: Path, space: str) -> Found:
    """The latents kept beside a clip, if they are those of this very file, for a model with this latent space."""
    path = latents_path(clip)
    if not path.is_file():
        return Found()
    try:
        arrays, metadata = read_arrays(path)
    except (OSError, RuntimeError, ValueError, KeyError, WeightsError) as error:
        return _ignored(path, clip, f"it is damaged: {error}")
    if metadata.get("format") != FORMAT or "video" not in arrays:
        return _ignored(path, clip, "it is of another format")
    if metadata.get("latent_space") != space:
        return _ignored(path, clip, "it was written by a model with other encoders")
    if metadata.get("clip_sha256") != _sha256(clip):
        return _ignored(path, clip, f"it belongs to another file, or {clip.name} was changed since")
    note = f"latents of {clip} are taken from {path.name}"
    return Found(DenoisedPair(arrays["video"], arrays.get("audio")), note)


def _ignored(path: Path, clip: Path, why: str) -> Found:
    return Found(None, f"{path.name} is ignored, {why}; {clip} is encoded instead")


def _sha256(path: Path) -> str:
    with reading(path, "video"), path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
