"""What a request would do, before anything is read; a wrong one is refused here already."""

import os

from mlx_ltx2 import LTX2Pipeline, ShapeError

pipe = LTX2Pipeline.from_pretrained(os.environ.get("MODEL", "demo"))
plan = pipe.plan("a green star bouncing", num_frames=25, seed=3)
for stage in plan.stages:
    print(f"{stage.name}: {len(stage.sigmas) - 1} steps of {stage.sampler}, {stage.forwards} forward passes")
try:
    pipe.plan("a green star bouncing", height=500)
except ShapeError as error:
    print("refused:", error)
