"""What a file or a folder of weights is, told by its content: first bytes, tensor names, keys of its JSON files.

Names lie: a repo that holds the official file also holds diffusers' folders with a `model_index.json` of theirs, and
any download can end in `.safetensors`.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from mlx_ltx2.errors import WeightsError
from mlx_ltx2.weights.header import Header, read_header
from mlx_ltx2.weights.index import index_kind

OFFICIAL = "Give the official checkpoint, for example ltx-2.3-22b-distilled-1.1.safetensors, or Lightricks/LTX-2.3"

_VAE = ("vae.decoder.", "vae.encoder.")


@dataclass(frozen=True)
class Found:
    """kind: "model", "official", "transformer", "lora", "upsampler", "text encoder", "diffusers", "other tool", "empty"
    or "other". says: what goes on after its name, such as "is a diffusers folder"."""

    kind: str
    says: str


def kind_of(header: Header) -> str:
    """ "official" (a monolithic checkpoint), "transformer" (of one, alone), "lora", "upsampler", "text encoder" or
    "other"."""
    names = header.tensors
    if any(".lora_" in name or name.endswith((".lokr_w1", ".hada_w1_a", ".dora_scale")) for name in names):
        return "lora"
    if any(name.startswith("model.diffusion_model.") for name in names):
        return "official" if any(name.startswith(_VAE) for name in names) else "transformer"
    if "initial_conv.weight" in names and any(name.startswith("post_upsample_res_blocks.") for name in names):
        return "upsampler"
    if any(name.endswith("embed_tokens.weight") for name in names):
        return "text encoder"
    if any(name.startswith(("transformer_blocks.", "transformer.transformer_blocks.")) for name in names):
        return "other tool"
    return "other"


_SAYS = {
    "official": "is an official checkpoint",
    "transformer": "holds a transformer alone, without VAEs and vocoder, as ComfyUI splits it",
    "lora": "is a LoRA; give it with --lora",
    "upsampler": "is a latent upsampler; it comes along with a checkpoint beside it",
    "text encoder": "holds weights of a text encoder; give its folder with --text-encoder",
    "other tool": "is a transformer in the names of another MLX tool, which is not read yet",
    "other": "holds no monolithic LTX-2 checkpoint; its tensors are not those of an official LTX-2 file",
}


def recognise_file(path: str | Path) -> Found:
    """What a single file is. Raises: WeightsError that says what it is instead, if it is no safetensors file."""
    kind = kind_of(read_header(path))
    return Found(kind, _SAYS[kind])


def recognise_folder(folder: str | Path) -> Found:
    """What a folder is; damaged files in it count as what their names say, since loading will name them."""
    folder = Path(folder)
    index = index_kind(folder)
    if index == "ours":
        return Found("model", "is a converted model")
    kinds = _kinds(folder.glob("*.safetensors"))
    if "official" in kinds.values():
        return Found("official", "holds an official checkpoint")
    config = _json(folder / "config.json")
    if index == "diffusers" or str(_json(folder / "transformer" / "config.json").get("_class_name", "")).startswith(
        "LTX"
    ):
        return Found("diffusers", "is a diffusers folder, which is not read yet")
    if str(config.get("model_type", "")).startswith("gemma"):
        return Found("text encoder", "is a text encoder; give it with --text-encoder")
    if index == "damaged":
        return Found("model", "is a converted model whose index is damaged")
    return _by_names([p.relative_to(folder).as_posix() for p in _shallow(folder)], kinds)


def recognise_listing(names: Sequence[str], index: str | None = None) -> Found:
    """What a repo is, by the names of its files alone. index: kind of its `model_index.json`, if it has one."""
    if index == "diffusers" or any(n.startswith("transformer/diffusion_pytorch_model") for n in names):
        return Found("diffusers", "is a diffusers repo, which is not read yet")
    return _by_names(names, {})


def _by_names(names: Sequence[str], kinds: Mapping[str, str]) -> Found:
    weights = [n for n in names if n.endswith(".safetensors")]
    if any(n.startswith(("split_files/", "diffusion_models/", "unet/")) for n in names):
        return Found("other tool", "holds files split for ComfyUI, which are not read yet")
    if {"split_model.json", "quantization.json", "embedded_config.json"} & set(names) or any(
        n.startswith(("transformer/model", "transformer-", "transformer.safetensors", "text_projections/"))
        for n in names
    ):
        return Found("other tool", "was converted by another MLX tool, whose layout is not read yet")
    if set(kinds.values()) == {"lora"} or (weights and not kinds and all("lora" in n.lower() for n in weights)):
        return Found("lora", "holds LoRAs alone; give one with --lora")
    if set(kinds.values()) & {"transformer", "upsampler", "other tool", "text encoder"}:
        kind = next(k for k in ("transformer", "other tool", "upsampler", "text encoder") if k in kinds.values())
        return Found(kind, _SAYS[kind])
    if any(n.endswith(".gguf") for n in names):
        return Found("other", "holds GGUF files, which are not read")
    if not weights and any(n.endswith((".ckpt", ".pt", ".pth", ".bin")) for n in names):
        return Found("other", "holds pickled weights, which are never read; only safetensors files are")
    if not weights:
        return Found("empty", f"holds no weights ({', '.join(sorted(names)[:3]) or 'no file at all'})")
    return Found("other", "holds no official LTX-2 file")


def _kinds(paths: Iterable[Path]) -> dict[str, str]:
    kinds: dict[str, str] = {}
    for path in sorted(paths):
        try:
            kinds[path.name] = kind_of(read_header(path))
        except WeightsError:
            kinds[path.name] = "official" if path.name.startswith("ltx-") and "lora" not in path.name else "other"
    return kinds


def _shallow(folder: Path) -> Iterable[Path]:
    yield from folder.glob("*")
    yield from folder.glob("*/*")


def _json(path: Path) -> dict[str, object]:
    try:
        content = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}
