"""Audio networks, front end and resampler without a reference: names, shapes, lengths, laws, errors."""

from __future__ import annotations

import math
from functools import cache

import librosa
import mlx.core as mx
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from mlx.utils import tree_flatten

from mlx_ltx2.errors import ShapeError, WeightsError
from mlx_ltx2.media import resample as resample_module
from mlx_ltx2.media.resample import resample
from mlx_ltx2.models.audio_vae import AudioDecoder, AudioEncoder, AudioVAEConfig, log_mel
from mlx_ltx2.models.audio_vae.mel import mel_bank
from mlx_ltx2.models.vocoder import VocoderConfig, build_vocoder
from mlx_ltx2.models.vocoder.activation import Activation1d
from mlx_ltx2.models.vocoder.vocoder import TransposedConv1d, sinc_phases
from mlx_ltx2.weights.layout import official_shape
from tests.cases import as_numpy, built, load_official, official_weights, relative_error
from tests.cases import audio_vae as audio_cases
from tests.cases import vocoder as vocoder_cases

SLOWLY = settings(max_examples=20, deadline=None, derandomize=True)


def official_tree(module) -> dict[str, tuple[int, ...]]:
    """Name -> shape as the official files have them; reads no values."""
    return {name: official_shape(name, tuple(p.shape)) for name, p in tree_flatten(module.parameters())}


def total(tree: dict[str, tuple[int, ...]]) -> int:
    return sum(math.prod(shape) for shape in tree.values())


def pair(name: str, shape: tuple[int, ...]) -> dict[str, tuple[int, ...]]:
    return {f"{name}.weight": shape, f"{name}.bias": (shape[0],)}


def conv(name: str, out: int, into: int, k: int = 3) -> dict[str, tuple[int, ...]]:
    return pair(f"{name}.conv", (out, into, k, k))


def block(name: str, out: int, into: int) -> dict[str, tuple[int, ...]]:
    tree = conv(f"{name}.conv1", out, into) | conv(f"{name}.conv2", out, out)
    return tree | conv(f"{name}.nin_shortcut", out, into, 1) if out != into else tree


STATISTICS = {"per_channel_statistics.mean-of-means": (128,), "per_channel_statistics.std-of-means": (128,)}


def expected_encoder() -> dict[str, tuple[int, ...]]:
    tree = STATISTICS | conv("conv_in", 128, 2) | conv("conv_out", 16, 512)
    for level, (width, into) in enumerate([(128, 128), (256, 128), (512, 256)]):
        tree |= block(f"down.{level}.block.0", width, into) | block(f"down.{level}.block.1", width, width)
    tree |= conv("down.0.downsample", 128, 128) | conv("down.1.downsample", 256, 256)
    return tree | block("mid.block_1", 512, 512) | block("mid.block_2", 512, 512)


def expected_decoder() -> dict[str, tuple[int, ...]]:
    tree = STATISTICS | conv("conv_in", 512, 8) | conv("conv_out", 2, 128)
    for level, (width, into) in enumerate([(128, 256), (256, 512), (512, 512)]):
        for i in range(3):
            tree |= block(f"up.{level}.block.{i}", width, width if i else into)
    tree |= conv("up.1.upsample.conv", 256, 256) | conv("up.2.upsample.conv", 512, 512)
    return tree | block("mid.block_1", 512, 512) | block("mid.block_2", 512, 512)


def expected_generator(prefix: str, width: int, kernels: list[int], *, amp: bool) -> dict[str, tuple[int, ...]]:
    def activation(name: str, channels: int) -> dict[str, tuple[int, ...]]:
        return {
            f"{name}.act.alpha": (channels,),
            f"{name}.act.beta": (channels,),
            f"{name}.upsample.filter": (1, 1, 12),
            f"{name}.downsample.lowpass.filter": (1, 1, 12),
        }

    tree = pair(f"{prefix}conv_pre", (width, 128, 7))
    for u, kernel in enumerate(kernels):
        into, c = width // 2**u, width // 2 ** (u + 1)
        tree |= {f"{prefix}ups.{u}.weight": (into, c, kernel), f"{prefix}ups.{u}.bias": (c,)}
        for m, k in enumerate((3, 7, 11)):
            name = f"{prefix}resblocks.{3 * u + m}"
            for n in range(3):
                for side in "12":
                    tree |= pair(f"{name}.convs{side}.{n}", (c, c, k))
                    tree |= activation(f"{name}.acts{side}.{n}", c) if amp else {}
    last = width // 2 ** len(kernels)
    if amp:
        tree |= activation(f"{prefix}act_post", last)
        return tree | {f"{prefix}conv_post.weight": (2, last, 7)}
    return tree | pair(f"{prefix}conv_post", (2, last, 7))


def test_full_size_audio_vae_names_and_totals():
    config = AudioVAEConfig.from_dict(audio_cases.OFFICIAL)
    encoder, decoder = official_tree(AudioEncoder(config)), official_tree(AudioDecoder(config))
    assert encoder == expected_encoder()
    assert decoder == expected_decoder()
    assert (len(encoder) - 2, total(encoder) - 256) == (44, 21_333_008)
    assert (len(decoder) - 2, total(decoder) - 256) == (56, 31_915_138)


def test_full_size_vocoder_names_and_totals():
    before = mx.get_active_memory()
    flat = official_tree(build_vocoder(VocoderConfig.from_dict(vocoder_cases.OFFICIAL_FLAT)))
    assert flat == expected_generator("", 1024, [16, 15, 8, 4, 4], amp=False)
    assert (len(flat), total(flat)) == (194, 55_592_802)

    nested = official_tree(build_vocoder(VocoderConfig.from_dict(vocoder_cases.OFFICIAL_NESTED)))
    core = expected_generator("vocoder.", 1536, [11, 4, 4, 4, 4, 4], amp=True)
    extension = expected_generator("bwe_generator.", 512, [12, 11, 4, 4, 4], amp=True)
    mel = {
        "mel_stft.mel_basis": (64, 257),
        "mel_stft.stft_fn.forward_basis": (514, 1, 512),
        "mel_stft.stft_fn.inverse_basis": (514, 1, 512),
    }
    assert nested == core | extension | mel
    assert (len(core), total(core)) == (667, 115_077_648)
    assert (len(extension), total(extension)) == (557, 13_464_600)
    assert (len(mel), total(mel)) == (3, 542_784)
    assert mx.get_active_memory() - before < 1_000_000, "building a network must not materialise it"


@cache
def tiny(network: str):
    return built(next(c for c in audio_cases.CASES if c.name == f"{network}-tiny-t1"))[0]


@pytest.fixture
def encoder():
    return tiny("encoder")


@pytest.fixture
def decoder():
    return tiny("decoder")


@pytest.mark.parametrize("frames", range(1, 11))
def test_audio_vae_lengths(encoder, decoder, frames):
    latent = encoder(mx.zeros((1, frames, 16, 2)))
    latents = math.ceil(math.ceil(frames / 2) / 2)
    assert latent.shape == (1, latents, 4, 4)
    assert decoder(latent).shape == (1, 4 * latents - 3, 16, 2)


def test_official_config_shapes():
    config = AudioVAEConfig.from_dict(audio_cases.OFFICIAL)
    assert (config.latent_mel, config.latent_channels) == (16, 8)
    assert (config.rate_hz, config.hop_length, config.n_fft, config.mel_bins) == (16000, 160, 1024, 64)


@settings(SLOWLY, max_examples=8)
@given(cut=st.integers(1, 8), seed=st.integers(0, 2**16))
def test_audio_vae_is_causal(cut, seed):
    encoder, decoder = tiny("encoder"), tiny("decoder")
    rng = np.random.default_rng(seed)
    mel = rng.standard_normal((1, 9, 16, 2)).astype(np.float32)
    other = mel.copy()
    other[:, cut:] += 1
    # Latent i ends with mel frame 4 i.
    same = (cut + 3) // 4
    a, b = as_numpy(encoder(mx.array(mel))), as_numpy(encoder(mx.array(other)))
    np.testing.assert_allclose(a[:, :same], b[:, :same], atol=1e-6)
    latent = rng.standard_normal((1, 3, 4, 4)).astype(np.float32)
    np.testing.assert_allclose(
        as_numpy(decoder(mx.array(latent)))[:, :5], as_numpy(decoder(mx.array(latent[:, :2]))), atol=1e-5
    )


def test_statistics_are_channel_major_and_undo_each_other(encoder):
    statistics = encoder.per_channel_statistics
    x = np.random.default_rng(0).standard_normal((2, 3, 4, 4)).astype(np.float32)
    np.testing.assert_allclose(as_numpy(statistics.denormalize(statistics.normalize(mx.array(x)))), x, atol=1e-6)
    mean, deviation = (as_numpy(statistics[k]) for k in ("mean-of-means", "std-of-means"))
    row, channel = 3, 1
    want = (x[0, 0, row, channel] - mean[channel * 4 + row]) / deviation[channel * 4 + row]
    assert abs(as_numpy(statistics.normalize(mx.array(x)))[0, 0, row, channel] - want) < 1e-6


def test_networks_keep_the_weights_dtype(encoder):
    low = load_official(audio_cases.encoder(audio_cases.TINY), official_weights(encoder, 0), mx.bfloat16)
    assert low(mx.zeros((1, 5, 16, 2))).dtype == mx.bfloat16


@pytest.mark.parametrize(
    ("changes", "key"),
    [
        ({"norm_type": "group"}, "norm_type"),
        ({"causality_axis": "width"}, "causality_axis"),
        ({"causality_axis": None}, "causality_axis"),
        ({"mid_block_add_attention": True}, "mid_block_add_attention"),
        ({"double_z": False}, "double_z"),
        ({"resamp_with_conv": False}, "resamp_with_conv"),
        ({"attn_resolutions": [128]}, "attn_resolutions"),
    ],
)
def test_other_audio_vaes_are_refused(changes, key):
    with pytest.raises(WeightsError, match=key):
        AudioVAEConfig.from_dict(audio_cases.section(**changes))


def test_absent_audio_keys_take_the_reference_fallbacks():
    with pytest.raises(WeightsError, match="mid_block_add_attention is True"):
        AudioVAEConfig.from_dict({})
    network = {"mid_block_add_attention": False}
    with pytest.raises(WeightsError, match="mel_bins"):
        AudioVAEConfig.from_dict({"model": {"params": {"ddconfig": network}}})
    bins = {"mel": {"n_mel_channels": 64}}
    read = AudioVAEConfig.from_dict({"model": {"params": {"ddconfig": network}}, "preprocessing": bins})
    assert read == AudioVAEConfig()


@pytest.mark.parametrize("shape", [(1, 4, 16), (1, 4, 8, 2), (1, 4, 16, 1), (1, 0, 16, 2)])
def test_wrong_shapes_are_refused(encoder, decoder, shape):
    with pytest.raises(ShapeError, match="audio encoder takes"):
        encoder(mx.zeros(shape))
    with pytest.raises(ShapeError, match="audio decoder takes"):
        decoder(mx.zeros(shape))


CONFIG = AudioVAEConfig()


@pytest.mark.parametrize(("rate", "n_fft", "bins"), [(16000, 1024, 64), (24000, 512, 80), (1500, 128, 10)])
def test_mel_bank_is_librosas(rate, n_fft, bins):
    want = librosa.filters.mel(sr=rate, n_fft=n_fft, n_mels=bins, htk=False, norm="slaney").T
    assert relative_error(mel_bank(rate, n_fft, bins), want) < 1e-6


@SLOWLY
@given(n=st.integers(513, 4000), channels=st.integers(1, 2))
def test_log_mel_frames(n, channels):
    mel = log_mel(mx.zeros((1, n, channels)), CONFIG)
    assert mel.shape == (1, n // 160 + 1, 64, channels) and mel.dtype == mx.float32
    np.testing.assert_allclose(as_numpy(mel), math.log(1e-5), rtol=1e-6)


def test_log_mel_finds_a_tone_and_scales_with_it():
    samples = np.sin(2 * np.pi * 1000 * np.arange(4000) / 16000).astype(np.float32)[None, :, None]
    mel = as_numpy(log_mel(mx.array(samples), CONFIG))[0, 5:-5, :, 0]
    centres = librosa.mel_frequencies(66, fmin=0, fmax=8000)[1:-1]
    assert (np.abs(centres[mel.argmax(axis=1)] - 1000) < 60).all()
    louder = as_numpy(log_mel(mx.array(2 * samples), CONFIG))[0, 5:-5, :, 0]
    np.testing.assert_allclose((louder - mel)[mel > -5], math.log(2), atol=1e-3)


@pytest.mark.parametrize("shape", [(1, 512, 2), (1000, 2), (1, 0, 1)])
def test_log_mel_refuses_short_sounds(shape):
    with pytest.raises(ShapeError, match="longer sound"):
        log_mel(mx.zeros(shape), CONFIG)


RATES = st.sampled_from([8000, 11025, 16000, 22050, 24000, 32000, 44100, 48000, 96000, 44101])


def tone(rate: int, seconds: float, hz: float = 440) -> np.ndarray:
    time = np.arange(round(rate * seconds)) / rate
    return np.stack([np.sin(2 * np.pi * hz * time), np.cos(2 * np.pi * hz * time)], axis=1).astype(np.float32)


@SLOWLY
@given(old=RATES, new=RATES)
def test_resampled_sine_is_the_sine(old, new):
    got = resample(tone(old, 0.1), old, new)
    assert got.dtype == np.float32 and got.shape == (math.ceil(round(old * 0.1) * new / old), 2)
    edge = new // 100
    want = tone(new, 0.2)[: len(got)]
    assert np.abs(got - want)[edge:-edge].max() < 5e-3


@SLOWLY
@given(seed=st.integers(0, 2**16), n=st.integers(0, 300), scale=st.floats(-2, 2))
def test_resampling_is_linear_and_keeps_channels_apart(seed, n, scale):
    rng = np.random.default_rng(seed)
    a, b = rng.standard_normal((2, n, 3)).astype(np.float32)
    mixed = resample(a + np.float32(scale) * b, 44100, 16000)
    np.testing.assert_allclose(
        mixed, resample(a, 44100, 16000) + np.float32(scale) * resample(b, 44100, 16000), atol=1e-5
    )
    np.testing.assert_allclose(resample(a, 44100, 16000)[:, 1:2], resample(a[:, 1:2], 44100, 16000), atol=1e-6)


def test_resampling_removes_what_the_new_rate_cannot_hold():
    assert np.abs(resample(tone(48000, 0.2, 15000), 48000, 16000))[100:-100].max() < 1e-2


@pytest.mark.parametrize(("old", "new"), [(44100, 16000), (16000, 48000), (48000, 44100)])
def test_blocks_and_tables_do_not_show(monkeypatch, old, new):
    samples = tone(old, 0.05)
    want = resample(samples, old, new)
    monkeypatch.setattr(resample_module, "_BLOCK_ELEMENTS", 1000)
    monkeypatch.setattr(resample_module, "_TABLE_PHASES", 0)
    np.testing.assert_allclose(resample(samples, old, new), want, atol=1e-6)


def test_equal_rates_change_nothing():
    samples = tone(16000, 0.01)
    np.testing.assert_array_equal(resample(samples, 16000, 16000), samples)


@pytest.mark.parametrize(("old", "new"), [(0, 16000), (16000, -1), (44100.5, 16000)])
def test_impossible_rates_are_refused(old, new):
    with pytest.raises(ShapeError, match="sampling rate"):
        resample(np.zeros((10, 2), np.float32), old, new)


def test_flat_samples_are_refused():
    with pytest.raises(ShapeError, match="channels"):
        resample(np.zeros(10, np.float32), 8000, 16000)


@pytest.mark.parametrize("k,stride", [(16, 6), (15, 5), (8, 2), (4, 2), (11, 5), (12, 6), (7, 4), (3, 3), (5, 1)])
@pytest.mark.parametrize("n", [1, 5])
def test_transposed_convolution_is_mlxs(k, stride, n):
    module = TransposedConv1d(3, 4, k, stride)
    module.bias = mx.random.normal((4,))
    x = mx.random.normal((2, n, 3))
    want = mx.conv_transpose1d(x, module.weight, stride=stride, padding=(k - stride) // 2) + module.bias
    assert relative_error(as_numpy(module(x)), as_numpy(want)) < 1e-6


@pytest.mark.parametrize("n", [1, 2, 9])
def test_activation_is_upsample_snake_downsample(n):
    rng = np.random.default_rng(n)
    module = Activation1d(3, with_beta=True)
    up, down = rng.standard_normal((2, 12))
    alpha, beta = rng.standard_normal((2, 3)) * 0.3
    module.upsample.filter = mx.array(up.astype(np.float32).reshape(1, 12, 1))
    module.downsample.lowpass.filter = mx.array(down.astype(np.float32).reshape(1, 12, 1))
    module.act.alpha, module.act.beta = mx.array(alpha.astype(np.float32)), mx.array(beta.astype(np.float32))
    x = rng.standard_normal((1, n, 3))

    padded = np.pad(x[0], ((5, 5), (0, 0)), mode="edge")
    stuffed = np.zeros((2 * len(padded) - 1, 3))
    stuffed[::2] = padded
    doubled = 2 * np.stack([np.convolve(stuffed[:, c], up) for c in range(3)], axis=1)[15:-15]
    doubled += np.sin(doubled * np.exp(alpha)) ** 2 / (np.exp(beta) + 1e-9)
    padded = np.pad(doubled, ((5, 6), (0, 0)), mode="edge")
    want = np.stack([np.correlate(padded[:, c], down)[::2] for c in range(3)], axis=1)
    got = as_numpy(module(mx.array(x.astype(np.float32))))[0]
    assert relative_error(got, want) < 1e-5


@pytest.mark.parametrize("ratio", [2, 3])
def test_skip_path_is_the_resampler(ratio):
    samples = tone(16000, 0.02)[:, :1]
    want = resample(samples, 16000, 16000 * ratio)[:, 0]
    taps = sinc_phases(ratio)[..., 0]
    padded = np.pad(samples[:, 0], 7, mode="edge")
    got = np.stack([np.correlate(padded, phase) for phase in taps], axis=1).reshape(-1)
    assert len(got) == len(want)
    np.testing.assert_allclose(got[7 * ratio : -7 * ratio], want[7 * ratio : -7 * ratio], atol=1e-6)


@pytest.mark.parametrize("latents", [1, 2])
def test_vocoder_lengths_at_official_rates(latents):
    frames = 4 * latents - 3
    mel = mx.zeros((1, frames, 64, 2))
    flat = build_vocoder(VocoderConfig.from_dict(vocoder_cases.FLAT))
    assert flat.rate_hz == 24000 and flat(mel).shape == (1, frames * 240, 2)
    config = vocoder_cases.nested({"upsample_initial_channel": 64}, {"upsample_initial_channel": 32})
    nested = build_vocoder(VocoderConfig.from_dict(config))
    assert nested.rate_hz == 48000 and nested(mel).shape == (1, frames * 160 * 3, 2)
    assert flat(mel).dtype == nested(mel).dtype == mx.float32


def test_uneven_hops_are_cut():
    module = build_vocoder(VocoderConfig.from_dict(vocoder_cases.NESTED_UNEVEN))
    assert module(mx.zeros((2, 3, 64, 2))).shape == (2, 3 * 10 * 2, 2)


@pytest.mark.parametrize("name", ["flat-t2-batch2", "nested-t4-batch2"])
def test_vocoder_samples_of_a_batch_are_independent(name):
    case = next(c for c in vocoder_cases.CASES if c.name == name)
    module, _ = built(case)
    mel = mx.array(case.inputs(case.rng())["mel"])
    together = as_numpy(module(mel))
    np.testing.assert_allclose(as_numpy(module(mel[1:]))[0], together[1], atol=1e-5)
    assert np.abs(together).max() <= 1


@pytest.mark.parametrize("shape", [(1, 3, 64), (1, 3, 64, 1), (1, 3, 32, 2), (1, 0, 64, 2)])
def test_vocoder_refuses_other_mels(shape):
    module = build_vocoder(VocoderConfig.from_dict(vocoder_cases.FLAT_SHORT))
    with pytest.raises(ShapeError, match="vocoder takes"):
        module(mx.zeros(shape))


@pytest.mark.parametrize(
    ("section", "text"),
    [
        ({}, "resblock is absent"),
        (vocoder_cases.flat(resblock="AMP1"), "resblock"),
        (vocoder_cases.flat(stereo=False), "stereo"),
        (vocoder_cases.flat(upsample_rates=[6, 5]), "upsample_rates"),
        (vocoder_cases.flat(upsample_kernel_sizes=[16, 15, 8, 4, 1]), "upsample_rates"),
        (vocoder_cases.flat(resblock_kernel_sizes=[3, 7]), "as many"),
        (vocoder_cases.flat(resblock_kernel_sizes=[3, 7, 10]), "odd"),
        (vocoder_cases.flat(upsample_initial_channel=40), "multiple of 32"),
        (vocoder_cases.nested({"resblock": "1"}, {}), "vocoder.resblock"),
        (vocoder_cases.nested({"activation": "snake"}, {}), "vocoder.activation"),
        (vocoder_cases.nested({}, {"activation": "snake"}), "bwe.activation"),
        (vocoder_cases.nested({}, {"stereo": False}), "bwe.stereo"),
        (vocoder_cases.nested({}, {"num_mels": 80}), "num_mels"),
        (vocoder_cases.nested({}, {"output_sampling_rate": 44100}), "multiple of the input rate"),
        (vocoder_cases.nested({}, {"hop_length": 100}), "samples per mel frame"),
    ],
)
def test_other_vocoders_are_refused(section, text):
    with pytest.raises(WeightsError, match=text):
        VocoderConfig.from_dict(section)


def test_missing_bandwidth_keys_are_named():
    config = vocoder_cases.nested({}, {})
    del config["bwe"]["n_fft"], config["bwe"]["hop_length"]
    with pytest.raises(WeightsError, match="hop_length, n_fft"):
        VocoderConfig.from_dict(config)


def test_unknown_blocks_and_activations_are_refused():
    for key, value in (("resblock", "2"), ("activation", "relu")):
        with pytest.raises(WeightsError, match=value):
            vocoder_cases.generator({**vocoder_cases.GENERATOR, key: value})
