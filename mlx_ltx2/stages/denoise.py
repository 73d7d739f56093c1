"""Noise + context + conditioning items -> latents, by one transformer."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from mlx_ltx2.diffusion.denoisers import Denoiser, Evaluator, GuidedDenoiser, SimpleDenoiser
from mlx_ltx2.diffusion.guidance import OFF, GuidanceParams
from mlx_ltx2.diffusion.loop import OnStep
from mlx_ltx2.diffusion.loop import denoise as run_loop
from mlx_ltx2.diffusion.noise import ModalityName, NoiseSource
from mlx_ltx2.diffusion.state import (
    ConditioningItem,
    StatePair,
    add_noise,
    conditioned,
    freeze,
)
from mlx_ltx2.diffusion.steppers import make_stepper
from mlx_ltx2.models.transformer import Kept, RopeTables, Transformer
from mlx_ltx2.states import LatentState, TextContext


@dataclass(frozen=True)
class Guided:
    """What a denoiser needs beside the network: texts, guidance per stream (None: unguided), passes at once."""

    positive: TextContext
    negative: TextContext | None = None
    video: GuidanceParams | None = None
    audio: GuidanceParams | None = None
    max_batch_size: int = 1


def started(
    state: LatentState,
    modality: ModalityName,
    noise: NoiseSource,
    *,
    noise_scale: float = 1.0,
    items: Iterable[ConditioningItem] = (),
    frozen: bool = False,
) -> LatentState:
    """A stream ready for its first step: conditioning applied, then noise mixed in, or frozen as it is."""
    state = conditioned(state, items)
    if frozen:
        return freeze(state)
    return add_noise(state, noise.normal(modality, state.latent.shape), noise_scale)


def denoise(
    transformer: Transformer,
    states: StatePair,
    settings: Guided,
    sigmas: Sequence[float],
    sampler: str,
    noise: NoiseSource,
    on_step: OnStep | None = None,
    *,
    text_cache: bool = False,
) -> StatePair:
    """Run one stage's schedule.

    states: started streams, None for an absent one. noise: the same source that started them, for samplers that inject
    noise of their own. text_cache: keep the text's keys and values of all blocks while the stage lasts
    (`models.transformer.text_bytes`); same result, and worth it in LTX-2, whose text does not change from step to step,
    and in guided stages of LTX-2.3, whose passes share a prompt.
    """
    kept = Kept("clip" if text_cache else "block")
    dtype = next(s.latent.dtype for s in states if s is not None)

    def rope(video: np.ndarray | None, audio: np.ndarray | None) -> RopeTables:
        return replace(transformer.rope(video, audio, dtype), kept=kept)

    evaluator = Evaluator(transformer, rope, settings.max_batch_size)
    denoiser = _denoiser(evaluator, settings)
    return run_loop(denoiser, *states, sigmas, make_stepper(sampler, noise), on_step)


def _denoiser(evaluator: Evaluator, settings: Guided) -> Denoiser:
    if all(g is None or g == OFF for g in (settings.video, settings.audio)):
        return SimpleDenoiser(evaluator, settings.positive)
    return GuidedDenoiser(
        evaluator,
        settings.positive,
        settings.negative,
        video=settings.video or OFF,
        audio=settings.audio or OFF,
    )
