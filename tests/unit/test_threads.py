"""Networks and arrays that were made in one thread are used in another, as a web server does."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest

from mlx_ltx2 import LTX2Pipeline, load_component
from mlx_ltx2.models.registry import COMPONENTS
from mlx_ltx2.weights.load import load_statistics
from mlx_ltx2.weights.text_encoder import load_text_encoder
from mlx_ltx2.weights.upsampler_file import load_upsampler_file

SIZE = {"height": 64, "width": 64, "num_frames": 9}


def elsewhere(job: Callable[[], Any]) -> Any:
    """The job's result from a new thread; its exception too."""
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(job).result()


@pytest.mark.parametrize("name", [*COMPONENTS, "text_encoder"])
def test_a_component_is_ready_for_any_thread(tiny_model, name: str) -> None:
    module = load_component(tiny_model(), name)
    elsewhere(lambda: mx.eval(mx.sum(next(iter(_arrays(module))).astype(mx.float32))))
    cast = load_component(tiny_model(), name, dtype=mx.float32)
    elsewhere(lambda: mx.eval([array + 0 for array in _arrays(cast)]))


def _arrays(module: Any) -> list[mx.array]:
    from mlx.utils import tree_flatten

    return [array for _, array in tree_flatten(module.parameters())]


def test_other_loaders_too(tiny_model, tiny_sources) -> None:
    gemma = next(p for p in tiny_sources().iterdir() if p.is_dir())
    upsampler = next(tiny_sources().glob("*spatial*x2*"))
    for module in (
        load_statistics(tiny_model()),
        load_text_encoder(gemma).model,
        load_upsampler_file(upsampler, "spatial-x2"),
        load_component(tiny_model("2.3", "distilled", q_bits=8, q_group_size=32), "transformer"),
    ):
        elsewhere(lambda module=module: mx.eval([array + 0 for array in _arrays(module)]))


def test_a_network_made_here_computes_there(tiny_model) -> None:
    vocoder = load_component(tiny_model(), "vocoder")
    mel = np.random.default_rng(0).standard_normal((1, 8, 64, 2)).astype(np.float32)

    def call() -> np.ndarray:
        return np.array(vocoder(mx.array(mel)))

    assert np.array_equal(elsewhere(call), call())


@pytest.mark.parametrize(
    "options",
    [
        pytest.param({}, id="whole"),
        pytest.param({"low_memory": True, "resident_blocks": 1}, id="streamed", marks=pytest.mark.slow),
    ],
)
def test_a_pipeline_is_called_from_threads(tiny_model, options: dict[str, Any]) -> None:
    """Opened here; called in a thread, then here again: the same clip."""
    pipeline = LTX2Pipeline.from_pretrained(tiny_model(), prompt_cache=False, **options)
    clips = [elsewhere(lambda: pipeline("a kite", seed=1, **SIZE)), pipeline("a kite", seed=1, **SIZE)]
    for clip in clips[1:]:
        assert np.array_equal(clip.frames, clips[0].frames)
        assert mx.array_equal(clip.latents, clips[0].latents)


@pytest.mark.slow
def test_a_clip_of_one_thread_is_the_source_in_another(tiny_model, tmp_path: Path) -> None:
    pipeline = LTX2Pipeline.from_pretrained(tiny_model(), prompt_cache=False)
    clip = elsewhere(lambda: pipeline("a kite", output=tmp_path / "a.mp4", **SIZE))
    again = elsewhere(lambda: pipeline("a kite", video=clip, start_time=0.0, end_time=0.2))
    assert again.frames.shape == clip.frames.shape
    found: list[bool] = []
    thread = threading.Thread(target=lambda: found.append(bool(mx.isfinite(again.latents).all())))
    thread.start()
    thread.join()
    assert found == [True]
