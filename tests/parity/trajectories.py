"""Models and runs that the trajectory tests share: one official checkpoint per kind, converted once."""

from __future__ import annotations

import functools
import gc
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from mlx_ltx2.generate import LTX2Pipeline
from mlx_ltx2.models.transformer import Transformer
from mlx_ltx2.pipelines.run import Run, Session
from mlx_ltx2.weights.networks import Networks
from mlx_ltx2_convert import convert
from tests.cases import as_numpy, relative_error
from tests.parity.official import Files, Result, write_official

BOUND = 1e-4
gc.freeze()  # both sides collect garbage between stages; torch's own objects need not be walked every time
PROMPT = "a red kite over a beach, waves breaking"


@dataclass(frozen=True)
class Model:
    """An official checkpoint and what our converter made of it."""

    files: Files
    folder: Path

    def pipeline(self, **patches: Any) -> LTX2Pipeline:
        pipeline = LTX2Pipeline.from_pretrained(self.folder)
        if patches:
            inner = pipeline.networks
            pipeline.networks = _Patched(inner.model, inner.text_encoder, inner.dtype, **patches)
        return pipeline


@dataclass(frozen=True)
class _Patched(Networks):
    """Loads transformers that follow another release's rule for the audio-video modulation."""

    cross_modulation: str = "1.2.0"

    def load_transformer(self, **options: Any) -> Transformer:
        network = super().load_transformer(**options)
        network.config = replace(network.config, cross_modulation=self.cross_modulation)
        return network


@functools.cache
def model(generation: str, variant: str = "distilled") -> Model:
    folder = Path(tempfile.mkdtemp(prefix="mlx-ltx2-trajectories-"))
    files = write_official(folder / "official", generation, variant)
    convert(files.folder, folder / "converted", dtype=None, variant=variant)
    return Model(files, folder / "converted")


@dataclass
class Ours:
    """Latents after every stage, channels last."""

    video: list[np.ndarray]
    audio: list[np.ndarray]


def run_ours(runner: LTX2Pipeline, **options: Any) -> Ours:
    """The real runner, its latents kept stage by stage."""
    plan = runner.plan(options.pop("prompt", PROMPT), tiling="none", **options)
    kept = Ours([], [])

    class Keeping(Run):
        def _results(self, states, stage):
            video, audio = super()._results(states, stage)
            kept.video += [] if video is None else [as_numpy(video)]
            kept.audio += [] if audio is None else [as_numpy(audio)]
            return video, audio

    Keeping(plan, runner.networks, Session()).latents()
    return kept


def worst(ours: Ours, official: Result, *, audio: bool = True) -> float:
    """Worst relative error over both streams after every stage."""
    pairs = list(zip(ours.video, official.video, strict=True))
    pairs += list(zip(ours.audio, official.audio, strict=True)) if audio else []
    assert pairs
    return max(relative_error(got, want) for got, want in pairs)
