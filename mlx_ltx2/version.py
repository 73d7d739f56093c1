"""The installed version, for `--version`, cache names and the record in finished files."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version

try:
    VERSION = version("mlx-ltx2")
except PackageNotFoundError:  # a source tree that was never installed
    VERSION = "0"
