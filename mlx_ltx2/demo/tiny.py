"""A tiny checkpoint with random weights, laid out exactly as the official files are.

One monolithic file with its config JSON in the metadata, upsampler files, a distilled LoRA and a Gemma folder: what a
user downloads, a thousand times smaller. The networks are the real architecture with all block kinds and the real
compression; only widths and depths shrink. Its pictures are noise.

The official code loads these files but for the two parts whose width it cannot shrink: its video encoder starts as wide
as the latents are (128) and its audio autoencoder has as many statistics as it is wide (128).
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from mlx_ltx2.demo.tiny_gemma import write_tiny_gemma
from mlx_ltx2.models.registry import COMPONENTS
from mlx_ltx2.weights.header import header_bytes
from mlx_ltx2.weights.layout import official_shape
from mlx_ltx2.weights.load import parameter_shapes
from mlx_ltx2.weights.quantize import is_quantizable

Generation = Literal["2.0", "2.3"]
Variant = Literal["distilled", "dev"]
Dtype = Literal["BF16", "F16", "F32", "F8_E4M3"]

TEXT_WIDTH, TEXT_LAYERS = 64, 7
LATENT_CHANNELS = 128
LORA_RANK = 4
_FP8_SCALE = 1 / 256
_STATISTICS_NOBODY_READS = ("channel", "mean-of-stds", "mean-of-stds_over_std-of-means")


@dataclass(frozen=True)
class TinyCheckpoint:
    """checkpoint: the monolithic file. text_encoder: a Gemma folder. All lie in `folder`."""

    folder: Path
    checkpoint: Path
    upsamplers: tuple[Path, ...]
    lora: Path
    text_encoder: Path


def write_tiny_checkpoint(
    folder: str | Path,
    *,
    generation: Generation = "2.3",
    variant: Variant = "distilled",
    seed: int = 0,
    blocks: int = 2,
    dtype: Dtype = "BF16",
) -> TinyCheckpoint:
    """Write a tiny checkpoint and everything that belongs to it.

    blocks: of the transformer. dtype: of the weights; F8_E4M3 writes an fp8 file as the official ones are, block
    layers in fp8 with scales and the rest in bf16. The same arguments give the same bytes.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    config = tiny_config(generation, variant, blocks)
    version = "2.3" if generation == "2.3" else "2"
    size = "22b" if generation == "2.3" else "19b"
    fp8 = "-fp8" if dtype == "F8_E4M3" else ""
    newer = "-1.1" if (generation, variant, fp8) == ("2.3", "distilled", "") else ""
    checkpoint = folder / f"ltx-{version}-{size}-{variant}{fp8}{newer}.safetensors"
    metadata = {"config": json.dumps(config), "model_version": f"{generation}.0"}
    _write(checkpoint, dict(_monolith(config, seed)), metadata, dtype)
    upsamplers = tuple(_write_upsamplers(folder, generation, seed, "BF16" if fp8 else dtype))
    lora = folder / f"ltx-{version}-{size}-distilled-lora-{LORA_RANK}.safetensors"
    _write(lora, dict(_lora(config, seed)), {}, "BF16" if fp8 else dtype)
    encoder = write_tiny_gemma(
        folder / "gemma-3-tiny",
        width=TEXT_WIDTH,
        layers=TEXT_LAYERS,
        seed=seed,
        dtype="F32" if dtype == "F32" else "BF16",
    )
    return TinyCheckpoint(folder, checkpoint, upsamplers, lora, encoder)


def tiny_config(generation: Generation, variant: Variant, blocks: int = 2) -> dict[str, Any]:
    """The config JSON of a tiny checkpoint, all sections, with the keys that the official ones have."""
    newer = generation == "2.3"
    return {
        "transformer": {
            **_TRANSFORMER,
            "num_layers": blocks,
            **(_TRANSFORMER_23 if newer else {}),
            "recommended": {"height": 128, "width": 128, "num_frames": 17},
        },
        "vae": _VAE_23 if newer else {**_VAE_20, "timestep_conditioning": variant == "distilled"},
        "scheduler": {"_class_name": "RectifiedFlowScheduler", "sampler": "LinearQuadratic"},
        "audio_vae": _AUDIO_VAE,
        "vocoder": _VOCODER_23 if newer else _VOCODER_20,
    }


def upsampler_configs(generation: Generation) -> dict[str, dict[str, Any]]:
    """File name -> flat config of the upsamplers of a generation; the official ones lack x1.5 in LTX-2."""
    common = {
        "_class_name": "LatentUpsampler",
        "in_channels": LATENT_CHANNELS,
        "mid_channels": 32,
        "num_blocks_per_stage": 1,
        "dims": 3,
    }
    spatial = {**common, "spatial_upsample": True, "temporal_upsample": False}
    temporal = {
        **common,
        "spatial_upsample": False,
        "temporal_upsample": True,
        "spatial_scale": 1.0,
        "rational_resampler": True,
    }
    if generation == "2.0":
        return {
            "ltx-2-spatial-upscaler-x2-1.0": {**spatial, "spatial_scale": 2.0, "rational_resampler": True},
            "ltx-2-temporal-upscaler-x2-1.0": temporal,
        }
    return {
        "ltx-2.3-spatial-upscaler-x2-1.1": {**spatial, "spatial_scale": 2.0, "rational_resampler": False},
        "ltx-2.3-spatial-upscaler-x1.5-1.0": {**spatial, "spatial_scale": 1.5, "rational_resampler": True},
        "ltx-2.3-temporal-upscaler-x2-1.0": temporal,
    }


_TRANSFORMER = {
    "_class_name": "AVTransformer3DModel",
    "num_attention_heads": 4,
    "attention_head_dim": 16,
    "audio_num_attention_heads": 4,
    "audio_attention_head_dim": 8,
    "in_channels": LATENT_CHANNELS,
    "out_channels": LATENT_CHANNELS,
    "audio_out_channels": 128,
    "cross_attention_dim": 64,
    "audio_cross_attention_dim": 32,
    "caption_channels": TEXT_WIDTH,
    "text_encoder_num_layers": TEXT_LAYERS,
    "norm_eps": 1e-6,
    "positional_embedding_theta": 10000.0,
    "positional_embedding_max_pos": [20, 2048, 2048],
    "audio_positional_embedding_max_pos": [20],
    "timestep_scale_multiplier": 1000,
    "av_ca_timestep_scale_multiplier": 1000.0,
    "rope_type": "split",
    "frequencies_precision": "float64",
    "use_middle_indices_grid": True,
    "causal_temporal_positioning": True,
    "connector_num_layers": 1,
    "connector_num_attention_heads": 4,
    "connector_attention_head_dim": 16,
    "connector_num_learnable_registers": 128,
    "connector_positional_embedding_max_pos": [4096],
    "use_embeddings_connector": True,
    "connector_norm_output": True,
    "dropout": 0.0,
    "attention_bias": True,
    "num_vector_embeds": None,
    "activation_fn": "gelu-approximate",
    "num_embeds_ada_norm": 1000,
    "use_linear_projection": False,
    "only_cross_attention": False,
    "cross_attention_norm": True,
    "double_self_attention": False,
    "upcast_attention": False,
    "standardization_norm": "rms_norm",
    "norm_elementwise_affine": False,
    "qk_norm": "rms_norm",
    "positional_embedding_type": "rope",
    "use_audio_video_cross_attention": True,
    "share_ff": False,
    "av_cross_ada_norm": True,
}
_TRANSFORMER_23 = {
    "apply_gated_attention": True,
    "cross_attention_adaln": True,
    "caption_proj_before_connector": True,
    "caption_projection_first_linear": False,
    "caption_projection_second_linear": False,
    "caption_proj_input_norm": False,
    "text_encoder_norm_type": "per_token_rms",
    "connector_num_layers": 2,
    "audio_connector_num_attention_heads": 4,
    "audio_connector_attention_head_dim": 8,
    "connector_apply_gated_attention": True,
    "connector_learnable_registers_std": 1,
}
_VAE = {
    "_class_name": "CausalVideoAutoencoder",
    "dims": 3,
    "in_channels": 3,
    "out_channels": 3,
    "latent_channels": LATENT_CHANNELS,
    "patch_size": 4,
    "encoder_base_channels": 8,
    "decoder_base_channels": 8,
    "norm_layer": "pixel_norm",
    "latent_log_var": "uniform",
    "causal_decoder": False,
}


def _res(layers: int, **more: Any) -> list[Any]:
    return ["res_x", {"num_layers": layers, **more}]


def _up(kind: str, **more: Any) -> list[Any]:
    return [kind, more]


_VAE_20 = {
    **_VAE,
    "encoder_blocks": [
        _res(1),
        _up("compress_space_res", multiplier=2),
        _res(1),
        _up("compress_time_res", multiplier=2),
        _res(1),
        _up("compress_all_res", multiplier=2),
        _res(1),
        _up("compress_all_res", multiplier=2),
        _res(1),
    ],
    "decoder_blocks": [
        *[_res(1, inject_noise=False), _up("compress_all", residual=True, multiplier=2)] * 3,
        _res(1, inject_noise=False),
    ],
}
_VAE_23 = {
    **_VAE,
    "encoder_blocks": [
        _res(1),
        _up("compress_space_res", multiplier=2),
        _res(1),
        _up("compress_time_res", multiplier=2),
        _res(1),
        _up("compress_all_res", multiplier=2),
        _res(1),
        _up("compress_all_res", multiplier=1),
        _res(1),
    ],
    "decoder_blocks": [
        _res(1),
        _up("compress_space", multiplier=2),
        _res(1),
        _up("compress_time", multiplier=2),
        _res(1),
        _up("compress_all", multiplier=1),
        _res(1),
        _up("compress_all", multiplier=2),
        _res(1),
    ],
    "spatial_padding_mode": "zeros",
    "timestep_conditioning": False,
}


_AUDIO_VAE = {
    "model": {
        "params": {
            "sampling_rate": 16000,
            "ddconfig": {
                "double_z": True,
                "mel_bins": 64,
                "z_channels": 8,
                "resolution": 256,
                "downsample_time": False,
                "in_channels": 2,
                "out_ch": 2,
                "ch": 8,
                "ch_mult": [1, 2, 4],
                "num_res_blocks": 2,
                "attn_resolutions": [],
                "dropout": 0.0,
                "mid_block_add_attention": False,
                "norm_type": "pixel",
                "causality_axis": "height",
            },
        }
    },
    "preprocessing": {
        "audio": {
            "sampling_rate": 16000,
            "max_wav_value": 32768.0,
            "duration": 5.12,
            "stereo": True,
            "causal_padding": 3,
        },
        "stft": {"filter_length": 1024, "hop_length": 160, "win_length": 1024, "causal": True},
        "mel": {"n_mel_channels": 64, "mel_fmin": 0, "mel_fmax": 8000},
    },
}
_RESBLOCKS = {
    "resblock_kernel_sizes": [3, 7, 11],
    "resblock_dilation_sizes": [[1, 3, 5], [1, 3, 5], [1, 3, 5]],
    "stereo": True,
}
_VOCODER_20 = {
    **_RESBLOCKS,
    "resblock": "1",
    "upsample_rates": [6, 5, 2, 2, 2],
    "upsample_kernel_sizes": [16, 15, 8, 4, 4],
    "upsample_initial_channel": 64,
}
_BIGVGAN = {
    **_RESBLOCKS,
    "resblock": "AMP1",
    "use_tanh_at_final": False,
    "activation": "snakebeta",
    "use_bias_at_final": False,
}
_VOCODER_23 = {
    "vocoder": {
        **_BIGVGAN,
        "upsample_initial_channel": 64,
        "upsample_rates": [5, 2, 2, 2, 2, 2],
        "upsample_kernel_sizes": [11, 4, 4, 4, 4, 4],
    },
    "bwe": {
        **_BIGVGAN,
        "upsample_initial_channel": 32,
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


def _shapes(name: str, config: Mapping[str, Any]) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Official name -> official shape of every tensor of a component."""
    component = COMPONENTS[name]
    back = sorted(((ours, theirs) for theirs, ours in component.sources.items()), key=lambda pair: -len(pair[0]))
    for ours, shape in parameter_shapes(component.build(config)).items():
        start, prefix = next((o, p) for o, p in back if ours.startswith(o))
        yield prefix + ours.removeprefix(start), official_shape(ours, shape)


def _monolith(config: Mapping[str, Any], seed: int) -> Iterator[tuple[str, np.ndarray]]:
    for component in COMPONENTS.values():
        if component.section is not None:
            for name, shape in _shapes(component.name, config[component.section]):
                yield name, random_values(name, shape, seed)
    for name in _STATISTICS_NOBODY_READS:
        yield f"vae.per_channel_statistics.{name}", np.ones(LATENT_CHANNELS, np.float32)


def _write_upsamplers(folder: Path, generation: Generation, seed: int, dtype: Dtype) -> Iterator[Path]:
    for name, config in upsampler_configs(generation).items():
        shapes = _shapes("spatial_upsampler", config)
        tensors = {n: random_values(n, shape, seed) for n, shape in shapes}
        path = folder / f"{name}.safetensors"
        _write(path, tensors, {"config": json.dumps(config)}, dtype)
        yield path


def _lora(config: Mapping[str, Any], seed: int) -> Iterator[tuple[str, np.ndarray]]:
    for name, shape in _shapes("transformer", config["transformer"]):
        path = name.removeprefix("model.").removesuffix(".weight")
        if is_quantizable(path) and name.endswith(".weight"):
            yield f"{path}.lora_A.weight", random_values(f"{path}.A", (LORA_RANK, shape[1]), seed)
            yield f"{path}.lora_B.weight", random_values(f"{path}.B", (shape[0], LORA_RANK), seed)


def random_values(name: str, shape: tuple[int, ...], seed: int) -> np.ndarray:
    """float32 values of a sensible size for the official tensor `name`, the same for the same name and seed."""
    if name.endswith("timestep_scale_multiplier"):
        return np.full(shape, 1000.0, np.float32)
    if name.endswith("blur_down.kernel"):
        row = np.array([1, 4, 6, 4, 1], np.float32) / 16
        return np.outer(row, row).reshape(shape)
    rng = np.random.Generator(np.random.Philox(key=[seed, zlib.crc32(name.encode())]))
    values = rng.standard_normal(shape, dtype=np.float32)
    if name.endswith(("norm.weight", "norm1.weight", "norm2.weight", "std-of-means")):
        return 1 + 0.1 * values
    if name.endswith((".filter", "mel_basis")):
        return np.asarray(np.abs(values) / np.abs(values).sum(axis=-1, keepdims=True))
    if len(shape) >= 2 and not name.endswith(("table", "registers")):
        return np.asarray(values / np.sqrt(np.float32(np.prod(shape[1:]))))
    return np.float32(0.1) * values


def _write(path: Path, tensors: Mapping[str, np.ndarray], metadata: Mapping[str, str], dtype: Dtype) -> None:
    stored = [part for name in sorted(tensors) for part in _encode(name, tensors[name], dtype)]
    with path.open("wb") as file:
        file.write(header_bytes(((name, kind, bits.shape) for name, kind, bits in stored), metadata))
        for _, _, bits in stored:
            file.write(np.ascontiguousarray(bits).tobytes())


def _encode(name: str, values: np.ndarray, dtype: Dtype) -> Iterator[tuple[str, str, np.ndarray]]:
    values = np.asarray(values, np.float32)
    if dtype == "F32":
        yield name, dtype, values
    elif dtype == "F16":
        yield name, dtype, values.astype(np.float16)
    elif dtype == "F8_E4M3" and ".transformer_blocks." in name and is_quantizable(name.removesuffix(".weight")):
        yield name, dtype, _fp8_bits(values / _FP8_SCALE)
        yield f"{name}_scale", "F32", np.full((), _FP8_SCALE, np.float32)
        yield f"{name.removesuffix('.weight')}.input_scale", "F32", np.full((), 0.05, np.float32)
    else:
        yield name, "BF16", _bf16_bits(values)


def _bf16_bits(values: np.ndarray) -> np.ndarray:
    bits = np.ascontiguousarray(values).view(np.uint32).reshape(values.shape)
    return ((bits + 0x7FFF + (bits >> 16 & 1)) >> 16).astype(np.uint16)


def _fp8_bits(values: np.ndarray) -> np.ndarray:
    """Nearest e4m3 value: 3 bits of mantissa, exponents -6 to 8, subnormals below."""
    size = np.minimum(np.abs(values), 448).astype(np.float64)
    exponent = np.clip(np.floor(np.log2(np.maximum(size, 1e-30))), -6, 8)
    steps = np.rint(size / 2.0 ** (exponent - 3))  # 8..16 for normal numbers
    code = np.where(size < 2.0**-6, steps, (exponent + 6) * 8 + steps).astype(np.uint8)
    return np.asarray(code | np.where(values < 0, 0x80, 0).astype(np.uint8))
