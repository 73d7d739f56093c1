"""Sizes of the demo model and the diffusers modules built from them."""

from __future__ import annotations

import torch
from diffusers.models.autoencoders.autoencoder_kl_ltx2 import AutoencoderKLLTX2Video
from diffusers.models.autoencoders.autoencoder_kl_ltx2_audio import AutoencoderKLLTX2Audio
from diffusers.models.transformers.transformer_ltx2 import LTX2VideoTransformer3DModel
from diffusers.pipelines.ltx2.connectors import LTX2TextConnectors
from diffusers.pipelines.ltx2.latent_upsampler import LTX2LatentUpsamplerModel
from diffusers.pipelines.ltx2.vocoder import LTX2VocoderWithBWE

LATENT = 32  # video latent channels; the reference also makes the encoder's first width from it
ENCODER_WIDTHS = (64, 64, 64, 128)
ENCODER_LAYERS = (1, 1, 1, 2, 1)
# The last width bounds the rank of a 4x4x3 patch of pixels: 16 blurs every edge. All of the reduction from 8 x base
# stands in the first step up, since ltx-core 1.0.0 begins at 8 x base whatever the multipliers are.
DECODER_BASE = 32
DECODER_LAYERS = (3, 3, 2, 2)  # from the pixels' end, as configs list them; none at the bottleneck


def video_vae() -> AutoencoderKLLTX2Video:
    """The video VAE with the block lists of LTX-2.3, 32 latent channels wide."""
    base = DECODER_BASE
    return AutoencoderKLLTX2Video(
        latent_channels=LATENT,
        block_out_channels=ENCODER_WIDTHS,
        layers_per_block=ENCODER_LAYERS,
        spatio_temporal_scaling=(True,) * 4,
        downsample_type=("spatial", "temporal", "spatiotemporal", "spatiotemporal"),
        decoder_block_out_channels=(base, base, base, 8 * base),
        decoder_layers_per_block=(*DECODER_LAYERS, 0),
        decoder_spatio_temporal_scaling=(True,) * 4,
        decoder_inject_noise=(False,) * 5,
        upsample_type=("spatiotemporal", "spatiotemporal", "temporal", "spatial"),
        upsample_residual=(False,) * 4,
        upsample_factor=(1, 1, 1, 8),
        encoder_causal=True,
        decoder_causal=False,
        encoder_spatial_padding_mode="zeros",
        decoder_spatial_padding_mode="zeros",
    )


def autocast(enabled: bool = True) -> torch.autocast:
    """bfloat16 compute with float32 weights, on the CPU or the GPU."""
    return torch.autocast("cuda" if torch.cuda.is_available() else "cpu", dtype=torch.bfloat16, enabled=enabled)


# The reference sizes the audio statistics by `ch` and needs one entry per token feature: ch = z * 16 bins.
AUDIO = {"ch": 32, "ch_mult": (1, 1, 1), "num_res_blocks": 1}
AUDIO_LATENT, AUDIO_BINS = 2, 16
AUDIO_FEATURES = AUDIO_LATENT * AUDIO_BINS
VOCODER = {"hidden": 192, "rates": [5, 2, 2, 2, 2, 2], "kernels": [11, 4, 4, 4, 4, 4]}
EXTENSION = {"hidden": 64, "rates": [6, 5, 2, 2, 2], "kernels": [12, 11, 4, 4, 4]}
RESBLOCK_KERNELS, RESBLOCK_DILATIONS = [3], [[1, 3, 5]]


def audio_vae() -> AutoencoderKLLTX2Audio:
    """The audio VAE of LTX-2: mel (B, 2, T, 64) to 2 channels of 16 bins at a quarter of the rate."""
    return AutoencoderKLLTX2Audio(
        base_channels=AUDIO["ch"],
        ch_mult=AUDIO["ch_mult"],
        num_res_blocks=AUDIO["num_res_blocks"],
        attn_resolutions=None,
        latent_channels=AUDIO_LATENT,
    )


def vocoder() -> LTX2VocoderWithBWE:
    """The vocoder of LTX-2.3 with bandwidth extension from 16 to 48 kHz."""
    return LTX2VocoderWithBWE(
        hidden_channels=VOCODER["hidden"],
        upsample_kernel_sizes=VOCODER["kernels"],
        upsample_factors=VOCODER["rates"],
        resnet_kernel_sizes=RESBLOCK_KERNELS,
        resnet_dilations=RESBLOCK_DILATIONS,
        final_act_fn="clamp",
        bwe_hidden_channels=EXTENSION["hidden"],
        bwe_upsample_kernel_sizes=EXTENSION["kernels"],
        bwe_upsample_factors=EXTENSION["rates"],
        bwe_resnet_kernel_sizes=RESBLOCK_KERNELS,
        bwe_resnet_dilations=RESBLOCK_DILATIONS,
    )


LAYERS, HEADS, HEAD_DIM, AUDIO_HEAD_DIM = 6, 4, 32, 16
VIDEO_DIM, AUDIO_DIM = HEADS * HEAD_DIM, HEADS * AUDIO_HEAD_DIM
MAX_POS = (4, 256, 256)  # seconds, pixels, pixels: the range that rotary positions are a fraction of
REGISTERS = 128


def transformer() -> LTX2VideoTransformer3DModel:
    """The audio-video transformer of LTX-2.3: gated attention, prompt modulation, text contexts of both widths."""
    return LTX2VideoTransformer3DModel(
        in_channels=LATENT,
        out_channels=LATENT,
        num_attention_heads=HEADS,
        attention_head_dim=HEAD_DIM,
        cross_attention_dim=VIDEO_DIM,
        pos_embed_max_pos=MAX_POS[0],
        base_height=MAX_POS[1],
        base_width=MAX_POS[2],
        gated_attn=True,
        cross_attn_mod=True,
        audio_in_channels=AUDIO_FEATURES,
        audio_out_channels=AUDIO_FEATURES,
        audio_num_attention_heads=HEADS,
        audio_attention_head_dim=AUDIO_HEAD_DIM,
        audio_cross_attention_dim=AUDIO_DIM,
        audio_pos_embed_max_pos=MAX_POS[0],
        audio_gated_attn=True,
        audio_cross_attn_mod=True,
        num_layers=LAYERS,
        rope_type="split",
        use_prompt_embeddings=False,
    )


def connectors(text_width: int, text_states: int) -> LTX2TextConnectors:
    """Feature projections and one-layer connectors with 128 registers for both streams."""
    return LTX2TextConnectors(
        caption_channels=text_width,
        text_proj_in_factor=text_states,
        video_connector_num_attention_heads=HEADS,
        video_connector_attention_head_dim=HEAD_DIM,
        video_connector_num_layers=1,
        video_connector_num_learnable_registers=REGISTERS,
        video_gated_attn=True,
        audio_connector_num_attention_heads=HEADS,
        audio_connector_attention_head_dim=AUDIO_HEAD_DIM,
        audio_connector_num_layers=1,
        audio_connector_num_learnable_registers=REGISTERS,
        audio_gated_attn=True,
        rope_type="split",
        per_modality_projections=True,
        video_hidden_dim=VIDEO_DIM,
        audio_hidden_dim=AUDIO_DIM,
        proj_bias=True,
    )


UPSAMPLER_WIDTH, UPSAMPLER_BLOCKS = 32, 2


def upsampler() -> LTX2LatentUpsamplerModel:
    """The x2 latent upsampler with a plain pixel shuffle, as LTX-2.3's."""
    return LTX2LatentUpsamplerModel(
        in_channels=LATENT,
        mid_channels=UPSAMPLER_WIDTH,
        num_blocks_per_stage=UPSAMPLER_BLOCKS,
        use_rational_resampler=False,
    )
