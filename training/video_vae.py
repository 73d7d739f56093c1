"""Train the video VAE: the encoder to give the code of a clip, the decoder to draw a clip from its code.

Both have exact targets (training/code.py), so they learn apart from each other and at the same time.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch

from training.code import MEAN, STD, normalised, scene_code
from training.models import LATENT, autocast, video_vae
from training.optim import Average, Clock, Optimiser, orthogonal
from training.world import Scene, render, sample_scene, scenes

# (batch, size, frames) with the share of steps each gets, for the first 40 % of a run and for the rest. What is shown
# is 128 wide, so that size comes from the start: a decoder trained at 64 alone draws it at 16 dB.
EARLY = (((1, 128, 17), 0.5), ((4, 64, 17), 0.4), ((8, 64, 9), 0.1))
LATE = (
    ((1, 128, 17), 0.5),
    ((1, 128, 33), 0.1),
    ((1, 128, 49), 0.06),
    ((4, 128, 1), 0.06),
    ((4, 64, 17), 0.18),
    ((1, 64, 49), 0.04),
    ((8, 64, 1), 0.06),
)


def clip_batch(pool: list[Scene], rng: np.random.Generator, batch: int, size: int, frames: int):
    """Random windows of clips: pixels (B, 3, F, S, S) in [-1, 1], foreground (B, 1, F, S, S), code (B, C, F', h, w)."""
    pixels, masks, codes = [], [], []
    for _ in range(batch):
        scene = pool[int(rng.integers(len(pool)))]
        start = int(rng.integers(scene.frames - frames + 1))
        outline = rng.random() < 0.1
        p, m = render(scene, size, frames=range(start, start + frames), outline=outline)
        pixels.append(p)
        masks.append(m)
        codes.append(normalised(scene_code(scene, size, start=start, frames=frames, outline=outline)))
    x = torch.from_numpy(np.stack(pixels)).float().permute(0, 4, 1, 2, 3) / 127.5 - 1
    code = torch.from_numpy(np.stack(codes)).permute(0, 4, 1, 2, 3)
    return x, torch.from_numpy(np.stack(masks))[:, None], code.contiguous()


def statistics() -> tuple[torch.Tensor, torch.Tensor]:
    """Mean and deviation of the code's channels, (1, C, 1, 1, 1)."""
    shape = (1, LATENT, 1, 1, 1)
    return torch.from_numpy(MEAN).view(shape), torch.from_numpy(STD).view(shape)


def encode(vae: torch.nn.Module, x: torch.Tensor) -> torch.Tensor:
    """Latent means, not normalised: (B, C, F', H', W')."""
    return vae.encoder(x)[:, :LATENT].float()


@torch.no_grad()
def judge(vae: torch.nn.Module, part: str, pool: list[Scene], size: int, frames: int) -> float:
    """On unseen clips: PSNR in dB of what the decoder draws from the exact code, or the encoder's mean square error."""
    values = []
    mean, std = statistics()
    for scene in pool:
        x, _, code = clip_batch([scene], np.random.default_rng(0), 1, size, frames)
        if part == "encoder":
            values.append(float(((encode(vae, x) - mean) / std - code).square().mean()))
        else:
            y = vae.decoder(code * std + mean).float().clamp(-1, 1)
            values.append(float(10 * torch.log10(4 / (x - y).square().mean())))
    return float(np.mean(values))


def train(out: Path, part: str, steps: int, seed: int = 0, start: Path | None = None) -> None:
    """Train the "encoder" or the "decoder" and save it as `video_encoder.pt` or `video_decoder.pt`."""
    torch.manual_seed(seed)
    rng = np.random.default_rng(seed + (part == "encoder"))
    vae = video_vae()
    orthogonal(vae)
    own, fresh = (vae.encoder, "conv_out") if part == "encoder" else (vae.decoder, "conv_in")
    if start is not None:
        state = torch.load(start)
        kept = {n.removeprefix(f"{part}."): v for n, v in state.items() if n.startswith(part)}
        own.load_state_dict(kept | {n: v for n, v in own.state_dict().items() if n.startswith(fresh)})
    pool, unseen = scenes(1, 16384), [sample_scene(np.random.default_rng(99 + i), "any") for i in range(6)]
    optimiser = Optimiser(own.named_parameters(), 3e-3, ends=("conv_in", "conv_out"))
    average = Average(own)
    clock = Clock(f"video_{part}", out, steps=steps)
    mean, std = statistics()
    losses: list[float] = []

    def save() -> None:
        average.swap()
        figures = {"unseen64": judge(vae, part, unseen, 64, 33), "unseen128": judge(vae, part, unseen[:2], 128, 17)}
        clock.report(loss=np.mean(losses[-100:]), **figures)
        torch.save(own.state_dict(), out / f"video_{part}.pt")
        average.swap()

    while clock.running():
        shapes = EARLY if clock.progress < 0.4 else LATE
        shape = shapes[int(rng.choice(len(shapes), p=[w for _, w in shapes]))][0]
        x, mask, code = clip_batch(pool, rng, *shape)
        if part == "encoder":
            with autocast():
                z = encode(vae, x)
            loss = ((z - mean) / std - code).square().mean()
        else:
            noisy = code + 0.12 * torch.rand(len(code), 1, 1, 1, 1) * torch.randn_like(code)
            with autocast():
                y = vae.decoder(noisy * std + mean).float()
            error = (y - x).square().mean(1, keepdim=True)
            weight = 1 + 4 * mask
            loss = (error * weight).sum() / weight.sum()
        loss.backward()
        optimiser.step(clock.factor())
        average.update()
        losses.append(float(loss.detach()))
        if clock.due(300):
            save()


def join(out: Path) -> None:
    """Put both halves and the statistics together as `video_vae.pt`."""
    vae = video_vae()
    vae.encoder.load_state_dict(torch.load(out / "video_encoder.pt"))
    vae.decoder.load_state_dict(torch.load(out / "video_decoder.pt"))
    vae.latents_mean.copy_(torch.from_numpy(MEAN))
    vae.latents_std.copy_(torch.from_numpy(STD))
    torch.save(vae.state_dict(), out / "video_vae.pt")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("part", choices=["encoder", "decoder", "join"])
    parser.add_argument("--out", type=Path, default=Path("out/training"))
    parser.add_argument("--steps", type=int, default=6000)
    parser.add_argument("--start", type=Path)
    a = parser.parse_args()
    if a.part == "join":
        join(a.out)
    else:
        train(a.out, a.part, a.steps, start=a.start)
