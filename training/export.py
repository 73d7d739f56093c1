"""Trained modules -> official names, one packed file for the wheel, and a check against ltx-core.

The pack holds rows of 8-bit integers with one float16 scale each; `mlx_ltx2.demo.trained` unpacks it to the official
files. What is judged and shipped is what comes out of the pack.
"""

from __future__ import annotations

import argparse
import json
import shutil
from pathlib import Path

import numpy as np
import torch
from safetensors.numpy import save_file

from mlx_ltx2.demo.tiny import tiny_config
from training import text
from training.models import (
    AUDIO,
    AUDIO_DIM,
    AUDIO_FEATURES,
    AUDIO_HEAD_DIM,
    AUDIO_LATENT,
    DECODER_BASE,
    DECODER_LAYERS,
    ENCODER_LAYERS,
    EXTENSION,
    HEAD_DIM,
    HEADS,
    LATENT,
    LAYERS,
    MAX_POS,
    RESBLOCK_DILATIONS,
    RESBLOCK_KERNELS,
    UPSAMPLER_BLOCKS,
    UPSAMPLER_WIDTH,
    VIDEO_DIM,
    VOCODER,
)

WEIGHTS = Path("mlx_ltx2/demo/weights")
SMALL = 512  # tensors of fewer values stay in float32

Tensors = dict[str, torch.Tensor]


def config() -> dict:
    """The config JSON of the checkpoint, all sections, from the sizes in training.models."""
    found = tiny_config("2.3", "dev", LAYERS)
    found["transformer"] |= {
        "num_attention_heads": HEADS,
        "attention_head_dim": HEAD_DIM,
        "audio_num_attention_heads": HEADS,
        "audio_attention_head_dim": AUDIO_HEAD_DIM,
        "in_channels": LATENT,
        "out_channels": LATENT,
        "audio_in_channels": AUDIO_FEATURES,
        "audio_out_channels": AUDIO_FEATURES,
        "cross_attention_dim": VIDEO_DIM,
        "audio_cross_attention_dim": AUDIO_DIM,
        "caption_channels": text.CONFIG["hidden_size"],
        "text_encoder_num_layers": text.CONFIG["num_hidden_layers"],
        "positional_embedding_max_pos": list(MAX_POS),
        "audio_positional_embedding_max_pos": [MAX_POS[0]],
        "connector_num_layers": 1,
        "connector_num_attention_heads": HEADS,
        "connector_attention_head_dim": HEAD_DIM,
        "audio_connector_num_attention_heads": HEADS,
        "audio_connector_attention_head_dim": AUDIO_HEAD_DIM,
        "recommended": {"height": 128, "width": 128, "num_frames": 49},
    }
    down = (
        ("compress_space_res", 2),
        ("compress_time_res", 1),
        ("compress_all_res", 1),
        ("compress_all_res", 2),
    )
    up = (("compress_space", 1), ("compress_time", 1), ("compress_all", 1))

    def blocks(layers: tuple[int, ...], between: tuple[tuple[str, int], ...]) -> list:
        rows: list = [["res_x", {"num_layers": layers[0]}]]
        for (kind, multiplier), count in zip(between, layers[1:], strict=True):
            rows += [[kind, {"multiplier": multiplier}], ["res_x", {"num_layers": count}]]
        return rows

    found["vae"] |= {
        "latent_channels": LATENT,
        "encoder_base_channels": LATENT,
        "decoder_base_channels": DECODER_BASE,
        "encoder_blocks": blocks(ENCODER_LAYERS, down),
        "decoder_blocks": [*blocks(DECODER_LAYERS, up), ["compress_all", {"multiplier": 8}]],
    }
    dd = found["audio_vae"]["model"]["params"]["ddconfig"]
    dd |= {
        "ch": AUDIO["ch"],
        "ch_mult": list(AUDIO["ch_mult"]),
        "num_res_blocks": AUDIO["num_res_blocks"],
        "z_channels": AUDIO_LATENT,
    }
    for section, sizes in (("vocoder", VOCODER), ("bwe", EXTENSION)):
        found["vocoder"][section] |= {
            "upsample_initial_channel": sizes["hidden"],
            "upsample_rates": sizes["rates"],
            "upsample_kernel_sizes": sizes["kernels"],
            "resblock_kernel_sizes": RESBLOCK_KERNELS,
            "resblock_dilation_sizes": RESBLOCK_DILATIONS,
        }
    return json.loads(json.dumps(found))


def _renamed(state: Tensors, prefix: str, pairs: tuple[tuple[str, str], ...]) -> Tensors:
    found = {}
    for name, value in state.items():
        for old, new in pairs:
            name = name.replace(old, new)
        found[prefix + name] = value
    return found


def video_names(state: Tensors) -> Tensors:
    """diffusers' video VAE -> official names."""
    found = {}
    for name, value in state.items():
        if name == "latents_mean":
            found["vae.per_channel_statistics.mean-of-means"] = value
            continue
        if name == "latents_std":
            found["vae.per_channel_statistics.std-of-means"] = value
            continue
        part = name.split(".")
        if part[1] in ("down_blocks", "up_blocks"):
            decoder = part[1] == "up_blocks"
            index = 2 * int(part[2])
            if part[3] == "resnets":
                part[2:4] = [str(index + 1 if decoder else index), "res_blocks"]
            else:
                part[2:5] = [str(index if decoder else index + 1)]
        elif part[1] == "mid_block":
            part[1:3] = (
                ["up_blocks", "0", "res_blocks"] if part[0] == "decoder" else ["down_blocks", str(2 * 4), "res_blocks"]
            )
        found["vae." + ".".join(part)] = value
    return found


def audio_names(state: Tensors) -> Tensors:
    statistics = (
        ("latents_mean", "per_channel_statistics.mean-of-means"),
        ("latents_std", "per_channel_statistics.std-of-means"),
    )
    return _renamed(state, "audio_vae.", statistics)


def vocoder_names(state: Tensors) -> Tensors:
    pairs = (
        ("conv_in.", "conv_pre."),
        ("conv_out.", "conv_post."),
        ("upsamplers.", "ups."),
        ("resnets.", "resblocks."),
        ("act_out.", "act_post."),
        ("downsample.filter", "downsample.lowpass.filter"),
    )
    return _renamed(state, "vocoder.", pairs)


QK = ((".norm_q.", ".q_norm."), (".norm_k.", ".k_norm."))


def transformer_names(state: Tensors) -> Tensors:
    """diffusers' transformer -> official names, without prefix."""
    tops = {
        "proj_in": "patchify_proj",
        "audio_proj_in": "audio_patchify_proj",
        "time_embed": "adaln_single",
        "audio_time_embed": "audio_adaln_single",
        "av_cross_attn_video_scale_shift": "av_ca_video_scale_shift_adaln_single",
        "av_cross_attn_audio_scale_shift": "av_ca_audio_scale_shift_adaln_single",
        "av_cross_attn_video_a2v_gate": "av_ca_a2v_gate_adaln_single",
        "av_cross_attn_audio_v2a_gate": "av_ca_v2a_gate_adaln_single",
        "prompt_adaln": "prompt_adaln_single",
        "audio_prompt_adaln": "audio_prompt_adaln_single",
    }
    tables = (
        ("video_a2v_cross_attn_scale_shift_table", "scale_shift_table_a2v_ca_video"),
        ("audio_a2v_cross_attn_scale_shift_table", "scale_shift_table_a2v_ca_audio"),
    )
    found = {}
    for name, value in _renamed(state, "", QK + tables).items():
        top, dot, rest = name.partition(".")
        found[tops.get(top, top) + dot + rest] = value
    return found


def connector_names(state: Tensors) -> Tensors:
    pairs = (
        *QK,
        ("video_text_proj_in.", "text_embedding_projection.video_aggregate_embed."),
        ("audio_text_proj_in.", "text_embedding_projection.audio_aggregate_embed."),
        ("video_connector.", "model.diffusion_model.video_embeddings_connector."),
        ("audio_connector.", "model.diffusion_model.audio_embeddings_connector."),
        (".transformer_blocks.", ".transformer_1d_blocks."),
    )
    return _renamed(state, "", pairs)


def _part(state: Tensors, prefix: str) -> Tensors:
    return {n.removeprefix(prefix): v for n, v in state.items() if n.startswith(prefix)}


def collect(out: Path) -> dict[str, Tensors]:
    """Everything that ships, by file, under official names, float32."""
    denoiser = torch.load(out / "denoiser.pt")
    voice = torch.load(out / "vocoder.pt")
    checkpoint = (
        video_names(torch.load(out / "video_vae.pt"))
        | audio_names(torch.load(out / "audio_vae.pt"))
        | vocoder_names(voice)
        | {f"model.diffusion_model.{n}": v for n, v in transformer_names(_part(denoiser, "transformer.")).items()}
        | connector_names(_part(denoiser, "connectors."))
    )
    files = {"dev": checkpoint, "upsampler": torch.load(out / "upsampler.pt")}
    for name in ("distilled", "outlines"):
        adapter: Tensors = {}
        for path, (down, up) in torch.load(out / f"{name}.pt").items():
            adapter[f"diffusion_model.{path}.lora_A.weight"] = down
            adapter[f"diffusion_model.{path}.lora_B.weight"] = up
        files[name] = adapter
    gemma = torch.load(out / "gemma" / "model.pt")
    files["gemma"] = {f"language_model.model.{n}": v for n, v in gemma.items()}
    return files


def upsampler_config() -> dict:
    return {
        "_class_name": "LatentUpsampler",
        "in_channels": LATENT,
        "mid_channels": UPSAMPLER_WIDTH,
        "num_blocks_per_stage": UPSAMPLER_BLOCKS,
        "dims": 3,
        "spatial_upsample": True,
        "temporal_upsample": False,
        "spatial_scale": 2.0,
        "rational_resampler": False,
    }


def gemma_config(vocabulary: int) -> dict:
    """config.json of the text encoder's folder."""
    inner = dict(text.CONFIG) | {
        "model_type": "gemma3_text",
        "vocab_size": vocabulary,
        "rope_theta": 1000000.0,
        "rope_local_base_freq": 10000.0,
        "rope_scaling": None,
        "sliding_window_pattern": 3,
    }
    return {
        "architectures": ["Gemma3ForConditionalGeneration"],
        "model_type": "gemma3",
        "bos_token_id": 2,
        "eos_token_id": 1,
        "pad_token_id": 0,
        "text_config": inner,
        "torch_dtype": "float32",
    }


def quantise(value: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Rows of int8 and their float16 scales; the scale is the best of a few in squared error."""
    rows = value.reshape(len(value), -1).astype(np.float32)
    top = np.abs(rows).max(1)
    best = np.full(len(rows), np.inf, np.float32)
    scale = np.zeros(len(rows), np.float16)
    codes = np.zeros(rows.shape, np.int8)
    for share in (1.0, 0.9, 0.8, 0.7):
        s = np.maximum(top * share / 127, 6.2e-5).astype(np.float16)
        q = np.clip(np.round(rows / s[:, None].astype(np.float32)), -127, 127)
        error = ((q * s[:, None].astype(np.float32) - rows) ** 2).sum(1)
        better = error < best
        best[better], scale[better], codes[better] = error[better], s[better], q[better].astype(np.int8)
    return codes.reshape(value.shape), scale


def pack(out: Path, weights: Path = WEIGHTS) -> dict[str, int]:
    """Write the packed weights, the tokenizer and the config; returns bytes by file."""
    weights.mkdir(parents=True, exist_ok=True)
    stored: dict[str, np.ndarray] = {}
    made_elsewhere = ("stft_fn.forward_basis", "stft_fn.inverse_basis")
    for file, tensors in collect(out).items():
        for name, tensor in tensors.items():
            value = tensor.detach().float().numpy()
            if name.endswith(made_elsewhere):
                continue
            exact = value.size < SMALL or value.ndim < 2 or "statistics" in name or name.endswith("mel_basis")
            if exact:
                stored[f"{file}/{name}"] = value.astype(
                    np.float32 if value.size < SMALL or "basis" in name else np.float16
                )
            else:
                stored[f"{file}/{name}"], stored[f"{file}/{name}:scale"] = quantise(value)
    vocabulary = json.loads((out / "gemma" / "vocabulary.json").read_text())["size"]
    settings = {
        "config": config(),
        "upsampler": upsampler_config(),
        "gemma": gemma_config(vocabulary),
        "model_version": "2.3.0",
    }
    save_file(stored, weights / "demo.safetensors", {"settings": json.dumps(settings)})
    shutil.copyfile(out / "gemma" / "tokenizer.json", weights / "tokenizer.json")
    return {p.name: p.stat().st_size for p in weights.iterdir()}


def restore(out: Path, packed: Path, into: Path) -> None:
    """Write the trained parts again as they come out of the pack, so that what is judged is what ships."""
    from mlx_ltx2.demo.trained import unpack

    files = unpack(packed)
    into.mkdir(parents=True, exist_ok=True)
    shutil.copytree(out / "gemma", into / "gemma", dirs_exist_ok=True)
    parts = {
        "video_vae": (torch.load(out / "video_vae.pt"), video_names),
        "audio_vae": (torch.load(out / "audio_vae.pt"), audio_names),
        "vocoder": (torch.load(out / "vocoder.pt"), vocoder_names),
    }
    for part, (state, names) in parts.items():
        official = [next(iter(names({n: v}))) for n, v in state.items()]
        torch.save(
            {n: torch.from_numpy(files["dev"][o].copy()) for n, o in zip(state, official, strict=True)},
            into / f"{part}.pt",
        )
    denoiser = {}
    for n, v in torch.load(out / "denoiser.pt").items():
        if n.startswith("transformer."):
            official = "model.diffusion_model." + next(iter(transformer_names({n.removeprefix("transformer."): v})))
        else:
            official = next(iter(connector_names({n.removeprefix("connectors."): v})))
        denoiser[n] = torch.from_numpy(files["dev"][official].copy())
    torch.save(denoiser, into / "denoiser.pt")
    torch.save({n: torch.from_numpy(v.copy()) for n, v in files["upsampler"].items()}, into / "upsampler.pt")
    gemma = {n.removeprefix("language_model.model."): torch.from_numpy(v.copy()) for n, v in files["gemma"].items()}
    torch.save(gemma, into / "gemma" / "model.pt")
    for name in ("distilled", "outlines"):
        adapter = {}
        for path in torch.load(out / f"{name}.pt"):
            pair = (files[name][f"diffusion_model.{path}.lora_{k}.weight"] for k in "AB")
            adapter[path] = tuple(torch.from_numpy(a.copy()) for a in pair)
        torch.save(adapter, into / f"{name}.pt")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("out/training"))
    parser.add_argument("--weights", type=Path, default=WEIGHTS)
    parser.add_argument("--restore", type=Path, help="write the parts again, as packed, into this folder")
    a = parser.parse_args()
    print(pack(a.out, a.weights))
    if a.restore:
        restore(a.out, a.weights, a.restore)
