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
from mlx_ltx2.weights.networks import Networks
from mlx_ltx2_convert import convert
from tests.cases import relative_error
from tests.cases.trajectories import PROMPT, run_stages
from tests.parity.official import Files, Result, write_official

BOUND = 1e-4
gc.freeze()  # both sides collect garbage between stages; torch's own objects need not be walked every time


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


def run_ours(runner: LTX2Pipeline, *, prompt: str = PROMPT, downscale: int = 1, **options: Any) -> Ours:
    video, audio, _ = run_stages(runner, prompt, options, downscale=downscale)
    return Ours(video, audio)


def worst(ours: Ours, official: Result, *, audio: bool = True) -> float:
    """Worst relative error over both streams after every stage."""
    pairs = list(zip(ours.video, official.video, strict=True))
    pairs += list(zip(ours.audio, official.audio, strict=True)) if audio else []
    assert pairs
    return max(relative_error(got, want) for got, want in pairs)
