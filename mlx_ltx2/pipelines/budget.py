"""How a plan is made to fit into memory, decided before anything loads.

Phases follow each other and own their network alone, so the highest phase is the peak of the run. What a phase takes is
counted in `needs`; what does not fit whole is read from disk block by block.
"""

from __future__ import annotations

import math
from collections.abc import Container, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from mlx_ltx2.errors import ResourceError
from mlx_ltx2.memory import default_budget
from mlx_ltx2.pipelines.needs import Needs, transformer_key
from mlx_ltx2.pipelines.plan import Plan
from mlx_ltx2.pipelines.stack import Stack
from mlx_ltx2.stages.decode_video import DecodeWay
from mlx_ltx2.weights.networks import Networks

LONG_SEQUENCE = 4096
"""From so many tokens on, a pass is evaluated every few blocks; macOS kills command buffers that take long."""

PACE = 4
"""Blocks per evaluation then."""

TIGHT = 0.8
"""Share of the budget from which on every block is evaluated by itself."""

ROOM_FOR_TEXT = 0.8
"""Share of the budget up to which the text's keys and values are kept: they must not make a run tight."""


@dataclass(frozen=True)
class MemoryOptions:
    """What the user says about memory; None = decide.

    limit: bytes. streamed: read transformer and text encoder block by block (True) or never (False). resident_blocks:
    transformer blocks that stay when it is streamed.
    """

    limit: int | None = None
    streamed: bool | None = None
    resident_blocks: int | None = None


@dataclass(frozen=True)
class MemoryPlan:
    """How a plan is run within its budget, and what that will take.

    components: bytes of each network's weights. phases: predicted peak of each phase, bytes. resident_blocks,
    resident_layers: blocks of the transformer and layers of the text encoder that stay; None = all. evaluate_every:
    blocks per evaluation of a resident transformer, 0 = whole passes. step_reads: bytes that a step reads from disk.
    decode: how the picture is decoded, None = there is none to decode. reload: the transformer makes room for the
    upsampler even if the next stage needs it again. text_cache: stages that keep the text's keys and values of all
    blocks from step to step, which saves work where there is room.
    """

    budget: int
    components: Mapping[str, int] = field(default_factory=dict)
    phases: Mapping[str, int] = field(default_factory=dict)
    resident_blocks: int | None = None
    resident_layers: int | None = None
    evaluate_every: int = 0
    step_reads: int = 0
    decode: DecodeWay | None = None
    reload: bool = False
    text_cache: tuple[str, ...] = ()

    @property
    def peak(self) -> int:
        return max(self.phases.values(), default=0)

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    def describe(self, actual: Mapping[str, int] | None = None) -> list[str]:
        """Lines of text: components, then predicted peaks, beside actual ones if there are some."""
        lines = [f"memory    {gigabytes(self.peak)} of {gigabytes(self.budget)} at most"]
        lines += [f"          {name:<22}{gigabytes(size):>10}  weights" for name, size in self.components.items()]
        for name, size in self.phases.items():
            found = "" if not actual or name not in actual else f"  actual {gigabytes(actual[name])}"
            lines.append(f"          {name:<22}{gigabytes(size):>10}  peak{found}")
        if self.resident_blocks is not None:
            lines.append(
                f"          transformer streamed: {self.resident_blocks} blocks stay, "
                f"{gigabytes(self.step_reads)} read per evaluation"
            )
            lines.append(f"          {reading_cost(self.step_reads)}")
        if self.resident_layers is not None:
            lines.append(f"          text encoder streamed: {self.resident_layers} layers stay")
        if self.evaluate_every:
            lines.append(f"          evaluated every {self.evaluate_every} blocks")
        if self.decode is not None:
            lines.append(f"          decoded {self.decode.text()}")
        if self.text_cache:
            lines.append(f"          text keys and values kept in {', '.join(self.text_cache)}")
        return lines


DISKS = (1e9, 5e9)
"""Bytes per second of an external and of a built-in disk."""


def reading_cost(size: int) -> str:
    """What streaming costs in time."""
    times = " or ".join(f"{size / rate:.2g} s from a disk of {rate / 1e9:g} GB/s" for rate in DISKS)
    return f"that takes {times}; what an evaluation takes longer than that hides it, the rest is waited for"


def gigabytes(size: int) -> str:
    return f"{size / 1e9:.2f} GB" if size >= 1e8 else f"{size / 1e6:.2f} MB"


def _at_least(size: int) -> str:
    """As `gigabytes`, rounded up, so that it is enough when it is given back."""
    unit = 1e7 if size >= 1e8 else 1e4
    return gigabytes(int(math.ceil(size / unit) * unit))


def plan_memory(
    plan: Plan,
    networks: Networks,
    options: MemoryOptions | None = None,
    *,
    contexts_given: bool = False,
    known: Container[str] = (),
) -> MemoryPlan:
    """Choose what stays and what is streamed, and predict every phase.

    contexts_given: the text stage is left out. known: prompts whose contexts are kept, which need no text encoder.
    Raises: ResourceError that names every phase that does not fit and the smallest budget that would do.
    """
    options = options or MemoryOptions()
    budget = default_budget() if options.limit is None else options.limit
    needs = Needs(plan, networks, known)
    encodes = not contexts_given and (needs.encodes or plan.enhance is not None)
    memory = _within(budget, needs, options, encodes)
    faults = [(name, size) for name, size in memory.phases.items() if size > budget]
    if faults:  # all that can give way has given way, so the peak is the smallest budget that works
        _refuse(faults, budget, memory.peak)
    return memory


def _within(budget: int, needs: Needs, options: MemoryOptions, encodes: bool) -> MemoryPlan:
    """The plan for a budget, whether it fits or not."""
    plan = needs.plan
    phases: dict[str, int] = {}
    layers = None
    if encodes:
        if plan.enhance is None:  # a language model that reads its layers anew for every token would take hours
            layers = _choose(needs.text_stack, needs.text_room, budget, options, 0)
        else:
            phases["enhance prompt"] = needs.enhance()
        phases["text encoder"] = needs.text(layers)
        phases["text projections"] = needs.projections()
    phases |= needs.encoders()
    numbers = range(len(plan.stages))
    stacks = [needs.transformer(stage) for stage in plan.stages]
    rooms = [needs.denoise(number) for number in numbers]
    blocks = _resident_blocks(needs, stacks, rooms, budget, options)
    reload = False
    text_cache = []
    for number, stage in enumerate(plan.stages):
        if stage.upsample:
            need, kept = needs.upsample(number), 0
            if transformer_key(stage) == transformer_key(plan.stages[number - 1]):
                kept = stacks[number].between(blocks)
            reload = reload or need + kept > budget
            phases["upsample"] = max(phases.get("upsample", 0), need + (0 if reload else kept))
        size = stacks[number].with_resident(blocks) + rooms[number]
        text = needs.kept_text(number)
        if blocks is None and 0 < text <= ROOM_FOR_TEXT * budget - size:
            text_cache.append(stage.name)
            size += text
        if blocks is None:
            size = max(size, stacks[number].loading + needs.held(number))
        phases[f"denoise {stage.name}"] = size
    decode = _decode(needs, phases, budget)
    phases |= needs.decode_audio()
    longest = max((needs.tokens(number) for number in numbers), default=0)
    tight = blocks is None and max((phases[f"denoise {s.name}"] for s in plan.stages), default=0) > TIGHT * budget
    return MemoryPlan(
        budget=budget,
        components=needs.components(),
        phases=phases,
        resident_blocks=blocks,
        resident_layers=layers,
        evaluate_every=0 if blocks is not None else 1 if tight else PACE if longest > LONG_SEQUENCE else 0,
        step_reads=0 if blocks is None else max(stack.step_reads(blocks) for stack in stacks),
        reload=reload,
        decode=decode,
        text_cache=tuple(text_cache),
    )


def _resident_blocks(
    needs: Needs, stacks: Sequence[Stack], rooms: Sequence[int], budget: int, options: MemoryOptions
) -> int | None:
    """Blocks of the transformer that stay in every stage, or None for all."""
    chosen = []
    for number, (stack, room) in enumerate(zip(stacks, rooms, strict=True)):
        free = room - needs.held(number)  # of the room, while the network is loaded
        chosen.append(_choose(stack, room, budget, options, options.resident_blocks, free))
    return min((kept for kept in chosen if kept is not None), default=None)


def _decode(needs: Needs, phases: dict[str, int], budget: int) -> DecodeWay | None:
    """The fastest way of decoding that fits, the one that needs least if none does; its peak goes
    into `phases`."""
    sizes: dict[DecodeWay, int] = {}
    for way in needs.decode_ways():
        sizes[way] = needs.decode_video(way)
        if sizes[way] <= budget:
            break
    if not sizes:
        return None
    chosen = next((w for w, size in sizes.items() if size <= budget), min(sizes, key=sizes.__getitem__))
    phases["decode video"] = sizes[chosen]
    return chosen


def _choose(
    stack: Stack,
    room: int,
    budget: int,
    options: MemoryOptions,
    asked: int | None,
    free: int = 0,
) -> int | None:
    """Blocks that stay, or None for all. free: of `room`, while the network is loaded."""
    if options.streamed is False:
        return None
    fitting = stack.fitting(budget - room, free)
    if options.streamed is None and options.resident_blocks is None and fitting is None:
        return None
    if asked is not None:
        return min(asked, stack.count)
    most = stack.count if fitting is None else max(0, fitting)
    return min(most, 1) if options.streamed else most


def _refuse(faults: Sequence[tuple[str, int]], budget: int, smallest: int) -> None:
    reasons = "; ".join(f"{name} needs {gigabytes(size)}" for name, size in faults)
    raise ResourceError(
        f"this does not fit into {gigabytes(budget)}: {reasons}. The smallest budget that works for it is "
        f"{_at_least(smallest)}; make the clip smaller or shorter, use a model of fewer bits, add --low-memory, or "
        "raise --memory-limit."
    )
