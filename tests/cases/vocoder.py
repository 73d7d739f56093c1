"""Cases of the vocoders: HiFi-GAN (LTX-2), BigVGAN v2 with bandwidth extension (LTX-2.3), generators."""

from __future__ import annotations

from functools import partial

import mlx.core as mx
import mlx.nn as nn
import numpy as np

from mlx_ltx2.models.vocoder import GeneratorConfig, Vocoder, VocoderConfig, build_vocoder
from tests.cases import Arrays, Case, as_numpy

_BLOCKS = {
    "resblock_kernel_sizes": [3, 7, 11],
    "resblock_dilation_sizes": [[1, 3, 5], [1, 3, 5], [1, 3, 5]],
    "stereo": True,
}
OFFICIAL_FLAT = {
    **_BLOCKS,
    "resblock": "1",
    "upsample_rates": [6, 5, 2, 2, 2],
    "upsample_kernel_sizes": [16, 15, 8, 4, 4],
    "upsample_initial_channel": 1024,
}
"""The section as LTX-2 checkpoints have it."""

_AMP = {
    **_BLOCKS,
    "resblock": "AMP1",
    "activation": "snakebeta",
    "use_tanh_at_final": False,
    "use_bias_at_final": False,
}
OFFICIAL_NESTED = {
    "vocoder": {
        **_AMP,
        "upsample_initial_channel": 1536,
        "upsample_rates": [5, 2, 2, 2, 2, 2],
        "upsample_kernel_sizes": [11, 4, 4, 4, 4, 4],
    },
    "bwe": {
        **_AMP,
        "upsample_initial_channel": 512,
        "upsample_rates": [6, 5, 2, 2, 2],
        "upsample_kernel_sizes": [12, 11, 4, 4, 4],
        "apply_final_activation": False,
        "input_sampling_rate": 16000,
        "output_sampling_rate": 48000,
        "hop_length": 80,
        "n_fft": 512,
        "win_size": 512,
        "num_mels": 64,
    },
}
"""The section as LTX-2.3 checkpoints have it."""


def flat(**changes) -> dict:
    return {**OFFICIAL_FLAT, "upsample_initial_channel": 32, **changes}


def nested(core: dict, extension: dict) -> dict:
    return {
        "vocoder": {**OFFICIAL_NESTED["vocoder"], **core},
        "bwe": {**OFFICIAL_NESTED["bwe"], **extension},
    }


_SHORT = {"resblock_kernel_sizes": [3, 7], "resblock_dilation_sizes": [[1, 3, 5], [1, 2, 4]]}
FLAT = flat()
FLAT_SHORT = flat(
    upsample_initial_channel=16,
    upsample_rates=[4, 3],
    upsample_kernel_sizes=[9, 5],
    use_bias_at_final=False,
    use_tanh_at_final=False,
    output_sampling_rate=22050,
    **_SHORT,
)
NESTED = nested(
    {"upsample_initial_channel": 16, "upsample_rates": [5, 2], "upsample_kernel_sizes": [11, 4]},
    {
        "upsample_initial_channel": 16,
        "upsample_rates": [5, 3],
        "upsample_kernel_sizes": [11, 7],
        "hop_length": 5,
        "n_fft": 32,
    },
)
# Ten samples per frame do not fill hops of 4: the last hop is padded and its sound cut again.
NESTED_UNEVEN = nested(
    {"upsample_initial_channel": 8, "upsample_rates": [5, 2], "upsample_kernel_sizes": [11, 4], **_SHORT},
    {
        "upsample_initial_channel": 8,
        "upsample_rates": [4, 2],
        "upsample_kernel_sizes": [8, 4],
        "hop_length": 4,
        "n_fft": 16,
        "output_sampling_rate": 32000,
        "use_bias_at_final": True,
        **_SHORT,
    },
)
GENERATOR = {
    **_AMP,
    "upsample_initial_channel": 16,
    "upsample_rates": [3, 2],
    "upsample_kernel_sizes": [7, 4],
}
SNAKE = {**GENERATOR, "activation": "snake", "use_tanh_at_final": True, "use_bias_at_final": True}


def vocoder(config: dict) -> nn.Module:
    return build_vocoder(VocoderConfig.from_dict(config))


def generator(config: dict, *, activated: bool = True) -> nn.Module:
    return Vocoder(GeneratorConfig.from_dict(config, apply_final_activation=activated), 24000)


def mel_input(rng: np.random.Generator, *, batch: int, frames: int, amp: bool) -> Arrays:
    """AMP networks with random weights amplify: small values keep most of the sound from being clipped."""
    mel = rng.standard_normal((batch, frames, 64, 2), dtype=np.float32)
    return {"mel": 0.3 * mel if amp else 1.5 * mel - 4}


def run(module: nn.Module, inputs: Arrays) -> Arrays:
    return {"samples": as_numpy(module(mx.array(inputs["mel"])))}


def _cases() -> list[Case]:
    rows = [
        ("vocoder", "LTX-2", "flat-t5", FLAT, vocoder, (1, 5), 0),
        ("vocoder", "LTX-2", "flat-t1", FLAT, vocoder, (1, 1), 1),
        ("vocoder", "LTX-2", "flat-t2-batch2", FLAT, vocoder, (2, 2), 2),
        ("vocoder", "LTX-2", "flat-short-t7", FLAT_SHORT, vocoder, (1, 7), 3),
        ("vocoder", "LTX-2", "flat-short-t4", FLAT_SHORT, vocoder, (1, 4), 4),
        ("vocoder with BWE", "LTX-2.3", "nested-t5", NESTED, vocoder, (1, 5), 0),
        ("vocoder with BWE", "LTX-2.3", "nested-t1", NESTED, vocoder, (1, 1), 1),
        ("vocoder with BWE", "LTX-2.3", "nested-t4-batch2", NESTED, vocoder, (2, 4), 2),
        ("vocoder with BWE", "LTX-2.3", "nested-uneven-t3", NESTED_UNEVEN, vocoder, (1, 3), 3),
        ("vocoder with BWE", "LTX-2.3", "nested-uneven-t5-batch2", NESTED_UNEVEN, vocoder, (2, 5), 4),
        ("generator, AMP1 snakebeta", "LTX-2.3", "amp-clamped", GENERATOR, generator, (1, 6), 0),
        (
            "generator, AMP1 snakebeta",
            "LTX-2.3",
            "amp-open",
            GENERATOR,
            partial(generator, activated=False),
            (2, 3),
            1,
        ),
        ("generator, AMP1 snake", "LTX-2.3", "amp-snake", SNAKE, generator, (1, 5), 2),
    ]
    recorded = {"flat-t2-batch2", "flat-short-t7", "nested-t4-batch2", "nested-uneven-t3", "amp-snake"}
    return [
        Case(
            network=network,
            generation=generation,
            name=name,
            config=config,
            build=build,
            inputs=partial(mel_input, batch=size[0], frames=size[1], amp=generation == "LTX-2.3"),
            run=run,
            seed=seed,
            bound=1e-4,
            record=name in recorded,
        )
        for network, generation, name, config, build, size, seed in rows
    ]


CASES: list[Case] = _cases()
