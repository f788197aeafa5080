"""The public model's layers in NumPy: no runtime, nothing hidden, slow. For tests and for teaching.

Sums are made in float64 and rounded to float32 once, at the end. Where weights and inputs are integers and their sums
might pass 2^53, beyond which float64 is not exact, they are made in int64 instead, so integer layers come out exact.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from ai_edge_litert import schema_py_generated as schema

Array = np.ndarray[Any, Any]
Step = tuple[Callable[[Any, list[Any]], Array], Any, list[int], int]  # kernel, options, inputs, output

_DTYPES = {schema.TensorType.FLOAT32: "<f4", schema.TensorType.INT32: "<i4", schema.TensorType.INT64: "<i8"}
_NAMES = {value: name for name, value in vars(schema.BuiltinOperator).items() if not name.startswith("_")}
_EXACT = 2.0**53


class Reference:
    """A backend; see :class:`accelerator.backends.Backend`. The number of threads is NumPy's own affair."""

    precision = "float32"  # sums are made in float64 or in integers, and rounded once

    def __init__(self, model: str) -> None:
        content = Path(model).read_bytes()
        try:
            self._model = schema.ModelT.InitFromObj(schema.Model.GetRootAs(content))
            self._signatures = {s.signatureKey.decode(): s for s in self._model.signatureDefs}
        except (struct.error, TypeError, AttributeError, IndexError, UnicodeError):
            raise ValueError("the public model cannot be read") from None
        self._layers: list[tuple[Graph, Array, Array]] = []

    def open(self, layers: list[tuple[str, Array, Array]]) -> list[str]:
        self._layers = [self._open(*layer) for layer in layers]
        return []

    def _open(self, signature: str, source: Array, target: Array) -> tuple[Graph, Array, Array]:
        if signature not in self._signatures:
            raise ValueError(f"the model has no signature {signature!r}")
        try:
            graph = Graph(self._model, self._signatures[signature])
            shape = graph.run(np.zeros(source.shape, np.float32)).shape
        except (TypeError, AttributeError, IndexError, ZeroDivisionError):
            raise ValueError(f"layer {signature!r} cannot be read") from None
        if shape != target.shape:
            raise ValueError(f"layer {signature!r} gives the shape {list(shape)}, not {list(target.shape)}")
        return graph, source, target

    def run(self, layer: int) -> None:
        graph, source, target = self._layers[layer]
        np.copyto(target, graph.run(np.array(source)))


class Graph:
    """One subgraph, ready to run. Raises ``ValueError`` if it holds what the converter does not write."""

    def __init__(self, model: Any, signature: Any) -> None:
        graph = model.subgraphs[signature.subgraphIndex]
        self._input, self._output = signature.inputs[0].tensorIndex, signature.outputs[0].tensorIndex
        self._constants = {
            index: values
            for index, tensor in enumerate(graph.tensors)
            if (values := _constant(tensor, model.buffers[tensor.buffer].data)) is not None
        }
        self._steps = [_step(model, op) for op in graph.operators]

    def run(self, x: Array) -> Array:
        """The output, float32, for the input ``x``, float32. Raises ``ValueError`` if the shape does not fit."""
        values: dict[int, Array | None] = {-1: None, **self._constants, self._input: x}
        for kernel, options, inputs, output in self._steps:
            values[output] = kernel(options, [values[t] for t in inputs])
        result = values[self._output]
        assert result is not None
        return result


def _constant(tensor: Any, data: Any) -> Array | None:
    if data is None or not len(data):
        return None
    if tensor.type not in _DTYPES:
        raise ValueError("the layer's constants have a type that the backend numpy does not know")
    return np.frombuffer(np.asarray(data, np.uint8).tobytes(), _DTYPES[tensor.type]).reshape(tensor.shape)


def _step(model: Any, op: Any) -> Step:
    code = model.operatorCodes[op.opcodeIndex]
    kind = _NAMES.get(max(code.builtinCode, code.deprecatedBuiltinCode), "?")
    if kind not in KERNELS:
        raise ValueError(f"the backend numpy does not know {kind}")
    if getattr(op.builtinOptions, "fusedActivationFunction", 0) != 0:
        raise ValueError(f"the backend numpy knows no fused activation ({kind})")
    return KERNELS[kind], op.builtinOptions, [int(t) for t in op.inputs], int(op.outputs[0])


# Kernels: (options, inputs) -> output


def _conv(options: Any, inputs: list[Any]) -> Array:
    """CONV_2D: input [b, h, w, groups c], weights [groups m, kh, kw, c] -> [b, h', w', groups m]."""
    x, weights = inputs[:2]
    groups = x.shape[3] // weights.shape[3]
    return _convolution(options, inputs, weights.reshape(groups, -1, *weights.shape[1:]))


def _depthwise(options: Any, inputs: list[Any]) -> Array:
    """DEPTHWISE_CONV_2D: weights [1, kh, kw, c m]; channel i makes the outputs i m … i m + m - 1."""
    weights, channels = inputs[1], inputs[0].shape[3]
    _, height, width, filters = weights.shape
    each = weights.reshape(height, width, channels, filters // channels)
    return _convolution(options, inputs, each.transpose(2, 3, 0, 1)[..., None])


def _convolution(options: Any, inputs: list[Any], weights: Array) -> Array:
    """Input [b, h, w, groups c], weights [groups, m, kh, kw, c] -> [b, h', w', groups m]."""
    groups, filters, kernel_h, kernel_w, depth = weights.shape
    x, weights = _widened(inputs[0], weights, kernel_h * kernel_w * depth)
    same = options.padding == schema.Padding.SAME
    rows = _Axis(x.shape[1], kernel_h, options.strideH, options.dilationHFactor, same)
    columns = _Axis(x.shape[2], kernel_w, options.strideW, options.dilationWFactor, same)
    padded = np.pad(x, ((0, 0), rows.padding, columns.padding, (0, 0)))
    total = np.zeros((groups, x.shape[0] * rows.outputs * columns.outputs, filters), x.dtype)
    for i in range(kernel_h):
        for j in range(kernel_w):
            seen = padded[:, rows.seen(i), columns.seen(j)]  # by this tap, for every output position
            total += seen.reshape(-1, groups, depth).transpose(1, 0, 2) @ weights[:, :, i, j].transpose(0, 2, 1)
    y = total.transpose(1, 0, 2).reshape(x.shape[0], rows.outputs, columns.outputs, groups * filters)
    return _finish(y, inputs[2:])


class _Axis:
    """Where the taps of a convolution lie along one axis."""

    def __init__(self, size: int, kernel: int, stride: int, dilation: int, same: bool) -> None:
        reach = (kernel - 1) * dilation + 1
        self.outputs = -(-size // stride) if same else -(-(size - reach + 1) // stride)
        if self.outputs < 1:
            raise ValueError("the layer's input is smaller than its kernel")
        missing = max((self.outputs - 1) * stride + reach - size, 0) if same else 0
        self.padding = (missing // 2, missing - missing // 2)
        self._stride, self._dilation = stride, dilation

    def seen(self, tap: int) -> slice:
        first = tap * self._dilation
        return slice(first, first + (self.outputs - 1) * self._stride + 1, self._stride)


def _transpose_conv(options: Any, inputs: list[Any]) -> Array:
    """TRANSPOSE_CONV: output shape, weights [m, kh, kw, c], input [b, h, w, c] -> [b, h', w', m]."""
    shape, weights, x = inputs[:3]
    filters, kernel_h, kernel_w, depth = weights.shape
    x, weights = _widened(x, weights, kernel_h * kernel_w * depth)
    batch, height, width, _ = x.shape
    stride_h, stride_w = options.strideH, options.strideW
    full = ((height - 1) * stride_h + kernel_h, (width - 1) * stride_w + kernel_w)
    total = np.zeros((batch, *full, filters), x.dtype)
    for i in range(kernel_h):
        for j in range(kernel_w):
            rows = slice(i, i + (height - 1) * stride_h + 1, stride_h)
            columns = slice(j, j + (width - 1) * stride_w + 1, stride_w)
            total[:, rows, columns] += x @ weights[:, i, j].T
    same = options.padding == schema.Padding.SAME
    before = [max(f - int(wanted), 0) // 2 if same else 0 for f, wanted in zip(full, shape[1:3], strict=True)]
    y = np.zeros((batch, *shape[1:3], filters), x.dtype)
    part = total[:, before[0] :, before[1] :][:, : y.shape[1], : y.shape[2]]
    y[:, : part.shape[1], : part.shape[2]] = part
    if tuple(shape) != y.shape:
        raise ValueError("a transposed convolution's batch is fixed when it is converted")
    return _finish(y, inputs[3:])


def _dense(options: Any, inputs: list[Any]) -> Array:
    """FULLY_CONNECTED: weights [n, d]; the input's last dimension, or all but the first, have d values."""
    x, weights = _widened(inputs[0], inputs[1], inputs[1].shape[1])
    y = x.reshape(-1, weights.shape[1]) @ weights.T
    return _finish(y.reshape(*x.shape[:-1], -1) if options.keepNumDims else y, inputs[2:])


def _pad(options: Any, inputs: list[Any]) -> Array:
    return np.pad(inputs[0], inputs[1])


def _reshape(options: Any, inputs: list[Any]) -> Array:
    return np.asarray(inputs[0].reshape(inputs[1]))


def _concatenation(options: Any, inputs: list[Any]) -> Array:
    return np.concatenate(inputs, options.axis)


KERNELS: dict[str, Callable[[Any, list[Any]], Array]] = {
    "CONV_2D": _conv, "DEPTHWISE_CONV_2D": _depthwise, "TRANSPOSE_CONV": _transpose_conv, "FULLY_CONNECTED": _dense,
    "PAD": _pad, "RESHAPE": _reshape, "CONCATENATION": _concatenation,
}  # fmt: skip


def _widened(x: Array, weights: Array, terms: int) -> tuple[Array, Array]:
    """Input and weights in the type in which their sums of ``terms`` products are made."""
    x, weights = x.astype(np.float64), weights.astype(np.float64)
    largest = float(np.abs(x).max(initial=0)) * float(np.abs(weights).max(initial=0)) * terms
    exact = _EXACT <= largest < 2.0**63 and _whole(x) and _whole(weights)
    return (x.astype(np.int64), weights.astype(np.int64)) if exact else (x, weights)


def _whole(values: Array) -> bool:
    return bool((np.rint(values) == values).all())


def _finish(y: Array, bias: list[Any]) -> Array:
    """Add the bias, which the converter writes as zeros, and round once."""
    if bias and bias[0] is not None and bias[0].any():
        y = y + bias[0].astype(np.float64)
    with np.errstate(over="ignore"):  # what float32 cannot hold becomes infinite, as it does elsewhere
        return y.astype(np.float32)
