"""Images, references and masks of a plan, looked at before any weights are read."""

from __future__ import annotations

from collections.abc import Iterable

from mlx_ltx2.errors import MediaError
from mlx_ltx2.media.pictures import read_picture
from mlx_ltx2.media.video import MediaInfo, probe
from mlx_ltx2.stages.plan import ReferenceUse, StagePlan

_SAME_SHAPE = 0.02
"""How much the aspect ratios of a mask and its reference may differ, relatively: rounding to even sides."""


def check_media(stages: Iterable[StagePlan]) -> tuple[str, ...]:
    """Raise MediaError unless every image can be read, and every reference and mask is long enough and of one shape.

    Returns what has to be said about how they are read, once per file.
    """
    stages = list(stages)
    notes: list[str] = []
    for path in dict.fromkeys(use.path for stage in stages for use in stage.images):
        notes += read_picture(path).notes
    for use, frames in dict.fromkeys((use, s.shape.frames) for s in stages for use in s.references):
        _check_reference(use, frames)
    return tuple(notes)


def _check_reference(use: ReferenceUse, frames: int) -> None:
    reference = probe(use.path, count=True)
    if (reference.frames or 0) < frames:
        raise MediaError(
            f"reference {use.path} has {reference.frames} frames and the clip {frames}; give a reference at least as "
            "long, or ask for fewer frames."
        )
    if use.mask is None:
        return
    mask = probe(use.mask, count=True)
    if abs(_aspect(mask) / _aspect(reference) - 1) > _SAME_SHAPE:
        raise MediaError(
            f"mask {use.mask} is {mask.width}x{mask.height} and its reference {reference.width}x{reference.height}; "
            "give a mask of the reference's shape."
        )
    if (mask.frames or 0) < frames:
        raise MediaError(f"mask {use.mask} has {mask.frames} frames and the clip {frames}; give one at least as long.")


def _aspect(info: MediaInfo) -> float:
    return info.width / info.height
