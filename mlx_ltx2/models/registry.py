"""Component name -> network, built from the section of the checkpoint's config JSON that describes it.

This is the one list of networks; weights, converter and `load_component` read it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from mlx import nn


@dataclass(frozen=True)
class Component:
    """name: public name. folder: place on disk, relative to the model folder. section: key of the config JSON,
    None where the file's whole JSON is the config (upsamplers). sources: official key prefix -> prefix here."""

    name: str
    folder: str
    section: str | None
    sources: Mapping[str, str]
    build: Callable[[Mapping[str, Any]], nn.Module]


def _transformer(section: Mapping[str, Any]) -> nn.Module:
    from mlx_ltx2.models.transformer import Transformer, TransformerConfig

    return Transformer(TransformerConfig.from_dict(section))


def _text_projections(section: Mapping[str, Any]) -> nn.Module:
    from mlx_ltx2.models.text import TextProjections, TextProjectionsConfig

    return TextProjections(TextProjectionsConfig.from_dict(section))


def _video_encoder(section: Mapping[str, Any]) -> nn.Module:
    from mlx_ltx2.models.video_vae import VideoEncoder, VideoVAEConfig

    return VideoEncoder(VideoVAEConfig.from_dict(section))


def _video_decoder(section: Mapping[str, Any]) -> nn.Module:
    from mlx_ltx2.models.video_vae import VideoDecoder, VideoVAEConfig

    return VideoDecoder(VideoVAEConfig.from_dict(section))


def _audio_encoder(section: Mapping[str, Any]) -> nn.Module:
    from mlx_ltx2.models.audio_vae import AudioEncoder, AudioVAEConfig

    return AudioEncoder(AudioVAEConfig.from_dict(section))


def _audio_decoder(section: Mapping[str, Any]) -> nn.Module:
    from mlx_ltx2.models.audio_vae import AudioDecoder, AudioVAEConfig

    return AudioDecoder(AudioVAEConfig.from_dict(section))


def _vocoder(section: Mapping[str, Any]) -> nn.Module:
    from mlx_ltx2.models.vocoder import VocoderConfig, build_vocoder

    return build_vocoder(VocoderConfig.from_dict(section))


def _upsampler(config: Mapping[str, Any]) -> nn.Module:
    from mlx_ltx2.models.upsampler import LatentUpsampler, UpsamplerConfig

    return LatentUpsampler(UpsamplerConfig.from_dict(config))


_VAE_STATISTICS = {"vae.per_channel_statistics.": "per_channel_statistics."}
_AUDIO_STATISTICS = {"audio_vae.per_channel_statistics.": "per_channel_statistics."}
_CONNECTORS = {
    f"model.diffusion_model.{m}_embeddings_connector.": f"{m}_embeddings_connector." for m in ("video", "audio")
}

COMPONENTS: dict[str, Component] = {
    c.name: c
    for c in (
        Component("transformer", "transformer", "transformer", {"model.diffusion_model.": ""}, _transformer),
        Component(
            "text_projections",
            "text_projections",
            "transformer",
            {"text_embedding_projection.": "text_embedding_projection.", **_CONNECTORS},
            _text_projections,
        ),
        Component("video_encoder", "vae/encoder", "vae", {"vae.encoder.": "", **_VAE_STATISTICS}, _video_encoder),
        Component("video_decoder", "vae/decoder", "vae", {"vae.decoder.": "", **_VAE_STATISTICS}, _video_decoder),
        Component(
            "audio_encoder",
            "audio_vae/encoder",
            "audio_vae",
            {"audio_vae.encoder.": "", **_AUDIO_STATISTICS},
            _audio_encoder,
        ),
        Component(
            "audio_decoder",
            "audio_vae/decoder",
            "audio_vae",
            {"audio_vae.decoder.": "", **_AUDIO_STATISTICS},
            _audio_decoder,
        ),
        Component("vocoder", "vocoder", "vocoder", {"vocoder.": ""}, _vocoder),
        Component("spatial_upsampler", "upsampler/spatial-x2", None, {"": ""}, _upsampler),
        Component("spatial_upsampler_x1.5", "upsampler/spatial-x1.5", None, {"": ""}, _upsampler),
        Component("temporal_upsampler", "upsampler/temporal-x2", None, {"": ""}, _upsampler),
    )
}
"""Networks by public name. `text_encoder` is not listed: it is a Gemma folder of its own, loaded by mlx-lm's model."""
