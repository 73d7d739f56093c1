"""Normalised latents -> pixels."""

from __future__ import annotations

import mlx.core as mx
from mlx import nn

from mlx_ltx2.errors import RequestError, ShapeError, WeightsError
from mlx_ltx2.models.layers.timestep import TimestepEmbedder
from mlx_ltx2.models.video_vae.blocks import ResGroup, Upsample, activate
from mlx_ltx2.models.video_vae.config import VideoVAEConfig
from mlx_ltx2.models.video_vae.convolution import CausalConv3d
from mlx_ltx2.models.video_vae.rearrange import unpatchify_pixels
from mlx_ltx2.models.video_vae.statistics import PerChannelStatistics

NOISE_SCALE = 0.025
TIMESTEP = 0.05


class VideoDecoder(nn.Module):
    """Decoder, symmetric in time unless the config says otherwise.

    `timestep_conditioned` decoders (LTX-2 distilled) expect a little noise in the latent and are told how
    much. `__call__` is `prepare`, `scale_timestep`, `conv_in`, the `up_blocks` and `finish`, in this order; a
    streaming decoder walks the same pieces.
    Source: `ltx_core.model.video_vae.video_vae.VideoDecoder` (1.2.0: `conv_video_decoder.ConvVideoDecoder`).
    """

    def __init__(self, config: VideoVAEConfig):
        super().__init__()
        if not config.decoder_blocks:
            raise WeightsError("vae config: decoder_blocks is absent or empty; use a file that holds a video decoder.")
        self.config = config
        self.causal = config.causal_decoder
        self.timestep_conditioned = config.timestep_conditioning
        self.per_channel_statistics = PerChannelStatistics(config.latent_channels)
        channels, padding = config.bottleneck_channels, config.decoder_padding
        self.conv_in = CausalConv3d(config.latent_channels, channels, padding=padding)
        self.up_blocks: list[ResGroup | Upsample] = []
        for block in reversed(config.decoder_blocks):
            if block.kind == "res_x":
                group = ResGroup(
                    channels,
                    block.num_layers,
                    padding=padding,
                    timestep_conditioning=self.timestep_conditioned,
                )
                self.up_blocks.append(group)
            else:
                self.up_blocks.append(Upsample(channels, block, padding=padding))
                channels //= block.multiplier
        self.conv_out = CausalConv3d(channels, config.out_channels * config.patch_size**2, padding=padding)
        if self.timestep_conditioned:
            self.timestep_scale_multiplier = mx.array(1000.0)
            self.last_time_embedder = TimestepEmbedder(2 * channels)
            self.last_scale_shift_table = mx.zeros((2, channels))

    def prepare(self, latent: mx.array, noise: mx.array | None) -> mx.array:
        """Normalised latent and, for a timestep-conditioned decoder, unit noise -> what `conv_in` reads."""
        dtype = self.conv_in.conv.weight.dtype
        latent = latent.astype(dtype)
        if self.timestep_conditioned and noise is not None:
            latent = NOISE_SCALE * noise.astype(dtype) + (1 - NOISE_SCALE) * latent
        return self.per_channel_statistics.denormalize(latent)

    def scale_timestep(self, timestep: float) -> mx.array | None:
        """Timestep in 0..1 -> float32 scalar times the stored multiplier; None if not conditioned."""
        if not self.timestep_conditioned:
            return None
        return timestep * self.timestep_scale_multiplier.astype(mx.float32)

    def before_conv_out(self, x: mx.array, timestep: mx.array | None) -> mx.array:
        """What the last convolution reads."""
        if timestep is None:
            return activate(x)
        embedding = self.last_time_embedder(timestep, x.dtype).reshape(2, -1)
        modulation = self.last_scale_shift_table.astype(x.dtype) + embedding
        return activate(x, modulation[0], modulation[1])

    def finish(self, x: mx.array, timestep: mx.array | None) -> mx.array:
        """Result of the last block -> pixels (B,F,H,W,3)."""
        x = self.conv_out(self.before_conv_out(x, timestep), causal=self.causal)
        return unpatchify_pixels(x, self.config.patch_size)

    def __call__(self, latent: mx.array, *, noise: mx.array | None = None, timestep: float = TIMESTEP) -> mx.array:
        """Decode a clip.

        Args:
            latent: (B,F',H',W',C), zero mean and unit variance per channel.
            noise: standard normal of the latent's shape; for a timestep-conditioned decoder, and only for it.
            timestep: share of noise that a timestep-conditioned decoder is told to expect, 0 to 1.
        Returns: (B,8(F'-1)+1,32H',32W',3) in the weights' dtype, about [-1,1].
        Raises: ShapeError for other shapes; RequestError if noise is lacking or cannot be used.
        """
        self.check(latent, noise)
        scaled = self.scale_timestep(timestep)
        x = self.conv_in(self.prepare(latent, noise), causal=self.causal)
        for block in self.up_blocks:
            if isinstance(block, ResGroup):
                x = block(x, causal=self.causal, timestep=scaled)
            else:
                x = block(x, causal=self.causal)
        return self.finish(x, scaled)

    def check(self, latent: mx.array, noise: mx.array | None) -> None:
        """Raises: ShapeError or RequestError unless `__call__` can decode these."""
        if latent.ndim != 5 or latent.shape[-1] != self.config.latent_channels or 0 in latent.shape:
            raise ShapeError(
                f"A latent of shape {latent.shape} cannot be decoded; use (batch, latent frames, rows, "
                f"columns, {self.config.latent_channels})."
            )
        if self.timestep_conditioned and noise is None:
            raise RequestError(
                "This decoder is timestep-conditioned and no noise was given; pass noise=, standard normal, "
                f"of the latent's shape {latent.shape}."
            )
        if not self.timestep_conditioned and noise is not None:
            raise RequestError("This decoder is not timestep-conditioned and cannot use noise; leave noise= out.")
        if noise is not None and noise.shape != latent.shape:
            raise ShapeError(f"noise of shape {noise.shape} does not fit the latent; use {latent.shape}.")
