"""A conversion removes only what it made, and any stop at any moment can be gone on from."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from mlx_ltx2 import library
from mlx_ltx2.demo import demo_model
from mlx_ltx2.errors import LTX2Error, RequestError
from mlx_ltx2.progress import SilentProgress
from mlx_ltx2.weights.index import ModelFolder, is_model_folder
from mlx_ltx2.weights.scratch import scratch_folder, sweep
from mlx_ltx2_convert import convert, shards

SMALL = {"components": ["vocoder", "transformer"]}


def tree(folder: Path) -> dict[str, str]:
    """Every file with its hash, and every link with its target."""
    found = {}
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if path.is_symlink():
            found[name] = os.readlink(path)
        elif path.is_file():
            found[name] = hashlib.sha256(path.read_bytes()).hexdigest()
    return found


@pytest.mark.parametrize("name", ["out.old", ".out.old", "out.new", "out.partial.old", "out.replaced", "out~"])
def test_neighbours_are_left_alone(tiny_sources, tmp_path: Path, name: str) -> None:
    (tmp_path / name).mkdir()
    (tmp_path / name / "thesis.txt").write_text("years of work")
    convert(tiny_sources(), tmp_path / "out", **SMALL)
    convert(tiny_sources(), tmp_path / "out", **SMALL, dtype="float32", overwrite=True)
    assert (tmp_path / name / "thesis.txt").read_text() == "years of work"
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted(["out", name])


@pytest.mark.parametrize("content", ["thesis.txt", "manifest.json", "transformer/model.safetensors"])
def test_a_partial_folder_of_the_users_own_is_left_alone(tiny_sources, tmp_path: Path, content: str) -> None:
    file = tmp_path / "out.partial" / content
    file.parent.mkdir(parents=True)
    file.write_text('{"mine": 1}')
    for overwrite in (False, True):
        with pytest.raises(RequestError, match="not made by a conversion"):
            convert(tiny_sources(), tmp_path / "out", **SMALL, overwrite=overwrite)
    assert file.read_text() == '{"mine": 1}'


def put_notes(model: Path) -> None:
    (model / "notes.txt").write_text("mine")


def put_weights(model: Path) -> None:
    (model / "transformer" / "finetuned.safetensors").write_text("mine")


def put_lora(model: Path) -> None:
    (model / "lora").mkdir(exist_ok=True)
    (model / "lora" / "style.safetensors").write_text("mine")


def put_link(model: Path) -> None:
    (model / "vocoder").rename(model.parent / "elsewhere")
    (model / "vocoder").symlink_to(model.parent / "elsewhere")


@pytest.mark.parametrize("change", [put_notes, put_weights, put_lora, put_link])
def test_what_a_user_put_into_a_model_is_never_removed(tiny_sources, tmp_path: Path, change) -> None:
    convert(tiny_sources(), tmp_path / "out", **SMALL)
    change(tmp_path / "out")
    before = tree(tmp_path)
    with pytest.raises(RequestError, match="did not make"):
        convert(tiny_sources(), tmp_path / "out", **SMALL, dtype="float32", overwrite=True)
    assert tree(tmp_path) == before


def test_what_a_user_puts_in_while_it_converts_stays(tiny_sources, tmp_path: Path) -> None:
    convert(tiny_sources(), tmp_path / "out", **SMALL)

    def meanwhile(*_: object) -> None:
        put_notes(tmp_path / "out")

    with pytest.raises(RequestError, match=r"notes\.txt"):
        convert(tiny_sources(), tmp_path / "out", **SMALL, dtype="float32", overwrite=True, progress=meanwhile)
    assert (tmp_path / "out" / "notes.txt").is_file() and is_model_folder(tmp_path / "out")
    (tmp_path / "out" / "notes.txt").unlink()
    convert(tiny_sources(), tmp_path / "out", **SMALL, dtype="float32", overwrite=True)
    assert [p.name for p in tmp_path.iterdir()] == ["out"]


def test_an_unfinished_conversion_with_a_users_file_in_it(tiny_sources, tmp_path: Path) -> None:
    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        convert(tiny_sources(), tmp_path / "out", **SMALL, progress=stop)
    put_notes(tmp_path / "out.partial")
    with pytest.raises(RequestError, match=r"notes\.txt"):
        convert(tiny_sources(), tmp_path / "out", **SMALL, dtype="float32", overwrite=True)
    convert(tiny_sources(), tmp_path / "out", **SMALL)
    assert (tmp_path / "out" / "notes.txt").read_text() == "mine"


def test_a_linked_output_stays_a_link(tiny_sources, tmp_path: Path) -> None:
    (tmp_path / "disk").mkdir()
    (tmp_path / "out").symlink_to(tmp_path / "disk" / "model")  # where nothing is yet
    convert(tiny_sources(), tmp_path / "out", **SMALL)
    convert(tiny_sources(), tmp_path / "out", **SMALL, dtype="float32", overwrite=True)
    assert (tmp_path / "out").is_symlink() and is_model_folder(tmp_path / "out")
    assert [p.name for p in (tmp_path / "disk").iterdir()] == ["model"]


def test_outputs_that_touch_their_source_are_safe(tiny_sources, tmp_path: Path, monkeypatch) -> None:
    source = shutil.copytree(tiny_sources(), tmp_path / "source")
    before = tree(source)
    for output in (source, source / "ltx-2.3-22b-distilled-1.1.safetensors", tmp_path):
        with pytest.raises(LTX2Error):
            convert(source, output, **SMALL, overwrite=True)
        assert tree(source) == before
    convert(source, source / "out", **SMALL)
    assert {n: h for n, h in tree(source).items() if not n.startswith("out/")} == before
    inside = shutil.copytree(tiny_sources(), source / "out" / "official")
    with pytest.raises(RequestError, match="lies in the output folder"):
        convert(inside, source / "out", **SMALL, dtype="float32", overwrite=True)
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path / "empty")
    with pytest.raises(RequestError, match="current folder"):
        convert(source, ".", **SMALL)


def test_a_model_without_a_readable_manifest_is_not_replaced(tiny_sources, tmp_path: Path) -> None:
    convert(tiny_sources(), tmp_path / "out", **SMALL)
    (tmp_path / "out" / "manifest.json").write_text("{")
    with pytest.raises(RequestError, match=r"without a readable manifest\.json"):
        convert(tiny_sources(), tmp_path / "out", **SMALL, overwrite=True)
    assert ModelFolder.open(tmp_path / "out")


# stops


class Stopped(BaseException):
    """Stands for Ctrl-C, at one step of the file system."""


class Steps:
    """Counts the steps that change the disk, and stops at one of them."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch):
        self.count, self.limit, self.since = 0, 0, ""
        places = [(os, "fsync"), (os, "replace"), (shards.FileWriter, "finish"), (shards.FileWriter, "__init__")]
        places += [(Path, name) for name in ("rename", "replace", "unlink", "rmdir", "mkdir", "write_text")]
        for owner, name in places:
            monkeypatch.setattr(owner, name, self._watched(getattr(owner, name)))

    def _watched(self, original):
        def step(*args, **options):
            begun = self.count or any(self.since in str(a) for a in args)
            self.count += bool(begun)
            if self.count and self.count == self.limit:
                raise Stopped
            return original(*args, **options)

        return step

    def upto(self, limit: int, job) -> bool:
        """Run `job`, stopped at step `limit`; whether it was."""
        self.count, self.limit = 0, limit
        try:
            job()
        except Stopped:
            return True
        finally:
            self.limit = 0
        return False


@pytest.fixture
def steps(monkeypatch) -> Steps:
    return Steps(monkeypatch)


@pytest.fixture
def dev(tiny_sources, tmp_path: Path):
    """dev(folder): converts a checkpoint with a LoRA into `folder`/out."""
    source = shutil.copytree(tiny_sources("2.3", "dev"), tmp_path / "source")
    return lambda folder: convert(source, folder / "out", text_encoder=False)


def test_a_first_conversion_goes_on_from_stop_to_stop(dev, tmp_path: Path, steps: Steps) -> None:
    dev(tmp_path / "whole")
    stops = 0
    while steps.upto(5 + 6 * stops, lambda: dev(tmp_path / "work")):
        assert [p.name for p in (tmp_path / "work").iterdir()] == ["out.partial"]
        stops += 1
    assert tree(tmp_path / "work") == tree(tmp_path / "whole") and stops > 5


def test_no_stop_at_the_lora_loses_its_hash(dev, tmp_path: Path, steps: Steps) -> None:
    """In release 0.1 a stop between two of these steps ended every later run in a KeyError."""
    dev(tmp_path / "whole")
    steps.since = "/lora/"
    assert steps.upto(1, lambda: dev(tmp_path / "before"))
    for limit in range(1, 14):
        work = shutil.copytree(tmp_path / "before", tmp_path / f"work-{limit}")
        assert steps.upto(limit, lambda work=work: dev(work))
        dev(work)
        assert tree(work) == tree(tmp_path / "whole"), limit


EVERY_STEP = pytest.param(1, marks=pytest.mark.slow)


@pytest.mark.parametrize("stride", [7, EVERY_STEP])
def test_a_replacement_goes_on_from_every_stop(stride: int, tiny_sources, tmp_path: Path, steps: Steps) -> None:
    def job(work: Path = tmp_path / "work") -> None:
        convert(tiny_sources(), work / "out", components=["vocoder"], dtype="float32", overwrite=True)

    older = tmp_path / "older"
    convert(tiny_sources(), older / "out", components=["vocoder", "audio_decoder"])
    shutil.copytree(older, tmp_path / "whole")
    job(tmp_path / "whole")
    whole = tree(tmp_path / "whole")
    for limit in range(1, 200, stride):
        shutil.copytree(older, tmp_path / "work")
        if not steps.upto(limit, job):
            break
        assert [p for p in (tmp_path / "work").rglob("*") if is_model_folder(p)]  # one of the two is complete
        job()
        assert tree(tmp_path / "work") == whole, limit
        shutil.rmtree(tmp_path / "work")
    else:
        pytest.fail("more steps than expected")


def test_a_stop_between_the_names_gives_the_older_model_back(tiny_sources, tmp_path: Path, monkeypatch) -> None:
    """Stopped between the two renames, then another conversion is asked for: the older one is replaced by that."""
    out = tmp_path / "out"
    convert(tiny_sources(), out, components=["vocoder"])
    rename = Path.rename

    def stop(self: Path, target: Path) -> Path:
        if Path(target) == out:
            raise Stopped
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", stop)
    with pytest.raises(Stopped):
        convert(tiny_sources(), out, components=["vocoder"], dtype="float32", overwrite=True)
    monkeypatch.undo()
    assert not out.exists()
    convert(tiny_sources(), out, components=["audio_decoder"], overwrite=True)
    assert [p.name for p in tmp_path.iterdir()] == ["out"]
    assert json.loads((out / "model_index.json").read_text())["components"].keys() == {"audio_decoder"}


def test_a_partial_folder_of_0_1_without_the_hash_of_its_lora(tiny_sources, tmp_path: Path) -> None:
    """Release 0.1 listed a LoRA before its hash was stored."""
    source = tiny_sources("2.3", "dev")
    convert(source, tmp_path / "out", text_encoder=False)
    whole = tree(tmp_path / "out")
    partial = (tmp_path / "out").rename(tmp_path / "out.partial")
    (partial / "model_index.json").unlink()
    manifest = json.loads((partial / "manifest.json").read_text())
    del manifest["made"]
    manifest["sources"] = {n: h for n, h in manifest["sources"].items() if "lora" not in n}
    (partial / "manifest.json").write_text(json.dumps(manifest))
    convert(source, tmp_path / "out", text_encoder=False)
    assert tree(tmp_path / "out") == whole


# the demo


DEMO = """
import os, sys
from pathlib import Path
from mlx_ltx2.demo import demo_model
from mlx_ltx2 import library
from mlx_ltx2.progress import SilentProgress
real = library.convert_with_progress
def convert(*a, **k):
    if sys.argv[1] == "before": os._exit(9)
    real(*a, **k)
    os._exit(9)
library.convert_with_progress = convert
demo_model(SilentProgress())
"""


@pytest.mark.parametrize("when", ["before", "after"])
def test_a_killed_demo_leaves_nothing_for_long(tmp_path: Path, monkeypatch, when: str) -> None:
    monkeypatch.setenv("MLX_LTX2_CACHE", str(tmp_path))
    assert subprocess.run([sys.executable, "-c", DEMO, when], check=False).returncode == 9
    (left,) = tmp_path.iterdir()
    with scratch_folder(tmp_path) as held:  # another process is at work
        model = demo_model(SilentProgress())
        assert held.is_dir() and not left.exists()
    assert [p.name for p in tmp_path.iterdir()] == [model.name]


def test_what_0_1_left_goes_as_well_and_nothing_else(tmp_path: Path) -> None:
    left = tmp_path / "demo-distilled-0.1.0-abc-k3jd_9xz"
    (left / "source").mkdir(parents=True)
    mine = tmp_path / "demo-of-my-own-12345678"
    mine.mkdir()
    (mine / "thesis.txt").write_text("years of work")
    (tmp_path / "demo-distilled-0.1.0-abc").mkdir()
    sweep(tmp_path, old_prefix="demo-")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["demo-distilled-0.1.0-abc", mine.name]
    assert (mine / "thesis.txt").is_file()


def test_an_interrupted_demo_says_that_nothing_is_left(tmp_path: Path, monkeypatch, run_cli) -> None:
    from mlx_ltx2_convert import stream

    monkeypatch.setenv("MLX_LTX2_CACHE", str(tmp_path))

    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(stream, "_convert", stop)
    code, _, err = run_cli("plan", "--model", "demo", "-p", "x", "--quiet")
    assert code == 130 and "nothing was left behind" in err and not list(tmp_path.iterdir())
    source = tmp_path / "source"
    from mlx_ltx2.demo.tiny import write_tiny_checkpoint

    write_tiny_checkpoint(source)
    with pytest.raises(KeyboardInterrupt, match="finished parts are kept"):
        library.open_model(source, progress=SilentProgress())
