"""What a LoRA file says: its pairs of matrices, under every spelling of names in use, and the refused kinds.

Trainers write the same update under different names. All are mapped to the checkpoint's own layer names:

    diffusion_model.<layer>.lora_A.weight            official, ComfyUI
    model.diffusion_model.<layer>.lora_A.weight      full checkpoint names
    base_model.model.<layer>.lora_A.default.weight   peft
    transformer.<diffusers layer>.lora_A.weight      diffusers, whose names of some layers differ
    lora_unet_<layer with underscores>.lora_down.weight, .alpha   kohya
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from mlx_ltx2.errors import WeightsError
from mlx_ltx2.weights.header import Header, TensorInfo, read_header

_PAIR = re.compile(r"(?P<module>.+)\.lora[_.](?P<side>A|B|down|up)(?:\.(?!weight$)(?P<adapter>[^.]+))?(?:\.weight)?")
_DOWN = ("A", "down")
_SCALE = re.compile(
    r"(?P<side>.+\.lora[_.](A|B|down|up)(\.(?!weight|scale)[^.]+)?)(\.weight)?[._](weight_scale|scale_weight|scale)"
)
_UNKNOWN_SCALE = re.compile(r"\.lora[_.](A|B|down|up)\..*(scale|zero_point|absmax|quant_)")
_NO_WEIGHTS = re.compile(r"(.+\.)?(scaled_fp8|comfy_quant|input_scale|scale_input)")
"""Marks of fp8 files that say nothing about a weight: the scale of activations, the kind of the file."""
_ALPHA = re.compile(r"(?P<module>.+)\.alpha")

_UNSUPPORTED = {
    "DoRA": r"\.(dora_scale|lora_magnitude_vector)",
    "LoKr": r"\.lokr_",
    "LoHa": r"\.hada_",
    "BOFT": r"\.boft_",
    "OFT": r"\.oft_",
    "GLoRA": r"\.[ab][12]\.weight$",
    "convolution LoRA": r"\.lora_mid\b",
    "AdaLoRA": r"\.lora_E\b",
    "VeRA": r"\.vera_",
    "LoRA with biases": r"\.lora_(A|B|up|down)(\.[^.]+)?\.bias$",
    "whole weight differences": r"\.(diff|diff_b|w_norm|b_norm|set_weight)$",
    "whole modules": r"\.modules_to_save\.",
}
"""Kind -> what its keys contain. Ignoring such a key would give another picture than its maker saw."""

ADAPTER_MODEL, ADAPTER_CONFIG = "adapter_model.safetensors", "adapter_config.json"
"""peft's names for the weights and for the settings beside them."""

_DTYPES = ("F32", "F16", "BF16", "F8_E4M3")
_SCALARS = {"F64": "<f8", "F32": "<f4", "F16": "<f2", "I64": "<i8", "I32": "<i4"}

_DIFFUSERS = {
    "av_ca_video_scale_shift_adaln_single": "av_cross_attn_video_scale_shift",
    "av_ca_audio_scale_shift_adaln_single": "av_cross_attn_audio_scale_shift",
    "av_ca_a2v_gate_adaln_single": "av_cross_attn_video_a2v_gate",
    "av_ca_v2a_gate_adaln_single": "av_cross_attn_audio_v2a_gate",
    "prompt_adaln_single": "prompt_adaln",
    "adaln_single": "time_embed",
    "patchify_proj": "proj_in",
}
"""Part of a checkpoint name -> diffusers' name for it; the first that occurs is the one."""

_PREFIXES = ("base_model.model.", "model.diffusion_model.", "diffusion_model.", "transformer.", "model.")
_FLAT_PREFIXES = (
    "lora_unet_",
    "lora_transformer_",
    "lycoris_",
    "model_diffusion_model_",
    "diffusion_model_",
    "transformer_",
)


@dataclass(frozen=True)
class Pair:
    """scale * up @ down is what the pair adds to a weight (outputs, inputs).

    down, up: tensor names in the file; keys: these two and what else belongs to them (alpha, scales).
    scales: tensor names of the factors of fp8 matrices, one number or one a row, None without.
    """

    down: str
    up: str
    rank: int
    inputs: int
    outputs: int
    scale: float = 1.0
    keys: tuple[str, ...] = ()
    scales: tuple[str | None, str | None] = (None, None)


@dataclass(frozen=True)
class LoraFile:
    """pairs: by layer as the file spells it. others: keys of no pair."""

    path: Path
    pairs: Mapping[str, Pair]
    metadata: Mapping[str, str]
    others: tuple[str, ...] = ()

    @property
    def ranks(self) -> tuple[int, ...]:
        return tuple(sorted({pair.rank for pair in self.pairs.values()}))

    @property
    def keys(self) -> int:
        return sum(len(pair.keys) for pair in self.pairs.values()) + len(self.others)


def read_lora(path: str | Path) -> LoraFile:
    """Pairs and metadata of a LoRA, from the header alone (and the alphas, one number each).

    Without an alpha a pair counts as it is, as in the official tools; with one it is scaled by alpha / rank.
    Raises: WeightsError if the file is damaged, holds no LoRA, or one of a kind that is not supported.
    """
    header = read_header(path)
    tensors = header.tensors
    _refuse_kinds(header.path, tensors)
    marks = [name for name in tensors if _NO_WEIGHTS.fullmatch(name)]
    scales = {name: m["side"] for name in tensors if name not in marks and (m := _SCALE.fullmatch(name))}
    sides, others = _sides(header.path, [n for n in tensors if n not in scales and n not in marks])
    if not sides:
        raise WeightsError(
            f"{path}: holds no LoRA; none of its {len(tensors)} tensors is a lora_A, lora_B, lora_down or "
            f"lora_up (they are {_some(tensors)}). Give the LoRA's own safetensors file."
        )
    alphas = {m["module"]: name for name in others if (m := _ALPHA.fullmatch(name)) and m["module"] in sides}
    settings = _Settings.of(header)
    pairs = {module: _pair(header, module, *names) for module, names in sides.items()}
    owners = {side: name for name, side in scales.items()}
    with header.path.open("rb") as file:
        for module, pair in pairs.items():
            name = alphas.get(module)
            keys: tuple[str, ...] = (pair.down, pair.up)
            scale = settings.scale(module, pair.rank)
            if name is not None:
                file.seek(tensors[name].begin)
                alpha = _number(header.path, name, tensors[name], file.read(tensors[name].nbytes))
                keys, scale = (*keys, name), alpha / pair.rank
            factors = tuple(_factor(header, matrix, owners) for matrix in (pair.down, pair.up))
            keys = (*keys, *(factor for factor in factors if factor is not None))
            pairs[module] = replace(pair, scale=scale, keys=keys, scales=(factors[0], factors[1]))
    used = set(alphas.values())
    return LoraFile(header.path, pairs, header.metadata, tuple(n for n in others if n not in used))


def layer_names(layers: Iterable[str]) -> dict[str, str]:
    """Every spelling of the checkpoint's layer names, without prefixes -> the checkpoint's name."""
    spelled: dict[str, str] = {}
    for layer in layers:
        for name in (layer, _diffusers(layer)):
            spelled[name] = spelled[name.replace(".", "_")] = layer
    return spelled


def find_layer(module: str, spelled: Mapping[str, str]) -> str | None:
    """The layer that a LoRA file means by `module`, by the table of `layer_names`; None if there is none."""
    prefixes = _PREFIXES if "." in module else _FLAT_PREFIXES
    while module not in spelled:
        stripped = next((module.removeprefix(p) for p in prefixes if module.startswith(p)), None)
        if stripped is None:
            return None
        module = stripped
    return spelled[module]


def _diffusers(layer: str) -> str:
    for ours, theirs in _DIFFUSERS.items():
        if ours in layer:
            return layer.replace(ours, theirs)
    return layer


def _refuse_kinds(path: Path, names: Iterable[str]) -> None:
    for name in names:
        for kind, pattern in _UNSUPPORTED.items():
            if re.search(pattern, name):
                raise WeightsError(
                    f"{path}: is a {kind} file (it has {name!r}), which is not supported; only LoRA with its two "
                    "matrices per Linear layer is. Have it converted or extracted to plain LoRA."
                )


def _sides(path: Path, names: Iterable[str]) -> tuple[dict[str, tuple[str, str]], list[str]]:
    """Module -> names of its down and up tensors; and the names that are neither."""
    down: dict[str, str] = {}
    up: dict[str, str] = {}
    others: list[str] = []
    for name in names:
        if _UNKNOWN_SCALE.search(name):
            raise WeightsError(
                f"{path}: has quantized matrices whose scales ({name!r}) are of an unknown kind; fp8 with one "
                "scale, or one a row, is read. Take the LoRA in BF16."
            )
        match = _PAIR.fullmatch(name)
        if match is None:
            others.append(name)
            continue
        side = down if match["side"] in _DOWN else up
        if match["module"] in side:
            raise WeightsError(
                f"{path}: has two LoRAs for {match['module']} ({side[match['module']]!r} and {name!r}). Give a "
                "file with one adapter."
            )
        side[match["module"]] = name
    single = sorted(down.keys() ^ up.keys())
    if single:
        raise WeightsError(
            f"{path}: only one of the two matrices is there for {_some(single)}. The file is incomplete; "
            "download it again."
        )
    return {module: (name, up[module]) for module, name in down.items()}, others


def _pair(header: Header, module: str, down: str, up: str) -> Pair:
    a, b = header.tensors[down], header.tensors[up]
    if len(a.shape) > 2 or len(b.shape) > 2:
        raise WeightsError(
            f"{header.path}: is a convolution LoRA file ({module} has shapes {a.shape} and {b.shape}), which is "
            "not supported; LTX-2's transformer has Linear layers only."
        )
    if len(a.shape) != 2 or len(b.shape) != 2 or a.shape[0] != b.shape[1] or 0 in (*a.shape, *b.shape):
        raise WeightsError(
            f"{header.path}: the two matrices of {module} do not fit each other: {a.shape} and {b.shape}, where "
            "(rank, inputs) and (outputs, rank) are needed. The file is damaged."
        )
    for name, info in ((down, a), (up, b)):
        if info.dtype not in _DTYPES:
            raise WeightsError(
                f"{header.path}: {name!r} has dtype {info.dtype}; LoRAs may be {', '.join(_DTYPES)}. Convert it "
                "to BF16."
            )
    return Pair(down, up, a.shape[0], a.shape[1], b.shape[0])


def _factor(header: Header, matrix: str, owners: Mapping[str, str]) -> str | None:
    """Name of the tensor that an fp8 matrix is multiplied by, None if there is none.

    Raises: WeightsError if it is neither one number nor one a row.
    """
    name = owners.get(matrix.removesuffix(".weight"))
    if name is None:
        return None
    info, rows = header.tensors[name], header.tensors[matrix].shape[0]
    if info.size not in (1, rows) or info.dtype not in _DTYPES[:3]:
        raise WeightsError(
            f"{header.path}: {name!r}, the scale of an fp8 matrix, is {info.dtype} {info.shape}; one number or one for "
            f"each of the {rows} rows is needed. Take the LoRA in BF16."
        )
    return name


def _number(path: Path, name: str, info: TensorInfo, data: bytes) -> float:
    if info.size == 1 and info.dtype == "BF16":
        value = float(np.frombuffer(b"\0\0" + data, "<f4")[0])
    elif info.size == 1 and info.dtype in _SCALARS:
        value = float(np.frombuffer(data, _SCALARS[info.dtype])[0])
    else:
        raise WeightsError(f"{path}: {name!r} is {info.dtype} {info.shape}, where one number is needed.")
    if not np.isfinite(value):
        raise WeightsError(f"{path}: {name!r} is {value}. The file is damaged.")
    return value


@dataclass(frozen=True)
class _Settings:
    """How peft scales an adapter. diffusers keeps this in the header, peft in a file beside the weights."""

    alpha: float | None = None
    patterns: Mapping[str, float] | None = None
    by_root: bool = False

    @classmethod
    def of(cls, header: Header) -> _Settings:
        stored = header.metadata.get("lora_adapter_metadata")
        beside = header.path.parent / ADAPTER_CONFIG
        if stored is None and header.path.name == ADAPTER_MODEL and beside.is_file():
            stored = beside.read_text(encoding="utf-8")
        if stored is None:
            return cls()
        try:
            values: dict[str, Any] = {k.removeprefix("transformer."): v for k, v in json.loads(stored).items()}
            alpha = values.get("lora_alpha")
            patterns = {k: float(v) for k, v in (values.get("alpha_pattern") or {}).items()}
            settings = cls(None if alpha is None else float(alpha), patterns, bool(values.get("use_rslora")))
        except (ValueError, TypeError, AttributeError) as error:
            raise WeightsError(f"{header.path}: the adapter's settings are damaged ({error}).") from None
        if values.get("use_dora"):
            raise WeightsError(f"{header.path}: is a DoRA file, which is not supported; only plain LoRA is.")
        return settings

    def scale(self, module: str, rank: int) -> float:
        found = (v for k, v in (self.patterns or {}).items() if re.fullmatch(rf"(.*\.)?({k})", module))
        alpha = next(found, self.alpha)
        if alpha is None:
            return 1.0
        return alpha / (rank**0.5 if self.by_root else rank)


def _some(names: Iterable[str], shown: int = 3) -> str:
    names = list(names)
    more = f" and {len(names) - shown} more" if len(names) > shown else ""
    return ", ".join(names[:shown]) + more
