"""What recipes know of a model is what its networks read from the same JSON."""

from __future__ import annotations

from typing import Any

import pytest

from mlx_ltx2.errors import WeightsError
from mlx_ltx2.models.audio_vae import AudioVAEConfig
from mlx_ltx2.models.video_vae import VideoVAEConfig
from mlx_ltx2.shapes import AudioScale, VideoScale
from mlx_ltx2.traits import Traits

PLAIN = {"mid_block_add_attention": False, "attn_resolutions": []}
AUDIO = [
    {"model": {"params": {"ddconfig": PLAIN}}, "preprocessing": {"mel": {"n_mel_channels": 80}}},
    {"model": {"params": {"ddconfig": PLAIN}}, "variables": {"mel_bins": 96}},
    {"model": {"params": {"ddconfig": {**PLAIN, "mel_bins": 64, "ch_mult": [1, 2], "z_channels": 4}}}},
    {
        "model": {"params": {"ddconfig": {**PLAIN, "mel_bins": 64}, "sampling_rate": 24000}},
        "preprocessing": {"stft": {"hop_length": 240, "causal": True}},
    },
]
TRANSFORMER = {"num_layers": 4, "caption_channels": 64}


def traits(**sections: Any) -> Traits:
    return Traits((2, 3), "dev", {"transformer": TRANSFORMER, **sections})


@pytest.mark.parametrize("section", AUDIO)
def test_audio_latents_have_the_size_that_the_network_gives_them(section):
    config = AudioVAEConfig.from_dict(section)
    assert traits(audio_vae=section).audio_latent == (config.latent_mel, config.latent_channels)
    assert traits(audio_vae=section).audio_scale == config.scale


def test_bins_are_found_wherever_the_json_has_them():
    sizes = [traits(audio_vae=section).audio_latent for section in AUDIO]
    assert sizes == [(20, 8), (24, 8), (32, 4), (16, 8)]
    assert traits(audio_vae=AUDIO[2]).audio_scale == AudioScale(16000, 160, 2)
    assert traits(audio_vae=AUDIO[3]).audio_scale == AudioScale(24000, 240, 4)


@pytest.mark.parametrize(
    ("blocks", "patch", "scale"),
    [
        ([["compress_space_res", {"multiplier": 2}], ["compress_time_res", {"multiplier": 2}]], 4, (2, 8)),
        ([["res_x", 2], ["compress_all_x_y", {"multiplier": 2}]], 2, (2, 4)),
        ([["compress_all", {}], ["compress_all", {}], ["compress_all", {}]], 4, (8, 32)),
    ],
)
def test_the_video_grid_is_that_of_the_network(blocks, patch, scale):
    section = {"encoder_blocks": blocks, "patch_size": patch, "latent_channels": 16}
    found = traits(vae=section)
    assert found.video_scale == VideoVAEConfig.from_dict(section).scale == VideoScale(*scale)
    assert found.latent_channels == 16


def test_a_model_without_vaes_has_the_grids_of_the_released_ones():
    found = traits()
    assert (found.video_scale, found.latent_channels) == (VideoScale(8, 32), 128)
    assert (found.audio_scale, found.audio_latent) == (AudioScale(16000, 160, 4), (16, 8))


def test_a_section_that_no_network_takes_is_refused_where_a_size_is_asked_for():
    with pytest.raises(WeightsError, match="mel_bins"):
        _ = traits(audio_vae={"model": {"params": {"ddconfig": PLAIN}}}).audio_latent
    with pytest.raises(WeightsError, match="inject"):
        _ = traits(vae={"decoder_blocks": [["res_x", {"num_layers": 1, "inject_noise": True}]]}).video_scale
