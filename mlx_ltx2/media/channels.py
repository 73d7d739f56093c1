"""Channels -> stereo, by the names that a layout gives them and never by their number."""

from __future__ import annotations

from fractions import Fraction
from functools import lru_cache
from typing import Any

import av
import numpy as np

from mlx_ltx2.errors import MediaError

_SIDE = 0.5**0.5
_NAMELESS = ("NONE", "UNK", "UNSD", "AMBI", "USR")
_PAIRS = (("FL", "FR"), ("DL", "DR"), ("BIL", "BIR"))


def stays(layout: str) -> bool:
    """True for sound that is taken as it is: one channel, a left and a right one, or two without names.

    layout: as FFmpeg spells it, such as "5.1(side)" or "2 channels (FC+LFE)".
    """
    names = _names(layout)
    return len(names) == 1 or names in _PAIRS or (len(names) == 2 and _nameless(names))


def check_layout(layout: str, owner: object) -> None:
    """Raise MediaError for channels that have no place in front of a listener: without names, or ambisonic.

    owner: what the message names, a path or "the sound".
    """
    names = _names(layout)
    if not stays(layout) and _nameless(names):
        raise MediaError(
            f"{owner} has {len(names)} channels that do not say where they belong ({layout}); mix it to stereo "
            "first, or name them: ffmpeg -channel_layout 5.1 -i IN OUT.wav."
        )


@lru_cache
def stereo_matrix(layout: str) -> np.ndarray:
    """(channels, 2) weights that mix a layout to left and right, so scaled that full scale stays full scale.

    The weights are those of FFmpeg's resampler, asked by one impulse per channel: centre and surround at -3 dB, a
    back centre at -6 dB, low effects left out (ITU-R BS.775). It knows no place for some height and bottom
    channels, which come in as surround does, at their own side.

    Raises: MediaError for a layout without names.
    """
    check_layout(layout, "the sound")
    names = _names(layout)
    impulses = np.eye(len(names), dtype=np.float32).reshape(1, -1)
    frame = av.AudioFrame.from_ndarray(impulses, format="flt", layout=layout)
    frame.sample_rate, frame.pts, frame.time_base = 48000, 0, Fraction(1, 48000)
    mixer = av.AudioResampler(format="flt", layout="stereo", rate=48000)
    mixed = [part.to_ndarray().reshape(-1, 2) for part in (*mixer.resample(frame), *mixer.resample(None))]
    weights = np.concatenate(mixed).astype(np.float64)
    for weight, name in zip(weights, names, strict=True):
        if not weight.any() and not name.startswith("LFE"):
            weight[:] = {"L": (_SIDE, 0), "R": (0, _SIDE)}.get(name[-1], (_SIDE**2, _SIDE**2))
    return np.asarray((weights / max(1.0, weights.sum(axis=0).max())).astype(np.float32))


def _names(layout: str) -> tuple[str, ...]:
    described: Any = av.AudioLayout(layout)
    return tuple(channel.name for channel in described.channels)


def _nameless(names: tuple[str, ...]) -> bool:
    return any(name.startswith(_NAMELESS) for name in names)
