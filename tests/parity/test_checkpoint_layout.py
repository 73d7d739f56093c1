"""The tiny checkpoint is laid out as the official loader expects: its builders fill the networks from it.

The video encoder and the audio autoencoder cannot be as narrow there; `tests.parity.official` writes those the other
way round, from the official modules.
"""

from __future__ import annotations

import importlib

import pytest
import torch

from mlx_ltx2.demo.tiny import write_tiny_checkpoint

NETWORKS = {
    "transformer": ("model.transformer", "LTXModelConfigurator", "LTXV_MODEL_COMFY_RENAMING_MAP"),
    "video_decoder": ("model.video_vae", "VideoDecoderConfigurator", "VAE_DECODER_COMFY_KEYS_FILTER"),
    "vocoder": ("model.audio_vae", "VocoderConfigurator", "VOCODER_COMFY_KEYS_FILTER"),
}
UNREAD = {f"per_channel_statistics.{n}" for n in ("channel", "mean-of-stds", "mean-of-stds_over_std-of-means")}
CONNECTORS = ("video_embeddings_connector.", "audio_embeddings_connector.")


@pytest.fixture(scope="module", params=[("2.3", "distilled"), ("2.0", "distilled"), ("2.0", "dev")])
def tiny(request, tmp_path_factory):
    generation, variant = request.param
    return write_tiny_checkpoint(tmp_path_factory.mktemp("tiny"), generation=generation, variant=variant)


def filled(configurator, path, ops=None):
    """Names that the official builder leaves empty, and names it has no place for."""
    from ltx_core.loader.single_gpu_model_builder import SingleGPUModelBuilder

    builder = SingleGPUModelBuilder(model_class_configurator=configurator, model_path=str(path), model_sd_ops=ops)
    network = builder.meta_model(builder.model_config(), ())
    state = builder.load_sd([str(path)], sd_ops=ops, registry=builder.registry, device=torch.device("cpu"))
    # As the official builder loads; both lists go to the tests, which say what they may hold.
    missing, unexpected = network.load_state_dict(state.sd, strict=False, assign=True)
    return missing, unexpected, network


@pytest.mark.parametrize("name", NETWORKS)
def test_official_builders_fill_the_networks(tiny, name):
    module, configurator, ops = NETWORKS[name]
    package = importlib.import_module(f"ltx_core.{module}")
    missing, unexpected, _ = filled(getattr(package, configurator), tiny.checkpoint, getattr(package, ops))
    assert not missing
    left = [n for n in unexpected if n not in UNREAD and not (name == "transformer" and n.startswith(CONNECTORS))]
    assert not left


def test_the_upsampler_builder_fills_every_kind(tiny):
    from ltx_core.model.upsampler import LatentUpsamplerConfigurator

    for path in tiny.upsamplers:
        missing, unexpected, _ = filled(LatentUpsamplerConfigurator, path)
        assert not missing and not unexpected, path.name


def test_the_official_lora_loader_matches_every_key(tiny):
    from ltx_core.loader import LTXV_LORA_COMFY_RENAMING_MAP
    from ltx_core.loader.sft_loader import SafetensorsStateDictLoader
    from ltx_core.model.transformer import LTXV_MODEL_COMFY_RENAMING_MAP, LTXModelConfigurator

    _, _, network = filled(LTXModelConfigurator, tiny.checkpoint, LTXV_MODEL_COMFY_RENAMING_MAP)
    weights = dict(network.named_parameters())
    lora = SafetensorsStateDictLoader().load(str(tiny.lora), LTXV_LORA_COMFY_RENAMING_MAP).sd
    assert len(lora) == 2 * 2 * (6 * 4 + 4)
    for name, down in lora.items():
        if name.endswith(".lora_A.weight"):
            path = name.removesuffix(".lora_A.weight")
            up = lora[f"{path}.lora_B.weight"]
            assert weights[f"{path}.weight"].shape == (up.shape[0], down.shape[1])
