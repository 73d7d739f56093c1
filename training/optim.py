"""The optimiser (Muon for matrices and convolutions, AdamW for the rest), averaged weights, and the run clock."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Iterable
from pathlib import Path

import torch
from torch import nn


def orthogonal(module: nn.Module, gain: float = 1.0) -> None:
    """Orthogonal weights and zero biases for every convolution and linear layer of a module."""
    for layer in module.modules():
        if isinstance(layer, nn.Conv1d | nn.Conv2d | nn.Conv3d | nn.Linear | nn.ConvTranspose1d):
            nn.init.orthogonal_(layer.weight, gain)
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)


def _newton_schulz(g: torch.Tensor, steps: int = 5) -> torch.Tensor:
    """The nearest semi-orthogonal matrix, by the quintic iteration of Muon (Jordan et al., 2024).

    Every step multiplies by a polynomial of the Gram matrix, so the steps run on the small square matrices and the
    wide one is touched twice.
    """
    transposed = g.shape[-2] > g.shape[-1]
    x = g.mT if transposed else g
    x = x / (x.norm() + 1e-7)
    gram = x @ x.mT
    eye = torch.eye(gram.shape[-1], dtype=g.dtype, device=g.device)
    total = eye
    for step in range(steps):
        factor = 3.4445 * eye - 4.7750 * gram + 2.0315 * (gram @ gram)
        total = factor @ total
        if step + 1 < steps:
            gram = factor @ gram @ factor
    x = total @ x
    return x.mT if transposed else x


class Muon(torch.optim.Optimizer):
    """Momentum, made orthogonal: matrices and convolution kernels, one learning rate as AdamW's."""

    def __init__(self, params: Iterable[nn.Parameter], lr: float, momentum: float = 0.95, decay: float = 0.01):
        super().__init__(params, {"lr": lr, "momentum": momentum, "decay": decay})

    @torch.no_grad()
    def step(self) -> None:  # type: ignore[override]
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is None:
                    continue
                if "momentum" not in self.state[p]:
                    self.state[p]["momentum"] = torch.zeros_like(p)
                state = self.state[p]["momentum"]
                state.lerp_(p.grad, 1 - group["momentum"])
                update = p.grad.lerp(state, group["momentum"]).reshape(p.shape[0], -1)
                scale = 0.2 * math.sqrt(max(update.shape))
                p.mul_(1 - group["lr"] * group["decay"])
                # Tall kernels (those before a pixel shuffle) go in groups of rows: the cost grows with the cube.
                rows = torch.cat([_newton_schulz(part) for part in update.split(128)])
                p.add_(rows.reshape(p.shape), alpha=-group["lr"] * scale)


class Optimiser:
    """Muon for what is a matrix inside the network, AdamW for vectors, tables and the layers at both ends."""

    def __init__(self, named: Iterable[tuple[str, nn.Parameter]], lr: float, ends: tuple[str, ...] = ()):
        matrices, rest = [], []
        for name, p in named:
            if p.requires_grad:
                inner = p.ndim >= 2 and min(p.shape[0], p[0].numel()) >= 8 and not any(e in name for e in ends)
                (matrices if inner else rest).append(p)
        self.parts: list[torch.optim.Optimizer] = []
        if matrices:
            self.parts.append(Muon(matrices, lr))
        if rest:
            self.parts.append(torch.optim.AdamW(rest, lr, betas=(0.9, 0.98), weight_decay=0.0))
        self.params = matrices + rest
        self.lr = lr

    def step(self, factor: float) -> None:
        """One update at `factor` of the learning rate; gradients are clipped at norm 1 and cleared."""
        torch.nn.utils.clip_grad_norm_(self.params, 1.0)
        for part in self.parts:
            for group in part.param_groups:
                group["lr"] = self.lr * factor
            part.step()
        for p in self.params:
            p.grad = None


class Average:
    """Exponential moving average of the weights of a module, short at first."""

    def __init__(self, module: nn.Module, decay: float = 0.998):
        self.module, self.decay, self.count = module, decay, 0
        self.values = {n: p.detach().clone() for n, p in module.named_parameters() if p.requires_grad}

    @torch.no_grad()
    def update(self) -> None:
        self.count += 1
        decay = min(self.decay, (1 + self.count) / (10 + self.count))
        for name, p in self.module.named_parameters():
            if name in self.values:
                self.values[name].lerp_(p, 1 - decay)

    @torch.no_grad()
    def swap(self) -> None:
        """Exchange the module's weights and the averages."""
        for name, p in self.module.named_parameters():
            if name in self.values:
                held = p.detach().clone()
                p.copy_(self.values[name])
                self.values[name].copy_(held)


class Clock:
    """Progress of a run in 0..1, its learning rate and its curve."""

    def __init__(self, name: str, out: Path, *, steps: int):
        self.name, self.out, self.steps = name, out, steps
        self.began, self.step, self.log = time.process_time(), 0, []
        out.mkdir(parents=True, exist_ok=True)

    @property
    def elapsed(self) -> float:
        return (time.process_time() - self.began) / 60

    @property
    def progress(self) -> float:
        return self.step / self.steps

    def factor(self, warmup: int = 50) -> float:
        """Linear warm-up, then a cosine to 2 % of the learning rate."""
        return min(1.0, (self.step + 1) / warmup) * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * self.progress)))

    def running(self) -> bool:
        return self.step < self.steps

    def due(self, every: int) -> bool:
        """Count a step; whether to report and save after it: `every` steps, four times at least, and at the end."""
        self.step += 1
        return self.step % min(every, max(1, self.steps // 4)) == 0 or not self.running()

    def report(self, **figures: float) -> None:
        """Print a line and write the whole curve."""
        row = {"step": self.step, "minutes": round(self.elapsed, 2)}
        row |= {k: round(float(v), 5) for k, v in figures.items()}
        self.log.append(row)
        print(self.name, " ".join(f"{k}={v}" for k, v in row.items()), flush=True)
        (self.out / f"{self.name}.json").write_text(json.dumps(self.log))
