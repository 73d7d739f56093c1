"""Sizes of the demo model and the diffusers modules built from them."""

from __future__ import annotations

import torch
from diffusers.models.autoencoders.autoencoder_kl_ltx2 import AutoencoderKLLTX2Video
from diffusers.models.autoencoders.autoencoder_kl_ltx2_audio import AutoencoderKLLTX2Audio
from diffusers.pipelines.ltx2.vocoder import LTX2VocoderWithBWE

LATENT = 32  # video latent channels; the reference also makes the encoder's first width from it
ENCODER_WIDTHS = (64, 64, 64, 128)
ENCODER_LAYERS = (1, 1, 1, 2, 1)
DECODER_BASE = 16
DECODER_LAYERS = (4, 3, 2, 2, 1)  # from the pixels' end, as configs list them


def video_vae() -> AutoencoderKLLTX2Video:
    """The video VAE with the block lists of LTX-2.3, 32 latent channels wide."""
    base = DECODER_BASE
    return AutoencoderKLLTX2Video(
        latent_channels=LATENT,
        block_out_channels=ENCODER_WIDTHS,
        layers_per_block=ENCODER_LAYERS,
        spatio_temporal_scaling=(True,) * 4,
        downsample_type=("spatial", "temporal", "spatiotemporal", "spatiotemporal"),
        decoder_block_out_channels=(2 * base, 4 * base, 4 * base, 8 * base),
        decoder_layers_per_block=DECODER_LAYERS,
        decoder_spatio_temporal_scaling=(True,) * 4,
        decoder_inject_noise=(False,) * 5,
        upsample_type=("spatiotemporal", "spatiotemporal", "temporal", "spatial"),
        upsample_residual=(False,) * 4,
        upsample_factor=(2, 2, 1, 2),
        encoder_causal=True,
        decoder_causal=False,
        encoder_spatial_padding_mode="zeros",
        decoder_spatial_padding_mode="zeros",
    )


def autocast(enabled: bool = True) -> torch.autocast:
    """bfloat16 compute with float32 weights, on the CPU or the GPU."""
    return torch.autocast("cuda" if torch.cuda.is_available() else "cpu", dtype=torch.bfloat16, enabled=enabled)


AUDIO = {"ch": 16, "ch_mult": (1, 2, 3), "num_res_blocks": 1}
VOCODER = {"hidden": 192, "rates": [5, 2, 2, 2, 2, 2], "kernels": [11, 4, 4, 4, 4, 4]}
EXTENSION = {"hidden": 64, "rates": [6, 5, 2, 2, 2], "kernels": [12, 11, 4, 4, 4]}
RESBLOCK_KERNELS, RESBLOCK_DILATIONS = [3], [[1, 3, 5]]


def audio_vae() -> AutoencoderKLLTX2Audio:
    """The audio VAE of LTX-2: mel (B, 2, T, 64) to 8 channels of 16 bins at a quarter of the rate."""
    return AutoencoderKLLTX2Audio(
        base_channels=AUDIO["ch"], ch_mult=AUDIO["ch_mult"], num_res_blocks=AUDIO["num_res_blocks"], attn_resolutions=None
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
