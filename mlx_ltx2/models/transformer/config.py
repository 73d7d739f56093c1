"""Geometry of the audio-video diffusion transformer, read from `config.transformer` of the checkpoint."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from mlx_ltx2.errors import WeightsError
from mlx_ltx2.models.layers.rope import RopeConfig

CrossModulation = Literal["1.2.0", "1.0.0", "own"]
"""What the modulation of the audio-video attention is computed from; the official code changed it twice.

"1.2.0": scale and shift from the stream's own timesteps, the gate from the other stream's sigma.
"1.0.0": both from the other stream's sigma. "own": both from the stream's own timesteps (first release).
They agree wherever every token of both streams has the same noise level.
"""

Prefix = Literal["", "audio_"]
"""Start of the attribute names of the video stream and of the audio stream."""

_FIXED: dict[str, Any] = {
    "dropout": 0.0,
    "attention_bias": True,
    "num_vector_embeds": None,
    "activation_fn": "gelu-approximate",
    "num_embeds_ada_norm": 1000,
    "use_linear_projection": False,
    "only_cross_attention": False,
    "cross_attention_norm": True,
    "double_self_attention": False,
    "upcast_attention": False,
    "standardization_norm": "rms_norm",
    "norm_elementwise_affine": False,
    "qk_norm": "rms_norm",
    "positional_embedding_type": "rope",
    "use_audio_video_cross_attention": True,
    "share_ff": False,
    "av_cross_ada_norm": True,
    "use_middle_indices_grid": True,
    # Keys of later generations, with the value that means "as in LTX-2 and 2.3".
    "ff_bias": True,
    "audio_ff_bias": True,
    "use_prompt_adaln_single": True,
    "use_keyframes_abs_pos_embedding": False,
}


@dataclass(frozen=True)
class StreamConfig:
    """One stream.

    context_dim: width of the text that its blocks attend to. max_positions: per axis, seconds first.
    caption_channels: width of the text before the transformer projects it, None where it does not.
    """

    heads: int
    head_dim: int
    in_channels: int
    out_channels: int
    context_dim: int
    max_positions: tuple[float, ...]
    caption_channels: int | None

    @property
    def dim(self) -> int:
        return self.heads * self.head_dim


@dataclass(frozen=True)
class TransformerConfig:
    """The transformer with its video stream, its audio stream, or both.

    timestep_scale: noise level 1 becomes this timestep; gate_timestep_scale: for the audio-video gates.
    cross_rope_dim: width of the queries that audio-video attention rotates.
    gated: per-head gates in all attentions.
    modulated_text: text cross-attention has modulation of its own, on queries, context and output.
    """

    video: StreamConfig | None
    audio: StreamConfig | None
    layers: int
    norm_eps: float
    rope: RopeConfig
    timestep_scale: float
    gate_timestep_scale: float
    cross_rope_dim: int
    gated: bool
    modulated_text: bool
    cross_modulation: CrossModulation = "1.2.0"

    @classmethod
    def from_dict(
        cls,
        section: Mapping[str, Any],
        *,
        video: bool = True,
        audio: bool = True,
        cross_modulation: CrossModulation = "1.2.0",
    ) -> TransformerConfig:
        """Read the checkpoint's `transformer` section; `video` and `audio` say which streams to build.

        Absent keys take the fallbacks of the official configurator (ltx-core 1.2.0). Raises WeightsError
        where a key has a value that this network does not implement, or where the streams do not fit.
        """
        if not (video or audio):
            raise ValueError("a transformer needs a video stream, an audio stream or both")
        _check_fixed(section)
        captions = None if section.get("caption_proj_before_connector", False) else _caption_channels(section)
        config = cls(
            video=_video_stream(section, captions) if video else None,
            audio=_audio_stream(section, captions) if audio else None,
            layers=section.get("num_layers", 48),
            norm_eps=section.get("norm_eps", 1e-6),
            rope=_rope(section),
            timestep_scale=section.get("timestep_scale_multiplier", 1000),
            gate_timestep_scale=section.get("av_ca_timestep_scale_multiplier", 1),
            cross_rope_dim=section.get("audio_cross_attention_dim", 2048),
            gated=section.get("apply_gated_attention", False),
            modulated_text=section.get("cross_attention_adaln", False),
            cross_modulation=cross_modulation,
        )
        config._check_streams()
        return config

    def _check_streams(self) -> None:
        if self.video is None or self.audio is None:
            return
        if self.video.heads != self.audio.heads:
            raise WeightsError(
                f"transformer config: num_attention_heads is {self.video.heads}, audio_num_attention_heads "
                f"is {self.audio.heads}; they must be equal. Use a checkpoint of LTX-2 or LTX-2.3"
            )
        if self.cross_rope_dim != self.audio.dim:
            raise WeightsError(
                f"transformer config: audio_cross_attention_dim is {self.cross_rope_dim}, audio heads times "
                f"head size is {self.audio.dim}; they must be equal. Use a checkpoint of LTX-2 or LTX-2.3"
            )

    @property
    def rows(self) -> int:
        """Rows of a block's modulation table."""
        return 9 if self.modulated_text else 6

    @property
    def both(self) -> bool:
        return self.video is not None and self.audio is not None

    def streams(self) -> Iterator[tuple[Prefix, StreamConfig]]:
        """(prefix of attribute names, config) of every stream that is built."""
        if self.video is not None:
            yield "", self.video
        if self.audio is not None:
            yield "audio_", self.audio

    def keeps(self, name: str) -> bool:
        """True if the checkpoint tensor `name` (prefix stripped) belongs to this build.

        False for what may be left out knowingly: tensors of a stream that is not built, of the attention
        between the streams then, and of the text connectors, which are a component of their own.
        """
        parts = name.split(".")
        if any(part.endswith("_embeddings_connector") for part in parts):
            return False
        if self.both:
            return True
        if any(part.startswith(_BETWEEN_STREAMS) for part in parts):
            return False
        is_audio = any(part.startswith("audio_") for part in parts)
        return is_audio == (self.audio is not None)


_BETWEEN_STREAMS = ("av_ca_", "audio_to_video_attn", "video_to_audio_attn", "scale_shift_table_a2v_ca_")


def _check_fixed(section: Mapping[str, Any]) -> None:
    for key, expected in _FIXED.items():
        if key in section and section[key] != expected:
            raise WeightsError(
                f"transformer config: {key} is {section[key]!r}, only {expected!r} is implemented; "
                "use a checkpoint of LTX-2 or LTX-2.3"
            )


def _caption_channels(section: Mapping[str, Any]) -> int:
    if "caption_channels" not in section:
        raise WeightsError(
            "transformer config: caption_channels is missing; it is needed unless caption_proj_before_connector is true"
        )
    value: int = section["caption_channels"]
    return value


def _rope(section: Mapping[str, Any]) -> RopeConfig:
    layout = section.get("rope_type", "split")
    if layout not in ("split", "interleaved"):
        raise WeightsError(f"transformer config: rope_type is {layout!r}, allowed are 'split' and 'interleaved'")
    return RopeConfig(
        theta=section.get("positional_embedding_theta", 10000.0),
        layout=layout,
        frequencies_precision="float64" if section.get("frequencies_precision") == "float64" else "float32",
    )


def _video_stream(section: Mapping[str, Any], captions: int | None) -> StreamConfig:
    return StreamConfig(
        heads=section.get("num_attention_heads", 32),
        head_dim=section.get("attention_head_dim", 128),
        in_channels=section.get("in_channels", 128),
        out_channels=section.get("out_channels", 128),
        context_dim=section.get("cross_attention_dim", 4096),
        max_positions=tuple(section.get("positional_embedding_max_pos", (20, 2048, 2048))),
        caption_channels=captions,
    )


def _audio_stream(section: Mapping[str, Any], captions: int | None) -> StreamConfig:
    return StreamConfig(
        heads=section.get("audio_num_attention_heads", 32),
        head_dim=section.get("audio_attention_head_dim", 64),
        in_channels=section.get("audio_in_channels", 128),
        out_channels=section.get("audio_out_channels", 128),
        context_dim=section.get("audio_cross_attention_dim", 2048),
        max_positions=tuple(section.get("audio_positional_embedding_max_pos", (20,))),
        caption_channels=captions,
    )
