"""Train the x2 latent upsampler on pairs of the same clip at both sizes."""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch

from training.models import upsampler
from training.optim import Average, Clock, Optimiser, orthogonal
from training.video_vae import statistics


def train(out: Path, steps: int, seed: int = 0) -> None:
    """Train and save `upsampler.pt`; it works on latents that are not normalised, as the reference's does."""
    torch.manual_seed(seed)
    rng = np.random.default_rng(seed)
    mean, std = statistics()
    small = torch.load(out / "latents_64.pt")["video"]
    large = torch.load(out / "latents_128.pt")["video"]
    held = len(large) // 16
    model = upsampler()
    orthogonal(model)
    optimiser = Optimiser(model.named_parameters(), 2e-3, ends=("initial_conv", "final_conv", "norm"))
    average = Average(model)
    clock = Clock("upsampler", out, steps=steps)

    def error(index: np.ndarray, noise: float) -> torch.Tensor:
        low, high = small[index].float(), large[index].float()
        low = low + noise * torch.rand(len(index), 1, 1, 1, 1) * torch.randn_like(low)
        return ((model(low * std + mean) - mean) / std - high).square().mean()

    while clock.running():
        loss = error(held + rng.integers(len(large) - held, size=32), 0.3)
        loss.backward()
        optimiser.step(clock.factor())
        average.update()
        if clock.due(100):
            average.swap()
            with torch.no_grad():
                clock.report(loss=loss, held_out=error(np.arange(held), 0.0))
            torch.save(model.state_dict(), out / "upsampler.pt")
            average.swap()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("out/training"))
    parser.add_argument("--steps", type=int, default=1500)
    a = parser.parse_args()
    train(a.out, a.steps)
