"""Run the benchmarks that need no Mac, write their JSON, and make docs/benchmarks.md with its plots.

    python benchmarks/report.py [--quick] [--only NAME ...] [--pages-only] [--results FOLDER] [--docs FOLDER]

Each benchmark is a program of its own and writes one JSON file; this one starts those that are quick and turns every
result it finds into a section. Results of `mac.py`, `cuda.py` or longer runs are shown if their JSON lies there too.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
Result = Mapping[str, Any]
Page = Callable[[Result, Path], list[str]]

QUICK = {
    "denoise_step": ["--rounds", "2", "--tokens", "384", "1024", "--generations", "22B"],
    "quant_error": ["--blocks", "3"],
    "vae_decode": ["--rounds", "1", "--frames", "17", "33", "--generations", "22B", "--channels", "16"],
}
FULL: dict[str, list[str]] = {
    "denoise_step": ["--rounds", "5"],
    "quant_error": [],
    "vae_decode": ["--rounds", "3", "--channels", "16"],
}


def run(name: str, options: Sequence[str], results: Path) -> None:
    """One benchmark in a process of its own."""
    command = [sys.executable, str(HERE / f"{name}.py"), *options, "--output", str(results / f"{name}.json")]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)


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


def mark(value: float | None, bound: float) -> str:
    if value is None:
        return "not measured"
    return f"{value:.3g} ({'within' if value <= bound else 'ABOVE'} {bound:g})"


def denoise_page(result: Result, docs: Path) -> list[str]:
    worst, rows = result["worst"], result["rows"]
    lines = ["## Denoising pass", "", "4 blocks, video 1024 and audio 512 wide, 8 heads, float32, random weights."]
    lines += ["Ours against the plain per-token form (`benchmarks/plain.py`), same weights, same results. Ours has its"]
    lines += ["rotation tables ready and, attends in pieces on the CPU; the plain form does neither.", ""]
    lines += table(
        ["what", "worst of all sizes"],
        [
            ["ours / plain, text to video", mark(worst["ours / plain, T2V"], 0.85)],
            ["image to video / text to video, ours", mark(worst["I2V / T2V, ours"], 1.03)],
            ["time against FLOPs, largest residual", mark(worst["fit residual"], 0.10)],
        ],
    )
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
    lines += ["One block as Metal would run it, bfloat16 (bound: 130 kernels for LTX-2.3 text to video, no cast):", ""]
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
    lines += [f"kind, and of what {result['blocks']} blocks add to the tokens.", ""]
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


def device_page(result: Result, docs: Path) -> list[str]:
    lines = [f"## {result['machine']['chip']}", "", f"Best product: {result['best_product']} TFLOP/s.", ""]
    columns = ("bits", "tokens", "seconds", "rate", "share_of_best_product", "activations_mb")
    return lines + table(columns, [[row[c] for c in columns] for row in result["passes"]])


def any_page(result: Result, docs: Path) -> list[str]:
    """A result this program knows no layout for, as its JSON."""
    return [f"## {result.get('benchmark', 'more')}", "", "```json", json.dumps(result, indent=1), "```", ""]


PAGES: dict[str, Page] = {
    "denoise_step": denoise_page,
    "quant_error": quant_page,
    "mac": device_page,
    "cuda": device_page,
}


def page(results: Path, docs: Path) -> str:
    """The report of everything under `results`."""
    plots = docs / "benchmarks"
    plots.mkdir(parents=True, exist_ok=True)
    lines = [
        "# Benchmarks",
        "",
        "Made by `python benchmarks/report.py`. Times are CPU times of one thread; they say how",
    ]
    lines += [
        "much work a form does, not how fast a Mac is. Nothing here was measured on Metal unless a section says so.",
        "",
    ]
    for path in sorted(results.glob("*.json")):
        result = json.loads(path.read_text())
        lines += PAGES.get(result.get("benchmark", ""), any_page)(result, plots)
        about = result.get("machine", {})
        if about:
            lines += [
                "<sub>"
                + ", ".join(f"{k} {about[k]}" for k in ("chip", "cores", "mlx", "blas", "commit", "load"))
                + "</sub>",
                "",
            ]
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="fewer sizes and rounds")
    parser.add_argument("--only", nargs="+", choices=list(FULL), default=list(FULL))
    parser.add_argument("--pages-only", action="store_true", help="run nothing, make the page again")
    parser.add_argument("--results", type=Path, default=HERE / "results")
    parser.add_argument("--docs", type=Path, default=HERE.parent / "docs")
    arguments = parser.parse_args()
    arguments.results.mkdir(parents=True, exist_ok=True)
    for name in [] if arguments.pages_only else arguments.only:
        run(name, (QUICK if arguments.quick else FULL)[name], arguments.results)
    target = arguments.docs / "benchmarks.md"
    target.write_text(page(arguments.results, arguments.docs))
    print(f"wrote {target}")


if __name__ == "__main__":
    main()
