"""The order of recovered filters, and their biases, from what crossed: A5's idea made exact by the known architecture.

The enclave puts channels back into their natural order before it sends the next layer's input x', so filter i of a
layer feeds channel i of the next one. Between the two, the architecture is known. Layers are taken last to first:

    y_a = row a * x                                  x is what crossed for this layer
    cost[a, c] = min over (gain g, bias b) of |f(g y_a + b)_c - x'_c|^2 / |x'_c - mean|^2
    order = the matching of rows to channels with the least cost

f is whatever lies between: activations, pooling, a residual whose other side crossed as well. It must act channel by
channel. Depthwise layers cross permuted; their slots take part as (row, channel) together.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from shadownet.attacks.network import LINEAR, Network
from shadownet.attacks.recovery import assign
from shadownet.graph import Op
from shadownet.wire.errors import ModelError

Array = np.ndarray[Any, Any]

START = (-1.5, -0.5, 0.0, 0.5, 1.5)  # biases tried first, in deviations of y
STEPS = 3
POSITIONS = 4096  # values of a channel that take part
BELIEVED = 0.6  # a matching that leaves more than this share of the variance open is none


@dataclass(frozen=True, eq=False)
class Ordered:
    """``order[c]`` is the row of natural channel c; ``gain`` and ``bias`` [n] in natural order; ``doubt`` the median
    share of a channel's variance that the matched row leaves unexplained."""

    order: Array
    gain: Array
    bias: Array
    doubt: float

    @property
    def believed(self) -> bool:
        return self.doubt < BELIEVED


def order_layer(
    network: Network, op: Op, rows: Array, sent: Mapping[int, Array], scaled: bool = True
) -> Ordered | None:
    """Find the order of ``rows``, weights in the layout of ``op`` with filters in any order.

    ``sent`` are observed tensors by id, [N, ...] in natural order, the op's own input among them (depthwise: in slot
    order). ``scaled`` False fits a gain for each filter too. None where no observed tensor can tell.
    """
    target = _observer(network, op, sent)
    if target is None:
        return None
    y = _linear(network, op, rows, sent[op.inputs[0]])
    n = y.shape[-1]
    truth = _per_channel(sent[target], n)
    if truth is None:
        return None
    deviation = np.maximum(y.reshape(-1, n).std(axis=0), 1e-9)
    spread = np.maximum(((truth - truth.mean(axis=1, keepdims=True)) ** 2).sum(axis=1), 1e-12)
    known = {t: v for t, v in sent.items() if t not in (target, op.outputs[0])}
    cost, gain, bias = (np.empty((n, n)) for _ in range(3))
    for shift in range(n):
        row = (np.arange(n) - shift) % n  # the row that stands at each channel
        start = _Segment(network, op, known, target, y[..., row], truth)
        error, g, b = start.fit(deviation[row], scaled)
        cost[row, np.arange(n)], gain[row, np.arange(n)], bias[row, np.arange(n)] = error / spread, g, b
    a, c = assign(-np.minimum(cost, 4.0))
    order = np.empty(n, np.int64)
    order[c] = a
    at = order, np.arange(n)
    return Ordered(order, gain[at], bias[at], float(np.median(cost[at])))


class _Segment:
    """From one layer's sums to the next observed tensor, channel by channel."""

    def __init__(
        self, network: Network, op: Op, known: dict[int, Array], target: int, y: Array, truth: Array
    ) -> None:
        self.network, self.op, self.known, self.target, self.y, self.truth = network, op, known, target, y, truth

    def error(self, gain: Array, bias: Array) -> tuple[Array, Array]:
        """(squared error [n], predicted values [n, positions])."""
        z = activate(self.op, (self.y * gain + bias).astype(np.float32))
        values, _ = self.network.forward(
            np.zeros((len(z), *self.network.input_shape), np.float32),
            self.known | {self.op.outputs[0]: z}, self.target,
        )  # fmt: skip
        found = _per_channel(values[self.target], self.y.shape[-1])
        assert found is not None
        return ((found - self.truth) ** 2).sum(axis=1), found

    def fit(self, deviation: Array, scaled: bool) -> tuple[Array, Array, Array]:
        """(error, gain, bias), each [n]: a grid of biases, then Gauss-Newton steps that are kept if they help."""
        n = self.y.shape[-1]
        gain, bias = np.ones(n), np.zeros(n)
        best = np.full(n, np.inf)
        for start in START:
            error, _ = self.error(gain, start * deviation)
            better = error < best
            bias, best = np.where(better, start * deviation, bias), np.where(better, error, best)
        for _ in range(STEPS):
            step_gain, step_bias = self._step(gain, bias, deviation, scaled)
            error, _ = self.error(gain + step_gain, bias + step_bias)
            better = error < best
            gain, bias = np.where(better, gain + step_gain, gain), np.where(better, bias + step_bias, bias)
            best = np.where(better, error, best)
        return best, gain, bias

    def _step(self, gain: Array, bias: Array, deviation: Array, scaled: bool) -> tuple[Array, Array]:
        _, here = self.error(gain, bias)
        h = 0.02 * deviation
        slope = (self.error(gain, bias + h)[1] - here) / h[:, None]
        left = self.truth - here
        bb, bl = (slope * slope).sum(1) + 1e-12, (slope * left).sum(1)
        if scaled:
            return np.zeros_like(gain), bl / bb
        tilt = (self.error(gain * 1.02, bias)[1] - here) / (0.02 * gain[:, None])
        gg, gb, gl = (tilt * tilt).sum(1) + 1e-12, (tilt * slope).sum(1), (tilt * left).sum(1)
        det = gg * bb - gb * gb + 1e-9 * gg * bb
        return np.clip((gl * bb - bl * gb) / det, -0.9 * gain, None), (bl * gg - gl * gb) / det


def activate(op: Op, z: Array) -> Array:
    """The op's fused activation."""
    low, high = {1: (0.0, np.inf), 2: (-1.0, 1.0), 3: (0.0, 6.0)}.get(
        op.options.fusedActivationFunction, (-np.inf, np.inf)
    )
    return np.clip(z, low, high).astype(np.float32)


def _linear(network: Network, op: Op, rows: Array, x: Array) -> Array:
    """Sums of ``op`` with other weights, no bias, no activation: [N, ..., n]."""
    twin = {op.inputs[0]: x, op.inputs[1]: rows.astype(np.float32)}
    if op.input(2) >= 0:
        twin[op.inputs[2]] = np.zeros_like(network.parameters[op.inputs[2]])
    kept, op.options.fusedActivationFunction = op.options.fusedActivationFunction, 0
    try:
        values, _ = network.forward(np.zeros((len(x), *network.input_shape), np.float32), twin, op.outputs[0])
    finally:
        op.options.fusedActivationFunction = kept
    return values[op.outputs[0]]


def _observer(network: Network, op: Op, sent: Mapping[int, Array]) -> int | None:
    """The nearest observed tensor that depends on the op's output with no other linear op in between."""
    reached = {op.outputs[0]}
    for other in network.ops:
        for t in reached & set(sent):
            return t
        if other.kind not in LINEAR and reached & set(other.reads()):
            if other.kind in ("SOFTMAX", "CONCATENATION"):
                continue
            reached |= set(other.outputs)
    return next(iter(reached & set(sent)), None)


def _per_channel(values: Array, n: int) -> Array | None:
    """[N, ..., n] (or flattened, channels last) -> [n, at most POSITIONS values]; None if the channels do not show."""
    if values.size % n or values.shape[-1] % n:
        return None
    flat = values.reshape(-1, n)
    step = max(1, len(flat) // POSITIONS)
    return np.ascontiguousarray(flat[::step].T.astype(np.float64))


def natural(network: Network, op: Op) -> int:
    """The number of filters of ``op``. Raises ``ModelError`` for an op that is not linear."""
    if op.kind not in LINEAR:
        raise ModelError(f"op {op.id} is not linear")
    return network.parameters[op.inputs[1]].shape[3 if op.kind == "DEPTHWISE_CONV_2D" else 0]
