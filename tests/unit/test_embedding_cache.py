"""Prompt embeddings on disk: a repeated prompt loads nothing, and nothing that is kept is believed blindly."""

from __future__ import annotations

import errno
import os
import time
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest

from mlx_ltx2.generate import LTX2Pipeline
from mlx_ltx2.library import open_model
from mlx_ltx2.memory import PeakReport
from mlx_ltx2.pipelines.run import Run
from mlx_ltx2.progress import SilentProgress
from mlx_ltx2.stages.encode_text import encode_text
from mlx_ltx2.states import TextContext
from mlx_ltx2.weights import embedding_cache
from mlx_ltx2.weights.embedding_cache import EmbeddingCache, identity_of
from mlx_ltx2.weights.networks import Networks


class Notes(SilentProgress):
    def __init__(self) -> None:
        self.notes: list[str] = []

    def note(self, text: str) -> None:
        self.notes.append(text)


class Loads:
    """Networks whose text encoder and projections count how often they are loaded."""

    def __init__(self, model: Path, **changes: Any):
        self.networks = Networks(open_model(model, progress=SilentProgress()), **changes)
        self.encoder = self.projections = 0
        self.report = PeakReport()
        self.progress = Notes()

    def load_encoder(self) -> Any:
        self.encoder += 1
        return self.networks.load_text_encoder()

    def load_projections(self) -> Any:
        self.projections += 1
        assert self.encoder == self.projections
        return self.networks.load("text_projections")

    def encode(self, *prompts: str, folder: Path | None = None) -> list[TextContext]:
        cache = None if folder is None else self.networks.embedding_cache(folder, self.progress.note)
        return encode_text(prompts, self.load_encoder, self.load_projections, self.progress, self.report, cache)


def assert_same(got: TextContext, want: TextContext) -> None:
    for name in ("video", "audio"):
        a, b = getattr(got, name), getattr(want, name)
        assert (a is None) == (b is None)
        if a is not None:
            assert a.dtype == b.dtype and mx.array_equal(a, b).item()


def test_a_repeated_prompt_loads_nothing(tiny_model, tmp_path: Path) -> None:
    first, second = Loads(tiny_model()), Loads(tiny_model())
    plain = first.encode("a kite", "blurry")
    made = first.encode("a kite", "blurry", folder=tmp_path)
    kept = second.encode("a kite", "blurry", "a kite", folder=tmp_path)
    assert (first.encoder, second.encoder, second.projections) == (2, 0, 0)
    assert not second.report.peaks and not second.progress.notes
    for other in (made, kept):
        assert_same(other[0], plain[0])
        assert_same(other[1], plain[1])
    assert_same(kept[2], plain[0])
    more = second.encode("blurry", "a dog", folder=tmp_path)
    assert second.encoder == second.projections == 1
    assert_same(more[0], plain[1])
    assert len(list(tmp_path.iterdir())) == 3
    assert not any(b"kite" in path.read_bytes() for path in tmp_path.iterdir())


def test_the_remark_on_a_cut_prompt_is_repeated(tiny_model, tmp_path: Path) -> None:
    words = " ".join(f"word{i}" for i in range(1100))
    first, second, third = (Loads(tiny_model()) for _ in range(3))
    first.encode("a kite", words, folder=tmp_path)
    assert len(first.progress.notes) == 1 and first.progress.notes[0].startswith("the negative prompt has ")
    second.encode("a kite", words, folder=tmp_path)
    assert second.encoder == 0 and "cut off" in second.progress.notes[0]
    assert first.progress.notes == second.progress.notes
    third.encode(words, words, folder=tmp_path)  # kept as the negative prompt, it is now the prompt
    assert third.encoder == 0
    assert third.progress.notes == [first.progress.notes[0].replace("the negative prompt", "the prompt")]


def test_other_weights_and_types_do_not_share(tiny_model, tmp_path: Path) -> None:
    found = {
        Networks(open_model(model, progress=SilentProgress()), dtype=dtype).embedding_cache(tmp_path).identity
        for model in (tiny_model("2.3"), tiny_model("2.0"), tiny_model("2.3", q_bits=8, q_group_size=32))
        for dtype in (None, mx.float32)
    }
    assert len(found) == 6


def test_identity_follows_the_files(tmp_path: Path) -> None:
    mx.save_safetensors(str(tmp_path / "model.safetensors"), {"a": mx.zeros((2,))})
    (tmp_path / "config.json").write_text("{}")
    seen = [identity_of(tmp_path), identity_of(tmp_path, dtype="x"), identity_of(tmp_path, tmp_path)]
    (tmp_path / "config.json").write_text("{ }")
    seen.append(identity_of(tmp_path))
    mx.save_safetensors(str(tmp_path / "model.safetensors"), {"b": mx.zeros((2,))})
    seen.append(identity_of(tmp_path))
    os.utime(tmp_path / "model.safetensors", ns=(1, 1))
    seen.append(identity_of(tmp_path))
    assert len(set(seen)) == len(seen)
    assert identity_of(tmp_path) == identity_of(tmp_path)


def context(seed: int = 0, dtype: mx.Dtype = mx.bfloat16) -> TextContext:
    rng = np.random.default_rng(seed)
    return TextContext(mx.array(rng.standard_normal((1, 4, 8), dtype=np.float32)).astype(dtype))


@pytest.mark.parametrize("dtype", [mx.bfloat16, mx.float16, mx.float32])
def test_round_trip(tmp_path: Path, dtype: mx.Dtype) -> None:
    cache = EmbeddingCache(tmp_path / "new" / "folder", "id")
    cache.put("p", context(dtype=dtype), "note")
    found = cache.get("p")
    assert found is not None and found.note == "note" and "p" in cache and "q" not in cache
    assert_same(found.context, context(dtype=dtype))
    assert EmbeddingCache(cache.folder, "other").get("p") is None and cache.get("q") is None


@pytest.mark.parametrize("damage", ["bit", "cut", "empty", "text", "other prompt's stream", "note"])
def test_a_damaged_entry_is_made_again(tmp_path: Path, damage: str) -> None:
    said: list[str] = []
    cache = EmbeddingCache(tmp_path, "id", say=said.append)
    cache.put("p", context(), "note")
    path = cache.path("p")
    data = bytearray(path.read_bytes())
    if damage == "bit":
        data[-3] ^= 1
    elif damage == "other prompt's stream":
        data = bytearray(data.replace(b'"video"', b'"audio"'))
    elif damage == "note":
        data = bytearray(data.replace(b'"note":"note"', b'"note":"nope"'))
    else:
        data = {"cut": data[:-5], "empty": bytearray(), "text": bytearray(b"<html>no</html>")}[damage]
    path.write_bytes(data)
    assert "p" not in cache
    assert not path.exists() and len(said) == 1 and "made again" in said[0]
    cache.put("p", context())
    assert cache.get("p") is not None


def test_no_space_is_said_and_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    cache = EmbeddingCache(tmp_path, "id", say=said.append)

    def full(self: Path, target: Path) -> Path:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", full)
        cache.put("p", context())
    assert len(said) == 1 and "No space left" in said[0] and not list(tmp_path.iterdir())
    (tmp_path / "file").write_text("")
    EmbeddingCache(tmp_path / "file" / "under", "id", say=said.append).put("p", context())
    assert len(said) == 2 and "could not be kept" in said[1]


def test_the_least_recently_used_go(tmp_path: Path) -> None:
    one = EmbeddingCache(tmp_path, "id")
    one.put("0", context())
    size = one.path("0").stat().st_size
    cache = EmbeddingCache(tmp_path, "id", max_bytes=3 * size)
    for number in range(1, 3):
        cache.put(str(number), context(number))
    for number in range(3):
        os.utime(cache.path(str(number)), (number + 1, number + 1))
    assert cache.get("0") is not None  # used, so 1 is now the oldest
    cache.put("3", context(3))
    assert [cache.get(str(n)) is not None for n in range(4)] == [True, False, True, True]


def test_half_written_files_of_killed_runs_go(tmp_path: Path) -> None:
    old, new = tmp_path / "a.partial", tmp_path / "b.partial"
    for path in (old, new):
        path.write_bytes(b"x")
    before = time.time() - 2 * embedding_cache._ABANDONED_S
    os.utime(old, (before, before))
    EmbeddingCache(tmp_path, "id").put("p", context())
    assert not old.exists() and new.exists()


def test_the_encoder_is_freed_before_the_projections_load(tiny_model) -> None:
    loads = Loads(tiny_model())
    active: list[int] = []
    load = loads.load_projections

    def watched() -> Any:
        active.append(mx.get_active_memory())
        return load()

    before = mx.get_active_memory()
    (made,) = encode_text(["a kite"], loads.load_encoder, watched, SilentProgress(), loads.report)
    encoder = loads.networks.check_text_encoder().num_bytes
    assert loads.report.peaks["text encoder"] - before > encoder  # it was there
    assert active[0] - before < 0.5 * encoder  # and is gone
    del made
    mx.clear_cache()
    assert mx.get_active_memory() - before < 10_000


def test_a_pipeline_keeps_prompts_unless_told_not_to(
    tiny_model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLX_LTX2_CACHE", str(tmp_path))
    options: dict[str, Any] = {"height": 64, "width": 64, "num_frames": 9, "output_type": "latent", "seed": 1}
    model = tiny_model()

    runs = []
    for _ in range(2):
        clip = LTX2Pipeline.from_pretrained(model)("a kite", **options)
        runs.append((np.array(clip.latents.astype(mx.float32)), "text encoder" in clip.peaks))
    assert [encoded for _, encoded in runs] == [True, False]
    np.testing.assert_array_equal(runs[0][0], runs[1][0])
    assert len(list((tmp_path / "prompts").iterdir())) == 1

    class Reached(Exception):
        pass

    def latents(self: Run) -> None:
        assert self.session.prompt_cache is None
        raise Reached

    monkeypatch.setattr(Run, "latents", latents)
    with pytest.raises(Reached):
        LTX2Pipeline.from_pretrained(model, prompt_cache=False)("a kite", **options)
