"""What a denoising pass has to compute, from the geometry alone. Tests compare it with what the network does."""

from __future__ import annotations

from collections.abc import Mapping

from mlx_ltx2.models.transformer import StreamConfig, TransformerConfig

SINUSOID = 256


def pass_flops(
    config: TransformerConfig,
    video_tokens: int,
    audio_tokens: int = 0,
    text_tokens: int = 1024,
    *,
    video_levels: int = 1,
    audio_levels: int = 1,
    text_cached: bool = False,
) -> dict[str, int]:
    """FLOPs of one pass of batch 1 by part; their sum is the pass.

    Streams without tokens are absent. levels: distinct noise levels of a stream. text_cached: keys and values of the
    text, and its projection, come from an earlier pass.
    """
    streams = {"": (config.video, video_tokens, video_levels), "audio_": (config.audio, audio_tokens, audio_levels)}
    present = {p: (s, n, k) for p, (s, n, k) in streams.items() if s is not None and n}
    parts: dict[str, int] = {}

    def add(name: str, macs: int) -> None:
        parts[name] = parts.get(name, 0) + 2 * macs

    for prefix, (s, tokens, levels) in present.items():
        for name, macs in _block_macs(s, config.gated, tokens, text_tokens).items():
            if not (text_cached and name == "text_kv"):
                add(prefix + name, config.layers * macs)
        add("ends", tokens * s.dim * (s.in_channels + s.out_channels))
        add("modulation", _modulation_macs(s.dim, config.rows) * levels)
        if config.modulated_text:
            add("modulation", _modulation_macs(s.dim, 2))
        if s.caption_channels is not None and not text_cached:
            add("caption", text_tokens * s.dim * (s.caption_channels + s.dim))
    if len(present) == 2:
        for name, macs in _cross_macs(config, video_tokens, audio_tokens).items():
            add(name, config.layers * macs)
        for s, _, levels in present.values():
            add("modulation", _modulation_macs(s.dim, 4) * levels + _modulation_macs(s.dim, 1))
    return parts


def _block_macs(s: StreamConfig, gated: bool, tokens: int, text: int) -> Mapping[str, int]:
    gates = 2 * tokens * s.dim * s.heads if gated else 0
    return {
        "self_projections": 4 * tokens * s.dim**2,
        "self_attention": 2 * tokens**2 * s.dim,
        "text_projections": 2 * tokens * s.dim**2,
        "text_kv": 2 * text * s.context_dim * s.dim,
        "text_attention": 2 * tokens * text * s.dim,
        "feed_forward": 8 * tokens * s.dim**2,
        "gates": gates,
    }


def _cross_macs(config: TransformerConfig, video_tokens: int, audio_tokens: int) -> Mapping[str, int]:
    """Attention between the streams; its inner width is the audio's in both directions."""
    assert config.video is not None and config.audio is not None
    video, audio = config.video.dim, config.audio.dim
    gates = config.audio.heads * (video_tokens * video + audio_tokens * audio) if config.gated else 0
    return {
        "a2v": 2 * video_tokens * video * audio + 2 * audio_tokens * audio**2,
        "v2a": 2 * audio_tokens * audio**2 + 2 * video_tokens * video * audio,
        "cross_attention": 4 * video_tokens * audio_tokens * audio,
        "gates": gates,
    }


def _modulation_macs(dim: int, rows: int) -> int:
    return SINUSOID * dim + (1 + rows) * dim**2


def total(parts: Mapping[str, int]) -> int:
    return sum(parts.values())
