"""The offline converter: an official LTX-2 checkpoint -> a model folder for mlx_ltx2. No torch, little memory."""

from mlx_ltx2_convert.options import Options
from mlx_ltx2_convert.report import Report
from mlx_ltx2_convert.run import conversion_of, convert, run
from mlx_ltx2_convert.sources import variants_in

__all__ = ["Options", "Report", "conversion_of", "convert", "run", "variants_in"]
