"""The request is the record: what a finished file says about the LoRAs that it was made with."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest

from mlx_ltx2.media.metadata import read_metadata
from mlx_ltx2.weights import lora
from tests.conftest import SMALL


@pytest.fixture
def style(tiny_sources, tmp_path: Path) -> Path:
    """A LoRA whose name says nothing about a generation."""
    path = tmp_path / "style.safetensors"
    path.write_bytes(next(tiny_sources().glob("*distilled-lora*")).read_bytes())
    return path


def change(path: Path) -> None:
    """Another LoRA under the same name: one bit of its last matrix."""
    data = bytearray(path.read_bytes())
    data[-10] ^= 1
    path.write_bytes(bytes(data))


def test_names_and_hashes_of_loras_are_recorded_and_guarded(tiny_model, style, run_cli, tmp_path, monkeypatch) -> None:
    model, out, again = tiny_model(), tmp_path / "a.mp4", tmp_path / "b.mp4"
    read, digest = [], hashlib.file_digest
    monkeypatch.setattr(lora.hashlib, "file_digest", lambda *a: read.append(a) or digest(*a))
    args = ["generate", "--model", model, "-p", "a red circle", "--no-audio", *SMALL]
    code, _, err = run_cli(*args, "--lora", style, "0.5", "-o", out)
    assert code == 0, err
    sha = hashlib.sha256(style.read_bytes()).hexdigest()
    code, said, err = run_cli("info", out, "--json")
    assert code == 0, err
    assert json.loads(said)["loras"] == {str(style): sha}
    code, said, err = run_cli("info", out)
    assert f"{style} {sha}" in said
    code, _, err = run_cli("rerun", out, "-o", again)
    assert code == 0, err
    assert again.read_bytes() == out.read_bytes()
    assert len(read) == 1, "the file was hashed more than once"
    change(style)
    again.unlink()
    code, _, err = run_cli("rerun", out, "-o", again)
    assert code == 3 and "style.safetensors" in err and "another file" in err and sha[:12] in err
    assert not again.exists()
    wanted = json.dumps([{"path": str(style), "strength": 0.5}])
    code, _, err = run_cli("rerun", out, "-o", again, "--set", f"loras={wanted}")
    assert code == 0, err
    assert json.loads(read_metadata(again)["loras"])[str(style)] == hashlib.sha256(style.read_bytes()).hexdigest()


def test_a_clip_without_loras_records_none_and_the_models_own_needs_no_reading(tiny_model, monkeypatch) -> None:
    from mlx_ltx2 import LTX2Pipeline

    monkeypatch.setattr(lora.hashlib, "file_digest", None)
    pipe = LTX2Pipeline.from_pretrained(tiny_model("2.3", "dev"))
    options = {"height": 64, "width": 64, "num_frames": 9, "steps": 1, "negative_prompt": "blur", "audio": False}
    plain = pipe("x", pipeline="dev", output_type="latent", **options)
    assert "loras" not in plain.metadata
    two = pipe("x", pipeline="dev-two-stage", output_type="latent", **options)
    own = pipe.networks.model.loras[0]
    assert json.loads(two.metadata["loras"]) == {str(own): hashlib.sha256(own.read_bytes()).hexdigest()}
