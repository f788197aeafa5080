"""TFLite ops in NumPy with their gradients, for batches: what an attacker needs to fit a network it holds.

An op is a function of its inputs and its options: ``(y, back)``, where ``back(dy)`` gives a gradient, or None, for each
input. Arrays are float32 and start with the batch, except constants. Only ops of ordinary feed-forward networks.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]
Back = Callable[[Array], list[Array | None]]

_RELU, _RELU_N1_TO_1, _RELU6 = 1, 2, 3
_RANGES = {_RELU: (0.0, np.inf), _RELU_N1_TO_1: (-1.0, 1.0), _RELU6: (0.0, 6.0)}
_SAME = 0


def conv(inputs: list[Array], options: Any) -> tuple[Array, Back]:
    """x [N, h, w, c], weights [n, kh, kw, c], bias [n] or nothing -> [N, h', w', n]."""
    x, weights = inputs[0], inputs[1]
    n, kh, kw, c = weights.shape
    pads, windows = _windows(x, (kh, kw), options)
    shape = windows.shape[:3]
    columns = np.ascontiguousarray(windows.transpose(0, 1, 2, 4, 5, 3)).reshape(-1, kh * kw * c)
    flat = weights.reshape(n, -1)
    y = (columns @ flat.T + _bias(inputs)).reshape(*shape, n)

    def back(dy: Array) -> list[Array | None]:
        d = dy.reshape(-1, n)
        parts = (d @ flat).reshape(*shape, kh, kw, c)
        dx = _gather(parts.transpose(0, 1, 2, 5, 3, 4), x.shape, pads, options)
        return [dx, (d.T @ columns).reshape(weights.shape), d.sum(axis=0)][: len(inputs)]

    return fused(y, back, options.fusedActivationFunction)


def depthwise(inputs: list[Array], options: Any) -> tuple[Array, Back]:
    """x [N, h, w, c], weights [1, kh, kw, c * multiplier], bias -> [N, h', w', c * multiplier]."""
    x, weights = inputs[0], inputs[1]
    _, kh, kw, out = weights.shape
    c = x.shape[3]
    pads, windows = _windows(x, (kh, kw), options)
    kernel = weights.reshape(kh, kw, c, out // c)
    y = np.einsum("nhwcij,ijcm->nhwcm", windows, kernel, optimize=True)
    shape = (*y.shape[:3], out)

    def back(dy: Array) -> list[Array | None]:
        d = dy.reshape(y.shape)
        dw = np.einsum("nhwcij,nhwcm->ijcm", windows, d, optimize=True).reshape(weights.shape)
        parts = np.einsum("nhwcm,ijcm->nhwcij", d, kernel, optimize=True)
        dx = _gather(parts, x.shape, pads, options)
        return [dx, dw, dy.reshape(-1, out).sum(axis=0)][: len(inputs)]

    return fused(y.reshape(shape) + _bias(inputs), back, options.fusedActivationFunction)


def dense(inputs: list[Array], options: Any) -> tuple[Array, Back]:
    """x [N, ..., d], weights [n, d], bias -> [N, n], or [N, ..., n] where dimensions are kept."""
    x, weights = inputs[0], inputs[1]
    flat = x.reshape(-1, weights.shape[1])
    y = flat @ weights.T + _bias(inputs)
    shape = (*x.shape[:-1], len(weights)) if options.keepNumDims else y.shape

    def back(dy: Array) -> list[Array | None]:
        d = dy.reshape(-1, len(weights))
        return [(d @ weights).reshape(x.shape), d.T @ flat, d.sum(axis=0)][: len(inputs)]

    return fused(y.reshape(shape), back, options.fusedActivationFunction)


def add(inputs: list[Array], options: Any) -> tuple[Array, Back]:
    a, b = inputs
    return fused(a + b, lambda dy: [_shrink(dy, a.shape), _shrink(dy, b.shape)], options.fusedActivationFunction)


def subtract(inputs: list[Array], options: Any) -> tuple[Array, Back]:
    a, b = inputs
    return fused(a - b, lambda dy: [_shrink(dy, a.shape), _shrink(-dy, b.shape)], options.fusedActivationFunction)


def multiply(inputs: list[Array], options: Any) -> tuple[Array, Back]:
    a, b = inputs

    def back(dy: Array) -> list[Array | None]:
        return [_shrink(dy * b, a.shape), _shrink(dy * a, b.shape)]

    return fused(a * b, back, options.fusedActivationFunction)


def relu(inputs: list[Array], options: Any) -> tuple[Array, Back]:
    return fused(inputs[0], lambda dy: [dy], _RELU)


def relu6(inputs: list[Array], options: Any) -> tuple[Array, Back]:
    return fused(inputs[0], lambda dy: [dy], _RELU6)


def logistic(inputs: list[Array], options: Any) -> tuple[Array, Back]:
    y = 1.0 / (1.0 + np.exp(-np.clip(inputs[0], -60.0, 60.0)))
    return y, lambda dy: [dy * y * (1.0 - y)]


def softmax(inputs: list[Array], options: Any) -> tuple[Array, Back]:
    beta = float(getattr(options, "beta", 1.0))
    e = np.exp(beta * (inputs[0] - inputs[0].max(axis=-1, keepdims=True)))
    y = e / e.sum(axis=-1, keepdims=True)
    return y, lambda dy: [beta * y * (dy - (dy * y).sum(axis=-1, keepdims=True))]


def max_pool(inputs: list[Array], options: Any) -> tuple[Array, Back]:
    x = inputs[0]
    pads, windows = _windows(x, (options.filterHeight, options.filterWidth), options, -np.inf)
    y = windows.max(axis=(4, 5))

    def back(dy: Array) -> list[Array | None]:
        hit = windows == y[..., None, None]
        parts = hit * (dy / hit.sum(axis=(4, 5)))[..., None, None]
        return [_gather(parts, x.shape, pads, options)]

    return fused(y, back, options.fusedActivationFunction)


def average_pool(inputs: list[Array], options: Any) -> tuple[Array, Back]:
    """Padding does not count."""
    x = inputs[0]
    size = options.filterHeight, options.filterWidth
    pads, windows = _windows(x, size, options)
    count = _windows(np.ones_like(x[:1, :, :, :1]), size, options)[1].sum(axis=(4, 5))

    def back(dy: Array) -> list[Array | None]:
        parts = np.broadcast_to((dy / count)[..., None, None], windows.shape)
        return [_gather(parts, x.shape, pads, options)]

    return fused(windows.sum(axis=(4, 5)) / count, back, options.fusedActivationFunction)


def mean(inputs: list[Array], options: Any) -> tuple[Array, Back]:
    x = inputs[0]
    axes = tuple(int(a) for a in np.atleast_1d(inputs[1]))
    y = x.mean(axis=axes, keepdims=True)
    count = x.size // y.size

    def back(dy: Array) -> list[Array | None]:
        return [np.broadcast_to(dy.reshape(y.shape) / count, x.shape), None]

    return (y if options.keepDims else y.squeeze(axes)), back


def reshape(inputs: list[Array], options: Any) -> tuple[Array, Back]:
    """The batch stays; the target is that of one sample. ``inputs[1]`` is the file's shape of the output."""
    x = inputs[0]
    shape = (len(x), *(int(d) for d in inputs[1][1:]))
    return x.reshape(shape), lambda dy: [dy.reshape(x.shape), None]


def pad(inputs: list[Array], options: Any) -> tuple[Array, Back]:
    amounts = inputs[1]
    inner = tuple(slice(a, d + a) for d, (a, _) in zip(inputs[0].shape, amounts.tolist(), strict=True))
    return np.pad(inputs[0], amounts.tolist()), lambda dy: [dy[inner], None]


def resize_bilinear(inputs: list[Array], options: Any) -> tuple[Array, Back]:
    x = inputs[0]
    rows, columns = (_interpolation(x.shape[k + 1], int(inputs[1][k]), options) for k in (0, 1))
    y = np.einsum("nhwc,ph,qw->npqc", x, rows, columns, optimize=True)
    return y, lambda dy: [np.einsum("npqc,ph,qw->nhwc", dy, rows, columns, optimize=True), None]


def concatenate(inputs: list[Array], options: Any) -> tuple[Array, Back]:
    axis = options.axis
    cuts = np.cumsum([a.shape[axis] for a in inputs])[:-1]
    y = np.concatenate(inputs, axis=axis)
    return fused(y, lambda dy: list(np.split(dy, cuts, axis=axis)), options.fusedActivationFunction)


OPS: dict[str, Callable[[list[Array], Any], tuple[Array, Back]]] = {
    "CONV_2D": conv, "DEPTHWISE_CONV_2D": depthwise, "FULLY_CONNECTED": dense, "ADD": add, "SUB": subtract,
    "MUL": multiply, "RELU": relu, "RELU6": relu6, "LOGISTIC": logistic, "SOFTMAX": softmax, "MAX_POOL_2D": max_pool,
    "AVERAGE_POOL_2D": average_pool, "MEAN": mean, "RESHAPE": reshape, "SQUEEZE": reshape, "PAD": pad,
    "RESIZE_BILINEAR": resize_bilinear, "CONCATENATION": concatenate,
}  # fmt: skip


def fused(y: Array, back: Back, activation: int) -> tuple[Array, Back]:
    """Put a fused activation behind an op."""
    if activation not in _RANGES:
        return y, back
    low, high = _RANGES[activation]
    passes = (y > low) & (y < high)
    return np.clip(y, low, high), lambda dy: back(dy * passes)


def _bias(inputs: list[Array]) -> Array | float:
    return inputs[2] if len(inputs) > 2 else 0.0


def _windows(x: Array, size: tuple[int, int], options: Any, fill: float = 0.0) -> tuple[list[tuple[int, int]], Array]:
    """(padding of height and width, view [N, h', w', c, kh, kw] of what each output position reads)."""
    steps = _steps(options)
    dilations = _dilations(options)
    pads = [(0, 0), (0, 0)]
    reach = [(k - 1) * d + 1 for k, d in zip(size, dilations, strict=True)]
    if options.padding == _SAME:
        for i in (0, 1):
            total = max((-(-x.shape[i + 1] // steps[i]) - 1) * steps[i] + reach[i] - x.shape[i + 1], 0)
            pads[i] = (total // 2, total - total // 2)
    padded = np.pad(x, [(0, 0), *pads, (0, 0)], constant_values=fill) if any(map(any, pads)) else x
    view = np.lib.stride_tricks.sliding_window_view(padded, reach, axis=(1, 2))
    return pads, view[:, :: steps[0], :: steps[1], :, :: dilations[0], :: dilations[1]]


def _gather(parts: Array, shape: tuple[int, ...], pads: list[tuple[int, int]], options: Any) -> Array:
    """The inverse of :func:`_windows` for gradients: sum windows [N, h', w', c, kh, kw] into [N, h, w, c]."""
    n, h, w, c = shape
    (top, bottom), (left, right) = pads
    dx = np.zeros((n, h + top + bottom, w + left + right, c), np.float32)
    (sh, sw), (dh, dw) = _steps(options), _dilations(options)
    height, width = parts.shape[1:3]
    for i in range(parts.shape[4]):
        for j in range(parts.shape[5]):
            rows = slice(i * dh, i * dh + (height - 1) * sh + 1, sh)
            columns = slice(j * dw, j * dw + (width - 1) * sw + 1, sw)
            dx[:, rows, columns] += parts[..., i, j]
    return dx[:, top : top + h, left : left + w]


def _steps(options: Any) -> tuple[int, int]:
    return options.strideH, options.strideW


def _dilations(options: Any) -> tuple[int, int]:
    return getattr(options, "dilationHFactor", 1), getattr(options, "dilationWFactor", 1)


def _shrink(gradient: Array, shape: tuple[int, ...]) -> Array:
    """Undo broadcasting."""
    extra = gradient.ndim - len(shape)
    gradient = gradient.sum(axis=tuple(range(extra))) if extra else gradient
    axes = tuple(i for i, d in enumerate(shape) if d == 1 and gradient.shape[i] != 1)
    return gradient.sum(axis=axes, keepdims=True) if axes else gradient


def _interpolation(size: int, target: int, options: Any) -> Array:
    """The matrix [target, size] of bilinear resizing along one axis."""
    at = np.arange(target, dtype=np.float64)
    if options.halfPixelCenters:
        at = np.maximum((at + 0.5) * size / target - 0.5, 0.0)
    elif options.alignCorners and target > 1:
        at = at * (size - 1) / (target - 1)
    else:
        at = at * size / target
    low = np.minimum(np.floor(at).astype(int), size - 1)
    high = np.minimum(low + 1, size - 1)
    out = np.zeros((target, size))
    out[np.arange(target), low] += 1.0 - (at - low)
    out[np.arange(target), high] += at - low
    return out.astype(np.float32)
