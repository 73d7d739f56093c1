"""The files that a request reads, beside weights: by which hash they are known again, and where they are found."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from mlx_ltx2.errors import MediaError
from mlx_ltx2.pipelines.request import LoraInput, Request

IN_MEMORY = "a clip in memory"
"""The name of a source that was no file."""

_SEVERAL, _SINGLE = ("images", "references"), ("audio_file", "video", "attention_mask", "spatial_upscaler")
_LORAS = ("loras", "distilled_lora")
FILE_FIELDS = (*_SEVERAL, *_SINGLE, *_LORAS)


def input_hashes(request: Request) -> dict[str, str]:
    """Path as given -> SHA-256 in hex, for every file of the request but LoRAs; a folder by all that is in it.

    What is no file here, such as a hub id, is left out. Raises: MediaError if a file cannot be read.
    """
    return {path: _digest(Path(path)) for path in _paths(request) if Path(path).exists()}


def check_inputs(request: Request, recorded: Mapping[str, str] | None, renewed: Iterable[str] = ()) -> list[str]:
    """Raise MediaError unless every file is there, and is the one that was recorded; returns what could not be checked.

    recorded: see `input_hashes`; None where the record has no hashes. renewed: fields that were named anew.
    """
    kept = request.with_values(**{name: () if name in _SEVERAL else None for name in renewed if name in FILE_FIELDS})
    unknown: list[str] = []
    for path in _paths(kept):
        if path == IN_MEMORY:
            raise MediaError("the clip was made from a clip in memory; name its file with --set video=FILE.")
        if not Path(path).exists():
            if recorded is not None and path not in recorded:
                continue  # a hub id, then as now
            raise MediaError(f"{path} is not there, nor beside the clip; put it back, or name another with --set.")
        if recorded is None or path not in recorded:
            unknown.append(path)
        elif (now := _digest(Path(path))) != recorded[path]:
            raise MediaError(
                f"{path} is another file than the one that the clip was made from (SHA-256 {now[:12]}... instead of "
                f"{recorded[path][:12]}...); put that one back, or name what you want with --set."
            )
    return unknown


def moved_inputs(request: Request, folder: Path) -> tuple[Request, dict[str, str]]:
    """The request with every missing file replaced by the one of the same relative path, or name, in a folder.

    Returns the request and old path -> new path.
    """
    moved: dict[str, str] = {}

    def found(path: Any) -> Any:
        given = os.fspath(path)
        if Path(given).exists():
            return path
        near = (folder / given, folder / Path(given).name)
        place = next((str(p) for p in near if p.is_file()), None)
        if place is None:
            return path
        moved[given] = place
        return place

    return _with_paths(request, found), moved


def _with_paths(request: Request, change: Callable[[Any], Any]) -> Request:
    values: dict[str, Any] = {}
    for name in FILE_FIELDS:
        value = getattr(request, name)
        if isinstance(value, tuple):
            values[name] = tuple(replace(item, path=change(item.path)) for item in value)
        elif isinstance(value, LoraInput):
            values[name] = replace(value, path=change(value.path))
        elif isinstance(value, str | Path):
            values[name] = change(value)
    return request.with_values(**values)


def _paths(request: Request) -> list[str]:
    """Paths of inputs that are no LoRAs, as given, each once."""
    items = [item.path for name in _SEVERAL for item in getattr(request, name)]
    items += [getattr(request, name) for name in _SINGLE]
    return list(dict.fromkeys(os.fspath(item) for item in items if isinstance(item, str | Path)))


def _digest(path: Path) -> str:
    try:
        if not path.is_dir():
            with path.open("rb") as file:
                return hashlib.file_digest(file, "sha256").hexdigest()
        whole = hashlib.sha256()
        for file_path in sorted(p for p in path.rglob("*") if p.is_file()):
            whole.update(os.fsencode(file_path.relative_to(path)) + b"\0" + bytes.fromhex(_digest(file_path)))
        return whole.hexdigest()
    except OSError as error:
        raise MediaError(f"{path} cannot be read ({error.strerror}); check the path.") from error
