"""A latent upsampler straight from its official file, for a run that wants another than the model's own."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import mlx.core as mx

from mlx_ltx2.errors import RequestError, WeightsError
from mlx_ltx2.models.upsampler import LatentUpsampler, UpsamplerConfig
from mlx_ltx2.traits import parse_config
from mlx_ltx2.weights.header import Header, read_header
from mlx_ltx2.weights.index import SHARD_INDEX
from mlx_ltx2.weights.layout import mlx_shape, to_mlx_layout
from mlx_ltx2.weights.load import check_tensors, parameter_shapes


def check_upsampler_file(path: str | Path, kind: str) -> None:
    """Raise WeightsError or RequestError unless `path` is an upsampler of this kind; reads the header alone.

    path: an official file, or a folder that holds exactly one. kind: "spatial-x2", "spatial-x1.5" or "temporal-x2".
    """
    _checked(path, kind)


def load_upsampler_file(path: str | Path, kind: str, dtype: mx.Dtype | None = None) -> LatentUpsampler:
    """The upsampler of an official file, ready for use in any thread; raises as `check_upsampler_file` does."""
    network, header = bare_upsampler_file(path, kind)
    loaded: Any = mx.load(str(header.path))
    arrays = [(name, to_mlx_layout(name, array)) for name, array in loaded.items()]
    network.load_weights([(n, a if dtype is None else a.astype(dtype)) for n, a in arrays], strict=True)
    mx.eval(network.parameters())
    network.eval()
    return network


def bare_upsampler_file(path: str | Path, kind: str) -> tuple[LatentUpsampler, Header]:
    """The network without weights and the file's header; raises as `check_upsampler_file` does."""
    header, config = _checked(path, kind)
    network = LatentUpsampler(config)
    given = {name: mlx_shape(name, info.shape) for name, info in header.tensors.items()}
    check_tensors(parameter_shapes(network), given, str(header.path))
    return network, header


def _checked(path: str | Path, kind: str) -> tuple[Header, UpsamplerConfig]:
    header = read_header(_file(Path(path)))
    config = UpsamplerConfig.from_dict(parse_config(header.metadata, str(header.path)))
    if config.kind != kind:
        raise RequestError(f"{header.path} is a {config.kind} upsampler, and this pipeline needs {kind}.")
    return header, config


def _file(path: Path) -> Path:
    if not path.is_dir():
        return path
    files = sorted(path.glob("*.safetensors"))
    if len(files) != 1 or (path / SHARD_INDEX).is_file():
        raise WeightsError(f"{path}: give the official file of one latent upsampler, not a folder with {len(files)}.")
    return files[0]
