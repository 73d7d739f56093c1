"""Parity suite: MLX against PyTorch references, same random weights. Needs the `parity` dependency group."""

from __future__ import annotations

import sys
import types
from collections import defaultdict
from importlib.machinery import ModuleSpec

import numpy as np
import pytest

ROWS: dict[tuple[str, str, str], list[tuple[float, float]]] = defaultdict(list)


def _stand_in_for_torchaudio() -> None:
    """ltx-core imports torchaudio for a mel transform and a resampler only; tests/fixtures defines both."""
    if "torchaudio" in sys.modules:
        return
    from tests.fixtures import torchaudio_stand_in as stand_in

    root = types.ModuleType("torchaudio")
    root.__spec__ = ModuleSpec("torchaudio", None)  # transformers asks for it
    root.transforms = types.ModuleType("torchaudio.transforms")
    root.functional = types.ModuleType("torchaudio.functional")
    root.transforms.MelSpectrogram = stand_in.MelSpectrogram
    root.functional.resample = stand_in.resample
    sys.modules["torchaudio"] = root
    sys.modules["torchaudio.transforms"] = root.transforms
    sys.modules["torchaudio.functional"] = root.functional


_stand_in_for_torchaudio()


@pytest.fixture
def table(record_property):
    """table(network, generation, oracle, error, bound): records a row and asserts the bound."""

    def add(network: str, generation: str, oracle: str, error: float, bound: float) -> None:
        record_property("parity", [network, generation, oracle, float(error), float(bound)])
        assert np.isfinite(error) and error <= bound, f"{network} {generation} vs {oracle}: {error:.2e} > {bound:.0e}"

    return add


def pytest_runtest_logreport(report) -> None:
    """Rows travel with the reports, so that worker processes fill the same table."""
    for name, value in report.user_properties if report.when == "call" else ():
        if name == "parity":
            network, generation, oracle, error, bound = value
            ROWS[(network, generation, oracle)].append((error, bound))


def pytest_terminal_summary(terminalreporter) -> None:
    if not ROWS:
        return
    write = terminalreporter.write_line
    write("")
    write(f"{'network':<34}{'generation':<12}{'oracle':<30}{'cases':>6}{'worst':>10}{'bound':>9}")
    for (network, generation, oracle), cases in sorted(ROWS.items()):
        worst, bound = max(e for e, _ in cases), min(b for _, b in cases)
        write(f"{network:<34}{generation:<12}{oracle:<30}{len(cases):>6}{worst:>10.1e}{bound:>9.0e}")
