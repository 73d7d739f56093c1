"""How each benchmark's result looks on the report's page: verdicts, tables and plots."""

from __future__ import annotations

import importlib
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

Result = Mapping[str, Any]
Page = Callable[[Result, Path], list[str]]
JUDGED = ("denoise_step", "peaks", "vae_decode", "streaming", "quant_error", "full_size_step")
"""Benchmarks that have bounds."""


def line_plot(
    series: Mapping[str, Sequence[tuple[float, float]]], x: str, y: str, size: tuple[int, int] = (640, 320)
) -> str:
    """An SVG with one polyline per series, both axes from zero."""
    width, height, left, bottom = *size, 70, 45
    points = [p for line in series.values() for p in line]
    right, top = max(p[0] for p in points), 1.08 * max(p[1] for p in points)
    colours = ("#0b6", "#06b", "#b60", "#b06", "#666", "#360")

    def place(px: float, py: float) -> str:
        inner_width, inner_height = width - left - 150, height - bottom - 15
        return f"{left + px / right * inner_width:.1f},{15 + (1 - py / top) * inner_height:.1f}"

    space = 'xmlns="http://www.w3.org/2000/svg"'
    parts = [f'<svg {space} viewBox="0 0 {width} {height}" font-family="sans-serif" font-size="12">']
    parts.append(f'<rect width="{width}" height="{height}" fill="white"/>')
    parts.append(f'<polyline points="{place(0, top)} {place(0, 0)} {place(right, 0)}" fill="none" stroke="black"/>')
    for i in range(1, 5):
        (x1, y1), (x2, _) = (place(p, top * i / 5).split(",") for p in (0, right))
        parts.append(f'<line x1="{x1}" y1="{y1}" x2="{x2}" y2="{y1}" stroke="#ddd"/>')
        parts.append(f'<text x="{left - 6}" y="{float(y1) + 4}" text-anchor="end">{top * i / 5:.3g}</text>')
    for px in sorted({p[0] for p in points}):
        at = place(px, 0).split(",")
        parts.append(f'<text x="{at[0]}" y="{float(at[1]) + 16}" text-anchor="middle">{px:g}</text>')
    for number, (name, line) in enumerate(series.items()):
        colour = colours[number % len(colours)]
        path = " ".join(place(*p) for p in line)
        parts.append(f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="2"/>')
        parts.append(f'<text x="{width - 142}" y="{30 + 18 * number}" fill="{colour}">{name}</text>')
    parts.append(f'<text x="{(left + width - 150) / 2}" y="{height - 8}" text-anchor="middle">{x}</text>')
    parts.append(
        f'<text x="14" y="{height / 2}" transform="rotate(-90 14 {height / 2})" text-anchor="middle">{y}</text>'
    )
    return "\n".join([*parts, "</svg>"]) + "\n"


def table(head: Sequence[str], rows: Sequence[Sequence[Any]]) -> list[str]:
    lines = [head, ["---"] * len(head), *rows]
    return ["| " + " | ".join(str(cell) for cell in line) + " |" for line in lines] + [""]


def verdicts(result: Result) -> Mapping[str, Any]:
    """Bounds of a result by name, judged anew by the benchmark that made it; empty for one that has none."""
    if result.get("benchmark") not in JUDGED:
        return {}
    return importlib.import_module(f"benchmarks.{result['benchmark']}").verdicts(result)


def verdict(entry: Mapping[str, Any] | None) -> list[str]:
    """Bound, worst value found, and whether that holds."""
    if entry is None:
        return ["", "", "not measured"]
    sign = "at least" if entry["least"] else "at most"
    return [f"{sign} {entry['bound']:g}", f"{entry['worst']:.4g}", "holds" if entry["holds"] else "**BROKEN**"]


def verdict_table(result: Result) -> list[str]:
    return table(["bound", "", "worst", "verdict"], [[n, *verdict(e)] for n, e in verdicts(result).items()])


def denoise_page(result: Result, docs: Path) -> list[str]:
    rows = result["rows"]
    lines = ["## Denoising pass", "", "4 blocks, video 1024 and audio 512 wide, 8 heads, float32, random weights."]
    lines += ["Ours against the plain per-token form (`benchmarks/plain.py`), same weights, same results. Ours has its"]
    lines += ["rotation tables ready, in LTX-2 (19B) the text's keys and values too, as every step of a run after the"]
    lines += ["first, and attends in pieces on the CPU; the plain form does none of that.", ""]
    lines += verdict_table(result)
    cells = []
    for r in rows:
        times = [f"{r['cpu_time'][a]['median_ms']:.0f}" for a in ("ours T2V", "ours I2V", "plain T2V", "plain I2V")]
        ratios = [r["ours / plain, T2V"]["paired_median"], r["I2V / T2V, ours"]["paired_median"]]
        peaks = f"{r['peak_mib']['ours T2V']} / {r['peak_mib']['plain T2V']}"
        cells.append(
            [r["generation"], r["tokens"], r["gflop"], *times, *ratios, peaks, f"{r['largest_difference']:.0e}"]
        )
    head = ["model", "tokens", "GFLOP", "ours T2V ms", "ours I2V", "plain T2V", "plain I2V", "ours/plain", "I2V/T2V"]
    lines += table([*head, "peak MiB ours/plain", "largest difference"], cells)
    arms = ("ours T2V", "ours I2V", "plain T2V")
    for generation in sorted({r["generation"] for r in rows}):
        mine = [r for r in rows if r["generation"] == generation]
        series = {arm: [(r["gflop"], r["cpu_time"][arm]["min_ms"]) for r in mine] for arm in arms}
        (docs / f"pass-{generation}.svg").write_text(line_plot(series, "GFLOP of the pass", "ms"))
        lines += [f"![time of a pass against its FLOPs, {generation}]({docs.name}/pass-{generation}.svg)", ""]
    lines += ["One block as Metal would run it, bfloat16. The bound on kernels is for text to video; an image adds a"]
    lines += ["second noise level, whose tokens are modulated by themselves.", ""]
    graph = result["graph"]
    columns = ("kernels", "casts", "copies", "nodes")
    return lines + table(["block", *columns], [[n, *(f"{g[c]:g}" for c in columns)] for n, g in graph.items()])


def quant_page(result: Result, docs: Path) -> list[str]:
    rows = result["rows"]
    kinds = list(next(iter(rows.values()))["weights"])
    lines = [
        "## Quantization",
        "",
        f"Relative error against float32, {result['weights']} weights: of the weights by layer",
    ]
    lines += [f"kind, and of what {result['blocks']} blocks add to the tokens.", "", *verdict_table(result)]
    cells = []
    for name, row in rows.items():
        stack = [f"{100 * row['stack'][s][-1]:.2f} %" for s in ("video", "audio")]
        cells.append([name, row["bits_per_weight"], *(f"{100 * row['weights'][k]:.2f} %" for k in kinds), *stack])
    lines += table(["recipe", "bits", *kinds, "stack, video", "stack, audio"], cells)
    series = {
        n: [(i + 1, 100 * e) for i, e in enumerate(r["stack"]["video"])] for n, r in rows.items() if "group 32" not in n
    }
    (docs / "quantization.svg").write_text(line_plot(series, "blocks", "error of the video tokens, %"))
    return [*lines, f"![error through the stack]({docs.name}/quantization.svg)", ""]


def peaks_page(result: Result, docs: Path) -> list[str]:
    from benchmarks.peaks import errors, slopes

    lines = ["## Allocator peaks by phase", "", "Tiny models of six blocks through plan and runner; MB, predicted from"]
    lines += [
        "headers and shapes before anything loads, and the allocator's own peak. Writing a file takes none of MLX's",
        "memory: frames leave for it while they are decoded. The worst case is predicted, with a thread that builds",
        "the graph ahead of the one that runs it; without two free cores peaks stay further below it.",
    ]
    lines += ["", *verdict_table(result)]
    cells = []
    for row in result["rows"]:
        off = errors(row)
        size = "{1}x{0}, {2}".format(*row["size"])
        for phase, peak in row["actual"].items():
            predicted = f"{row['predicted'][phase] / 1e6:.2f}"
            cells.append([row["case"], size, phase, predicted, f"{peak / 1e6:.2f}", f"{100 * off[phase]:+.1f} %"])
    lines += table(["case", "size, frames", "phase", "predicted", "actual", "off by"], cells)
    later: dict[str, list[str]] = {row["commit"]: [] for row in result["rows"] if "commit" in row}
    for row in result["rows"]:
        if "commit" in row:
            later[row["commit"]].append(row["case"])
    lines += [f"Measured later, at commit {c}: {', '.join(cases)}.\n" for c, cases in later.items()]
    growth = slopes(result["rows"])
    lines += ["Growth from the smallest to the largest size of the distilled pipeline, predicted over actual:", ""]
    return lines + table(["phase", "off by"], [[phase, f"{100 * e:+.1f} %"] for phase, e in growth.items()])


def streaming_page(result: Result, docs: Path) -> list[str]:
    lines = ["## Streamed denoising", "", "Blocks read from the disk at every step against all of them in memory."]
    lines += [
        "Peaks are beyond what lives before the first step. Times are CPU times, the copying of weights included;"
    ]
    lines += ["how much of the disk's time a Mac hides behind its arithmetic is not measured here.", ""]
    lines += verdict_table(result)
    columns = ("bits", "passes", "resident", "blocks", "block_mb", "bytes_read", "read_ratio", "differ", "time_ratio")
    cells = []
    for row in result["rows"]:
        own = [row[c] for c in columns]
        cells.append([*own, f"{row['peak_mb']['streamed']} / {row['peak_mb']['resident']}"])
    return lines + table([*columns, "peak MB, streamed / resident"], cells)


def decode_page(result: Result, docs: Path) -> list[str]:
    lines = ["## Video decode", "", "Streamed over time, in one piece, and in temporal tiles; 128x128 pixels, random"]
    lines += [
        "weights, float32. The CPU backend holds every convolution's input unfolded 27 times, Metal does not.",
        "",
    ]
    lines += verdict_table(result)
    cells, ways = [], ("whole", "streamed", "tiled")
    for row in result["rows"]:
        peaks = [row["peak_mb"][way] for way in ways]
        ratios = [row["time_ratio"][way]["paired_median"] for way in ways[1:]]
        quality = [row["psnr"][way] for way in ways[1:]]
        cells.append([row["generation"], row["frames"], *peaks, row["predicted_mb"], *ratios, *quality])
    head = ["decoder", "frames", *(f"peak MB, {way}" for way in ways), "streamed, predicted"]
    head += [f"time / whole, {way}" for way in ways[1:]] + [f"PSNR dB, {way}" for way in ways[1:]]
    lines += table(head, cells)
    for generation in sorted({row["generation"] for row in result["rows"]}):
        mine = [row for row in result["rows"] if row["generation"] == generation]
        series = {way: [(row["frames"], row["peak_mb"][way]) for row in mine] for way in ways}
        name = f"decode-{generation.replace(' ', '-')}.svg"
        (docs / name).write_text(line_plot(series, "frames", "peak beyond the weights, MB"))
        lines += [f"![peak of a decode against its frames, {generation}]({docs.name}/{name})", ""]
    return lines


def full_size_page(result: Result, docs: Path) -> list[str]:
    lines = ["## Full size", "", f"The 22B transformer of {result['blocks']} blocks, {result['bits']}-bit, zeros for"]
    lines += [f"weights ({result['model_bytes'] / 1e9:.1f} GB in a sparse file), {result['resident_blocks']} blocks"]
    lines += [f"resident, the others streamed; {result['text_tokens']} text tokens, activations in"]
    lines += [f"{result['activations']}; the smallest legal two-stage clip, one step of each stage.", ""]
    lines += verdict_table(result)
    cells = []
    for stage in result["stages"]:
        size = "{}x{}, {}".format(*stage["size"])
        read, peak = f"{stage['bytes_read'] / 1e9:.2f}", f"{stage['peak_bytes'] / 1e9:.2f}"
        cells.append([size, stage["video_tokens"], stage["audio_tokens"], stage["seconds"], peak, read])
    return lines + table(["size, frames", "video tokens", "audio tokens", "seconds", "peak GB", "read GB"], cells)


def mac_page(result: Result, docs: Path) -> list[str]:
    from benchmarks.mac_table import table as tables

    lines = [
        "## Which Mac runs what",
        "",
        "Peaks in GB as the memory plan predicts them for the full-size LTX-2.3 with",
    ]
    lines += [
        "a Gemma of the same bits: whole networks / streamed (`--low-memory`). Computed from shapes, as Metal would"
    ]
    lines += ["run them (`benchmarks/mac_table.py`); nothing was measured on a Mac.", ""]
    return [*lines, tables(result)]


def device_page(result: Result, docs: Path) -> list[str]:
    lines = [f"## {result['machine']['chip']}", "", f"Best product: {result['best_product']} TFLOP/s.", ""]
    columns = ("bits", "tokens", "seconds", "rate", "share_of_best_product", "activations_mb")
    return lines + table(columns, [[row[c] for c in columns] for row in result["passes"]])


def any_page(result: Result, docs: Path) -> list[str]:
    """A result this program knows no layout for, as its JSON."""
    return [f"## {result.get('benchmark', 'more')}", "", "```json", json.dumps(result, indent=1), "```", ""]


PAGES: dict[str, Page] = {
    "denoise_step": denoise_page,
    "peaks": peaks_page,
    "vae_decode": decode_page,
    "streaming": streaming_page,
    "quant_error": quant_page,
    "full_size_step": full_size_page,
    "mac_table": mac_page,
    "mac": device_page,
    "cuda": device_page,
}
