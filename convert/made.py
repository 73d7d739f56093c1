"""Which files of a folder a conversion made. Only these are ever removed; whatever else lies there is the user's."""

from __future__ import annotations

import os
import re
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

from mlx_ltx2.errors import WeightsError
from mlx_ltx2.weights.index import FOLDERS, INDEX, MANIFEST, SHARD_INDEX, read_json

REPLACED = ".replaced"
"""Folder inside the new model where an older one waits for its removal."""

_TOP = (MANIFEST, INDEX, "README.md")
_SHARD = re.compile(r"model(-\d{5}-of-\d{5})?\.safetensors")


def read_manifest(folder: Path) -> dict[str, Any] | None:
    """The manifest of a folder that a conversion made, None for any other folder.

    A manifest that cannot be read counts as none: nobody may remove a folder because of it.
    """
    if not (folder / MANIFEST).is_file():
        return None
    try:
        manifest = read_json(folder / MANIFEST)
    except WeightsError:
        return None
    ours = isinstance(manifest.get("key"), dict) and isinstance(manifest.get("files"), dict)
    return manifest if ours else None


def made_by(manifest: dict[str, Any]) -> frozenset[str]:
    """Names, relative to the folder, that its conversion wrote; folders of 0.1 list the weights alone."""
    listed = {*manifest["files"], *manifest.get("made", ())}
    small = {f"{folder}/{name}" for folder in FOLDERS.values() for name in ("config.json", SHARD_INDEX)}
    return frozenset({*listed, *small, *_TOP})


def foreign_in(folder: Path, made: Collection[str]) -> list[str]:
    """Files, links and empty folders that the conversion did not make, relative to `folder`."""
    return sorted(name for name, path in _leaves(folder) if not _is_made(name, path, made))


def remove_made(folder: Path, made: Collection[str], keep: str | None = None) -> None:
    """Remove what the conversion made, the manifest last, and each folder that is empty then. keep: a name to leave."""
    leaves = sorted(_leaves(folder), key=lambda leaf: leaf[0] == MANIFEST)
    for name, path in leaves:
        if name != keep and not name.endswith("/") and _is_made(name, path, made):
            path.unlink()
    for name in sorted(FOLDERS.values(), key=len, reverse=True):
        _remove_empty(folder / name, folder)
    _remove_empty(folder / "lora", folder)
    _remove_empty(folder, folder)


def finish_replacing(model: Path) -> None:
    """Remove the older model that a new one replaced, where an earlier run was stopped before it had."""
    old = model / REPLACED
    if not old.is_dir() or old.is_symlink():
        return
    manifest = read_manifest(old)
    if manifest is not None:
        remove_made(old, made_by(manifest))
    else:
        _remove_empty(old, old)


def _leaves(folder: Path) -> Iterator[tuple[str, Path]]:
    for root, folders, files in os.walk(folder):
        here = Path(root)
        links = [name for name in folders if (here / name).is_symlink()]
        for name in (*files, *links):
            yield (here / name).relative_to(folder).as_posix(), here / name
        if not folders and not files and here != folder:
            yield here.relative_to(folder).as_posix() + "/", here


def _is_made(name: str, path: Path, made: Collection[str]) -> bool:
    if name.endswith("/"):  # an empty folder: a conversion makes one for each component
        return any(f"{folder}/".startswith(name) for folder in (*FOLDERS.values(), "lora"))
    if path.is_symlink():
        return False
    plain = name.removesuffix(".new")
    parent, _, last = plain.rpartition("/")
    return plain in made or (parent in FOLDERS.values() and _SHARD.fullmatch(last) is not None)


def _remove_empty(folder: Path, root: Path) -> None:
    """Remove an empty folder, and the parents up to `root` that it leaves empty."""
    while folder.is_dir() and not folder.is_symlink() and not any(folder.iterdir()):
        folder.rmdir()
        if folder == root:
            return
        folder = folder.parent
