"""Convert a full-size checkpoint and report peak memory and speed.

The checkpoint is a sparse file: the real header, names, shapes and size, and a hole for data. It takes a few megabytes
on the disk and reads as zeros. Each conversion runs in a process of its own, whose peak resident memory is reported.

    python benchmarks/convert_full_size.py --workdir DIR [--which 22b-distilled] [--formats q4 bf16] [--output FILE]

A 4-bit conversion of everything writes 17 GB, a bf16 one 46 GB; outputs are deleted one by one.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import resource
import shutil
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.machine import machine
from tests.fixtures import official

FORMATS: dict[str, dict[str, Any]] = {
    "bf16": {},
    "q4": {"quantize": True, "q_bits": 4},
    "q8": {"quantize": True, "q_bits": 8},
    "mxfp8": {"quantize": True, "q_mode": "mxfp8"},
}


def convert_once(source: Path, output: Path, options: dict[str, Any], answer: Any) -> None:
    """Runs in a child process."""
    from mlx_ltx2_convert import convert

    before, start = _peak_bytes(), time.process_time()
    report = convert(source, output, text_encoder=False, **options)
    answer.put(
        {
            "seconds": round(report.seconds, 1),
            "cpu_seconds": round(time.process_time() - start, 1),
            "read_gb": round(report.bytes_read / 1e9, 2),
            "written_gb": round(report.bytes_written / 1e9, 2),
            "read_mb_per_s": round(report.bytes_read / report.seconds / 1e6),
            "peak_rss_gb": round(_peak_bytes() / 1e9, 3),
            "rss_before_gb": round(before / 1e9, 3),
        }
    )


def _peak_bytes() -> int:
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--workdir", type=Path, default=None, help="folder for the sparse source and the outputs")
    parser.add_argument("--which", choices=list(official.FILES), default="22b-distilled")
    parser.add_argument("--formats", nargs="+", choices=list(FORMATS), default=["q4"])
    parser.add_argument("--components", nargs="+", default=None, help="convert only these")
    parser.add_argument("--output", type=Path, help="JSON file of all rows")
    arguments = parser.parse_args()
    rows = []
    if arguments.workdir is not None:
        arguments.workdir.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=arguments.workdir) as name:
        folder = Path(name)
        source = folder / official.FILES[arguments.which]
        official.write_sparse(source, official.checkpoint(arguments.which), official.metadata(arguments.which))
        for kind in arguments.formats:
            options = {**FORMATS[kind], "components": arguments.components}
            context = multiprocessing.get_context("spawn")
            answer = context.Queue()
            child = context.Process(target=convert_once, args=(source, folder / kind, options, answer))
            child.start()
            result = answer.get() if _finished(child, answer) else {"failed": child.exitcode}
            child.join()
            shutil.rmtree(folder / kind, ignore_errors=True)
            rows.append({"checkpoint": arguments.which, "format": kind, **result})
            print(json.dumps(rows[-1]), flush=True)
    if arguments.output:
        arguments.output.write_text(json.dumps({"machine": machine(), "rows": rows}, indent=1) + "\n")


def _finished(child: Any, answer: Any) -> bool:
    """True once the child has answered, False if it died without an answer."""
    while answer.empty():
        child.join(1)
        if child.exitcode not in (None, 0):
            return False
    return True


if __name__ == "__main__":
    main()
