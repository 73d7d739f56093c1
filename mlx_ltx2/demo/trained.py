"""The trained demo model: from the packed weights in the package to the official layout.

The pack holds rows of 8-bit integers with one float16 scale each. Unpacked it is what a user of LTX-2.3 downloads: a
monolithic checkpoint with its config JSON, the x2 upsampler, the distilled LoRA, a style LoRA and a Gemma folder.
How it was trained: training/MODEL_CARD.md.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from mlx_ltx2.errors import WeightsError
from mlx_ltx2.weights.scratch import scratch_folder

WEIGHTS = Path(__file__).parent / "weights"
_PACK = "demo.safetensors"
_SCALE = ":scale"

_RECOMMENDED = {
    "image_crf": 0,
    "negative_prompt": "",
    "cfg_scale": 3.0,
    "audio_cfg_scale": 3.0,
    **dict.fromkeys(("cfg_rescale", "audio_cfg_rescale", "stg_scale", "audio_stg_scale"), 0.0),
    **dict.fromkeys(("modality_scale", "audio_modality_scale"), 1.0),
}
"""Defaults that the official model's do not suit: this one was trained without negative prompts, without frames out of
H.264, and its guidance was chosen for classifier-free guidance alone."""


@dataclass(frozen=True)
class TrainedCheckpoint:
    """checkpoint: the monolithic file. lora: the distilled one. style: outlines. All lie in `folder`."""

    folder: Path
    checkpoint: Path
    upsamplers: tuple[Path, ...]
    lora: Path
    style: Path
    text_encoder: Path


def is_packed(weights: str | Path | None = None) -> bool:
    """Whether the trained weights are part of this installation; `weights`: another folder than the package's."""
    return (Path(weights or WEIGHTS) / _PACK).is_file()


def fingerprint(weights: str | Path | None = None) -> str:
    """Ten hexadecimal digits that differ where the unpacked files would."""
    digest = hashlib.sha256(json.dumps(_RECOMMENDED).encode())
    for name in (_PACK, "tokenizer.json"):
        digest.update((Path(weights or WEIGHTS) / name).read_bytes())
    return digest.hexdigest()[:10]


def settings(weights: str | Path | None = None) -> dict[str, Any]:
    """Config JSON of the checkpoint, flat config of the upsampler, config of Gemma, model version.

    Raises: WeightsError if the weights are not there.
    """
    from safetensors import safe_open

    with safe_open(str(_pack(weights)), "numpy") as file:
        about: dict[str, Any] = json.loads(file.metadata()["settings"])
    section = about["config"]["transformer"]
    section["recommended"] = {**section.get("recommended", {}), **_RECOMMENDED}
    return about


def unpack(weights: str | Path | None = None) -> dict[str, dict[str, np.ndarray]]:
    """File ("dev", "upsampler", "distilled", "outlines", "gemma") -> official name -> float32 array.

    Raises: WeightsError if the weights are not there.
    """
    from safetensors.numpy import load_file

    stored = load_file(str(_pack(weights)))
    files: dict[str, dict[str, np.ndarray]] = {}
    for key in sorted(stored):
        if key.endswith(_SCALE):
            continue
        file, _, name = key.partition("/")
        value = stored[key].astype(np.float32)
        if key + _SCALE in stored:
            scale = stored[key + _SCALE].astype(np.float32)
            value *= scale.reshape(-1, *[1] * (value.ndim - 1))
        files.setdefault(file, {})[name] = value
    basis = _stft_basis(512)
    files["dev"]["vocoder.mel_stft.stft_fn.forward_basis"] = basis
    files["dev"]["vocoder.mel_stft.stft_fn.inverse_basis"] = np.zeros_like(basis)
    return files


def write_trained_checkpoint(
    folder: str | Path,
    *,
    variant: Literal["distilled", "dev"] = "distilled",
    dtype: Literal["F32", "F16"] = "F32",
    weights: str | Path | None = None,
) -> TrainedCheckpoint:
    """Write the demo model as official files.

    variant: "distilled" is the dev checkpoint with the distilled LoRA added to its weights. dtype: of the weights.
    Raises: WeightsError if the weights are not part of this installation.
    """
    from safetensors.numpy import save_file

    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    about, files = settings(weights), unpack(weights)
    checkpoint = files["dev"]
    if variant == "distilled":
        checkpoint = checkpoint | _fused(checkpoint, files["distilled"])
    kind = {"F32": np.float32, "F16": np.float16}[dtype]

    def write(name: str, tensors: Mapping[str, np.ndarray], metadata: dict[str, str]) -> Path:
        path = folder / f"{name}.safetensors"
        save_file({n: np.ascontiguousarray(v, dtype=kind) for n, v in tensors.items()}, str(path), metadata)
        return path

    main = {"config": json.dumps(about["config"]), "model_version": about["model_version"]}
    # The name is one that the converter knows a variant by.
    made = write(f"ltx-2.3-22b-{variant}" + ("-1.1" if variant == "distilled" else ""), checkpoint, main)
    upsampler = write("ltx-2.3-spatial-upscaler-x2-1.1", files["upsampler"], {"config": json.dumps(about["upsampler"])})
    rank = next(v.shape[0] for n, v in files["distilled"].items() if n.endswith("lora_A.weight"))
    lora = write(f"ltx-2.3-22b-distilled-lora-{rank}", files["distilled"], {})
    styles = folder / "loras"
    styles.mkdir(exist_ok=True)
    style = write("loras/outlines", files["outlines"], {})
    encoder = folder / "gemma-3-tiny"
    encoder.mkdir(exist_ok=True)
    gemma = {n: np.ascontiguousarray(v, np.float32) for n, v in files["gemma"].items()}
    save_file(gemma, str(encoder / "model.safetensors"), {"format": "pt"})
    (encoder / "config.json").write_text(json.dumps(about["gemma"], indent=2) + "\n", "utf-8")
    shutil.copyfile(Path(weights or WEIGHTS) / "tokenizer.json", encoder / "tokenizer.json")
    special = {"bos_token": "<bos>", "eos_token": "<eos>", "pad_token": "<pad>", "unk_token": "<unk>"}
    tokenizer = {"tokenizer_class": "PreTrainedTokenizerFast", "add_bos_token": True, **special}
    (encoder / "tokenizer_config.json").write_text(json.dumps(tokenizer, indent=2) + "\n", "utf-8")
    return TrainedCheckpoint(folder, made, (upsampler,), lora, style, encoder)


def write_style(name: str, path: Path, weights: str | Path | None = None) -> Path:
    """Write a style LoRA ("outlines") by itself, in full precision; returns `path`.

    Raises: WeightsError if the weights are not part of this installation.
    """
    from safetensors.numpy import save_file

    from mlx_ltx2.media.files import writing

    tensors = {n: np.ascontiguousarray(v) for n, v in unpack(weights)[name].items()}
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        # A folder of its own: another process may be writing the same file.
        with scratch_folder(path.parent) as folder:
            part = folder / path.name
            save_file(tensors, str(part))
            os.replace(part, path)
    return path


def _pack(weights: str | Path | None) -> Path:
    path = Path(weights or WEIGHTS) / _PACK
    if not path.is_file():
        raise WeightsError(f"{path}: the demo's weights are missing; install mlx-ltx2 again.")
    return path


def _fused(checkpoint: Mapping[str, np.ndarray], lora: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The weights that a LoRA changes, with B @ A added."""
    found = {}
    for name, down in lora.items():
        if name.endswith(".lora_A.weight"):
            path = name.removesuffix(".lora_A.weight")
            weight = f"model.{path}.weight"
            found[weight] = checkpoint[weight] + lora[f"{path}.lora_B.weight"] @ down
    return found


def _stft_basis(n_fft: int) -> np.ndarray:
    """Real and imaginary rows of a Fourier transform under a Hann window: (n_fft + 2, 1, n_fft)."""
    n = np.arange(n_fft)
    phase = 2 * np.pi * np.arange(n_fft // 2 + 1)[:, None] * n[None] / n_fft
    window = 0.5 - 0.5 * np.cos(2 * np.pi * n / n_fft)
    rows = np.concatenate([np.cos(phase), -np.sin(phase)]) * window
    return rows[:, None].astype(np.float32)
