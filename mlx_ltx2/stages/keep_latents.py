"""A finished clip's latents in a file beside it, so that a later run goes on from them and encodes nothing."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

from mlx_ltx2.errors import WeightsError
from mlx_ltx2.media.files import reading, writing
from mlx_ltx2.states import DenoisedPair
from mlx_ltx2.weights.array_file import read_arrays, write_arrays

FORMAT = "1"
SUFFIX = ".latents.safetensors"


@dataclass(frozen=True)
class Found:
    """latents: those of the clip, or None. note: what there is to say about them, or None."""

    latents: DenoisedPair | None = None
    note: str | None = None


def latents_path(clip: Path) -> Path:
    """`clip.latents.safetensors` for `clip.mp4`."""
    return clip.with_name(f"{clip.stem}{SUFFIX}")


def keep_latents(clip: Path, latents: DenoisedPair, space: str) -> Path:
    """Write the latents of a finished file beside it, together with the file's own hash.

    latents: video (1, F, H, W, C), audio (1, T, mel, C) or None. space: see `Networks.latent_space`.
    Raises: MediaError or ResourceError if it cannot be written; nothing is left behind then.
    """
    path = latents_path(clip)
    arrays = {name: a for name in ("video", "audio") if (a := getattr(latents, name)) is not None}
    with writing(path):
        write_arrays(path, arrays, {"format": FORMAT, "clip_sha256": _sha256(clip), "latent_space": space})
    return path


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
