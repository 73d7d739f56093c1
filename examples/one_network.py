"""A single network by itself: pixels -> latents -> pixels through the video VAE."""

import os

import mlx.core as mx

from mlx_ltx2 import LTX2Pipeline, load_component

model = LTX2Pipeline.from_pretrained(os.environ.get("MODEL", "demo")).networks.model
encoder = load_component(model, "video_encoder")
decoder = load_component(model, "video_decoder")
pixels = mx.random.uniform(-1, 1, (1, 9, 64, 64, 3))
latent = encoder(pixels)
print("pixels", pixels.shape, "-> latents", latent.shape, "-> pixels", decoder(latent).shape)
