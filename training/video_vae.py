"""Train the video VAE: foreground-weighted squared error on a set of clips that grows, then the latent statistics."""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch

from training.models import LATENT, autocast, video_vae
from training.optim import Average, Clock, Optimiser, orthogonal
from training.world import Scene, render, sample_scene, scenes

# (batch, size, frames) with the share of steps each gets, before and after the first 45 % of the run
EARLY = (((4, 64, 17), 0.85), ((8, 64, 9), 0.15))
LATE = (((4, 64, 17), 0.5), ((2, 64, 33), 0.2), ((1, 64, 49), 0.1), ((1, 128, 17), 0.2))


def clip_batch(pool: list[Scene], rng: np.random.Generator, batch: int, size: int, frames: int):
    """Random windows of clips: pixels (B, 3, F, S, S) in [-1, 1] and the foreground mask (B, 1, F, S, S)."""
    pixels, masks = [], []
    for _ in range(batch):
        scene = pool[int(rng.integers(len(pool)))]
        start = int(rng.integers(scene.frames - frames + 1))
        p, m = render(scene, size, frames=range(start, start + frames), outline=rng.random() < 0.06)
        pixels.append(p)
        masks.append(m)
    x = torch.from_numpy(np.stack(pixels)).float().permute(0, 4, 1, 2, 3) / 127.5 - 1
    return x, torch.from_numpy(np.stack(masks))[:, None]


def encode(vae: torch.nn.Module, x: torch.Tensor) -> torch.Tensor:
    """Latent means, not normalised: (B, C, F', H', W')."""
    return vae.encoder(x)[:, :LATENT].float()


@torch.no_grad()
def judge(vae: torch.nn.Module, pool: list[Scene], size: int, frames: int) -> float:
    """Mean PSNR in dB of reconstructions of unseen clips."""
    values = []
    for scene in pool:
        p, _ = render(scene, size, frames=range(frames))
        x = torch.from_numpy(p).float().permute(3, 0, 1, 2)[None] / 127.5 - 1
        y = vae.decoder(encode(vae, x)).float().clamp(-1, 1)
        values.append(float(10 * torch.log10(4 / (x - y).square().mean())))
    return float(np.mean(values))


@torch.no_grad()
def measure_statistics(vae: torch.nn.Module, pool: list[Scene]) -> None:
    """Store each latent channel's mean and deviation over whole clips."""
    z = []
    for scene in pool:
        p, _ = render(scene, 64)
        x = torch.from_numpy(p).float().permute(3, 0, 1, 2)[None] / 127.5 - 1
        z.append(encode(vae, x)[0].flatten(1))
    flat = torch.cat(z, dim=1)
    vae.latents_mean.copy_(flat.mean(1))
    vae.latents_std.copy_(flat.std(1).clamp_min(1e-3))


def train(
    out: Path,
    steps: int,
    minutes: float | None,
    seed: int = 0,
    start: Path | None = None,
    decoder: bool = False,
) -> None:
    """Train and save `video_vae.pt`: from scratch, from the weights in `start`, or the decoder alone from there."""
    torch.manual_seed(seed)
    rng = np.random.default_rng(seed)
    vae = video_vae()
    orthogonal(vae)
    if start is not None:
        vae.load_state_dict(torch.load(start))
    if decoder:
        vae.encoder.requires_grad_(False)
    pool, unseen = scenes(1, 4096), [sample_scene(np.random.default_rng(99 + i), "any") for i in range(6)]
    optimiser = Optimiser(
        vae.named_parameters(),
        2e-3 if start is None else 1e-3 if decoder else 1.5e-3,
        ends=("conv_in", "conv_out"),
    )
    average = Average(vae)
    clock = Clock(
        "video_decoder" if decoder else "video_vae" if start is None else "video_vae_2",
        out,
        steps=steps,
        minutes=minutes,
    )
    losses: list[float] = []

    def save() -> None:
        average.swap()
        figures = {"psnr64": judge(vae, unseen, 64, 33), "psnr128": judge(vae, unseen[:2], 128, 17)}
        clock.report(loss=np.mean(losses[-100:]), set=grown, **figures)
        if not decoder:
            measure_statistics(vae, pool[-24:])
        torch.save(vae.state_dict(), out / "video_vae.pt")
        average.swap()

    grown = len(pool)
    while clock.running():
        if not decoder:
            along = clock.progress if start is None else 0.25 + 0.75 * clock.progress
            grown = int(min(len(pool), 64 * 2 ** (10 * along)))
        shapes = EARLY if start is None and clock.progress < 0.45 else LATE
        shape = shapes[int(rng.choice(len(shapes), p=[w for _, w in shapes]))][0]
        x, mask = clip_batch(pool[:grown], rng, *shape)
        with autocast():
            z = encode(vae, x)
            y = vae.decoder(z + 0.1 * torch.randn_like(z)).float()
        error = (y - x).square().mean(1, keepdim=True)
        weight = 1 + 4 * mask
        loss = (error * weight).sum() / weight.sum()
        (loss + 1e-4 * z.square().mean()).backward()
        optimiser.step(clock.factor())
        average.update()
        losses.append(float(loss.detach()))
        clock.step += 1
        if clock.step % 100 == 0:
            print(clock.step, f"{clock.elapsed:.1f}min", grown, f"{np.mean(losses[-100:]):.5f}", flush=True)
        if clock.step % 500 == 0:
            save()
    save()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("out/training"))
    parser.add_argument("--steps", type=int, default=8000)
    parser.add_argument("--minutes", type=float)
    parser.add_argument("--start", type=Path)
    parser.add_argument("--decoder", action="store_true")
    a = parser.parse_args()
    train(a.out, a.steps, a.minutes, start=a.start, decoder=a.decoder)
