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
from mlx_ltx2.media.outputs import replacing
from mlx_ltx2.progress import Progress
from mlx_ltx2.stages.write import Clip

TEXTS = (
    "a blue square bouncing",
    "a yellow star growing on a navy background",
    "a green triangle moving in a circle",
    "a red circle on the left bouncing and a cyan square on the right standing still",
)
RETAKEN = (0.7, 1.4)  # seconds
KINDS = ("text",) * (1 + len(TEXTS)) + ("lora", "picture", "sound", "retake", "keyframes")


class Show:
    """Makes clips with the demo model; each is written to a file, and is a row of the contact sheet.

    output: file of the first clip; the others are named after it, and so is the folder of what they are given.
    overwrite: replace files that this program did not make.
    """

    def __init__(self, pipeline: LTX2Pipeline, output: Path, seed: int, progress: Progress, *, overwrite: bool = False):
        self._pipeline = pipeline
        self._output = output
        self._overwrite = overwrite
        self._options: dict[str, Any] = {"seed": seed, "progress": progress, "overwrite": overwrite}
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
        picture, sound, first, last = given_files(self._output)
        yield self._from_picture(picture)
        yield self._from_sound(sound)
        yield self._retaken("a purple square bouncing")
        yield self._between(first, last)

    def _clip(self, kind: str, prompt: str, **options: Any) -> Clip:
        path = _clip_file(self._output, len(self.clips), kind)
        assert kind == KINDS[len(self.clips)]
        self.clips.append(self._pipeline(prompt, output=path, **self._options, **options))
        return self.clips[-1]

    def _outlined(self, prompt: str) -> Row:
        return _row(f"with the LoRA demo::outlines: {prompt}", self._clip("lora", prompt, loras="demo::outlines"))

    def _from_picture(self, path: Path) -> Row:
        prompt, first = "a purple star moving up", drawing.picture("star", "purple", 0.5, 0.72)
        self._save(path, first)
        return _row(f"first frame given: {prompt}", self._clip("picture", prompt, image=path), first)

    def _from_sound(self, path: Path) -> Row:
        prompt, sound = "an orange circle bouncing", drawing.bouncing_sound(self.clips[0].seconds)
        with replacing(path, overwrite=self._overwrite) as partial:
            write_wav(partial, sound)
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
            self._save(path, pixels)
        clip = self._clip("keyframes", prompt, images=[(first, 0), (last, -1)])
        return _row(f"first and last frame given: {prompt}", clip, *ends)

    def _save(self, path: Path, pixels: np.ndarray) -> None:
        with replacing(path, overwrite=self._overwrite) as partial:
            save_image(partial, pixels)


def clip_files(output: Path, everything: bool) -> list[Path]:
    """The clips of a show, in order."""
    return [_clip_file(output, number, kind) for number, kind in enumerate(KINDS[: None if everything else 1])]


def given_files(output: Path) -> list[Path]:
    """What its clips are given: a picture, a sound, a first and a last frame."""
    folder = output.with_name(f"{output.stem}-given")
    return [folder / name for name in ("picture.png", "sound.wav", "first.png", "last.png")]


def _clip_file(output: Path, number: int, kind: str) -> Path:
    return output.with_name(f"{output.stem}-{number + 1}-{kind}{output.suffix}") if number else output


def _row(caption: str, clip: Clip, *given: np.ndarray) -> Row:
    assert clip.frames is not None
    return Row(caption, clip.frames, clip.audio, given)
