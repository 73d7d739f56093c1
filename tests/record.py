"""Write the reference's outputs of every case marked `record`, for the suite that runs without torch.

    python -m tests.record [ROOM ...]

Needs the `parity` dependency group. Each room of tests/cases has a tests/parity/test_<room>.py whose
`reference(case)` runs the main oracle; its outputs go to tests/recorded/<room>.safetensors under
"<case name>/<output name>". tests/unit/test_recorded.py replays them.
"""

from __future__ import annotations

import argparse
import importlib
import pkgutil
import sys
from collections.abc import Iterable
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

import tests.cases
from tests.cases import Arrays, Case

RECORDED = Path(__file__).parent / "recorded"
CASE_BYTES = 100_000


def cases_of(room: str) -> list[Case]:
    return getattr(importlib.import_module(f"tests.cases.{room}"), "CASES", [])


def rooms() -> list[str]:
    """Names of the modules of tests/cases that export cases."""
    return sorted(m.name for m in pkgutil.iter_modules(tests.cases.__path__) if cases_of(m.name))


def recorded_cases(room: str) -> list[Case]:
    """The room's cases whose reference outputs belong in the repository."""
    cases = cases_of(room)
    repeated = {c.name for c in cases if sum(other.name == c.name for other in cases) > 1}
    if repeated:
        raise ValueError(f"tests/cases/{room}.py has several cases called {', '.join(sorted(repeated))}")
    return [case for case in cases if case.record]


def record(room: str) -> Arrays:
    """Run the reference for the room's recorded cases."""
    importlib.import_module("tests.parity.conftest")  # stands in for torchaudio
    reference = importlib.import_module(f"tests.parity.test_{room}").reference
    outputs: Arrays = {}
    for case in recorded_cases(room):
        arrays = {k: np.ascontiguousarray(v, dtype=np.float32) for k, v in reference(case).items()}
        size = sum(a.nbytes for a in arrays.values())
        if size > CASE_BYTES:
            raise ValueError(f"{room}/{case.name} is {size} bytes; record a case of at most {CASE_BYTES}")
        outputs.update({f"{case.name}/{name}": array for name, array in arrays.items()})
    return outputs


def main(names: Iterable[str]) -> None:
    RECORDED.mkdir(exist_ok=True)
    for room in list(names) or rooms():
        path = RECORDED / f"{room}.safetensors"
        outputs = record(room)
        if outputs:
            save_file(dict(sorted(outputs.items())), path)
            print(f"{path.name}: {len(outputs)} outputs, {path.stat().st_size} bytes")
        else:
            path.unlink(missing_ok=True)
            print(f"{room}: nothing marked for recording")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("rooms", nargs="*", metavar="ROOM", help=f"of {', '.join(rooms())}; all if none is given")
    main(parser.parse_args(sys.argv[1:]).rooms)
