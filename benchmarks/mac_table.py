"""Which Mac runs what: bytes on disk and predicted peaks of the full-size model, computed without any weight.

    python benchmarks/mac_table.py [--bits 16 8 6 4] [--output FILE] [--show] [--readme]

The checkpoint of LTX-2.3 and a Gemma 3 12B are written as sparse files with the real names, shapes and sizes, and
planned by the converter; the folder that it would write gets headers and holes too. On that folder runs the memory plan
that every clip gets. It is told that it is on Metal: norms, attention and the dequantizing of a layer are one kernel
each, and convolutions unfold nothing. Layers are dequantized as they are used, which is what M1 and M2 do and takes the
most. --show computes nothing and prints the stored result; --readme puts it into the README.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import multiprocessing
import sys
import tempfile
from collections.abc import Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

README = Path(__file__).resolve().parents[1] / "README.md"
BEGIN, END = "<!-- benchmarks/mac_table.py -->", "<!-- end of the table -->"
STORED = Path(__file__).parent / "results" / "mac_table.json"
USUAL = (768, 512, 121)
SIZES = ((512, 512, 97), USUAL, (1280, 704, 121))
"""Width, height, frames."""
MEMORY_GB = (16, 24, 32, 48, 64, 96)
USABLE = 0.7
"""Share of a Mac's memory that macOS recommends as a working set; between 0.67 and 0.75 by size."""
NO_LIMIT = 10**12
NAMES = {16: "none (bf16)", 8: "8-bit", 6: "6-bit", 4: "4-bit"}
GEMMA_12B = {
    "hidden_size": 3840,
    "intermediate_size": 15360,
    "num_hidden_layers": 48,
    "num_attention_heads": 16,
    "num_key_value_heads": 8,
    "head_dim": 256,
    "query_pre_attn_scalar": 256,
    "sliding_window": 1024,
    "vocab_size": 262208,
}
PROMPT = "x" * 200
"""Falls apart into 200 tokens."""


def write_gemma(folder: Path) -> Path:
    """Gemma 3 12B as a sparse file, with a tokenizer of as many ids and no sense."""
    from mlx_ltx2.demo.tiny_gemma import gemma_shapes, write_tiny_gemma
    from tests.fixtures.official import write_sparse

    words = [f"word{number}" for number in range(GEMMA_12B["vocab_size"] // 2 - 300)]
    write_tiny_gemma(folder, width=2, words=words)  # a word has two ids
    config = json.loads((folder / "config.json").read_text())
    config["text_config"] |= GEMMA_12B
    config["torch_dtype"] = "bfloat16"
    (folder / "config.json").write_text(json.dumps(config))
    write_sparse(folder / "model.safetensors", dict(gemma_shapes(config["text_config"])), {"format": "pt"})
    return folder


def write_model(folder: Path, bits: int) -> tuple[Path, int]:
    """A converted folder of headers and holes, and the bytes that it would take."""
    from mlx_ltx2.weights.index import INDEX, SHARD_INDEX, index_content, write_json
    from mlx_ltx2.weights.quantize import Quantization
    from mlx_ltx2_convert.options import Options
    from mlx_ltx2_convert.plan import make_plan
    from mlx_ltx2_convert.shards import weight_map
    from mlx_ltx2_convert.sources import Sources
    from tests.fixtures import official

    source = folder / official.FILES["22b-distilled"]
    official.write_sparse(source, official.checkpoint("22b-distilled"), official.metadata("22b-distilled"))
    shapes, config = official.upsampler("spatial-x2")
    upsampler = folder / "ltx-2.3-spatial-upscaler-x2-1.1.safetensors"
    official.write_sparse(upsampler, shapes, {"config": json.dumps(config)})
    quantization = None if bits == 16 else Quantization.from_options(bits=bits)
    sources = Sources(source, {"spatial_upsampler": upsampler}, text_encoder=write_gemma(folder / "gemma"))
    plan = make_plan(sources, Options(quantization=quantization))
    model = folder / "model"
    places: dict[str, str] = {}
    for shard in plan.shards:
        target = model / shard.file
        target.parent.mkdir(parents=True, exist_ok=True)
        places[shard.component] = str(Path(shard.file).parent)
        with target.open("wb") as file:
            file.write(shard.header)
            file.truncate(shard.nbytes)
    for name, place in places.items():
        own = [shard for shard in plan.shards if shard.component == name]
        write_json(model / place / SHARD_INDEX, weight_map(own))
        write_json(model / place / "config.json", plan.configs[name])
    for name, path in plan.copies.items():
        (model / name).write_bytes(path.read_bytes())
    write_json(model / INDEX, index_content(plan.traits, places, quantization, [], [], "mac_table"))
    return model, plan.output_bytes


@contextlib.contextmanager
def as_on_metal() -> Iterator[None]:
    """Graphs are traced and counted as Metal would run them."""
    import mlx.core as mx

    from mlx_ltx2.models.layers import attention
    from mlx_ltx2.pipelines import traced
    from tests.fixtures.graph import fused

    def attend(q: mx.array, k: mx.array, v: mx.array, **_: Any) -> mx.array:
        nothing = [mx.broadcast_to(x[:, :1, :0], (*q.shape[:2], 0, q.shape[3])) for x in (k, v)]
        return mx.concatenate([q, *nothing], axis=2)  # an array of its own, made once k and v are there

    def dequantize(w: mx.array, scales: mx.array, biases: Any, group_size: int, bits: int, **more: Any) -> mx.array:
        values = scales.astype(more["dtype"])[..., None]
        return mx.broadcast_to(values, (*scales.shape, group_size)).reshape(len(scales), -1)  # one array of its size

    counted, pieces, plain = traced.footprint, attention.CPU_QUERIES, mx.dequantize
    traced.footprint = partial(counted, device=mx.Device(mx.gpu))
    attention.CPU_QUERIES = 10**9
    mx.dequantize = dequantize
    try:
        with fused():
            mx.fast.scaled_dot_product_attention = attend
            yield
    finally:
        traced.footprint, attention.CPU_QUERIES, mx.dequantize = counted, pieces, plain


def measure(bits: int, sizes: tuple[tuple[int, int, int], ...] = SIZES) -> dict[str, Any]:
    """Bytes of a quantization: on disk, and the plan's peaks by size."""
    from mlx_ltx2 import LTX2Pipeline
    from mlx_ltx2.errors import ResourceError
    from mlx_ltx2.pipelines.budget import MemoryOptions, plan_memory

    with tempfile.TemporaryDirectory() as name, as_on_metal():
        model, disk = write_model(Path(name), bits)
        pipeline = LTX2Pipeline.from_pretrained(model, prompt_cache=False)
        rows: list[dict[str, Any]] = []
        for width, height, frames in sizes:
            plan = pipeline.plan(PROMPT, width=width, height=height, num_frames=frames)

            def planned(limit: int, streamed: bool | None = None, plan: Any = plan) -> Any:
                return plan_memory(plan, pipeline.networks, MemoryOptions(limit, streamed))

            row: dict[str, Any] = {"size": [width, height, frames]}
            for form, streamed in (("whole", False), ("streamed", True)):
                memory = planned(NO_LIMIT, streamed)
                row[form] = {"peak": memory.peak, "phases": dict(memory.phases)}
            row["components"] = dict(memory.components)
            row["machines"] = {}
            for machine in MEMORY_GB if (width, height, frames) == USUAL else ():
                try:
                    kept = planned(int(USABLE * machine * 1e9)).resident_blocks
                except ResourceError:
                    kept = -1
                row["machines"][str(machine)] = "whole" if kept is None else kept
            rows.append(row)
            print(json.dumps(rows[-1]), file=sys.stderr, flush=True)
    return {"bits": bits, "disk": disk, "sizes": rows}


def in_a_process(bits: int) -> dict[str, Any]:
    """`measure` in a process of its own: what was traced for one quantization is no use to another."""
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=context) as pool:
        return pool.submit(measure, bits).result()


def table(result: Mapping[str, Any]) -> str:
    """The README's two tables."""
    from benchmarks.pages import table as markdown

    def gigabytes(size: int) -> str:
        return f"{size / 1e9:.1f}"

    columns = [f"{width}x{height}, {frames}" for width, height, frames in SIZES]
    rows, machines = [], []
    for entry in result["rows"]:
        cells = [f"{gigabytes(s['whole']['peak'])} / {gigabytes(s['streamed']['peak'])}" for s in entry["sizes"]]
        rows.append([NAMES[entry["bits"]], gigabytes(entry["disk"]), *cells])
    middle = SIZES.index(USUAL)
    for machine in MEMORY_GB:
        fates = [fate(entry["sizes"][middle]["machines"][str(machine)]) for entry in result["rows"]]
        machines.append([f"{machine} GB", *fates])
    head = ["quantization", "on disk, GB", *columns]
    names = [NAMES[entry["bits"]] for entry in result["rows"]]
    return "\n".join([*markdown(head, rows), *markdown(["Mac with", *names], machines)]).rstrip() + "\n"


def fate(kept: int | str) -> str:
    """What becomes of the transformer's 48 blocks."""
    if kept == "whole":
        return "whole"
    return "no" if kept == -1 else f"streamed, {kept} blocks stay"


def in_readme(text: str, tables: str) -> str:
    """The README with these tables between their marks."""
    before, after = text.index(BEGIN), text.index(END)
    return f"{text[:before]}{BEGIN}\n{tables}{text[after:]}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--bits", type=int, nargs="+", default=list(NAMES), choices=list(NAMES))
    parser.add_argument("--output", type=Path, default=STORED)
    parser.add_argument("--show", action="store_true", help="compute nothing, print the stored tables")
    parser.add_argument("--readme", action="store_true", help="put the tables into the README")
    options = parser.parse_args()
    if not options.show:
        from benchmarks.machine import machine

        rows = [in_a_process(bits) for bits in options.bits]
        result = {"benchmark": "mac_table", "machine": machine(), "rows": rows}
        options.output.write_text(json.dumps(result, indent=1) + "\n")
    tables = table(json.loads(options.output.read_text()))
    print(tables)
    if options.readme:
        README.write_text(in_readme(README.read_text(), tables))


if __name__ == "__main__":
    main()
