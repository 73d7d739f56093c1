"""The model that needs no download: a small checkpoint in the official layout, converted like any other."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Literal

from mlx_ltx2.progress import Progress

SAYS = "The demo's weights are random: picture and sound are noise. It shows that the whole chain works here."


def demo_model(progress: Progress, variant: Literal["distilled", "dev"] = "distilled") -> Path:
    """The converted demo model, made on first use in the cache folder.

    variant: "distilled" or "dev". Raises: WeightsError, ResourceError.
    """
    from mlx_ltx2.demo.tiny import write_tiny_checkpoint
    from mlx_ltx2.library import cache_folder, convert_with_progress
    from mlx_ltx2.version import VERSION
    from mlx_ltx2.weights.index import is_model_folder

    output = cache_folder() / f"demo-{variant}-{VERSION}"
    if is_model_folder(output):
        return output
    output.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="mlx-ltx2-demo-") as folder:
        made = write_tiny_checkpoint(folder, variant=variant)
        convert_with_progress(made.folder, output, progress, variant=variant)
    return output
