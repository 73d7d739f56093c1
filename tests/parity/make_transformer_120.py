"""Writes tests/recorded/transformer_120.safetensors: outputs of the official 1.2.0 transformer for CASES_120.

1.2.0 is not on a package index, so it is no test dependency; these outputs pin its rule for the audio-video
modulation instead. Run once, from the repository root, with torch, einops and a checkout of the official
code:

    python -m tests.parity.make_transformer_120 <checkout>/packages/ltx-core/src

Weights and inputs are drawn by numpy from each case's seed; the file holds outputs only.
"""

from __future__ import annotations

import sys
from pathlib import Path

from safetensors.numpy import save_file

from tests.cases.transformer import CASES_120

OUTPUT = Path("tests/recorded/transformer_120.safetensors")


def main(source: str) -> None:
    sys.path.insert(0, source)
    from tests.parity.official_transformer import LTXModelConfigurator, run_official

    if not hasattr(LTXModelConfigurator, "from_metadata"):
        raise SystemExit(f"{source} is not ltx-core 1.2.0")
    outputs = {f"{case.name}/{name}": x for case in CASES_120 for name, x in run_official(case).items()}
    OUTPUT.parent.mkdir(exist_ok=True)
    save_file(
        outputs,
        str(OUTPUT),
        metadata={"source": "ltx-core 1.2.0", "made_by": "tests.parity.make_transformer_120"},
    )


if __name__ == "__main__":
    main(sys.argv[1])
