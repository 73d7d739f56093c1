"""Whole runs against release 1.2.0, whose last latents are recorded (make_trajectories_120.py says how)."""

from __future__ import annotations

import functools
import tempfile
from pathlib import Path

import pytest

from tests.cases.trajectories import RECORDED, Recorded, recorded_errors, recorded_model
from tests.parity.trajectories import BOUND


@functools.cache
def model(generation: str, variant: str):
    return recorded_model(Path(tempfile.mkdtemp(prefix="mlx-ltx2-recorded-")), generation, variant)


@pytest.mark.parametrize("case", RECORDED, ids=lambda case: case.name)
def test_recorded(case: Recorded, table, tmp_path: Path) -> None:
    errors = recorded_errors(case, model(case.generation, case.variant), tmp_path)
    assert errors
    table(f"trajectory: {case.pipeline}", case.generation, "ltx-pipelines 1.2.0", max(errors.values()), BOUND)
