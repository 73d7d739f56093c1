"""When the pictures of a clip are shown, and which of them a player shows at a given instant."""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property

import numpy as np

_NTSC = tuple(Fraction(n * 1000, 1001) for n in (24, 30, 48, 60, 120))
_WHOLE = (24, 25, 30, 50, 60, 48, 12, 15, 10, 20, 8, 5, 2, 1, 90, 100, 120)
_USUAL = (*map(Fraction, _WHOLE), *_NTSC)
_HIGHEST = Fraction(120)
_PREVALENT = 0.1
"""Share of the intervals that may be shorter than the one that becomes the rate: a burst does not set it."""
_TWINS = Fraction(1, 500)
"""A broadcast rate and its whole one lie closer together than this, all others farther apart, relatively."""
_ALIKE = 1.8
"""How many times longer one interval may be than another where both are meant to be the same."""
_STRAY = 0.5
"""Frames; a clip whose stamps stray less than this from a constant rate keeps its pictures one to one."""


@dataclass(frozen=True)
class FrameTimes:
    """Time stamps of the pictures that are shown, in order, counted from the first one.

    ticks: int64, the first is 0, each later than the one before. tick: seconds. last: ticks for which the last picture
    stands, 0 if that is not known. hints: what the header calls the rate, best first.
    """

    ticks: np.ndarray
    tick: Fraction
    last: int
    hints: tuple[Fraction, ...]

    @cached_property
    def seconds(self) -> np.ndarray:
        return self.ticks * float(self.tick)

    @cached_property
    def steady_rate(self) -> Fraction | None:
        """The constant rate that all stamps fit, one picture after the other, within the rounding of a tick."""
        if len(self.ticks) == 1:
            return self.hints[0] if self.hints else None
        fitted = Fraction(len(self.ticks) - 1) / (int(self.ticks[-1]) * self.tick)
        usual = sorted(_USUAL, key=lambda rate: abs(rate - fitted))[:2]
        for rate in (*self.hints, *usual, fitted.limit_denominator(1001)):
            if self._stray(rate) <= float(self.tick) * 1.01:
                return rate
        return None

    @cached_property
    def near_rate(self) -> Fraction | None:
        """The constant rate beside which the stamps stray by less than a quarter of a frame each way."""
        gaps = np.diff(self.ticks)
        if self.steady_rate or len(gaps) < 2 or gaps.max() > _ALIKE * gaps.min():
            return self.steady_rate
        fitted = Fraction(len(self.ticks) - 1) / (int(self.ticks[-1]) * self.tick)
        usual = min(_USUAL, key=lambda rate: abs(rate - fitted))
        for rate in (usual, fitted.limit_denominator(1001)):
            if self._stray(rate) * float(rate) < _STRAY:
                return rate
        return None

    @cached_property
    def rate(self) -> Fraction | None:
        """The constant rate that the clip is read at; None for one picture of which no rate is known.

        Of a variable rate: the lowest usual one on whose grid every picture has a place of its own, else that of its
        short intervals.
        """
        if self.near_rate or len(self.ticks) == 1:
            return self.near_rate
        for rate in sorted(r for r in _USUAL if r <= 60):
            if self._off_grid(rate) <= max(0.1, float(self.tick * rate)):
                twins = [r for r in _USUAL if abs(r / rate - 1) < _TWINS]
                return min(twins, key=self._off_grid)
        short = float(np.quantile(np.diff(self.seconds), _PREVALENT, method="higher"))
        usual = min(_USUAL, key=lambda rate: abs(float(rate) * short - 1))
        near = abs(float(usual) * short - 1) < 0.05
        return min(_HIGHEST, usual if near else Fraction(1 / short).limit_denominator(1001))

    @property
    def end(self) -> float:
        """Seconds from the first picture's appearance to the last one's end."""
        if self.near_rate:
            return len(self.ticks) / float(self.near_rate)
        gaps = np.diff(self.ticks)
        last = self.last or (int(np.median(gaps)) if len(gaps) else 0)
        return float((int(self.ticks[-1]) + last) * self.tick)

    @property
    def intervals(self) -> tuple[float, float]:
        """Lowest and highest rate that two neighbouring pictures stand for."""
        gaps = np.diff(self.seconds)
        return 1 / float(gaps.max()), 1 / float(gaps.min())

    def shown(self, fps: Fraction) -> np.ndarray:
        """Number of the picture that stands at k / fps seconds, for every k before the end: int64 (N,).

        At the clip's own rate, where it is constant, these are all its pictures, once each.
        """
        own, count = self.near_rate, len(self.ticks)
        if own == fps or (count == 1 and not own and not self.last):
            return np.arange(count)
        if own is None:
            times = self.seconds
            early = min([1 / float(fps), *np.diff(times).tolist()]) / 4
        else:
            # The stamps are those of the rate; 29.97 is taken for 30 until half a frame is between them.
            times = np.arange(count) / float(own)
            early = (0.5 if abs(own / fps - 1) < _TWINS else 1e-3) / float(fps)
        places = np.arange(max(1, int(np.ceil(self.end * float(fps) - 0.5 * (own is None) - 1e-3))))
        return np.asarray(np.searchsorted(times, places / float(fps) + early, "right") - 1)

    def _off_grid(self, rate: Fraction) -> float:
        """How far a picture lies from its place at most, in frames; endless where two share a place."""
        places = self.seconds * float(rate)
        whole = np.rint(places)
        return float(np.abs(places - whole).max()) if np.diff(whole).min() >= 1 else np.inf

    def _stray(self, rate: Fraction) -> float:
        """Seconds between the earliest and the latest picture, seen from a constant rate."""
        beside = self.seconds - np.arange(len(self.ticks)) / float(rate)
        return float(beside.max() - beside.min())
