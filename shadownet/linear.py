"""Linear ops: recognising them, and their geometry, weights and TFLite form."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from ai_edge_litert import schema_py_generated as schema

from shadownet.analysis import Shapes
from shadownet.epilogue import Activation, Epilogue
from shadownet.graph import Op, Subgraph, SubgraphWriter

Array = np.ndarray[Any, Any]

# LiteRT takes no other fused activation in these ops, or takes it and ignores it.
ACTIVATIONS = {0: "NONE", 1: "RELU", 2: "RELU_N1_TO_1", 3: "RELU6"}
OPTIONS = {
    "CONV_2D": schema.Conv2DOptionsT,
    "DEPTHWISE_CONV_2D": schema.DepthwiseConv2DOptionsT,
    "FULLY_CONNECTED": schema.FullyConnectedOptionsT,
    "TRANSPOSE_CONV": schema.TransposeConvOptionsT,
    "BATCH_MATMUL": schema.BatchMatMulOptionsT,
}
DATA = {"TRANSPOSE_CONV": 2, "CONV_2D": 0, "DEPTHWISE_CONV_2D": 0, "FULLY_CONNECTED": 0, "BATCH_MATMUL": 0}


@dataclass(frozen=True, eq=False)
class LinearOp:
    """A linear op that may go out. Tensor ids are the subgraph's; ``pad`` is an absorbed PAD, or None.

    ``epilogue`` is what its kernel does after restoring; ``result`` the tensor that comes out behind that.

    ``filters`` is n, the output channels; ``groups`` is 1 except for grouped and depthwise convolutions;
    ``depth`` is d, the weights of one filter; ``positions`` the output positions (batch included).
    """

    op: Op
    kind: str
    input: int
    output: int
    weight: int
    bias: int
    activation: str
    weight_shape: tuple[int, ...]
    filters: int
    groups: int
    depth: int
    input_shape: tuple[int, ...]
    output_shape: tuple[int, ...]
    public_input: bool
    epilogue: Epilogue
    result: int
    pad: Op | None = None
    paddings: tuple[tuple[int, int], ...] = ()

    @property
    def op_input(self) -> int:
        """The op's own data input, which :attr:`input` is not when a PAD is absorbed."""
        return self.op.inputs[DATA[self.kind]]

    def reads(self) -> tuple[int, ...]:
        """Tensors that must be there before it runs."""
        return (self.input,) if self.epilogue.residual < 0 else (self.input, self.epilogue.residual)

    @property
    def depthwise(self) -> bool:
        return self.kind == "DEPTHWISE_CONV_2D"

    @property
    def positions(self) -> int:
        return math.prod(self.output_shape[:-1])

    @property
    def macs(self) -> int:
        """Multiply-adds of one run."""
        if self.kind == "TRANSPOSE_CONV":
            return math.prod(self.input_shape) * math.prod(self.weight_shape[:3])
        return self.positions * self.filters * self.depth

    def geometry(self) -> dict[str, Any]:
        """Where its outputs find their inputs, as ``enclave.integrity.Public`` reads it."""
        options = self.op.options
        dense = self.kind in ("FULLY_CONNECTED", "BATCH_MATMUL")
        kernel, stride, dilation = (1, 1), (1, 1), (1, 1)
        if not dense:
            kernel, stride = (self.weight_shape[1], self.weight_shape[2]), (options.strideH, options.strideW)
        if not dense and self.kind != "TRANSPOSE_CONV":
            dilation = options.dilationHFactor, options.dilationWFactor
        return {
            "kind": self.kind, "groups": self.groups, "kernel": list(kernel), "stride": list(stride),
            "dilation": list(dilation), "same": not dense and options.padding == schema.Padding.SAME,
            "paddings": [list(p) for p in self.paddings[1:3]] if self.pad else [[0, 0], [0, 0]],
        }  # fmt: skip

    def with_pad(self, pad: Op, graph: Subgraph, shapes: Shapes) -> LinearOp:
        """Absorb ``pad`` if it pads height and width of a convolution's input with zeros."""
        if self.kind not in ("CONV_2D", "DEPTHWISE_CONV_2D") or pad.kind != "PAD" or not shapes.static[pad.inputs[0]]:
            return self
        amounts = graph.tensors[pad.input(1)]
        if not amounts.is_constant or amounts.dtype not in ("int32", "int64") or amounts.shape != (4, 2):
            return self
        values = amounts.values()
        if values[0].any() or values[3].any() or (values < 0).any():
            return self
        paddings = tuple((int(a), int(b)) for a, b in values)
        source = pad.inputs[0]
        return replace(self, pad=pad, paddings=paddings, input=source, input_shape=shapes.shape[source])

    def without_pad(self) -> LinearOp:
        """The op alone, as if its PAD had stayed where it was."""
        padded = tuple(d + a + b for d, (a, b) in zip(self.input_shape, self.paddings, strict=True)) if self.pad else ()
        return replace(self, pad=None, paddings=(), input=self.op_input, input_shape=padded or self.input_shape)

    def stacked(self, count: int) -> LinearOp:
        """The op for ``count`` times the batch: what is stacked along the first dimension stays apart."""
        inputs, outputs = ((count * shape[0], *shape[1:]) for shape in (self.input_shape, self.output_shape))
        return replace(self, input_shape=inputs, output_shape=outputs)

    def rows(self, weights: Array) -> Array:
        """Weights in TFLite layout -> [groups, filters of a group, depth], one filter a row."""
        if self.kind == "DEPTHWISE_CONV_2D":
            _, height, width, out = weights.shape
            return weights.reshape(height * width, self.groups, out // self.groups).transpose(1, 2, 0)
        if self.kind == "BATCH_MATMUL":
            matrix = weights.reshape(weights.shape[-2:])
            return (matrix if self.op.options.adjY else matrix.T)[None]
        return weights.reshape(self.groups, -1, self.depth)

    def weights_from(self, rows: Array) -> Array:
        """The inverse of :meth:`rows` for any number of filters; BATCH_MATMUL becomes a dense layer's [n, d]."""
        if self.kind == "DEPTHWISE_CONV_2D":
            height, width = self.weight_shape[1:3]
            groups, multiplier, _ = rows.shape
            return np.ascontiguousarray(rows.transpose(2, 0, 1)).reshape(1, height, width, groups * multiplier)
        flat = np.ascontiguousarray(rows).reshape(-1, self.depth)
        if self.kind in ("FULLY_CONNECTED", "BATCH_MATMUL"):
            return flat
        return flat.reshape(-1, *self.weight_shape[1:])

    def emit(self, graph: SubgraphWriter, weights: Array) -> tuple[int, int]:
        """Write PAD (if absorbed) and the op with ``weights``, no bias, no activation: (input, output) tensors."""
        x, source = self.emit_input(graph)
        options = self.op.options
        if self.kind in ("CONV_2D", "DEPTHWISE_CONV_2D"):
            y = self.emit_convolution(graph, source, weights, self.output_shape[2], options.strideW)
        else:
            y = self._emit_other(graph, source, weights)
        graph.interface([x], [y])
        return x, y

    def emit_factored(self, graph: SubgraphWriter, left: Array, right: Array) -> int:
        """Write the op with weights left @ right, rows [n, r] and [r, depth], as two ops; the output tensor."""
        x, source = self.emit_input(graph)
        if self.kind == "CONV_2D":
            options = self.op.options
            inner = right.reshape(-1, *self.weight_shape[1:])
            middle = self.emit_convolution(graph, source, inner, self.output_shape[2], options.strideW)
        else:
            middle = self._emit_other(graph, source, right)
        zeros = graph.tensor("zero_bias", (len(left),), np.zeros(len(left), np.float32))
        y = graph.tensor("y", self.output_shape)
        w = graph.tensor("left", left.shape, left.astype(np.float32))
        keep = len(self.output_shape) != 2
        plain = schema.FullyConnectedOptionsT(keepNumDims=keep)
        graph.op("FULLY_CONNECTED", [middle, w, zeros], [y], plain, version=5 if keep else 1)
        graph.interface([x], [y])
        return y

    def emit_input(self, graph: SubgraphWriter) -> tuple[int, int]:
        """Write the input and PAD, if one is absorbed: (input, what the op reads)."""
        x = graph.tensor("x", self.input_shape)
        if self.pad is None:
            return x, x
        amounts = graph.tensor("paddings", (4, 2), np.array(self.paddings, np.int32), "int32")
        padded = tuple(d + a + b for d, (a, b) in zip(self.input_shape, self.paddings, strict=True))
        source = graph.tensor("padded", padded)
        graph.op("PAD", [x, amounts], [source], schema.PadOptionsT())
        return x, source

    def emit_convolution(self, graph: SubgraphWriter, source: int, weights: Array, width: int, stride: int) -> int:
        """Write a convolution with ``weights`` (TFLite layout), output width ``width`` and horizontal stride."""
        options = self.op.options
        channels = weights.shape[-1] if self.depthwise else weights.shape[0]
        w = graph.tensor("weights", weights.shape, weights.astype(np.float32))
        y = graph.tensor("y", (*self.output_shape[:2], width, channels))
        zeros = graph.tensor("zero_bias", (channels,), np.zeros(channels, np.float32))
        dilations = options.dilationWFactor, options.dilationHFactor
        if self.depthwise:
            plain = schema.DepthwiseConv2DOptionsT(
                options.padding, stride, options.strideH, channels // self.groups, 0, *dilations
            )
            graph.op("DEPTHWISE_CONV_2D", [source, w, zeros], [y], plain, version=2)
        else:
            plain = schema.Conv2DOptionsT(options.padding, stride, options.strideH, 0, *dilations)
            graph.op("CONV_2D", [source, w, zeros], [y], plain, version=2)
        return y

    def _emit_other(self, graph: SubgraphWriter, source: int, weights: Array) -> int:
        channels, options = weights.shape[0], self.op.options
        w = graph.tensor("weights", weights.shape, weights.astype(np.float32))
        y = graph.tensor("y", (*self.output_shape[:-1], channels))
        if self.kind == "TRANSPOSE_CONV":
            shape = graph.tensor("shape", (4,), np.array((*self.output_shape[:-1], channels), np.int32), "int32")
            plain = schema.TransposeConvOptionsT(options.padding, options.strideW, options.strideH)
            graph.op("TRANSPOSE_CONV", [shape, w, source], [y], plain)
            return y
        zeros = graph.tensor("zero_bias", (channels,), np.zeros(channels, np.float32))
        keep = self.kind == "BATCH_MATMUL" or bool(options.keepNumDims)
        plain = schema.FullyConnectedOptionsT(keepNumDims=keep)
        graph.op("FULLY_CONNECTED", [source, w, zeros], [y], plain, version=5 if keep else 1)
        return y


def recognise(op: Op, graph: Subgraph, shapes: Shapes, folded: set[int], public: set[int]) -> LinearOp | str:
    """Return the linear op that ``op`` is, or the reason why it stays in the enclave."""
    if op.kind not in OPTIONS:
        return "not linear in constant weights"
    position = {"TRANSPOSE_CONV": (2, 1, 3), "BATCH_MATMUL": (0, 1, 2)}.get(op.kind, (0, 1, 2))
    x, w, b = (op.input(p) for p in position)
    if x < 0 or w < 0 or len(op.outputs) != 1:
        return "an unusual form of the op"
    y = op.outputs[0]
    reason = _obstacle(op, graph, shapes, folded, (x, w, b, y))
    if reason:
        return reason
    options, weight_shape, in_shape, out_shape = op.options, shapes.shape[w], shapes.shape[x], shapes.shape[y]
    n = out_shape[-1] if out_shape else 0
    groups, depth = 1, 0
    if op.kind == "CONV_2D" and len(weight_shape) == 4 == len(in_shape):
        groups, depth = in_shape[3] // max(weight_shape[3], 1), math.prod(weight_shape[1:])
    elif op.kind == "DEPTHWISE_CONV_2D" and len(weight_shape) == 4 == len(in_shape):
        groups, depth = in_shape[3], weight_shape[1] * weight_shape[2]
    elif op.kind == "TRANSPOSE_CONV" and len(weight_shape) == 4 == len(in_shape):
        depth = math.prod(weight_shape[1:])
    elif op.kind == "FULLY_CONNECTED" and len(weight_shape) == 2:
        depth = weight_shape[1]
    elif op.kind == "BATCH_MATMUL" and math.prod(weight_shape[:-2]) == 1 and len(weight_shape) <= len(in_shape) >= 2:
        depth = in_shape[-1]
    if (
        not (depth and groups and n)
        or n % groups
        or math.prod(weight_shape) != n * depth
        or 0 in (*in_shape, *out_shape)
    ):
        return "an unusual form of the op"
    activation = getattr(options, "fusedActivationFunction", 0)
    if activation not in ACTIVATIONS:
        return "its fused activation is not supported"
    name = ACTIVATIONS[activation]
    plain = Epilogue(Activation.named(name))
    shapes_ = (weight_shape, n, groups, depth, in_shape, out_shape)
    return LinearOp(op, op.kind, x, y, w, b, name, *shapes_, x in public, plain, y)


def _obstacle(op: Op, graph: Subgraph, shapes: Shapes, folded: set[int], ids: tuple[int, int, int, int]) -> str:
    x, w, b, y = ids
    tensors = graph.tensors
    if tensors[x].is_constant or x in folded:
        return "its input is a constant"
    if not tensors[w].is_constant and w not in folded:
        return "its weights are computed at run time"
    if b >= 0 and not tensors[b].is_constant and b not in folded:
        return "its bias is computed at run time"
    if not shapes.static[x] or not shapes.static[y]:
        return "its shape is known only at run time"
    if tensors[w].raw.sparsity is not None:
        return "its weights are stored sparse"
    options = op.options
    if not isinstance(options, OPTIONS[op.kind]):
        return "an unusual form of the op"
    if op.kind == "FULLY_CONNECTED" and options.weightsFormat != 0:
        return "its weights are stored shuffled"
    if op.kind == "BATCH_MATMUL" and options.adjX:
        return "its left operand is transposed"
    return ""
