"""What one block would launch on Metal, and that nothing is multiplied in float32 in a bfloat16 network."""

from __future__ import annotations

import mlx.core as mx
import pytest
from mlx.utils import tree_map_with_path

from mlx_ltx2.models.transformer import Transformer, TransformerConfig
from tests.cases import Case, built
from tests.cases import audio_vae as audio_cases
from tests.cases import text as text_cases
from tests.cases import transformer as transformer_cases
from tests.cases import upsampler as upsampler_cases
from tests.cases import video_vae as video_cases
from tests.cases.transformer import section
from tests.fixtures.flop_meter import metered
from tests.fixtures.graph import Graph, fused, graph_of
from tests.unit.test_flops import streams

KERNELS = {("19B", 0): 92, ("22B", 0): 118, ("19B", 16): 108, ("22B", 16): 139}
"""Per block, by generation and kept video tokens (0: text to video, one noise level). May fall; must not grow."""


def block_graph(generation: str, kept: int = 0) -> Graph:
    """One block's share of a bfloat16 pass, tables in float32 as published files have them."""
    graphs = []
    for layers in (2, 4):
        network = Transformer(TransformerConfig.from_dict(section(generation, layers=layers)))

        def narrow(path: str, x: mx.array) -> mx.array:
            return x.astype(mx.float32 if "table" in path else mx.bfloat16)

        network.update(tree_map_with_path(narrow, network.parameters()))
        mx.eval(network.parameters())
        video, audio = streams(network.config, (3, 4, 4), 7, 5, kept)
        rope = network.rope(video.positions, audio.positions)
        with fused() as unseen:
            out = network(video, audio, rope=rope)
        graphs.append(graph_of(out, unseen))
    return (graphs[1] - graphs[0]) / 2


@pytest.mark.parametrize(("generation", "kept"), KERNELS)
def test_a_block_launches_no_more_kernels_than_it_did(generation: str, kept: int) -> None:
    graph = block_graph(generation, kept)
    assert graph.kernels <= KERNELS[generation, kept], dict(graph.counts)
    assert graph.casts == 0
    # Stretches of tokens are joined again after norms and gates; without them nothing is copied.
    assert graph.copies <= (8 if kept else 0), dict(graph.counts)


def test_the_bound_of_one_block() -> None:
    assert block_graph("22B").kernels <= 130


def test_the_walk_counts_what_is_there() -> None:
    x, w = mx.zeros((4, 8), mx.bfloat16), mx.zeros((8,))
    with fused() as unseen:
        y = mx.fast.rms_norm(x, 1 + w, 1e-6).astype(mx.float32)
    graph = graph_of(mx.concatenate([y, y]), unseen)
    assert graph.counts["Softmax"] == 1 and graph.counts["Add"] == 1 and graph.casts == 1
    assert graph.copies == 1 and graph.kernels == 4


def _one_of_each(cases: list[Case]) -> list[Case]:
    """The first and the last case of every network and generation."""
    groups: dict[tuple[str, str], list[Case]] = {}
    for case in cases:
        groups.setdefault((case.network, case.generation), []).append(case)
    return [case for group in groups.values() for case in {id(c): c for c in (group[0], group[-1])}.values()]


SOUND = ("audio encoder", "audio decoder")
WALKED = [
    *_one_of_each(transformer_cases.CASES),
    *_one_of_each(video_cases.CASES),
    *_one_of_each(upsampler_cases.CASES),
    *_one_of_each(text_cases.CASES),
    *_one_of_each([c for c in audio_cases.CASES if c.network in SOUND]),
]
"""Every network but the vocoder, which computes in float32 on purpose."""


@pytest.mark.parametrize("case", WALKED, ids=lambda c: f"{c.network} {c.name}")
def test_nothing_is_multiplied_in_float32(case: Case) -> None:
    module, _ = built(case, mx.bfloat16)
    with metered() as meter:
        case.run(module, case.inputs(case.rng()))
    assert meter.calls and not meter.leaks()
