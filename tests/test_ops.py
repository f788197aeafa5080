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


HASHTABLES = ("HASHTABLE", "HASHTABLE_FIND", "HASHTABLE_IMPORT", "HASHTABLE_SIZE")

# Their outputs' shapes are known only after the run, and LiteRT says nothing about what stands behind them in the
# file: some layers stay inside.
DYNAMIC = {"EMBEDDING_LOOKUP_SPARSE", "RANGE", "SEGMENT_SUM", "UNIQUE", "WHERE", *HASHTABLES}


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
        scale = np.float32(scale_out / scale_in * 45 / (2700 * np.sqrt(depth)))
        self.quantised(w, scale)
        bias = self.constant(self.model.rng.integers(-2000, 2000, units).astype(np.int32))
        self.quantised(bias, scale * np.float32(scale_in))
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
        n.end(n.quantised(n.op(op, [n.codes(2, 6)], options=options_of(op, **values)), scale, zero))
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


Shaped = Callable[[Ops, int], tuple[list[int], tuple[int, ...], Any]]  # (net, x) -> inputs, output shape, options
T = schema
MOVES: dict[str, tuple[tuple[int, ...], Shaped]] = {
    "RESHAPE": ((2, 6), lambda n, x: ([x, n.const([3, 4])], (3, 4), T.ReshapeOptionsT([3, 4]))),
    "SQUEEZE": ((1, 2, 1, 6), lambda n, x: ([x], (2, 6), T.SqueezeOptionsT([0, 2]))),
    "EXPAND_DIMS": ((2, 6), lambda n, x: ([x, n.const(1)], (2, 1, 6), T.ExpandDimsOptionsT())),
    "TRANSPOSE": ((2, 3, 4), lambda n, x: ([x, n.const([2, 0, 1])], (4, 2, 3), T.TransposeOptionsT())),
    "REVERSE_V2": ((3, 5), lambda n, x: ([x, n.const([1])], (3, 5), T.ReverseV2OptionsT())),
    "REVERSE_SEQUENCE": ((3, 5), lambda n, x: ([x, n.const([5, 2, 3])], (3, 5), T.ReverseSequenceOptionsT(1, 0))),
    "TILE": ((2, 3), lambda n, x: ([x, n.const([2, 2])], (4, 6), T.TileOptionsT())),
    "BROADCAST_TO": ((1, 3), lambda n, x: ([x, n.const([4, 3])], (4, 3), T.BroadcastToOptionsT())),
    "SLICE": ((4, 6), lambda n, x: ([x, n.const([1, 2]), n.const([2, -1])], (2, 4), T.SliceOptionsT())),
    "STRIDED_SLICE": (
        (4, 6),
        lambda n, x: (
            [x, n.const([3, 0]), n.const([0, 6]), n.const([-1, 2])],
            (4, 3),
            T.StridedSliceOptionsT(beginMask=1, endMask=1),
        ),
    ),
    "GATHER": ((4, 6), lambda n, x: ([x, n.const([5, 0, 0])], (4, 3), T.GatherOptionsT(axis=1))),
    "GATHER_ND": ((4, 6), lambda n, x: ([x, n.const([[3], [0]])], (2, 6), T.GatherNdOptionsT())),
    "PAD": ((2, 3), lambda n, x: ([x, n.const([[1, 0], [2, 1]])], (3, 6), T.PadOptionsT())),
    "MIRROR_PAD": ((3, 3), lambda n, x: ([x, n.const([[1, 1], [2, 0]])], (5, 5), T.MirrorPadOptionsT(0))),
    "SPACE_TO_DEPTH": ((1, 4, 4, 2), lambda n, x: ([x], (1, 2, 2, 8), T.SpaceToDepthOptionsT(2))),
    "DEPTH_TO_SPACE": ((1, 2, 2, 8), lambda n, x: ([x], (1, 4, 4, 2), T.DepthToSpaceOptionsT(2))),
    "SPACE_TO_BATCH_ND": (
        (1, 4, 4, 3),
        lambda n, x: ([x, n.const([2, 2]), n.const([[0, 0], [2, 0]])], (4, 2, 3, 3), T.SpaceToBatchNDOptionsT()),
    ),
    "BATCH_TO_SPACE_ND": (
        (4, 2, 2, 3),
        lambda n, x: ([x, n.const([2, 2]), n.const([[0, 0], [1, 0]])], (1, 4, 3, 3), T.BatchToSpaceNDOptionsT()),
    ),
    "MATRIX_DIAG": ((2, 3), lambda n, x: ([x], (2, 3, 3), T.MatrixDiagOptionsT())),
    "MATRIX_SET_DIAG": (
        (2, 3, 3),
        lambda n, x: ([x, n.constant(np.ones((2, 3), n.types[x]))], (2, 3, 3), T.MatrixSetDiagOptionsT()),
    ),
    "SCATTER_ND": (
        (3, 4),
        lambda n, x: ([n.const([[0], [4], [2]]), x, n.const([5, 4])], (5, 4), T.ScatterNdOptionsT()),
    ),
    "DYNAMIC_UPDATE_SLICE": (
        (2, 3),
        lambda n, x: (
            [n.constant(np.ones((4, 5), n.types[x])), x, n.const([1, 2])],
            (4, 5),
            T.DynamicUpdateSliceOptionsT(),
        ),
    ),
    "DILATE": (
        (2, 3),
        lambda n, x: ([x, n.const([2, 3]), n.constant(np.zeros((), n.types[x]))], (3, 7), T.DilateOptionsT()),
    ),
    "PADV2": (
        (2, 3),
        lambda n, x: (
            [x, n.const([[0, 1], [1, 1]]), n.constant(np.full((1,), 2, n.types[x]))],
            (3, 5),
            T.PadV2OptionsT(),
        ),
    ),
}
# Moves with no constant of their own may carry int8 codes, whose quantisation stays.
MOVES_INT8 = {
    "RESHAPE", "SQUEEZE", "EXPAND_DIMS", "TRANSPOSE", "TILE", "SLICE", "STRIDED_SLICE", "GATHER", "GATHER_ND", "PAD",
    "MIRROR_PAD", "SPACE_TO_DEPTH", "DEPTH_TO_SPACE", "BROADCAST_TO", "SPACE_TO_BATCH_ND", "BATCH_TO_SPACE_ND",
}  # fmt: skip


@case(*MOVES)
def move(n: Ops, op: str) -> None:
    shape, arguments = MOVES[op]
    sources = [n.real(*shape), n.exact(*shape, dtype="int32")]
    if op in MOVES_INT8:
        sources.append(n.codes(*shape))
    for x in sources:
        inputs, out, options = arguments(n, x)
        y = n.op(op, inputs, (out, n.types[x]), options, 2 if op == "BROADCAST_TO" else 1)
        n.end(n.quantised(y, 1 / 32, -2) if n.types[x] == "int8" else y)


@case("CONCATENATION", "PACK")
def join(n: Ops, op: str) -> None:
    for make in (n.real, lambda *s: n.exact(*s, dtype="int32"), n.codes):
        parts = [make(2, 3), make(2, 3)]
        out, options = (
            ((2, 6), schema.ConcatenationOptionsT(1))
            if op == "CONCATENATION"
            else ((2, 2, 3), schema.PackOptionsT(2, 1))
        )
        y = n.op(op, parts, (out, n.types[parts[0]]), options)
        n.end(n.quantised(y, 1 / 32, -2) if n.types[y] == "int8" else y)


@case("SPLIT", "SPLIT_V", "UNPACK")
def part(n: Ops, op: str) -> None:
    for x in (n.real(4, 6), n.exact(4, 6, dtype="int32")):
        if op == "SPLIT":
            inputs, outs, options = [n.const(1), x], [(4, 3)] * 2, schema.SplitOptionsT(2)
        elif op == "SPLIT_V":
            inputs, outs = [x, n.const([1, 2, 3]), n.const(1)], [(4, 1), (4, 2), (4, 3)]
            options = schema.SplitVOptionsT(3)
        else:
            inputs, outs, options = [x], [(6,)] * 4, schema.UnpackOptionsT(4, 0)
        n.end(*n.ops(op, inputs, [(shape, n.types[x]) for shape in outs], options))


@case("SHAPE", "RANK")
def shape_of(n: Ops, op: str) -> None:
    x = n.real(2, 6)
    options = schema.ShapeOptionsT(TYPE["int32"]) if op == "SHAPE" else schema.RankOptionsT()
    n.end(n.op(op, [x], ((2,) if op == "SHAPE" else (), "int32"), options), x)


@case("FILL")
def fill(n: Ops, op: str) -> None:
    value = n.op("RESHAPE", [n.real(1, 1), n.const(np.zeros(0))], ((), "float32"))
    n.end(n.op(op, [n.const([2, 3]), value], ((2, 3), "float32"), schema.FillOptionsT()))


@case("RANGE")
def range_(n: Ops, op: str) -> None:
    for dtype in ("int32", "float32"):
        n.end(n.op(op, [n.const(v, dtype) for v in (1, 9, 2)], ((4,), dtype), schema.RangeOptionsT()))
    limit = n.op("RESHAPE", [n.plain(1, dtype="int32", low=1, high=5), n.const(np.zeros(0))], ((), "int32"))
    n.end(n.op(op, [n.const(0), limit, n.const(1)], ((0,), "int32"), schema.RangeOptionsT()), n.real(2, 2))


@case("BROADCAST_ARGS")
def broadcast_args(n: Ops, op: str) -> None:
    shape = n.op(op, [n.const([3, 1]), n.const([1, 4])], ((2,), "int32"))
    wide = n.op("BROADCAST_TO", [n.real(1, 4), shape], ((3, 4), "float32"), schema.BroadcastToOptionsT(), 2)
    n.end(wide, behind=False)
    given = n.op("MAXIMUM", [n.plain(2, dtype="int32"), n.const([1, 1])], options=schema.MaximumMinimumOptionsT())
    n.end(n.op(op, [given, n.const([1, 1])], ((2,), "int32")))


@case("ONE_HOT")
def one_hot(n: Ops, op: str) -> None:
    values = [n.const(4), n.const(2.0, "float32"), n.const(-1.0, "float32")]
    indices = n.plain(3, dtype="int32", high=5)
    n.end(n.op(op, [indices, *values], ((3, 4), "float32"), schema.OneHotOptionsT(-1)))


@case("SPARSE_TO_DENSE")
def sparse_to_dense(n: Ops, op: str) -> None:
    values = n.op("RESHAPE", [n.real(1, 3), n.const([3])], ((3,), "float32"))
    inputs = [n.const([[0, 1], [2, 0], [3, 3]]), n.const([4, 4]), values, n.const(0.5, "float32")]
    n.end(n.op(op, inputs, ((4, 4), "float32"), schema.SparseToDenseOptionsT()))


@case("EMBEDDING_LOOKUP")
def embedding(n: Ops, op: str) -> None:
    n.end(n.op(op, [n.plain(3, dtype="int32", high=5), n.constant(n.weights((5, 4), 1))], ((3, 4), "float32")))


@case("EMBEDDING_LOOKUP_SPARSE")
def embedding_sparse(n: Ops, op: str) -> None:
    inputs = [n.plain(3, dtype="int32", high=4), n.const([[0, 0], [1, 0], [1, 1]]), n.const([2, 2]),
              n.const([1.0, 2.0, 0.5], "float32"), n.constant(n.weights((4, 3), 1))]  # fmt: skip
    n.end(n.op(op, inputs, ((2, 3), "float32"), schema.EmbeddingLookupSparseOptionsT(1)))


@case("HASHTABLE_LOOKUP")
def hashtable_lookup(n: Ops, op: str) -> None:
    inputs = [n.plain(4, dtype="int32", high=6), n.const([0, 1, 4]), n.constant(n.weights((3, 2), 1))]
    found, hits = n.ops(op, inputs, [((4, 2), "float32"), ((4,), "uint8")])
    n.end(found)
    n.end(hits, behind=False)


@case("LSH_PROJECTION")
def lsh(n: Ops, op: str) -> None:
    for kind, out in ((1, (3,)), (2, (6,))):
        x = n.plain(3, 2, dtype="int32", high=50)
        inputs = [n.const([[0.1, -0.6], [0.3, 0.9], [-0.4, 0.2]], "float32"), x]
        n.end(n.op(op, inputs, (out, "int32"), schema.LSHProjectionOptionsT(kind)), behind=False)


@case("SKIP_GRAM", "CONCAT_EMBEDDINGS", "CALL")
def old(n: Ops, op: str) -> None:
    """Ops of the first days of the format, most of them without a kernel by now."""
    options = {
        "SKIP_GRAM": schema.SkipGramOptionsT(2, 1, True), "CALL": schema.CallOptionsT(0),
        "CONCAT_EMBEDDINGS": schema.ConcatEmbeddingsOptionsT(1, [3], [3]),
    }[op]  # fmt: skip
    if op == "SKIP_GRAM":
        n.end(n.op(op, [n.plain(1, dtype="string")], ((0,), "string"), options))
    else:
        n.end(n.op(op, [n.real(2, 3)], options=options))


# Images


@case("AVERAGE_POOL_2D", "MAX_POOL_2D", "L2_POOL_2D")
def pool(n: Ops, op: str) -> None:
    for padding, activation, out in ((0, 0, (1, 3, 3, 4)), (1, 1, (1, 2, 2, 4))):
        options = schema.Pool2DOptionsT(padding, 2, 2, 2, 3, activation)
        n.end(n.op(op, [n.real(1, 5, 6, 4)], (out, "float32"), options))
        if op != "L2_POOL_2D":
            q = n.op(op, [n.codes(1, 5, 6, 4)], (out, "int8"), options, 2)
            n.end(n.quantised(q, 1 / 32, -2))


@case("RESIZE_BILINEAR", "RESIZE_NEAREST_NEIGHBOR")
def resize(n: Ops, op: str) -> None:
    for corners, centres in ((False, False), (True, False), (False, True)):
        options = options_of(op, alignCorners=corners, halfPixelCenters=centres)
        n.end(n.op(op, [n.real(1, 3, 4, 2), n.const([6, 5])], ((1, 6, 5, 2), "float32"), options, 3))
    q = n.op(op, [n.codes(1, 3, 4, 2), n.const([6, 8])], ((1, 6, 8, 2), "int8"), options_of(op), 2)
    n.end(n.quantised(q, 1 / 32, -2))


@case("LOCAL_RESPONSE_NORMALIZATION")
def lrn(n: Ops, op: str) -> None:
    n.end(n.op(op, [n.real(1, 3, 3, 8)], options=schema.LocalResponseNormalizationOptionsT(2, 1.0, 0.5, 0.75)))


@case("NON_MAX_SUPPRESSION_V4", "NON_MAX_SUPPRESSION_V5")
def non_max_suppression(n: Ops, op: str) -> None:
    corners = n.const([[0, 0, 1, 1], [0, 0.1, 1, 1.1], [0, 5, 1, 6], [2, 2, 4, 4], [2, 2.5, 4, 4.5]], "float32")
    boxes = n.op("ADD", [n.exact(5, 4), corners], options=schema.AddOptionsT())
    scores = n.op("RESHAPE", [n.exact(1, 5), n.const([5])], ((5,), "float32"))
    thresholds = [n.const(4), n.const(0.4, "float32"), n.const(-9.0, "float32")]
    if op.endswith("V4"):
        outs, options = [((4,), "int32"), ((), "int32")], schema.NonMaxSuppressionV4OptionsT()
    else:
        thresholds.append(n.const(0.5, "float32"))
        outs = [((4,), "int32"), ((4,), "float32"), ((), "int32")]
        options = schema.NonMaxSuppressionV5OptionsT()
    n.end(*n.ops(op, [boxes, scores, *thresholds], outs, options), behind=False)


@case("CUSTOM")
def detection(n: Ops, op: str) -> None:
    """TFLite_Detection_PostProcess, the custom op that LiteRT carries; its options are a flexbuffer."""
    options = flexbuffers.Builder()
    with options.Map():
        for key, value in {"max_detections": 3, "max_classes_per_detection": 1, "detections_per_class": 2,
                           "num_classes": 2}.items():  # fmt: skip
            options.Int(key, value)
        for key, value in {"nms_score_threshold": -9.0, "nms_iou_threshold": 0.5, "y_scale": 10.0, "x_scale": 10.0,
                           "h_scale": 5.0, "w_scale": 5.0}.items():  # fmt: skip
            options.Float(key, value)
        options.Bool("use_regular_nms", False)
    anchors = np.array([[0.5, 0.5, 1, 1], [0.5, 0.5, 1, 1], [0.5, 3, 1, 1], [4, 4, 2, 1]], np.float32)
    inputs = [n.exact(1, 4, 4), n.exact(1, 4, 3), n.constant(anchors)]
    outs = [((1, 3, 4), "float32"), ((1, 3), "float32"), ((1, 3), "float32"), ((1,), "float32")]
    n.end(*n.ops("CUSTOM:TFLite_Detection_PostProcess", inputs, outs, bytes(options.Finish())), behind=False)


# Linear ops: they go out themselves


@case("CONV_2D", "DEPTHWISE_CONV_2D", "TRANSPOSE_CONV", "FULLY_CONNECTED", "BATCH_MATMUL")
def linear(n: Ops, op: str) -> None:
    if op == "BATCH_MATMUL":
        x = n.real(2, 3, 4)
        n.end(n.op(op, [x, n.real(2, 4, 3)], ((2, 3, 3), "float32"), schema.BatchMatMulOptionsT()))
        found = [n.matmul(x, 5), n.matmul(x, 5, adj_y=True)]
    else:
        found = convolutions(n, op, n.real(1, 6, 6, 4))
    n.linear += len(found)
    n.types |= dict.fromkeys(found, "float32")
    n.end(*found)


def convolutions(n: Ops, op: str, image: int) -> list[int]:
    if op == "CONV_2D":
        return [n.conv(image, 5, 3, 2, activation="RELU"), n.conv(image, 6, (1, 3), 1, 2), n.conv(image, 4, groups=2)]
    if op == "DEPTHWISE_CONV_2D":
        return [n.depthwise(image, 1, 3, activation="RELU6"), n.depthwise(image, 2, 3, 2, padding="VALID")]
    if op == "TRANSPOSE_CONV":
        return [n.transpose_conv(image, 3), n.transpose_conv(image, 2, 2, padding="VALID", bias=False)]
    return [n.dense(image, 5, "RELU"), n.dense(image, 3, keep=True, bias=False), n.dense(image, 3, depth=24)]


@case("CONV_3D", "CONV_3D_TRANSPOSE")
def conv_3d(n: Ops, op: str) -> None:
    options = schema.Conv3DOptionsT(1, 1, 1, 1, 1)  # VALID
    w = n.constant(n.weights((2, 2, 2, 3, 3), 24))
    if op == "CONV_3D":
        n.end(n.op(op, [n.real(1, 3, 3, 3, 3), w], ((1, 2, 2, 2, 3), "float32"), options))
    else:
        inputs = [n.const([1, 3, 3, 3, 3]), w, n.real(1, 2, 2, 2, 3)]
        n.end(n.op(op, inputs, ((1, 3, 3, 3, 3), "float32"), options))


@case("DENSIFY")
def densify(n: Ops, op: str) -> None:
    """A weight stored sparse: rows dense, columns compressed."""
    w = n.tensor((3, 4), data=np.array([1.0, -2.0, 0.5, 3.0], np.float32))
    column = schema.DimensionMetadataT(
        schema.DimensionType.SPARSE_CSR, 0, schema.SparseIndexVector.Uint8Vector,
        schema.Uint8VectorT(np.array([0, 2, 3, 4], np.uint8)), schema.SparseIndexVector.Uint8Vector,
        schema.Uint8VectorT(np.array([0, 2, 1, 3], np.uint8)),
    )  # fmt: skip
    row = schema.DimensionMetadataT(schema.DimensionType.DENSE, 3)
    n.writer.raw.tensors[w].sparsity = schema.SparsityParametersT(np.array([0, 1], np.int32), None, [row, column])
    dense = n.op(op, [w], ((3, 4), "float32"), schema.DensifyOptionsT())
    y = n.dense(n.real(2, 4), 3, weights=dense)
    n.types[y] = "float32"
    n.linear += 1
    n.end(y)


# Spectra


@case("RFFT2D", "COMPLEX_ABS", "REAL", "IMAG")
def spectrum(n: Ops, op: str) -> None:
    x = n.real(1, 4, 8)
    c = n.op("RFFT2D", [x, n.const([4, 8])], ((1, 4, 5), "complex64"), schema.Rfft2dOptionsT())
    n.end(c if op == "RFFT2D" else n.op(op, [c], ((1, 4, 5), "float32")))


# Random numbers: with a seed, LiteRT draws the same ones


@case("RANDOM_UNIFORM", "RANDOM_STANDARD_NORMAL")
def random_(n: Ops, op: str) -> None:
    noise = n.op(op, [n.const([2, 6])], ((2, 6), "float32"), schema.RandomOptionsT(7, 11))
    n.end(n.op("ADD", [n.real(2, 6), noise], options=schema.AddOptionsT()), behind=False)


@case("MULTINOMIAL")
def multinomial(n: Ops, op: str) -> None:
    n.end(n.op(op, [n.exact(2, 6), n.const(5)], ((2, 5), "int32"), schema.RandomOptionsT(7, 11)), behind=False)


# Recurrent cells: state that outlives a run


def lstm_inputs(n: Ops, depth: int, cells: int) -> list[int]:
    """The 17 inputs after the data: weights, no peepholes, biases, no projection."""
    weights = [n.constant(n.weights((cells, depth), depth)) for _ in range(4)]
    recurrent = [n.constant(n.weights((cells, cells), cells)) for _ in range(4)]
    biases = [n.constant(n.model.rng.normal(0, 0.5, cells).astype(np.float32)) for _ in range(4)]
    return [*weights, *recurrent, -1, -1, -1, *biases, -1, -1]


@case("LSTM", "UNIDIRECTIONAL_SEQUENCE_LSTM")
def lstm(n: Ops, op: str) -> None:
    shape, out = ((2, 3), (2, 4)) if op == "LSTM" else ((1, 5, 3), (1, 5, 4))
    x = n.real(*shape)
    batch = shape[0]
    inputs = [x, *lstm_inputs(n, 3, 4), n.variable(batch, 4), n.variable(batch, 4)]
    options = (
        schema.LSTMOptionsT(4, 0.0, 0.0)
        if op == "LSTM"
        else schema.UnidirectionalSequenceLSTMOptionsT(4, 0.0, 0.0, False)
    )
    n.end(n.op(op, inputs, (out, "float32"), options))


@case("BIDIRECTIONAL_SEQUENCE_LSTM")
def bidirectional_lstm(n: Ops, op: str) -> None:
    inputs = [n.real(1, 5, 3), *lstm_inputs(n, 3, 4), *lstm_inputs(n, 3, 4), *(n.variable(1, 4) for _ in range(4))]
    options = schema.BidirectionalSequenceLSTMOptionsT(4, 0.0, 0.0, False, False)
    n.end(*n.ops(op, [*inputs, *[-1] * 9], [((1, 5, 4), "float32")] * 2, options))


def rnn_inputs(n: Ops, batch: int, depth: int, cells: int) -> list[int]:
    bias = n.constant(n.model.rng.normal(0, 0.5, cells).astype(np.float32))
    weights = [n.constant(n.weights((cells, d), d)) for d in (depth, cells)]
    return [*weights, bias, n.variable(batch, cells)]


@case("RNN", "UNIDIRECTIONAL_SEQUENCE_RNN")
def rnn(n: Ops, op: str) -> None:
    shape, out = ((2, 3), (2, 4)) if op == "RNN" else ((1, 5, 3), (1, 5, 4))
    options = schema.RNNOptionsT(4) if op == "RNN" else schema.SequenceRNNOptionsT(False, 4)
    n.end(n.op(op, [n.real(*shape), *rnn_inputs(n, shape[0], 3, 4)], (out, "float32"), options))


@case("BIDIRECTIONAL_SEQUENCE_RNN")
def bidirectional_rnn(n: Ops, op: str) -> None:
    inputs = [n.real(1, 5, 3), *rnn_inputs(n, 1, 3, 4), *rnn_inputs(n, 1, 3, 4), -1, -1, -1]
    options = schema.BidirectionalSequenceRNNOptionsT(False, 4, False)
    n.end(*n.ops(op, inputs, [((1, 5, 4), "float32")] * 2, options))


@case("SVDF")
def svdf(n: Ops, op: str) -> None:
    x = n.real(1, 3)
    bias = n.const([0.1, -0.1], "float32")
    state = n.variable(1, 4 * 5)
    inputs = [x, n.constant(n.weights((4, 3), 3)), n.constant(n.weights((4, 5), 5)), bias, state]
    n.end(n.op(op, inputs, ((1, 2), "float32"), schema.SVDFOptionsT(2, 0)))


@case("VAR_HANDLE", "READ_VARIABLE", "ASSIGN_VARIABLE", "CALL_ONCE")
def variable(n: Ops, op: str) -> None:
    """A running sum in a resource variable, which an initialiser subgraph fills on the first run."""

    def handle(g: Ops) -> int:
        return g.op("VAR_HANDLE", [], ((), "resource"), schema.VarHandleOptionsT("", "total"))

    first = n.body("init")
    first.ops("ASSIGN_VARIABLE", [handle(first), first.const(np.full((2, 6), 0.25), "float32")], [],
              schema.AssignVariableOptionsT())  # fmt: skip
    n.ops("CALL_ONCE", [], [], schema.CallOnceOptionsT(first.close()))
    h = handle(n)
    before = n.op("READ_VARIABLE", [h], ((2, 6), "float32"), schema.ReadVariableOptionsT())
    total = n.op("ADD", [before, n.real(2, 6)], options=schema.AddOptionsT())
    n.ops("ASSIGN_VARIABLE", [h, total], [], schema.AssignVariableOptionsT())
    n.end(total)


@case(*HASHTABLES)
def hashtable(n: Ops, op: str) -> None:
    """A table from int64 to strings and back, filled once."""

    def table(g: Ops) -> int:
        options = schema.HashtableOptionsT(3, TYPE["int64"], TYPE["string"])
        return g.op("HASHTABLE", [], ((1,), "resource"), options)

    first = n.body("init")
    words = first.tensor((3,), "words", "string", strings([b"zero", b"one", b"two"]))
    first.ops("HASHTABLE_IMPORT", [table(first), first.const([0, 1, 2], "int64"), words], [],
              schema.HashtableImportOptionsT())  # fmt: skip
    n.ops("CALL_ONCE", [], [], schema.CallOnceOptionsT(first.close()))
    h = table(n)
    default = n.tensor((1,), "default", "string", strings([b"none"]))
    keys = n.plain(4, dtype="int64", high=5)
    n.end(n.op("HASHTABLE_FIND", [h, keys, default], ((4,), "string"), schema.HashtableFindOptionsT()))
    n.end(n.op("HASHTABLE_SIZE", [h], ((1,), "int64"), schema.HashtableSizeOptionsT()), n.real(2, 3))


def strings(values: list[bytes]) -> Array:
    """A string tensor's buffer: count, offsets, bytes."""
    lengths = [len(v) for v in values]
    head = 4 * (len(values) + 2)
    offsets = np.cumsum([head, *lengths])
    return np.frombuffer(np.array([len(values), *offsets], "<i4").tobytes() + b"".join(values), np.uint8)


# Control flow


@case("IF")
def if_(n: Ops, op: str) -> None:
    branches = []
    for name, activation in (("yes", "RELU"), ("no", "NONE")):
        g = n.body(name)
        x = g.plain(2, 6)
        branches.append(g.close(g.dense(x, 4, activation)))
    condition = n.plain(1, dtype="bool")
    options = schema.IfOptionsT(*branches)
    n.end(n.op(op, [condition, n.real(2, 6)], ((2, 4), "float32"), options))


def loop(n: Ops) -> tuple[int, int]:
    """Subgraphs of a loop over (counter, values): while counter < 4, add 1 and halve."""
    test, body = n.body("test"), n.body("body")
    i, _ = test.plain(1, dtype="int32"), test.plain(2, 6)
    found = test.close(test.op("LESS", [i, test.const([4])], ((1,), "bool"), schema.LessOptionsT()))
    i, x = body.plain(1, dtype="int32"), body.plain(2, 6)
    i = body.op("ADD", [i, body.const([1])], options=schema.AddOptionsT())
    x = body.op("MUL", [x, body.const([0.5], "float32")], options=schema.MulOptionsT())
    return found, body.close(i, x)


@case("WHILE", "STABLEHLO_WHILE")
def while_(n: Ops, op: str) -> None:
    options = (schema.WhileOptionsT if op == "WHILE" else schema.StablehloWhileOptionsT)(*loop(n))
    inputs = [n.plain(1, dtype="int32", high=6), n.real(2, 6)]
    n.end(*n.ops(op, inputs, [((1,), "int32"), ((2, 6), "float32")], options))


@case("STABLEHLO_CASE")
def stablehlo_case(n: Ops, op: str) -> None:
    branches = []
    for k in range(3):
        g = n.body(f"branch{k}")
        branches.append(g.close(g.op("MUL", [g.plain(2, 6), g.const([k + 1.0], "float32")], ((2, 6), "float32"),
                                     schema.MulOptionsT())))  # fmt: skip
    inputs = [n.plain(1, dtype="int32", high=3), n.real(2, 6)]
    n.end(n.op(op, inputs, ((2, 6), "float32"), schema.StablehloCaseOptionsT(branches)))


@case("STABLEHLO_COMPOSITE")
def composite(n: Ops, op: str) -> None:
    g = n.body("norm")
    x = g.plain(2, 6)
    square = g.close(g.op("MUL", [x, x], options=schema.MulOptionsT()))
    attributes = flexbuffers.Builder()
    with attributes.Map():
        attributes.Int("power", 2)
    options = schema.StableHLOCompositeOptionsT("test.square", square, np.frombuffer(attributes.Finish(), np.uint8))
    n.end(n.op(op, [n.real(2, 6)], options=options))


# StableHLO


def reducer(n: Ops) -> int:
    """A subgraph that adds two numbers."""
    g = n.body("add")
    a, b = g.plain(), g.plain()
    return g.close(g.op("STABLEHLO_ADD", [a, b]))


@case(*(f"STABLEHLO_{name}" for name in (
    "LOGISTIC", "ABS", "COSINE", "EXPONENTIAL", "FLOOR", "LOG", "NEGATE", "RSQRT", "TANH", "CBRT", "CONVERT",
    "RESHAPE", "ADD", "DIVIDE", "MULTIPLY", "MAXIMUM", "MINIMUM", "POWER", "REMAINDER", "SUBTRACT")))  # fmt: skip
def stablehlo(n: Ops, op: str) -> None:
    two = op.split("_")[1] in ("ADD", "DIVIDE", "MULTIPLY", "MAXIMUM", "MINIMUM", "POWER", "REMAINDER", "SUBTRACT")
    n.end(n.op(op, [n.real(2, 6, centre=2.5) for _ in range(2 if two else 1)]))
    if two:
        n.end(n.op(op, [n.exact(2, 6, dtype="int32") for _ in range(2)]))


@case("STABLEHLO_AND", "STABLEHLO_OR", "STABLEHLO_SHIFT_LEFT")
def stablehlo_bits(n: Ops, op: str) -> None:
    left, right = n.exact(2, 6, dtype="int32"), n.const(np.arange(12).reshape(2, 6) % 5)
    n.end(n.op(op, [left, right], options=schema.StablehloShiftLeftOptionsT() if "SHIFT" in op else None))
    if "SHIFT" not in op:
        n.end(n.op(op, [n.exact(2, 6, dtype="bool") for _ in range(2)]))


@case("STABLEHLO_SELECT", "STABLEHLO_CLAMP", "STABLEHLO_COMPARE", "STABLEHLO_CONCATENATE",
      "STABLEHLO_BROADCAST_IN_DIM", "STABLEHLO_SLICE", "STABLEHLO_TRANSPOSE", "STABLEHLO_IOTA", "STABLEHLO_PAD",
      "STABLEHLO_DYNAMIC_SLICE", "STABLEHLO_DYNAMIC_UPDATE_SLICE", "STABLEHLO_CUSTOM_CALL", "STABLEHLO_REDUCE",
      "STABLEHLO_SORT", "STABLEHLO_CONVOLUTION", "STABLEHLO_DOT_GENERAL")  # fmt: skip
def stablehlo_shapes(n: Ops, op: str) -> None:
    x = n.real(2, 6)
    inputs, out, options = STABLEHLO_SHAPES[op.removeprefix("STABLEHLO_")](n, x)
    n.end(n.op(op, inputs, (out, "float32"), options))


# Most of these LiteRT only knows by name; should it learn to run one, it is tested from then on.
STABLEHLO_SHAPES: dict[str, Shaped] = {
    "SELECT": lambda n, x: ([n.exact(2, 6, dtype="bool"), x, x], (2, 6), None),
    "CLAMP": lambda n, x: ([n.const(0.0, "float32"), x, n.const(0.5, "float32")], (2, 6), None),
    "COMPARE": lambda n, x: ([x, x], (2, 6), T.StablehloCompareOptionsT()),
    "CONCATENATE": lambda n, x: ([x, x], (2, 12), T.StablehloConcatenateOptionsT(1)),
    "BROADCAST_IN_DIM": lambda n, x: ([x], (3, 2, 6), T.StablehloBroadcastInDimOptionsT([1, 2])),
    "SLICE": lambda n, x: ([x], (1, 3), T.StablehloSliceOptionsT([0, 0], [1, 6], [1, 2])),
    "TRANSPOSE": lambda n, x: ([x], (6, 2), T.StablehloTransposeOptionsT([1, 0])),
    "IOTA": lambda n, x: ([], (2, 6), T.StablehloIotaOptionsT(1)),
    "PAD": lambda n, x: ([x, n.const(0.0, "float32")], (4, 13), T.StablehloPadOptionsT([1, 0], [1, 2], [0, 1])),
    "DYNAMIC_SLICE": lambda n, x: ([x, n.const(0), n.const(1)], (1, 3), T.StablehloDynamicSliceOptionsT([1, 3])),
    "DYNAMIC_UPDATE_SLICE": lambda n, x: ([x, n.real(1, 2), n.const(0), n.const(1)], (2, 6), None),
    "CUSTOM_CALL": lambda n, x: ([x], (2, 6), T.StablehloCustomCallOptionsT("none")),
    "REDUCE": lambda n, x: ([x, n.const(0.0, "float32")], (2,), T.StablehloReduceOptionsT([1], reducer(n))),
    "SORT": lambda n, x: ([x], (2, 6), T.StablehloSortOptionsT(1, True, 0)),
    "CONVOLUTION": lambda n, x: (
        [n.real(1, 4, 4, 2), n.constant(n.weights((3, 3, 2, 2), 18))],
        (1, 2, 2, 2),
        T.StablehloConvolutionOptionsT(),
    ),
    "DOT_GENERAL": lambda n, x: (
        [x, n.constant(n.weights((6, 3), 6))],
        (2, 3),
        T.StablehloDotGeneralOptionsT(None, None, [1], [0]),
    ),
}


@case("STABLEHLO_GATHER")
def stablehlo_gather(n: Ops, op: str) -> None:
    options = schema.StablehloGatherOptionsT([1], [0], [0], 1, [1, 6], False)
    n.end(n.op(op, [n.real(4, 6), n.const([[3], [0], [2]])], ((3, 6), "float32"), options))


@case("STABLEHLO_SCATTER")
def stablehlo_scatter(n: Ops, op: str) -> None:
    options = schema.StablehloScatterOptionsT(False, [1], [0], [0], 1, False, reducer(n))
    n.end(n.op(op, [n.real(4, 6), n.const([[3], [0], [3]]), n.real(3, 6)], ((4, 6), "float32"), options))


@case("STABLEHLO_REDUCE_WINDOW")
def stablehlo_reduce_window(n: Ops, op: str) -> None:
    options = schema.StablehloReduceWindowOptionsT([2, 2], [1, 2], [1, 1], [1, 1], [0, 0, 0, 0], reducer(n))
    n.end(n.op(op, [n.real(4, 6), n.const(0.0, "float32")], ((3, 3), "float32"), options))


@case("REDUCE_WINDOW")
def reduce_window(n: Ops, op: str) -> None:
    for function in (1, 3):  # add, minimum
        window = [n.const(v, "int64") for v in ([2, 2], [1, 2], [1, 1])]  # its size, steps and dilation
        inputs = [n.real(4, 6), n.const(0.0, "float32"), *window]
        n.end(n.op(op, inputs, ((3, 3), "float32"), schema.ReduceWindowOptionsT(function)))


@case("STABLEHLO_RNG_BIT_GENERATOR")
def stablehlo_rng(n: Ops, op: str) -> None:
    options = schema.StablehloRngBitGeneratorOptionsT(schema.RngAlgorithm.THREEFRY)
    state = n.plain(2, dtype="uint64", high=1000)
    n.end(*n.ops(op, [state], [((2,), "uint64"), ((3, 4), "uint32")], options), n.real(2, 2))


# The test


def build(op: str) -> tuple[bytes, Ops]:
    model = Model(seed=OPERATORS.index(op))
    net = Ops(model)
    CASES[op](net, op)
    net.writer.interface(net.inputs, net.outputs)
    return model.content(), net


def draw(net: Ops, seed: int) -> list[Array]:
    """Random values for every input, integers from the range that the case asks for."""
    rng = np.random.default_rng(seed)
    values: list[Array] = []
    for t in net.inputs:
        shape, dtype, (low, high) = net.shapes[t], net.types[t], net.ranges[t]
        if dtype == "float32":
            values.append(rng.uniform(-1, 1, shape).astype(np.float32))
        elif dtype == "int8":
            values.append(rng.integers(-128, 128, shape).astype(np.int8))
        elif dtype == "string":
            values.append(np.array([b"a b c d", b"x y"][seed % 2 : seed % 2 + 1], object).reshape(shape))
        else:
            values.append(rng.integers(int(low), int(high), shape).astype(dtype))
    return values


STEPS = [0, 1, "reset", 2, 0]  # seeds of inputs: state is kept between runs and forgotten at the reset


def runs(interpreter: Any, net: Ops) -> Iterator[list[Array]]:
    interpreter.allocate_tensors()
    for step in STEPS:
        if step == "reset":
            interpreter.reset_all_variables()
            continue
        for detail, value in zip(interpreter.get_input_details(), draw(net, int(step)), strict=True):
            interpreter.set_tensor(detail["index"], value)
        interpreter.invoke()
        yield [np.array(interpreter.get_tensor(d["index"])) for d in interpreter.get_output_details()]


def expected(content: bytes, net: Ops, **kernels: Any) -> list[list[Array]]:
    """What LiteRT gives. Raises what LiteRT raises."""
    return list(runs(Interpreter(model_content=content, num_threads=1, **kernels), net))


def difference(want: list[list[Array]], got: list[list[Array]], net: Ops) -> str:
    """The first difference beyond the tolerance, or ""."""
    assert len(want) == len(got) == len(STEPS) - 1
    for i, (left, right) in enumerate(zip(want, got, strict=True)):
        for k, (a, b) in enumerate(zip(left, right, strict=True)):
            where = f"run {i}, output {k} ({net.names[net.outputs[k]]})"
            if a.shape != b.shape or a.dtype != b.dtype:
                return f"{where}: {b.dtype} {b.shape} instead of {a.dtype} {a.shape}"
            if a.dtype.kind in "fc":
                largest = float(np.abs(a).max(initial=0))
                error = float(np.abs(a - b).max(initial=0))
                if not error <= TOLERANCE * largest + 1e-9:
                    return f"{where}: differs by {error:.2e}, its largest value is {largest:.2e}"
            elif not np.array_equal(a, b):
                return f"{where}: {b.ravel()[:12]} instead of {a.ravel()[:12]}"
    return ""


@pytest.mark.parametrize("op", [pytest.param(op, marks=[] if op in FAST else pytest.mark.slow) for op in OPERATORS])
def test_op(op: str, tmp_path: Path, device_key: Path) -> None:
    if op in NOT_ALONE:
        pytest.skip(NOT_ALONE[op])
    assert op in CASES, "LiteRT has a new op: give it a case"
    content, net = build(op)
    try:
        want = expected(content, net)
    except (RuntimeError, ValueError) as error:
        pytest.skip(f"LiteRT: {' '.join(str(error).split())}")
    model = tmp_path / "model.tflite"
    model.write_bytes(content)
    summary = shadownet.convert(model, tmp_path / "model.shadow")
    if op == "STABLEHLO_CASE":
        # LiteRT finds the branches only where they are subgraphs 1 to N of the file, so the model cannot be cut.
        assert summary["layers_outsourced"] == 0 and summary["kept_inside"]
        net.linear = 0
    else:
        assert summary["kept_inside"] == []
    assert summary["layers_outsourced"] == net.linear or (op in DYNAMIC and summary["layers_outsourced"] < net.linear)
    with shadownet.Interpreter(tmp_path / "model.shadow") as interpreter:
        got = list(runs(interpreter, net))
    problem = difference(want, got, net)
    if problem:  # LiteRT's kernel sets disagree on integers: equal to one of them is right
        try:
            plain = expected(content, net, experimental_op_resolver_type=OpResolverType.BUILTIN_REF)
        except (RuntimeError, ValueError):
            pytest.fail(problem)
        assert not difference(plain, got, net), problem


def test_every_op_of_the_shared_models_has_a_case(shared: Path) -> None:
    listed = json.loads((shared / "models" / "models.json").read_text())
    found = {op for model in listed.values() for op in model["ops"]}
    builtin = {op for op in found if op in OPERATORS}
    assert builtin and not builtin - set(CASES)
    custom = found - builtin
    assert custom <= {"TFLite_Detection_PostProcess"}, "a custom op that test_ops does not know"
