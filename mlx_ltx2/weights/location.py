"""What a person means by a name: something on this disk, or a repo on the hub.

What exists here is always meant. OWNER/NAME is asked about where it looks like a mistyped path, since a wrong guess
costs a download of many gigabytes; `hf:OWNER/NAME` always means the hub.
"""

from __future__ import annotations

import difflib
import re
from dataclasses import dataclass
from pathlib import Path

from mlx_ltx2.errors import WeightsError

HUB = "hf:"
_REPO_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
_URL = re.compile(r"https?://[^/]+/(?P<repo>[\w.-]+/[\w.-]+)")
_FILES = (".safetensors", ".sft", ".gguf", ".ckpt", ".pt", ".pth", ".bin", ".zip", ".json", ".partial")
_LOCAL_OWNERS = {
    *("models", "model", "checkpoints", "checkpoint", "ckpts", "ckpt", "weights", "loras", "lora", "downloads"),
    *("download", "output", "outputs", "converted", "cache", "data", "tmp", "temp", "mlx", "text_encoders"),
    *("text_encoder", "diffusion_models", "unet", "vae", "desktop", "documents", "home", "users", "volumes", "mnt"),
}
"""Names that folders have and hub users do not."""


@dataclass(frozen=True)
class Repo:
    """A repo on the hub, OWNER/NAME."""

    name: str


def is_repo_id(text: str) -> bool:
    return bool(_REPO_ID.fullmatch(text)) and "--" not in text and ".." not in text


def expanded(text: str | Path) -> Path:
    """The path with ~ replaced. Raises: WeightsError for the home of a user whom nobody knows."""
    try:
        return Path(text).expanduser()
    except RuntimeError:
        raise WeightsError(f"{text}: there is no such folder, since no home of this user is known.") from None


def locate(given: str | Path, noun: str = "file or folder", advice: str = "") -> Path | Repo:
    """The path or the repo that `given` means.

    noun: what is looked for. advice: a sentence on what to give instead.
    Raises: WeightsError if nothing of this name is here and it does not clearly mean the hub.
    """
    text = str(given)
    if text.startswith(HUB):
        name = text.removeprefix(HUB)
        if is_repo_id(name):
            return Repo(name)
        raise WeightsError(f"{text}: is no repo on the hub; write {HUB}OWNER/NAME.")
    path = expanded(text)
    try:
        exists = path.exists()
    except (OSError, ValueError) as error:  # a name too long, or a zero byte
        raise WeightsError(f"{text}: there is no such {noun} ({error}).") from None
    if exists:
        return path
    if url := _URL.match(text):
        raise WeightsError(f"{text}: is the address of a page; write {HUB}{url['repo']} for the repo itself.")
    if path.is_symlink():
        raise WeightsError(f"{text}: is a link to {path.readlink()}, which is not there.")
    if is_repo_id(text):
        doubt = _doubt(text)
        if doubt is None:
            return Repo(text)
        raise WeightsError(
            f"{text}: there is no such {noun} here{_similar(path)} ({doubt}); if you meant the hub repo of this "
            f"name, write {HUB}{text}."
        )
    trimmed = text.rstrip("/")
    meant = f" If you meant the hub repo, write {HUB}{trimmed}." if is_repo_id(trimmed) else ""
    raise WeightsError(f"{text}: there is no such {noun}{_similar(path)}. {advice}{meant}".strip())


def _doubt(text: str) -> str | None:
    """Why OWNER/NAME may be a mistyped path; None if nothing speaks for it."""
    owner, name = text.split("/")
    if Path(owner).is_dir():
        return f"there is a folder {owner}"
    if owner.lower() in _LOCAL_OWNERS:
        return f"{owner} is a usual name of a folder"
    if name.lower().endswith(_FILES):
        return f"{Path(name).suffix} is the ending of a file"
    return None


def _similar(path: Path) -> str:
    try:
        names = [p.name for p in path.parent.iterdir()]
    except (OSError, ValueError):  # no such folder, or no possible name
        return ""
    close = difflib.get_close_matches(path.name, names, 1, 0.75)
    return f", but there is {path.with_name(close[0])}" if close else ""
