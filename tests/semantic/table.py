"""The semantic table: does a clip show what was asked for, through every pipeline? On held-out captions.

    python -m tests.semantic.table --jobs 2            # everything, 40 captions, in two processes
    python -m tests.semantic.table --only distilled --only sound --count 8

Each line has a figure, its bound and whether it is met. Several processes print lines as they come, and all in order at
the end. The exit code is 1 if any is not met.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, replace
from itertools import repeat
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np

from benchmarks.blas import with_fast_blas
from mlx_ltx2 import load_component
from mlx_ltx2.demo import trained
from mlx_ltx2.diffusion.tiles import TileSize, decode_plan, encode_plan, run_tiles
from mlx_ltx2.media.audio import write_wav
from mlx_ltx2.media.images import normalize_pixels, save_image
from mlx_ltx2.media.writer import ClipWriter
from mlx_ltx2.pipelines.request import ImageInput
from mlx_ltx2.shapes import VideoShape
from mlx_ltx2.stages.decode_video import to_uint8
from mlx_ltx2.stages.write import Clip
from mlx_ltx2.states import Waveform
from tests.semantic import detectors
from tests.semantic.studio import SIZE, Studio, bouncing, drawn, hollow
from training.world import FPS, Scene, render, sound

LEAST = {"colour": 0.90, "motion": 0.85, "shape": 0.80}
FEW = 8
"""Clips for figures that are measured, not counted."""


@dataclass(frozen=True)
class Line:
    """value: the figure. least: its bound from below, or from above where `most` is True."""

    row: str
    what: str
    value: float
    bound: float
    most: bool = False

    @property
    def met(self) -> bool:
        return bool(self.value <= self.bound if self.most else self.value >= self.bound)

    def __str__(self) -> str:
        sign = "<=" if self.most else ">="
        said = "met" if self.met else "NOT MET"
        return f"{self.row:18s} {self.what:44s} {self.value:8.2f}  {sign} {self.bound:6.2f}  {said}"


def _shares(studio: Studio, row: str, clips: list[Clip]) -> Iterator[Line]:
    for what, share in studio.judge(clips).items():
        yield Line(row, f"right {what}, share", share, LEAST[what])


def _from_text(name: str, variant: str, **options: Any) -> Callable[[Studio], Iterator[Line]]:
    def lines(studio: Studio) -> Iterator[Line]:
        yield from _shares(studio, name, studio.ask(name, variant, **options))

    return lines


def keyframes(studio: Studio) -> Iterator[Line]:
    """First and last frame as keyframes, all captions."""
    pipe, clips, last = studio.pipeline("dev"), [], []
    for i, (scene, text) in enumerate(zip(studio.scenes, studio.captions, strict=True)):
        frames = drawn(scene)
        images = [ImageInput(_picture(studio, f"key{i}-{f}", frames[f]), f) for f in (0, -1)]
        clips.append(pipe(text, seed=i, pipeline="keyframes", images=images))
        last.append(detectors.psnr(clips[-1].frames[-1], frames[-1]))
    yield from _shares(studio, "keyframes", clips)
    yield Line("keyframes", "last frame against the given one, dB", float(np.mean(last)), 20)


def ic_lora(studio: Studio) -> Iterator[Line]:
    """The drawn clip as the reference; the demo has no IC-LoRA, so the prompt and the tokens alone steer."""
    pipe, clips = studio.pipeline(), []
    for i, (scene, text) in enumerate(zip(studio.scenes, studio.captions, strict=True)):
        path = studio.folder / f"reference{i}.mp4"
        with ClipWriter(path, fps=FPS, crf=0) as writer:
            writer.write(drawn(scene))
        clips.append(pipe(text, seed=i, pipeline="ic-lora", references=[path]))
    yield from _shares(studio, "ic-lora", clips)


def picture(studio: Studio) -> Iterator[Line]:
    """A given first frame, and a given last one."""
    for what, frame, least in (("first", 0, 25.0), ("last", -1, 20.0)):
        found = []
        for i, (scene, text) in enumerate(zip(studio.scenes[:FEW], studio.captions[:FEW], strict=True)):
            given = drawn(scene)[frame]
            path = _picture(studio, f"{what}{i}", given)
            clip = studio.pipeline()(text, seed=i, images=[ImageInput(path, frame)])
            found.append(detectors.psnr(clip.frames[frame], given))
        yield Line("picture", f"{what} frame against the given one, mean dB", float(np.mean(found)), least)


def given_sound(studio: Studio) -> Iterator[Line]:
    """The sound of a bouncing circle; the picture lands when it clicks, two frames more or less."""
    hits = total = 0
    for i, scene in enumerate(bouncing(FEW)):
        path = studio.folder / f"beep{i}.wav"
        write_wav(path, Waveform(sound(scene), 48000))
        clip = studio.pipeline()(f"a {scene.shapes[0].colour} circle bouncing", seed=i, audio_file=path)
        seen = detectors.landings(detectors.track(detectors.foreground(clip.frames)))
        clicks = scene.shapes[0].bounces(scene.duration)
        hits += sum(any(abs(t - s) <= 2 / FPS + 1e-6 for s in seen) for t in clicks)
        total += len(clicks)
    yield Line("sound", "clicks that a landing meets, share", hits / total, 0.80)


def retake(studio: Studio) -> Iterator[Line]:
    """From 0.7 to 1.4 s another caption; everything else stays as it was, to the last bit."""
    kept, changed = [], []
    for i, clip in enumerate(studio.ask("distilled")[:FEW]):
        other = studio.captions[(i + 1) % studio.count]
        again = studio.pipeline()(other, seed=100 + i, video=clip, start_time=0.7, end_time=1.4)
        first, end = again.plan.video_input.made
        outside = np.r_[0:first, end : len(clip.frames)]
        before, after = (int(t * clip.audio.rate_hz) for t in (0.69, 1.41))
        same = (again.audio.samples[:before] == clip.audio.samples[:before]).all()
        same &= (again.audio.samples[after:] == clip.audio.samples[after:]).all()
        kept.append(bool(same) and (again.frames[outside] == clip.frames[outside]).all())
        changed.append(np.abs(again.frames[first:end].astype(int) - clip.frames[first:end]).mean() > 1)
    yield Line("retake", "clips kept outside the stretch, share", float(np.mean(kept)), 1.0)
    yield Line("retake", "clips changed inside it, share", float(np.mean(changed)), 0.85)


def guidance(studio: Studio) -> Iterator[Line]:
    """Classifier-free guidance on dev raises what is right."""
    off = studio.ask("dev, cfg 1", "dev", pipeline="dev", cfg_scale=1.0, audio_cfg_scale=1.0)
    before, after = (np.mean(list(studio.judge(c).values())) for c in (off, studio.ask("dev", "dev", pipeline="dev")))
    yield Line("guidance", "right with cfg 3 minus right with cfg 1", float(after - before), 0.01)


def style(studio: Studio) -> Iterator[Line]:
    """The outline LoRA changes the style and not the content."""
    plain = studio.ask("dev", "dev", pipeline="dev")
    lined = studio.ask("outlines", "dev", pipeline="dev", loras="demo::outlines")
    moving = [i for i, s in enumerate(studio.scenes) if s.shapes[0].motion != "still"] or [0]
    for what, clips in (("outlined with the LoRA", lined), ("filled without it", plain)):
        share = np.mean([hollow(clips[i].frames) == (clips is lined) for i in moving])
        yield Line("lora", f"{what}, share", float(share), 0.80)
    before, after = studio.judge(plain), studio.judge(lined, outlined=True)
    for what in before:
        yield Line("lora", f"right {what}, loss by the LoRA", before[what] - after[what], 0.10, most=True)


def quantized(studio: Studio) -> Iterator[Line]:
    whole = np.mean(list(studio.judge(studio.ask("distilled")).values()))
    for bits, most in ((8, 0.03), (4, 0.10)):
        clips = studio.ask(f"{bits} bits", quantize=bits)
        loss = whole - np.mean(list(studio.judge(clips).values()))
        yield Line("quantized", f"right, loss by {bits} bits", float(loss), most, most=True)


def tiles(studio: Studio) -> Iterator[Line]:
    """Tiled and untiled, in both directions: a drawn clip, and a gradient of the world as smooth content.

    The tiles are the smallest that have a name ("aggressive"), in time the smallest that encoding allows. A decoder of
    so few weights draws nothing well that its world has not, so shapes keep their size and gradients their colours.
    """
    model = studio.pipeline().networks.model
    encode, decode = (load_component(model, f"video_{n}coder", dtype=mx.float32) for n in ("en", "de"))
    whole, small = TileSize(), TileSize(256, 256, 64, 24, 16)
    side, frames = 448, 25
    scene = studio.scenes[0]
    shapes = tuple(replace(shape, radius=shape.radius * SIZE / side) for shape in scene.shapes)
    contents = {
        "a drawn clip": render(replace(scene, shapes=shapes), side, frames=range(frames))[0],
        "smooth content": render(Scene((), "grey gradient"), side, frames=range(frames))[0],
    }
    shape = VideoShape(frames, side, side).latent(model.traits.video_scale)
    span = 0.0
    for what, pixels in contents.items():
        read = mx.array(normalize_pixels(pixels)[None])
        latents = [_tiled(encode_plan(shape, t), encode, read) for t in (whole, small)]
        one, many = (
            np.array(to_uint8(_tiled(decode_plan(shape, t), decode, latents[0]))[0]).astype(int) for t in (whole, small)
        )
        # What 255 is for pixels: how far latents of the world reach, not those of a picture with nothing on it.
        span = max(span, float(latents[0].max() - latents[0].min()))
        error = float(mx.square(latents[0] - latents[1]).mean())
        if what == "a drawn clip":
            loss = detectors.psnr(one, pixels) - detectors.psnr(many, pixels)
            yield Line("tiles", f"decoding {what}, loss in dB", loss, 1.0, most=True)
        else:
            yield Line("tiles", f"decoding {what}, dB to untiled", detectors.psnr(one, many), 40)
            yield Line("tiles", f"encoding {what}, dB to untiled", 10 * np.log10(span**2 / (error + 1e-12)), 40)
            seams = max(np.abs(np.diff(many - one, axis=axis)).max() for axis in (1, 2))
            yield Line("tiles", "steepest seam, levels of 255", float(seams), 4, most=True)
    sums = [sum(_placed(s, side) for s in decode_plan(shape, small).rows)]
    yield Line("tiles", "blend weights, distance of their sum from 1", float(np.abs(sums[0] - 1).max()), 0, most=True)


def _tiled(plan: Any, network: Any, x: mx.array) -> mx.array:
    return mx.concatenate(list(run_tiles(plan, lambda tile: network(x[(slice(None), *tile.source)]))), axis=1)


def _placed(span: Any, length: int) -> np.ndarray:
    weights = np.zeros(length)
    weights[span.target] = span.weights
    return weights


def variety(studio: Studio) -> Iterator[Line]:
    """Two seeds give two clips, two prompts too, and the same seed gives the same."""
    pipe, text = studio.pipeline(), "a red circle moving right"
    first, again = (pipe(text, seed=1).frames for _ in range(2))
    seed, prompt = pipe(text, seed=2).frames, pipe("a blue star moving up", seed=1).frames
    for what, other in (("seeds", seed), ("prompts", prompt)):
        yield Line(
            "variety", f"two {what}, mean difference in levels", float(np.abs(first.astype(int) - other).mean()), 1
        )
    yield Line(
        "variety", "the same again, largest difference", float(np.abs(first.astype(int) - again).max()), 0, most=True
    )


def _picture(studio: Studio, name: str, pixels: np.ndarray) -> Path:
    path = studio.folder / f"{name}.png"
    save_image(path, pixels)
    return path


ROWS: dict[str, Callable[[Studio], Iterator[Line]]] = {
    "distilled": _from_text("distilled", "distilled"),
    "picture": picture,
    "sound": given_sound,
    "retake": retake,
    "variety": variety,
    "tiles": tiles,
    "quantized": quantized,
    "ic-lora": ic_lora,
    "dev": _from_text("dev", "dev", pipeline="dev"),
    "guidance": guidance,
    "lora": style,
    "dev-two-stage": _from_text("dev-two-stage", "dev", pipeline="dev-two-stage"),
    "dev-two-stage-hq": _from_text("dev-two-stage-hq", "dev", pipeline="dev-two-stage-hq"),
    "keyframes": keyframes,
}


SHARING = (("dev", "lora", "guidance"), ("distilled", "quantized", "retake"))
"""Rows that judge the same clips, and so belong to one process."""


def table(studio: Studio, rows: Sequence[str]) -> Iterator[Line]:
    for row in rows:
        yield from ROWS[row](studio)


def groups(rows: Sequence[str]) -> list[list[str]]:
    """Rows as processes take them, those that take longest first."""
    alone = [(row,) for row in reversed(ROWS) if not any(row in together for together in SHARING)]
    return [g for g in ([row for row in together if row in rows] for together in (*SHARING, *alone)) if g]


def _print_group(rows: Sequence[str], count: int) -> list[Line]:
    begun, lines = time.perf_counter(), []
    with tempfile.TemporaryDirectory() as folder:
        for line in table(Studio(Path(folder), count), rows):
            print(line, f" {time.perf_counter() - begun:6.0f} s", flush=True)
            lines.append(line)
    return lines


def judged(rows: Sequence[str], count: int, jobs: int) -> list[Line]:
    """All lines of the rows, in the table's order."""
    if jobs == 1:
        return _print_group(rows, count)
    with ProcessPoolExecutor(jobs, mp_context=get_context("spawn")) as pool:
        found = pool.map(_print_group, groups(rows), repeat(count))
        lines = sorted((line for group in found for line in group), key=lambda line: list(ROWS).index(line.row))
    print("", *lines, sep="\n")
    return lines


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", action="append", choices=list(ROWS), help="one row; repeatable")
    parser.add_argument("--count", type=int, default=40, help="captions")
    parser.add_argument("--jobs", type=int, default=1, help="processes that share the rows")
    parser.add_argument("--json", type=Path, help="write the lines here too")
    given = parser.parse_args()
    with_fast_blas()
    if not trained.is_packed():
        raise SystemExit("the demo's weights are not packed; there is nothing to judge")
    lines = judged(given.only or list(ROWS), given.count, given.jobs)
    if given.json:
        rows = [{**asdict(line), "met": line.met} for line in lines]
        given.json.write_text(json.dumps({"captions": given.count, "size": SIZE, "lines": rows}, indent=1) + "\n")
    return int(not all(line.met for line in lines))


if __name__ == "__main__":
    raise SystemExit(main())
