"""Converted folder -> ready network. Strict both ways, lazy: arrays are read when they are first evaluated."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import mlx.core as mx
from mlx import nn
from mlx.utils import tree_flatten

from mlx_ltx2.errors import WeightsError
from mlx_ltx2.models.layers.linear import turn_long_weights
from mlx_ltx2.models.registry import COMPONENTS
from mlx_ltx2.models.video_vae import PerChannelStatistics
from mlx_ltx2.weights.header import Header, TensorInfo, read_header
from mlx_ltx2.weights.index import SHARD_INDEX, TEXT_ENCODER, ModelFolder, read_json
from mlx_ltx2.weights.quantize import Quantization, quantize_like

SHOWN = 12
"""How many names of one kind a report of mismatches lists."""

KEEPS_DTYPE = ("vocoder",)
"""Components whose weights are never cast: the vocoder computes in float32."""


def load_component(
    model: ModelFolder | str | Path,
    name: str,
    *,
    dtype: mx.Dtype | None = None,
    video: bool = True,
    audio: bool = True,
) -> nn.Module:
    """One network of a converted model with its weights, read and ready for use in any thread.

    MLX binds what is not yet evaluated to the thread that made it (0.32), so everything is evaluated here.

    name: a component name, see `models.registry.COMPONENTS` or "text_encoder". dtype: cast floating weights to it, None
    keeps what is stored; the vocoder is never cast. video, audio: False builds the transformer without that stream,
    whose weights are then never read.

    Raises: WeightsError if the component is missing or damaged, or its tensors differ in name or shape from the
        network.
    """
    network = lazy_component(model, name, dtype=dtype, video=video, audio=audio)
    mx.eval(network.parameters())
    return network


def lazy_component(
    model: ModelFolder | str | Path,
    name: str,
    *,
    dtype: mx.Dtype | None = None,
    video: bool = True,
    audio: bool = True,
) -> nn.Module:
    """As `load_component`, with arrays that are read when they are first evaluated, in the thread that called this."""
    folder = model if isinstance(model, ModelFolder) else ModelFolder.open(model)
    if name == TEXT_ENCODER:
        from mlx_ltx2.weights.text_encoder import lazy_text_encoder

        return lazy_text_encoder(folder.folder(name), folder.traits.text_width).model
    module, wanted = bare_component(folder, name, video=video, audio=audio)
    cast = None if name in KEEPS_DTYPE else dtype
    module.load_weights(_arrays(wanted, cast), strict=True)
    turn_long_weights(module)
    module.eval()
    return module


def bare_component(
    folder: ModelFolder, name: str, *, video: bool = True, audio: bool = True
) -> tuple[nn.Module, dict[str, tuple[Header, TensorInfo]]]:
    """A network as it is stored, quantized layers included, without weights; and where each of its tensors lies.

    Arguments and errors as `load_component`, with any name but "text_encoder". Reads headers only.
    """
    if name not in COMPONENTS:
        folder.folder(name)  # raises with the list of names
    config = folder.config(name)
    stored_quantization = config.pop("quantization", None)
    where = folder.folder(name)
    module, wanted = _build(name, config, read_shards(where), video, audio)
    if stored_quantization is not None:
        quantization = Quantization.from_dict(stored_quantization, str(where / "config.json"))
        _quantize_as_stored(module, set(wanted), quantization, where)
    check_tensors(parameter_shapes(module), {n: i.shape for n, (_, i) in wanted.items()}, str(where))
    return module, wanted


def load_statistics(model: ModelFolder | str | Path) -> PerChannelStatistics:
    """The video VAE's channel statistics by themselves, from its encoder or, without one, its decoder.

    Raises: WeightsError if the model has neither, or the statistics are damaged.
    """
    folder = model if isinstance(model, ModelFolder) else ModelFolder.open(model)
    where = folder.folder("video_encoder" if folder.has("video_encoder") else "video_decoder")
    prefix = "per_channel_statistics."
    wanted = {n: t for n, t in read_shards(where).items() if n.startswith(prefix)}
    statistics = PerChannelStatistics(folder.traits.latent_channels)
    expected = {prefix + name: shape for name, shape in parameter_shapes(statistics).items()}
    check_tensors(expected, {n: i.shape for n, (_, i) in wanted.items()}, str(where))
    arrays = [(name.removeprefix(prefix), array) for name, array in _arrays(wanted, None)]
    statistics.load_weights(arrays, strict=True)
    mx.eval(statistics.parameters())
    return statistics


def parameter_shapes(module: nn.Module) -> dict[str, tuple[int, ...]]:
    """Name -> shape of every parameter; nothing is evaluated."""
    flat: Any = tree_flatten(module.parameters())
    return {name: tuple(array.shape) for name, array in flat}


def read_shards(folder: Path) -> dict[str, tuple[Header, TensorInfo]]:
    """Tensors of a component folder, by name, with the shard that holds each.

    Raises: WeightsError if the index or a shard is missing or damaged, or if they contradict each other.
    """
    weight_map = read_json(folder / SHARD_INDEX).get("weight_map")
    if not isinstance(weight_map, dict):
        raise WeightsError(f"{folder / SHARD_INDEX}: has no weight_map. Convert the model again.")
    found: dict[str, tuple[Header, TensorInfo]] = {}
    for shard in dict.fromkeys(weight_map.values()):
        if not isinstance(shard, str) or Path(shard).name != shard:
            raise WeightsError(f"{folder / SHARD_INDEX}: {shard!r} is no file name. Convert the model again.")
        header = read_header(folder / shard)
        found.update({n: (header, info) for n, info in header.tensors.items() if weight_map.get(n, shard) == shard})
    if found.keys() != weight_map.keys():
        raise WeightsError(
            f"{folder}: the shards and {SHARD_INDEX} disagree on {_some(found.keys() ^ weight_map.keys())}. "
            "Copy the model completely or convert it again."
        )
    return found


def check_tensors(expected: Mapping[str, tuple[int, ...]], given: Mapping[str, tuple[int, ...]], where: str) -> None:
    """Raise WeightsError listing every missing, unexpected and wrongly shaped tensor, unless all agree."""
    missing = sorted(expected.keys() - given.keys())
    unexpected = sorted(given.keys() - expected.keys())
    wrong = [
        f"{name} is {given[name]}, needs {expected[name]}"
        for name in sorted(expected.keys() & given.keys())
        if tuple(given[name]) != tuple(expected[name])
    ]
    if not (missing or unexpected or wrong):
        return
    faults = ((missing, "missing"), (unexpected, "unexpected"), (wrong, "of the wrong shape"))
    shown = "; ".join(f"{len(names)} {kind}: {_some(names)}" for names, kind in faults if names)
    raise WeightsError(
        f"{where}: the tensors do not fit the network that the config describes ({len(expected)} expected, "
        f"{len(given)} given). {shown}. Use files of one and the same model, complete and unchanged."
    )


def _some(names: Iterable[str]) -> str:
    names = sorted(names)
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return ", ".join(names[:SHOWN]) + more


def _build(
    name: str,
    config: Mapping[str, Any],
    tensors: Mapping[str, tuple[Header, TensorInfo]],
    video: bool,
    audio: bool,
) -> tuple[nn.Module, dict[str, tuple[Header, TensorInfo]]]:
    """The bare network, and the stored tensors that are meant for it."""
    if name != "transformer" or (video and audio):
        return COMPONENTS[name].build(config), dict(tensors)
    from mlx_ltx2.models.transformer import Transformer, TransformerConfig

    transformer = TransformerConfig.from_dict(config, video=video, audio=audio)
    return Transformer(transformer), {n: t for n, t in tensors.items() if transformer.keeps(n)}


def _quantize_as_stored(module: nn.Module, names: set[str], quantization: Quantization, where: Path) -> None:
    try:
        quantize_like(module, names, quantization)
    except ValueError as error:
        raise WeightsError(
            f"{where}: config.json says {quantization.bits} bits in groups of {quantization.group_size}, which the "
            f"network's layers do not allow ({error}). Convert the model again."
        ) from None


def _arrays(wanted: Mapping[str, tuple[Header, TensorInfo]], dtype: mx.Dtype | None) -> list[tuple[str, mx.array]]:
    """Lazy arrays of the wanted tensors; the others in the same files are never read."""
    files = {header.path for header, _ in wanted.values()}
    arrays: list[tuple[str, mx.array]] = []
    for path in sorted(files):
        stored: Any = mx.load(str(path))
        for name, array in stored.items():
            if name in wanted:
                floating = mx.issubdtype(array.dtype, mx.floating)
                arrays.append((name, array.astype(dtype) if dtype is not None and floating else array))
    return arrays
