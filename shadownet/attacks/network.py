"""A float ``.tflite`` model that can be fitted: what an attacker, who knows the architecture, computes with.

The file serves as a skeleton. Its float constants are the parameters; a stolen model is the same file with others.
NumPy only, so that the bench needs no training framework.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from typing import Any

import flatbuffers
import numpy as np
from ai_edge_litert import schema_py_generated as schema

from shadownet.attacks.ops import OPS, Back
from shadownet.graph import Op, load, parse
from shadownet.wire.errors import ModelError

Array = np.ndarray[Any, Any]
Values = dict[int, Array]

LINEAR = {"CONV_2D", "DEPTHWISE_CONV_2D", "FULLY_CONNECTED"}
_SHAPED = {"RESHAPE", "SQUEEZE"}
_LOGITS = {"SOFTMAX", "LOGISTIC"}


class Network:
    """One entry, one input, one output. ``parameters`` are float32 arrays by tensor id; they may be replaced.

    Raises ``ModelError`` for a model that this small engine does not run.
    """

    def __init__(self, content: bytes, name: str = "the model") -> None:
        self.content = content
        self.graph = parse(content, name)
        part = self.graph.subgraphs[0]
        if len(part.inputs) != 1 or len(part.outputs) != 1:
            raise ModelError(f"{name} has not exactly one input and one output, so it cannot be refitted")
        self.part, self.ops = part, part.ops
        unknown = sorted({op.kind for op in self.ops} - OPS.keys())
        if unknown:
            raise ModelError(f"{name} cannot be refitted: no gradient for {', '.join(unknown)}")
        read = {t for op in self.ops for t in op.reads()}
        constant = [t for t in part.tensors if t.is_constant and t.id in read]
        if any(t.dtype not in ("float32", "int32", "int64") for t in part.tensors):
            raise ModelError(f"{name} cannot be refitted: only float32 models can")
        self.parameters: Values = {t.id: t.values().copy() for t in constant if t.dtype == "float32"}
        self._fixed = {t.id: t.values() for t in constant if t.dtype != "float32"}
        self.input, self.output = part.inputs[0], part.outputs[0]
        self.input_shape = part.tensors[self.input].shape[1:]
        last = self.ops[-1]
        self.logits = last.inputs[0] if last.kind in _LOGITS and last.outputs[0] == self.output else self.output

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Network:
        """Read a file. Raises ``ModelError``."""
        return cls(load(path)[1], os.fspath(path))

    def linear(self) -> list[Op]:
        """The ops whose weights a bundle would hide, in the file's order."""
        return [op for op in self.ops if op.kind in LINEAR and op.input(1) in self.parameters]

    def forward(
        self, x: Array, known: Mapping[int, Array] | None = None, until: int | None = None
    ) -> tuple[Values, list[tuple[Op, Back]]]:
        """Run on a batch [N, ...]: (values by tensor id, tape). ``known`` tensors are taken as given.

        Computes what tensor ``until`` (default: the logits) needs and no more.
        """
        target = self.logits if until is None else until
        values: Values = {**self.parameters, **self._fixed, self.input: x.astype(np.float32)}
        values.update(known or {})
        tape: list[tuple[Op, Back]] = []
        for op in self._needed(target, values):
            inputs = [values[t] for t in op.reads()]
            if op.kind in _SHAPED:
                inputs = [inputs[0], np.array(self.part.tensors[op.outputs[0]].shape)]
            values[op.outputs[0]], back = OPS[op.kind](inputs, op.options)
            tape.append((op, back))
        return values, tape

    def _needed(self, target: int, known: Mapping[int, Array]) -> list[Op]:
        """The ops, in order, that compute ``target`` from what is known."""
        wanted, needed = {target} - known.keys(), []
        for op in reversed(self.ops):
            if wanted & set(op.outputs):
                needed.append(op)
                wanted = (wanted - set(op.outputs)) | (set(op.reads()) - known.keys())
        if wanted:
            raise ModelError("the network is not connected")
        return needed[::-1]

    def gradients(self, tape: list[tuple[Op, Back]], tensor: int, gradient: Array) -> Values:
        """Back-propagate d loss / d ``tensor``; gradients of every tensor on the way, by id."""
        found: Values = {tensor: gradient.astype(np.float32)}
        for op, back in reversed(tape):
            dy = found.get(op.outputs[0])
            if dy is None:
                continue
            for t, dx in zip(op.reads(), back(dy), strict=False):
                if dx is not None and t not in self._fixed:
                    found[t] = found[t] + dx if t in found else dx
        return found

    def scores(self, x: Array, batch: int = 256) -> Array:
        """Logits [N, classes]."""
        parts = [self.forward(x[i : i + batch])[0][self.logits] for i in range(0, len(x), batch)]
        return np.concatenate(parts) if parts else np.zeros((0, *self.part.tensors[self.logits].shape[1:]), np.float32)

    def classify(self, x: Array) -> Array:
        """Top classes [N]."""
        scores = self.scores(x)
        out: Array = scores.reshape(len(x), int(np.prod(scores.shape[1:]))).argmax(axis=1)
        return out

    def copy(self) -> Network:
        twin = Network(self.content)
        twin.parameters = {t: a.copy() for t, a in self.parameters.items()}
        return twin

    def tflite(self) -> bytes:
        """The skeleton's file with the present parameters."""
        return replace_constants(self.content, self.parameters)


def replace_constants(content: bytes, values: Mapping[int, Array]) -> bytes:
    """``content`` with other data for constants of its first subgraph. Each gets a buffer of its own."""
    raw = parse(content).raw
    if any(buffer.offset > 1 for buffer in raw.buffers):
        raise ModelError("the file keeps data outside the flatbuffer, which is not supported here")
    for tensor, value in values.items():
        target = raw.subgraphs[0].tensors[tensor]
        assert tuple(target.shape) == value.shape, "a constant keeps its shape"
        raw.buffers.append(schema.BufferT(data=np.frombuffer(value.astype(np.float32).tobytes(), np.uint8)))
        target.buffer = len(raw.buffers) - 1
    used = {t.buffer for g in raw.subgraphs for t in g.tensors} | {m.buffer for m in raw.metadata or []}
    for k, buffer in enumerate(raw.buffers):
        if k not in used:
            buffer.data = None  # the replaced data must not travel along
    builder = flatbuffers.Builder(len(content) + (1 << 16))
    builder.Finish(raw.Pack(builder), b"TFL3")
    return bytes(builder.Output())


def skeleton(content: bytes, draw: Callable[[tuple[int, ...]], Array] | None = None) -> bytes:
    """The architecture alone: every float constant of rank 1 and more replaced, by ``draw(shape)`` or zeros.

    An attacker knows shapes and ops of the model (the threat model says that they leak), and none of its numbers.
    """
    network = Network(content)
    fresh = draw if draw is not None else lambda shape: np.zeros(shape, np.float32)
    return replace_constants(content, {t: fresh(a.shape) for t, a in network.parameters.items() if a.ndim})
