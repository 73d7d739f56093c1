"""`python -m mlx_ltx2.convert`; the converter itself is `mlx_ltx2_convert`."""

from __future__ import annotations

from mlx_ltx2_convert import convert

__all__ = ["convert"]

if __name__ == "__main__":
    import importlib

    # The command line stands above this module; naming it here statically would turn the arrow round.
    importlib.import_module("mlx_ltx2.cli").convert_main()
