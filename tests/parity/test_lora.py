"""LoRAs against ltx-core's fusing and diffusers' renaming."""

from __future__ import annotations

import mlx.core as mx
import numpy as np
import pytest
import torch
from diffusers.loaders.lora_conversion_utils import _convert_non_diffusers_ltx2_lora_to_diffusers
from ltx_core.loader.fuse_loras import apply_loras as fuse_in_torch
from ltx_core.loader.primitives import LoraStateDictWithStrength, StateDict
from ltx_core.loader.sd_ops import LTXV_LORA_COMFY_RENAMING_MAP
from mlx.utils import tree_flatten

from mlx_ltx2.demo.tiny import tiny_config
from mlx_ltx2.models.transformer import Transformer, TransformerConfig
from mlx_ltx2.weights.lora import apply_loras, linear_layers, linear_shape
from mlx_ltx2.weights.lora_keys import find_layer, layer_names, read_lora
from tests.cases import load_official, official_weights, random_tensor, relative_error

RANK = 4
GENERATIONS = ("2.0", "2.3")


def network_of(generation: str, seed: int, dtype: mx.Dtype) -> Transformer:
    network = Transformer(TransformerConfig.from_dict(tiny_config(generation, "dev")["transformer"]))
    return load_official(network, official_weights(network, seed), dtype)


def lora_tensors(network: Transformer, seed: int, every: int) -> dict[str, torch.Tensor]:
    """Official keys for every n-th Linear layer, bfloat16."""
    tensors = {}
    for name, layer in list(linear_layers(network).items())[seed % every :: every]:
        outputs, inputs = linear_shape(layer)
        for side, shape in (("A", (RANK, inputs)), ("B", (outputs, RANK))):
            values = random_tensor(f"{name}.{side}", shape, seed)
            tensors[f"diffusion_model.{name}.lora_{side}.weight"] = torch.tensor(values).bfloat16()
    return tensors


def save(path, tensors):
    arrays = {k: mx.array(v.float().numpy()).astype(mx.bfloat16) for k, v in tensors.items()}
    mx.save_safetensors(str(path), arrays)
    return path


def weights(network) -> dict[str, np.ndarray]:
    return {n: np.array(a.astype(mx.float32)) for n, a in tree_flatten(network.parameters())}


def as_state(tensors: dict[str, torch.Tensor]) -> StateDict:
    return StateDict(tensors, torch.device("cpu"), 0, {torch.bfloat16})


@pytest.mark.parametrize("generation", GENERATIONS)
@pytest.mark.parametrize("seed", range(5))
def test_fused_weights(table, tmp_path, generation, seed):
    """bfloat16 weights of ltx-core, which rounds the update and the sum, ours the sum alone.

    Both are compared with float64 as well; ours must not be further off than ltx-core is.
    """
    network = network_of(generation, seed, mx.bfloat16)
    base = weights(network)
    loras = [(lora_tensors(network, seed, 2), 0.7), (lora_tensors(network, seed + 50, 3), -0.4)][: 1 + seed % 2]
    files = [(save(tmp_path / f"{i}.safetensors", t), s) for i, (t, s) in enumerate(loras)]
    apply_loras(network, files)
    after = weights(network)

    renamed = [({LTXV_LORA_COMFY_RENAMING_MAP.apply_to_key(k): v for k, v in t.items()}, s) for t, s in loras]
    official = {k: torch.tensor(v).bfloat16() for k, v in base.items()}
    fused = fuse_in_torch(as_state(official), [LoraStateDictWithStrength(as_state(t), s) for t, s in renamed]).sd
    assert fused.keys() == after.keys()

    exact = {n: v.astype(np.float64) for n, v in base.items()}
    for tensors, strength in renamed:
        for key, down in tensors.items():
            if key.endswith(".lora_A.weight"):
                up = tensors[key.replace("lora_A", "lora_B")].double().numpy()
                exact[key.replace("lora_A.", "")] += strength * up @ down.double().numpy()
    for name, theirs in fused.items():
        changed = not np.array_equal(exact[name], base[name])
        assert changed or np.array_equal(after[name], base[name])
        if changed:
            theirs = theirs.float().numpy()
            table("LoRA fused, bf16", generation, "ltx-core 1.0.0", relative_error(after[name], theirs), 6e-3)
            ours = relative_error(after[name], exact[name])
            table("LoRA fused, bf16", generation, "float64", ours, 2e-3)
            assert ours <= relative_error(theirs, exact[name])


@pytest.mark.parametrize("generation", GENERATIONS)
def test_names_of_diffusers(tmp_path, generation):
    """Every layer is found again under the name that diffusers' converter gives it."""
    network = network_of(generation, 0, mx.float32)
    ours = lora_tensors(network, 0, 1)
    theirs = _convert_non_diffusers_ltx2_lora_to_diffusers(dict(ours))
    assert len(theirs) == len(ours) and theirs.keys() != ours.keys()
    names = layer_names(linear_layers(network))
    found = {find_layer(module, names) for module in read_lora(save(tmp_path / "a.safetensors", theirs)).pairs}
    assert found == set(linear_layers(network))
    fused = []
    for tensors in (ours, theirs):
        network = network_of(generation, 0, mx.float32)
        report = apply_loras(network, [(save(tmp_path / "b.safetensors", tensors), 1.0)])[0]
        assert report.unmatched == () and report.matched == len(ours)
        fused.append(weights(network))
    assert all(np.array_equal(fused[0][n], fused[1][n]) for n in fused[0])
