"""The audio-video diffusion transformer."""

from mlx_ltx2.models.transformer.block import CrossInputs, Pass, StreamInputs, TransformerBlock
from mlx_ltx2.models.transformer.config import CrossModulation, Prefix, StreamConfig, TransformerConfig
from mlx_ltx2.models.transformer.kept import Kept, text_bytes
from mlx_ltx2.models.transformer.model import RopeTables, Transformer

__all__ = [
    "CrossInputs",
    "CrossModulation",
    "Kept",
    "Pass",
    "Prefix",
    "RopeTables",
    "StreamConfig",
    "StreamInputs",
    "Transformer",
    "TransformerBlock",
    "TransformerConfig",
    "text_bytes",
]
