"""Headers -> every tensor that will be stored, checked both ways before the first byte is written.

Each source tensor is converted or on the short list `IGNORED`; each target tensor is filled; shapes are equal.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from mlx_ltx2.errors import WeightsError
from mlx_ltx2.models.registry import COMPONENTS, Component
from mlx_ltx2.traits import Traits, parse_config
from mlx_ltx2.weights.header import Header, TensorInfo, read_header
from mlx_ltx2.weights.index import FOLDERS, TEXT_ENCODER
from mlx_ltx2.weights.layout import permutation
from mlx_ltx2.weights.load import SHOWN, check_tensors, parameter_shapes
from mlx_ltx2.weights.quantize import is_quantizable
from mlx_ltx2_convert.gemma import TextEncoderSource, plan_text_encoder
from mlx_ltx2_convert.options import Options
from mlx_ltx2_convert.shards import Shard, Tensor, cut_into_shards
from mlx_ltx2_convert.sources import Sources
from mlx_ltx2_convert.tensors import FLOATING, RAW, to_float32

IGNORED: tuple[tuple[re.Pattern[str], str], ...] = (
    (
        re.compile(r"(audio_)?vae\.per_channel_statistics\.(channel|mean-of-stds|mean-of-stds_over_std-of-means)"),
        "statistics that no network reads",
    ),
    (re.compile(r"vocoder\.mel_stft\.stft_fn\.inverse_basis"), "the inverse transform is never computed"),
    (
        re.compile(r"model\.diffusion_model\..+\.input_scale"),
        "scale of fp8 activations; only weights are read",
    ),
    (
        re.compile(r"(model\.diffusion_model\.)?scaled_fp8"),
        "marks an fp8 file; the weights say so themselves",
    ),
)
"""Source tensors that may stay behind, and why. They count only where the network has no such parameter."""

_AS_STORED = re.compile(r"(^|\.)per_channel_statistics\.")
_SCALES = (".weight_scale", ".bias_scale")


@dataclass(frozen=True)
class Plan:
    """What a conversion will write. configs: component -> config.json. left: layers too narrow to quantize."""

    traits: Traits
    shards: tuple[Shard, ...]
    configs: Mapping[str, Mapping[str, Any]]
    headers: tuple[Header, ...]
    ignored: Mapping[str, str]
    left: tuple[str, ...]
    loras: tuple[Path, ...]
    copies: Mapping[str, Path] = field(default_factory=dict)

    @property
    def source_names(self) -> dict[Path, str]:
        """File names of all sources, told apart where two are equal."""
        names: dict[Path, str] = {}
        for path in (*(h.path for h in self.headers), *self.loras):
            names[path] = path.name if path.name not in names.values() else f"{path.parent.name}/{path.name}"
        return names

    @property
    def output_bytes(self) -> int:
        return sum(s.nbytes for s in self.shards) + sum(p.stat().st_size for p in (*self.loras, *self.copies.values()))

    @property
    def input_bytes(self) -> int:
        return sum(h.file_bytes for h in self.headers) + sum(p.stat().st_size for p in self.loras)


@dataclass
class _Wanted:
    """Tensors of one component while they are gathered."""

    component: Component
    config: Mapping[str, Any]
    shapes: dict[str, tuple[int, ...]]
    tensors: list[Tensor] = field(default_factory=list)


def make_plan(sources: Sources, options: Options) -> Plan:
    """Read all headers, build all networks lazily, and match names both ways.

    Raises: WeightsError that lists what is missing, unexpected, of the wrong shape or of an unsupported dtype.
    """
    header = read_header(sources.checkpoint)
    traits = Traits.from_header(header.metadata, header.tensors, str(sources.checkpoint), options.variant)
    everything = [
        _wanted(component, traits.config[component.section])
        for component in COMPONENTS.values()
        if component.section is not None and component.section in traits.config
    ]
    ignored = _match(header, everything, options)
    wanted = [w for w in everything if options.wants(w.component.name)]
    headers = [header]
    for name, path in sources.upsamplers.items():
        if options.wants(name):
            headers.append(read_header(path))
            wanted.append(_wanted(COMPONENTS[name], parse_config(headers[-1].metadata, str(path))))
            ignored.update(_match(headers[-1], wanted[-1:], options))
    left: list[str] = []
    shards: list[Shard] = []
    configs: dict[str, Mapping[str, Any]] = {}
    for target in wanted:
        name = target.component.name
        configs[name] = _with_quantization(target.config, options, target.tensors)
        left += [f"{name}.{t.name}" for t in target.tensors if t.quantization is None and _could(t, options)]
        shards += cut_into_shards(name, target.component.folder, target.tensors, options.shard_bytes)
    copies: dict[str, Path] = {}
    if sources.text_encoder is not None:
        encoder = plan_text_encoder(sources.text_encoder, traits, options)
        _add_text_encoder(encoder, options, headers, shards, configs)
        copies = {f"{FOLDERS[TEXT_ENCODER]}/{p.name}": p for p in encoder.files}
        left += [f"{TEXT_ENCODER}.{t.name}" for t in encoder.tensors if t.quantization is None and _could(t, options)]
        ignored.update(encoder.ignored)
    loras = sources.loras if options.components is None else ()
    return Plan(traits, tuple(shards), configs, tuple(headers), ignored, tuple(left), loras, copies)


def _wanted(component: Component, config: Mapping[str, Any]) -> _Wanted:
    return _Wanted(component, config, parameter_shapes(component.build(config)))


def _add_text_encoder(
    encoder: TextEncoderSource,
    options: Options,
    headers: list[Header],
    shards: list[Shard],
    configs: dict[str, Mapping[str, Any]],
) -> None:
    headers += encoder.headers
    configs[TEXT_ENCODER] = _with_quantization(encoder.config, options, encoder.tensors)
    shards += cut_into_shards(TEXT_ENCODER, FOLDERS[TEXT_ENCODER], encoder.tensors, options.shard_bytes)


def _with_quantization(config: Mapping[str, Any], options: Options, tensors: Iterable[Tensor]) -> dict[str, Any]:
    if options.quantization is None or not any(t.quantization for t in tensors):
        return dict(config)
    return {**config, "quantization": options.quantization.to_dict()}


def _could(tensor: Tensor, options: Options) -> bool:
    return options.quantization is not None and is_quantizable(tensor.name.removesuffix(".weight"))


def _match(header: Header, wanted: list[_Wanted], options: Options) -> dict[str, str]:
    """Give each target its source tensors; returns what stays behind and why."""
    ignored: dict[str, str] = {}
    unexpected: list[str] = []
    scales = _fp8_scales(header)
    for official, info in header.tensors.items():
        targets = _targets(official, wanted)
        for target, name in targets:
            target.tensors.append(_tensor(target, name, official, info, header.path, scales, options))
        if targets or official in scales:
            continue
        reason = next((why for pattern, why in IGNORED if pattern.fullmatch(official)), None)
        if reason is None:
            unexpected.append(official)
        else:
            ignored[official] = reason
    _report(header, wanted, unexpected)
    return ignored


def _targets(official: str, wanted: Iterable[_Wanted]) -> list[tuple[_Wanted, str]]:
    """Where a source tensor goes: every component that has a parameter of its stripped name."""
    return [
        (target, name)
        for target in wanted
        for prefix, ours in target.component.sources.items()
        if official.startswith(prefix) and (name := ours + official.removeprefix(prefix)) in target.shapes
    ]


def _tensor(
    target: _Wanted,
    name: str,
    official: str,
    info: TensorInfo,
    path: Path,
    scales: Mapping[str, float],
    options: Options,
) -> Tensor:
    axes = permutation(name, len(info.shape))
    shape = info.shape if axes is None else tuple(info.shape[a] for a in axes)
    if info.dtype not in RAW:
        raise WeightsError(f"{path}: tensor {official} has dtype {info.dtype}, which cannot be converted.")
    dtype = stored_dtype(target.component.name, name, info, options)
    quantization = options.quantization
    fits = quantization is not None and is_quantizable(name.removesuffix(".weight")) and name.endswith(".weight")
    if not (fits and quantization is not None and quantization.fits(shape[-1])):
        quantization = None
    return Tensor(name, official, path, info, shape, axes, dtype, quantization, scales.get(f"{official}_scale", 1.0))


def stored_dtype(component: str, name: str, info: TensorInfo, options: Options) -> str:
    """Floating tensors take the wanted dtype; the vocoder, statistics and single numbers stay as they are."""
    if info.dtype not in FLOATING:
        return info.dtype
    stays = component == "vocoder" or _AS_STORED.search(name) or not info.shape
    kept = "BF16" if info.dtype == "F8_E4M3" else "F32" if info.dtype == "F64" else info.dtype
    return kept if stays or options.dtype is None else options.dtype


def _fp8_scales(header: Header) -> dict[str, float]:
    """Name -> value of the scales of an fp8 file. Raises: WeightsError for scales that are no single number."""
    scales: dict[str, float] = {}
    with header.path.open("rb") as file:
        for name, info in header.tensors.items():
            if not name.endswith(_SCALES) or name.removesuffix("_scale") not in header.tensors:
                continue
            if math.prod(info.shape) != 1 or info.dtype not in FLOATING:
                raise WeightsError(
                    f"{header.path}: {name} has shape {info.shape} and dtype {info.dtype}; only fp8 files with one "
                    "scale per tensor are supported. Take the bf16 file or an official fp8 file."
                )
            file.seek(info.begin)
            raw = file.read(info.nbytes)
            scales[name] = float(to_float32(np.frombuffer(raw, RAW[info.dtype]), info.dtype)[0])
    return scales


def _report(header: Header, wanted: list[_Wanted], unexpected: list[str]) -> None:
    """Raise WeightsError with all faults of the file at once."""
    faults: list[str] = []
    for target in wanted:
        given = {t.name: t.shape for t in target.tensors}
        try:
            check_tensors(target.shapes, given, target.component.name)
        except WeightsError as error:
            faults.append(str(error))
    if unexpected:
        more = f" and {len(unexpected) - SHOWN} more" if len(unexpected) > SHOWN else ""
        faults.append(f"{len(unexpected)} tensors belong to no network: {', '.join(sorted(unexpected)[:SHOWN])}{more}.")
    if faults:
        raise WeightsError(f"{header.path}: cannot be converted completely.\n" + "\n".join(faults))
