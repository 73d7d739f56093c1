"""Everything that a run imports is imported once, and set aside from the garbage collector.

A run frees memory after each phase, and each time the collector would walk through the modules of the whole test suite.
"""

from __future__ import annotations

import gc
import importlib

import pytest

HEAVY = (
    "av",
    "PIL.Image",
    "mlx.core",
    "mlx_lm.models.gemma3_text",
    "tokenizers",
    "mlx_ltx2.generate",
    "mlx_ltx2_convert",
)


@pytest.fixture(scope="session", autouse=True)
def imported_once():
    for name in HEAVY:
        importlib.import_module(name)
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()
