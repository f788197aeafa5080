"""Random small graphs: whatever shape a model has, protected and unprotected compute the same.

Graphs of two to eight ops with branches, shared tensors, several inputs and outputs, float32 and int8 side by side.
Each is converted and run in its two processes. Integers must be equal; so nothing is quantised that depends on a
float layer which went out, whose last digits its mask takes away.
"""

from __future__ import annotations

import math
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from ai_edge_litert import schema_py_generated as schema
from build import litert
from hypothesis import Phase, event, given, note, seed, settings
from hypothesis import strategies as st
from test_numbers import Quantised

import shadownet

Array = np.ndarray[Any, Any]
Draw = st.DrawFn

SCALE, ZERO = 1 / 16, -7  # of every int8 tensor, so that they can be concatenated; Quantised.layer uses the same
TOLERANCE = 1e-3  # of an output's largest value
ACTIVATION = st.sampled_from(["NONE", "RELU", "RELU6"])


@dataclass
class Recipe:
    """A random graph under construction. ``exact`` tensors are the same bits in both runs; ``text`` describes all."""

    net: Quantised
    open: list[int] = field(default_factory=list)  # tensors that ops may read
    exact: set[int] = field(default_factory=set)
    read: set[int] = field(default_factory=set)
    outputs: list[int] = field(default_factory=list)
    text: list[str] = field(default_factory=list)

    def add(self, t: int, what: str, *sources: int) -> int:
        """Register the tensor that an op made of ``sources``."""
        n = self.net
        n.types.setdefault(t, "float32")
        self.open.append(t)
        self.read.update(sources)
        if n.types[t] == "int8" or (what in MOVES and all(s in self.exact for s in sources)):
            self.exact.add(t)
        shape = ", ".join(str(d) for d in n.shapes[t])
        self.text.append(f"  t{t} = {what}({', '.join(f't{s}' for s in sources)}) -> {n.types[t]} [{shape}]")
        return t

    def content(self) -> bytes:
        self.net.writer.interface(self.net.inputs, self.outputs)
        return self.net.model.content()

    def __str__(self) -> str:
        return "\n".join(["graph:", *self.text, f"  outputs {', '.join(f't{t}' for t in self.outputs)}"])


# Ops. Each looks for a tensor that it can read, adds one op, and returns whether it found any.

MOVES = {"RESHAPE", "TRANSPOSE", "MAX_POOL_2D", "RELU", "DEQUANTIZE", "PAD"}  # exact if their inputs are


def pick(draw: Draw, r: Recipe, wanted: Callable[[int], bool]) -> int | None:
    """One of the open tensors, later ones first: they make the graph deep."""
    found = [t for t in reversed(r.open) if wanted(t)]
    return draw(st.sampled_from(found)) if found else None


def image(r: Recipe, dtype: str = "") -> Callable[[int], bool]:
    return lambda t: len(r.net.shapes[t]) == 4 and min(r.net.shapes[t][1:3]) > 1 and dtype in ("", r.net.types[t])


def conv(draw: Draw, r: Recipe) -> bool:
    x = pick(draw, r, image(r))
    if x is None:
        return False
    n = r.net
    kernel, stride, units = draw(st.integers(1, 3)), draw(st.integers(1, 2)), draw(st.integers(1, 5))
    padding, activation = draw(st.sampled_from(["SAME", "VALID"])), draw(ACTIVATION)
    if padding == "VALID" and kernel > min(n.shapes[x][1:3]):
        padding = "SAME"
    kind = draw(st.sampled_from(["CONV_2D", "DEPTHWISE_CONV_2D"]))
    units = draw(st.integers(1, 2)) if kind == "DEPTHWISE_CONV_2D" else units
    if n.types[x] == "int8":
        y = n.layer(kind, x, units, kernel, stride, padding=padding, activation=activation, scale=SCALE)
    elif kind == "CONV_2D":
        y = n.conv(x, units, kernel, stride, padding=padding, activation=activation)
    else:
        y = n.depthwise(x, units, kernel, stride, padding=padding, activation=activation)
    r.add(y, kind, x)
    r.text[-1] += f"  kernel {kernel}, stride {stride}, {padding}, {activation}"
    return True


def dense(draw: Draw, r: Recipe) -> bool:
    x = pick(draw, r, lambda t: len(r.net.shapes[t]) > 1)
    assert x is not None
    n, units, activation = r.net, draw(st.integers(1, 5)), draw(ACTIVATION)
    if n.types[x] == "int8":
        y = n.layer("FULLY_CONNECTED", x, units, activation=activation, scale=SCALE)
    elif draw(st.booleans()):
        y = n.dense(x, units, activation, bias=draw(st.booleans()), keep=draw(st.booleans()))
    else:
        activation, y = "as BATCH_MATMUL", n.matmul(x, units, draw(st.booleans()))
    r.add(y, "FULLY_CONNECTED", x)
    r.text[-1] += f"  {activation}"
    return True


def transpose_conv(draw: Draw, r: Recipe) -> bool:
    x = pick(draw, r, image(r, "float32"))
    if x is None or math.prod(r.net.shapes[x]) > 400:
        return False
    r.add(r.net.transpose_conv(x, draw(st.integers(1, 3))), "TRANSPOSE_CONV", x)
    return True


def unary(draw: Draw, r: Recipe) -> bool:
    kind = draw(st.sampled_from(["RELU", "TANH", "LOGISTIC", "LEAKY_RELU", "HARD_SWISH", "ELU", "SOFTMAX", "ABS"]))
    x = pick(draw, r, lambda t: r.net.types[t] == "float32")
    if x is None:
        return False
    options = {"LEAKY_RELU": schema.LeakyReluOptionsT(0.3), "SOFTMAX": schema.SoftmaxOptionsT(1.0)}.get(kind)
    r.add(r.net.op(kind, [x], options=options), kind, x)
    return True


def binary(draw: Draw, r: Recipe) -> bool:
    """Of two tensors of one shape, often twice the same, or of one and a constant per channel."""
    n = r.net
    a = pick(draw, r, lambda t: True)
    assert a is not None
    kind, activation = draw(st.sampled_from(["ADD", "MUL", "SUB"])), draw(ACTIVATION)
    same = [t for t in r.open if n.shapes[t] == n.shapes[a] and n.types[t] == n.types[a]]
    if n.types[a] == "float32" and draw(st.booleans()):
        values = n.model.rng.uniform(0.5, 1.5, n.shapes[a][-1]).astype(np.float32)
        inputs, sources = [a, n.constant(values)], [a]
    else:
        b = draw(st.sampled_from(same))
        inputs, sources = [a, b], [a, b]
        if draw(st.booleans()):
            inputs = inputs[::-1]
    if inputs[0] == inputs[-1] and kind == "SUB":
        kind = "ADD"  # nothing but zeros, of which no tolerance can be a share
    options = getattr(schema, f"{kind.title()}OptionsT")()
    options.fusedActivationFunction = {"NONE": 0, "RELU": 1, "RELU6": 3}[activation]
    y = n.op(kind, inputs, (n.shapes[a], n.types[a]), options, 2 if n.types[a] == "int8" else 1)
    r.add(mark(n, y), kind, *sources)
    r.text[-1] += f"  {activation}" + ("" if len(sources) == 2 else ", with a constant")
    return True


def concat(draw: Draw, r: Recipe) -> bool:
    n = r.net
    a = pick(draw, r, lambda t: True)
    assert a is not None
    fits = [t for t in r.open if n.shapes[t][:-1] == n.shapes[a][:-1] and n.types[t] == n.types[a]]
    parts = [a, *draw(st.lists(st.sampled_from(fits), min_size=1, max_size=2))]
    out = (*n.shapes[a][:-1], sum(n.shapes[t][-1] for t in parts))
    y = n.op("CONCATENATION", parts, (out, n.types[a]), schema.ConcatenationOptionsT(len(out) - 1))
    r.add(mark(n, y), "CONCATENATION", *parts)
    return True


def pool(draw: Draw, r: Recipe) -> bool:
    x = pick(draw, r, image(r))
    if x is None:
        return False
    n = r.net
    kind = draw(st.sampled_from(["MAX_POOL_2D", "AVERAGE_POOL_2D"]))
    batch, height, width, channels = n.shapes[x]
    out = (batch, height // 2, width // 2, channels)
    y = n.op(kind, [x], (out, n.types[x]), schema.Pool2DOptionsT(1, 2, 2, 2, 2))
    r.add(mark(n, y), kind, x)
    return True


def move(draw: Draw, r: Recipe) -> bool:
    n = r.net
    x = pick(draw, r, lambda t: True)
    assert x is not None
    shape = n.shapes[x]
    kind = draw(st.sampled_from(["RESHAPE", "TRANSPOSE", "PAD", "MEAN"]))
    if kind == "MEAN" and (len(shape) != 4 or n.types[x] != "float32"):
        kind = "RESHAPE"
    if kind == "RESHAPE":
        out = (shape[0], math.prod(shape[1:])) if draw(st.booleans()) else (math.prod(shape[:-1]), shape[-1])
        y = n.op(kind, [x, n.const(out)], (out, n.types[x]), schema.ReshapeOptionsT(list(out)))
    elif kind == "TRANSPOSE":
        order = draw(st.permutations(range(1, len(shape))))
        out = (shape[0], *(shape[k] for k in order))
        y = n.op(kind, [x, n.const([0, *order])], (out, n.types[x]), schema.TransposeOptionsT())
    elif kind == "PAD":
        amounts = [[0, 0]] * len(shape)
        amounts[1] = [1, draw(st.integers(0, 1))]
        out = tuple(d + sum(a) for d, a in zip(shape, amounts, strict=True))
        y = n.op(kind, [x, n.const(amounts)], (out, n.types[x]), schema.PadOptionsT())
    else:
        y = n.op(kind, [x, n.const([1, 2])], ((shape[0], shape[3]), "float32"), schema.ReducerOptionsT(False))
    r.add(mark(n, y), kind, x)
    return True


def convert_type(draw: Draw, r: Recipe) -> bool:
    n = r.net
    x = pick(draw, r, lambda t: n.types[t] == "int8" or t in r.exact)
    if x is None:
        return False
    if n.types[x] == "int8":
        r.add(n.op("DEQUANTIZE", [x], (n.shapes[x], "float32")), "DEQUANTIZE", x)
    else:
        r.add(mark(n, n.op("QUANTIZE", [x], (n.shapes[x], "int8"))), "QUANTIZE", x)
    return True


def mark(n: Quantised, t: int) -> int:
    """Give int8 tensors their one quantisation."""
    return n.activation(t, SCALE, ZERO) if n.types[t] == "int8" else t


STEPS = [conv, conv, dense, dense, transpose_conv, unary, binary, binary, concat, pool, move, convert_type]


@st.composite
def graphs(draw: Draw) -> Recipe:
    n = Quantised("float32", False, draw(st.integers(0, 2**16)))
    r = Recipe(n)
    for _ in range(draw(st.integers(1, 3))):
        dtype = draw(st.sampled_from(["float32", "float32", "int8"]))
        shape = draw(st.sampled_from([(1, 4, 5, 3), (1, 4, 5, 3), (1, 6, 6, 2), (2, 4)]))
        x = n.plain(*shape, dtype=dtype)
        r.exact.add(x)
        r.add(mark(n, x), "input")
    for _ in range(draw(st.integers(2, 8))):
        while not draw(st.sampled_from(STEPS))(draw, r):
            pass
    made = [t for t in r.open if t not in n.inputs]
    r.outputs = [t for t in made if t not in r.read]
    extra = [t for t in made if t in r.read]
    if extra and draw(st.booleans()):
        r.outputs.append(draw(st.sampled_from(extra)))
    if draw(st.integers(0, 4)) == 0:
        t = n.constant(n.model.rng.normal(0, 1, (2, 3)).astype(np.float32))
        r.text.append(f"  t{t} = constant -> float32 [2, 3]")
        r.outputs.append(t)
    r.outputs = draw(st.permutations(r.outputs))
    return r


# Running and comparing


def samples(r: Recipe) -> list[list[Array]]:
    rng = np.random.default_rng(5)
    n = r.net
    return [
        [
            rng.integers(-128, 128, n.shapes[t]).astype(np.int8)
            if n.types[t] == "int8"
            else rng.normal(0, 1, n.shapes[t]).astype(np.float32)
            for t in n.inputs
        ]
        for _ in range(3)
    ]


def check(r: Recipe) -> None:
    """Convert, run, compare."""
    note(str(r))
    content, inputs = r.content(), samples(r)
    want = [litert(content, sample) for sample in inputs]
    with tempfile.TemporaryDirectory() as folder:
        model, bundle = Path(folder, "model.tflite"), Path(folder, "model.shadow")
        model.write_bytes(content)
        summary = shadownet.convert(model, bundle)
        assert summary["kept_inside"] == [], "layers that were not precise enough stayed inside"
        with shadownet.Interpreter(bundle) as interpreter:
            interpreter.allocate_tensors()
            interpreter.prepare(1)
            for k, sample in enumerate(inputs):
                for detail, value in zip(interpreter.get_input_details(), sample, strict=True):
                    interpreter.set_tensor(detail["index"], value)
                interpreter.invoke()
                got = [interpreter.get_tensor(d["index"]) for d in interpreter.get_output_details()]
                for t, a, b in zip(r.outputs, want[k], got, strict=True):
                    compare(t, a, b)
    out = summary["layers_outsourced"]
    event(f"layers outsourced: {out if out < 4 else 'more'}")


def compare(t: int, a: Array, b: Array) -> None:
    assert (a.shape, a.dtype) == (b.shape, b.dtype), f"output t{t}"
    if a.dtype.kind in "iu":
        np.testing.assert_array_equal(b, a, err_msg=f"output t{t}")
    else:
        # A hundredth: where two large values cancel, what is left of them is noise.
        size = max(float(np.abs(a).max(initial=0)), 0.01)
        np.testing.assert_allclose(b, a, rtol=0, atol=TOLERANCE * size, err_msg=f"output t{t}")


def explore(number: int, cases: int) -> None:
    @seed(number)
    # Shrinking would run hundreds of graphs more; they are small as they come.
    @settings(max_examples=cases, print_blob=False, phases=[Phase.generate])
    @given(graphs())
    def run(recipe: Recipe) -> None:
        check(recipe)

    run()


def test_a_few_random_graphs_compute_the_same(device_key: Path) -> None:
    explore(1000, 15)


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("number", range(5))
def test_250_random_graphs_compute_the_same(number: int, device_key: Path) -> None:
    """Five times fifty, so that they can run side by side."""
    explore(number, 50)
