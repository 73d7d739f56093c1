"""A prompt becomes an MP4 with sound."""

import os

from mlx_ltx2 import generate

clip = generate("a red circle moving right", model=os.environ.get("MODEL", "demo"), output="circle.mp4", progress="bar")
print(clip.path, clip.frames.shape, f"{clip.audio.seconds:.2f} s of sound at {clip.audio.rate_hz} Hz")
