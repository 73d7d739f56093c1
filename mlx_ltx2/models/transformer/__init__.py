"""The audio-video diffusion transformer."""

from mlx_ltx2.models.transformer.block import CrossInputs, StreamInputs, TransformerBlock
from mlx_ltx2.models.transformer.config import CrossModulation, StreamConfig, TransformerConfig
from mlx_ltx2.models.transformer.model import Pass, RopeTables, Transformer

__all__ = [
    "CrossInputs",
    "CrossModulation",
    "Pass",
    "RopeTables",
    "StreamConfig",
    "StreamInputs",
    "Transformer",
    "TransformerBlock",
    "TransformerConfig",
]
