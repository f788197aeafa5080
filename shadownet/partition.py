"""Tag first, lower later: which ops go to the accelerator, which stay, and why; then the order of the steps.

Partition never changes an op. A *linear op* is one whose constant weights a scheme can hide; everything between
two of them is a *trusted segment*. What is unknown stays in the enclave, so every model that LiteRT runs converts.
"""

from __future__ import annotations

import heapq
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from shadownet import cost
from shadownet.analysis import Shapes
from shadownet.epilogue import absorb
from shadownet.graph import Graph, Op, Subgraph
from shadownet.linear import LinearOp, recognise
from shadownet.quantized import obstacle as number_obstacle
from shadownet.simulator.profile import Device
from shadownet.wire.tensors import DTYPES

Array = np.ndarray[Any, Any]

# Ops that have state or an effect: they run in the file's order, and each once.
STATEFUL = {
    "ASSIGN_VARIABLE", "READ_VARIABLE", "CALL_ONCE", "CALL", "IF", "WHILE", "STABLEHLO_WHILE", "STABLEHLO_CASE",
    "HASHTABLE_IMPORT", "HASHTABLE_FIND", "HASHTABLE_LOOKUP", "HASHTABLE_SIZE",
    "RANDOM_UNIFORM", "RANDOM_STANDARD_NORMAL", "MULTINOMIAL", "STABLEHLO_RNG_BIT_GENERATOR",
}  # fmt: skip
# Handles name a resource; copies of the op name the same one, so each segment gets its own copy.
HANDLES = {"VAR_HANDLE", "HASHTABLE"}
# Ops that show no secret: what they compute from the app's input, the app can compute itself.
PUBLIC = {
    "PAD", "RESHAPE", "SQUEEZE", "EXPAND_DIMS", "TRANSPOSE", "CAST", "QUANTIZE", "DEQUANTIZE", "SLICE", "STRIDED_SLICE",
    "SPLIT", "SPACE_TO_DEPTH", "RESIZE_BILINEAR", "RESIZE_NEAREST_NEIGHBOR",
}  # fmt: skip


@dataclass
class Step:
    """One linear op, or a trusted segment of ops in order with the tensors that enter and leave it."""

    linear: LinearOp | None = None
    ops: list[Op] = field(default_factory=list)
    inputs: list[int] = field(default_factory=list)
    outputs: list[int] = field(default_factory=list)


@dataclass
class Partition:
    """The verdict on one subgraph. ``reasons`` says for each op id why it stays, "" if it goes out."""

    graph: Subgraph
    shapes: Shapes
    steps: list[Step]
    reasons: dict[int, str]
    folded: list[int]  # weights and outputs that ops compute from constants; LiteRT gives their values

    @property
    def linear(self) -> list[LinearOp]:
        return [step.linear for step in self.steps if step.linear is not None]


def partition(
    graph: Graph,
    entry: int,
    shapes: Shapes,
    outsource: str | set[int],
    refused: dict[int, str] | None = None,
    ratio: float = 1.2,
    device: Device | None = None,
) -> Partition:
    """Partition one subgraph. ``outsource`` is "all", "none", "auto" (what :mod:`shadownet.cost` finds worth it at
    this obfuscation ratio, on this device or by its first rule), or the op ids that may go out; ``refused`` gives for
    op ids the reason why they must stay."""

    def worth(lin: LinearOp) -> str:
        return cost.verdict(lin, ratio) if device is None else cost.verdict_on(device, lin, ratio)

    return _Partitioner(graph.subgraphs[entry], shapes).run(outsource, refused or {}, worth)


class _Partitioner:
    def __init__(self, graph: Subgraph, shapes: Shapes) -> None:
        self.graph, self.shapes = graph, shapes
        self.producer = {t: op for op in graph.ops for t in op.outputs}
        self.consumers: dict[int, list[Op]] = defaultdict(list)
        for op in graph.ops:
            for t in set(op.reads()):
                self.consumers[t].append(op)
        self.folded = self._fold()
        self.public = self._public()
        self.clones = {
            op.id
            for op in graph.ops
            if op.kind in HANDLES or (op.outputs and all(t in self.folded for t in op.outputs))
        }

    def run(self, outsource: str | set[int], refused: dict[int, str], worth: Callable[[LinearOp], str]) -> Partition:
        reasons: dict[int, str] = {}
        linear: dict[int, LinearOp] = {}
        for op in self.graph.ops:
            found = recognise(op, self.graph, self.shapes, self.folded, self.public)
            if isinstance(found, LinearOp):
                chosen = outsource in ("all", "auto") or (isinstance(outsource, set) and op.id in outsource)
                reason = number_obstacle(found, self.graph) or refused.get(op.id, "")
                reason = reason or (worth(found) if outsource == "auto" else "")
                reasons[op.id] = reason or ("" if chosen else "not selected by --outsource")
                if not reasons[op.id]:
                    linear[op.id] = self._absorb_pad(found)
            else:
                reasons[op.id] = found
        self._absorb_epilogues(linear)
        steps = self._schedule(linear)
        obstacle = self._obstacle(steps)
        if linear and obstacle:
            reasons |= dict.fromkeys(linear, obstacle)
            linear, steps = {}, self._schedule({})
        for lin in linear.values():
            if lin.pad is not None:
                reasons[lin.pad.id] = ""
            reasons |= {op.id: f"in the kernel of op {lin.op.id}" for op in lin.epilogue.ops}
        scheduled = {step.linear.op.id for step in steps if step.linear is not None}
        reasons |= dict.fromkeys(linear.keys() - scheduled, "nothing reads its result")
        constants = {t for lin in linear.values() for t in (lin.weight, lin.bias)} | set(self.graph.outputs)
        return Partition(self.graph, self.shapes, steps, reasons, sorted(constants & self.folded))

    def _fold(self) -> set[int]:
        """Tensors that ops compute from constants alone, such as float16 weights behind a DEQUANTIZE."""
        folded: set[int] = set()
        for op in self.graph.ops:
            inputs = list(op.reads())
            constant = all(self.graph.tensors[t].is_constant or t in folded for t in inputs)
            if inputs and constant and not op.subgraphs() and op.kind not in STATEFUL | HANDLES:
                folded.update(op.outputs)
        return folded

    def _public(self) -> set[int]:
        """Tensors that the app can compute from its own input: they carry nothing of the model."""
        known = set(self.graph.inputs)
        for op in self.graph.ops:
            data = [t for t in op.reads() if not self.graph.tensors[t].is_constant]
            if op.kind in PUBLIC and data and all(t in known for t in data):
                known.update(op.outputs)
        return known

    def _absorb_pad(self, lin: LinearOp) -> LinearOp:
        """Let an explicit zero PAD before a convolution go out with it: fewer bytes cross."""
        pad = self.producer.get(lin.input)
        if pad is None or len(self.consumers[lin.input]) != 1 or lin.input in self.graph.outputs:
            return lin
        return lin.with_pad(pad, self.graph, self.shapes)

    def _absorb_epilogues(self, linear: dict[int, LinearOp]) -> None:
        """Fuse what follows float layers into their kernels; of two that meet in an ADD the later one takes it."""
        taken: set[int] = set()

        def follower(tensor: int) -> Op | None:
            readers = self.consumers[tensor]
            if len(readers) != 1 or tensor in self.graph.outputs or readers[0].id in taken:
                return None
            # What is computed from constants exists in segments only, so it is no residual.
            return None if self.folded.intersection(readers[0].reads()) else readers[0]

        def constant(tensor: int) -> Array | None:
            found = self.graph.tensors[tensor]
            return found.values() if found.is_constant and found.dtype == "float32" else None

        for i in sorted(linear, reverse=True):
            lin = linear[i]
            if self.graph.tensors[lin.weight].dtype == "float32":
                epilogue, result = absorb(self.graph, self.shapes, lin.output, lin.activation, follower, constant)
                taken.update(op.id for op in epilogue.ops)
                linear[i] = replace(lin, epilogue=epilogue, result=result)

    def _schedule(self, linear: dict[int, LinearOp]) -> list[Step]:
        """Run every trusted op that can run, then one linear op, and so on: the fewest segments."""
        absorbed = {lin.pad.id for lin in linear.values() if lin.pad is not None}
        absorbed |= {op.id for lin in linear.values() for op in lin.epilogue.ops}
        ops = [op for op in self._needed(linear) if op.id not in absorbed and op.id not in self.clones]
        waits, wakes = self._dependencies(ops, linear)
        by_id = {op.id: op for op in ops}
        ready = [(i in linear, i) for i in waits if not waits[i]]  # trusted ops first, then in the file's order
        heapq.heapify(ready)
        order: list[Op] = []
        while ready:
            _, i = heapq.heappop(ready)
            order.append(by_id[i])
            for j in wakes[i]:
                waits[j].discard(i)
                if not waits[j]:
                    heapq.heappush(ready, (j in linear, j))
        return self._steps(order, linear)

    def _needed(self, linear: dict[int, LinearOp]) -> list[Op]:
        """Drop what neither an output nor an effect needs, such as the DEQUANTIZE of an outsourced weight."""
        absorbed = {op.id: lin for lin in linear.values() for op in lin.epilogue.ops}
        wanted, kept = set(self.graph.outputs) - self.folded, []
        for op in reversed(self.graph.ops):
            effect = op.kind in STATEFUL or op.kind.startswith("CUSTOM") or not op.outputs
            if not (effect or wanted.intersection(op.outputs)):
                continue
            kept.append(op)
            lin = linear.get(op.id)
            if op.id in absorbed:  # its linear op runs at its place
                wanted.update(absorbed[op.id].op.outputs)
                wanted.update(absorbed[op.id].reads())
            elif lin is not None:
                wanted.update(lin.reads())
                if lin.pad is not None:
                    kept.append(lin.pad)
            else:
                wanted.update(op.reads())
        return kept[::-1]

    def _dependencies(
        self, ops: list[Op], linear: dict[int, LinearOp]
    ) -> tuple[dict[int, set[int]], dict[int, list[int]]]:
        ids = {op.id for op in ops}
        source = {t: op.id for t, op in self.producer.items()} | {lin.result: i for i, lin in linear.items()}
        waits: dict[int, set[int]] = {op.id: set() for op in ops}
        last_effect = -1
        for op in ops:
            reads = linear[op.id].reads() if op.id in linear else tuple(op.reads())
            waits[op.id] = {source[t] for t in reads if t in source} & ids
            if op.kind in STATEFUL or any(self.graph.tensors[t].is_variable for t in op.reads()):
                if last_effect >= 0:
                    waits[op.id].add(last_effect)
                last_effect = op.id
        wakes: dict[int, list[int]] = defaultdict(list)
        for i, causes in waits.items():
            for cause in causes:
                wakes[cause].append(i)
        return waits, wakes

    def _steps(self, order: list[Op], linear: dict[int, LinearOp]) -> list[Step]:
        steps: list[Step] = []
        for op in order:
            if op.id in linear:
                lin = linear[op.id]
                steps.append(Step(lin, inputs=list(lin.reads()), outputs=[lin.result]))
            elif steps and steps[-1].linear is None:
                steps[-1].ops.append(op)
            else:
                steps.append(Step(ops=[op]))
        needed = set(self.graph.outputs) - self.folded
        for step in reversed(steps):
            if step.linear is None:
                self._segment_interface(step, needed)
            needed.update(step.inputs)
        return steps

    def _segment_interface(self, step: Step, needed: set[int]) -> None:
        own = {t for op in step.ops for t in op.outputs}
        step.outputs = sorted(own & needed)
        step.ops = self._with_clones(step.ops)
        own |= {t for op in step.ops for t in op.outputs}
        reads = {t for op in step.ops for t in op.reads()} - own
        step.inputs = sorted(
            t for t in reads if not self.graph.tensors[t].is_constant and not self.graph.tensors[t].is_variable
        )

    def _with_clones(self, ops: list[Op]) -> list[Op]:
        """Put before a segment its own copies of the handles and constant expressions that it reads."""
        wanted: set[int] = set()
        stack = [t for op in ops for t in op.reads()]
        while stack:
            op = self.producer.get(stack.pop())
            if op is not None and op.id in self.clones and op.id not in wanted:
                wanted.add(op.id)
                stack.extend(op.reads())
        return [op for op in self.graph.ops if op.id in wanted] + ops

    def _obstacle(self, steps: list[Step]) -> str:
        """Why these segments cannot be cut apart, or "" if they can."""
        seen_variables: dict[int, int] = {}
        for number, step in enumerate(steps):
            for t in (*step.inputs, *step.outputs):
                dtype = self.graph.tensors[t].dtype
                if dtype not in DTYPES and dtype != "string":
                    return f"a {dtype} tensor would have to cross between segments"
            for op in step.ops:
                for t in op.reads():
                    if self.graph.tensors[t].is_variable and seen_variables.setdefault(t, number) != number:
                        return "segments would share a variable tensor"
        return ""


def upstream(graph: Subgraph, ops: set[int]) -> set[int]:
    """Ids of these ops and of all whose results reach them."""
    wanted: set[int] = set()
    found: set[int] = set()
    for op in reversed(graph.ops):
        if op.id in ops or wanted.intersection(op.outputs):
            found.add(op.id)
            wanted.update(op.reads())
    return found
