"""What a benchmark must reach, and whether it did."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any


def judged(
    found: Mapping[str, Sequence[float]], bounds: Mapping[str, float], least: Sequence[str] = ()
) -> dict[str, dict[str, Any]]:
    """Worst value of every bound and whether it holds; bounds of which nothing was measured are left out.

    least: names whose values must not be below their bound; all others must not be above it.
    """
    table = {}
    for name, bound in bounds.items():
        values = found.get(name, ())
        if not values:
            continue
        worst = min(values) if name in least else max(values)
        holds = worst >= bound if name in least else worst <= bound
        table[name] = {"worst": round(worst, 4), "bound": bound, "least": name in least, "holds": bool(holds)}
    return table


def broken(result: Mapping[str, Any]) -> list[str]:
    """Names of a result's bounds that do not hold."""
    return [name for name, entry in result.get("bounds", {}).items() if not entry["holds"]]
