"""Small ``.tflite`` models, op by op. Not a test: material for tests.

    net = Model().net()
    x = net.input(1, 8, 8, 3)
    net.output(net.dense(net.mean(net.conv(x, 5, stride=2, activation="RELU")), 4))
    content = net.model.content()

Every method of :class:`Net` adds one op and returns the tensor that it computes. Weights are drawn from the model's
seed, scaled so that activations stay near 1. ``kernel``, ``stride`` and ``dilation`` are one number or (height, width).
"""

from __future__ import annotations

from typing import Any

import numpy as np
from ai_edge_litert import schema_py_generated as schema
from ai_edge_litert.interpreter import Interpreter, OpResolverType

from shadownet.analysis import Shapes
from shadownet.graph import ModelWriter, parse
from shadownet.partition import Partition, partition

ACTIVATIONS = {"NONE": 0, "RELU": 1, "RELU_N1_TO_1": 2, "RELU6": 3, "TANH": 4, "SIGN_BIT": 5}
PADDINGS = {"SAME": 0, "VALID": 1}


def pair(value: Any) -> tuple[int, int]:
    """(height, width) of a number that stands for both, or of a pair."""
    return (value, value) if isinstance(value, int) else (int(value[0]), int(value[1]))


class Model:
    """A model under construction, with one or more subgraphs."""

    def __init__(self, seed: int = 0) -> None:
        self.writer = ModelWriter("a model of the tests")
        self.rng = np.random.default_rng(seed)

    def net(self, name: str = "main") -> Net:
        return Net(self, name)

    def content(self) -> bytes:
        return self.writer.finish()


class Net:
    """One subgraph under construction. ``shapes`` has the shape of every tensor."""

    def __init__(self, model: Model, name: str) -> None:
        self.model, self.writer = model, model.writer.subgraph(name)
        self.shapes: dict[int, tuple[int, ...]] = {}
        self.inputs: list[int] = []
        self.names: dict[int, str] = {}

    # Tensors and the interface

    def tensor(self, shape: tuple[int, ...], name: str = "", dtype: str = "float32", data: Any = None) -> int:
        name = name or f"t{len(self.shapes)}"
        index = self.writer.tensor(name, tuple(shape), data, dtype)
        self.shapes[index], self.names[index] = tuple(shape), name
        return index

    def input(self, *shape: int, name: str = "", dtype: str = "float32") -> int:
        index = self.tensor(shape, name or f"in{len(self.inputs)}", dtype)
        self.inputs.append(index)
        return index

    def constant(self, values: Any) -> int:
        array = np.ascontiguousarray(values)
        return self.tensor(np.shape(values), "", array.dtype.name, array)

    def weights(self, shape: tuple[int, ...], depth: int) -> np.ndarray:
        """Random weights for filters of ``depth`` values."""
        return (self.model.rng.normal(0, 1, shape) / np.sqrt(depth)).astype(np.float32)

    def output(self, *tensors: int, signature: str = "") -> Net:
        """Close the interface; ``signature`` names it, too, with the tensors' own names."""
        self.writer.interface(self.inputs, list(tensors))
        if signature:
            sides = [{self.names[t]: t for t in side} for side in (self.inputs, tensors)]
            self.model.writer.signature(signature, self.writer, *sides)
        return self

    # Linear ops

    def conv(
        self, x: int, filters: int, kernel: Any = 3, stride: Any = 1, dilation: Any = 1, padding: str = "SAME",
        activation: str = "NONE", groups: int = 1, bias: bool = True, weights: int | None = None,
    ) -> int:  # fmt: skip
        """CONV_2D, grouped if ``groups`` is not 1. ``weights`` may be a tensor that is there already."""
        (kh, kw), (sh, sw), (dh, dw) = pair(kernel), pair(stride), pair(dilation)
        batch, height, width, channels = self.shapes[x]
        shape = (filters, kh, kw, channels // groups)
        w = self.constant(self.weights(shape, kh * kw * shape[3])) if weights is None else weights
        out = (batch, window(height, kh, sh, dh, padding), window(width, kw, sw, dw, padding), filters)
        options = schema.Conv2DOptionsT(PADDINGS[padding], sw, sh, ACTIVATIONS[activation], dw, dh)
        return self._op("CONV_2D", [x, w, *self._bias(filters, bias)], out, options, version=2)

    def depthwise(
        self, x: int, multiplier: int = 1, kernel: Any = 3, stride: Any = 1, dilation: Any = 1,
        padding: str = "SAME", activation: str = "NONE", bias: bool = True,
    ) -> int:  # fmt: skip
        (kh, kw), (sh, sw), (dh, dw) = pair(kernel), pair(stride), pair(dilation)
        batch, height, width, channels = self.shapes[x]
        n = channels * multiplier
        w = self.constant(self.weights((1, kh, kw, n), kh * kw))
        out = (batch, window(height, kh, sh, dh, padding), window(width, kw, sw, dw, padding), n)
        options = schema.DepthwiseConv2DOptionsT(PADDINGS[padding], sw, sh, multiplier, ACTIVATIONS[activation], dw, dh)
        return self._op("DEPTHWISE_CONV_2D", [x, w, *self._bias(n, bias)], out, options, version=2)

    def dense(
        self, x: int, units: int, activation: str = "NONE", bias: bool = True, keep: bool = False,
        weights: int | None = None, depth: int = 0,
    ) -> int:  # fmt: skip
        """FULLY_CONNECTED over rows of ``depth`` values, by default the size of the last dimension."""
        shape = self.shapes[x]
        depth = depth or shape[-1]
        w = self.constant(self.weights((units, depth), depth)) if weights is None else weights
        out = (*shape[:-1], units) if keep else (int(np.prod(shape)) // depth, units)
        options = schema.FullyConnectedOptionsT(ACTIVATIONS[activation], keepNumDims=keep)
        inputs = [x, w, *(self._bias(units, bias) or [-1])]
        return self._op("FULLY_CONNECTED", inputs, out, options, version=5 if keep else 1)

    def transpose_conv(
        self, x: int, filters: int, kernel: Any = 3, stride: Any = 2, padding: str = "SAME", activation: str = "NONE",
        bias: bool = True,
    ) -> int:  # fmt: skip
        (kh, kw), (sh, sw) = pair(kernel), pair(stride)
        batch, height, width, channels = self.shapes[x]
        w = self.constant(self.weights((filters, kh, kw, channels), kh * kw * channels))
        size = [s * d if padding == "SAME" else s * (d - 1) + k for s, d, k in ((sh, height, kh), (sw, width, kw))]
        out = (batch, *size, filters)
        options = schema.TransposeConvOptionsT(PADDINGS[padding], sw, sh, ACTIVATIONS[activation])
        inputs = [self.constant(np.array(out, np.int32)), w, x, *self._bias(filters, bias)]
        return self._op("TRANSPOSE_CONV", inputs, out, options, version=4 if activation != "NONE" else 3 if bias else 1)

    def matmul(self, x: int, units: int, adj_y: bool = False, rank: int = 2) -> int:
        """BATCH_MATMUL with a constant right side of ``rank`` dimensions (the leading ones 1)."""
        depth = self.shapes[x][-1]
        shape = (*[1] * (rank - 2), *((units, depth) if adj_y else (depth, units)))
        w = self.constant(self.weights(shape, depth))
        options = schema.BatchMatMulOptionsT(adjY=adj_y)
        return self._op("BATCH_MATMUL", [x, w], (*self.shapes[x][:-1], units), options)

    def _bias(self, n: int, wanted: bool) -> list[int]:
        return [self.constant(self.model.rng.normal(0, 0.5, n).astype(np.float32))] if wanted else []

    # Everything else

    def pad(self, x: int, *amounts: tuple[int, int]) -> int:
        out = tuple(d + a + b for d, (a, b) in zip(self.shapes[x], amounts, strict=True))
        return self._op("PAD", [x, self.constant(np.array(amounts, np.int32))], out, schema.PadOptionsT())

    def unary(self, kind: str, x: int) -> int:
        """RELU, TANH, ABS, NEG and the like."""
        return self._op(kind, [x], self.shapes[x])

    def binary(self, kind: str, a: int, b: int, activation: str = "NONE") -> int:
        """ADD, SUB or MUL, for instance a residual branch."""
        options = getattr(schema, f"{kind.title()}OptionsT")(fusedActivationFunction=ACTIVATIONS[activation])
        return self._op(kind, [a, b], np.broadcast_shapes(self.shapes[a], self.shapes[b]), options)

    def concat(self, *tensors: int) -> int:
        """Along the last dimension."""
        shape = self.shapes[tensors[0]]
        out = (*shape[:-1], sum(self.shapes[t][-1] for t in tensors))
        return self._op("CONCATENATION", list(tensors), out, schema.ConcatenationOptionsT(len(shape) - 1))

    def max_pool(self, x: int, size: int = 2) -> int:
        batch, height, width, channels = self.shapes[x]
        options = schema.Pool2DOptionsT(1, size, size, size, size)
        return self._op("MAX_POOL_2D", [x], (batch, height // size, width // size, channels), options)

    def mean(self, x: int) -> int:
        """Over height and width."""
        batch, _, _, channels = self.shapes[x]
        return self._op("MEAN", [x, self.constant(np.array([1, 2], np.int32))], (batch, channels),
                        schema.ReducerOptionsT(keepDims=False))  # fmt: skip

    def reshape(self, x: int, *shape: int) -> int:
        """``shape`` may hold a -1, which leaves the batch open."""
        known = -int(np.prod(shape))
        out = tuple(int(np.prod(self.shapes[x])) // known if d < 0 else d for d in shape)
        return self._op("RESHAPE", [x, self.constant(np.array(shape, np.int32))], out, schema.ReshapeOptionsT(shape))

    def softmax(self, x: int) -> int:
        return self._op("SOFTMAX", [x], self.shapes[x], schema.SoftmaxOptionsT(1.0))

    def dequantize(self, values: np.ndarray) -> int:
        """A float32 tensor that DEQUANTIZE computes from a float16 constant."""
        half = self.constant(values.astype(np.float16))
        return self._op("DEQUANTIZE", [half], values.shape, schema.DequantizeOptionsT(), version=3)

    def _op(self, kind: str, inputs: list[int], shape: Any, options: Any = None, version: int = 1) -> int:
        y = self.tensor(tuple(int(d) for d in shape))
        self.writer.op(kind, inputs, [y], options, version)
        return y


def window(size: int, kernel: int, stride: int, dilation: int, padding: str) -> int:
    """Output size of a convolution along one axis."""
    reach = (kernel - 1) * dilation + 1
    return -(-size // stride) if padding == "SAME" else -(-(size - reach + 1) // stride)


def litert(content: bytes, inputs: list[np.ndarray], **kernels: Any) -> list[np.ndarray]:
    """Outputs of LiteRT itself, in the order of the interface."""
    interpreter = Interpreter(model_content=content, num_threads=1, **kernels)
    for detail, value in zip(interpreter.get_input_details(), inputs, strict=True):
        if tuple(detail["shape"]) != value.shape:
            interpreter.resize_tensor_input(detail["index"], value.shape)
    interpreter.allocate_tensors()
    for detail, value in zip(interpreter.get_input_details(), inputs, strict=True):
        interpreter.set_tensor(detail["index"], value)
    interpreter.invoke()
    return [interpreter.get_tensor(detail["index"]) for detail in interpreter.get_output_details()]


def shapes_of(content: bytes, entry: int = 0) -> Shapes:
    """What LiteRT says about the shapes of a subgraph's tensors, asked in this process. Raises what LiteRT raises."""
    interpreter = Interpreter(
        model_content=content, num_threads=1, experimental_preserve_all_tensors=True,
        experimental_op_resolver_type=OpResolverType.BUILTIN_WITHOUT_DEFAULT_DELEGATES,
    )  # fmt: skip
    raw = interpreter._interpreter
    raw.AllocateTensors(entry)
    count = len(parse(content).subgraphs[entry].tensors)
    shapes = [tuple(int(d) for d in raw.TensorSize(t, entry)) for t in range(count)]
    return Shapes(shapes, [True] * count)


def parted(content: bytes, outsource: str | set[int] = "all", entry: int = 0) -> Partition:
    """The partition of one subgraph."""
    return partition(parse(content), entry, shapes_of(content, entry), outsource)
