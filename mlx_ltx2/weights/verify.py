"""Re-read a converted model and compare every file with the hash that was noted when it was written."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path

from mlx_ltx2.errors import WeightsError
from mlx_ltx2.weights.index import MANIFEST, read_json

_CHUNK_BYTES = 16 * 2**20

Progress = Callable[[int, int, str], None]


def verify(model: str | Path, progress: Progress | None = None) -> int:
    """Check all files of weights of a model folder; returns how many bytes were read.

    progress: called with (bytes done, bytes in all, file name).
    Raises: WeightsError listing every file that is missing, of another size or of another content.
    """
    model = Path(model)
    files = read_json(model / MANIFEST).get("files", {})
    total, done, faults = sum(entry["bytes"] for entry in files.values()), 0, []
    for name, entry in files.items():
        path = model / name
        if not path.is_file():
            faults.append(f"{name} is missing")
            continue
        if path.stat().st_size != entry["bytes"]:
            faults.append(f"{name} has {path.stat().st_size} bytes instead of {entry['bytes']}")
            continue
        sha = hashlib.sha256()
        try:
            with path.open("rb") as file:
                while data := file.read(_CHUNK_BYTES):
                    sha.update(data)
                    done += len(data)
                    if progress:
                        progress(done, total, name)
        except OSError as error:
            faults.append(f"{name} cannot be read ({error.strerror})")
            continue
        if sha.hexdigest() != entry["sha256"]:
            faults.append(f"{name} has changed since it was written (another SHA-256)")
    if faults:
        raise WeightsError(f"{model}: {'; '.join(faults)}. Copy the model again or convert it again.")
    return done
