"""This package's noise for the official noisers and samplers, of either release, and the layout of their results."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from ltx_core.components.noisers import GaussianNoiser

from mlx_ltx2.diffusion.noise import NoiseSource


def channels_last(x: torch.Tensor) -> np.ndarray:
    order = (0, 2, 3, 4, 1) if x.ndim == 5 else (0, 2, 3, 1)
    return np.ascontiguousarray(x.detach().numpy().transpose(order))


class Noise:
    """The noise of one run, stage by stage, handed out as the official code asks for it.

    res_2s asks per step for video and audio at the midpoint, then at its end.
    """

    def __init__(self, seed: int, stages: int) -> None:
        self.seed, self.stages = seed, stages
        self.noised = {"video": 0, "audio": 0}

    def noiser(self, generator: torch.Generator) -> Callable[..., Any]:
        def noise_state(state: Any, noise_scale: float = 1.0) -> Any:
            modality = "video" if state.positions.shape[1] == 3 else "audio"
            source = NoiseSource(self.seed, self.noised[modality])
            self.noised[modality] += 1
            fresh = torch.from_numpy(source.normal(modality, tuple(state.latent.shape)))
            with patch.object(torch, "randn", lambda *_a, **_k: fresh):
                return GaussianNoiser(generator)(state, noise_scale)

        return noise_state

    def steps(self) -> Callable[..., torch.Tensor]:
        """A `new_noise_fn` for the stage that was noised last."""
        source = NoiseSource(self.seed, self.noised["video"] - 1)
        asked = 0

        def fresh(x: torch.Tensor, _generator: Any) -> torch.Tensor:
            nonlocal asked
            step, place = divmod(asked, 4)
            asked += 1
            stream, modality = ("substep", "step")[place // 2], ("video", "audio")[place % 2]
            return torch.from_numpy(source.normalized(modality, tuple(x.shape), stream, step)).double()

        return fresh

    def decoder(self, shape: torch.Size) -> torch.Tensor:
        drawn = NoiseSource(self.seed, self.stages).normal("video", (1, *shape[2:], shape[1]), "decoder")
        return torch.from_numpy(np.ascontiguousarray(drawn.transpose(0, 4, 1, 2, 3)))
