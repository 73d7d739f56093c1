"""Counter-based Gaussian noise on the host, the same on every chip.

Every array has its own Philox key made of (seed, stage, modality, stream, step), so what is drawn does not
depend on the order of draws, on the device or on which other streams exist. Noise has the token layout (B, N,
C), float32; the first tokens are drawn first, so appended conditioning tokens do not change a clip's own
noise (batch 1).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

import numpy as np

from mlx_ltx2.errors import RequestError, ShapeError

ModalityName = Literal["video", "audio"]
Stream = Literal["initial", "step", "substep", "decoder"]

_MODALITIES = {"video": 0, "audio": 1}
_STREAMS = {"initial": 0, "step": 1, "substep": 2, "decoder": 3}

NoiseKey = tuple[ModalityName, Stream, int]


@dataclass(frozen=True)
class NoiseSource:
    """All noise of one stage of one clip.

    seed: any whole number (its lowest 64 bits count). stage: which stage of the plan, 0 to 65535. injected:
    arrays to use instead of drawn ones, by (modality, stream, step): (B, N, C), or fewer tokens than asked
    for, in which case the rest (conditioning tokens) is drawn.
    """

    seed: int
    stage: int = 0
    injected: Mapping[NoiseKey, np.ndarray] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not 0 <= self.stage < 1 << 16:
            raise RequestError(f"noise stage {self.stage} is out of range; use 0 to 65535.")

    def normal(
        self,
        modality: ModalityName,
        shape: tuple[int, ...],
        stream: Stream = "initial",
        step: int = 0,
    ) -> np.ndarray:
        """Standard normal float32 values of `shape`.

        Raises: ShapeError if an injected array does not fit `shape`.
        """
        given = self.injected.get((modality, stream, step))
        drawn = self._draw(modality, shape, stream, step) if given is None or given.shape != shape else given
        if given is not None and given.shape != shape:
            drawn = _overwrite_head(drawn, given, f"{modality} {stream} noise")
        return np.asarray(drawn, np.float32)

    def normalized(self, modality: ModalityName, shape: tuple[int, ...], stream: Stream, step: int) -> np.ndarray:
        """Noise for the res_2s sampler: mean 0 and deviation 1 over the whole array, then over each sample.

        Injected arrays are used as they are.
        """
        given = self.injected.get((modality, stream, step))
        if given is not None and given.shape == shape:
            return np.asarray(given, np.float32)
        noise = self.normal(modality, shape, stream, step).astype(np.float64)
        noise = (noise - noise.mean()) / noise.std(ddof=1)
        noise -= noise.mean(axis=(-2, -1), keepdims=True)
        noise /= noise.std(axis=(-2, -1), keepdims=True, ddof=1)
        result: np.ndarray = noise.astype(np.float32)
        return result

    def _draw(self, modality: str, shape: tuple[int, ...], stream: str, step: int) -> np.ndarray:
        place = self.stage << 48 | _MODALITIES[modality] << 40 | _STREAMS[stream] << 32 | step
        key = np.array([self.seed % (1 << 64), place], np.uint64)
        return np.random.Generator(np.random.Philox(key=key)).standard_normal(shape, dtype=np.float32)


def _overwrite_head(drawn: np.ndarray, given: np.ndarray, name: str) -> np.ndarray:
    fits = given.ndim == drawn.ndim == 3 and given.shape[::2] == drawn.shape[::2]
    if not fits or given.shape[1] > drawn.shape[1]:
        raise ShapeError(
            f"{name} of shape {given.shape} was given; this clip needs {drawn.shape} as (batch, tokens, features)."
        )
    drawn[:, : given.shape[1]] = given
    return drawn
