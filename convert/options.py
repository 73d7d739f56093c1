"""What a conversion is asked to do, checked before anything is read."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from mlx_ltx2.errors import RequestError
from mlx_ltx2.weights.index import FOLDERS
from mlx_ltx2.weights.quantize import Quantization
from mlx_ltx2_convert.tensors import FROM_NAME

Progress = Callable[[int, int, str], None]
"""Called with (bytes done, bytes in all, what is being worked on)."""

Say = Callable[[str], None]
"""Called with a line for the user: what was chosen, what a download costs."""

VARIANTS = ("distilled", "dev")
SHARD_BYTES = 2_000_000_000


def ignore(*_: object) -> None:
    """The progress of a caller who does not want to hear."""


@dataclass(frozen=True)
class Options:
    """variant: "distilled", "dev" or None for the only one there is. dtype: safetensors name, None for the stored one.

    text_encoder: a Gemma 3 folder, a hub repo id, None to look beside the checkpoint, False for none.
    components: convert only these, None for all. shard_bytes: largest shard; also the grain of resuming.
    """

    variant: str | None = None
    quantization: Quantization | None = None
    dtype: str | None = "BF16"
    text_encoder: str | Path | bool | None = None
    components: Sequence[str] | None = None
    revision: str | None = None
    verify: bool = False
    overwrite: bool = False
    shard_bytes: int = SHARD_BYTES
    progress: Progress = ignore
    say: Say = ignore

    def __post_init__(self) -> None:
        if self.variant not in (None, *VARIANTS):
            raise RequestError(f"variant {self.variant!r} is not known; use {' or '.join(VARIANTS)}.")
        unknown = set(self.components or ()) - set(FOLDERS)
        if unknown:
            raise RequestError(f"components {sorted(unknown)} are not known; use {', '.join(FOLDERS)}.")
        if self.shard_bytes < 1:
            raise RequestError(f"shard_bytes {self.shard_bytes} must be positive.")

    def wants(self, component: str) -> bool:
        return self.components is None or component in self.components


def dtype_name(dtype: str | None) -> str | None:
    """ "bfloat16" -> "BF16". Raises: RequestError for another name."""
    if dtype is None:
        return None
    if dtype not in FROM_NAME:
        raise RequestError(f"dtype {dtype!r} is not possible; use {', '.join(FROM_NAME)} or leave it out.")
    return FROM_NAME[dtype]
