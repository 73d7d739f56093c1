"""From the network's velocities to a prediction of the clean latents, with or without guidance.

The network arrives as a callable; x0 = x - t * v in float32 with t the noise level of each token. Passes run
in the order cond, uncond, perturbed, isolated, as many at once as `max_batch_size` allows (reference:
ltx_pipelines.utils.denoisers of release 1.2.0).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

import mlx.core as mx
import numpy as np

from mlx_ltx2.diffusion.guidance import (
    OFF,
    Guidance,
    GuidanceParams,
    PassName,
    guide,
    needed_passes,
    params_at,
)
from mlx_ltx2.diffusion.state import LatentPair, StatePair, to_modality, token_sigmas
from mlx_ltx2.errors import RequestError
from mlx_ltx2.states import Blocks, LatentState, Modality, Perturbation, TextContext


class VelocityModel(Protocol):
    """A joint transformer: velocities (B, N, C) per stream, None for an absent one.

    A model may also have `many(inputs, rope=) -> list of results` for several passes at a time; one whose weights come
    from disk reads them once for all.
    """

    def __call__(
        self,
        video: Modality | None,
        audio: Modality | None,
        *,
        rope: Any = None,
        perturbations: Sequence[Perturbation] | None = None,
    ) -> tuple[mx.array | None, mx.array | None]: ...


ModelInputs = tuple[Modality | None, Modality | None, Sequence[Perturbation] | None]
"""One invocation: video, audio, perturbations per sample."""

RopeBuilder = Callable[[np.ndarray | None, np.ndarray | None], Any]
"""(video positions (1, 3, N, 2), audio positions (1, 1, T, 2)) -> tables that the model takes as `rope`."""


class Denoiser(Protocol):
    """Predicts the clean latents of both streams, float32; None for absent and frozen streams."""

    @property
    def evaluations(self) -> int:
        """Forward passes so far; a batch of three passes counts three."""
        ...

    def __call__(self, states: StatePair, sigma: float, step: int) -> LatentPair: ...


@dataclass(frozen=True)
class Pass:
    """One conditioning of the network: which text, and what it leaves out."""

    name: PassName
    context: TextContext
    perturbation: Perturbation = Perturbation()


class Evaluator:
    """Runs passes through a network, in batches of at most `max_batch_size` samples, and turns velocities
    into x0.

    rope tables are built once and reused as long as the positions of both streams stay the same arrays.
    evaluations counts forward passes, calls counts invocations of the network.
    """

    def __init__(self, model: VelocityModel, rope: RopeBuilder | None = None, max_batch_size: int = 1) -> None:
        if max_batch_size < 1:
            raise RequestError(f"max_batch_size {max_batch_size} must be at least 1.")
        self.model = model
        self.rope = rope
        self.max_batch_size = max_batch_size
        self.evaluations = 0
        self.calls = 0
        self._tables: Any = None
        self._tables_for: tuple[np.ndarray | None, np.ndarray | None] | None = None

    def __call__(
        self,
        states: StatePair,
        sigma: float,
        passes: Sequence[Pass],
        enabled: tuple[bool, bool] = (True, True),
    ) -> dict[PassName, LatentPair]:
        """x0 predictions by pass name; `enabled` says which streams (video, audio) update their tokens."""
        batch = _batch(states)
        at_once = max(1, self.max_batch_size // batch)
        groups = [passes[first : first + at_once] for first in range(0, len(passes), at_once)]
        inputs = [self._inputs(states, sigma, group, enabled) for group in groups]
        predictions: dict[PassName, LatentPair] = {}
        for group, (video, audio) in zip(groups, self._velocities(inputs, self._rope_tables(states)), strict=True):
            for index, item in enumerate(group):
                rows = slice(index * batch, (index + 1) * batch)
                predictions[item.name] = LatentPair(
                    _x0(states.video, sigma, video, rows), _x0(states.audio, sigma, audio, rows)
                )
        return predictions

    def _inputs(
        self, states: StatePair, sigma: float, group: Sequence[Pass], enabled: tuple[bool, bool]
    ) -> ModelInputs:
        video = _modality(states.video, sigma, [item.context.video for item in group], "video", enabled[0])
        audio = _modality(states.audio, sigma, [item.context.audio for item in group], "audio", enabled[1])
        perturbed = any(item.perturbation != Perturbation() for item in group)
        samples = [item.perturbation for item in group for _ in range(_batch(states))]
        self.evaluations += len(group)
        self.calls += 1
        return video, audio, samples if perturbed else None

    def _velocities(self, inputs: Sequence[ModelInputs], rope: Any) -> list[tuple[mx.array | None, mx.array | None]]:
        many = getattr(self.model, "many", None)
        if many is not None:
            found: list[tuple[mx.array | None, mx.array | None]] = many(inputs, rope=rope)
            return found
        results = []
        for video, audio, perturbations in inputs:
            results.append(self.model(video, audio, rope=rope, perturbations=perturbations))
            if len(inputs) > 1:
                # Starts this pass without waiting; one graph of all passes might interleave their memory.
                mx.async_eval([velocity for velocity in results[-1] if velocity is not None])
        return results

    def _rope_tables(self, states: StatePair) -> Any:
        if self.rope is None:
            return None
        video, audio = (None if state is None else state.positions for state in states)
        if self._tables_for is None or self._tables_for[0] is not video or self._tables_for[1] is not audio:
            self._tables = self.rope(_one_row(video), _one_row(audio))
            self._tables_for = (video, audio)
        return self._tables


class SimpleDenoiser:
    """One pass with the positive text, no guidance."""

    def __init__(self, evaluator: Evaluator, context: TextContext) -> None:
        self.evaluator = evaluator
        self.context = context

    @property
    def evaluations(self) -> int:
        return self.evaluator.evaluations

    def __call__(self, states: StatePair, sigma: float, step: int) -> LatentPair:
        return self.evaluator(states, sigma, [Pass("cond", self.context)])["cond"]


class GuidedDenoiser:
    """Up to four passes, combined per stream.

    A frozen stream is not guided and keeps the positive text in every pass. A stream without a negative text
    uses its positive one, which is an error only where its own `cfg` is on. Passes that no setting needs are
    not run.

    Args:
        evaluator: the network.
        positive, negative: text contexts; `negative` may be None if no stream uses CFG.
        video, audio: settings per stream, constant or by sigma range.
    """

    def __init__(
        self,
        evaluator: Evaluator,
        positive: TextContext,
        negative: TextContext | None = None,
        *,
        video: Guidance = OFF,
        audio: Guidance = OFF,
    ) -> None:
        self.evaluator = evaluator
        self.positive = positive
        self.negative = negative or TextContext(None, None)
        self.video = video
        self.audio = audio
        self._last = LatentPair(None, None)

    @property
    def evaluations(self) -> int:
        return self.evaluator.evaluations

    def __call__(self, states: StatePair, sigma: float, step: int) -> LatentPair:
        video = _effective(states.video, params_at(self.video, sigma))
        audio = _effective(states.audio, params_at(self.audio, sigma))
        skipped = (
            self._last.video is not None and video is not None and video.skips(step),
            self._last.audio is not None and audio is not None and audio.skips(step),
        )
        if all(_idle(state) or skip for state, skip in zip(states, skipped, strict=True)):
            return self._last
        # What only a skipped stream would need is not run: its predictions are not used.
        video, audio = OFF if skipped[0] else video, OFF if skipped[1] else audio
        passes = self._passes(needed_passes(video, audio), states, video, audio)
        predictions = self.evaluator(states, sigma, passes, enabled=(not skipped[0], not skipped[1]))
        self._last = LatentPair(
            self._last.video if skipped[0] else _guided([predictions.get(n) for n in _ORDER], 0, video),
            self._last.audio if skipped[1] else _guided([predictions.get(n) for n in _ORDER], 1, audio),
        )
        return self._last

    def _passes(
        self,
        names: Sequence[PassName],
        states: StatePair,
        video: GuidanceParams | None,
        audio: GuidanceParams | None,
    ) -> list[Pass]:
        positive = self.positive
        perturbation = Perturbation(skip_video_self=_blocks(video), skip_audio_self=_blocks(audio))
        build = {
            "cond": lambda: Pass("cond", positive),
            "uncond": lambda: Pass("uncond", self._negative_context(states, video, audio)),
            "perturbed": lambda: Pass("perturbed", positive, perturbation),
            "isolated": lambda: Pass("isolated", positive, _ISOLATED),
        }
        return [build[name]() for name in names]

    def _negative_context(
        self, states: StatePair, video: GuidanceParams | None, audio: GuidanceParams | None
    ) -> TextContext:
        def choose(name: str, state: LatentState | None, params: GuidanceParams | None) -> mx.array | None:
            negative: mx.array | None = getattr(self.negative, name)
            positive: mx.array | None = getattr(self.positive, name)
            if state is None or state.frozen:
                return positive
            if negative is None and params is not None and params.needs_uncond:
                raise RequestError(
                    f"classifier-free guidance of {name} (scale {params.cfg:g}) needs a negative prompt;"
                    " give one or set its scale to 1."
                )
            return positive if negative is None else negative

        return TextContext(choose("video", states.video, video), choose("audio", states.audio, audio))


_ORDER: tuple[PassName, ...] = ("cond", "uncond", "perturbed", "isolated")
_ISOLATED = Perturbation(skip_audio_to_video="all", skip_video_to_audio="all")


def _idle(state: LatentState | None) -> bool:
    return state is None or state.frozen


def _effective(state: LatentState | None, params: GuidanceParams) -> GuidanceParams | None:
    """None for an absent stream, `OFF` for a frozen one; a lone stream has no other to be isolated from."""
    if state is None:
        return None
    return OFF if state.frozen else params


def _blocks(params: GuidanceParams | None) -> Blocks:
    if params is None or not params.needs_perturbed:
        return frozenset()
    return "all" if params.stg_blocks == "all" else frozenset(params.stg_blocks)


def _guided(predictions: Sequence[LatentPair | None], stream: int, params: GuidanceParams | None) -> mx.array | None:
    cond, uncond, perturbed, isolated = (None if pair is None else pair[stream] for pair in predictions)
    if cond is None or params is None:
        return None
    return guide(cond, uncond, perturbed, isolated, params)


def _batch(states: StatePair) -> int:
    state = states.video if states.video is not None else states.audio
    if state is None:
        raise RequestError("there is nothing to denoise: both video and audio are absent.")
    return state.latent.shape[0]


def _one_row(positions: np.ndarray | None) -> np.ndarray | None:
    if positions is None or len(positions) == 1:
        return positions
    if not (positions == positions[:1]).all():
        raise RequestError("the samples of a batch must share their positions; run them one by one.")
    return positions[:1]


def _modality(
    state: LatentState | None, sigma: float, contexts: Sequence[mx.array | None], name: str, enabled: bool
) -> Modality | None:
    if state is None:
        return None
    given = [context for context in contexts if context is not None]
    if len(given) != len(contexts):
        raise RequestError(f"a {name} stream needs a {name} text context; the text stage left none.")
    batch = state.latent.shape[0]
    rows = [mx.broadcast_to(c, (batch, *c.shape[1:])) if c.shape[0] != batch else c for c in given]
    context = rows[0] if len(rows) == 1 else mx.concatenate(rows, axis=0)
    made = to_modality(state, sigma, context, repeat=len(given), enabled=enabled)
    # Arrays that come again are handed on as they are, so that what is kept of them is found again.
    if all(row is c for row, c in zip(rows, given, strict=True)):
        made = replace(made, texts=tuple(given))
    mask = state.attention_mask
    return made if mask is None or len(mask) > 1 else replace(made, attention_mask=mask)


def _x0(state: LatentState | None, sigma: float, velocity: mx.array | None, rows: slice) -> mx.array | None:
    if state is None or state.frozen or velocity is None:
        return None
    levels = token_sigmas(state, sigma)
    uniform = (levels == levels[0, 0]).all()
    t = float(levels[0, 0]) if uniform else mx.array(levels[..., None])
    return state.latent.astype(mx.float32) - t * velocity[rows].astype(mx.float32)
