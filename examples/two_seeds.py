"""One pipeline, several clips: weights are opened once, each phase frees what it used."""

import os

from mlx_ltx2 import LTX2Pipeline

pipe = LTX2Pipeline.from_pretrained(os.environ.get("MODEL", "demo"))
for seed in (1, 2):
    clip = pipe(
        "a blue square moving left", seed=seed, callback=lambda stage, done, total: print(stage, done, "of", total)
    )
    clip.save(f"square-{seed}.gif")
    print(f"seed {seed}: peak memory {max(clip.peaks.values()) / 1e6:.0f} MB")
