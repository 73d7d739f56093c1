"""The trained demo means what its captions say. The whole table: python -m tests.semantic.table"""

from __future__ import annotations

import numpy as np
import pytest

from mlx_ltx2 import LTX2Pipeline
from mlx_ltx2.demo import trained
from tests.semantic import detectors
from tests.semantic.studio import Studio

pytestmark = pytest.mark.skipif(not trained.is_packed(), reason="the trained weights are not packed yet")

ALONE = ("picture", "sound", "retake", "variety", "tiles")
"""Rows that need few clips."""


@pytest.mark.slow
def test_a_red_circle_moving_right() -> None:
    """What the README's first command shows, and what one hears."""
    clip = LTX2Pipeline.from_pretrained("demo")("a red circle moving right")
    assert clip.frames is not None and clip.frames.shape == (49, 128, 128, 3)
    mask = detectors.foreground(clip.frames)
    path = detectors.track(mask)
    assert detectors.colour(clip.frames, mask) == "red"
    assert detectors.motion(path) == "right"
    assert detectors.kind(mask) == "circle"
    assert clip.audio is not None and not detectors.silent(clip.audio.samples, clip.audio.rate_hz)
    assert np.isfinite(detectors.pitch(clip.audio.samples, clip.audio.rate_hz)).mean() > 0.5


@pytest.mark.slow
@pytest.mark.parametrize("row", ALONE)
def test_row(row: str, tmp_path) -> None:
    from tests.semantic.table import FEW, table

    missed = [str(line) for line in table(Studio(tmp_path, FEW), [row]) if not line.met]
    assert not missed, "\n".join(missed)


def test_processes_take_every_row_once_and_clips_are_shared() -> None:
    from tests.semantic.table import ROWS, SHARING, groups

    every = [row for group in groups(list(ROWS)) for row in group]
    assert sorted(every) == sorted(ROWS)
    assert groups(["lora", "tiles", "dev"]) == [["dev", "lora"], ["tiles"]]
    assert all(row in ROWS for together in SHARING for row in together)
