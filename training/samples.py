"""Codes as the denoiser makes them, with the scenes they belong to: what the decoder is finished on.

Exact codes gain noise up to a late level of the schedule and are denoised again with their captions. What is on the
picture and where stays; the fine parts of the coverage are the denoiser's own, and a decoder that has only met exact
ones draws the points of a star as a disc from them. Filled shapes come from the distilled adapters without guidance,
outlines from theirs with guidance, as the pipelines make them.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch

from training.dit import Denoiser, Stream, audio_positions, to_latent, to_tokens, video_positions
from training.flow import SLOTS, Cache
from training.latents import AUDIO_TOKENS
from training.lora import STAGE_2_SIGMAS, guided, load
from training.world import Scene, caption

BATCH = 12
SETS = {"distilled": ("latents_128", "samples_128"), "outlines": ("outlines_128", "outline_samples_128")}
"""Adapters, the exact codes that they start from, and the file of what they make."""
OUTLINE_SIGMAS = ((0.9, 0.75, 0.6, 0.45, 0.3, 0.15, 0.0), (0.75, 0.6, 0.45, 0.3, 0.15, 0.0))
OUTLINE_GUIDANCE = 3.0

Velocities = Callable[[Stream, Stream], tuple[torch.Tensor, torch.Tensor]]


def choose(pool: list[Scene], count: int) -> list[int]:
    """Half of them scenes with stars, which are the hardest to draw."""
    stars = [i for i, scene in enumerate(pool) if any(shape.kind == "star" for shape in scene.shapes)]
    others = [i for i in range(len(pool)) if i not in set(stars)]
    return sorted(stars[: count // 2] + others[: count - count // 2])


def unguided(model: Denoiser, prompts: list[str]) -> Velocities:
    context = model.context(prompts, SLOTS)
    return lambda video, audio: model(video, audio, context)


def with_guidance(model: Denoiser, prompts: list[str]) -> Velocities:
    both = model.context([*prompts, *[""] * len(prompts)], SLOTS)
    return lambda video, audio: guided(model, video, audio, both, OUTLINE_GUIDANCE)


def denoised(
    velocities: Velocities, video: torch.Tensor, audio: torch.Tensor, levels: tuple[float, ...]
) -> torch.Tensor:
    """Codes (B, C, F, H, W) after steps through the levels, from exact ones with noise of the first."""
    grid = tuple(video.shape[2:])
    at = [x + levels[0] * (torch.randn_like(x) - x) for x in (to_tokens(video), audio)]
    where = video_positions(*grid), audio_positions(AUDIO_TOKENS)
    for level, following in pairwise(levels):
        sigma = torch.full((len(video),), level)
        streams = [Stream(x, sigma[:, None], sigma, w) for x, w in zip(at, where, strict=True)]
        at = [x - (level - following) * v for x, v in zip(at, velocities(*streams), strict=True)]
    return to_latent(at[0], *grid)


@torch.no_grad()
def build(out: Path, adapters: str, count: int, seed: int = 0) -> None:
    """Write a set of `SETS`: video (N, C, 7, 4, 4), and scenes, the numbers of their scenes in the training pool."""
    torch.manual_seed(seed)
    rng = np.random.default_rng(seed)
    source, name = SETS[adapters]
    model = Denoiser(out)
    model.load_state_dict(torch.load(out / "denoiser.pt"))
    load(model, out / f"{adapters}.pt")
    outlines = adapters == "outlines"
    steer = with_guidance if outlines else unguided
    levels = OUTLINE_SIGMAS if outlines else (STAGE_2_SIGMAS[1:], STAGE_2_SIGMAS[2:])
    cache = Cache.load(out, source)
    index = choose(cache.pool, count)
    found = []
    for start in range(0, len(index), BATCH):
        begin = levels[0] if rng.random() < 0.4 else levels[1]
        batch = index[start : start + BATCH]
        velocities = steer(model, [caption(cache.pool[i], rng) for i in batch])
        found.append(denoised(velocities, cache.video[batch].float(), cache.audio[batch].float(), begin).half())
    torch.save({"video": torch.cat(found), "scenes": torch.tensor(index)}, out / f"{name}.pt")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("out/training"))
    parser.add_argument("--count", type=int, default=3000)
    parser.add_argument("--outlines", type=int, default=500)
    a = parser.parse_args()
    build(a.out, "distilled", a.count)
    build(a.out, "outlines", a.outlines)
