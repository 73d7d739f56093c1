"""LoRAs: where they are found, which names they use, what they change, and what is refused."""

from __future__ import annotations

import hashlib
import json

import mlx.core as mx
import numpy as np
import pytest
from mlx import nn
from mlx.utils import tree_flatten

from mlx_ltx2.demo.tiny import tiny_config
from mlx_ltx2.errors import RequestError, WeightsError
from mlx_ltx2.models.transformer import Transformer, TransformerConfig
from mlx_ltx2.progress import SilentProgress
from mlx_ltx2.weights import hub, lora
from mlx_ltx2.weights.header import header_bytes
from mlx_ltx2.weights.index import ModelFolder
from mlx_ltx2.weights.lora import apply_loras, linear_layers, linear_shape, lora_hash, resolve_lora
from mlx_ltx2.weights.lora_keys import find_layer, layer_names, read_lora
from mlx_ltx2.weights.networks import Networks
from mlx_ltx2.weights.quantize import Quantization, quantize_module
from tests.cases import load_official, official_weights, random_tensor

RANK = 3
Q, FF, OUT, AUDIO = (
    f"transformer_blocks.1.{name}" for name in ("attn1.to_q", "ff.net.0.proj", "attn2.to_out.0", "audio_ff.net.2")
)
ADALN, PROMPT, PATCH = (
    "adaln_single.emb.timestep_embedder.linear_1",
    "prompt_adaln_single.linear",
    "audio_patchify_proj",
)
CROSS = "av_ca_a2v_gate_adaln_single.linear"
LAYERS = (Q, FF, OUT, AUDIO, ADALN, PROMPT, PATCH, CROSS)


def transformer(*, video=True, audio=True, dtype=mx.float32, generation="2.3"):
    section = tiny_config(generation, "dev")["transformer"]
    network = Transformer(TransformerConfig.from_dict(section, video=video, audio=audio))
    return load_official(network, official_weights(network, 0), dtype)


def shapes(network):
    return {name: linear_shape(layer) for name, layer in linear_layers(network).items()}


def matrices(network, layers=LAYERS, seed=1, rank=RANK):
    """Layer -> (down, up) in float32."""
    sizes = shapes(network)
    return {
        name: (
            random_tensor(f"{name}.A", (rank, sizes[name][1]), seed),
            random_tensor(f"{name}.B", (sizes[name][0], rank), seed),
        )
        for name in layers
    }


def save(path, tensors, metadata=None, dtype=mx.float32):
    arrays = {k: mx.array(np.asarray(v, np.float32)).astype(dtype) for k, v in tensors.items()}
    mx.save_safetensors(str(path), arrays, metadata or {})
    return path


def official_keys(pairs, prefix="diffusion_model."):
    named = {f"{prefix}{n}.lora_A.weight": a for n, (a, _) in pairs.items()}
    return named | {f"{prefix}{n}.lora_B.weight": b for n, (_, b) in pairs.items()}


def values(network):
    return {n: np.array(a.astype(mx.float32)) for n, a in tree_flatten(network.parameters())}


def expected(before, *updates):
    """Weights after (pairs, factor) updates, in float64."""
    after = {n: v.astype(np.float64) for n, v in before.items()}
    for pairs, factor in updates:
        for name, (a, b) in pairs.items():
            after[f"{name}.weight"] += factor * b.astype(np.float64) @ a.astype(np.float64)
    return after


def assert_weights(network, wanted, tolerance=1e-6):
    got = values(network)
    assert got.keys() == wanted.keys()
    for name, value in wanted.items():
        assert np.abs(got[name] - value).max() <= tolerance * max(np.abs(value).max(), 1), name


# --- what is added


@pytest.mark.parametrize("strength", [1.0, 0.25, -0.5])
def test_a_lora_adds_its_product_and_nothing_else(tmp_path, strength):
    network = transformer()
    before, pairs = values(network), matrices(network)
    report = apply_loras(network, [(save(tmp_path / "a.safetensors", official_keys(pairs)), strength)])[0]
    assert_weights(network, expected(before, (pairs, strength)))
    assert (report.matched, report.keys, report.layers, report.unmatched) == (16, 16, 8, ())
    assert report.text() == f"LoRA a.safetensors, strength {strength:g}: 16 of 16 keys matched, 8 layers changed"


def test_strength_zero_changes_no_bit_and_is_said(tmp_path):
    network = transformer()
    before = values(network)
    path = save(tmp_path / "a.safetensors", official_keys(matrices(network)))
    report = apply_loras(network, [(path, 0.0)])[0]
    assert report.text() == "LoRA a.safetensors, strength 0: skipped"
    assert all(np.array_equal(value, before[name]) for name, value in values(network).items())


def test_two_loras_add_up_whatever_their_order_and_ranks(tmp_path):
    first = transformer()
    before = values(first)
    one, two = matrices(first, LAYERS[:5], 1), matrices(first, LAYERS[3:], 2, rank=5)
    a, b = save(tmp_path / "a.safetensors", official_keys(one)), save(tmp_path / "b.safetensors", official_keys(two))
    reports = apply_loras(first, [(a, 0.7), (b, -0.3)])
    assert [r.layers for r in reports] == [5, 5]
    second = transformer()
    apply_loras(second, [(b, -0.3), (a, 0.7)])
    for network in (first, second):
        assert_weights(network, expected(before, (one, 0.7), (two, -0.3)))


def test_bfloat16_weights_are_rounded_once(tmp_path):
    network = transformer(dtype=mx.bfloat16)
    before, pairs = values(network), matrices(network)
    rounded = {
        n: tuple(np.array(mx.array(m).astype(mx.bfloat16).astype(mx.float32)) for m in p) for n, p in pairs.items()
    }
    path = save(tmp_path / "a.safetensors", official_keys(pairs), dtype=mx.bfloat16)
    apply_loras(network, [(path, 0.5), (path, 0.25)])
    after = values(network)
    wanted = expected(before, (rounded, 0.75))
    for name in LAYERS:
        assert linear_layers(network)[name].weight.dtype == mx.bfloat16
        exact = wanted[f"{name}.weight"]
        assert (np.abs(after[f"{name}.weight"] - exact) <= 2.0**-8 * np.abs(exact) * 1.01).all()
    assert all(np.array_equal(after[n], before[n]) for n in before if n.removesuffix(".weight") not in LAYERS)


def test_fp8_loras_are_read_as_numbers(tmp_path):
    network = transformer()
    before, pairs = values(network), matrices(network, (Q,))
    codes = {k: mx.to_fp8(mx.array(v)) for k, v in official_keys(pairs).items()}
    plain = {k: np.array(mx.from_fp8(c, dtype=mx.float32)) for k, c in codes.items()}
    path = tmp_path / "a.safetensors"
    mx.save_safetensors(str(path), codes)
    data = path.read_bytes()
    text = data[8 : 8 + int.from_bytes(data[:8], "little")].replace(b'"U8"', b'"F8_E4M3"')
    path.write_bytes(len(text).to_bytes(8, "little") + text + data[8 + int.from_bytes(data[:8], "little") :])
    apply_loras(network, [(path, 1.0)])
    a, b = plain[f"diffusion_model.{Q}.lora_A.weight"], plain[f"diffusion_model.{Q}.lora_B.weight"]
    assert_weights(network, expected(before, ({Q: (a, b)}, 1.0)))


# --- alpha


def test_alpha_over_rank_scales(tmp_path):
    network = transformer()
    before, pairs = values(network), matrices(network)
    keys = official_keys(pairs) | {f"diffusion_model.{Q}.alpha": 6.0, f"diffusion_model.{FF}.alpha": 0.75}
    path = save(tmp_path / "a.safetensors", keys, dtype=mx.bfloat16)
    assert {p.scale for p in read_lora(path).pairs.values()} == {1.0, 2.0, 0.25}
    path = save(path, keys)
    report = apply_loras(network, [(path, 0.5)])[0]
    factors = {Q: 2.0, FF: 0.25}
    updates = [({n: p}, 0.5 * factors.get(n, 1)) for n, p in pairs.items()]
    assert_weights(network, expected(before, *updates))
    assert report.matched == report.keys == 18


@pytest.mark.parametrize("by_root", [False, True])
def test_settings_of_peft_and_diffusers_scale(tmp_path, by_root):
    network = transformer()
    keys = official_keys(matrices(network, (Q, FF)), "transformer.")
    settings = {"r": RANK, "lora_alpha": 6, "use_rslora": by_root, "alpha_pattern": {"ff.net.0.proj": 9}}
    root = RANK**0.5 if by_root else RANK
    wanted = {Q: 6 / root, FF: 9 / root}
    stored = json.dumps({f"transformer.{k}": v for k, v in settings.items()})
    inside = save(tmp_path / "a.safetensors", keys, {"lora_adapter_metadata": stored})
    beside = save(tmp_path / "adapter_model.safetensors", keys)
    (tmp_path / "adapter_config.json").write_text(json.dumps(settings))
    for path in (inside, beside):
        found = {n.removeprefix("transformer."): p.scale for n, p in read_lora(path).pairs.items()}
        assert found == pytest.approx(wanted)
    (tmp_path / "adapter_config.json").write_text(json.dumps(settings | {"use_dora": True}))
    with pytest.raises(WeightsError, match="DoRA"):
        read_lora(beside)
    (tmp_path / "adapter_config.json").write_text("[1]")
    with pytest.raises(WeightsError, match="settings are damaged"):
        read_lora(beside)


# --- spellings

DIFFUSERS = {
    ADALN: "time_embed.emb.timestep_embedder.linear_1",
    PROMPT: "prompt_adaln.linear",
    PATCH: "audio_proj_in",
    CROSS: "av_cross_attn_video_a2v_gate.linear",
}


def spelled(pairs, style):
    flat = {n: n.replace(".", "_") for n in pairs}
    theirs = {n: DIFFUSERS.get(n, n) for n in pairs}
    names, sides = {
        "official": ({n: f"diffusion_model.{n}" for n in pairs}, ("lora_A.weight", "lora_B.weight")),
        "bare": ({n: n for n in pairs}, ("lora_A.weight", "lora_B.weight")),
        "full": ({n: f"model.diffusion_model.{n}" for n in pairs}, ("lora_A.weight", "lora_B.weight")),
        "comfy down/up": ({n: f"diffusion_model.{n}" for n in pairs}, ("lora_down.weight", "lora_up.weight")),
        "peft": ({n: f"base_model.model.{n}" for n in pairs}, ("lora_A.default.weight", "lora_B.default.weight")),
        "peft saved": ({n: f"base_model.model.{n}" for n in theirs}, ("lora_A.weight", "lora_B.weight")),
        "diffusers": ({n: f"transformer.{theirs[n]}" for n in pairs}, ("lora_A.weight", "lora_B.weight")),
        "old diffusers": ({n: f"transformer.{theirs[n]}" for n in pairs}, ("lora.down.weight", "lora.up.weight")),
        "kohya": ({n: f"lora_unet_{flat[n]}" for n in pairs}, ("lora_down.weight", "lora_up.weight")),
        "kohya on diffusers": (
            {n: f"lora_transformer_{theirs[n].replace('.', '_')}" for n in pairs},
            ("lora_down.weight", "lora_up.weight"),
        ),
        "lycoris": ({n: f"lycoris_{flat[n]}" for n in pairs}, ("lora_down.weight", "lora_up.weight")),
        "no weight": ({n: f"diffusion_model.{n}" for n in pairs}, ("lora_A", "lora_B")),
    }[style]
    down = {f"{names[n]}.{sides[0]}": a for n, (a, _) in pairs.items()}
    return down | {f"{names[n]}.{sides[1]}": b for n, (_, b) in pairs.items()}


STYLES = (
    "official", "bare", "full", "comfy down/up", "peft", "peft saved", "diffusers", "old diffusers", "kohya",
    "kohya on diffusers", "lycoris", "no weight",
)  # fmt: skip


@pytest.mark.parametrize("style", STYLES)
def test_every_spelling_gives_the_same_weights(tmp_path, style):
    network = transformer()
    before, pairs = values(network), matrices(network)
    path = save(tmp_path / "a.safetensors", spelled(pairs, style))
    report = apply_loras(network, [(path, 1.0)])[0]
    assert (report.layers, report.matched, report.unmatched) == (8, 16, ())
    assert_weights(network, expected(before, (pairs, 1.0)))


@pytest.mark.parametrize("generation", ["2.0", "2.3"])
def test_all_layers_of_the_real_model_have_names_of_their_own(generation):
    config = TransformerConfig.from_dict(tiny_config(generation, "dev", 48)["transformer"])
    layers = list(linear_layers(Transformer(config)))
    names = layer_names(layers)
    assert len(layers) > 1300
    for layer in layers:
        assert find_layer(f"diffusion_model.{layer}", names) == layer
        assert find_layer("lora_unet_" + layer.replace(".", "_"), names) == layer
    assert len({n.replace(".", "_") for n in layers}) == len(layers)


# --- quantized


@pytest.mark.parametrize(("mode", "bits", "group"), [("affine", 4, 32), ("affine", 8, 32), ("mxfp4", 4, 32)])
def test_quantized_layers_get_a_branch_and_keep_their_weights(tmp_path, mode, bits, group):
    network = transformer(generation="2.3")
    quantize_module(network, Quantization(mode, bits, group))
    before = values(network)
    quantized = {n: a for n, a in linear_layers(network).items() if isinstance(a, nn.QuantizedLinear)}
    assert Q in quantized and ADALN not in quantized
    dense = {
        n: np.array(mx.dequantize(a.weight, a.scales, a.get("biases"), group, bits, mode, dtype=mx.float32), np.float64)
        for n, a in quantized.items()
    }
    one, two = matrices(network, (Q, FF, ADALN), 1), matrices(network, (Q, OUT), 2, rank=5)
    a, b = save(tmp_path / "a.safetensors", official_keys(one)), save(tmp_path / "b.safetensors", official_keys(two))
    apply_loras(network, [(a, 0.7), (b, -0.3)])
    after, layers = values(network), linear_layers(network)
    assert after.keys() == before.keys()
    for name, value in before.items():
        assert np.array_equal(value, after[name]) == (name != f"{ADALN}.weight")
    for name in (Q, FF, OUT):
        full = dense[name].copy()
        for pairs, factor in ((one, 0.7), (two, -0.3)):
            if name in pairs:
                full += factor * pairs[name][1].astype(np.float64) @ pairs[name][0]
        x = np.random.default_rng(0).standard_normal((2, 7, full.shape[1])).astype(np.float32)
        got = np.array(layers[name](mx.array(x)))
        wanted = x @ full.T + before[f"{name}.bias"]
        assert np.linalg.norm(got - wanted) <= 1e-5 * np.linalg.norm(wanted)
        assert linear_shape(layers[name]) == full.shape


def test_a_branch_computes_in_the_type_of_the_activations(tmp_path):
    network = transformer(dtype=mx.bfloat16)
    quantize_module(network, Quantization("affine", 4, 32))
    apply_loras(network, [(save(tmp_path / "a.safetensors", official_keys(matrices(network, (Q,)))), 1.0)])
    layer = linear_layers(network)[Q]
    assert layer(mx.ones((1, 2, linear_shape(layer)[1]), mx.bfloat16)).dtype == mx.bfloat16
    network.load_weights(tree_flatten(network.parameters()), strict=True)  # names are those of the base


# --- streams, reports


def test_keys_of_a_stream_that_is_not_built_are_left_out_knowingly(tmp_path):
    both = transformer()
    path = save(tmp_path / "a.safetensors", spelled(matrices(both), "kohya"))
    network = transformer(audio=False)
    report = apply_loras(network, [(path, 1.0)], absent=shapes(both))[0]
    assert (report.layers, report.matched, report.absent, report.unmatched) == (5, 10, 6, ())
    assert "10 of 16 keys matched" in report.text() and "6 keys are for a stream" in report.text()
    path = save(path, official_keys(matrices(both, (AUDIO,))))
    report = apply_loras(network, [(path, 1.0)], absent=shapes(both))[0]
    assert "0 of 2 keys matched" in report.text()


def test_unmatched_keys_are_listed_and_counted(tmp_path):
    network = transformer()
    pairs = matrices(network, (Q,))
    strange = {f"transformer_blocks.{i}.attn1.to_q": pairs[Q] for i in range(7, 12)}
    keys = official_keys(pairs | strange) | {"lora_te_text.alpha": 1.0}
    report = apply_loras(network, [(save(tmp_path / "a.safetensors", keys), 1.0)])[0]
    assert (report.matched, report.keys, len(report.unmatched)) == (2, 13, 11)
    text = report.text()
    assert "2 of 13 keys matched" in text and "11 not matched: lora_te_text.alpha" in text and "and 5 more" in text


# --- refusals


@pytest.mark.parametrize(
    ("key", "kind"),
    [
        ("dora_scale", "DoRA"),
        ("lora_magnitude_vector", "DoRA"),
        ("lora_magnitude_vector.default.weight", "DoRA"),
        ("lokr_w1", "LoKr"),
        ("lokr_t2", "LoKr"),
        ("hada_w1_a", "LoHa"),
        ("oft_blocks", "OFT"),
        ("oft_R.weight", "OFT"),
        ("boft_R", "BOFT"),
        ("a1.weight", "GLoRA"),
        ("lora_mid.weight", "convolution LoRA"),
        ("lora_E", "AdaLoRA"),
        ("vera_lambda_b", "VeRA"),
        ("lora_B.bias", "LoRA with biases"),
        ("diff", "whole weight differences"),
        ("diff_b", "whole weight differences"),
        ("modules_to_save.weight", "whole modules"),
    ],
)
def test_kinds_that_are_not_supported_are_named(tmp_path, key, kind):
    network = transformer()
    before = values(network)
    keys = official_keys(matrices(network, (FF,))) | {f"diffusion_model.{Q}.{key}": np.ones((2, 2))}
    path = save(tmp_path / "a.safetensors", keys)
    with pytest.raises(WeightsError, match=f"is a {kind} file.*not supported"):
        apply_loras(network, [(path, 1.0)])
    assert all(np.array_equal(value, before[name]) for name, value in values(network).items())


def broken(pairs, fault):
    keys = official_keys(pairs)
    a, b = f"diffusion_model.{Q}.lora_A.weight", f"diffusion_model.{Q}.lora_B.weight"
    if fault == "half":
        del keys[b]
    elif fault == "ranks":
        keys[b] = keys[b][:, :2]
    elif fault == "convolution":
        keys[a], keys[b] = keys[a][..., None, None], keys[b][..., None, None]
    elif fault == "two adapters":
        keys |= {a.replace(".weight", ".other.weight"): keys[a], b.replace(".weight", ".other.weight"): keys[b]}
    elif fault == "two spellings":
        keys |= {k.replace("diffusion_model.", "transformer."): v for k, v in keys.items()}
    elif fault == "alpha":
        keys[f"diffusion_model.{Q}.alpha"] = np.ones(2)
    elif fault == "alpha nan":
        keys[f"diffusion_model.{Q}.alpha"] = np.nan
    elif fault == "other width":
        keys[a] = np.ones((RANK, 48))
    elif fault == "nothing":
        keys = {k.replace("attn1", "attn9"): v for k, v in keys.items()}
    elif fault == "checkpoint":
        keys = {f"model.diffusion_model.{Q}.weight": np.ones((4, 4))}
    return keys


@pytest.mark.parametrize(
    ("fault", "says"),
    [
        ("half", "only one of the two matrices.*incomplete"),
        ("ranks", r"do not fit each other: \(3, 64\) and \(64, 2\)"),
        ("convolution", "convolution LoRA"),
        ("two adapters", "two LoRAs for"),
        ("two spellings", "under two spellings"),
        ("alpha", "where one number is needed"),
        ("alpha nan", "is nan"),
        ("other width", rf"{Q} is \(64, 48\), the model has \(64, 64\).*another generation or size"),
        ("nothing", "none of its 2 keys fits.*another model"),
        ("checkpoint", "holds no LoRA"),
    ],
)
def test_files_that_do_not_fit_are_refused(tmp_path, fault, says):
    network = transformer()
    path = save(tmp_path / "a.safetensors", broken(matrices(network, (Q,)), fault))
    with pytest.raises(WeightsError, match=says):
        apply_loras(network, [(path, 1.0)])


def test_a_lora_of_the_other_generation_is_refused_by_shape(tmp_path):
    older = transformer(generation="2.0")
    path = save(tmp_path / "a.safetensors", official_keys(matrices(older, (Q, "adaln_single.linear"))))
    with pytest.raises(WeightsError, match=r"1 of its 2 layers.*another generation or size"):
        apply_loras(transformer(), [(path, 1.0)])


@pytest.mark.parametrize("strength", [float("nan"), float("inf")])
def test_a_strength_is_a_number(tmp_path, strength):
    with pytest.raises(RequestError, match="is no number"):
        apply_loras(transformer(), [(tmp_path / "a.safetensors", strength)])


FP8 = ("lora_A.weight", "lora_B.weight"), ("lora_down.weight", "lora_up.weight"), ("lora_A.default.weight", "lora_B")
SCALES = ("{}.weight_scale", "{}.scale_weight", "{}_scale")


@pytest.mark.parametrize("sides", FP8)
@pytest.mark.parametrize("spelling", SCALES)
@pytest.mark.parametrize("by_row", [False, True])
def test_fp8_matrices_are_multiplied_by_their_scales(tmp_path, sides, spelling, by_row):
    rng = np.random.default_rng(0)
    layer = next(name for name in linear_layers(transformer()) if name.endswith("to_q"))
    outputs, inputs = linear_shape(linear_layers(transformer())[layer])
    tensors, plain = {"scaled_fp8": ("F8_E4M3", (0,), b"")}, {}
    for side, shape in zip(sides, ((4, inputs), (outputs, 4)), strict=True):
        codes = np.array(mx.to_fp8(mx.array(rng.standard_normal(shape).astype(np.float32))))
        scale = (rng.uniform(0.01, 0.02, (shape[0], 1) if by_row else ())).astype(np.float32)
        name = f"diffusion_model.{layer}.{side}"
        stem = name if spelling == "{}_scale" and name.endswith("weight") else name.removesuffix(".weight")
        own = spelling if stem != name or not name.endswith("lora_B") else "{}.weight_scale"
        tensors[name] = ("F8_E4M3", shape, codes.tobytes())
        tensors[own.format(stem)] = ("F32", scale.shape, scale.tobytes())
        plain[name] = np.array(mx.from_fp8(mx.array(codes), mx.float32)) * scale
    head = header_bytes(((n, d, s) for n, (d, s, _) in tensors.items()), {})
    (tmp_path / "fp8.safetensors").write_bytes(head + b"".join(raw for *_, raw in tensors.values()))
    save(tmp_path / "plain.safetensors", plain)
    got, want = transformer(), transformer()
    (report,) = apply_loras(got, [(tmp_path / "fp8.safetensors", 0.5)])
    apply_loras(want, [(tmp_path / "plain.safetensors", 0.5)])
    assert mx.array_equal(linear_layers(got)[layer].weight, linear_layers(want)[layer].weight)
    assert report.layers == 1 and not report.unmatched


@pytest.mark.parametrize("extra", ["weight_scale_inv", "zero_point", "quant_state.nf4", "weight.absmax"])
def test_scales_of_an_unknown_kind_are_named(tmp_path, extra):
    module = "diffusion_model.transformer_blocks.0.attn1.to_q"
    tensors = {f"{module}.lora_A.weight": np.ones((2, 4)), f"{module}.lora_B.weight": np.ones((4, 2))}
    path = save(tmp_path / "odd.safetensors", {**tensors, f"{module}.lora_A.{extra}": np.ones(3)})
    with pytest.raises(WeightsError, match=f"unknown kind.*BF16|{extra}.*BF16"):
        read_lora(path)
    path = save(tmp_path / "block.safetensors", {**tensors, f"{module}.lora_B.weight_scale": np.ones((3, 2))})
    with pytest.raises(WeightsError, match="one number or one for each"):
        read_lora(path)


# --- finding the file


def test_files_and_folders_are_found(tmp_path):
    file = save(tmp_path / "a.safetensors", {"x.lora_A.weight": np.ones((1, 1))})
    assert resolve_lora(str(file)) == file
    assert resolve_lora(tmp_path) == file
    (tmp_path / "sub").mkdir()
    other = save(tmp_path / "sub" / "b.safetensors", {"x.lora_A.weight": np.ones((1, 1))})
    assert resolve_lora(f"{tmp_path}::sub/b.safetensors") == other
    with pytest.raises(RequestError, match=r"holds several files.*::FILE: a\.safetensors, sub/b\.safetensors"):
        resolve_lora(tmp_path)
    with pytest.raises(RequestError, match=r"no safetensors file 'c\.safetensors'"):
        resolve_lora(f"{tmp_path}::c.safetensors")
    (tmp_path / "empty").mkdir()
    with pytest.raises(WeightsError, match="holds no safetensors file"):
        resolve_lora(tmp_path / "empty")
    with pytest.raises(WeightsError, match="there is no such file"):
        resolve_lora("loras/a.safetensors")
    with pytest.raises(WeightsError, match="there is no such file"):
        resolve_lora(str(tmp_path / "nothing"))
    (tmp_path / "a.pt").write_bytes(b"x")
    with pytest.raises(WeightsError, match=r"only safetensors files are read, not .pt"):
        resolve_lora(tmp_path / "a.pt")


@pytest.fixture
def fake_hub(monkeypatch, tmp_path):
    import huggingface_hub

    files, fetched, cached = [], [], {}

    def download(repo, chosen, revision=None, *, say):
        say(f"{repo}: {len(chosen)} files")
        fetched.extend(f.name for f in chosen)
        return [tmp_path / f.name for f in chosen]

    monkeypatch.setattr(hub, "list_files", lambda repo, revision=None: files)
    monkeypatch.setattr(hub, "download_files", download)
    monkeypatch.setattr(huggingface_hub, "try_to_load_from_cache", lambda repo, name: cached.get(name))
    return files, fetched, cached


def test_hub_ids_are_downloaded(fake_hub, tmp_path):
    files, fetched, cached = fake_hub
    files += [hub.HubFile("README.md", 1), hub.HubFile("style.safetensors", 2)]
    said = []
    assert resolve_lora("someone/style", said.append) == tmp_path / "style.safetensors"
    assert fetched == ["style.safetensors"] and said == ["someone/style: 1 files"]
    files.append(hub.HubFile("other.safetensors", 2))
    with pytest.raises(
        RequestError, match=r"several files.*someone/style::FILE: other\.safetensors, style\.safetensors"
    ):
        resolve_lora("someone/style")
    assert resolve_lora("someone/style::other.safetensors") == tmp_path / "other.safetensors"
    with pytest.raises(RequestError, match="has no safetensors file 'x'"):
        resolve_lora("someone/style::x")
    fetched.clear()
    cached["other.safetensors"] = str(tmp_path / "cached.safetensors")
    assert resolve_lora("someone/style::other.safetensors") == tmp_path / "cached.safetensors"
    assert fetched == []


def test_the_settings_of_an_adapter_come_along(fake_hub, tmp_path):
    files, fetched, _ = fake_hub
    files += [hub.HubFile(n, 1) for n in ("adapter_config.json", "adapter_model.safetensors", "README.md")]
    assert resolve_lora("someone/style") == tmp_path / "adapter_model.safetensors"
    assert fetched == ["adapter_model.safetensors", "adapter_config.json"]


def test_a_hub_without_a_lora_is_refused(fake_hub):
    fake_hub[0].append(hub.HubFile("README.md", 1))
    with pytest.raises(WeightsError, match="holds no safetensors file"):
        resolve_lora("someone/style")


def test_hashes_are_made_once_per_state_of_a_file(tmp_path, monkeypatch):
    path = tmp_path / "a.safetensors"
    path.write_bytes(b"one")
    assert lora_hash(path) == hashlib.sha256(b"one").hexdigest()
    with monkeypatch.context() as patch:
        patch.setattr(lora.hashlib, "file_digest", None)
        assert lora_hash(path) == hashlib.sha256(b"one").hexdigest()
    path.write_bytes(b"another")
    assert lora_hash(path) == hashlib.sha256(b"another").hexdigest()
    blob = tmp_path / "blobs" / ("0a" * 32)
    blob.parent.mkdir()
    blob.write_bytes(b"large")
    (tmp_path / "link.safetensors").symlink_to(blob)
    assert lora_hash(tmp_path / "link.safetensors") == "0a" * 32
    with pytest.raises(WeightsError, match="cannot be read"):
        lora_hash(tmp_path / "nothing")


# --- a model's networks


def networks(path, **more):
    return Networks(ModelFolder.open(path), **more)


def test_each_loading_starts_from_the_stored_weights(tiny_model):
    model = networks(tiny_model("2.3", "dev"), dtype=mx.float32)
    path = str(model.model.loras[0])
    clean = values(model.load_transformer(video=True, audio=True))
    said = []
    first = values(model.load_transformer(video=True, audio=True, loras=[(path, 0.25)], say=said.append))
    second = values(model.load_transformer(video=True, audio=True, loras=[(path, 0.5)], say=said.append))
    again = values(model.load_transformer(video=True, audio=True, loras=[(path, 0.25)]))
    name = f"{Q}.weight"
    assert np.abs(first[name] - clean[name]).max() > 1e-3
    np.testing.assert_allclose(second[name] - clean[name], 2 * (first[name] - clean[name]), atol=1e-6)
    assert all(np.array_equal(first[n], again[n]) for n in first)
    keys = len(read_lora(path).pairs) * 2
    assert len(said) == 2 and f"strength 0.25: {keys} of {keys} keys matched" in said[0]


def test_a_quantized_model_and_one_stream_take_the_same_lora(tiny_model):
    model = networks(tiny_model("2.3", "dev", quantize=True, q_bits=8, q_group_size=32))
    path = str(model.model.loras[0])
    model.check_loras([path])
    said = []
    network = model.load_transformer(video=True, audio=False, loras=[(path, 1.0), (path, 0.0)], say=said.append)
    assert isinstance(linear_layers(network)[Q], lora.QuantizedLinearWithLora)
    assert "keys are for a stream that this stage does not make" in said[0] and "not matched" not in said[0]
    assert len(said) == 2 and said[1].endswith("skipped")


def test_wrong_loras_are_refused_by_headers_alone(tiny_model, tmp_path, monkeypatch):
    model = networks(tiny_model("2.3", "dev"))
    monkeypatch.setattr(mx, "load", None)
    metadata = {"reference_downscale_factor": "2"}
    good = save(tmp_path / "good.safetensors", official_keys(matrices(transformer(), (Q,))), metadata)
    model.check_loras([str(good), str(good)])
    assert model.lora_metadata([str(good)]) == {str(good): metadata}
    assert model.lora_hashes([str(good)])[str(good)] == hashlib.sha256(good.read_bytes()).hexdigest()
    bad = save(tmp_path / "bad.safetensors", broken(matrices(transformer(), (Q,)), "other width"))
    with pytest.raises(WeightsError, match="another generation or size"):
        model.check_loras([str(bad)])
    older = tmp_path / "ltx-2-19b-distilled-lora-384.safetensors"
    older.write_bytes(good.read_bytes())
    with pytest.raises(WeightsError, match=r"is made for LTX-2, and this model is LTX-2\.3"):
        model.check_loras([str(older)])
    own = model.model.loras[0]
    monkeypatch.setattr(lora.hashlib, "file_digest", None)
    assert len(model.lora_hashes([str(own)])[str(own)]) == 64
    with pytest.raises(WeightsError, match="no such file"):
        model.lora_metadata([str(tmp_path / "none.safetensors")])


class Notes(SilentProgress):
    def __init__(self):
        self.texts = []

    def note(self, text):
        self.texts.append(text)


def test_a_two_stage_clip_uses_the_distilled_lora(tiny_model):
    from mlx_ltx2 import LTX2Pipeline

    pipeline = LTX2Pipeline.from_pretrained(tiny_model("2.3", "dev"))
    options = {
        "pipeline": "two-stage",
        "steps": 2,
        "height": 64,
        "width": 64,
        "num_frames": 9,
        "negative_prompt": "blur",
    }
    notes = Notes()
    clips = [
        pipeline("a kite", progress=notes, lora_strength_stage_2=s, output_type="latent", **options).latents
        for s in (1.0, 0.0)
    ]
    with_lora, without = (np.array(c.astype(mx.float32)) for c in clips)
    assert np.isfinite(with_lora).all() and with_lora.shape == without.shape
    assert np.abs(with_lora - without).max() > 1e-3
    said = [t for t in notes.texts if "LoRA" in t]
    assert len(said) == 1 and "keys matched" in said[0] and "not matched" not in said[0]


# --- memory


def test_fusing_needs_the_network_and_one_layer_more(tmp_path):
    count, size, rank = 24, 256, 32

    class Network(nn.Module):
        def __init__(self):
            super().__init__()
            self.layers = [nn.Linear(size, size, bias=False) for _ in range(count)]

    weights = {f"layers.{i}.weight": mx.random.normal((size, size)).astype(mx.bfloat16) for i in range(count)}
    mx.save_safetensors(str(tmp_path / "base.safetensors"), weights)
    pairs = {f"layers.{i}": (np.ones((rank, size)), np.ones((size, rank))) for i in range(count)}
    path = save(tmp_path / "a.safetensors", official_keys(pairs), dtype=mx.bfloat16)
    del weights
    network = Network()
    network.load_weights(str(tmp_path / "base.safetensors"))
    mx.clear_cache()
    mx.reset_peak_memory()
    before = mx.get_active_memory()
    apply_loras(network, [(path, 1.0)])
    layer = size * size * 2
    assert mx.get_peak_memory() - before <= (count + 8) * layer  # bf16 layers, and one in float32 a few times
    assert mx.get_active_memory() - before <= (count + 1) * layer
