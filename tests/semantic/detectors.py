"""Detectors for the demo world: what a clip shows and sounds like, from its pixels and samples. numpy only.

Each gives a plain answer (a colour, a motion, a kind of shape, onsets in seconds) that a caption can be held against.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from training.world import COLOURS, signed_distance

FOREGROUND_DISTANCE = 60.0


def _distance(frames: np.ndarray) -> np.ndarray:
    """How far each pixel is from the background, which is each row's median over the clip: levels, (F, H, W)."""
    pixels = frames.astype(np.float32)
    background = np.median(pixels, axis=(0, 2))
    return np.linalg.norm(pixels - background[None, :, None, :], axis=-1)


def foreground(frames: np.ndarray) -> np.ndarray:
    """Mask (F, H, W) of what differs from the background. frames: uint8 (F, H, W, 3)."""
    return _distance(frames) > FOREGROUND_DISTANCE


def colour(frames: np.ndarray, mask: np.ndarray | None = None) -> str | None:
    """Name of the palette colour nearest to the foreground's; None without any.

    Edges are mixed with the background, and a line is all edge: the median is of the quarter of the foreground that
    differs most from it.
    """
    mask = foreground(frames) if mask is None else mask
    if mask.sum() < 20:
        return None
    distance = _distance(frames)
    core = mask & (distance >= np.percentile(distance[mask], 75))
    seen = np.median(frames[core].astype(np.float32), axis=0)
    names = list(COLOURS)
    return names[int(np.argmin([np.linalg.norm(seen - np.array(COLOURS[n])) for n in names]))]


@dataclass(frozen=True)
class Track:
    """Per frame: centre x, y (0..1, y down) and the square root of the area (fraction of the side); NaN if unseen."""

    x: np.ndarray
    y: np.ndarray
    size: np.ndarray

    @property
    def seen(self) -> np.ndarray:
        return ~np.isnan(self.x)


def track(mask: np.ndarray) -> Track:
    """Centre and size of a mask (F, H, W) over time."""
    _, height, width = mask.shape
    area = mask.sum((1, 2)).astype(np.float64)
    few = area < 0.0015 * height * width
    safe = np.maximum(area, 1)
    x = (mask.sum(1) * ((np.arange(width) + 0.5) / width)).sum(1) / safe
    y = (mask.sum(2) * ((np.arange(height) + 0.5) / height)).sum(1) / safe
    size = np.sqrt(area / (height * width))
    for values in (x, y, size):
        values[few] = np.nan
    return Track(x, y, size)


def enclosed(mask: np.ndarray) -> np.ndarray:
    """A mask (F, H, W) with what it has on both sides in its row and in its column: an outline becomes its shape.

    The area of a line grows with the radius alone, and what a decoder leaves inside it comes and goes.
    """
    between = np.ones_like(mask)
    for axis in (1, 2):
        before = np.maximum.accumulate(mask, axis)
        after = np.flip(np.maximum.accumulate(np.flip(mask, axis), axis), axis)
        between &= before & after
    return between


def motion(path: Track) -> str | None:
    """Name of the motion of a track; None if the shape is seen in too few frames."""
    if path.seen.sum() < 0.7 * len(path.x):
        return None
    x, y, size = (v[path.seen] for v in (path.x, path.y, path.size))
    ends = max(2, len(x) // 10)
    growth = size[-ends:].mean() / size[:ends].mean()
    range_x, range_y = (np.percentile(v, 97) - np.percentile(v, 3) for v in (x, y))
    step_x, step_y = (v[-ends:].mean() - v[:ends].mean() for v in (x, y))
    if growth > 1.5 or growth < 1 / 1.5:
        return "grow" if growth > 1 else "shrink"
    if range_x > 0.22 and range_y > 0.22:
        return "circle"
    if max(range_x, range_y) < 0.12:
        return "still"
    if range_y > range_x:
        if abs(step_y) > 0.7 * range_y and _straight(y):
            return "down" if step_y > 0 else "up"
        return "bounce"
    return "right" if step_x > 0 else "left"


def _straight(values: np.ndarray) -> bool:
    """Whether a coordinate goes one way: little of its travel is taken back."""
    steps = np.diff(values)
    return bool(np.abs(steps.sum()) > 0.75 * np.abs(steps).sum())


ROUND = 0.045
"""An outline that departs from a circle by less than this share of its radius is one: a pixel of the world's shapes."""
_ANGLES = np.arange(90) * 2 * np.pi / 90


def kind(mask: np.ndarray, picks: int = 9) -> str | None:
    """The kind of shape that a mask (F, H, W) shows, by its outline's harmonics: three corners, four, or five points.

    Harmonics tell a blunt star from a disc, where an overlap with drawn shapes does not.
    """
    path = track(mask)
    good = np.flatnonzero(path.seen)
    if len(good) == 0:
        return None
    _, height, width = mask.shape
    chosen = good[np.linspace(0, len(good) - 1, min(picks, len(good))).astype(int)]
    seen = np.mean([_harmonics(_outline(mask[f], path.x[f] * width, path.y[f] * height)) for f in chosen], axis=0)
    departs = {}
    for name, order in CORNERS.items():
        drawn = _DRAWN[name][order]
        departs[name] = float((drawn.conjugate() * seen[order]).real / abs(drawn))
    best = max(departs, key=lambda name: departs[name])
    return best if departs[best] > ROUND else "circle"


def _outline(mask: np.ndarray, x: float, y: float) -> np.ndarray:
    """Length that a mask (H, W) covers of the ray at each angle from a centre in pixels."""
    height, width = mask.shape
    step = 0.25
    along = (np.arange(int(max(height, width) / 2 / step)) + 0.5) * step
    columns = np.floor(x + along * np.cos(_ANGLES)[:, None]).astype(int)
    rows = np.floor(y + along * np.sin(_ANGLES)[:, None]).astype(int)
    inside = (rows >= 0) & (rows < height) & (columns >= 0) & (columns < width)
    covered = mask[rows.clip(0, height - 1), columns.clip(0, width - 1)] & inside
    return covered.sum(axis=1) * step


def _harmonics(outline: np.ndarray) -> np.ndarray:
    """Complex amplitudes of an outline as shares of its mean radius."""
    return 2 * np.fft.rfft(outline / max(float(outline.mean()), 1e-6)) / len(outline)


def _drawn(name: str) -> np.ndarray:
    """Harmonics of a kind as the world draws it."""
    grid = (np.arange(256) + 0.5) / 256 - 0.5
    mask = signed_distance(name, grid[None], grid[:, None], np.float64(0.25)) < 0
    rows, columns = np.nonzero(mask)
    return _harmonics(_outline(mask, columns.mean() + 0.5, rows.mean() + 0.5))


CORNERS = {"triangle": 3, "square": 4, "star": 5}
_DRAWN = {name: _drawn(name) for name in CORNERS}


def parts(mask: np.ndarray, least: float = 0.003) -> list[np.ndarray]:
    """Masks (F, H, W) of the separate shapes of a clip, left to right: connected over space and time."""
    rest, found = mask.copy(), []
    while rest.any():
        part = np.zeros_like(rest)
        part[tuple(np.argwhere(rest)[0])] = True
        while True:
            grown = part.copy()
            for axis in range(3):
                for shift in (-1, 1):
                    moved = np.roll(part, shift, axis)
                    edge = [slice(None)] * 3
                    edge[axis] = 0 if shift == 1 else -1
                    moved[tuple(edge)] = False
                    grown |= moved
            grown &= rest
            if (grown == part).all():
                break
            part = grown
        rest &= ~part
        if part.mean() > least:
            found.append(part)
    return sorted(found, key=lambda m: float(np.nanmean(track(m).x)))


def loudness(samples: np.ndarray, rate_hz: int, hop_s: float = 0.01) -> np.ndarray:
    """Root mean square per 10 ms of samples (N, channels)."""
    hop = round(rate_hz * hop_s)
    count = len(samples) // hop
    return np.sqrt((samples[: count * hop].astype(np.float64).reshape(count, -1) ** 2).mean(1))


def silent(samples: np.ndarray, rate_hz: int) -> bool:
    """Whether a clip has no sound to speak of."""
    return bool(np.median(loudness(samples, rate_hz)) < 0.02)


def pitch(samples: np.ndarray, rate_hz: int, window_s: float = 0.06, hop_s: float = 1 / 24) -> np.ndarray:
    """Fundamental in hertz per video frame, NaN where it is quiet: the lowest strong peak of 250 to 1300 Hz."""
    mono = samples.astype(np.float64).mean(-1)
    length = round(rate_hz * window_s)
    found = []
    for n in range(int(len(mono) / rate_hz / hop_s)):
        middle = round((n + 0.5) * hop_s * rate_hz)
        piece = mono[max(0, middle - length // 2) : middle + length // 2]
        if len(piece) < length // 2 or np.sqrt((piece**2).mean()) < 0.02:
            found.append(np.nan)
            continue
        spectrum = np.abs(np.fft.rfft(piece * np.hanning(len(piece)), 8 * length))
        hz = np.fft.rfftfreq(8 * length, 1 / rate_hz)
        band = (hz > 250) & (hz < 1300)
        strong = spectrum >= 0.45 * spectrum[band].max()
        peak = strong & band & (spectrum >= np.roll(spectrum, 1)) & (spectrum >= np.roll(spectrum, -1))
        found.append(float(hz[np.flatnonzero(peak)[0]]) if peak.any() else np.nan)
    return np.array(found)


def onsets(samples: np.ndarray, rate_hz: int, least: float = 0.3) -> list[float]:
    """Times in seconds of clicks, at least 0.1 s apart: bursts of 4.9 to 5.3 kHz, where no tone stays, and, if the
    rate allows, of 9 to 11 kHz, where nothing else sounds.
    """
    rise = _bursts(samples, rate_hz, 4900, 5300)
    if rate_hz > 24000:
        rise = rise + 2 * _bursts(samples, rate_hz, 9000, 11000)
    if rise.max() < 0.01:
        return []
    times: list[float] = []
    for i in np.argsort(-rise):
        if rise[i] < least * rise.max():
            break
        t = (i + 0.5) * 0.005
        if all(abs(t - other) > 0.1 for other in times):
            times.append(float(t))
    return sorted(times)


def _bursts(samples: np.ndarray, rate_hz: int, low: float, high: float) -> np.ndarray:
    """Per 5 ms, how far a band stands out over the 0.15 s around it."""
    mono = samples.astype(np.float64).mean(-1)
    spectrum = np.fft.rfft(mono)
    hz = np.fft.rfftfreq(len(mono), 1 / rate_hz)
    spectrum[(hz < low) | (hz > high)] = 0
    level = loudness(np.fft.irfft(spectrum, len(mono))[:, None], rate_hz, 0.005)
    around = np.pad(level, 15, mode="edge")
    floor = np.median(np.lib.stride_tricks.sliding_window_view(around, 31), axis=-1)
    return np.maximum(0, level - floor)


def landings(path: Track, fps: float = 24.0) -> list[float]:
    """Times in seconds at which a bouncing shape is lowest: local maxima of y in the lower part of its path."""
    y = path.y
    if np.isnan(y).any():
        index = np.arange(len(y))
        y = np.interp(index, index[path.seen], y[path.seen])
    low = np.nanmin(y) + 0.7 * (np.nanmax(y) - np.nanmin(y))
    found = []
    for i in range(1, len(y) - 1):
        if y[i] >= low and y[i] >= y[i - 1] and y[i] > y[i + 1]:
            if found and i - found[-1] < 4:
                continue
            found.append(i)
    return [(i + 0.5) / fps for i in found]


def psnr(a: np.ndarray, b: np.ndarray) -> float:
    """Peak signal-to-noise ratio in dB of two uint8 pictures or clips."""
    error = (a.astype(np.float64) - b.astype(np.float64)) ** 2
    return float(10 * np.log10(255**2 / max(error.mean(), 1e-9)))
