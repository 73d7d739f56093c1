"""Whole runs of the official release 1.2.0, replayed without torch; tests/parity replays them all."""

from __future__ import annotations

import functools
from pathlib import Path

import pytest

from tests.cases.trajectories import RECORDED, Recorded, recorded_errors, recorded_model

SOME = (
    "partial strengths 2.0",
    "two stages, partial",
    "given sound 2.3",
    "reference, half size",
    "sound alone",
)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory):
    return functools.cache(lambda *kind: recorded_model(tmp_path_factory.mktemp("recorded"), *kind))


@pytest.mark.parametrize("case", [c for c in RECORDED if c.name in SOME], ids=lambda case: case.name)
def test_recorded(case: Recorded, model, tmp_path: Path) -> None:
    errors = recorded_errors(case, model(case.generation, case.variant), tmp_path)
    assert errors and max(errors.values()) <= 1e-4, errors
