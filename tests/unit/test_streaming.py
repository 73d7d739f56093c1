"""Streamed networks against resident ones: same numbers, bytes read, allocator peaks, LoRAs, text encoder."""

from __future__ import annotations

from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest

from mlx_ltx2.diffusion.denoisers import Evaluator, GuidedDenoiser
from mlx_ltx2.diffusion.guidance import GuidanceParams
from mlx_ltx2.diffusion.loop import denoise
from mlx_ltx2.diffusion.noise import NoiseSource
from mlx_ltx2.diffusion.state import StatePair, add_noise, audio_state, video_state
from mlx_ltx2.diffusion.steppers import make_stepper
from mlx_ltx2.shapes import LatentShape
from mlx_ltx2.states import TextContext
from mlx_ltx2.weights.index import ModelFolder
from mlx_ltx2.weights.networks import Networks
from mlx_ltx2.weights.text_encoder import load_text_encoder

BLOCKS = 5
GUIDED = GuidanceParams(cfg=3.0, stg=1.0, stg_blocks=(1, 3), modality=2.0, rescale=0.5)


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory):
    from mlx_ltx2.demo.tiny import write_tiny_checkpoint

    return write_tiny_checkpoint(tmp_path_factory.mktemp("source"), blocks=BLOCKS)


@pytest.fixture(scope="module")
def models(sources, tmp_path_factory: pytest.TempPathFactory):
    """models(bits): the tiny model with six blocks, plain or quantized."""
    from mlx_ltx2 import convert

    made: dict[int | None, Networks] = {}

    def model(bits: int | None = None) -> Networks:
        if bits not in made:
            output = tmp_path_factory.mktemp("streamed") / "model"
            options = {} if bits is None else {"q_bits": bits, "q_group_size": 32}
            convert(sources.checkpoint, output, variant="distilled", **options)
            made[bits] = Networks(ModelFolder.open(output), sources.text_encoder)
        return made[bits]

    return model


def context(seed: int, slots: int = 16) -> TextContext:
    mx.random.seed(seed)
    return TextContext(mx.random.normal((1, slots, 64)), mx.random.normal((1, slots, 32)))


def sampled(network, *, audio: bool = True, guided: GuidanceParams = GUIDED, steps: int = 2) -> StatePair:
    noise = NoiseSource(7, 0)
    shape = LatentShape(2, 4, 4)
    video = video_state(shape, 128, 24.0, dtype=network.dtype)
    video = add_noise(video, noise.normal("video", video.latent.shape))
    sound = None
    if audio:
        sound = audio_state(9, dtype=network.dtype)
        sound = add_noise(sound, noise.normal("audio", sound.latent.shape))
    evaluator = Evaluator(network, lambda v, a: network.rope(v, a, network.dtype))
    denoiser = GuidedDenoiser(evaluator, context(1), context(2), video=guided, audio=guided)
    return denoise(denoiser, video, sound, np.linspace(1, 0, steps + 1), make_stepper("euler", noise))


def equal(one: StatePair, two: StatePair) -> bool:
    pairs = [(a, b) for a, b in zip(one, two, strict=True) if a is not None]
    return all(mx.array_equal(a.latent, b.latent).item() for a, b in pairs)


@pytest.mark.parametrize("bits", [None, 8])
@pytest.mark.parametrize("resident", [0, 2, BLOCKS])
def test_latents_are_those_of_the_resident_network(models, bits, resident):
    networks = models(bits)
    whole = networks.load_transformer(video=True, audio=True)
    streamed = networks.load_transformer(video=True, audio=True, resident_blocks=resident)
    assert streamed.dtype == whole.dtype
    assert equal(sampled(whole), sampled(streamed))


def test_one_stream_alone(models):
    whole = models().load_transformer(video=True, audio=False)
    streamed = models().load_transformer(video=True, audio=False, resident_blocks=1)
    assert equal(sampled(whole, audio=False), sampled(streamed, audio=False))


@pytest.mark.parametrize("resident", [0, 2])
@pytest.mark.parametrize("passes", [1, 4])
def test_bytes_read_per_step_do_not_depend_on_the_passes(models, resident, passes):
    streamed = models().load_transformer(video=True, audio=True, resident_blocks=resident)
    blocks = streamed.blocks
    before = blocks.reader.bytes_read
    steps = 2
    sampled(streamed, guided=GUIDED if passes == 4 else GuidanceParams(), steps=steps)
    read = blocks.reader.bytes_read - before
    assert read <= 1.02 * steps * blocks.streamed_bytes
    assert read == steps * blocks.streamed_bytes
    share = (BLOCKS - resident) / BLOCKS
    stored = sum(info.nbytes for n, (_, _, info) in blocks.reader.places.items() if n.startswith("transformer_blocks."))
    assert blocks.streamed_bytes == pytest.approx(share * stored)


def test_allocator_peak_holds_the_kept_blocks_and_two_more(models):
    networks = models()
    peaks = {}
    for resident in (0, 2, BLOCKS):
        mx.clear_cache()
        base = mx.get_active_memory()
        streamed = networks.load_transformer(video=True, audio=True, resident_blocks=resident)
        sampled(streamed, steps=1)  # so that what is kept has been read
        mx.reset_peak_memory()
        sampled(streamed, steps=2)
        peaks[resident] = mx.get_peak_memory() - base
        block = streamed.blocks.block_bytes
        del streamed
    # The activations are the same for all; whole, it holds five blocks, streamed the kept ones and two.
    assert peaks[0] <= peaks[BLOCKS] - (BLOCKS - 2) * block + 0.25 * block
    assert peaks[2] <= peaks[BLOCKS] - (BLOCKS - 4) * block + 0.25 * block
    assert peaks[0] < peaks[2] < peaks[BLOCKS]


@pytest.mark.parametrize("bits", [None, 8])
def test_loras_are_applied_on_the_way(models, sources, bits):
    networks = models(bits)
    loras = [(str(sources.lora), 0.7), (str(sources.lora), -0.2)]
    whole = networks.load_transformer(video=True, audio=True, loras=loras)
    said: list[str] = []
    streamed = networks.load_transformer(video=True, audio=True, loras=loras, resident_blocks=2, say=said.append)
    assert len(said) == 2
    first, second = sampled(streamed), sampled(streamed)
    assert equal(sampled(whole), first)
    assert equal(first, second)
    assert not equal(first, sampled(networks.load_transformer(video=True, audio=True)))


def test_a_sweep_that_is_broken_off_leaves_nothing(models):
    streamed = models().load_transformer(video=True, audio=True, resident_blocks=0)
    want = sampled(streamed, steps=1)
    with pytest.raises(KeyboardInterrupt):
        for index, _ in streamed.blocks.sweep():
            if index == 2:
                raise KeyboardInterrupt
    assert equal(want, sampled(streamed, steps=1))


@pytest.mark.parametrize("resident", [0, 3])
def test_text_encoder_layer_by_layer(sources, resident):
    whole = load_text_encoder(sources.text_encoder)
    streamed = load_text_encoder(sources.text_encoder, resident_layers=resident)
    prompts = [whole.tokenize(p) for p in ("a red kite", "a brass band in the rain, at night")]

    def evaluate(index: int, state: mx.array) -> None:
        mx.eval(state)

    want = [whole.states(p) for p in prompts]
    got = streamed.states_of(prompts, evaluate)
    assert all(mx.array_equal(a, b).item() for a, b in zip(want, got, strict=True))
    blocks = streamed.model.model.layers.blocks
    # Both prompts in one sweep.
    stored = sum(info.nbytes for n, (_, _, info) in blocks.reader.places.items() if "embed_tokens" not in n)
    assert blocks.reader.bytes_read == stored


def test_text_encoder_quantized(sources, tmp_path: Path):
    from mlx_ltx2_convert import convert

    output = tmp_path / "model"
    convert(
        sources.checkpoint, output, variant="distilled", text_encoder=sources.text_encoder, q_bits=8, q_group_size=32
    )
    folder = ModelFolder.open(output).folder("text_encoder")
    whole, streamed = load_text_encoder(folder), load_text_encoder(folder, resident_layers=1)
    prompt = whole.tokenize("a red kite")
    assert mx.array_equal(whole.states(prompt), streamed.states(prompt)).item()
