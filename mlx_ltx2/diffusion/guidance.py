"""Guidance: how several predictions of one clip become one. All arithmetic on x0 in float32.

Sources: classifier-free guidance (arXiv:2207.12598), spatio-temporal guidance (arXiv:2411.18664), adaptive
projected guidance (arXiv:2410.02416), CFG-Zero* (arXiv:2503.18886), and ltx_core.components.guiders of
release 1.2.0.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import mlx.core as mx

from mlx_ltx2.errors import RequestError

PassName = Literal["cond", "uncond", "perturbed", "isolated"]


@dataclass(frozen=True)
class GuidanceParams:
    """Guidance of one stream; the defaults switch everything off.

    cfg: classifier-free scale, 1 = off. stg: spatio-temporal scale, 0 = off. stg_blocks: transformer blocks
    whose self-attention the perturbed pass skips. modality: scale against the pass without cross-modal
    attention, 1 = off. rescale: 0 to 1, how far the deviation of the result is drawn back to that of the
    conditioned prediction. skip_step: k means that only every (k + 1)-th step evaluates the network. apg:
    project the CFG direction; apg_eta weighs its part parallel to the conditioned prediction, and
    apg_norm_threshold > 0 bounds its norm. cfg_star: scale the unconditioned prediction onto the conditioned
    one first.
    """

    cfg: float = 1.0
    stg: float = 0.0
    stg_blocks: tuple[int, ...] | Literal["all"] = ()
    modality: float = 1.0
    rescale: float = 0.0
    skip_step: int = 0
    apg: bool = False
    apg_eta: float = 1.0
    apg_norm_threshold: float = 0.0
    cfg_star: bool = False

    def __post_init__(self) -> None:
        scales = (self.cfg, self.stg, self.modality, self.rescale, self.apg_eta, self.apg_norm_threshold)
        if not all(math.isfinite(scale) for scale in scales):
            raise RequestError(f"guidance scales must be finite numbers; got {self}.")
        if self.skip_step < 0:
            raise RequestError(f"skip_step {self.skip_step} is negative; use 0 to evaluate every step.")
        if self.apg and self.cfg_star:
            raise RequestError("apg and cfg_star both replace plain classifier-free guidance; choose one.")

    @property
    def needs_uncond(self) -> bool:
        return not math.isclose(self.cfg, 1.0)

    @property
    def needs_perturbed(self) -> bool:
        """With no blocks to skip the perturbed pass would equal the conditioned one."""
        return not math.isclose(self.stg, 0.0, abs_tol=1e-12) and len(self.stg_blocks) > 0

    @property
    def needs_isolated(self) -> bool:
        return not math.isclose(self.modality, 1.0)

    def skips(self, step: int) -> bool:
        """True if step number `step` (from 0) reuses the previous guided prediction."""
        return self.skip_step > 0 and step % (self.skip_step + 1) != 0


OFF = GuidanceParams()
"""No guidance: one pass."""

Guidance = GuidanceParams | Mapping[float, GuidanceParams]
"""Constant settings, or settings by the upper end of the sigma range in which they hold."""


def params_at(guidance: Guidance, sigma: float) -> GuidanceParams:
    """Settings for noise level `sigma`: those of the smallest bound >= sigma, else of the largest."""
    if isinstance(guidance, GuidanceParams):
        return guidance
    if not guidance:
        raise RequestError("guidance by sigma needs at least one bound.")
    above = [bound for bound in guidance if bound >= sigma]
    return guidance[min(above) if above else max(guidance)]


def needed_passes(video: GuidanceParams | None, audio: GuidanceParams | None) -> tuple[PassName, ...]:
    """The passes one step needs, in the order in which they run.

    None stands for an absent stream; a frozen stream takes part with `OFF`. Without a second stream there is
    nothing to isolate.
    """
    present = [params for params in (video, audio) if params is not None]
    passes: list[PassName] = ["cond"]
    if any(params.needs_uncond for params in present):
        passes.append("uncond")
    if any(params.needs_perturbed for params in present):
        passes.append("perturbed")
    if len(present) == 2 and any(params.needs_isolated for params in present):
        passes.append("isolated")
    return tuple(passes)


def guide(
    cond: mx.array,
    uncond: mx.array | None,
    perturbed: mx.array | None,
    isolated: mx.array | None,
    params: GuidanceParams,
) -> mx.array:
    """Combine the x0 predictions (B, N, C) of one stream; float32. A pass that was not run is None.

    Rescaling compares standard deviations over the whole array, conditioning tokens included.
    """
    cond = cond.astype(mx.float32)
    result = cond
    if uncond is not None and params.needs_uncond:
        result = result + cfg_delta(cond, uncond.astype(mx.float32), params)
    if perturbed is not None and params.needs_perturbed:
        result = result + params.stg * (cond - perturbed.astype(mx.float32))
    if isolated is not None and params.needs_isolated:
        result = result + (params.modality - 1) * (cond - isolated.astype(mx.float32))
    if params.rescale != 0 and result is not cond:
        ratio = mx.std(cond) / mx.std(result)
        result = result * (params.rescale * ratio + (1 - params.rescale))
    return result


def cfg_delta(cond: mx.array, uncond: mx.array, params: GuidanceParams) -> mx.array:
    """What classifier-free guidance adds to `cond`: plain, projected (APG) or scaled (CFG*)."""
    if params.cfg_star:
        return (params.cfg - 1) * (cond - _projection(cond, uncond))
    direction = cond - uncond
    if not params.apg:
        return (params.cfg - 1) * direction
    if params.apg_norm_threshold > 0:
        norm = mx.sqrt(mx.sum(direction * direction, axis=(-2, -1), keepdims=True))
        direction = direction * mx.minimum(1.0, params.apg_norm_threshold / mx.maximum(norm, 1e-30))
    parallel = _projection(direction, cond)
    return (params.cfg - 1) * (params.apg_eta * parallel + direction - parallel)


def _projection(x: mx.array, onto: mx.array) -> mx.array:
    """The part of each sample of `x` parallel to `onto`."""
    dot = mx.sum(x * onto, axis=(-2, -1), keepdims=True)
    return dot / (mx.sum(onto * onto, axis=(-2, -1), keepdims=True) + 1e-8) * onto
