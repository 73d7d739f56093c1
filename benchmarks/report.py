"""Run every benchmark that needs no Mac, and make docs/benchmarks.md with a verdict on every bound, and plots.

    python benchmarks/report.py [--quick] [--long] [--only NAME ...] [--pages-only] [--results FOLDER] [--docs FOLDER]

Each benchmark is a program of its own that writes one JSON file; they run one after the other, each in its own process.
The full-size step takes half an hour and more, and the table of Macs some minutes: they run with --long only, and
otherwise their stored results are shown.
Results of `mac.py` and `cuda.py` are shown if their JSON lies there too. --quick takes fewer sizes and rounds, and
leaves the stored results and the page alone: its own go to benchmarks/results/quick.
The exit status is 1 if a bound is broken or a row has no result.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.pages import PAGES, Result, any_page, table, verdict, verdicts

HERE = Path(__file__).resolve().parent


@dataclass(frozen=True)
class Row:
    """One row of the summary. benchmark: whose result it is. bounds: names of the ones that belong to it, all if
    empty."""

    title: str
    benchmark: str
    bounds: tuple[str, ...] = ()


ROWS = (
    Row("denoising pass", "denoise_step", ("time, ours / plain, T2V", "time, I2V / T2V, ours")),
    Row("time against FLOPs", "denoise_step", ("largest residual of the fit",)),
    Row("allocator peaks by phase", "peaks"),
    Row("graph of one block", "denoise_step", ("kernels of a block, LTX-2.3 T2V", "casts in a bfloat16 block")),
    Row("video decode", "vae_decode"),
    Row("streamed denoising", "streaming"),
    Row("quantization", "quant_error"),
    Row("full size, 2 cores", "full_size_step"),
)
ORDER = (*dict.fromkeys(row.benchmark for row in ROWS), "mac_table")
LONG = ("full_size_step", "mac_table")
"""Run only when asked for."""

QUICK = {
    "denoise_step": ["--rounds", "1", "--tokens", "384", "--generations", "22B"],
    "peaks": ["--quick"],
    "vae_decode": ["--rounds", "1", "--frames", "17", "33", "--generations", "22B", "--channels", "16"],
    "streaming": ["--blocks", "4", "--tokens", "64", "--rounds", "1"],
    "quant_error": ["--blocks", "2"],
    "full_size_step": ["--blocks", "2"],
    "mac_table": [],
}
FULL: dict[str, list[str]] = {
    "denoise_step": ["--rounds", "5"],
    "peaks": [],
    "vae_decode": ["--rounds", "3", "--channels", "16"],
    "streaming": [],
    "quant_error": [],
    "full_size_step": [],
    "mac_table": [],
}


def run(name: str, options: Sequence[str], results: Path) -> str | None:
    """One benchmark in a process of its own; what went wrong, if it left no result."""
    target, part = results / f"{name}.json", results / f"{name}.json.part"
    part.unlink(missing_ok=True)
    command = [sys.executable, str(HERE / f"{name}.py"), *options, "--output", str(part)]
    done = subprocess.run(command, check=False, stdout=subprocess.DEVNULL)
    if not part.is_file():
        return f"{name} ended with status {done.returncode} and left no result"
    part.replace(target)
    return None


def summary(results: Mapping[str, Result]) -> tuple[list[str], list[str]]:
    """The table of all rows, and what is wrong: broken bounds and rows without a result."""
    rows, wrong = [], []
    for row in ROWS:
        found = verdicts(results[row.benchmark]) if row.benchmark in results else {}
        for name in row.bounds or tuple(found) or ("",):
            entry = found.get(name)
            rows.append([row.title, name, *verdict(entry)])
            if entry is None:
                wrong.append(f"{row.title}: {name or row.benchmark} was not measured")
            elif not entry["holds"]:
                wrong.append(f"{row.title}: {name} is {entry['worst']:g}, bound {entry['bound']:g}")
    return table(["what", "bound on", "must be", "worst found", "verdict"], rows), wrong


def stored(results: Path) -> dict[str, Result]:
    """Results by benchmark (those of other programs by file), in the order of the page."""
    read = [(path.stem, json.loads(path.read_text())) for path in sorted(results.glob("*.json"))]
    found = {result.get("benchmark", stem): result for stem, result in read}
    rank = {name: number for number, name in enumerate(ORDER)}
    return dict(sorted(found.items(), key=lambda item: rank.get(item[0], len(rank))))


def page(results: Path, docs: Path) -> tuple[str, list[str]]:
    """The report of everything under `results`, and what is wrong with it."""
    plots = docs / "benchmarks"
    plots.mkdir(parents=True, exist_ok=True)
    found = stored(results)
    overview, wrong = summary(found)
    lines = [
        "# Benchmarks",
        "",
        "Made by `python benchmarks/report.py`. Times are CPU times of one thread; they say how",
    ]
    lines += [
        "much work a form does, not how fast a Mac is. Nothing here was measured on Metal unless a section says so."
    ]
    lines += ["", *overview]
    for name, result in found.items():
        lines += PAGES.get(name, any_page)(result, plots)
        about = result.get("machine", {})
        if about:
            kept = ("chip", "cores", "mlx", "blas", "commit", "load")
            lines += ["<sub>" + ", ".join(f"{k} {about[k]}" for k in kept) + "</sub>", ""]
    return "\n".join(lines).rstrip() + "\n", wrong


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="fewer sizes and rounds; nothing that is kept changes")
    parser.add_argument("--long", action="store_true", help="run the full-size step as well")
    parser.add_argument("--only", nargs="+", choices=ORDER, default=None)
    parser.add_argument("--pages-only", action="store_true", help="run nothing, make the page again")
    parser.add_argument("--results", type=Path, default=None)
    parser.add_argument("--docs", type=Path, default=None)
    arguments = parser.parse_args()
    quick = HERE / "results" / "quick"
    results = arguments.results or (quick if arguments.quick else HERE / "results")
    docs = arguments.docs or (quick if arguments.quick else HERE.parent / "docs")
    results.mkdir(parents=True, exist_ok=True)
    wanted = arguments.only or [name for name in ORDER if arguments.long or name not in LONG]
    failed = []
    for name in () if arguments.pages_only else wanted:
        start = time.perf_counter()
        fault = run(name, (QUICK if arguments.quick else FULL)[name], results)
        print(fault or f"{name}: {time.perf_counter() - start:.0f} s", flush=True)
        failed += [fault] if fault else []
    text, wrong = page(results, docs)
    (docs / "benchmarks.md").write_text(text)
    print(f"wrote {docs / 'benchmarks.md'}", *failed, *wrong, sep="\n")
    if arguments.quick:  # fewer sizes leave some rows without a value
        wrong = [line for line in wrong if not line.endswith("was not measured")]
    return 1 if failed or wrong else 0


if __name__ == "__main__":
    sys.exit(main())
