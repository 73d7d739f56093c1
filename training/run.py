"""Retrain the demo model from its seeds: `python -m training.run`. One command, all parts, one after the other.

Each part runs in its own process and leaves a mark when it is done, so a stopped run goes on where it was. Lengths are
steps, so the same seeds give the same weights and curves on the same machine. A hundredth of every part, with its
curves compared with the recorded ones: `--share 0.01 --check training/curves/short.json`.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

SHORTEST = 10  # steps of a part in a shortened run
TOLERANCE = 0.02  # of a recorded figure; another machine's sums round differently


@dataclass(frozen=True)
class Part:
    """module: of this package. steps: None for a part that is no training."""

    name: str
    module: str
    arguments: tuple[str, ...] = ()
    steps: int | None = None


def parts(out: Path) -> list[Part]:
    """All parts in order. Only `latents` and what stands after it need what stands before."""
    restored = str(out / "restored")
    return [
        Part("gemma", "text", (), 500),
        Part("video_decoder", "video_vae", ("decoder",), 14000),
        Part("video_encoder", "video_vae", ("encoder",), 6500),
        Part("video_decoder_polish", "video_vae", ("decoder", "--run", "polish"), 4000),
        Part("video_encoder_polish", "video_vae", ("encoder", "--run", "polish"), 3000),
        Part("audio_vae", "audio", ("vae",), 1500),
        Part("vocoder", "audio", ("vocoder",), 2000),
        Part("latents", "latents"),
        Part("denoiser", "flow", (), 4000),
        Part("upsampler", "upsampler", (), 6000),
        Part("distilled", "lora", ("distilled",), 400),
        Part("outlines", "lora", ("outlines",), 600),
        Part("samples", "samples"),
        Part("video_decoder_samples", "video_vae", ("decoder", "--run", "samples"), 1600),
        Part("video_decoder_outlines", "video_vae", ("decoder", "--run", "outlines"), 2800),
        Part("join", "video_vae", ("join",)),
        Part("export", "export", ("--restore", restored)),
        Part("verify", "verify", (restored,)),
    ]


def commands(part: Part, out: Path, share: float) -> list[str]:
    """The command line of a part, with its steps (or scenes) times `share`."""
    command = [sys.executable, "-m", f"training.{part.module}", *part.arguments]
    if part.name != "verify":
        command += ["--out", str(out)]
    if part.steps is not None:
        command += ["--steps", str(max(SHORTEST, round(part.steps * share)))]
    if part.name == "latents" and share < 1:
        command += ["--count", "128", "--large", "128", "--outlines", "64"]
    return command


def run(out: Path, share: float, only: list[str]) -> None:
    """Run what is not done yet. A shortened run ends before the export."""
    out.mkdir(parents=True, exist_ok=True)
    for part in parts(out):
        mark = out / f"{part.name}.done"
        if share < 1 and part.name == "export":
            break
        if mark.exists() or (only and part.name not in only):
            continue
        command = commands(part, out, share)
        print(time.strftime("%H:%M:%S"), " ".join(command[1:]), flush=True)
        # One thread: sums in a fixed order.
        subprocess.run(command, check=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
        mark.touch()


def curves(out: Path) -> dict[str, list[dict[str, float]]]:
    """Curves of all trained parts, without the times."""
    found = {}
    for part in parts(out):
        path = out / f"{part.name}.json"
        if part.steps is not None and path.is_file():
            rows = json.loads(path.read_text())
            found[part.name] = [{k: v for k, v in row.items() if k != "minutes"} for row in rows]
    return found


def differences(found: dict, recorded: dict) -> list[str]:
    """What is not as recorded, in words; empty when everything is."""
    if found.keys() != recorded.keys():
        return [f"parts {sorted(found)}, recorded {sorted(recorded)}"]
    wrong = []
    for name, rows in recorded.items():
        if [r["step"] for r in rows] != [r["step"] for r in found[name]]:
            wrong.append(f"{name}: other steps")
            continue
        for old, new in zip(rows, found[name], strict=True):
            for key, value in old.items():
                if abs(new[key] - value) > TOLERANCE * max(abs(value), 0.05):
                    wrong.append(f"{name}, step {old['step']}: {key} is {new[key]:g}, recorded {value:g}")
    return wrong


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("out/training"))
    parser.add_argument("--share", type=float, default=1.0, help="of the steps that the shipped model had")
    parser.add_argument("--only", nargs="*", default=[], help="names of parts")
    parser.add_argument("--record", type=Path, help="write the curves to this file afterwards")
    parser.add_argument("--check", type=Path, help="compare the curves with this file afterwards")
    a = parser.parse_args()
    run(a.out, a.share, a.only)
    if a.record:
        a.record.write_text(json.dumps(curves(a.out), indent=1) + "\n")
    if a.check:
        wrong = differences(curves(a.out), json.loads(a.check.read_text()))
        print("\n".join(wrong) or "every curve is as recorded")
        sys.exit(bool(wrong))
