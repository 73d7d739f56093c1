"""Noise schedules: float32 host arrays that fall from at most 1 to exactly 0.

Sources: ltx_core.components.schedulers and ltx_pipelines.utils.constants of release 1.2.0.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from mlx_ltx2.errors import RequestError

DISTILLED_SIGMAS = (1.0, 0.99375, 0.9875, 0.98125, 0.975, 0.909375, 0.725, 0.421875, 0.0)
"""Eight steps of the distilled models' first stage."""

STAGE_2_SIGMAS = (0.909375, 0.725, 0.421875, 0.0)
"""Three steps of every second stage: the last four of DISTILLED_SIGMAS."""

DEFAULT_TOKENS = 4096
"""Token count for which every guided pipeline but the HQ one shifts its schedule, whatever the clip's size.
"""


def distilled_schedule() -> np.ndarray:
    return np.array(DISTILLED_SIGMAS, np.float32)


def stage_2_schedule() -> np.ndarray:
    return np.array(STAGE_2_SIGMAS, np.float32)


def ltx2_schedule(
    steps: int,
    tokens: int = DEFAULT_TOKENS,
    *,
    max_shift: float = 2.05,
    base_shift: float = 0.95,
    terminal: float | None = 0.1,
) -> np.ndarray:
    """The full models' schedule: (steps + 1,) float32 from 1 to 0.

    tokens: the shift grows linearly from base_shift at 1024 tokens to max_shift at 4096 and is not clamped
    beyond. terminal: the last sigma before 0 after stretching, in (0, 1); None leaves the shifted schedule
    unstretched.
    Raises: RequestError if steps < 1.
    """
    _check_steps(steps)
    uniform = 1 - np.arange(steps) / steps
    shift = base_shift + (tokens - 1024) * (max_shift - base_shift) / (4096 - 1024)
    sigmas = math.exp(shift) / (math.exp(shift) + 1 / uniform - 1)
    if terminal is not None and steps > 1:
        below_one = 1 - sigmas
        sigmas = 1 - below_one * (1 - terminal) / below_one[-1]
    return np.append(sigmas, 0).astype(np.float32)


def linear_quadratic_schedule(steps: int, threshold: float = 0.025, linear_steps: int | None = None) -> np.ndarray:
    """Linear in noise up to `threshold`, quadratic after it: (steps + 1,) float32 from 1 to 0.

    Raises: RequestError if steps < 1 or linear_steps does not lie in [1, steps].
    """
    _check_steps(steps)
    if steps == 1:
        return np.array([1, 0], np.float32)
    linear = steps // 2 if linear_steps is None else linear_steps
    if not 1 <= linear <= steps:
        raise RequestError(f"linear_steps {linear} does not fit {steps} steps; use 1 to {steps}.")
    index = np.arange(steps)
    signal = index * threshold / linear
    quadratic = steps - linear
    if quadratic:
        excess = linear - threshold * steps
        square = excess / (linear * quadratic**2)
        slope = threshold / linear - 2 * excess / quadratic**2
        curve = square * index**2 + slope * index + square * linear**2
        signal = np.where(index < linear, signal, curve)
    return np.append(1 - signal, 0).astype(np.float32)


def beta_schedule(steps: int, alpha: float = 0.6, beta: float = 0.6, shift: float = 2.37) -> np.ndarray:
    """Sigmas at the quantiles of a Beta distribution (arXiv:2407.12173): at most steps + 1 values from 1 to
    0.

    Quantiles are read off a table of 10000 shifted sigmas; equal entries are dropped, so there may be fewer
    steps.
    Raises: RequestError if steps < 1.
    """
    _check_steps(steps)
    table_size = 10000
    # With t = sin^2(angle) the density loses its poles at 0 and 1, so the trapezoid rule is exact enough.
    angle = np.linspace(0, math.pi / 2, 400_001)
    density = np.sin(angle) ** (2 * alpha - 1) * np.cos(angle) ** (2 * beta - 1)
    mass = np.concatenate([[0.0], np.cumsum((density[1:] + density[:-1]) / 2)])
    quantiles = np.interp((1 - np.arange(steps) / steps) * mass[-1], mass, angle)
    indices = dict.fromkeys(np.rint(np.sin(quantiles) ** 2 * (table_size - 1)).astype(int).tolist())
    t = (np.array(list(indices)) + 1) / table_size
    sigmas = math.exp(shift) / (math.exp(shift) + 1 / t - 1)
    return np.append(sigmas, 0).astype(np.float32)


def truncated_schedule(sigmas: np.ndarray, strength: float) -> np.ndarray:
    """The tail of a schedule for a start from given latents: the last round(strength * steps) steps, at least
    one.

    strength: 1 = the whole schedule from pure noise, near 0 = hardly any change. The first sigma that is left
    is the noise scale to start with.
    Raises: RequestError unless 0 < strength <= 1.
    """
    if not 0 < strength <= 1:
        raise RequestError(f"denoising strength {strength} is out of range; use a number above 0 and at most 1.")
    steps = len(sigmas) - 1
    keep = max(1, round(strength * steps))
    return sigmas[steps - keep :]


def checked_sigmas(sigmas: Sequence[float] | np.ndarray, name: str = "sigmas") -> np.ndarray:
    """A caller's schedule as float32.

    Raises: RequestError unless it is a list of at least two finite numbers in [0, 1] that fall strictly and
    end at 0.
    """
    try:
        values = np.asarray(sigmas, dtype=np.float32)
    except (TypeError, ValueError):
        raise RequestError(f"{name} {sigmas!r} is not a list of numbers; use e.g. 1.0 0.9 0.5 0.") from None
    if values.ndim != 1 or len(values) < 2:
        raise RequestError(f"{name} needs at least two numbers in one list, such as 1.0 0.5 0; got {sigmas!r}.")
    if not np.isfinite(values).all() or values.min() < 0 or values.max() > 1:
        raise RequestError(f"{name} must be finite and lie in [0, 1]; got {values.tolist()}.")
    if values[-1] != 0:
        raise RequestError(f"{name} must end at 0, the clean clip; got {values[-1]:g} at the end. Append 0.")
    if not (np.diff(values) < 0).all():
        raise RequestError(f"{name} must fall strictly from one step to the next; got {values.tolist()}.")
    return values


def _check_steps(steps: int) -> None:
    if not isinstance(steps, int) or steps < 1:
        raise RequestError(f"steps {steps} must be a whole number of at least 1.")
