"""The offline converter: an official LTX-2 checkpoint -> a model folder for mlx_ltx2. No torch, little memory."""

from mlx_ltx2_convert.options import Options
from mlx_ltx2_convert.report import Report
from mlx_ltx2_convert.run import convert, run

__all__ = ["Options", "Report", "convert", "run"]
