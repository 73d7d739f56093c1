"""What the demo shows: one clip from text, and one of everything else that the model does."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from mlx_ltx2.demo import drawing
from mlx_ltx2.demo.sheet import Row, spectrogram
from mlx_ltx2.generate import LTX2Pipeline
from mlx_ltx2.media.audio import write_wav
from mlx_ltx2.media.images import save_image
from mlx_ltx2.progress import Progress
from mlx_ltx2.stages.write import Clip

TEXTS = (
    "a blue square bouncing",
    "a yellow star growing on a navy background",
    "a green triangle moving in a circle",
    "a red circle on the left bouncing and a cyan square on the right standing still",
)
RETAKEN = (0.7, 1.4)  # seconds


class Show:
    """Makes clips with the demo model; each is written to a file, and is a row of the contact sheet.

    output: file of the first clip; the others are named after it, and so is the folder of what they are given.
    """

    def __init__(self, pipeline: LTX2Pipeline, output: Path, seed: int, progress: Progress):
        self._pipeline = pipeline
        self._output = output
        self._options: dict[str, Any] = {"seed": seed, "progress": progress}
        self.clips: list[Clip] = []

    def text(self, prompt: str) -> Row:
        """A clip from text alone."""
        clip = self._clip("text", prompt)
        return _row(f"text: {prompt}", clip)

    def rest(self) -> Iterator[Row]:
        """Other texts, a LoRA, a first frame, a sound, a clip made anew in part, first and last frame."""
        for prompt in TEXTS:
            yield self.text(prompt)
        yield self._outlined("a green star growing")
        given = self._output.with_name(f"{self._output.stem}-given")
        given.mkdir(parents=True, exist_ok=True)
        yield self._from_picture(given / "picture.png")
        yield self._from_sound(given / "sound.wav")
        yield self._retaken("a purple square bouncing")
        yield self._between(given / "first.png", given / "last.png")

    def _clip(self, kind: str, prompt: str, **options: Any) -> Clip:
        number = len(self.clips)
        path = self._output
        if number:
            path = path.with_name(f"{path.stem}-{number + 1}-{kind}{path.suffix}")
        self.clips.append(self._pipeline(prompt, output=path, **self._options, **options))
        return self.clips[-1]

    def _outlined(self, prompt: str) -> Row:
        return _row(f"with the LoRA demo::outlines: {prompt}", self._clip("lora", prompt, loras="demo::outlines"))

    def _from_picture(self, path: Path) -> Row:
        prompt, first = "a purple star moving up", drawing.picture("star", "purple", 0.5, 0.72)
        save_image(path, first)
        return _row(f"first frame given: {prompt}", self._clip("picture", prompt, image=path), first)

    def _from_sound(self, path: Path) -> Row:
        prompt, sound = "an orange circle bouncing", drawing.bouncing_sound(self.clips[0].seconds)
        write_wav(path, sound)
        clip = self._clip("sound", prompt, audio_file=path)
        return _row(f"sound given: {prompt}", clip, spectrogram(sound, 128, 64))

    def _retaken(self, prompt: str) -> Row:
        start, end = RETAKEN
        clip = self._clip("retake", prompt, video=self.clips[1], start_time=start, end_time=end)
        return _row(f"{start:g} to {end:g} s of the second clip made anew: {prompt}", clip)

    def _between(self, first: Path, last: Path) -> Row:
        prompt = "a white triangle moving right"
        ends = [drawing.picture("triangle", "white", x, 0.5) for x in (0.28, 0.72)]
        for path, pixels in zip((first, last), ends, strict=True):
            save_image(path, pixels)
        clip = self._clip("keyframes", prompt, images=[(first, 0), (last, -1)])
        return _row(f"first and last frame given: {prompt}", clip, *ends)


def _row(caption: str, clip: Clip, *given: np.ndarray) -> Row:
    assert clip.frames is not None
    return Row(caption, clip.frames, clip.audio, given)
