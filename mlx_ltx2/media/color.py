"""RGB to limited-range BT.709 4:2:0 in integers, so that every machine hands the encoder the same bytes."""

from __future__ import annotations

import numpy as np

_KR, _KB = 0.2126, 0.0722  # ITU-R BT.709-6, section 3.2
_KG = 1.0 - _KR - _KB


def _fixed(weights: tuple[float, float, float], span: float) -> tuple[int, int, int]:
    red, green, blue = (round(w * span / 255.0 * 65536) for w in weights)
    return red, green, blue


_LUMA = _fixed((_KR, _KG, _KB), 219.0)
_CB = _fixed((-_KR / (2 * (1 - _KB)), -_KG / (2 * (1 - _KB)), 0.5), 224.0)
_CR = _fixed((0.5, -_KG / (2 * (1 - _KR)), -_KB / (2 * (1 - _KR))), 224.0)


def yuv420_from_rgb(frame: np.ndarray) -> np.ndarray:
    """uint8 (H, W, 3) RGB, even sides -> uint8 (H * 3 / 2, W): the planes Y, Cb, Cr as ffmpeg's yuv420p lays them out.

    Chroma is the mean of each 2 x 2 block (centre siting), as the official encoder does.
    """
    height, width, _ = frame.shape
    red, green, blue = (np.ascontiguousarray(frame[..., c]).astype(np.int32) for c in range(3))
    out = np.empty((height * 3 // 2, width), dtype=np.uint8)
    luma = red * _LUMA[0] + green * _LUMA[1] + blue * _LUMA[2]
    out[:height] = (luma + (16 << 16) + (1 << 15)) >> 16
    blocks = [p[0::2, 0::2] + p[0::2, 1::2] + p[1::2, 0::2] + p[1::2, 1::2] for p in (red, green, blue)]
    chroma = out[height:].reshape(2, height // 2, width // 2)
    for plane, weights in zip(chroma, (_CB, _CR), strict=True):
        mixed = blocks[0] * weights[0] + blocks[1] * weights[1] + blocks[2] * weights[2]
        plane[:] = (mixed + (128 << 18) + (1 << 17)) >> 18
    return out
