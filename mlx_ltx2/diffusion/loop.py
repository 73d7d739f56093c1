"""The one denoising loop."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import mlx.core as mx
import numpy as np

from mlx_ltx2.diffusion.denoisers import Denoiser
from mlx_ltx2.diffusion.guidance import OFF, Guidance, needed_passes, params_at
from mlx_ltx2.diffusion.state import LatentPair, StatePair, blend
from mlx_ltx2.diffusion.steppers import Step, Stepper
from mlx_ltx2.errors import RequestError
from mlx_ltx2.states import LatentState

OnStep = Callable[[int, int, StatePair], None]
"""(steps done, steps in all, states after the step); raise to stop."""


def denoise(
    denoiser: Denoiser,
    video: LatentState | None,
    audio: LatentState | None,
    sigmas: Sequence[float] | np.ndarray,
    stepper: Stepper,
    on_step: OnStep | None = None,
    evaluate: Callable[..., None] = mx.eval,
) -> StatePair:
    """Run a schedule over both streams.

    Predictions are blended with the clean latents by the mask before the stepper sees them. Frozen streams
    are read by the network and returned as they came. Each step is evaluated once, by `evaluate`, before
    `on_step` is told.

    Args:
        denoiser: x0 predictions.
        video, audio: noised states; None for an absent stream.
        sigmas: falling noise levels; the first is what the states were noised to.
        stepper: the sampler.
        on_step: called after every step; an exception it raises ends the run.
        evaluate: materialises the latents of a step.
    Raises: RequestError if there is nothing to denoise.
    """
    states = StatePair(video, audio)
    if all(state is None or state.frozen for state in states):
        raise RequestError("there is nothing to denoise: every stream is absent or frozen.")

    def predict(at: StatePair, sigma: float, index: int) -> LatentPair:
        x0 = denoiser(at, sigma, index)
        return LatentPair(_blended(at.video, x0.video), _blended(at.audio, x0.audio))

    levels = [float(sigma) for sigma in sigmas]
    total = len(levels) - 1
    for index in range(total):
        states = stepper(states, predict, Step(index, levels[index], levels[index + 1]))
        evaluate([state.latent for state in states if state is not None])
        if on_step is not None:
            on_step(index + 1, total, states)
    return states


def _blended(state: LatentState | None, x0: mx.array | None) -> mx.array | None:
    if state is None or state.frozen or x0 is None:
        return None
    return blend(state, x0)


def planned_forwards(
    sigmas: Sequence[float] | np.ndarray,
    stepper: Stepper,
    video: Guidance | None = OFF,
    audio: Guidance | None = OFF,
) -> int:
    """How many forward passes `denoise` will make, counted by a dry run without arrays.

    None stands for an absent stream, `OFF` for an unguided or frozen one.
    """
    count = 0
    levels = [float(sigma) for sigma in sigmas]

    def predict(at: StatePair, sigma: float, index: int) -> LatentPair:
        nonlocal count
        params = [None if guidance is None else params_at(guidance, sigma) for guidance in (video, audio)]
        skipped = [count > 0 and item is not None and item.skips(index) for item in params]
        if not all(item is None or skip for item, skip in zip(params, skipped, strict=True)):
            kept = [OFF if skip else item for item, skip in zip(params, skipped, strict=True)]
            count += len(needed_passes(kept[0], kept[1]))
        return LatentPair(None, None)

    for index in range(len(levels) - 1):
        stepper(StatePair(None, None), predict, Step(index, levels[index], levels[index + 1]))
    return count
