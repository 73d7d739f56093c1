"""A step multiplies what the formula says: no redundant product hides, at tiny and at full size."""

from __future__ import annotations

import mlx.core as mx
import numpy as np
import pytest
from mlx import nn

from benchmarks.formulas import pass_flops, total
from mlx_ltx2.models.transformer import Transformer, TransformerConfig
from mlx_ltx2.states import Modality
from tests.cases.transformer import GENERATION_KEYS, REAL, audio_positions, section, video_positions
from tests.fixtures.flop_meter import metered

GENERATIONS = sorted(GENERATION_KEYS)


def streams(config: TransformerConfig, grid: tuple[int, int, int], audio: int, text: int, kept: int = 0):
    """Inputs of zeros, of which only the shapes matter. kept: video tokens in front that hold an image."""
    tokens, level = int(np.prod(grid)), np.array([0.5], np.float32)
    runs = (kept, tokens - kept) if kept else None
    times = np.array([[0, 0.5]], np.float32) if kept else level[:, None]
    s = config.video
    video = Modality(
        mx.zeros((1, tokens, s.in_channels)), level, times, video_positions(grid, 24.0), _text(s, text), runs
    )
    if not audio:
        return video, None
    s = config.audio
    latent = mx.zeros((1, audio, s.in_channels))
    return video, Modality(latent, level, level[:, None], audio_positions(audio), _text(s, text))


def _text(s, tokens: int) -> mx.array:
    return mx.zeros((1, tokens, s.caption_channels or s.context_dim))


@pytest.mark.parametrize("generation", GENERATIONS)
@pytest.mark.parametrize(("grid", "audio", "kept"), [((3, 4, 4), 7, 0), ((2, 3, 5), 4, 15), ((2, 2, 2), 0, 0)])
def test_a_tiny_pass_multiplies_what_the_formula_says(generation, grid, audio, kept) -> None:
    config = TransformerConfig.from_dict(section(generation), audio=bool(audio))
    video, sound = streams(config, grid, audio, 5, kept)
    with metered() as meter:
        Transformer(config)(video, sound)
    want = total(pass_flops(config, int(np.prod(grid)), audio, 5, video_levels=2 if kept else 1))
    assert meter.flops == pytest.approx(want, rel=0.01)


@pytest.mark.parametrize("generation", GENERATIONS)
def test_a_full_size_pass_multiplies_what_the_formula_says(generation) -> None:
    """Two of the 48 blocks: all are alike, and the formula is linear in them."""
    config = TransformerConfig.from_dict({**REAL, **GENERATION_KEYS[generation], "num_layers": 2})
    video, audio = streams(config, (13, 16, 24), 101, 1024)
    with metered() as meter:
        Transformer(config)(video, audio)
    parts = pass_flops(config, 4992, 101)
    assert meter.flops == pytest.approx(total(parts), rel=0.01)
    attention = sum(n for name, n in parts.items() if name.endswith("attention"))
    assert meter.flops_of("attention") == pytest.approx(attention, rel=0.01)


@pytest.mark.parametrize(
    ("tokens", "audio", "tera"), [(1280, 34, 39.7), (4992, 101, 157.6), (6144, 126, 198.7), (14080, 126, 536.6)]
)
def test_the_formula_gives_the_published_sizes(tokens: int, audio: int, tera: float) -> None:
    config = TransformerConfig.from_dict({**REAL, **GENERATION_KEYS["22B"]})
    assert total(pass_flops(config, tokens, audio)) / 1e12 == pytest.approx(tera, rel=0.01)


def test_an_absent_stream_costs_nothing() -> None:
    config = TransformerConfig.from_dict({**REAL, **GENERATION_KEYS["22B"]})
    parts = pass_flops(config, 6144)
    assert not any(name.startswith("audio") or name in ("a2v", "v2a", "cross_attention") for name in parts)


def test_the_meter_sees_every_kind_of_product() -> None:
    x = mx.zeros((2, 6, 8))
    layer = nn.Linear(8, 64)
    with metered() as meter:
        layer(x)
        x @ mx.zeros((8, 3))
        mx.matmul(x, mx.zeros((8, 3)))
        nn.QuantizedLinear.from_linear(nn.Linear(64, 32), 32, 8)(mx.zeros((5, 64)))
        mx.fast.scaled_dot_product_attention(*(mx.zeros((1, 2, n, 4)) for n in (3, 5, 5)), scale=1.0)
        nn.Conv2d(8, 4, 3)(mx.zeros((1, 5, 5, 8)))
        nn.ConvTranspose1d(8, 4, 6, stride=3)(mx.zeros((1, 7, 8)))
    macs = [c.macs for c in meter.calls]
    assert macs == [12 * 8 * 64, 12 * 8 * 3, 12 * 8 * 3, 5 * 64 * 32, 2 * 3 * 5 * 8, 9 * 4 * 9 * 8, 7 * 8 * 4 * 6]
    assert meter.flops == 2 * sum(macs)
    assert meter.counts["matmul"] == 3 and len(meter.leaks()) == len(macs)


def test_the_meter_leaves_nothing_behind() -> None:
    before = mx.addmm, mx.array.__matmul__
    with pytest.raises(RuntimeError), metered():
        raise RuntimeError
    assert (mx.addmm, mx.array.__matmul__) == before
