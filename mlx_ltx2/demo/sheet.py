"""A contact sheet: one row per clip, its caption above, frames from left to right, its sound below them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from mlx_ltx2.states import Waveform

FRAMES, GAP, TEXT, STRIP = 9, 4, 20, 48
_PAPER, _INK = (255, 255, 255), (20, 20, 20)
_HEAT = np.array([(0, 0, 4), (66, 10, 104), (147, 38, 103), (221, 81, 58), (252, 165, 10), (255, 255, 255)])
_HERTZ, _DECIBELS = (250, 4000), 45
_SILENCE = 1e-4
"""Amplitude below which nothing is drawn, as a part of full scale."""


@dataclass(frozen=True)
class Row:
    """caption: the line above. frames: uint8 (F, H, W, 3). sound: of the clip. given: pictures (h, w, 3) in front."""

    caption: str
    frames: np.ndarray
    sound: Waveform | None = None
    given: Sequence[np.ndarray] = field(default_factory=tuple)


def contact_sheet(rows: Sequence[Row]) -> np.ndarray:
    """All rows under each other: uint8 (H, W, 3). A first column shows what was given, if anything was."""
    height, width = rows[0].frames.shape[1:3]
    columns = FRAMES + any(len(row.given) for row in rows)
    each = TEXT + height + GAP + STRIP + 2 * GAP
    sheet = Image.new("RGB", (columns * (width + GAP) + GAP, len(rows) * each + GAP), _PAPER)
    pen, font = ImageDraw.Draw(sheet), ImageFont.load_default(size=14)
    for number, row in enumerate(rows):
        top = GAP + number * each
        _draw_row(sheet, row, top + TEXT, columns - FRAMES)
        pen.text((GAP, top), row.caption, fill=_INK, font=font)
    return np.array(sheet)


def _draw_row(sheet: Image.Image, row: Row, top: int, first: int) -> None:
    height, width = row.frames.shape[1:3]
    for i, given in enumerate(row.given):
        side = (width - (len(row.given) - 1) * GAP) // len(row.given)
        small: Any = Image.fromarray(given).resize((side, given.shape[0] * side // given.shape[1]))
        sheet.paste(small, (GAP + i * (side + GAP), top))
    left = GAP + first * (width + GAP)
    for i, frame in enumerate(np.linspace(0, len(row.frames) - 1, FRAMES).round().astype(int)):
        sheet.paste(Image.fromarray(row.frames[frame]), (left + i * (width + GAP), top))
    if row.sound is not None:
        strip = spectrogram(row.sound, FRAMES * (width + GAP) - GAP, STRIP)
        sheet.paste(Image.fromarray(strip), (left, top + height + GAP))


def spectrogram(sound: Waveform, width: int, height: int) -> np.ndarray:
    """A picture of a sound, uint8 (height, width, 3): time to the right, 250 to 4000 Hz upwards on a log scale.

    Colours go from black through red to white over the 45 dB below its loudest tone, so that the pitch, the quieter
    partials and the clicks of a landing are seen side by side.
    """
    window = sound.rate_hz // 25
    padded = 4 * window  # finer rows than the window tells apart, so that a tone is a band without steps
    mono = np.pad(sound.samples.mean(-1), window // 2, mode="reflect")
    starts = np.linspace(0, len(mono) - window, width).astype(int)
    pieces = mono[starts[:, None] + np.arange(window)] * np.hanning(window)
    spectrum = np.abs(np.fft.rfft(pieces, n=padded, axis=-1))
    edges = np.geomspace(*_HERTZ, height + 1) * padded / sound.rate_hz
    rows = np.array([spectrum[:, int(a) : int(b) + 1].max(-1) for a, b in pairwise(edges)])[::-1]
    loudest = max(rows.max(), _SILENCE * window)
    level = np.clip(1 + 20 * np.log10(np.maximum(rows / loudest, 1e-9)) / _DECIBELS, 0, 1)
    steps = np.linspace(0, 1, len(_HEAT))
    return np.stack([np.interp(level, steps, channel) for channel in _HEAT.T], -1).round().astype(np.uint8)
