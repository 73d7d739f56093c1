"""Predicted against actual allocator peaks of every phase, through the very plan and runner of a clip.

    python benchmarks/peaks.py [--quick] [--only NAME] [--output FILE]

Tiny models in the official layout with six blocks. Every case is planned, run and compared phase by phase; where MLX's
tens of kernels begin shifts from run to run, so every case runs a few times and its highest peak counts. It needs two
free cores: where threads take turns, less of the graph lies ready and peaks stay below the worst case. Writing takes
no memory of MLX: frames leave for the file as they are decoded. A slope is the growth of a phase from the smallest
to the largest size, predicted over actual.
"""

from __future__ import annotations

import argparse
import gc
import importlib
import json
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.blas import with_fast_blas
from benchmarks.bounds import judged

BLOCKS = 6
ROUNDS = 3
SOUND_RUNS = 7
"""Of the phase whose kernels are few and large."""
SIZES = ((64, 64, 9), (128, 128, 17), (128, 192, 33), (192, 256, 33))
"""Height, width, frames."""

BOUNDS = {"error of a peak": 0.10, "too much where chance decides": 0.30, "error of a slope": 0.10}
FEW_KERNELS = ("encode audio", "decode audio", "enhance prompt")
"""Whose peak depends most on where a ten of kernels begins. The worst case is predicted, which a run need not meet; too
little counts as an error as everywhere."""


@dataclass(frozen=True)
class Case:
    """name: in the table. options: of the request. media: makes files in a folder, options that name them. phases: only
    these are compared, all if empty. bits: of the model, None for full precision. loras: as `media`, for a pipeline."""

    name: str
    size: tuple[int, int, int]
    generation: str = "2.3"
    variant: str = "distilled"
    options: Mapping[str, Any] = field(default_factory=dict)
    media: Callable[[Path], dict[str, Any]] = lambda folder: {}
    streamed: bool = False
    phases: tuple[str, ...] = ()
    bits: int | None = None
    loras: Callable[[Path, Any], dict[str, Any]] = lambda folder, pipeline: {}


def lora(option: str, **more: Any) -> Callable[[Path, Any], dict[str, Any]]:
    """A LoRA of rank 96, larger than the tiny transformer itself, as this option of the request."""

    def write(folder: Path, pipeline: Any) -> dict[str, Any]:
        from tests.fixtures.lora_files import write_lora

        path = write_lora(folder / "lora.safetensors", pipeline.networks.linear_shapes(), 96)
        return {option: [(path, 1.0)] if option == "loras" else (path, 1.0), **more}

    return write


def image(folder: Path) -> dict[str, Any]:
    """A picture for the first frame."""
    import numpy as np
    from PIL import Image

    pixels = np.random.default_rng(0).integers(0, 255, (96, 96, 3), np.uint8)
    Image.fromarray(pixels).save(folder / "first.png")
    return {"image": str(folder / "first.png"), "image_crf": 0}


def recording(folder: Path) -> dict[str, Any]:
    """A sound to follow."""
    return {"audio_file": str(_sound(folder))}


def _sound(folder: Path) -> Path:
    import numpy as np

    from mlx_ltx2.media.audio import write_wav
    from mlx_ltx2.states import Waveform

    samples = 0.1 * np.random.default_rng(1).standard_normal((48000, 2)).astype(np.float32)
    write_wav(folder / "sound.wav", Waveform(samples, 48000))
    return folder / "sound.wav"


def source(size: tuple[int, int, int]) -> Callable[[Path], dict[str, Any]]:
    """A clip with sound to work on."""

    def write(folder: Path) -> dict[str, Any]:
        import numpy as np

        from mlx_ltx2.media.audio import read_audio
        from mlx_ltx2.media.writer import ClipWriter

        height, width, count = size
        frames = np.random.default_rng(2).integers(0, 255, (count, height, width, 3), np.uint8)
        with ClipWriter(folder / "source.mp4", fps=24.0, crf=30, audio=read_audio(_sound(folder))) as writer:
            writer.write(frames)
        return {"video": str(folder / "source.mp4")}

    return write


SHORT = {"sigmas": (1.0, 0.7, 0.0)}
TWO_STAGES = {**SHORT, "stage_2_sigmas": (0.5, 0.0)}
LORA_RUNS = (("LoRA", None, False), ("LoRA, 8-bit", 8, False), ("LoRA, 8-bit, streamed", 8, True))
"""Name, bits of the model, whether it is streamed."""
CASES = (
    *(Case("distilled", size, options=TWO_STAGES) for size in SIZES),
    Case("distilled, LTX-2", SIZES[1], "2.0", options=TWO_STAGES),
    Case("image to video", SIZES[1], options=TWO_STAGES, media=image),
    Case("sound to video", SIZES[1], options=TWO_STAGES, media=recording),
    Case("guided", SIZES[1], variant="dev", options={**SHORT, "pipeline": "dev"}),
    Case("guided, LTX-2", SIZES[1], "2.0", "dev", {**SHORT, "pipeline": "dev"}),
    Case(
        "retake",
        SIZES[1],
        options={**SHORT, "pipeline": "retake", "start_time": 0.2, "end_time": 0.5},
        media=source(SIZES[1]),
    ),
    Case("extend", SIZES[1], options={**SHORT, "pipeline": "extend", "extend_frames": 8}, media=source(SIZES[1])),
    Case(  # how long the new prompt is nobody knows before
        "prompt written out",
        SIZES[0],
        options={**TWO_STAGES, "enhance_prompt": True, "max_tokens": 8},
        phases=("enhance prompt",),
    ),
    Case("streamed", SIZES[2], options=TWO_STAGES, streamed=True),
    *(
        Case(name, SIZES[1], options=TWO_STAGES, streamed=streamed, bits=bits, loras=lora("loras"))
        for name, bits, streamed in LORA_RUNS
    ),
    Case(  # the second stage has a LoRA and the first has none
        "two stages, 8-bit",
        SIZES[1],
        variant="dev",
        options=TWO_STAGES,
        bits=8,
        loras=lora("distilled_lora", pipeline="two-stage"),
    ),
)
QUICK = {"distilled": SIZES[:2], "retake": SIZES, "image to video": SIZES}


class Models:
    """Pipelines on tiny models, written when first asked for."""

    def __init__(self, folder: Path):
        self._folder = folder
        self._made: dict[tuple[str, str, int | None], Any] = {}

    def __call__(self, generation: str, variant: str, bits: int | None = None) -> Any:
        from mlx_ltx2 import LTX2Pipeline, convert
        from mlx_ltx2.demo.tiny import write_tiny_checkpoint

        key = (generation, variant, bits)
        if key not in self._made:
            folder = self._folder / f"{generation}-{variant}-{bits}"
            tiny: Any = write_tiny_checkpoint
            written = tiny(folder / "source", generation=generation, variant=variant, blocks=BLOCKS)
            packed: dict[str, Any] = {} if bits is None else {"q_bits": bits, "q_group_size": 32}
            convert(written.folder, folder / "model", variant=variant, **packed)
            self._made[key] = LTX2Pipeline.from_pretrained(
                folder / "model", text_encoder=written.text_encoder, prompt_cache=False
            )
        return self._made[key]


def measure(case: Case, models: Models, rounds: int = ROUNDS) -> dict[str, Any]:
    """Bytes by phase, predicted and actual."""
    import mlx.core as mx

    from mlx_ltx2.memory import limits, release
    from mlx_ltx2.pipelines.budget import MemoryOptions, plan_memory
    from mlx_ltx2.pipelines.run import Run, Session

    pipeline = models(case.generation, case.variant, case.bits)
    actual: dict[str, int] = {}
    with tempfile.TemporaryDirectory() as name:
        height, width, frames = case.size
        options = {**case.options, **case.media(Path(name)), **case.loras(Path(name), pipeline)}
        if "video" not in options:
            options |= {"height": height, "width": width, "num_frames": frames}
        plan = pipeline.plan("a red kite over the sea", **options)
        memory = plan_memory(plan, pipeline.networks, MemoryOptions(streamed=case.streamed or None))
        for number in range(rounds):
            release()
            before = mx.get_active_memory()
            with limits():
                shift(3 * number)
                session = Session(memory=memory)
                running = Run(plan, pipeline.networks, session)
                latents = running.latents()
                for more in range(1 if number else SOUND_RUNS):
                    running.audio(latents)
                    shift(more)
                for _ in running.frames(latents):
                    pass
            del running, latents
            for phase, peak in session.report.peaks.items():
                actual[phase] = max(actual.get(phase, 0), peak - before)
    actual = {phase: peak for phase, peak in actual.items() if not case.phases or phase in case.phases}
    return {
        "case": case.name,
        "generation": case.generation,
        "size": list(case.size),
        "streamed": case.streamed,
        "predicted": {phase: memory.phases.get(phase, 0) for phase in actual},
        "actual": actual,
        "never ran": sorted(set(memory.phases) - set(actual)) if not case.phases else [],
    }


def shift(kernels: int) -> None:
    """Moves where a ten of kernels begins."""
    import mlx.core as mx

    for _ in range(kernels):
        mx.eval(mx.ones(3) + 1)


def errors(row: Mapping[str, Any]) -> dict[str, float]:
    """Phase -> predicted over actual peak, less 1."""
    return {phase: row["predicted"][phase] / peak - 1 for phase, peak in row["actual"].items()}


def slopes(rows: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Phase -> growth from the smallest to the largest size of the plain case, predicted over actual, less 1.

    Phases that hardly grow have none.
    """
    plain = [row for row in rows if row["case"] == "distilled"]
    if len(plain) < 2:
        return {}
    first, last = plain[0], plain[-1]
    found = {}
    for phase, peak in first["actual"].items():
        growth = last["actual"][phase] - peak
        if growth > 0.2 * peak:
            found[phase] = (last["predicted"][phase] - first["predicted"][phase]) / growth - 1
    return found


def chosen(quick: bool, only: str = "") -> Iterator[Case]:
    for case in CASES:
        if only not in case.name:
            continue
        if not quick or case.size in QUICK.get(case.name, ()):
            yield case


def run(quick: bool = False, only: str = "") -> dict[str, Any]:
    from benchmarks.machine import machine

    importlib.import_module("mlx_lm.models.gemma3_text")
    with tempfile.TemporaryDirectory() as name:
        models = Models(Path(name))
        gc.freeze()
        rows = [measure(case, models, 1 if quick else ROUNDS) for case in chosen(quick, only)]
    result = {"benchmark": "peaks", "machine": machine(), "rows": rows}
    return {**result, "bounds": verdicts(result)}


def by_chance(row: Mapping[str, Any], phase: str) -> bool:
    """Whether a run need not meet the worst case: a small streamed layer is over before the next one has been read."""
    return phase in FEW_KERNELS or (phase == "text encoder" and bool(row.get("streamed")))


def verdicts(result: Mapping[str, Any]) -> dict[str, Any]:
    """What of a result is bounded, and whether it holds."""
    rows = result["rows"]
    lucky: list[float] = []
    others: list[float] = []
    for row in rows:
        for phase, error in errors(row).items():
            (lucky if error > 0 and by_chance(row, phase) else others).append(abs(error))
    found = {
        "error of a peak": others,
        "too much where chance decides": lucky,
        "error of a slope": [abs(error) for error in slopes(rows).values()],
    }
    return judged(found, BOUNDS)


def main() -> None:
    with_fast_blas()
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="fewer cases, one run each")
    parser.add_argument("--output", type=Path, default=None)
    parser.add_argument("--only", default="", help="cases whose name has this in it")
    arguments = parser.parse_args()
    result = run(arguments.quick, arguments.only)
    text = json.dumps(result, indent=1)
    if arguments.output:
        arguments.output.write_text(text + "\n")
    print(text)


if __name__ == "__main__":
    main()
