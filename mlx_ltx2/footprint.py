"""Peak memory of an array function, from its graph alone: nothing is evaluated and no weight is read.

The function runs once on arrays that only have shapes; the graph that results is walked in MLX's own order of
evaluation, and every buffer is counted from the primitive that allocates it to the last one that reads it. Views share
their source's buffer and elementwise primitives write into an input that nobody else needs, as in MLX.
Source of the rules: mlx 0.32, `eval_impl` and the allocation rules of its primitives.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from typing import Any

import mlx.core as mx
import numpy as np
from mlx.utils import tree_flatten

from mlx_ltx2.models.layers.kernels import shown

WIDTH = 20
"""How many pending arrays MLX keeps side by side before it follows one branch to its end (MLX_BFS_MAX_WIDTH)."""

RUN_AHEAD = 10
"""Kernels that MLX starts before the buffers of earlier ones come back, if it is short of memory: a task of the CPU
backend is ten kernels, and on Metal ten command buffers may be under way."""

_VIEWS = {"Broadcast", "Transpose", "Slice", "ExpandDims", "Squeeze", "StopGradient", "Split", "View", "Depends"}
_RESHAPES = {"Reshape", "Flatten", "Unflatten"}
_ELEMENTWISE = {
    "Abs", "Add", "ArcCos", "ArcSin", "ArcTan", "AsType", "Ceil", "Cos", "Cosh", "Divide", "Equal", "Erf", "Exp",
    "Expm1", "Floor", "Full", "Greater", "GreaterEqual", "Less", "LessEqual", "Log", "Log1p", "LogicalAnd",
    "LogicalNot", "LogicalOr", "Maximum", "Minimum", "Multiply", "Negative", "NotEqual", "Power", "Remainder",
    "Round", "Rsqrt", "Select", "Sigmoid", "Sign", "Sin", "Sinh", "Sqrt", "Square", "Subtract", "Tan",
    "Tanh", "Compiled", "Softmax", "RMSNorm", "LayerNorm", "LogSumExp", "BitwiseBinary",
}  # fmt: skip


@dataclass(frozen=True)
class Node:
    """One primitive. outputs: (name, shape, dtype)."""

    name: str
    arguments: Sequence[Any]
    inputs: tuple[str, ...]
    outputs: tuple[tuple[str, tuple[int, ...], mx.Dtype], ...]


@dataclass(frozen=True)
class Graph:
    """inputs: arrays that exist before, or that the function makes on the host. stages: what it evaluates meanwhile."""

    nodes: Sequence[Node]
    inputs: Sequence[str]
    outputs: Sequence[str]
    shapes: dict[str, tuple[tuple[int, ...], mx.Dtype]] = field(repr=False)

    stages: Sequence[Sequence[str]] = ()

    @cached_property
    def orders(self) -> list[list[Node]]:
        """Nodes in the order in which MLX evaluates them, by evaluation."""
        makers = {name: node for node in self.nodes for name, _, _ in node.outputs}
        orders = []
        for wanted in (*self.stages, self.outputs):
            orders.append(_order(wanted, makers))
            for node in orders[-1]:
                for name, _, _ in node.outputs:
                    makers.pop(name, None)
        return orders


class UntraceableError(ValueError):
    """The function uses a primitive that MLX cannot describe."""


def trace(function: Callable[..., Any], *arrays: mx.array, staged: bool = False) -> Graph:
    """The graph of function(*arrays); the arrays need no data. Nothing that another thread sees changes.

    staged: the function takes one argument more, first, which it calls in place of `mx.eval`.
    Raises: UntraceableError.
    """
    found: list[dict[str, Any]] = []
    evaluated: list[list[mx.array]] = []

    def evaluate(*trees: Any) -> None:
        evaluated.append(_arrays(trees))

    def flat(*given: mx.array) -> list[mx.array]:
        evaluated.clear()
        results = _arrays(function(evaluate, *given) if staged else function(*given))
        return [array for group in (results, *evaluated) for array in group]

    with shown():
        try:
            mx.export_function(found.append, flat, *arrays)
        except ValueError as error:
            if "export_function" not in str(error):
                raise
            raise UntraceableError(str(error)) from error
    nodes: list[Node] = []
    inputs: list[str] = []
    outputs: list[str] = []
    shapes: dict[str, tuple[tuple[int, ...], mx.Dtype]] = {}
    for entry in found:
        if entry["type"] == "inputs":
            inputs = [name for name, _, _ in entry["inputs"]]
            shapes |= {name: (tuple(shape), dtype) for name, shape, dtype in entry["inputs"]}
        elif entry["type"] == "outputs":
            outputs = [name for name, _, _ in entry["outputs"]]
        elif entry["type"] == "constants":
            shapes |= {name: (tuple(array.shape), array.dtype) for name, array in entry["constants"]}
            inputs = [*inputs, *(name for name, _ in entry["constants"])]
        elif entry["type"] == "primitive":
            made = tuple((name, tuple(shape), dtype) for name, shape, dtype in entry["outputs"])
            shapes |= {name: (shape, dtype) for name, shape, dtype in made}
            nodes.append(Node(entry["name"], entry["arguments"], tuple(n for n, _, _ in entry["inputs"]), made))
    counts = [len(group) for group in evaluated]
    evaluated.clear()
    stages, end = [], len(outputs)
    for count in reversed(counts):
        stages.append(outputs[end - count : end])
        end -= count
    return Graph(_fused(nodes), inputs, outputs[:end], shapes, stages[::-1])


def _arrays(tree: Any) -> list[mx.array]:
    flat: Any = tree_flatten(tree)
    return [array for _, array in flat if isinstance(array, mx.array)]


def _fused(nodes: Sequence[Node]) -> list[Node]:
    """Elementwise primitives between two marks as one node."""
    makers = {name: node for node in nodes for name, _, _ in node.outputs}
    inside: dict[int, Node] = {}
    for node in nodes:
        if node.name != "StopGradient" or not (last := makers.get(node.inputs[0])) or last.name not in _ELEMENTWISE:
            continue
        sources: dict[str, None] = {}
        pending, fused = [last], {}
        while pending:
            at = pending.pop()
            if id(at) in fused:
                continue
            fused[id(at)] = at
            for name in at.inputs:
                maker = makers.get(name)
                if maker is not None and (maker.name in _ELEMENTWISE or maker.name == "Broadcast"):
                    pending.append(maker)
                else:
                    sources[name] = None
        inside[id(last)] = Node("Compiled", (), tuple(sources), last.outputs)
    return [inside.get(id(node), node) for node in nodes]


@lru_cache(maxsize=4096)
def _contiguous(shape: tuple[int, ...]) -> np.ndarray:
    strides, step = [], 1
    for length in reversed(shape):
        strides.append(step)
        step *= max(length, 1)
    return np.lib.stride_tricks.as_strided(np.empty(1, np.uint8), shape, strides[::-1])


def _is_contiguous(view: np.ndarray) -> bool:
    return bool(view.flags.c_contiguous)


@dataclass
class _Buffer:
    nbytes: int
    readers: int = 0
    held: bool = False


class Walk:
    """Counts live bytes while a graph is walked in MLX's order.

    run_ahead: buffers come back every so many kernels. first: how many kernels of the current task are over already.
    """

    def __init__(self, graph: Graph, run_ahead: int, device: mx.Device, first: int = 0):
        self.graph = graph
        self.run_ahead = run_ahead
        self.device = device
        self.live = 0
        self.peak = 0
        self.result = 0
        self._buffers: dict[str, _Buffer] = {}
        self._views: dict[str, np.ndarray] = {}
        self._freed: deque[tuple[int, int]] = deque()
        self._clock = first

    def run(self) -> Walk:
        """Walk the graph once; afterwards `peak` and `result` (bytes of the outputs) are known."""
        graph = self.graph
        for name in graph.inputs:
            self._buffers[name] = _Buffer(0, held=True)
            self._views[name] = _contiguous(graph.shapes[name][0])
        self._readers: dict[str, int] = {}
        for node in (node for order in graph.orders for node in order):
            for name in node.inputs:
                self._readers[name] = self._readers.get(name, 0) + 1
        for group in (graph.outputs, *graph.stages):
            for name in group:
                self._readers[name] = self._readers.get(name, 0) + 1
        for order, wanted in zip(graph.orders, (*graph.stages, ()), strict=True):
            for node in order:
                self._step(node)
            for name in wanted:
                self._drop(self._buffers[name])
            if wanted:
                self._settle()
        kept = {id(self._buffers[name]): self._buffers[name].nbytes for name in graph.outputs}
        self.result = sum(kept.values())
        return self

    def _alloc(self, nbytes: int) -> _Buffer:
        while self._freed and self._freed[0][0] // self.run_ahead < self._clock // self.run_ahead:
            self.live -= self._freed.popleft()[1]
        self.live += nbytes
        self.peak = max(self.peak, self.live)
        return _Buffer(nbytes)

    def _settle(self) -> None:
        """An evaluation has ended: everything free has come back."""
        while self._freed:
            self.live -= self._freed.popleft()[1]

    def _drop(self, buffer: _Buffer) -> None:
        buffer.readers -= 1
        if buffer.readers == 0 and not buffer.held:
            self._freed.append((self._clock, buffer.nbytes))
            buffer.nbytes = 0

    def _temporary(self, nbytes: int) -> None:
        if nbytes:
            self._alloc(nbytes)
            self._freed.append((self._clock, nbytes))

    def _step(self, node: Node) -> None:
        view_of = self._view(node)
        if view_of is None:
            self._clock += 1
            buffers = self._compute(node)
        else:
            buffers = [self._buffers[node.inputs[0]]] * len(node.outputs)
        views = view_of or [_contiguous(shape) for _, shape, _ in node.outputs]
        for (name, _, _), buffer, view in zip(node.outputs, buffers, views, strict=True):
            self._buffers[name] = buffer
            self._views[name] = view
            buffer.readers += self._readers.get(name, 0)
        for name in node.inputs:
            self._drop(self._buffers[name])

    def _compute(self, node: Node) -> list[_Buffer]:
        shapes = self.graph.shapes
        extra, kernels = _workspace(node, shapes, self._views, self.device)
        self._temporary(extra)
        self._clock += kernels - 1
        made = []
        for _, shape, dtype in node.outputs:
            nbytes = math.prod(shape) * dtype.size
            taken = self._donor(node, nbytes, dtype) if node.name in _ELEMENTWISE else None
            if taken is not None:
                made.append(taken)
                continue
            if node.name == "SliceUpdate" and (first := self._free_input(node.inputs[0])) is not None:
                made.append(first)
                continue
            made.append(self._alloc(nbytes))
        return made

    def _free_input(self, name: str) -> _Buffer | None:
        buffer = self._buffers[name]
        return buffer if buffer.readers == 1 and not buffer.held and buffer.nbytes else None

    def _donor(self, node: Node, nbytes: int, dtype: mx.Dtype) -> _Buffer | None:
        for name in node.inputs:
            buffer = self._free_input(name)
            view = self._views[name]
            same_item = self.graph.shapes[name][1].size == dtype.size
            if buffer is not None and same_item and buffer.nbytes <= nbytes + 16384 and buffer.nbytes >= nbytes:
                if node.name in ("Softmax", "RMSNorm", "LayerNorm", "Compiled") and not _is_contiguous(view):
                    continue
                return buffer
        return None

    def _view(self, node: Node) -> list[np.ndarray] | None:
        """Views of the first input if the primitive only makes those."""
        if node.name in _RESHAPES:
            reshaped = _reshaped(self._views[node.inputs[0]], node.outputs[0][1])
            return None if reshaped is None else [reshaped]
        if node.name == "AsType" and self.graph.shapes[node.inputs[0]][1] == node.outputs[0][2]:
            return [self._views[node.inputs[0]]]
        if node.name not in _VIEWS:
            return None
        source = self._views[node.inputs[0]]
        if node.name == "Transpose":
            return [source.transpose(node.arguments[0])]
        if node.name == "Broadcast":
            return [np.broadcast_to(source, node.outputs[0][1])]
        if node.name == "Slice":
            starts, ends, steps = node.arguments
            return [source[tuple(slice(*s) for s in zip(starts, ends, steps, strict=True))]]
        if node.name == "Split":
            return self._split(source, node)
        if node.name == "StopGradient":
            return [source]
        if node.name == "View" and node.outputs[0][1] != source.shape:
            return [_contiguous(node.outputs[0][1])]
        shape = node.outputs[0][1]
        reshaped = _reshaped(source, shape)
        return [_contiguous(shape) if reshaped is None else reshaped]

    def _split(self, source: np.ndarray, node: Node) -> list[np.ndarray]:
        axis = int(node.arguments[-1])
        views, start = [], 0
        for _, shape, _ in node.outputs:
            index = [slice(None)] * source.ndim
            index[axis] = slice(start, start + shape[axis])
            start += shape[axis]
            views.append(source[tuple(index)])
        return views


def _reshaped(view: np.ndarray, shape: tuple[int, ...]) -> np.ndarray | None:
    """The same memory under another shape, or None if that takes a copy.

    numpy may not be asked: it copies before it refuses, and behind these views is no memory.
    """
    strides = _reshaped_strides(view.shape, view.strides, shape)
    return None if strides is None else np.lib.stride_tricks.as_strided(view, shape, strides)


def _reshaped_strides(old: Sequence[int], strides: Sequence[int], new: Sequence[int]) -> list[int] | None:
    """Strides of `new` over the memory of `old`, axes of length 1 left out of account."""
    axes = [(n, step) for n, step in zip(old, strides, strict=True) if n != 1]
    result: list[int] = []
    at = done = 0
    while done < len(new):
        if new[done] == 1 or at == len(axes):
            result.append(0)  # an axis of one step, or an array without elements
            done += 1
            continue
        inside, end = axes[at][0], at + 1
        outside, stop = new[done], done + 1
        while inside != outside:
            if inside < outside and end < len(axes):
                inside, end = inside * axes[end][0], end + 1
            elif outside < inside and stop < len(new):
                outside, stop = outside * new[stop], stop + 1
            else:
                return None
        if any(axes[i][1] != axes[i + 1][0] * axes[i + 1][1] for i in range(at, end - 1)):
            return None
        step, made = axes[end - 1][1], []
        for length in reversed(new[done:stop]):
            made.append(step)
            step *= length
        result += made[::-1]
        at, done = end, stop
    return result


def _order(outputs: Sequence[str], makers: dict[str, Node]) -> list[Node]:
    """Nodes in the order in which MLX evaluates them: widths first up to a limit, then reversed."""
    degree: dict[int, int] = {}
    stack = [makers[name] for name in dict.fromkeys(outputs) if name in makers]
    seen: set[int] = set()
    for name in outputs:
        if name in makers:
            degree[id(makers[name])] = degree.get(id(makers[name]), 0) + 1
    while stack:
        node = stack.pop()
        if id(node) in seen:
            continue
        seen.add(id(node))
        for name in node.inputs:
            if name in makers:
                maker = makers[name]
                degree[id(maker)] = degree.get(id(maker), 0) + 1
                stack.append(maker)
    tape: list[Node] = [Node("Synchronizer", (), tuple(outputs), ())]
    later: list[tuple[Node, int]] = []
    place = 0
    while place < len(tape) or later:
        if place >= len(tape):
            node, first = later.pop()
        else:
            node, first = tape[place], 0
            place += 1
        for index in range(first, len(node.inputs)):
            if node.inputs[index] not in makers:
                continue
            maker = makers[node.inputs[index]]
            if degree.get(id(maker), 0) <= 0:
                continue
            if len(tape) - place >= WIDTH:
                later.append((node, index))
                break
            degree[id(maker)] -= 1
            if degree[id(maker)] == 0:
                tape.append(maker)
    return tape[:0:-1]


def _workspace(
    node: Node,
    shapes: dict[str, tuple[tuple[int, ...], mx.Dtype]],
    views: dict[str, np.ndarray],
    device: mx.Device,
) -> tuple[int, int]:
    """Bytes that a primitive needs for itself while it runs, and how many kernels it is."""
    if node.name in ("Matmul", "AddMM"):
        copies = [_copied(name, shapes, views) for name in node.inputs[:2]]
        return sum(copies), 1 + sum(c > 0 for c in copies) + (node.name == "AddMM")
    if node.name == "Convolution" and device == mx.cpu:
        return _unfolded(node, shapes)
    return 0, {"Concatenate": len(node.inputs), "Pad": 2}.get(node.name, 1)


def _copied(name: str, shapes: dict[str, Any], views: dict[str, np.ndarray]) -> int:
    """A matrix that is neither stored by rows nor by columns is copied first."""
    shape, dtype = shapes[name]
    view = views[name]
    if view.ndim < 2 or _is_contiguous(view):
        return 0
    rows, columns = view.strides[-2:]
    if (columns == 1 and rows >= shape[-1]) or (rows == 1 and columns >= shape[-2]):
        return 0
    return int(math.prod(shape) * dtype.size)


def _unfolded(node: Node, shapes: dict[str, Any]) -> tuple[int, int]:
    """Without dilation the CPU pads the input, writes out every window of it and multiplies, all in float32."""
    (source, dtype), (weight, _) = (shapes[name] for name in node.inputs[:2])
    _, low, high, dilation, input_dilation, groups, flipped = node.arguments
    spatial = len(source) - 2
    if flipped or {*dilation, *input_dilation} != {1} or (groups > 1 and spatial > 1):
        return 0, 1
    output = node.outputs[0][1]
    edges = [low[i] + high[i] for i in range(spatial)]
    padded = source[0] * math.prod(n + e for n, e in zip(source[1:-1], edges, strict=True)) * source[-1]
    windows = math.prod(output[:-1]) * math.prod(weight[1:-1]) * source[-1]
    if dtype == mx.float32:
        return 4 * (padded + windows), 4
    return 4 * (padded + windows + math.prod(weight) + math.prod(output)), 6


@dataclass(frozen=True)
class Footprint:
    """peak: highest bytes beyond the inputs. result: bytes that stay, the outputs."""

    peak: int
    result: int


def footprint(
    function: Callable[..., Any], *arrays: mx.array, device: mx.Device | None = None, staged: bool = False
) -> Footprint:
    """Peak of mx.eval(function(*arrays)) beyond the arrays themselves; nothing is evaluated.

    device: whose kernels are counted, MLX's default device if None. staged: see `trace`. Where in a task the evaluation
    begins is chance, so the worst case counts.
    Raises: UntraceableError.
    """
    graph = trace(function, *arrays, staged=staged)
    walks = [Walk(graph, RUN_AHEAD, device or mx.default_device(), first).run() for first in range(0, RUN_AHEAD, 3)]
    return Footprint(max(walk.peak for walk in walks), walks[0].result)
