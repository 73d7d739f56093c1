"""Train the video VAE: the encoder to give the code of a clip, the decoder to draw a clip from its code.

Both have exact targets (training/code.py), so they learn apart from each other and at the same time. A second run of
each (`--run polish`) goes on from the first with windows of wider pictures, so that neither leans on the border that it
sees, and shows the decoder codes whose coverage is wrong, so that kind and size decide the outline. A third of the
decoder (`--run samples`) shows it codes as the denoiser makes them, and a fourth (`--run outlines`) many outlines.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch

from training.code import CELL, MEAN, STD, normalised, scene_code
from training.models import LATENT, autocast, video_vae
from training.optim import Average, Clock, Optimiser, orthogonal
from training.samples import SETS
from training.world import KINDS, LINE, Scene, render, sample_scene, scenes, train_pool

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
POLISH = (
    ((1, 128, 17), 0.45),
    ((1, 192, 9), 0.12),
    ((1, 256, 9), 0.05),
    ((1, 128, 49), 0.08),
    ((4, 128, 1), 0.08),
    ((4, 64, 17), 0.16),
    ((8, 64, 1), 0.06),
)
RUNS = ("first", "polish", "samples", "outlines")
COVERAGE = 20
"""Channels of the code that say what is covered, and how that changes."""


@dataclass(frozen=True)
class Outlines:
    """Which clips are outlines. width: of the line. inside: along the shape's inner edge, and only the line is
    foreground; else around the shape, and what it encloses is foreground.
    """

    share: float = 0.1
    width: float = 0.06
    inside: bool = True


def clip_batch(
    pool: list[Scene],
    rng: np.random.Generator,
    batch: int,
    size: int,
    frames: int,
    *,
    wrong: float = 0.0,
    outlines: Outlines | None = None,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Random stretches of clips: pixels (B, 3, F, S, S) in [-1, 1], foreground (B, 1, F, S, S), code (B, C, F', h, w).

    Shapes keep their size in pixels where the picture is wider than 128. wrong: how often the code's coverage is that
    of another kind of shape.
    """
    outlines = outlines or Outlines()
    pixels, masks, codes = [], [], []
    for _ in range(batch):
        scene = pool[int(rng.integers(len(pool)))]
        if size > 128:
            scene = replace(scene, shapes=tuple(replace(s, radius=s.radius * 128 / size) for s in scene.shapes))
        start = int(rng.integers(scene.frames - frames + 1))
        stretch = range(start, start + frames)
        outline = rng.random() < outlines.share
        p, m = render(scene, size, frames=stretch, outline=outlines.width if outline else 0.0, inside=outlines.inside)
        if outline and not outlines.inside:
            _, m = render(scene, size, frames=stretch)
        pixels.append(p)
        masks.append(m)
        codes.append(normalised(scene_code(scene, size, start=start, frames=frames, outline=outline)))
        if wrong and rng.random() < wrong:
            other = replace(scene, shapes=tuple(replace(s, kind=str(rng.choice(KINDS))) for s in scene.shapes))
            covered = normalised(scene_code(other, size, start=start, frames=frames, outline=outline))
            codes[-1][..., :COVERAGE] = covered[..., :COVERAGE]
    x = torch.from_numpy(np.stack(pixels)).float().permute(0, 4, 1, 2, 3) / 127.5 - 1
    code = torch.from_numpy(np.stack(codes)).permute(0, 4, 1, 2, 3)
    return x, torch.from_numpy(np.stack(masks))[:, None], code.contiguous()


def window(
    rng: np.random.Generator, pixels: torch.Tensor, mask: torch.Tensor, code: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """In half of the cases a part of the picture, two cells or more on each side; else all of it."""
    if rng.random() < 0.5:
        return pixels, mask, code
    places = []
    for length in code.shape[-2:]:
        side = int(rng.integers(2, length + 1))
        first = int(rng.integers(length - side + 1))
        places.append(slice(first, first + side))
    fine = tuple(slice(p.start * CELL, p.stop * CELL) for p in places)
    return pixels[(..., *fine)], mask[(..., *fine)], code[(..., *places)].contiguous()


def near(mask: torch.Tensor, reach: int = 6) -> torch.Tensor:
    """A foreground mask (B, 1, F, H, W) and what is within `reach` pixels of it, the gaps between a star's points too.

    With the foreground alone, filling a gap costs a fifth of leaving out a point, and stars become discs.
    """
    flat = torch.nn.functional.max_pool2d(mask.flatten(0, 2)[:, None], 2 * reach + 1, 1, reach)
    return flat.reshape(mask.shape)


def with_noise(code: torch.Tensor, polish: bool) -> torch.Tensor:
    """A normalised code as inexact as a denoiser's. polish: much more so in what says where the shape is."""
    amount = 0.12 * torch.rand(len(code), 1, 1, 1, 1)
    noisy = code + amount * torch.randn_like(code)
    if polish:
        noisy[:, :COVERAGE] += 0.35 * torch.rand(len(code), 1, 1, 1, 1) * torch.randn_like(code[:, :COVERAGE])
    return noisy


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


@dataclass
class Samples:
    """Codes that a denoiser made (training/samples.py), with their scenes."""

    codes: torch.Tensor
    scenes: list[Scene]
    width: float

    @classmethod
    def load(cls, out: Path, adapters: str) -> Samples:
        found = torch.load(out / f"{SETS[adapters][1]}.pt")
        pool = train_pool(int(found["scenes"].max()) + 1)
        return cls(found["video"], [pool[int(i)] for i in found["scenes"]], LINE if adapters == "outlines" else 0.0)

    def draw(self, rng: np.random.Generator, frames: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """As `clip_batch`, one clip from its first frame. What an outline encloses is foreground."""
        pick = int(rng.integers(len(self.scenes)))
        pixels, mask = render(self.scenes[pick], 128, frames=range(frames))
        if self.width:
            pixels, _ = render(self.scenes[pick], 128, frames=range(frames), outline=self.width)
        x = torch.from_numpy(pixels).float().permute(3, 0, 1, 2)[None] / 127.5 - 1
        return x, torch.from_numpy(mask)[None, None], self.codes[pick][None, :, : (frames - 1) // 8 + 1].float()


def drawing_error(vae: torch.nn.Module, x: torch.Tensor, area: torch.Tensor, code: torch.Tensor) -> torch.Tensor:
    """Mean squared error of what the decoder draws, five times as heavy where `area` is 1."""
    mean, std = statistics()
    with autocast():
        y = vae.decoder(code * std + mean).float()
    weight = 1 + 4 * area
    return ((y - x).square().mean(1, keepdim=True) * weight).sum() / weight.sum()


def encoder_error(vae: torch.nn.Module, x: torch.Tensor, code: torch.Tensor) -> torch.Tensor:
    mean, std = statistics()
    with autocast():
        z = encode(vae, x)
    return ((z - mean) / std - code).square().mean()


class Lesson:
    """What one run shows to a part; the runs "samples" and "outlines" are for the decoder alone."""

    def __init__(self, part: str, run: str, out: Path, rng: np.random.Generator):
        self.part, self.run, self.rng = part, run, rng
        self.pool = scenes(1, 16384)
        sets = {"samples": ["distilled"], "outlines": ["distilled", "outlines"]}.get(run, [])
        self.samples = [Samples.load(out, name) for name in sets]
        self.outlines = Outlines(0.5, LINE, inside=False) if run == "outlines" else Outlines()
        if run != "first" and part == "decoder":  # a star's points are the hardest to draw
            self.pool += 2 * [scene for scene in self.pool if any(shape.kind == "star" for shape in scene.shapes)]

    def loss(self, vae: torch.nn.Module, progress: float) -> torch.Tensor:
        rng = self.rng
        if self.samples and rng.random() < 0.6:
            chosen = self.samples[int(rng.integers(len(self.samples)))]
            x, mask, code = chosen.draw(rng, 17 if rng.random() < 0.75 else 49)
            return drawing_error(vae, x, near(mask), code)
        shapes = POLISH if self.run != "first" else EARLY if progress < 0.4 else LATE
        shape = shapes[int(rng.choice(len(shapes), p=[w for _, w in shapes]))][0]
        wrong = 0.25 if self.run != "first" and self.part == "decoder" else 0.0
        x, mask, code = clip_batch(self.pool, rng, *shape, wrong=wrong, outlines=self.outlines)
        if self.run != "first":
            x, mask, code = window(rng, x, mask, code)
        if self.part == "encoder":
            return encoder_error(vae, x, code)
        return drawing_error(vae, x, mask if self.run == "first" else near(mask), with_noise(code, self.run != "first"))


BEFORE = {"polish": "", "samples": "_polish", "outlines": "_samples"}
"""The run whose weights another one goes on from, as the end of their file's name."""
RATES = {"first": 3e-3, "polish": 1e-3, "samples": 1e-3, "outlines": 2e-3}


def train(out: Path, part: str, steps: int, seed: int = 0, run: str = "first") -> None:
    """Train the "encoder" or the "decoder" and save it: `video_encoder.pt`, `video_decoder_polish.pt` and so on.

    Every run but the first goes on from the one before it, at a lower learning rate.
    """
    number = RUNS.index(run)
    torch.manual_seed(seed + number)
    rng = np.random.default_rng(seed + (part == "encoder") + 2 * number)
    vae = video_vae()
    own = vae.encoder if part == "encoder" else vae.decoder
    if run == "first":
        orthogonal(vae)
    else:
        own.load_state_dict(torch.load(out / f"video_{part}{BEFORE[run]}.pt"))
    name = f"video_{part}" + ("" if run == "first" else f"_{run}")
    unseen = [sample_scene(np.random.default_rng(99 + i), "any") for i in range(6)]
    optimiser = Optimiser(own.named_parameters(), RATES[run], ends=("conv_in", "conv_out"))
    average = Average(own)
    clock = Clock(name, out, steps=steps)
    lesson = Lesson(part, run, out, rng)
    losses: list[float] = []

    def save() -> None:
        average.swap()
        figures = {"unseen64": judge(vae, part, unseen, 64, 33), "unseen128": judge(vae, part, unseen[:2], 128, 17)}
        clock.report(loss=np.mean(losses[-100:]), **figures)
        torch.save(own.state_dict(), out / f"{name}.pt")
        average.swap()

    while clock.running():
        loss = lesson.loss(vae, clock.progress)
        loss.backward()
        optimiser.step(clock.factor())
        average.update()
        losses.append(float(loss.detach()))
        if clock.due(300):
            save()


def join(out: Path) -> None:
    """Put both halves and the statistics together as `video_vae.pt`."""
    vae = video_vae()
    vae.encoder.load_state_dict(torch.load(out / "video_encoder_polish.pt"))
    vae.decoder.load_state_dict(torch.load(out / "video_decoder_outlines.pt"))
    vae.latents_mean.copy_(torch.from_numpy(MEAN))
    vae.latents_std.copy_(torch.from_numpy(STD))
    torch.save(vae.state_dict(), out / "video_vae.pt")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("part", choices=["encoder", "decoder", "join"])
    parser.add_argument("--out", type=Path, default=Path("out/training"))
    parser.add_argument("--steps", type=int, default=6000)
    parser.add_argument("--run", choices=RUNS, default="first")
    a = parser.parse_args()
    if a.part == "join":
        join(a.out)
    else:
        train(a.out, a.part, a.steps, run=a.run)
