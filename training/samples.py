"""Codes as the distilled denoiser makes them, with the scenes they belong to: what the decoder is finished on.

Exact codes gain noise up to a late level of the distilled schedule and are denoised again with their captions. What is
on the picture and where stays; the fine parts of the coverage are the denoiser's own, and a decoder that has only met
exact ones draws the points of a star as a disc from them.
"""

from __future__ import annotations

import argparse
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch

from training.dit import Denoiser, Stream, audio_positions, to_latent, to_tokens, video_positions
from training.flow import SLOTS, Cache
from training.latents import AUDIO_TOKENS
from training.lora import STAGE_2_SIGMAS, load
from training.world import Scene, caption

BATCH = 12


def choose(pool: list[Scene], count: int) -> list[int]:
    """Half of them scenes with stars, which are the hardest to draw."""
    stars = [i for i, scene in enumerate(pool) if any(shape.kind == "star" for shape in scene.shapes)]
    others = [i for i in range(len(pool)) if i not in set(stars)]
    return sorted(stars[: count // 2] + others[: count - count // 2])


@torch.no_grad()
def denoised(model: Denoiser, cache: Cache, index: list[int], first: int, rng: np.random.Generator) -> torch.Tensor:
    """Codes (B, C, F, H, W) after the steps of the schedule's end that begin with its level `first`."""
    z = cache.video[index].float()
    grid = tuple(z.shape[2:])
    levels = STAGE_2_SIGMAS[first:]
    at = [to_tokens(z), cache.audio[index].float()]
    at = [x + levels[0] * (torch.randn_like(x) - x) for x in at]
    context = model.context([caption(cache.pool[i], rng) for i in index], SLOTS)
    where = video_positions(*grid), audio_positions(AUDIO_TOKENS)
    for level, following in pairwise(levels):
        sigma = torch.full((len(index),), level)
        velocities = model(*(Stream(x, sigma[:, None], sigma, w) for x, w in zip(at, where, strict=True)), context)
        at = [x - (level - following) * v for x, v in zip(at, velocities, strict=True)]
    return to_latent(at[0], *grid)


def build(out: Path, count: int, seed: int = 0) -> None:
    """Write `samples_128.pt`: video (N, C, 7, 4, 4), and scenes, the numbers of their scenes in the training pool."""
    torch.manual_seed(seed)
    rng = np.random.default_rng(seed)
    model = Denoiser(out)
    model.load_state_dict(torch.load(out / "denoiser.pt"))
    load(model, out / "distilled.pt")
    cache = Cache.load(out, "latents_128")
    index = choose(cache.pool, count)
    found = []
    for start in range(0, len(index), BATCH):
        first = 1 if rng.random() < 0.4 else 2
        found.append(denoised(model, cache, index[start : start + BATCH], first, rng).half())
    torch.save({"video": torch.cat(found), "scenes": torch.tensor(index)}, out / "samples_128.pt")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("out/training"))
    parser.add_argument("--count", type=int, default=3000)
    a = parser.parse_args()
    build(a.out, a.count)
