"""What can follow a float linear layer inside its own kernel: activation, channel-wise scale and shift, a residual.

The kernel computes, in this order and each part optional (see ``enclave.formats.Epilogue``):

    t = restored + bias;  t = first(t);  t = gain * t + shift;  t = t + residual;  t = second(t)

:func:`absorb` walks from a linear op's output along ops that fit and have no other consumer.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from shadownet.analysis import Shapes
from shadownet.graph import Op, Subgraph

Array = np.ndarray[Any, Any]

CLAMPS = {"NONE": (-np.inf, np.inf), "RELU": (0.0, np.inf), "RELU6": (0.0, 6.0), "RELU_N1_TO_1": (-1.0, 1.0)}
FUSED = {0: "NONE", 1: "RELU", 2: "RELU_N1_TO_1", 3: "RELU6"}


@dataclass(frozen=True)
class Activation:
    """``clamp`` to [low, high], ``leaky`` with slope ``low``, ``elu`` or ``hard_swish``."""

    kind: str = "clamp"
    low: float = -np.inf
    high: float = np.inf

    @property
    def is_none(self) -> bool:
        return self.kind == "clamp" and self.low == -np.inf and self.high == np.inf

    @classmethod
    def named(cls, name: str) -> Activation:
        return cls("clamp", *CLAMPS[name])

    def to_json(self) -> dict[str, Any]:
        return {"kind": self.kind, "low": str(self.low), "high": str(self.high)}


@dataclass(frozen=True, eq=False)
class Epilogue:
    """The parts above; ``ops`` are the absorbed ops, ``residual`` a tensor id or -1."""

    first: Activation
    gain: Array | None = None
    shift: Array | None = None
    residual: int = -1
    second: Activation = Activation()
    ops: tuple[Op, ...] = ()

    @property
    def closed(self) -> bool:
        return not self.second.is_none


def absorb(
    graph: Subgraph, shapes: Shapes, output: int, activation: str, follower: Callable[[int], Op | None],
    constant: Callable[[int], Array | None],
) -> tuple[Epilogue, int]:  # fmt: skip
    """Extend an epilogue as far as it goes: (epilogue, the tensor that now is the layer's output).

    ``follower`` gives the only op that reads a tensor, or None; ``constant`` the values of a constant tensor.
    """
    epilogue = Epilogue(Activation.named(activation))
    while not epilogue.closed:
        op = follower(output)
        grown = _grow(epilogue, op, graph, shapes, output, constant) if op is not None else None
        if op is None or grown is None:
            break
        epilogue, output = replace(grown, ops=(*epilogue.ops, op)), op.outputs[0]
    return epilogue, output


def _grow(
    epilogue: Epilogue, op: Op, graph: Subgraph, shapes: Shapes, tensor: int, constant: Callable[[int], Array | None]
) -> Epilogue | None:
    if len(op.outputs) != 1 or shapes.shape[op.outputs[0]] != shapes.shape[tensor]:
        return None
    if graph.tensors[op.outputs[0]].dtype != "float32" or not shapes.static[op.outputs[0]]:
        return None
    if op.kind in ("RELU", "RELU6", "RELU_N1_TO_1", "LEAKY_RELU", "ELU", "HARD_SWISH"):
        return _with_activation(epilogue, _activation(op))
    fused = FUSED.get(getattr(op.options, "fusedActivationFunction", 0))
    if op.kind not in ("ADD", "MUL", "SUB") or fused is None or len(op.inputs) != 2:
        return None
    if op.kind == "SUB" and op.inputs[0] != tensor:
        return None
    other = op.inputs[0] if op.inputs[1] == tensor else op.inputs[1]
    values = constant(other)
    if values is not None:
        grown = _with_vector(epilogue, op.kind, values, shapes.shape[tensor][-1])
    elif op.kind == "ADD" and other != tensor and shapes.shape[other] == shapes.shape[tensor]:
        static = shapes.static[other] and graph.tensors[other].dtype == "float32" and epilogue.residual < 0
        grown = replace(epilogue, residual=other) if static else None
    else:
        grown = None
    if grown is None or fused == "NONE":
        return grown
    return replace(grown, second=Activation.named(fused))


def _activation(op: Op) -> Activation:
    if op.kind == "LEAKY_RELU":
        return Activation("leaky", float(op.options.alpha), 0.0)
    if op.kind in ("ELU", "HARD_SWISH"):
        return Activation(op.kind.lower(), 0.0, 0.0)
    return Activation.named(op.kind)


def _with_activation(epilogue: Epilogue, activation: Activation) -> Epilogue:
    untouched = epilogue.first.is_none and epilogue.gain is None and epilogue.residual < 0
    return replace(epilogue, first=activation) if untouched else replace(epilogue, second=activation)


def _with_vector(epilogue: Epilogue, kind: str, values: Array, channels: int) -> Epilogue | None:
    """Multiply by, add or subtract a constant that is one number or one per channel."""
    if epilogue.residual >= 0 or values.size not in (1, channels) or (values.ndim and values.shape[-1] != values.size):
        return None
    vector = np.broadcast_to(values.reshape(-1), channels).astype(np.float32)
    gain = np.ones(channels, np.float32) if epilogue.gain is None else epilogue.gain
    shift = np.zeros(channels, np.float32) if epilogue.shift is None else epilogue.shift
    if kind == "MUL":
        return replace(epilogue, gain=gain * vector, shift=shift * vector)
    return replace(epilogue, gain=gain, shift=shift + (vector if kind == "ADD" else -vector))
