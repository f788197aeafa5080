"""A16: peel layer by layer, by regression from the first input, which is known.

    x'_2 = act(W_1 * x_1 + b_1) + r_2, x_1 known:   (W_1, b_1) by least squares over all positions of all inferences
    x^_2 = act(W^_1 * x_1 + b^_1), and so on with x'_3 on x^_2, ...

Masks are independent of the activations, so they cancel in the sums: with N positions in all and d weights per filter,
features come back to about sigma sqrt(d / N) of their size. No published weight is needed; what is found are the
layers' true functions (weights and biases), in the order in which the next layer is sent its channels, so a permutation
of channels does not matter. Inputs that are repeated count like more inferences. Where the first layer's input crosses
masked, chosen inputs take its place.

The regression knows the activation: on the set of positions where the current guess lies inside the clamp, the model is
linear, and solving it there is one Gauss-Newton step. Sources: ordinary least squares; Newton's method for piecewise
linear regression. Knowledge: a transcript.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from shadownet.attacks.view import AdversaryView, Geometry, PublicLayer
from shadownet.wire.errors import InputError

Array = np.ndarray[Any, Any]

CLAMPS = ((0.0, math.inf), (0.0, 6.0), (-math.inf, math.inf))  # ReLU, ReLU6, nothing
STEPS = 12
RIDGE = 1e-6
BLOCK = 1 << 15  # positions that are looked at together
SAMPLE = 1 << 16  # positions on which the clamp is chosen


@dataclass(frozen=True, eq=False)
class Peeled:
    """One layer's function: ``weights`` float64 [n, d] and ``bias`` [n], then a clamp to ``low`` and ``high``.

    ``residual`` is the root mean square of what it leaves unexplained: the masks' size, if all went well.
    """

    geometry: Geometry
    weights: Array
    bias: Array
    low: float
    high: float
    residual: float

    def __call__(self, x: Array) -> Array:
        """The next layer's input for this layer's input [N, height, width, channels] or [N, channels], float32."""
        found = _linear(patches(x, self.geometry), self.weights, self.bias)
        return np.clip(found, self.low, self.high).astype(np.float32)


def attack(view: AdversaryView, chain: Sequence[PublicLayer]) -> list[Peeled]:
    """Peel the layers ``chain``, each feeding the next; the first's input is known: chosen, or it crosses unmasked.

    Returns the functions of all but the last: chained, they give the masked inputs of ``chain[1:]`` for any first
    input. Raises ``InputError`` without a transcript, or where the first input is not known.
    """
    sent = [view.sent(layer) for layer in chain]
    x = first_input(view, chain[0])
    if x is None or not all(sent) or len({len(messages) for messages in sent}) != 1:
        raise InputError("peeling starts at a layer whose input is known, and needs a transcript")
    found = []
    for layer, following in zip(chain, sent[1:], strict=False):
        found.append(fit(x, np.concatenate(following), layer.geometry))
        x = found[-1](x)
    return found


def first_input(view: AdversaryView, layer: PublicLayer) -> Array | None:
    """The inputs [T, ...] of the first layer: as chosen, as they cross unmasked, or None."""
    shape = (layer.input_shape[0] // layer.digits, *layer.input_shape[1:])
    if view.inputs is not None and view.inputs[0].size == math.prod(shape):
        return view.inputs.reshape(-1, *shape[1:]).astype(np.float32)
    sent = [] if layer.masked else view.sent(layer)
    return np.concatenate(sent) if sent else None


def chain(view: AdversaryView, length: int) -> list[PublicLayer]:
    """The first layers of the file, at most ``length``, as long as each may feed the next: sizes and channels fit."""
    found = list(view.layers[:1])
    for layer, following in zip(view.layers, view.layers[1:length], strict=False):
        x = np.empty((1, *layer.input_shape[1:]), np.bool_)
        positions = patches(x, layer.geometry).shape[1:-1]
        if following.input_shape[1:] != (*positions, layer.filters):
            break
        found.append(following)
    return found


def fit(x: Array, y: Array, geometry: Geometry) -> Peeled:
    """The layer that turns inputs [N, ..., c] into noisy outputs ``y`` [N, ..., n]; the clamp that fits a part best."""
    part = max(1, -(-SAMPLE // max(1, math.prod(y.shape[1:-1]))))
    candidates = [_fit(x[:part], y[:part], geometry, low, high) for low, high in CLAMPS]
    # What is never clamped from above fits with and without.
    best = min(candidates, key=lambda peeled: peeled.residual * (1.0 + 1e-4 * math.isfinite(peeled.high)))
    return best if part >= len(x) else _fit(x, y, geometry, best.low, best.high)


def patches(x: Array, geometry: Geometry) -> Array:
    """What a filter sees at each position: [N, height, width, c] -> [N, height, width, d]; 1x1 layers see x."""
    if geometry.kernel == (1, 1) and geometry.stride == (1, 1):
        return x
    pads = [_padding(size, k, s, d, geometry.padding) for size, k, s, d in
            zip(x.shape[1:3], geometry.kernel, geometry.stride, geometry.dilation, strict=True)]  # fmt: skip
    x = np.pad(x, geometry.paddings or ((0, 0),) * 4)
    if geometry.padding == "SAME":
        x = np.pad(x, ((0, 0), *pads, (0, 0)))
    (kh, kw), (sh, sw), (dh, dw) = geometry.kernel, geometry.stride, geometry.dilation
    height = (x.shape[1] - dh * (kh - 1) - 1) // sh + 1
    width = (x.shape[2] - dw * (kw - 1) - 1) // sw + 1
    parts = [
        x[:, dh * i : dh * i + sh * (height - 1) + 1 : sh, dw * j : dw * j + sw * (width - 1) + 1 : sw]
        for i in range(kh)
        for j in range(kw)
    ]
    return np.concatenate(parts, axis=-1)


def _padding(size: int, kernel: int, stride: int, dilation: int, kind: str) -> tuple[int, int]:
    """TFLite's SAME: the surplus goes to the end."""
    missing = (math.ceil(size / stride) - 1) * stride + dilation * (kernel - 1) + 1 - size
    before = max(missing, 0) // 2
    return before, max(missing, 0) - before


def _linear(seen: Array, weights: Array, bias: Array) -> Array:
    out: Array = seen @ weights.T.astype(seen.dtype) + bias.astype(seen.dtype)
    return out


def _fit(x: Array, y: Array, geometry: Geometry, low: float, high: float) -> Peeled:
    d = geometry.kernel[0] * geometry.kernel[1] * x.shape[-1]
    n = y.shape[-1]
    solution = _solve(x, y, geometry, None, low, high, d, n)
    if math.isfinite(low):
        solution[:, :d] *= 2.0  # a clamp at the middle halves slopes
        for _ in range(STEPS):
            before = solution
            solution = _solve(x, y, geometry, solution, low, high, d, n)
            if np.abs(solution - before).max() < 1e-6 * np.abs(solution).max():
                break
    made = Peeled(geometry, solution[:, :d], solution[:, d], low, high, 0.0)
    error = np.mean([np.square(np.clip(_linear(a, made.weights, made.bias), low, high) - b).mean()
                     for a, b in _blocks(x, y, geometry)])  # fmt: skip
    return Peeled(geometry, made.weights, made.bias, low, high, math.sqrt(float(error)))


def _solve(
    x: Array, y: Array, geometry: Geometry, guess: Array | None, low: float, high: float, d: int, n: int
) -> Array:
    """Least squares [n, d + 1] over the positions where ``guess`` lies between the clamps; everywhere without one."""
    gram, cross = np.zeros((1 if guess is None else n, d + 1, d + 1)), np.zeros((n, d + 1))
    for seen, wanted in _blocks(x, y, geometry):
        a = np.concatenate([seen, np.ones((len(seen), 1), seen.dtype)], axis=1)
        if guess is None:
            gram[0] += a.T @ a
            cross += wanted.T @ a
            continue
        value = _linear(seen, guess[:, :d], guess[:, d])
        inside = (value > low) & (value < high)
        for k in range(n):
            chosen = a[inside[:, k]]
            gram[k] += chosen.T @ chosen
            cross[k] += wanted[inside[:, k], k] @ chosen
    gram = np.broadcast_to(gram, (n, d + 1, d + 1))
    ridge = RIDGE * np.maximum(np.trace(gram, axis1=1, axis2=2) / (d + 1), 1e-12)
    out: Array = np.linalg.solve(gram + ridge[:, None, None] * np.eye(d + 1), cross[:, :, None])[:, :, 0]
    return out


def _blocks(x: Array, y: Array, geometry: Geometry) -> Iterator[tuple[Array, Array]]:
    """(patches [b, d], outputs [b, n]) a few inferences at a time."""
    positions = max(1, math.prod(y.shape[1:-1]))
    step = max(1, BLOCK // positions)
    for at in range(0, len(x), step):
        seen = patches(x[at : at + step], geometry)
        yield seen.reshape(-1, seen.shape[-1]), y[at : at + step].reshape(-1, y.shape[-1])
