"""Replays the reference outputs in tests/recorded, so that parity is checked where torch is not installed."""

from __future__ import annotations

import numpy as np
import pytest
from safetensors.numpy import load_file

from tests.cases import Arrays, Case, run_mlx, worst_error
from tests.record import CASE_BYTES, RECORDED, recorded_cases, rooms

PAIRS = [(room, case) for room in rooms() for case in recorded_cases(room)]


def outputs_of(room: str, case: Case) -> Arrays:
    path = RECORDED / f"{room}.safetensors"
    assert path.exists(), f"{path.name} is missing; run `python -m tests.record {room}` where torch is installed"
    entries = load_file(path)
    wanted = {k.removeprefix(f"{case.name}/"): v for k, v in entries.items() if k.rsplit("/", 1)[0] == case.name}
    assert wanted, f"{case.name} has no recorded output; run `python -m tests.record {room}` where torch is installed"
    return wanted


@pytest.mark.parametrize(("room", "case"), PAIRS, ids=[f"{room}-{case.name}" for room, case in PAIRS])
def test_replay(room: str, case: Case):
    assert worst_error(run_mlx(case), outputs_of(room, case)) <= case.bound


def test_recordings_are_small_finite_and_all_in_use():
    for path in RECORDED.glob("*.safetensors"):
        if path.stem not in rooms():
            continue  # a suite of its own reads it
        entries = load_file(path)
        names = {case.name for case in recorded_cases(path.stem)}
        assert {key.rsplit("/", 1)[0] for key in entries} == names
        assert all(np.isfinite(v).all() for v in entries.values())
        assert path.stat().st_size <= CASE_BYTES * len(names)
    assert sum(p.stat().st_size for p in RECORDED.glob("*.safetensors")) < 4_000_000
