"""What ops cost in units that belong to no machine: multiply-adds, activations touched, bytes of constants."""

from __future__ import annotations

import math
from dataclasses import dataclass

from shadownet.graph import Op, Subgraph
from shadownet.graph.ir import packed_bytes

VIEWS = {"RESHAPE", "SQUEEZE", "EXPAND_DIMS"}  # they rename memory


@dataclass(frozen=True)
class Work:
    """Of one op: ``elements`` are activations read and written, ``weights`` bytes of constants read."""

    kind: str
    macs: int = 0
    elements: int = 0
    weights: int = 0

    def times(self, count: int) -> Work:
        """The same op run ``count`` times."""
        return Work(self.kind, count * self.macs, count * self.elements, count * self.weights)


def work_of(graph: Subgraph) -> tuple[Work, ...]:
    """One record per op of a subgraph, in order, for the shapes that the file states."""
    return tuple(_work(graph, op) for op in graph.ops)


def _work(graph: Subgraph, op: Op) -> Work:
    reads = [graph.tensors[t] for t in op.reads()]
    weights = sum(packed_bytes(t.shape, t.dtype) or 0 for t in reads if t.is_constant)
    moving = [t.shape for t in reads if not t.is_constant] + [graph.tensors[t].shape for t in op.outputs]
    elements = 0 if op.kind in VIEWS else sum(math.prod(shape) for shape in moving)
    return Work(op.kind, macs_of(graph, op), elements, weights)


def macs_of(graph: Subgraph, op: Op) -> int:
    """Multiply-adds of an op; 0 for what is not linear. A recurrent layer's are those of its matrices at each step."""
    shapes = [graph.tensors[t].shape if t >= 0 else () for t in op.inputs]
    out = graph.tensors[op.outputs[0]].shape if op.outputs else ()
    if op.kind == "CONV_2D":
        return math.prod(out) * math.prod(shapes[1][1:])
    if op.kind == "DEPTHWISE_CONV_2D":
        return math.prod(out) * math.prod(shapes[1][1:3])
    if op.kind == "FULLY_CONNECTED":
        return math.prod(out) * shapes[1][-1]
    if op.kind == "BATCH_MATMUL":
        return math.prod(out) * shapes[0][-2 if getattr(op.options, "adjX", False) else -1]
    if op.kind == "TRANSPOSE_CONV":
        return math.prod(shapes[2]) * math.prod(shapes[1][:3])
    if op.kind.endswith("SEQUENCE_LSTM") or op.kind.endswith("SEQUENCE_RNN"):
        matrices = [s for t, s in zip(op.inputs, shapes, strict=True) if len(s) == 2 and graph.tensors[t].is_constant]
        return math.prod(out[:-1]) * sum(map(math.prod, matrices))
    return 0


def peak(graph: Subgraph) -> int:
    """Most bytes of intermediate tensors alive at a time, the subgraph's own inputs and outputs not counted."""
    outside = {*graph.inputs, *graph.outputs}
    last = {t: i for i, op in enumerate(graph.ops) for t in (*op.reads(), *op.outputs)}
    alive: dict[int, int] = {}
    most = 0
    for i, op in enumerate(graph.ops):
        for t in op.outputs:
            if t not in outside:
                alive[t] = packed_bytes(graph.tensors[t].shape, graph.tensors[t].dtype) or 0
        most = max(most, sum(alive.values()))
        alive = {t: size for t, size in alive.items() if last[t] > i}
    return most
