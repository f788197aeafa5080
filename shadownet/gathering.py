"""Trusted segments that only arrange what layers made: channels taken, channels joined, pooling.

The enclave need not run them: it can gather their results from their inputs while it masks the next layer's input
(``enclave/gather.py``). What is written here says how; the segment stays in the bundle for whoever runs it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from shadownet.graph import Op, Subgraph
from shadownet.partition import Step

Shape = tuple[int, ...]


@dataclass(frozen=True)
class _Gather:
    """Channels of float tensors [batch, height, width, channels], as (tensor, first, count), side by side; then pooled
    by ``how``, "max" or "mean", over windows of ``size``, [0, 0] for all positions."""

    pieces: tuple[tuple[int, int, int], ...]
    how: str = "copy"
    size: tuple[int, int] = (1, 1)
    stride: tuple[int, int] = (1, 1)
    reshaped: bool = False  # then nothing more is done with it

    @property
    def channels(self) -> int:
        return sum(count for _, _, count in self.pieces)

    def taken(self, first: int, count: int) -> _Gather:
        """``count`` channels from ``first`` on."""
        pieces, at = [], 0
        for t, begin, size in self.pieces:
            low, high = max(first - at, 0), min(first + count - at, size)
            if low < high:
                pieces.append((t, begin + low, high - low))
            at += size
        return replace(self, pieces=tuple(pieces))

    def to_json(self) -> dict[str, Any]:
        return {"pieces": self.pieces, "how": self.how, "size": self.size, "stride": self.stride}


class _Unfit(Exception):
    """The segment does something else."""


def gathers(graph: Subgraph, step: Step, shape: list[Shape]) -> dict[str, dict[str, Any]]:
    """How each output of a segment is gathered from its inputs, by tensor; {} if one of them is not. Layers read the
    outputs in memory order, so their own shapes do not matter. ``shape`` is that of every tensor of the graph."""
    known: dict[int, _Gather] = {}
    try:
        for op in step.ops:
            if op.kind not in _RULES:
                return {}
            if any(graph.tensors[t].dtype != "float32" for t in (op.input(_DATA.get(op.kind, 0)), *op.outputs)):
                return {}
            results = _RULES[op.kind](_Reader(graph, step, shape, known), op)
            known.update(zip(op.outputs, results, strict=True))
        return {str(t): known[t].to_json() for t in step.outputs}
    except (_Unfit, KeyError):
        return {}


@dataclass(frozen=True)
class _Reader:
    graph: Subgraph
    step: Step
    shape: list[Shape]
    known: dict[int, _Gather]

    def any(self, t: int) -> _Gather:
        """How a tensor is gathered. Raises ``_Unfit``."""
        if t in self.known:
            return self.known[t]
        if t not in self.step.inputs or self.graph.tensors[t].dtype != "float32" or len(self.shape[t]) != 4:
            raise _Unfit
        return _Gather(((t, 0, self.shape[t][3]),))

    def image(self, t: int) -> _Gather:
        """The same of a tensor that is still [batch, height, width, channels]. Raises ``_Unfit``."""
        found = self.any(t)
        _require(len(self.shape[t]) == 4 and not found.reshaped)
        return found

    def constant(self, t: int) -> np.ndarray[Any, Any]:
        """The values of a constant. Raises ``_Unfit``."""
        if t < 0 or not self.graph.tensors[t].is_constant:
            raise _Unfit
        return self.graph.tensors[t].values().reshape(-1)


def _require(condition: bool) -> None:
    if not condition:
        raise _Unfit


def _concatenation(read: _Reader, op: Op) -> list[_Gather]:
    parts = [read.image(t) for t in op.inputs]
    _require(op.options.fusedActivationFunction == 0 and op.options.axis in (3, -1))
    _require(len({replace(part, pieces=()) for part in parts}) == 1)
    return [replace(parts[0], pieces=tuple(piece for part in parts for piece in part.pieces))]


def _split(read: _Reader, op: Op) -> list[_Gather]:
    whole = read.image(op.input(1))
    _require(read.constant(op.input(0)).tolist() in ([3], [-1]))
    count = whole.channels // len(op.outputs)
    return [whole.taken(k * count, count) for k in range(len(op.outputs))]


def _split_v(read: _Reader, op: Op) -> list[_Gather]:
    whole = read.image(op.input(0))
    _require(read.constant(op.input(2)).tolist() in ([3], [-1]))
    counts = [read.shape[t][3] for t in op.outputs]
    return [whole.taken(sum(counts[:k]), count) for k, count in enumerate(counts)]


def _slice(read: _Reader, op: Op) -> list[_Gather]:
    source, result = read.shape[op.input(0)], read.shape[op.outputs[0]]
    _require(len(source) == 4 and source[:3] == result[:3])
    return [read.image(op.input(0)).taken(int(read.constant(op.input(1))[3]), result[3])]


def _strided_slice(read: _Reader, op: Op) -> list[_Gather]:
    source, result, options = read.shape[op.input(0)], read.shape[op.outputs[0]], op.options
    _require(len(source) == 4 and source[:3] == result[:3] and read.constant(op.input(3)).tolist() == [1] * 4)
    _require(not (options.ellipsisMask or options.newAxisMask or options.shrinkAxisMask or options.offset))
    first = 0 if options.beginMask & 8 else int(read.constant(op.input(1))[3])
    return [read.image(op.input(0)).taken(first + source[3] if first < 0 else first, result[3])]


def _pool(how: str) -> Callable[[_Reader, Op], list[_Gather]]:
    def rule(read: _Reader, op: Op) -> list[_Gather]:
        options, whole = op.options, read.image(op.input(0))
        _require(options.fusedActivationFunction == 0 and whole.how == "copy")
        size, stride = (options.filterHeight, options.filterWidth), (options.strideH, options.strideW)
        return [replace(whole, how=how, size=size, stride=stride)]

    return rule


def _mean(read: _Reader, op: Op) -> list[_Gather]:
    axes, whole = read.constant(op.input(1)), read.image(op.input(0))
    _require(whole.how == "copy" and {int(a) % 4 for a in axes} == {1, 2})
    return [replace(whole, how="mean", size=(0, 0))]


def _same(read: _Reader, op: Op) -> list[_Gather]:
    """The same values in the same order, in another shape."""
    return [replace(read.any(op.input(0)), reshaped=True)]


_DATA = {"SPLIT": 1}  # which input has the values, if not the first
_RULES: dict[str, Callable[[_Reader, Op], list[_Gather]]] = {
    "CONCATENATION": _concatenation,
    "SPLIT": _split,
    "SPLIT_V": _split_v,
    "SLICE": _slice,
    "STRIDED_SLICE": _strided_slice,
    "MAX_POOL_2D": _pool("max"),
    "AVERAGE_POOL_2D": _pool("mean"),
    "MEAN": _mean,
    "RESHAPE": _same,
    "SQUEEZE": _same,
    "EXPAND_DIMS": _same,
}
