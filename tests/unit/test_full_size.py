"""The full-size networks, built lazily, against the official inventory of names and shapes, both ways."""

from __future__ import annotations

import json

import pytest

from mlx_ltx2.errors import WeightsError
from mlx_ltx2.models.registry import COMPONENTS
from mlx_ltx2.models.upsampler import UpsamplerConfig
from mlx_ltx2.weights.layout import mlx_shape
from mlx_ltx2.weights.load import parameter_shapes
from mlx_ltx2_convert.options import Options
from mlx_ltx2_convert.plan import make_plan
from mlx_ltx2_convert.sources import UPSAMPLER_OF_KIND, Sources
from tests.fixtures import official

COUNTED = {
    "transformer": official.transformer,
    "connectors": official.connectors,
    "aggregate": official.aggregate,
    "video_encoder": official.video_encoder,
    "video_decoder": lambda new: official.video_decoder(new, timestep=False),
    "audio_encoder": lambda new: official.audio_encoder(),
    "audio_decoder": lambda new: official.audio_decoder(),
    "vocoder": official.vocoder,
}


@pytest.mark.parametrize("size", ["19b", "22b"])
@pytest.mark.parametrize("part", COUNTED)
def test_the_inventory_itself_has_the_known_totals(size, part):
    shapes = COUNTED[part](size == "22b")
    assert (len(shapes), official.parameters(shapes)) == official.TOTALS[size][part]


def test_totals_of_whole_files():
    extra = official.parameters(official.video_decoder(False, True)) - official.parameters(
        official.video_decoder(False, False)
    )
    assert extra == official.TIMESTEP_PARAMETERS
    statistics = 2 * official.parameters(official.statistics())
    assert official.parameters(official.checkpoint("22b-distilled")) == 23_069_504_875 + statistics


@pytest.mark.parametrize("which", official.FILES)
def test_networks_have_the_official_names_and_shapes(which):
    config = json.loads(official.metadata(which)["config"])
    left = official.checkpoint(which)
    inventory = dict(left)
    for component in COMPONENTS.values():
        if component.section is None:
            continue
        theirs = {ours: prefix for prefix, ours in component.sources.items()}
        for name, shape in parameter_shapes(component.build(config[component.section])).items():
            start = max((ours for ours in theirs if name.startswith(ours)), key=len)
            key = theirs[start] + name.removeprefix(start)
            assert key in inventory, f"{component.name}: {name} is no official tensor"
            assert mlx_shape(name, inventory[key]) == shape, f"{component.name}: {name}"
            left.pop(key, None)
    assert not left, f"no network takes {sorted(left)[:8]}"


@pytest.mark.parametrize("which", official.FILES)
def test_the_converter_accepts_the_full_size_header(tmp_path, which):
    path = tmp_path / official.FILES[which]
    official.write_sparse(path, official.checkpoint(which), official.metadata(which))
    plan = make_plan(Sources(path, {}), Options())
    assert plan.traits.generation == ("2.3" if which.startswith("22b") else "2.0")
    assert plan.traits.variant == which.split("-")[1]
    assert not plan.ignored
    stored = [t for shard in plan.shards for t in shard.tensors]
    assert len(stored) == len(official.checkpoint(which)) + 4  # both halves of each autoencoder hold the statistics
    parameters = official.parameters(official.checkpoint(which))
    assert sum(t.info.size for t in stored) == parameters + 4 * 128
    assert abs(plan.output_bytes - 2 * parameters) < 2e6
    transformer = [t.name for shard in plan.shards if shard.component == "transformer" for t in shard.tensors]
    assert not [name for name in transformer if "connector" in name]


def test_one_missing_and_one_foreign_tensor_are_both_named(tmp_path):
    shapes = official.checkpoint("22b-distilled")
    gone = "model.diffusion_model.transformer_blocks.47.ff.net.2.weight"
    del shapes[gone]
    shapes["model.diffusion_model.keyframes_abs_pos_embedding"] = (1, 4096)
    path = official.write_sparse(tmp_path / "ltx.safetensors", shapes, official.metadata("22b-distilled"))
    with pytest.raises(WeightsError, match=r"transformer_blocks\.47\.ff\.net\.2\.weight") as error:
        make_plan(Sources(path, {}), Options())
    assert "keyframes_abs_pos_embedding" in str(error.value)


@pytest.mark.parametrize(
    ("kind", "rational"), [("spatial-x2", True), ("spatial-x2", False), ("spatial-x1.5", True), ("temporal-x2", False)]
)
def test_upsamplers_have_the_official_names_and_shapes(kind, rational):
    shapes, config = official.upsampler(kind, rational)
    assert UpsamplerConfig.from_dict(config).kind == kind
    built = parameter_shapes(COMPONENTS[UPSAMPLER_OF_KIND[kind]].build(config))
    assert built == {name: mlx_shape(name, shape) for name, shape in shapes.items()}
    assert official.parameters(shapes) == official.UPSAMPLER_PARAMETERS[kind] + (25 if rational else 0)
