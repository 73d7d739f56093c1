"""Video autoencoder and upsamplers: names, shapes, config rules, refusals. Nothing full-size is evaluated."""

from __future__ import annotations

import math
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from mlx.utils import tree_flatten

from mlx_ltx2.errors import RequestError, ShapeError, WeightsError
from mlx_ltx2.models.upsampler import LatentUpsampler, UpsamplerConfig
from mlx_ltx2.models.video_vae import VideoDecoder, VideoEncoder, VideoVAEConfig
from mlx_ltx2.models.video_vae.rearrange import (
    depth_to_space,
    patchify_pixels,
    space_to_depth,
    unpatchify_pixels,
)
from mlx_ltx2.shapes import VideoScale
from mlx_ltx2.weights.layout import official_shape
from tests.cases import Case, built
from tests.cases import upsampler as ups
from tests.cases import video_vae as vae

STATISTICS = {"per_channel_statistics.mean-of-means": (128,), "per_channel_statistics.std-of-means": (128,)}


def encoder(section: dict[str, Any]) -> VideoEncoder:
    return VideoEncoder(VideoVAEConfig.from_dict(section))


def decoder(section: dict[str, Any]) -> VideoDecoder:
    return VideoDecoder(VideoVAEConfig.from_dict(section))


def upsampler(config: dict[str, Any]) -> LatentUpsampler:
    return LatentUpsampler(UpsamplerConfig.from_dict(config))


def names_and_shapes(module: Any) -> dict[str, tuple[int, ...]]:
    """Official names and official shapes of all weights."""
    return {k: official_shape(k, tuple(v.shape)) for k, v in tree_flatten(module.parameters())}


def conv(name: str, out: int, into: int) -> dict[str, tuple[int, ...]]:
    return {f"{name}.conv.weight": (out, into, 3, 3, 3), f"{name}.conv.bias": (out,)}


def group(name: str, channels: int, layers: int, timed: bool = False) -> dict[str, tuple[int, ...]]:
    tree: dict[str, tuple[int, ...]] = {}
    for j in range(layers):
        for i in (1, 2):
            tree |= conv(f"{name}.res_blocks.{j}.conv{i}", channels, channels)
        if timed:
            tree[f"{name}.res_blocks.{j}.scale_shift_table"] = (4, channels)
    return tree | (embedder(f"{name}.time_embedder", 4 * channels) if timed else {})


def embedder(name: str, dims: int) -> dict[str, tuple[int, ...]]:
    name = f"{name}.timestep_embedder.linear"
    return {
        f"{name}_1.weight": (dims, 256),
        f"{name}_1.bias": (dims,),
        f"{name}_2.weight": (dims, dims),
        f"{name}_2.bias": (dims,),
    }


def encoder_tree(residuals: list[tuple[int, int]], steps: list[tuple[int, int]]) -> dict[str, tuple[int, ...]]:
    tree = STATISTICS | conv("conv_in", 128, 48) | conv("conv_out", 129, residuals[-1][0])
    for i, (channels, layers) in enumerate(residuals):
        tree |= group(f"down_blocks.{2 * i}", channels, layers)
    for i, (out, into) in enumerate(steps):
        tree |= conv(f"down_blocks.{2 * i + 1}.conv", out, into)
    return tree


def decoder_tree(
    residuals: list[tuple[int, int]], steps: list[tuple[int, int]], timed: bool = False
) -> dict[str, tuple[int, ...]]:
    tree = STATISTICS | conv("conv_in", 1024, 128) | conv("conv_out", 48, 128)
    for i, (channels, layers) in enumerate(residuals):
        tree |= group(f"up_blocks.{2 * i}", channels, layers, timed)
    for i, (out, into) in enumerate(steps):
        tree |= conv(f"up_blocks.{2 * i + 1}.conv", out, into)
    if timed:
        tree |= embedder("last_time_embedder", 256)
        tree |= {"timestep_scale_multiplier": (), "last_scale_shift_table": (2, 128)}
    return tree


FOUR = [(1024, 5), (512, 5), (256, 5), (128, 5)]
THREE = [(4096, 1024), (2048, 512), (1024, 256)]
TREES = {
    "19B encoder": (
        lambda: encoder(vae.VAE_19B_DEV),
        encoder_tree(
            [(128, 4), (256, 6), (512, 6), (1024, 2), (2048, 2)],
            [(64, 128), (256, 256), (128, 512), (256, 1024)],
        ),
        92,
        694_098_881,
    ),
    "19B decoder": (lambda: decoder(vae.VAE_19B_DEV), decoder_tree(FOUR, THREE), 90, 528_380_720),
    "19B distilled decoder": (
        lambda: decoder(vae.VAE_19B_DISTILLED),
        decoder_tree(FOUR, THREE, timed=True),
        90 + 20 + 16 + 6,
        528_380_720 + 24_433_921,
    ),
    "22B encoder": (
        lambda: encoder(vae.VAE_22B),
        encoder_tree(
            [(128, 4), (256, 6), (512, 4), (1024, 2), (1024, 2)],
            [(64, 128), (256, 256), (128, 512), (128, 1024)],
        ),
        84,
        318_936_897,
    ),
    "22B decoder": (
        lambda: decoder(vae.VAE_22B),
        decoder_tree(
            [(1024, 2), (512, 2), (512, 4), (256, 6), (128, 4)],
            [(4096, 1024), (4096, 512), (512, 512), (512, 256)],
        ),
        84,
        407_169_072,
    ),
}


@pytest.mark.parametrize("name", TREES)
def test_full_size_tree(name: str) -> None:
    build, expected, tensors, parameters = TREES[name]
    tree = names_and_shapes(build())
    assert tree == expected
    without = [shape for key, shape in tree.items() if key not in STATISTICS]
    assert (len(without), sum(math.prod(shape) for shape in without)) == (tensors, parameters)


@pytest.mark.parametrize(
    ("config", "kind", "tensors", "parameters", "resampler"),
    [
        (ups.SPATIAL_X2_RATIONAL, "spatial-x2", 73, 497_867_904 + 25, ("conv", (4096, 1024, 3, 3))),
        (ups.SPATIAL_X2, "spatial-x2", 72, 497_867_904, ("0", (4096, 1024, 3, 3))),
        (ups.SPATIAL_X1_5, "spatial-x1.5", 73, 545_058_944 + 25, ("conv", (9216, 1024, 3, 3))),
        (ups.TEMPORAL_X2, "temporal-x2", 72, 130_968_192, ("0", (1024, 512, 3, 3, 3))),
    ],
)
def test_full_size_upsampler(config, kind, tensors, parameters, resampler) -> None:
    module = upsampler(config)
    tree = names_and_shapes(module)
    assert module.kind == kind
    assert (len(tree), sum(math.prod(shape) for shape in tree.values())) == (tensors, parameters)
    assert tree[f"upsampler.{resampler[0]}.weight"] == resampler[1]
    assert tree.get("upsampler.blur_down.kernel", (1, 1, 5, 5)) == (1, 1, 5, 5)
    mid = config["mid_channels"]
    assert tree["initial_conv.weight"] == (mid, 128, 3, 3, 3)
    assert tree["post_upsample_res_blocks.3.norm2.weight"] == (mid,)
    assert tree["final_conv.weight"] == (128, mid, 3, 3, 3)


FULL_ENCODERS = [encoder(vae.VAE_19B_DEV), encoder(vae.VAE_22B)]
FULL_DECODERS = [decoder(vae.VAE_19B_DEV), decoder(vae.VAE_22B)]


@settings(max_examples=8, deadline=None)
@given(st.integers(1, 26), st.integers(2, 5), st.integers(2, 5), st.sampled_from([0, 1]))
def test_shapes_follow_the_grid(frames: int, rows: int, columns: int, which: int) -> None:
    latent = FULL_ENCODERS[which](mx.zeros((1, frames, 32 * rows, 32 * columns, 3)))
    latent_frames = (frames - 1) // 8 + 1
    assert latent.shape == (1, latent_frames, rows, columns, 128)
    pixels = FULL_DECODERS[which](latent)
    assert pixels.shape == (1, 8 * (latent_frames - 1) + 1, 32 * rows, 32 * columns, 3)


@settings(max_examples=10, deadline=None)
@given(st.integers(1, 3), st.integers(1, 4), st.integers(1, 5), st.integers(1, 5))
def test_upsampled_shapes(batch: int, frames: int, rows: int, columns: int) -> None:
    latent = mx.zeros((batch, frames, rows, columns, 8))
    for config in (ups.SPATIAL_X2, ups.SPATIAL_X2_RATIONAL):
        assert upsampler(ups.small(config))(latent).shape == (batch, frames, 2 * rows, 2 * columns, 8)
    larger = (batch, frames, math.ceil(1.5 * rows), math.ceil(1.5 * columns), 8)
    assert upsampler(ups.small(ups.SPATIAL_X1_5))(latent).shape == larger
    assert upsampler(ups.small(ups.TEMPORAL_X2))(latent).shape == (batch, 2 * frames - 1, rows, columns, 8)


def test_pixels_patch_columns_before_rows() -> None:
    x = mx.arange(2 * 4 * 4 * 3).reshape(1, 2, 4, 4, 3)
    patched = patchify_pixels(x, 2)
    assert patched.shape == (1, 2, 2, 2, 12)
    # Order colour, column, row: the second entry is one row below the first, the third one column beside it.
    assert patched[0, 0, 0, 0, :3].tolist() == [x[0, 0, r, c, 0].item() for r, c in ((0, 0), (1, 0), (0, 1))]
    assert mx.array_equal(unpatchify_pixels(patched, 2), x)


def test_space_to_depth_inverts() -> None:
    x = mx.arange(2 * 4 * 4 * 6 * 3).reshape(2, 4, 4, 6, 3)
    for stride in ((2, 1, 1), (1, 2, 2), (2, 2, 2)):
        assert mx.array_equal(depth_to_space(space_to_depth(x, stride), stride), x)
    assert space_to_depth(x, (2, 1, 1))[0, 0, 0, 0].tolist() == [0, 72, 1, 73, 2, 74]


def case_of(name: str) -> Case:
    return next(c for c in vae.CASES if c.name.startswith(name))


def test_surplus_frames_are_left_out() -> None:
    module, _ = built(case_of("encoder 22B"))
    pixels = mx.random.uniform(-1, 1, (1, 12, 32, 32, 3), key=mx.random.key(0))
    assert mx.array_equal(module(pixels), module(pixels[:, :9]))


def test_encoder_never_looks_ahead() -> None:
    module, _ = built(case_of("encoder 19B"))
    pixels = mx.random.uniform(-1, 1, (1, 17, 32, 32, 3), key=mx.random.key(0))
    np.testing.assert_allclose(module(pixels)[:, :2], module(pixels[:, :9]), rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", ["decoder 19B (", "decoder 19B distilled", "decoder 22B"])
def test_decoder_is_the_sum_of_its_pieces(name: str) -> None:
    case = case_of(name)
    module, _ = built(case)
    inputs = {k: mx.array(v) for k, v in case.inputs(case.rng()).items()}
    timestep = module.scale_timestep(0.05)
    x = module.conv_in(module.prepare(inputs["latent"], inputs.get("noise")), causal=module.causal)
    for block in module.up_blocks:
        timed = {"timestep": timestep} if hasattr(block, "res_blocks") else {}
        x = block(x, causal=module.causal, **timed)
    whole = module(inputs["latent"], noise=inputs.get("noise"))
    assert mx.array_equal(module.finish(x, timestep), whole)


def test_decoder_of_frames_in_time_needs_only_two_neighbours() -> None:
    # What a streaming decoder relies on: a convolution fed with its own two frames of context is exact.
    module, _ = built(case_of("decoder 22B"))
    x = mx.random.normal((1, 5, 2, 3, 64), key=mx.random.key(1))
    block = module.up_blocks[0].res_blocks[0]
    whole = block.conv1(x, causal=False)
    np.testing.assert_allclose(block.conv1.conv(x[:, 1:4]), whole[:, 2:3], rtol=0, atol=1e-6)


def test_bfloat16_does_not_leak_into_float32() -> None:
    for name in ("encoder 22B", "decoder 19B distilled"):
        case = case_of(name)
        module, _ = built(case, mx.bfloat16)
        inputs = {k: mx.array(v) for k, v in case.inputs(case.rng()).items()}
        first = inputs.pop("pixels", None)
        result = module(first) if first is not None else module(inputs["latent"], noise=inputs["noise"])
        assert result.dtype == mx.bfloat16


def test_statistics_invert() -> None:
    module, _ = built(case_of("encoder 19B"))
    x = mx.random.normal((1, 2, 3, 4, 8), key=mx.random.key(2))
    back = module.per_channel_statistics.normalize(module.per_channel_statistics.denormalize(x))
    np.testing.assert_allclose(back, x, rtol=0, atol=1e-6)


def test_fallbacks_of_absent_keys() -> None:
    config = VideoVAEConfig.from_dict({"encoder_blocks": vae.ENCODER_19B, "decoder_blocks": vae.DECODER_19B})
    assert (config.encoder_padding, config.decoder_padding) == ("zeros", "reflect")
    assert config.timestep_conditioning and not config.causal_decoder
    assert (config.latent_channels, config.patch_size, config.bottleneck_channels) == (128, 4, 1024)
    assert config.scale == VideoScale(8, 32)
    assert config.decoder_blocks[1].residual and config.decoder_blocks[1].multiplier == 2
    both = VideoVAEConfig.from_dict({**vae.VAE_22B, "encoder_spatial_padding_mode": "reflect"})
    assert (both.encoder_padding, both.decoder_padding) == ("zeros", "zeros")
    apart = VideoVAEConfig.from_dict({**vae.VAE_19B_DEV, "decoder_spatial_padding_mode": "zeros"})
    assert (apart.encoder_padding, apart.decoder_padding) == ("zeros", "zeros")
    assert UpsamplerConfig.from_dict({}) == UpsamplerConfig(128, 512, 4, False, 2.0, False)


def test_scale_and_bottleneck_follow_the_blocks() -> None:
    # Rules of ltx-core 1.2.0; 1.0.0 takes 8 frames, 32 pixels and 8 times the base for granted.
    section = vae.small(
        vae.VAE_22B,
        encoder_blocks=[["compress_all_res", {"multiplier": 2}], ["compress_all_res", {"multiplier": 2}]],
        decoder_blocks=[["compress_all", {"multiplier": 2}], ["compress_all", {"multiplier": 2}]],
    )
    config = VideoVAEConfig.from_dict(section)
    assert config.scale == VideoScale(4, 16) and config.bottleneck_channels == 32
    assert encoder(section)(mx.zeros((1, 8, 16, 32, 3))).shape == (1, 2, 1, 2, 8)
    assert decoder(section)(mx.zeros((1, 2, 1, 2, 8))).shape == (1, 5, 16, 32, 3)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"_class_name": "CausalDiffusionVAE"}, "_class_name"),
        ({"dims": 2}, "dims"),
        ({"norm_layer": "group_norm"}, "norm_layer"),
        ({"latent_log_var": "none"}, "latent_log_var"),
        ({"spatial_padding_mode": "circular"}, "spatial_padding_mode"),
        ({"patch_size": 0}, "patch_size"),
        ({"latent_channels": "128"}, "latent_channels"),
        ({"encoder_blocks": [["attn_res_x", {"num_layers": 1}]]}, "attn_res_x"),
        ({"encoder_blocks": [["res_x_y", {}]]}, "res_x_y"),
        ({"encoder_blocks": ["res_x"]}, "each entry"),
        ({"encoder_blocks": [["res_x", None]]}, "each entry"),
        ({"encoder_blocks": [["res_x", {}]]}, "num_layers"),
        ({"decoder_blocks": [["compress_space_res", {}]]}, "compress_space_res"),
        ({"decoder_blocks": [["res_x", {"num_layers": 1, "inject_noise": True}]]}, "inject_noise"),
        ({"decoder_blocks": [["compress_all", {"multiplier": 0}]]}, "multiplier"),
    ],
)
def test_config_refusals(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(WeightsError, match=words):
        VideoVAEConfig.from_dict({**vae.VAE_22B, **changes})


@pytest.mark.parametrize(
    ("build", "changes"),
    [
        (encoder, {"encoder_blocks": []}),
        (decoder, {"decoder_blocks": []}),
        (encoder, {"latent_channels": 6, "encoder_blocks": [["compress_all_res", {"multiplier": 1}]]}),
        (decoder, {"decoder_base_channels": 3, "decoder_blocks": [["compress_all", {"residual": True}]]}),
    ],
)
def test_networks_that_cannot_be_built(build, changes: dict[str, Any]) -> None:
    with pytest.raises(WeightsError, match="vae config"):
        build({k: v for k, v in {**vae.VAE_22B, **changes}.items() if k != "encoder_base_channels"})


@pytest.mark.parametrize(
    "changes",
    [
        {"dims": 2},
        {"mid_channels": 48},
        {"num_blocks_per_stage": 0},
        {"spatial_upsample": False},
        {"temporal_upsample": True},
        {"spatial_scale": 3.0},
    ],
)
def test_upsampler_refusals(changes: dict[str, Any]) -> None:
    with pytest.raises(WeightsError, match="upsampler config"):
        UpsamplerConfig.from_dict({**ups.SPATIAL_X2_RATIONAL, **changes})


def test_wrong_inputs() -> None:
    small_encoder, small_decoder = encoder(vae.small(vae.VAE_22B)), decoder(vae.small(vae.VAE_19B_DEV))
    timed = decoder(vae.small(vae.VAE_19B_DISTILLED))
    latent = mx.zeros((1, 2, 2, 2, 8))
    with pytest.raises(ShapeError, match="width 48"):
        small_encoder(mx.zeros((1, 9, 32, 48, 3)))
    with pytest.raises(ShapeError, match="cannot be encoded"):
        small_encoder(mx.zeros((9, 32, 32, 3)))
    with pytest.raises(ShapeError, match="cannot be decoded"):
        small_decoder(mx.zeros((1, 2, 2, 2, 128)))
    with pytest.raises(ShapeError, match="mirrored"):
        small_decoder(mx.zeros((1, 2, 1, 2, 8)))
    with pytest.raises(RequestError, match="no noise was given"):
        timed(latent)
    with pytest.raises(RequestError, match="leave noise= out"):
        small_decoder(latent, noise=latent)
    with pytest.raises(ShapeError, match="noise of shape"):
        timed(latent, noise=latent[:, :1])
    with pytest.raises(ShapeError, match="cannot be upsampled"):
        upsampler(ups.small(ups.SPATIAL_X2))(mx.zeros((1, 2, 2, 2, 4)))
