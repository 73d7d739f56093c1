"""Retrain the demo model from its seeds: `python -m training.run`. One command, all parts, one after the other.

Each part runs in its own process and leaves a mark when it is done, so a stopped run goes on where it was. The
budgets are minutes of processor time on one core; --minutes scales them all to a total.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Part:
    """module: of this package. budget: minutes, None for parts that run to their end."""

    name: str
    module: str
    arguments: tuple[str, ...] = ()
    budget: float | None = None


def parts(out: Path) -> list[Part]:
    """All parts in order. Only `latents` and what stands after it need what stands before."""
    restored = str(out / "restored")
    return [
        Part("gemma", "text", ("--steps", "500")),
        Part("video_decoder", "video_vae", ("decoder",), 40),
        Part("video_encoder", "video_vae", ("encoder",), 20),
        Part("join", "video_vae", ("join",)),
        Part("audio_vae", "audio", ("vae",), 7),
        Part("vocoder", "audio", ("vocoder",), 7),
        Part("latents", "latents"),
        Part("denoiser", "flow", (), 34),
        Part("upsampler", "upsampler", (), 4),
        Part("distilled", "lora", ("distilled",), 9),
        Part("outlines", "lora", ("outlines",), 4),
        Part("export", "export", ("--restore", restored)),
        Part("verify", "verify", (restored,)),
        Part("evaluate", "evaluate", (restored,)),
    ]


def run(out: Path, minutes: float | None, only: list[str]) -> None:
    """Run what is not done yet."""
    out.mkdir(parents=True, exist_ok=True)
    planned = parts(out)
    total = sum(p.budget or 0 for p in planned)
    scale = 1.0 if minutes is None else minutes / total
    for part in planned:
        mark = out / f"{part.name}.done"
        if mark.exists() or (only and part.name not in only):
            continue
        command = [sys.executable, "-m", f"training.{part.module}", *part.arguments]
        if part.name not in ("verify",):
            command += ["--out", str(out)]
        if part.budget is not None:
            command += ["--minutes", f"{part.budget * scale:.2f}"]
        print(time.strftime("%H:%M:%S"), " ".join(command[1:]), flush=True)
        subprocess.run(
            command, check=True, env={**os.environ, "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "1")}
        )
        mark.touch()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("out/training"))
    parser.add_argument("--minutes", type=float, help="total of the budgets; the default is what the shipped model had")
    parser.add_argument("--only", nargs="*", default=[], help="names of parts")
    a = parser.parse_args()
    run(a.out, a.minutes, a.only)
