"""Images, references and masks of a plan, looked at before any weights are read."""

from __future__ import annotations

from collections.abc import Iterable
from fractions import Fraction

from mlx_ltx2.errors import MediaError
from mlx_ltx2.media.frame_rate import exact_fps
from mlx_ltx2.media.pictures import read_picture
from mlx_ltx2.media.video import MediaInfo, probe
from mlx_ltx2.shapes import VideoShape
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
    return (*notes, *check_references(stages))


def check_references(stages: Iterable[StagePlan]) -> tuple[str, ...]:
    """What reading the references and masks of these stages changes, in words, each once.

    Raises: MediaError unless each can be read, is long enough, and a mask is of its reference's shape.
    """
    uses = dict.fromkeys((use, s.shape) for s in stages for use in s.references)
    return tuple(dict.fromkeys(note for use, shape in uses for note in _check_reference(use, shape)))


def _check_reference(use: ReferenceUse, shape: VideoShape) -> tuple[str, ...]:
    reference = _long_enough("reference", use.path, shape)
    if use.mask is None:
        return reference.notes
    mask = _long_enough("mask", use.mask, shape)
    if abs(_aspect(mask) / _aspect(reference) - 1) > _SAME_SHAPE:
        raise MediaError(
            f"mask {use.mask} is {mask.width}x{mask.height} and its reference {reference.width}x{reference.height}; "
            "give a mask of the reference's shape."
        )
    return (*reference.notes, *mask.notes)


def _long_enough(kind: str, path: str, shape: VideoShape) -> MediaInfo:
    """Facts about a clip as it is read for a result of this shape: at the result's rate, no further than its end."""
    fps = exact_fps(shape.fps)
    info = probe(path, fps=fps, frames=shape.frames)
    if (info.frames or 0) < shape.frames:
        raise MediaError(
            f"{kind} {path} has {info.frames} frames at {float(fps):g} fps ({info.seconds:.3f} s) and the clip "
            f"{shape.frames} ({float(Fraction(shape.frames) / fps):.3f} s); give one at least as long, or ask for "
            "fewer frames."
        )
    return info


def _aspect(info: MediaInfo) -> float:
    return info.width / info.height
