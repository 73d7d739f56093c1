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
    """uint8 (H, W, 3) RGB, even sides -> uint8 (H * 3 / 2, W): planes Y, Cb, Cr as in ffmpeg's yuv420p.

    Chroma is the mean of each 2 x 2 block (centre siting), as the official encoder does.
    """
    height, width, _ = frame.shape
    planes = [np.ascontiguousarray(frame[..., c]) for c in range(3)]
    out = np.empty((height * 3 // 2, width), dtype=np.uint8)
    out[:height] = _mix(planes, _LUMA, 16, 16)
    blocks = [_block_sums(plane) for plane in planes]
    chroma = out[height:].reshape(2, height // 2, width // 2)
    chroma[0] = _mix(blocks, _CB, 128, 18)
    chroma[1] = _mix(blocks, _CR, 128, 18)
    return out


def _mix(planes: list[np.ndarray], weights: tuple[int, int, int], offset: int, bits: int) -> np.ndarray:
    """offset + the weighted sum, weights in units of 2 ** -bits, rounded."""
    mixed = np.multiply(planes[0], weights[0], dtype=np.int32)
    term = np.empty_like(mixed)
    for plane, weight in zip(planes[1:], weights[1:], strict=True):
        mixed += np.multiply(plane, weight, out=term, dtype=np.int32)
    mixed += (offset << bits) + (1 << (bits - 1))
    mixed >>= bits
    return np.asarray(mixed)


def _block_sums(plane: np.ndarray) -> np.ndarray:
    rows = np.add(plane[0::2], plane[1::2], dtype=np.int32)
    return np.asarray(rows[:, 0::2] + rows[:, 1::2])
