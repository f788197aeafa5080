"""Every op of LiteRT's builtin list that can stand in a model of its own goes through ``convert`` and a protected run.

One model per op. Where its types allow, the op stands between two linear layers, so that the enclave runs it as a
trusted segment between two layers that go out; float32, int8, int32 and so on are branches of the same model. Ops
whose answer jumps when their input moves a little (rounding, comparing, ranking) follow an int8 layer, which is
restored exactly: there, nothing may differ at all.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from ai_edge_litert import schema_py_generated as schema
from ai_edge_litert.interpreter import Interpreter, OpResolverType
from build import Model, Net
from flatbuffers import flexbuffers

import shadownet

Array = np.ndarray[Any, Any]
Spec = tuple[Any, str]  # shape and type of an output
Build = Callable[["Ops", str], None]

TOLERANCE = 1e-3  # of an output's largest value

OPERATORS = [name for name in vars(schema.BuiltinOperator) if not name.startswith("_")]
OPTIONS_2 = {name: number for name, number in vars(schema.BuiltinOptions2).items() if not name.startswith("_")}
TYPE = {n.lower(): v for n, v in vars(schema.TensorType).items() if not n.startswith("_")}

# What cannot stand in a model of its own, and why. LiteRT's own refusals are not here: its message is the skip's.
NOT_ALONE = {
    "DELEGATE": "LiteRT puts it into graphs itself, when a delegate takes a part; a file cannot hold one",
    "PLACEHOLDER_FOR_GREATER_OP_CODES": "not an op: the old field's value for codes above 127",
}

# Run with every change; the others are marked slow.
FAST = {
    "ADD", "SOFTMAX", "RESHAPE", "STRIDED_SLICE", "SPLIT", "PAD", "MEAN", "AVERAGE_POOL_2D", "RESIZE_BILINEAR",
    "CONV_2D", "CONV_3D", "BATCH_MATMUL", "GATHER", "TOPK_V2", "WHERE", "QUANTIZE", "CUSTOM", "IF", "WHILE",
    "UNIDIRECTIONAL_SEQUENCE_LSTM", "SVDF", "ASSIGN_VARIABLE", "HASHTABLE_FIND", "NON_MAX_SUPPRESSION_V4",
    "STABLEHLO_COMPOSITE",
}  # fmt: skip


class Ops(Net):
    """One subgraph, with more types than float32. ``linear`` counts the layers that ought to go out."""

    def __init__(self, model: Model, name: str = "main") -> None:
        self.types: dict[int, str] = {}
        self.ranges: dict[int, tuple[float, float]] = {}
        self.outputs: list[int] = []
        self.linear = 0
        super().__init__(model, name)

    # Tensors

    def tensor(self, shape: Any, name: str = "", dtype: str = "float32", data: Any = None) -> int:
        index = super().tensor(tuple(int(d) for d in shape), name, dtype, data)
        self.types[index] = dtype
        return index

    def quantised(self, t: int, scale: Any, zero: Any = 0, axis: int = 0) -> int:
        """Give a tensor quantisation parameters."""
        scales, zeros = np.atleast_1d(np.float32(scale)), np.atleast_1d(np.int64(zero))
        self.writer.raw.tensors[t].quantization = schema.QuantizationParametersT(
            scale=scales, zeroPoint=zeros, quantizedDimension=axis
        )
        return t

    def variable(self, *shape: int) -> int:
        """A tensor that keeps its value from run to run, as recurrent cells have."""
        t = self.tensor(shape)
        self.writer.raw.tensors[t].isVariable = True
        return t

    def plain(self, *shape: int, dtype: str = "float32", low: float = 0, high: float = 2) -> int:
        """An input that goes to the op as it is; integers are drawn from [low, high)."""
        t = self.input(*shape, dtype=dtype)
        self.ranges[t] = (low, high)
        return t

    def const(self, values: Any, dtype: str = "int32") -> int:
        return self.constant(np.array(values, dtype))

    # The layers around the op

    def real(self, *shape: int, centre: float = 0.0) -> int:
        """A float32 tensor within 1 of ``centre``, computed by a layer that goes out."""
        self.linear += 1
        n = shape[-1]
        w = self.model.rng.uniform(0.5, 1, (n, n)) * self.model.rng.choice([-1, 1], (n, n))
        weights = self.const(w / np.abs(w).sum(axis=1, keepdims=True), "float32")
        bias = self.const(np.full(n, centre), "float32")
        options = schema.FullyConnectedOptionsT(keepNumDims=True)
        return self.op("FULLY_CONNECTED", [self.plain(*shape), weights, bias], options=options, version=5)

    def codes(self, *shape: int, scale: float = 1 / 32) -> int:
        """A quantised int8 tensor, computed by an int8 layer that goes out and is restored exactly."""
        x = self.quantised(self.plain(*shape, dtype="int8"), 1 / 64, 3)
        return self.dense8(x, shape[-1], 1 / 64, scale)

    def exact(self, *shape: int, dtype: str = "float32") -> int:
        """Values of another type made from :meth:`codes`; the same bits in the protected and the original model."""
        q = self.codes(*shape)
        if dtype == "float32":
            return self.op("DEQUANTIZE", [q], (shape, dtype))
        if dtype == "bool":
            return self.op("GREATER", [self.cast(q, "int32"), self.const(0)], (shape, "bool"))
        return self.cast(q, dtype)

    def dense8(self, x: int, units: int, scale_in: float, scale_out: float) -> int:
        self.linear += 1
        depth = self.shapes[x][-1]
        w = self.constant(self.model.rng.integers(-63, 64, (units, depth)).astype(np.int8))
        # Inputs deviate by 74, weights by 36: outputs by about 45 steps.
        self.quantised(w, scale_out / scale_in * 45 / (2700 * np.sqrt(depth)))
        bias = self.constant(self.model.rng.integers(-2000, 2000, units).astype(np.int32))
        self.quantised(bias, 1.0)
        options = schema.FullyConnectedOptionsT(keepNumDims=True)
        y = self.op("FULLY_CONNECTED", [x, w, bias], ((*self.shapes[x][:-1], units), "int8"), options, 5)
        return self.quantised(y, scale_out, -2)

    def cast(self, x: int, dtype: str) -> int:
        options = schema.CastOptionsT(TYPE[self.types[x]], TYPE[dtype])
        return self.op("CAST", [x], (self.shapes[x], dtype), options)

    def end(self, *tensors: int, behind: bool = True) -> None:
        """Make tensors outputs, each as it is and, unless ``behind`` is false, behind another layer that goes out."""
        for t in tensors:
            self.outputs.append(t)
            shape = self.shapes[t]
            if not behind or len(shape) < 2 or 0 in shape:
                continue
            raw = self.writer.raw.tensors[t]
            if self.types[t] == "int8" and raw.quantization is not None:
                self.outputs.append(self.dense8(t, 3, float(raw.quantization.scale[0]), 1 / 16))
            elif self.types[t] in ("float32", "int32", "int64", "bool"):
                self.linear += 1
                x = t if self.types[t] == "float32" else self.cast(t, "float32")
                self.outputs.append(self.dense(x, 3, keep=True))

    # Ops

    def op(self, kind: str, inputs: list[int], out: Spec | None = None, options: Any = None, version: int = 1) -> int:
        """Add an op with one output, by default of its first input's shape and type."""
        return self.ops(kind, inputs, [out or (self.shapes[inputs[0]], self.types[inputs[0]])], options, version)[0]

    def ops(self, kind: str, inputs: list[int], outs: list[Spec], options: Any = None, version: int = 1) -> list[int]:
        made = [self.tensor(shape, "", dtype) for shape, dtype in outs]
        name = type(options).__name__.removesuffix("T")
        if kind.startswith("CUSTOM:"):
            code = self.model.writer.opcode(schema.BuiltinOperator.CUSTOM, kind.removeprefix("CUSTOM:"), version)
            raw = schema.OperatorT(code, np.array(inputs, np.int32), np.array(made, np.int32))
            raw.customOptions = np.frombuffer(options, np.uint8)
            self.writer.raw.operators.append(raw)
        elif name in OPTIONS_2:
            self.writer.op(kind, inputs, made, None, version)
            raw = self.writer.raw.operators[-1]
            raw.builtinOptions2Type, raw.builtinOptions2 = OPTIONS_2[name], options
        else:
            self.writer.op(kind, inputs, made, options, version)
        return made

    def body(self, name: str) -> Ops:
        """Another subgraph of the same model, for control flow."""
        return Ops(self.model, name)

    def close(self, *tensors: int) -> int:
        """Finish such a subgraph; returns its index."""
        self.writer.interface(self.inputs, list(tensors))
        return self.writer.index


CASES: dict[str, Build] = {}


def case(*ops: str) -> Callable[[Build], Build]:
    """Register a builder for these ops; it is called with the net and the op's name."""

    def register(build: Build) -> Build:
        for op in ops:
            assert op in OPERATORS and op not in CASES, op
            CASES[op] = build
        return build

    return register


def options_of(op: str, **values: Any) -> Any:
    """The schema's option object named after the op, or None."""
    wanted = f"{op.replace('_', '')}OptionsT".lower()
    found = next((cls for name, cls in vars(schema).items() if name.lower() == wanted), None)
    return found(**values) if found else None


# Element by element

# Output scale and zero point that LiteRT prescribes for int8; None for the input's own.
INT8_UNARY: dict[str, tuple[float, int] | None] = {
    "RELU": None, "RELU6": None, "LEAKY_RELU": None, "HARD_SWISH": None, "ABS": None, "ELU": None,
    "RELU_N1_TO_1": None, "GELU": None, "NEG": None,
    "TANH": (1 / 128, 0), "LOGISTIC": (1 / 256, -128), "SOFTMAX": (1 / 256, -128), "LOG_SOFTMAX": (1 / 16, 127),
    "L2_NORMALIZATION": (1 / 128, 0),
}  # fmt: skip
UNARY_OPTIONS = {
    "GELU": [{"approximate": False}, {"approximate": True}],
    "LEAKY_RELU": [{"alpha": 0.2}, {"alpha": -0.5}],
    "SOFTMAX": [{"beta": 1.0}, {"beta": 0.5}],
}


@case("ABS", "NEG", "EXP", "SIN", "COS", "SQUARE", "RELU", "RELU6", "RELU_N1_TO_1", "RELU_0_TO_1", "TANH", "LOGISTIC",
      "ELU", "HARD_SWISH", "GELU", "LEAKY_RELU", "LOG_SOFTMAX", "SOFTMAX", "ZEROS_LIKE")  # fmt: skip
def unary(n: Ops, op: str) -> None:
    for values in UNARY_OPTIONS.get(op, [{}]):
        n.end(n.op(op, [n.real(2, 6)], options=options_of(op, **values)))
    if op in INT8_UNARY:
        scale, zero = INT8_UNARY[op] or (1 / 32, -2)
        n.end(n.quantised(n.op(op, [n.codes(2, 6)], options=options_of(op, **values), version=2), scale, zero))
    if op in ("ABS", "NEG", "ZEROS_LIKE"):
        n.end(n.op(op, [n.exact(2, 6, dtype="int32")], options=options_of(op)))
    if op in ("NEG", "ZEROS_LIKE"):
        n.end(n.op(op, [n.exact(2, 6, dtype="int64")], options=options_of(op)))


@case("SQRT", "RSQRT", "LOG")
def unary_of_positive(n: Ops, op: str) -> None:
    n.end(n.op(op, [n.real(2, 6, centre=2.5)]))


@case("FLOOR", "CEIL", "ROUND", "SIGN")
def rounding(n: Ops, op: str) -> None:
    n.end(n.op(op, [n.exact(2, 6)], options=options_of(op)))


@case("L2_NORMALIZATION")
def l2_normalization(n: Ops, op: str) -> None:
    n.end(n.op(op, [n.real(2, 6)], options=schema.L2NormOptionsT()))
    n.end(n.quantised(n.op(op, [n.codes(2, 6)], options=schema.L2NormOptionsT(), version=2), 1 / 128))


@case("PRELU")
def prelu(n: Ops, op: str) -> None:
    n.end(n.op(op, [n.real(1, 3, 3, 4), n.const(np.linspace(-0.5, 0.5, 4).reshape(1, 1, 4), "float32")]))


@case("ADD", "SUB", "MUL", "DIV")
def arithmetic(n: Ops, op: str) -> None:
    for activation in (0, 1, 3):
        right = n.real(1, 6, centre=2.5 if op == "DIV" else 0.5)
        n.end(n.op(op, [n.real(2, 6), right], ((2, 6), "float32"), options_of(op, fusedActivationFunction=activation)))
    if op == "DIV":
        right = n.const([[1, 2, 3, 5, 7, -3]])
        n.end(n.op(op, [n.exact(2, 6, dtype="int32"), right], options=options_of(op)))
        return
    for dtype in ("int32", "int64"):
        n.end(n.op(op, [n.exact(2, 6, dtype=dtype), n.exact(2, 6, dtype=dtype)], options=options_of(op)))
    q = n.op(op, [n.codes(2, 6), n.codes(2, 6, scale=1 / 16)], options=options_of(op), version=2)
    n.end(n.quantised(q, 1 / 12, 5))


@case("MAXIMUM", "MINIMUM", "POW", "SQUARED_DIFFERENCE", "ATAN2", "FLOOR_DIV", "FLOOR_MOD")
def binary(n: Ops, op: str) -> None:
    options = options_of(op) or schema.MaximumMinimumOptionsT()
    if op == "ATAN2":
        n.end(n.op(op, [n.real(2, 6), n.real(2, 6, centre=2.0)], options=schema.ATan2OptionsT()))
        return
    if op.startswith("FLOOR"):
        n.end(n.op(op, [n.exact(2, 6), n.const(np.full((1, 6), 0.7), "float32")], options=options))
    else:
        n.end(n.op(op, [n.real(2, 6, centre=2.0), n.real(2, 6, centre=2.0)], options=options))
    right = n.const([[1, 2, 3, 1, 2, 3]]) if op != "MAXIMUM" else n.exact(2, 6, dtype="int32")
    n.end(n.op(op, [n.exact(2, 6, dtype="int32"), right], options=options))
    if op in ("MAXIMUM", "MINIMUM", "SQUARED_DIFFERENCE"):
        # Minimum and maximum want one quantisation for all three; the squared difference is wider.
        scale, zero = (1 / 4, -128) if op == "SQUARED_DIFFERENCE" else (1 / 32, -2)
        n.end(n.quantised(n.op(op, [n.codes(2, 6), n.codes(2, 6)], options=options, version=2), scale, zero))


@case("BITWISE_XOR", "RIGHT_SHIFT")
def bitwise(n: Ops, op: str) -> None:
    for dtype in ("int32", "int8"):
        left = n.exact(2, 6, dtype="int32") if dtype == "int32" else n.plain(2, 6, dtype="int8")
        n.end(n.op(op, [left, n.const(np.arange(12).reshape(2, 6) % 7, dtype)], options=options_of(op)))


@case("EQUAL", "NOT_EQUAL", "GREATER", "GREATER_EQUAL", "LESS", "LESS_EQUAL")
def comparison(n: Ops, op: str) -> None:
    n.end(n.op(op, [n.exact(2, 6), n.const(np.full((2, 6), 0.5), "float32")], ((2, 6), "bool"), options_of(op)))
    for dtype in ("int32", "int64"):
        right = n.exact(1, 6, dtype=dtype)
        n.end(n.op(op, [n.exact(2, 6, dtype=dtype), right], ((2, 6), "bool"), options_of(op)))
    n.end(n.op(op, [n.codes(2, 6), n.codes(2, 6)], ((2, 6), "bool"), options_of(op), 2))


@case("LOGICAL_AND", "LOGICAL_OR", "LOGICAL_NOT")
def logical(n: Ops, op: str) -> None:
    inputs = [n.exact(2, 6, dtype="bool") for _ in range(1 if op == "LOGICAL_NOT" else 2)]
    n.end(n.op(op, inputs, options=options_of(op)))


@case("ADD_N")
def add_n(n: Ops, op: str) -> None:
    n.end(n.op(op, [n.real(2, 6) for _ in range(3)], options=schema.AddNOptionsT()))
    n.end(n.op(op, [n.exact(2, 6, dtype="int32") for _ in range(3)], options=schema.AddNOptionsT()))


@case("SELECT", "SELECT_V2")
def select(n: Ops, op: str) -> None:
    options = options_of(op)
    n.end(n.op(op, [n.exact(2, 6, dtype="bool"), n.real(2, 6), n.real(2, 6)], ((2, 6), "float32"), options))
    integers = [n.exact(2, 6, dtype="int32") for _ in range(2)]
    n.end(n.op(op, [n.exact(2, 6, dtype="bool"), *integers], ((2, 6), "int32"), options))


@case("CAST")
def cast(n: Ops, op: str) -> None:
    for source, target in (("float32", "int32"), ("int32", "float32"), ("int32", "int64"), ("int64", "bool"),
                           ("float32", "bool"), ("int32", "uint8"), ("float32", "float16")):  # fmt: skip
        n.end(n.cast(n.exact(2, 6, dtype=source), target))


@case("BITCAST")
def bitcast(n: Ops, op: str) -> None:
    n.end(n.op(op, [n.exact(2, 6)], ((2, 6), "int32"), schema.BitcastOptionsT()), behind=False)
    n.end(n.op(op, [n.exact(2, 6, dtype="int32")], ((2, 6, 2), "int16"), schema.BitcastOptionsT()), behind=False)


@case("QUANTIZE", "DEQUANTIZE")
def quantize(n: Ops, op: str) -> None:
    """Both in one model: they are each other's context."""
    q = n.quantised(n.op("QUANTIZE", [n.exact(2, 6)], ((2, 6), "int8"), schema.QuantizeOptionsT()), 1 / 20, 4)
    n.end(n.op("DEQUANTIZE", [q], ((2, 6), "float32"), schema.DequantizeOptionsT()))
    n.end(q)
    for dtype, zero in (("uint8", 120), ("int16", 0)):
        q = n.quantised(n.op("QUANTIZE", [n.exact(2, 6)], ((2, 6), dtype), version=2), 1 / 20, zero)
        n.end(n.op("DEQUANTIZE", [q], ((2, 6), "float32"), version=3), q)
    again = n.op("QUANTIZE", [n.codes(2, 6)], options=schema.QuantizeOptionsT(), version=2)
    n.end(n.quantised(again, 1 / 25, 9))


@case("FAKE_QUANT")
def fake_quant(n: Ops, op: str) -> None:
    n.end(n.op(op, [n.exact(2, 6)], options=schema.FakeQuantOptionsT(-1.0, 1.0, 8, False)))


# Reductions and ranking


@case("MEAN", "SUM", "REDUCE_MAX", "REDUCE_MIN", "REDUCE_PROD")
def reduce(n: Ops, op: str) -> None:
    for keep, axes in ((True, [1, 2]), (False, [-1])):
        out = (1, 1, 1, 4) if keep else (1, 3, 3)
        options = schema.ReducerOptionsT(keepDims=keep)
        n.end(n.op(op, [n.real(1, 3, 3, 4), n.const(axes)], (out, "float32"), options))
        n.end(n.op(op, [n.exact(1, 3, 3, 4, dtype="int32"), n.const(axes)], (out, "int32"), options))
    if op != "REDUCE_PROD":
        options = schema.ReducerOptionsT(keepDims=True)
        q = n.op(op, [n.codes(1, 3, 3, 4), n.const([1, 2])], ((1, 1, 1, 4), "int8"), options, 2)
        n.end(n.quantised(q, 1 / 32, -2))


@case("REDUCE_ANY", "REDUCE_ALL")
def reduce_bool(n: Ops, op: str) -> None:
    options = schema.ReducerOptionsT(keepDims=True)
    n.end(n.op(op, [n.exact(4, 3, dtype="bool"), n.const([1])], ((4, 1), "bool"), options))


@case("ARG_MAX", "ARG_MIN")
def arg(n: Ops, op: str) -> None:
    for dtype in ("int32", "int64"):
        options = options_of(op, outputType=TYPE[dtype])
        n.end(n.op(op, [n.exact(3, 7), n.const(1)], ((3,), dtype), options))
    n.end(n.op(op, [n.codes(3, 7), n.const(-1)], ((3,), "int32"), options_of(op, outputType=TYPE["int32"])))


@case("TOPK_V2")
def topk(n: Ops, op: str) -> None:
    for x in (n.exact(3, 7), n.exact(3, 7, dtype="int32")):
        n.end(*n.ops(op, [x, n.const(3)], [((3, 3), n.types[x]), ((3, 3), "int32")], schema.TopKV2OptionsT()))


@case("CUMSUM")
def cumsum(n: Ops, op: str) -> None:
    for exclusive, reverse in ((False, False), (True, False), (False, True)):
        n.end(n.op(op, [n.real(3, 5), n.const(1)], options=schema.CumsumOptionsT(exclusive, reverse)))
    n.end(n.op(op, [n.exact(3, 5, dtype="int32"), n.const(0)], options=schema.CumsumOptionsT()))


@case("UNIQUE")
def unique(n: Ops, op: str) -> None:
    for dtype in ("int32", "float32"):
        x = n.op("RESHAPE", [n.exact(2, 6, dtype=dtype), n.const([12])], ((12,), dtype))
        options = schema.UniqueOptionsT(TYPE["int32"])
        n.end(*n.ops(op, [x], [((0,), dtype), ((12,), "int32")], options), behind=False)


@case("WHERE")
def where(n: Ops, op: str) -> None:
    """How many rows come out depends on the values: shapes are known only after the run."""
    n.end(n.op(op, [n.exact(3, 4, dtype="bool")], ((0, 2), "int64")), behind=False)
    found = n.op(op, [n.exact(3, 4, dtype="bool")], ((0, 2), "int64"))
    n.end(n.op("GATHER_ND", [n.real(3, 4), found], ((0,), "float32")), behind=False)


@case("BUCKETIZE")
def bucketize(n: Ops, op: str) -> None:
    n.end(n.op(op, [n.exact(2, 6)], ((2, 6), "int32"), schema.BucketizeOptionsT([-1.0, 0.0, 0.5, 2.0])))


@case("SEGMENT_SUM")
def segment_sum(n: Ops, op: str) -> None:
    for x in (n.real(4, 3), n.exact(4, 3, dtype="int32")):
        n.end(n.op(op, [x, n.const([0, 0, 1, 2])], ((3, 3), n.types[x]), schema.SegmentSumOptionsT()))


@case("UNSORTED_SEGMENT_SUM", "UNSORTED_SEGMENT_PROD", "UNSORTED_SEGMENT_MAX", "UNSORTED_SEGMENT_MIN")
def unsorted_segment(n: Ops, op: str) -> None:
    for x in (n.real(4, 3), n.exact(4, 3, dtype="int32")):
        n.end(n.op(op, [x, n.const([2, 0, 1, 0]), n.const(3)], ((3, 3), n.types[x]), options_of(op)))


# Shapes


