"""Vocoders: log-mel frames -> waveform, with bandwidth extension in LTX-2.3. All compute in float32."""

from mlx_ltx2.models.vocoder.config import BandwidthExtensionConfig, GeneratorConfig, VocoderConfig
from mlx_ltx2.models.vocoder.vocoder import Vocoder, VocoderWithBWE, build_vocoder

__all__ = [
    "BandwidthExtensionConfig",
    "GeneratorConfig",
    "Vocoder",
    "VocoderConfig",
    "VocoderWithBWE",
    "build_vocoder",
]
