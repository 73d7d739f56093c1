"""Samplers: from one noise level to the next. State arithmetic is float32, coefficients are float64 on the
host.

A stepper gets both streams at once because some samplers evaluate the network between the levels. Frozen and
absent streams pass through untouched. Sources: ltx_pipelines.utils.samplers and
ltx_core.components.diffusion_steps of release 1.2.0; the release rounds velocities to bfloat16 inside the
Euler step, which is not repeated here.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import mlx.core as mx

from mlx_ltx2.diffusion.noise import ModalityName, NoiseSource, Stream
from mlx_ltx2.diffusion.state import LatentPair, StatePair, blend
from mlx_ltx2.errors import RequestError
from mlx_ltx2.states import LatentState

Predict = Callable[[StatePair, float, int], LatentPair]
"""(states, sigma, step for skipping) -> mask-blended x0, float32, None for streams that do not move."""

Move = Callable[[ModalityName, mx.array, mx.array], mx.array]
"""(modality, x, x0) -> x at the next level; all float32 (B, N, C)."""


@dataclass(frozen=True)
class Step:
    """Step number `index` goes from noise level `sigma` to `following`."""

    index: int
    sigma: float
    following: float


class Stepper(Protocol):
    def evaluations(self, sigmas: Sequence[float]) -> int:
        """How often the denoiser is called for a schedule."""
        ...

    def __call__(self, states: StatePair, predict: Predict, step: Step) -> StatePair: ...


def move_each(states: StatePair, x0: LatentPair, move: Move) -> StatePair:
    """Apply `move` to every stream that has a prediction; latents keep their dtype."""

    def one(name: ModalityName, state: LatentState | None, target: mx.array | None) -> LatentState | None:
        if state is None or target is None:
            return state
        return state.with_latent(move(name, state.latent.astype(mx.float32), target).astype(state.latent.dtype))

    return StatePair(one("video", states.video, x0.video), one("audio", states.audio, x0.audio))


def euler_step(x: mx.array, x0: mx.array, sigma: float, following: float) -> mx.array:
    """One step along the straight line from x to x0."""
    return x + (x - x0) * ((following - sigma) / sigma)


@dataclass(frozen=True)
class Euler:
    """First-order deterministic sampler."""

    def evaluations(self, sigmas: Sequence[float]) -> int:
        return len(sigmas) - 1

    def __call__(self, states: StatePair, predict: Predict, step: Step) -> StatePair:
        x0 = predict(states, step.sigma, step.index)
        return move_each(states, x0, lambda _, x, target: euler_step(x, target, step.sigma, step.following))


def ancestral_coefficients(sigma: float, following: float, eta: float) -> tuple[float, float, float]:
    """(sigma_down, signal ratio, noise coefficient) of the rectified-flow ancestral step."""
    down = following * (1 + (following / sigma - 1) * eta)
    ratio = (1 - following) / (1 - down)
    return down, ratio, math.sqrt(max(0.0, following**2 - (down * ratio) ** 2))


@dataclass(frozen=True)
class EulerAncestral:
    """Euler step below the next level, then fresh noise up to it; conditioned tokens are restored afterwards.

    eta: 0 = plain Euler, 1 = fully ancestral. s_noise: factor on the fresh noise.
    """

    noise: NoiseSource
    eta: float = 1.0
    s_noise: float = 1.0

    def evaluations(self, sigmas: Sequence[float]) -> int:
        return len(sigmas) - 1

    def __call__(self, states: StatePair, predict: Predict, step: Step) -> StatePair:
        x0 = predict(states, step.sigma, step.index)
        if step.following == 0:
            return move_each(states, x0, lambda _, x, target: target)
        down, ratio, amount = ancestral_coefficients(step.sigma, step.following, self.eta)

        def move(name: ModalityName, x: mx.array, target: mx.array) -> mx.array:
            x = euler_step(x, target, step.sigma, down)
            if self.eta == 0:
                return x
            fresh = mx.array(self.noise.normal(name, tuple(x.shape), "step", step.index))
            return blend(_stream(states, name), ratio * x + (amount * self.s_noise) * fresh)

        return move_each(states, x0, move)


@dataclass
class GradientEstimatingEuler:
    """Euler with the velocity extrapolated from the previous step (Permenter & Yuan, OpenReview o2ND9v0CeK).

    gamma: 1 = plain Euler, 2 as suggested by the paper. Keeps the previous velocities; a new schedule starts
    at index 0.
    """

    gamma: float = 2.0
    _previous: dict[ModalityName, mx.array] = field(default_factory=dict, repr=False)

    def evaluations(self, sigmas: Sequence[float]) -> int:
        return len(sigmas) - 1

    def __call__(self, states: StatePair, predict: Predict, step: Step) -> StatePair:
        if step.index == 0:
            self._previous.clear()
        x0 = predict(states, step.sigma, step.index)
        if step.following == 0:
            return move_each(states, x0, lambda _, x, target: target)

        def move(name: ModalityName, x: mx.array, target: mx.array) -> mx.array:
            velocity = (x - target) / step.sigma
            previous = self._previous.get(name)
            self._previous[name] = velocity
            if previous is not None:
                velocity = self.gamma * (velocity - previous) + previous
            return x + velocity * (step.following - step.sigma)

        return move_each(states, x0, move)


def res2s_coefficients(h: float) -> tuple[float, float, float]:
    """(a21, b1, b2) of the second-order exponential Runge-Kutta step of log-size `h` with its node at 1/2."""

    def phi1(z: float) -> float:
        return 1.0 if abs(z) < 1e-10 else math.expm1(z) / z

    def phi2(z: float) -> float:
        # Below this the difference of near-equal numbers costs more than the series' fourth term.
        return 0.5 + z / 6 + z * z / 24 + z**3 / 120 if abs(z) < 1e-3 else (math.expm1(z) - z) / (z * z)

    b2 = phi2(-h) / 0.5
    return 0.5 * phi1(-h / 2), phi1(-h) - b2, b2


def sde_coefficients(following: float, eta: float = 0.5) -> tuple[float, float, float]:
    """(signal ratio, sigma_down, sigma_up) that put fresh noise of `eta * following` into a level and keep
    it.
    """
    up = min(eta * following, 0.9999 * following)
    residual = math.sqrt(max(0.0, following**2 - up**2))
    ratio = (1 - following) + residual
    return ratio, residual / ratio, up


def sde_step(
    x: mx.array, target: mx.array, sigma: float, following: float, noise: mx.array, eta: float = 0.5
) -> mx.array:
    """Renew part of the noise of `target`, a sample at level `following` reached from `x` at `sigma`."""
    ratio, down, up = sde_coefficients(following, eta)
    if up == 0:
        return target
    # Arranged so that close levels do not divide one small difference by another.
    reach = (sigma - down) / (sigma - following)
    return (ratio * (1 - reach)) * x + (ratio * reach) * target + up * noise


@dataclass(frozen=True)
class Res2s:
    """Second-order stochastic sampler with two evaluations a step and one clean-up evaluation at the end.

    A schedule that ends at 0 is run down to `floor` instead, where one more evaluation gives the result. For
    short steps (log-size below 1/2, above sigma 0.03) the anchor is moved to where the noisy midpoint would
    have come from; the release iterates this a hundred times, here is its fixed point. Half of every level's
    noise is replaced (eta 1/2), with noise that is normalised over the whole array.
    """

    noise: NoiseSource
    eta: float = 0.5
    floor: float = 0.0011

    def evaluations(self, sigmas: Sequence[float]) -> int:
        return 2 * (len(sigmas) - 1) + (1 if sigmas[-1] == 0 else 0)

    def __call__(self, states: StatePair, predict: Predict, step: Step) -> StatePair:
        final = step.following == 0
        following = self.floor if final else step.following
        if following >= step.sigma:
            raise RequestError(
                f"the res_2s sampler needs sigmas above {self.floor}; got {step.sigma:g} before the last."
            )
        states = self._advance(states, predict, Step(step.index, step.sigma, following))
        if not final:
            return states
        x0 = predict(states, self.floor, step.index + 1)
        return move_each(states, x0, lambda _, x, target: target)

    def _advance(self, states: StatePair, predict: Predict, step: Step) -> StatePair:
        h = math.log(step.sigma / step.following)
        a21, b1, b2 = res2s_coefficients(h)
        k = h * a21
        middle = math.sqrt(step.sigma * step.following)
        anchors: dict[ModalityName, mx.array] = {}
        early: dict[ModalityName, mx.array] = {}
        first = predict(states, step.sigma, step.index)

        def to_middle(name: ModalityName, x: mx.array, x0: mx.array) -> mx.array:
            fresh = self._fresh(name, x, "substep", step.index)
            noisy = sde_step(x, x + k * (x0 - x), step.sigma, middle, fresh)
            noisy = blend(_stream(states, name), noisy)
            early[name] = x0
            bong = h < 0.5 and step.sigma > 0.03
            anchors[name] = (noisy - k * x0) / (1 - k) if bong else x
            return noisy

        # The midpoint's step counts as 0 so that no prediction is skipped there.
        second = predict(move_each(states, first, to_middle), middle, 0)

        def to_next(name: ModalityName, x: mx.array, x0: mx.array) -> mx.array:
            anchor = anchors[name]
            target = anchor + h * (b1 * (early[name] - anchor) + b2 * (x0 - anchor))
            fresh = self._fresh(name, x, "step", step.index)
            return blend(_stream(states, name), sde_step(anchor, target, step.sigma, step.following, fresh, self.eta))

        return move_each(states, second, to_next)

    def _fresh(self, name: ModalityName, x: mx.array, stream: Stream, index: int) -> mx.array:
        return mx.array(self.noise.normalized(name, tuple(x.shape), stream, index))


def _stream(states: StatePair, name: ModalityName) -> LatentState:
    state = states.video if name == "video" else states.audio
    assert state is not None
    return state


SAMPLERS = ("euler", "euler-ancestral", "euler-ge", "res2s")


def make_stepper(name: str, noise: NoiseSource, *, eta: float | None = None) -> Stepper:
    """A sampler by its name on the command line.

    Raises: RequestError for a name that is not in SAMPLERS.
    """
    if name == "euler":
        return Euler()
    if name == "euler-ancestral":
        return EulerAncestral(noise) if eta is None else EulerAncestral(noise, eta)
    if name == "euler-ge":
        return GradientEstimatingEuler()
    if name == "res2s":
        return Res2s(noise) if eta is None else Res2s(noise, eta)
    raise RequestError(f"sampler {name!r} is not known; use one of {', '.join(SAMPLERS)}.")
