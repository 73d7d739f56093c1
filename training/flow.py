"""Train the denoiser by flow matching on cached latents, at both sizes, with every kind of conditioning."""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from training import text
from training.dit import FULL_SLOTS, Denoiser, Stream, audio_positions, to_tokens, video_positions
from training.latents import AUDIO_TOKENS, KEYFRAMES
from training.optim import Average, Clock, Optimiser
from training.world import Scene, caption, train_pool

SLOTS = 40
MODES = {"plain": 0.5, "first": 0.16, "keys": 0.1, "region": 0.08, "sound": 0.1, "picture": 0.06}
BATCH = {64: 32, 128: 12}


@dataclass
class Cache:
    """Latents of one size with the scenes they belong to."""

    video: torch.Tensor
    keys: torch.Tensor
    audio: torch.Tensor
    pool: list[Scene]

    @classmethod
    def load(cls, out: Path, name: str) -> Cache:
        found = torch.load(out / f"{name}.pt")
        return cls(found["video"], found["keys"], found["audio"], train_pool(len(found["video"])))


@dataclass
class Batch:
    """Clean tokens, masks (1 generate, 0 keep) and prompts. `frozen` streams have sigma 0."""

    video: torch.Tensor
    audio: torch.Tensor
    video_mask: torch.Tensor
    audio_mask: torch.Tensor
    video_positions: tuple
    prompts: list[str]
    frozen: tuple[bool, bool]
    grid: tuple[int, int, int]


def draw(cache: Cache, rng: np.random.Generator, batch: int, mode: str | None = None) -> Batch:
    """A batch under one kind of conditioning."""
    index = rng.integers(len(cache.pool), size=batch)
    z = cache.video[index].float()
    _, _, f, h, w = z.shape
    video, audio = to_tokens(z), cache.audio[index].float()
    video_mask, audio_mask = torch.ones(batch, f, h * w), torch.ones(batch, AUDIO_TOKENS)
    mode = mode or str(rng.choice(list(MODES), p=list(MODES.values())))
    appended: list[int] = []
    if mode == "first" or (mode == "sound" and rng.random() < 0.3):
        video_mask[:, 0] = 0
    if mode == "keys":
        choice = int(rng.integers(3))
        appended = [[KEYFRAMES[1]], [0, KEYFRAMES[1]], [0, *KEYFRAMES]][choice]
    elif mode == "region":
        start = int(rng.integers(1, f - 1))
        end = int(rng.integers(start + 1, f + 1))
        video_mask[:, :start], video_mask[:, end:] = 0, 0
        a0, a1 = round((8 * start - 7) / 24 * 25), round((8 * end - 7) / 24 * 25)
        audio_mask[:, :a0], audio_mask[:, a1:] = 0, 0
    video_mask = video_mask.flatten(1)
    if appended:
        images = {
            0: cache.video[index][:, :, 0],
            KEYFRAMES[0]: cache.keys[index][:, 0],
            KEYFRAMES[1]: cache.keys[index][:, 1],
        }
        extra = [images[k].float().flatten(2).transpose(1, 2) for k in appended]
        video = torch.cat([video, *extra], dim=1)
        video_mask = torch.cat([video_mask, torch.zeros(batch, len(appended) * h * w)], dim=1)
    prompts = [caption(cache.pool[i], rng) for i in index]
    prompts = [p if rng.random() > 0.1 else (text.NEGATIVE if rng.random() < 0.4 else "") for p in prompts]
    return Batch(
        video,
        audio,
        video_mask,
        audio_mask,
        video_positions(f, h, w, appended),
        prompts,
        (mode == "picture", mode == "sound"),
        (f, h, w),
    )


def sample_sigmas(batch: int, generator: torch.Generator | None = None) -> torch.Tensor:
    """Shifted logit-normal, a tenth uniform, a tenth near 1 where the distilled list starts."""
    sigma = torch.sigmoid(0.9 + 1.2 * torch.randn(batch, generator=generator))
    kind = torch.rand(batch, generator=generator)
    uniform = torch.rand(batch, generator=generator)
    sigma = torch.where(kind < 0.12, uniform, sigma)
    sigma = torch.where(kind > 0.88, 1 - 0.1 * uniform, sigma)
    return sigma.clamp(0.003, 1.0)


def flow_loss(model: Denoiser, b: Batch, slots: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean squared velocity errors of video and audio over the tokens to generate."""
    count = b.video.shape[0]
    sigma = sample_sigmas(count)
    video_sigma = torch.zeros(count) if b.frozen[0] else sigma
    audio_sigma = torch.zeros(count) if b.frozen[1] else sigma
    streams, targets = [], []
    for x0, mask, s, where in (
        (b.video, b.video_mask, video_sigma, b.video_positions),
        (b.audio, b.audio_mask, audio_sigma, audio_positions(AUDIO_TOKENS)),
    ):
        t = mask * s[:, None]
        noise = torch.randn_like(x0)
        # What is given comes from an encoder, which is not exact.
        inexact = 0.25 * torch.rand(count, 1, 1) * torch.randn_like(x0)
        x = x0 + t[..., None] * (noise - x0) + (1 - mask[..., None]) * inexact
        steps = s[:, None] if bool((mask == 1).all()) else t
        streams.append(Stream(x, steps, s, where))
        targets.append((noise - x0, mask * (s[:, None] > 0)))
    context = model.context(b.prompts, slots)
    losses = []
    for velocity, (target, mask) in zip(model(*streams, context), targets, strict=True):
        error = (velocity - target).square().mean(-1)
        losses.append((error * mask).sum() / mask.sum().clamp_min(1))
    return losses[0], losses[1]


def train(out: Path, steps: int, seed: int = 0, slots: int = SLOTS, start: Path | None = None) -> None:
    """Train and save `denoiser.pt` (averaged weights of connectors and transformer)."""
    torch.manual_seed(seed)
    rng = np.random.default_rng(seed)
    model = Denoiser(out)
    if start is None:
        model.start()
    else:
        model.load_state_dict(torch.load(start))
    caches = {64: Cache.load(out, "latents_64"), 128: Cache.load(out, "latents_128")}
    lr = 3e-3 if start is None else 8e-4
    optimiser = Optimiser(model.named_parameters(), lr, ends=("proj_in", "proj_out", "registers", "table"))
    average = Average(model, 0.998)
    clock = Clock("denoiser" if slots == SLOTS else "denoiser_full", out, steps=steps)
    log: list[tuple[float, float]] = []

    def save() -> None:
        average.swap()
        torch.save(model.state_dict(), out / "denoiser.pt")
        average.swap()
        video, audio = np.mean(log[-200:], axis=0)
        clock.report(video=video, audio=audio)

    while clock.running():
        size = 64 if rng.random() < (0.85 if clock.progress < 0.4 else 0.65) else 128
        batch = draw(caches[size], rng, BATCH[size] if slots < FULL_SLOTS else 6)
        video, audio = flow_loss(model, batch, slots)
        (video + 0.5 * audio).backward()
        optimiser.step(clock.factor())
        model.tie_registers()
        average.update()
        log.append((float(video.detach()), float(audio.detach())))
        if clock.due(100):
            save()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("out/training"))
    parser.add_argument("--steps", type=int, default=3000)
    parser.add_argument("--slots", type=int, default=SLOTS)
    parser.add_argument("--start", type=Path)
    a = parser.parse_args()
    train(a.out, a.steps, slots=a.slots, start=a.start)
