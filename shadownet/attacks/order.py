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

Array = np.ndarray[Any, Any]

COARSE, FINE = (-1.0, 0.0, 1.0), (-1.5, -0.5, 0.0, 0.5, 1.5)  # biases tried first, in deviations of y
STEPS = 4
POSITIONS = 4096  # values of a channel that take part
BELIEVED = 0.6  # a matching that leaves more than this share of the variance open is none
POOR = 0.25  # a channel that its row leaves open by more than this has the wrong row, unless all others are as bad
CANDIDATES = 400


@dataclass(frozen=True, eq=False)
class Ordered:
    """``order[c]`` is the row of natural channel c; ``gain`` and ``bias`` [n] in natural order; ``doubt`` the median
    share of a channel's variance that the matched row leaves unexplained, ``open`` [n] this share of each."""

    order: Array
    gain: Array
    bias: Array
    doubt: float
    open: Array

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
    segment = _Segment.between(network, op, sent, target, n)
    if segment is None:
        return None
    deviation = np.maximum(y.reshape(-1, n).std(axis=0), 1e-9)
    cost = np.empty((n, n))
    for shift in range(n):
        row = (np.arange(n) - shift) % n  # the row that stands at each channel
        cost[row, np.arange(n)] = segment.fit(y[..., row], deviation[row], scaled, COARSE, 1)[0]
    a, c = assign(-np.minimum(cost, 4.0))
    order = a[np.argsort(c)]
    left, gain, bias = segment.fit(y[..., order], deviation[order], scaled, FINE, STEPS)
    return Ordered(order, gain, bias, float(np.median(left)), left)


def refine(
    network: Network, op: Op, clean: Mapping[int, Array], sent: Mapping[int, Array], scaled: bool = True
) -> Ordered | None:
    """Fit gains and biases again, the order settled, from inputs without masks.

    ``clean`` are tensors upstream as the network computes them from the first input, which is known. Masks on a layer's
    own input go through its activation and leave a bias behind; masks on the observed output average out.
    """
    target = _observer(network, op, sent)
    if target is None:
        return None
    y = _linear(network, op, network.parameters[op.inputs[1]], clean[op.inputs[0]])
    n = y.shape[-1]
    segment = _Segment.between(network, op, {**clean, target: sent[target]}, target, n)
    if segment is None:
        return None
    deviation = np.maximum(y.reshape(-1, n).std(axis=0), 1e-9)
    left, gain, bias = segment.fit(y, deviation, scaled, FINE, STEPS)
    return Ordered(np.arange(n), gain, bias, float(np.median(left)), left)


def repair(
    network: Network, op: Op, weights: Array, found: Ordered, rows: Array, sent: Mapping[int, Array]
) -> tuple[Array, Array, Array] | None:
    """Find filters that A4 paired wrongly: (weights, bias, share left open [n]), or None if all is well.

    ``weights`` [n, ...] stand in natural order; ``rows`` [M, d] are the public ones. Every sum of two public rows (of
    those that no good filter uses as its own, if they are many) is tried at every poor channel, so s = 1. Needs a layer
    in one group. In short filters (d = 9) chance makes strangers collinear, and A4 may take filters for masks.
    """
    target = _observer(network, op, sent)
    usual = 3.0 * float(np.quantile(found.open, 0.1))
    poor = np.flatnonzero(found.open > min(max(POOR, usual), BELIEVED))
    if target is None or not len(poor):
        return None
    flat = weights.reshape(len(weights), -1)
    good = np.setdiff1d(np.arange(len(flat)), poor)
    pairs = [(a, b) for a in range(len(rows)) for b in range(a)]
    sums = rows[[a for a, _ in pairs]] + rows[[b for _, b in pairs]]
    keep = list(range(len(pairs)))
    if len(keep) > CANDIDATES:
        used = _used(pairs, sums, flat[good])
        keep = [k for k, pair in enumerate(pairs) if len(used.intersection(pair)) < 2]
    if len(keep) > CANDIDATES:
        return None
    n = len(flat)
    segment = _Segment.between(network, op, sent, target, n)
    assert segment is not None
    cost, bias = np.full((len(keep), n), np.inf), np.zeros((len(keep), n))
    for i in range(0, len(keep), n):
        batch = keep[i : i + n]
        filled = np.resize(np.array(batch), n)
        y = _linear(network, op, sums[filled].reshape(weights.shape), sent[op.inputs[0]])
        deviation = np.maximum(y.reshape(-1, n).std(axis=0), 1e-9)
        for k in range(len(batch)):
            one = np.repeat(y[..., k : k + 1], n, axis=-1)
            cost[i + k], _, bias[i + k] = segment.fit(one, np.full(n, deviation[k]), True, FINE, STEPS)
    which, where = assign(-np.minimum(cost[:, poor], 4.0))
    out, shift, left = flat.copy(), found.bias.copy(), found.open.copy()
    for k, c in zip(which, poor[where], strict=True):
        if cost[k, c] < min(left[c], BELIEVED):
            out[c], shift[c], left[c] = sums[keep[k]], bias[k, c], cost[k, c]
    return out.reshape(weights.shape).astype(np.float32), shift, left


def _used(pairs: list[tuple[int, int]], sums: Array, good: Array) -> set[int]:
    """Rows that are good filters' own: of the two rows of a pair the one that fewer filters share."""
    hits = [pairs[int(np.square(sums - w).sum(axis=1).argmin())] for w in good]
    count = np.bincount(np.array(hits).reshape(-1), minlength=int(np.max(pairs, initial=0)) + 1)
    return {min(pair, key=lambda r: int(count[r])) for pair in hits if count[pair[0]] != count[pair[1]]}


@dataclass(frozen=True, eq=False)
class _Segment:
    """From one layer's sums to the next observed tensor, channel by channel. ``truth`` is float64 [n, positions]."""

    network: Network
    op: Op
    known: dict[int, Array]
    target: int
    truth: Array

    @classmethod
    def between(cls, network: Network, op: Op, sent: Mapping[int, Array], target: int, n: int) -> _Segment | None:
        truth = _per_channel(sent[target], n)
        known = {t: v for t, v in sent.items() if t not in (target, op.outputs[0])}
        return None if truth is None else cls(network, op, known, target, truth)

    def error(self, y: Array, gain: Array, bias: Array) -> tuple[Array, Array]:
        """(squared error [n], predicted values [n, positions]) of sums ``y`` [N, ..., n]."""
        z = activate(self.op, (y * gain + bias).astype(np.float32))
        values, _ = self.network.forward(
            np.zeros((len(z), *self.network.input_shape), np.float32),
            self.known | {self.op.outputs[0]: z}, self.target,
        )  # fmt: skip
        found = _per_channel(values[self.target], len(self.truth))
        assert found is not None
        return ((found - self.truth) ** 2).sum(axis=1), found

    def fit(
        self, y: Array, deviation: Array, scaled: bool, starts: tuple[float, ...], steps: int
    ) -> tuple[Array, Array, Array]:
        """(share of the variance left open, gain, bias), each [n]: a grid of biases, then Gauss-Newton steps."""
        n = y.shape[-1]
        gain, bias = np.ones(n), np.zeros(n)
        best = np.full(n, np.inf)
        for start in starts:
            error, _ = self.error(y, gain, start * deviation)
            better = error < best
            bias, best = np.where(better, start * deviation, bias), np.where(better, error, best)
        for _ in range(steps):
            step_gain, step_bias = self._step(y, gain, bias, deviation, scaled)
            error, _ = self.error(y, gain + step_gain, bias + step_bias)
            better = error < best
            gain, bias = np.where(better, gain + step_gain, gain), np.where(better, bias + step_bias, bias)
            best = np.where(better, error, best)
        spread = np.square(self.truth - self.truth.mean(axis=1, keepdims=True)).sum(axis=1)
        return best / np.maximum(spread, 1e-12), gain, bias

    def _step(self, y: Array, gain: Array, bias: Array, deviation: Array, scaled: bool) -> tuple[Array, Array]:
        _, here = self.error(y, gain, bias)
        h = 0.02 * deviation
        slope = (self.error(y, gain, bias + h)[1] - here) / h[:, None]
        left = self.truth - here
        bb, bl = (slope * slope).sum(1) + 1e-12, (slope * left).sum(1)
        if scaled:
            return np.zeros_like(gain), bl / bb
        tilt = (self.error(y, gain * 1.02, bias)[1] - here) / (0.02 * gain[:, None])
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
