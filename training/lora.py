"""Low-rank adapters of the transformer, and the two that ship: the distilled one and the outline style."""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch
from torch import nn

from training.dit import Context, Denoiser, Stream, audio_positions
from training.flow import SLOTS, Cache, draw, flow_loss
from training.latents import AUDIO_TOKENS
from training.optim import Clock, Optimiser

DISTILLED_SIGMAS = (1.0, 0.99375, 0.9875, 0.98125, 0.975, 0.909375, 0.725, 0.421875, 0.0)
STAGE_2_SIGMAS = (0.909375, 0.725, 0.421875, 0.0)
RANKS = {"distilled": 12, "outlines": 8}
GUIDANCE = 2.5


class Adapted(nn.Module):
    """A frozen linear layer plus up(down(x)); `up` begins at zero."""

    def __init__(self, base: nn.Linear, rank: int):
        super().__init__()
        self.base = base.requires_grad_(False)
        self.down = nn.Parameter(torch.randn(rank, base.in_features) / base.in_features**0.5)
        self.up = nn.Parameter(torch.zeros(base.out_features, rank))
        self.strength = 1.0

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.base(x)
        return y if self.strength == 0 else y + self.strength * ((x @ self.down.T.to(x.dtype)) @ self.up.T.to(x.dtype))


def adapt(model: Denoiser, rank: int) -> dict[str, Adapted]:
    """Freeze a model and put adapters on the attention and feed-forward layers of its transformer."""
    model.requires_grad_(False)
    found: dict[str, Adapted] = {}
    for name, module in list(model.transformer.named_modules()):
        if isinstance(module, nn.Linear) and name.startswith("transformer_blocks") and "gate_logits" not in name:
            parent_name, _, leaf = name.rpartition(".")
            parent = model.transformer.get_submodule(parent_name)
            found[name] = Adapted(module, rank)
            setattr(parent, leaf, found[name])
    return found


def set_strength(adapters: dict[str, Adapted], strength: float) -> None:
    for a in adapters.values():
        a.strength = strength


def save(adapters: dict[str, Adapted], path: Path) -> None:
    torch.save({name: (a.down.detach(), a.up.detach()) for name, a in adapters.items()}, path)


def load(model: Denoiser, path: Path) -> dict[str, Adapted]:
    """Put saved adapters on a model."""
    stored = torch.load(path)
    adapters = adapt(model, next(iter(stored.values()))[0].shape[0])
    with torch.no_grad():
        for name, (down, up) in stored.items():
            adapters[name].down.copy_(down)
            adapters[name].up.copy_(up)
    return adapters


def guided(model: Denoiser, video: Stream, audio: Stream, both: Context, scale: float):
    """Velocities under classifier-free guidance; `both` holds the conditioned contexts, then the empty ones."""

    def twice(s: Stream) -> Stream:
        return Stream(s.x.repeat(2, 1, 1), s.timesteps.repeat(2, 1), s.sigma.repeat(2), s.positions)

    found = []
    for v in model(twice(video), twice(audio), both):
        with_prompt, without = v.chunk(2)
        found.append(without + scale * (with_prompt - without))
    return found[0], found[1]


def distill(out: Path, steps: int, seed: int = 0) -> None:
    """Teach adapters to make, in one unguided step of the fixed list, the way of two guided steps."""
    torch.manual_seed(seed)
    rng = np.random.default_rng(seed)
    model = Denoiser(out)
    model.load_state_dict(torch.load(out / "denoiser.pt"))
    adapters = adapt(model, RANKS["distilled"])
    caches = {64: Cache.load(out, "latents_64"), 128: Cache.load(out, "latents_128")}
    params = [(f"{n}.{k}", getattr(a, k)) for n, a in adapters.items() for k in ("down", "up")]
    optimiser = Optimiser(params, 1.5e-3)
    clock = Clock("distilled", out, steps=steps)
    log: list[tuple[float, float]] = []
    while clock.running():
        size = 64 if rng.random() < 0.6 else 128
        mode = "plain" if rng.random() < 0.6 else None
        b = draw(caches[size], rng, 24 if size == 64 else 8, mode)
        count = b.video.shape[0]
        first = int(rng.choice(8, p=[0.06, 0.06, 0.06, 0.06, 0.14, 0.2, 0.21, 0.21]))
        sigma, end = DISTILLED_SIGMAS[first], DISTILLED_SIGMAS[first + 1]
        middle = (sigma + end) / 2
        with torch.no_grad():
            context = model.context(b.prompts, SLOTS)
            empty = model.context([""] * count, SLOTS)
            both = Context(
                *(torch.cat(pair) for pair in zip(*((c.video, c.audio, c.bias) for c in (context, empty)), strict=True))
            )
        noise = torch.randn_like(b.video), torch.randn_like(b.audio)

        def streams(x: torch.Tensor, y: torch.Tensor, level: float) -> tuple[Stream, Stream]:
            found = []
            for tokens, mask, frozen, where in (
                (x, b.video_mask, b.frozen[0], b.video_positions),  # noqa: B023
                (y, b.audio_mask, b.frozen[1], audio_positions(AUDIO_TOKENS)),  # noqa: B023
            ):
                s = torch.zeros(len(tokens)) if frozen else torch.full((len(tokens),), level)
                found.append(Stream(tokens, mask * s[:, None], s, where))
            return found[0], found[1]

        masks = [m * (0.0 if z else 1.0) for m, z in zip((b.video_mask, b.audio_mask), b.frozen, strict=True)]
        start = [x + m[..., None] * sigma * (n - x) for x, m, n in zip((b.video, b.audio), masks, noise, strict=True)]
        with torch.no_grad():
            set_strength(adapters, 0.0)
            at, level = list(start), sigma
            for target in (middle, end):
                v = guided(model, *streams(*at, level), both, GUIDANCE)
                at = [x - m[..., None] * (level - target) * d for x, m, d in zip(at, masks, v, strict=True)]
                level = target
            set_strength(adapters, 1.0)
        velocities = model(*streams(*start, sigma), context)
        losses = []
        for v, x, y, m in zip(velocities, start, at, masks, strict=True):
            error = (v - (x - y) / (sigma - end)).square().mean(-1)
            losses.append((error * m).sum() / m.sum().clamp_min(1))
        (losses[0] + 0.5 * losses[1]).backward()
        optimiser.step(clock.factor(20))
        log.append((float(losses[0].detach()), float(losses[1].detach())))
        if clock.due(50):
            video, audio = np.mean(log[-100:], axis=0)
            clock.report(video=video, audio=audio)
            save(adapters, out / "distilled.pt")


def train_style(out: Path, steps: int, seed: int = 0) -> None:
    """Fine-tune adapters on clips whose shapes are outlines; the captions do not say so."""
    torch.manual_seed(seed)
    rng = np.random.default_rng(seed)
    model = Denoiser(out)
    model.load_state_dict(torch.load(out / "denoiser.pt"))
    adapters = adapt(model, RANKS["outlines"])
    caches = {64: Cache.load(out, "outlines_64"), 128: Cache.load(out, "outlines_128")}
    params = [(f"{n}.{k}", getattr(a, k)) for n, a in adapters.items() for k in ("down", "up")]
    optimiser = Optimiser(params, 2e-3)
    clock = Clock("outlines", out, steps=steps)
    log: list[float] = []
    while clock.running():
        size = 64 if rng.random() < 0.6 else 128
        video, audio = flow_loss(model, draw(caches[size], rng, 32 if size == 64 else 10, "plain"), SLOTS)
        (video + 0.5 * audio).backward()
        optimiser.step(clock.factor(20))
        log.append(float(video.detach()))
        if clock.due(50):
            clock.report(video=np.mean(log[-100:]))
            save(adapters, out / "outlines.pt")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("part", choices=["distilled", "outlines"])
    parser.add_argument("--out", type=Path, default=Path("out/training"))
    parser.add_argument("--steps", type=int, default=600)
    a = parser.parse_args()
    {"distilled": distill, "outlines": train_style}[a.part](a.out, a.steps)
