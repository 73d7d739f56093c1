"""Text networks: Gemma's hidden states, and the projections and connectors that turn them into a context."""

from mlx_ltx2.models.text.gemma import hidden_states
from mlx_ltx2.models.text.projections import TextProjections, TextProjectionsConfig
from mlx_ltx2.models.text.tokenizer import PromptTokenizer

__all__ = ["PromptTokenizer", "TextProjections", "TextProjectionsConfig", "hidden_states"]
