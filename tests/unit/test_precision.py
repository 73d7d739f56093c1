"""Float32 products: the switch that a run sets, and what is said where it came too late."""

from __future__ import annotations

import os
import subprocess
import sys

import mlx.core as mx
import pytest

from mlx_ltx2 import precision
from mlx_ltx2.memory import limits
from mlx_ltx2.precision import SWITCH, keep_float32, products_are_exact


def rounded(x: mx.array, bits: int) -> mx.array:
    """float32 with so many bits of mantissa."""
    kept = mx.array((0xFFFFFFFF << (23 - bits)) & 0xFFFFFFFF, mx.uint32)
    return (x.view(mx.uint32) & kept).view(mx.float32)


def test_a_run_asks_for_full_products(monkeypatch) -> None:
    monkeypatch.delenv(SWITCH, raising=False)
    with limits():
        assert os.environ[SWITCH] == "0"


def test_what_the_user_chose_stays(monkeypatch) -> None:
    monkeypatch.setenv(SWITCH, "1")
    with limits():
        assert os.environ[SWITCH] == "1"


@pytest.mark.parametrize("bits", [10, 7, 16])
def test_fewer_bits_are_noticed_and_said_in_one_line(bits, monkeypatch) -> None:
    assert products_are_exact()
    coarse = lambda a, b: mx.matmul(rounded(a, bits), rounded(b, bits))  # noqa: E731
    assert not products_are_exact(coarse)
    said: list[str] = []
    monkeypatch.setattr(mx, "default_device", lambda: mx.Device(mx.gpu))
    monkeypatch.setattr(precision, "products_are_exact", lambda: products_are_exact(coarse))
    keep_float32(said.append)
    assert len(said) == 1 and SWITCH in said[0] and "\n" not in said[0]
    monkeypatch.setattr(precision, "products_are_exact", lambda: True)
    keep_float32(said.append)
    assert len(said) == 1


def test_importing_the_package_sets_nothing() -> None:
    code = f"import os, mlx_ltx2, mlx_ltx2.generate; print(os.environ.get({SWITCH!r}))"
    environment = {name: value for name, value in os.environ.items() if name != SWITCH}
    ran = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert ran.stdout.strip() == "None"
