"""Fixtures for the whole suite: tiny models, converted once per session, and a cache folder of their own."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest


@pytest.fixture(scope="session", autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tests never touch the user's cache of converted models."""
    folder = tmp_path_factory.mktemp("cache")
    os.environ["MLX_LTX2_CACHE"] = str(folder)
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    return folder


@pytest.fixture(scope="session")
def tiny_sources(tmp_path_factory: pytest.TempPathFactory):
    """tiny_sources(generation, variant): a folder with a tiny official checkpoint and all that belongs to it."""
    from mlx_ltx2.demo.tiny import write_tiny_checkpoint

    made: dict[tuple[str, str], Path] = {}

    def source(generation: str = "2.3", variant: str = "distilled") -> Path:
        key = (generation, variant)
        if key not in made:
            made[key] = write_tiny_checkpoint(
                tmp_path_factory.mktemp("source"), generation=generation, variant=variant
            ).folder
        return made[key]

    return source


@pytest.fixture(scope="session")
def tiny_model(tiny_sources, tmp_path_factory: pytest.TempPathFactory):
    """tiny_model(generation, variant, **convert options): a converted tiny model."""
    from mlx_ltx2 import convert

    made: dict[tuple[object, ...], Path] = {}

    def model(generation: str = "2.3", variant: str = "distilled", **options: object) -> Path:
        key = (generation, variant, *sorted(options.items()))
        if key not in made:
            output = tmp_path_factory.mktemp("model") / "model"
            convert(tiny_sources(generation, variant), output, variant=variant, **options)
            made[key] = output
        return made[key]

    return model


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Callable[[int], Path]]:
    """small_disk(bytes): a folder on a file system of its own of that size."""
    made: list[Path] = []
    mount = shutil.which("mount")

    def make(nbytes: int) -> Path:
        folder = tmp_path / "disk"
        folder.mkdir()
        command = [str(mount), "-t", "tmpfs", "-o", f"size={nbytes}", "tmpfs", str(folder)]
        if mount is None or subprocess.run(command, capture_output=True, check=False).returncode:
            pytest.skip("no small disk can be mounted here: macOS has no tmpfs, and mounting takes root")
        made.append(folder)
        return folder

    yield make
    for folder in made:
        subprocess.run(["umount", str(folder)], check=True)


SMALL = ("--height", "64", "--width", "64", "--num-frames", "9")
"""The smallest two-stage clip of an LTX-2.3 model."""


@pytest.fixture
def run_cli(capfd: pytest.CaptureFixture[str]):
    """run_cli(*args) -> (exit code, stdout, stderr), in this process."""
    from mlx_ltx2.cli import cli, run

    def call(*args: object) -> tuple[int, str, str]:
        code = run(cli, [str(a) for a in args])
        out, err = capfd.readouterr()
        assert "Traceback" not in out + err
        return code, out, err

    return call
