"""LTX-2 and LTX-2.3 in MLX: text, images or sound become video with synchronised sound."""

from __future__ import annotations

import sys
from types import ModuleType
from typing import TYPE_CHECKING, Any

from mlx_ltx2.errors import (
    LTX2Error,
    MediaError,
    RequestError,
    ResourceError,
    ShapeError,
    WeightsError,
)
from mlx_ltx2.version import VERSION as __version__

if TYPE_CHECKING:
    from mlx_ltx2.generate import LTX2Pipeline, generate
    from mlx_ltx2.pipelines.plan import Plan
    from mlx_ltx2.stages.write import Clip
    from mlx_ltx2.states import Waveform
    from mlx_ltx2.weights.load import load_component

__all__ = [
    "Clip",
    "LTX2Error",
    "LTX2Pipeline",
    "MediaError",
    "Plan",
    "RequestError",
    "ResourceError",
    "ShapeError",
    "Waveform",
    "WeightsError",
    "__version__",
    "convert",
    "generate",
    "load_component",
]

_HOMES = {
    "Clip": "mlx_ltx2.stages.write",
    "LTX2Pipeline": "mlx_ltx2.generate",
    "Plan": "mlx_ltx2.pipelines.plan",
    "Waveform": "mlx_ltx2.states",
    "convert": "mlx_ltx2_convert",
    "generate": "mlx_ltx2.generate",
    "load_component": "mlx_ltx2.weights.load",
}


def __getattr__(name: str) -> Any:
    """Import the public names on first use, so that `import mlx_ltx2` and `mlx-ltx2 --help` stay quick."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    import importlib

    value = getattr(importlib.import_module(_HOMES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)


class _Package(ModuleType):
    """`mlx_ltx2.generate` names a function and the module that holds it; the function wins once both are there."""

    def __setattr__(self, name: str, value: Any) -> None:
        if name in ("generate", "convert") and isinstance(value, ModuleType):
            value = getattr(value, name, value)
        super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package
