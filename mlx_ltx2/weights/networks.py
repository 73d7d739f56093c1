"""The networks of one model as loaders: nothing is read until a stage asks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn

from mlx_ltx2.errors import WeightsError
from mlx_ltx2.models.video_vae import PerChannelStatistics
from mlx_ltx2.traits import Traits
from mlx_ltx2.weights.index import TEXT_ENCODER, ModelFolder
from mlx_ltx2.weights.header import read_header
from mlx_ltx2.weights.load import load_component, load_statistics
from mlx_ltx2.weights.text_encoder import TextEncoder, TextEncoderInfo, check_text_encoder, load_text_encoder

UPSAMPLERS = {
    "spatial-x2": "spatial_upsampler",
    "spatial-x1.5": "spatial_upsampler_x1.5",
    "temporal-x2": "temporal_upsampler",
}
"""Kind of a latent upsampler -> component name."""


@dataclass(frozen=True)
class Networks:
    """model: a converted folder. text_encoder: a Gemma folder that replaces the model's own. dtype: of the weights to
    compute in, None for the stored one; the vocoder always computes in float32."""

    model: ModelFolder
    text_encoder: Path | None = None
    dtype: mx.Dtype | None = None

    @property
    def traits(self) -> Traits:
        return self.model.traits

    def check(self, *names: str) -> None:
        """Raise WeightsError unless every named component is there; reads no weights."""
        for name in names:
            if name == TEXT_ENCODER:
                self.check_text_encoder()
            else:
                self.model.folder(name)

    def check_text_encoder(self) -> TextEncoderInfo:
        return check_text_encoder(self._text_folder(), self.traits.text_width)

    def load_text_encoder(self) -> TextEncoder:
        return load_text_encoder(self._text_folder(), self.traits.text_width)

    def _text_folder(self) -> Path:
        return self.text_encoder or self.model.folder(TEXT_ENCODER)

    def load(self, name: str) -> nn.Module:
        """Any component but the transformer and the text encoder."""
        return load_component(self.model, name, dtype=self.dtype)

    def load_transformer(self, *, video: bool, audio: bool, loras: Sequence[tuple[str, float]] = ()) -> Any:
        """The transformer, with only the streams asked for; the other stream's weights are never read."""
        if loras:
            raise WeightsError("LoRAs are not supported yet.")
        return load_component(self.model, "transformer", dtype=self.dtype, video=video, audio=audio)

    def load_upsampler(self, kind: str) -> nn.Module:
        return self.load(UPSAMPLERS[kind])

    def load_statistics(self) -> PerChannelStatistics:
        """The video VAE's channel statistics by themselves."""
        return load_statistics(self.model)

    def lora_metadata(self, paths: Sequence[str]) -> dict[str, dict[str, str]]:
        """Metadata of LoRA files, by path as given; hub ids that are not there yet have none."""
        return {path: dict(read_header(Path(path)).metadata) for path in paths if Path(path).is_file()}
