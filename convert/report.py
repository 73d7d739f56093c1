"""What a conversion did."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from mlx_ltx2_convert.options import Options
from mlx_ltx2_convert.plan import Plan


@dataclass(frozen=True)
class Part:
    """One component: official tensors, their parameters, bytes as stored, how many tensors are quantized."""

    tensors: int
    parameters: int
    nbytes: int
    quantized: int = 0


@dataclass(frozen=True)
class Report:
    """output: the model folder. sha256: of the checkpoint. ignored: source tensor -> why it stayed behind.

    left: layers whose input width does not split into groups; they stay in full precision. reused: shards that an
    earlier, interrupted run had finished. up_to_date: the folder was there already and nothing was done.
    """

    output: Path
    source: Path
    generation: str
    variant: str
    precision: str
    components: Mapping[str, Part]
    ignored: Mapping[str, str] = field(default_factory=dict)
    left: tuple[str, ...] = ()
    loras: tuple[str, ...] = ()
    sha256: str = ""
    bytes_read: int = 0
    bytes_written: int = 0
    reused: int = 0
    seconds: float = 0.0
    verified: bool = False
    up_to_date: bool = False

    @property
    def source_name(self) -> str:
        return self.source.name

    def lines(self) -> list[str]:
        """The report for a person."""
        if self.up_to_date:
            checked = "; its hashes are right" if self.verified else ""
            return [
                f"{self.output} is up to date: it was converted from {self.source_name} with the same options{checked}."
            ]
        lines = [f"{self.source_name} (LTX {self.generation}, {self.variant}) -> {self.output}, {self.precision}"]
        for name, part in self.components.items():
            quantized = f", {part.quantized} quantized" if part.quantized else ""
            lines.append(f"  {name:<24}{part.tensors:>6} tensors {part.nbytes / 1e9:>9.3f} GB{quantized}")
        for reason, count in Counter(self.ignored.values()).items():
            lines.append(f"  {count} source tensors left behind: {reason}")
        if self.left:
            lines.append(f"  {len(self.left)} layers too narrow for the group size stay in full precision")
        for lora in self.loras:
            lines.append(f"  {lora}")
        rate = self.bytes_read / self.seconds / 1e6 if self.seconds else 0.0
        lines.append(
            f"  read {self.bytes_read / 1e9:.2f} GB, wrote {self.bytes_written / 1e9:.2f} GB in {self.seconds:.0f} s "
            f"({rate:.0f} MB/s){', hashes verified' if self.verified else ''}"
        )
        if self.reused:
            lines.append(f"  {self.reused} finished shards of an interrupted run were kept")
        return lines


def parts_of(plan: Plan) -> dict[str, Part]:
    """Totals per component."""
    parts: dict[str, Part] = {}
    for shard in plan.shards:
        before = parts.get(shard.component, Part(0, 0, 0))
        parts[shard.component] = Part(
            before.tensors + len(shard.tensors),
            before.parameters + sum(t.info.size for t in shard.tensors),
            before.nbytes + shard.nbytes,
            before.quantized + sum(t.quantization is not None for t in shard.tensors),
        )
    return parts


def precision(options: Options) -> str:
    """ "4-bit affine, groups of 64", "bf16", "as in the source"."""
    if options.quantization is not None:
        q = options.quantization
        return f"{q.bits}-bit {q.mode}, groups of {q.group_size}"
    return options.dtype.lower() if options.dtype else "dtypes of the source"
