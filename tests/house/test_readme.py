"""What the README shows is what happens."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
TEXT = (ROOT / "README.md").read_text("utf-8")


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", TEXT, re.S)


def commands() -> list[str]:
    """Every `uv run mlx-ltx2 ...` line that needs no real model, in order."""
    lines = "\n".join(blocks("bash")).replace("\\\n", " ").splitlines()
    ours = [re.sub(r"\s#.*$", "", line) for line in lines if line.startswith("uv run mlx-ltx2")]
    return [c.removeprefix("uv run mlx-ltx2 ") for c in ours if "./LTX" not in c]


def test_the_table_of_commands_is_the_programs() -> None:
    from mlx_ltx2.cli import COMMANDS

    section = TEXT.split("## Commands")[1].split("## ")[0]
    rows = dict(re.findall(r"^\| `([a-z]+)` \| (.+?) \|$", section, re.M))
    assert rows == COMMANDS


def test_exit_codes_are_the_errors() -> None:
    from mlx_ltx2 import errors
    from mlx_ltx2.cli import INTERRUPTED

    said = re.search(r"Exit codes: (.+?)\.", TEXT.replace("\n", " "))
    assert said
    codes = {int(n) for n in re.findall(r"\b\d+\b", said.group(1))}
    raised = {c.exit_code for c in vars(errors).values() if isinstance(c, type) and issubclass(c, errors.LTX2Error)}
    assert codes == {0, INTERRUPTED, *raised}


@pytest.mark.slow
def test_its_commands_run(run_cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In one folder and in order, since later ones read what earlier ones wrote."""
    monkeypatch.chdir(tmp_path)
    assert len(commands()) >= 10
    for command in commands():
        code, _, err = run_cli(*shlex.split(command))
        assert code == 0, f"{command}: {err}"
    for written in re.findall(r"--output (\S+)", " ".join(c for c in commands())):
        assert (tmp_path / written).is_file(), written


@pytest.mark.slow
def test_its_python_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for block in blocks("python"):
        exec(compile(block, "README.md", "exec"), {})
    assert (tmp_path / "circle.mp4").is_file() and (tmp_path / "circle.gif").is_file()


def test_files_that_it_names_exist() -> None:
    for name in ("examples", "docs", "LICENSE", "CHANGELOG.md", "CONTRIBUTING.md"):
        if name in TEXT:
            assert (ROOT / name).exists(), name
