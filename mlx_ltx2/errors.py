"""The exception tree. Every error says what was given, what is allowed and what to do.

    LTX2Error                 exit code 1: a run failed
    ├── RequestError          2: the request cannot be fulfilled as it stands
    │   └── ShapeError           a size, a frame count or a duration off the model's grid
    ├── WeightsError          3: a file of weights is missing, damaged, incomplete or of another model
    ├── MediaError            1: an image, a video or a sound cannot be read or written
    └── ResourceError         4: memory, disk or device does not suffice

An interrupted run ends with exit code 130, one that SIGTERM ends with 143. No other exception type is meant to reach a
user.
"""

from __future__ import annotations

from typing import Any


class LTX2Error(Exception):
    """Base of every error that this package raises on purpose."""

    exit_code = 1
    clip: Any = None
    """The `Clip` that was made, where only its file could not be written; frames, if it was to keep them."""


class RequestError(LTX2Error):
    """The request contradicts itself or asks for something the model cannot do."""

    exit_code = 2


class ShapeError(RequestError):
    """A height, width, frame count, rate or duration that the model's grid does not allow."""


class WeightsError(LTX2Error):
    """A checkpoint, a component or a LoRA that is missing, damaged, incomplete or of another model."""

    exit_code = 3


class MediaError(LTX2Error):
    """An input that cannot be decoded or an output that cannot be written."""


class ResourceError(LTX2Error):
    """Memory, disk space or a device does not suffice for the plan."""

    exit_code = 4
