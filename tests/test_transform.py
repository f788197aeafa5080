"""The transform, from weights to restored results, against a float64 reference of our own.

Public weights run under LiteRT as a bundle's accelerator.tflite has them; the reference is plain NumPy in float64
and shares no code with the packages. Whatever LiteRT itself refuses is not a configuration.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
from ai_edge_litert.interpreter import Interpreter
from build import Model, pair, shapes_of
from hypothesis import assume, event, given
from hypothesis import strategies as st
from seeded import SeededRng

from enclave import formats
from enclave.rng import Rng
from enclave.schemes import ARTIFACT, PAPER, LayerWeights, Scheme
from shadownet.graph import ModelWriter, parse
from shadownet.linear import LinearOp
from shadownet.partition import partition

Array = np.ndarray[Any, Any]


# The reference: naive convolutions in float64, weights in TFLite's layout.


def same_padding(size: int, kernel: int, stride: int, dilation: int) -> tuple[int, int]:
    """TensorFlow's rule: output = ceil(size / stride), the odd zero goes to the end."""
    total = max((-(-size // stride) - 1) * stride + (kernel - 1) * dilation + 1 - size, 0)
    return total // 2, total - total // 2


def naive_conv(x: Array, w: Array, o: Geometry) -> Array:
    """w is [n, kh, kw, channels / groups]."""
    n, kh, kw, depth = w.shape
    x = o.padded(x, kh, kw)
    groups = x.shape[3] // depth
    height = (x.shape[1] - (kh - 1) * o.dilation[0] - 1) // o.stride[0] + 1
    width = (x.shape[2] - (kw - 1) * o.dilation[1] - 1) // o.stride[1] + 1
    y = np.zeros((len(x), height, width, n))
    for k in range(n):
        first = k // (n // groups) * depth
        for i in range(height):
            for j in range(width):
                top, left = i * o.stride[0], j * o.stride[1]
                window = x[
                    :,
                    top : top + (kh - 1) * o.dilation[0] + 1 : o.dilation[0],
                    left : left + (kw - 1) * o.dilation[1] + 1 : o.dilation[1],
                    first : first + depth,
                ]
                y[:, i, j, k] = (window * w[k]).sum(axis=(1, 2, 3))
    return y


def naive_depthwise(x: Array, w: Array, o: Geometry) -> Array:
    """w is [1, kh, kw, channels * multiplier]: a grouped convolution with one channel in each group."""
    return naive_conv(x, w.transpose(3, 1, 2, 0), o)


def naive_transpose_conv(x: Array, w: Array, o: Geometry) -> Array:
    """w is [n, kh, kw, channels]. Every input value adds its multiple of the kernel to the output."""
    n, kh, kw, _ = w.shape
    sh, sw = o.stride
    full = np.zeros((len(x), (x.shape[1] - 1) * sh + kh, (x.shape[2] - 1) * sw + kw, n))
    for i in range(x.shape[1]):
        for j in range(x.shape[2]):
            full[:, i * sh : i * sh + kh, j * sw : j * sw + kw] += np.einsum("bc,nhwc->bhwn", x[:, i, j], w)
    if o.padding == "VALID":
        return full
    # SAME: the output has size * stride; what sticks out is cut, the odd row at the end. A kernel smaller than the
    # stride leaves zeros at the end.
    out = np.zeros((len(x), x.shape[1] * sh, x.shape[2] * sw, n))
    top, left = max(kh - sh, 0) // 2, max(kw - sw, 0) // 2
    part = full[:, top : top + out.shape[1], left : left + out.shape[2]]
    out[:, : part.shape[1], : part.shape[2]] = part
    return out


def naive_dense(x: Array, w: Array, o: Geometry) -> Array:
    """w is [n, depth]; without ``keep`` the input is cut into rows of ``depth``, whatever its shape."""
    y = x.reshape(-1, w.shape[1]) @ w.T
    return y.reshape(*x.shape[:-1], len(w)) if o.keep else y


def naive_matmul(x: Array, w: Array, o: Geometry) -> Array:
    return x @ (np.swapaxes(w, -1, -2) if o.adj_y else w)


NAIVE = {
    "CONV_2D": naive_conv,
    "DEPTHWISE_CONV_2D": naive_depthwise,
    "TRANSPOSE_CONV": naive_transpose_conv,
    "FULLY_CONNECTED": naive_dense,
    "BATCH_MATMUL": naive_matmul,
}
NAIVE_ACTIVATIONS = {
    "NONE": lambda y: y,
    "RELU": lambda y: np.maximum(y, 0),
    "RELU6": lambda y: np.clip(y, 0, 6),
    "RELU_N1_TO_1": lambda y: np.clip(y, -1, 1),
}


# Configurations


@dataclass(frozen=True)
class Geometry:
    """Everything that the reference needs to know about one op besides its weights."""

    stride: tuple[int, int] = (1, 1)
    dilation: tuple[int, int] = (1, 1)
    padding: str = "VALID"
    explicit: tuple[tuple[int, int], ...] = ()  # a PAD before the convolution
    keep: bool = False
    adj_y: bool = False

    def padded(self, x: Array, kh: int, kw: int) -> Array:
        if self.explicit:
            x = np.pad(x, self.explicit)
        if self.padding == "SAME":
            rows = same_padding(x.shape[1], kh, self.stride[0], self.dilation[0])
            columns = same_padding(x.shape[2], kw, self.stride[1], self.dilation[1])
            x = np.pad(x, ((0, 0), rows, columns, (0, 0)))
        return x


@dataclass(frozen=True)
class Case:
    """One model with one linear op, and how to compute it without the packages."""

    kind: str
    content: bytes
    x: Array
    weights: Array  # TFLite layout
    bias: Array | None
    activation: str
    geometry: Geometry

    def _repr_pretty_(self, printer: Any, cycle: bool) -> None:
        """What Hypothesis prints of a failing case."""
        bias = "no bias" if self.bias is None else "bias"
        printer.text(f"{self.kind} of {self.x.shape} with {self.weights.shape}, {bias}, {self.activation}, ")
        printer.text(repr(self.geometry))

    def linear(self, x: Array, weights: Array) -> Array:
        return NAIVE[self.kind](x.astype(np.float64), weights.astype(np.float64), self.geometry)

    def expected(self) -> Array:
        y = self.linear(self.x, self.weights)
        return NAIVE_ACTIVATIONS[self.activation](y if self.bias is None else y + self.bias)


pairs = st.tuples(st.integers(1, 3), st.integers(1, 3))
activations = st.sampled_from(sorted(NAIVE_ACTIVATIONS))


@st.composite
def convolutions(draw: Any, kind: str, counts: tuple[int, ...] = (1, 2, 3, 5, 7), reach: int = 3) -> Case:
    """CONV_2D (grouped or not), DEPTHWISE_CONV_2D and TRANSPOSE_CONV; kernels of up to ``reach``."""
    net = Model(draw(st.integers(0, 1 << 16))).net()
    groups = draw(st.integers(1, 3)) if kind == "CONV_2D" else 1
    channels = groups * draw(st.sampled_from(counts))
    shape = (draw(st.integers(1, 3)), draw(st.integers(1, 9)), draw(st.integers(1, 9)), channels)
    kernel, stride = draw(st.tuples(*[st.integers(1, reach)] * 2)), draw(pairs)
    dilation = draw(pairs) if kind != "TRANSPOSE_CONV" else (1, 1)
    padding, activation = draw(st.sampled_from(["SAME", "VALID"])), draw(activations)
    bias = kind != "TRANSPOSE_CONV" or draw(st.booleans())  # without one LiteRT refuses the others, or crashes
    explicit: tuple[tuple[int, int], ...] = ()
    x = source = net.input(*shape)
    if kind != "TRANSPOSE_CONV" and draw(st.booleans()):
        sides = draw(st.tuples(*[st.integers(0, 2)] * 4))
        explicit = ((0, 0), sides[:2], sides[2:], (0, 0))
        source = net.pad(x, *explicit)
    if padding == "VALID":
        window = [(k - 1) * d + 1 for k, d in zip(kernel, dilation, strict=True)]
        assume(window[0] <= net.shapes[source][1] and window[1] <= net.shapes[source][2])
    common = {"kernel": kernel, "stride": stride, "padding": padding, "activation": activation, "bias": bias}
    if kind == "CONV_2D":
        y = net.conv(source, groups * draw(st.sampled_from([1, 2, 3, 6])), dilation=dilation, groups=groups, **common)
    elif kind == "DEPTHWISE_CONV_2D":
        y = net.depthwise(source, draw(st.integers(1, 3)), dilation=dilation, **common)
    else:
        y = net.transpose_conv(source, draw(st.sampled_from([1, 2, 5])), **common)
    event(f"groups={groups} explicit={bool(explicit)} batch>1={shape[0] > 1}")
    return case(net, kind, x, y, activation, Geometry(stride, dilation, padding, explicit))


@st.composite
def dense_layers(draw: Any, kind: str) -> Case:
    """FULLY_CONNECTED and BATCH_MATMUL with a constant right side, inputs of any rank."""
    net = Model(draw(st.integers(0, 1 << 16))).net()
    depth, units = draw(st.sampled_from([1, 2, 5, 12, 33])), draw(st.sampled_from([1, 2, 3, 10, 17]))
    shape = (*draw(st.lists(st.integers(1, 4), min_size=1, max_size=3)), depth)
    if kind == "BATCH_MATMUL":
        x, adj_y = net.input(*shape), draw(st.booleans())
        y = net.matmul(x, units, adj_y, draw(st.integers(2, len(shape))))
        return case(net, kind, x, y, "NONE", Geometry(adj_y=adj_y))
    keep, activation = draw(st.booleans()), draw(activations)
    if not keep and draw(st.booleans()):  # the last dimension need not be the depth
        shape = (*shape[:-1], 1, depth)[::-1]
    x = net.input(*shape)
    y = net.dense(x, units, activation, draw(st.booleans()), keep, depth=depth)
    return case(net, kind, x, y, activation, Geometry(keep=keep))


def case(net: Any, kind: str, x: int, y: int, activation: str, geometry: Geometry) -> Case:
    content = net.output(y).model.content()
    graph = parse(content).subgraphs[0]
    op = next(op for op in graph.ops if op.kind == kind)
    weights = graph.tensors[op.inputs[1]].values()
    bias = graph.tensors[t].values() if (t := op.input(3 if kind == "TRANSPOSE_CONV" else 2)) >= 0 else None
    values = net.model.rng.normal(0, 1, net.shapes[x]).astype(np.float32)
    return Case(kind, content, values, weights, bias, activation, geometry)


CASES = {
    **{kind: convolutions(kind) for kind in ("CONV_2D", "DEPTHWISE_CONV_2D", "TRANSPOSE_CONV")},
    **{kind: dense_layers(kind) for kind in ("FULLY_CONNECTED", "BATCH_MATMUL")},
}


# The packages' side


def recognised(content: bytes) -> LinearOp:
    """The model's one linear op, as the converter sees it. Configurations that LiteRT refuses are not tested."""
    graph = parse(content)
    try:
        shapes = shapes_of(content)
    except (RuntimeError, ValueError):
        assume(False)
    (lin,) = partition(graph, 0, shapes, "all").linear
    return lin


def on_accelerator(lin: LinearOp, rows: Array, x: Array) -> Array:
    """Run a layer with these rows as weights, as accelerator.tflite holds it."""
    writer = ModelWriter("one layer")
    target = writer.subgraph("layer")
    source, result = lin.emit(target, lin.weights_from(rows))
    interpreter = Interpreter(model_content=writer.finish(), num_threads=1)
    interpreter.allocate_tensors()
    interpreter.set_tensor(source, np.ascontiguousarray(x))
    interpreter.invoke()
    return interpreter.get_tensor(result)


def protected(case: Case, lin: LinearOp, scheme: Scheme, ratio: float, rng: Rng) -> tuple[Array, Array]:
    """One layer as the enclave runs it: (output, tolerance for each of its elements)."""
    rows = lin.rows(case.weights)
    hidden = scheme.obfuscate(LayerWeights(rows, depthwise=lin.depthwise), ratio, rng)
    rms = float(np.sqrt(np.mean(np.square(case.x))))
    push = rng.normal(scheme.mask.sigma(rms), case.x.shape)
    pop = on_accelerator(lin, rows, push)
    answer = on_accelerator(lin, hidden.rows, hidden.restore.shuffle(case.x + push))
    y = hidden.restore.apply(answer) - pop
    return finished(case, lin, y), tolerance(case, lin, hidden, push)


def finished(case: Case, lin: LinearOp, y: Array) -> Array:
    """Bias and activation, as the bundle's record of the layer has them."""
    first, second = (part.to_json() for part in (lin.epilogue.first, lin.epilogue.second))
    record = {"kind": "float", "first": first, "second": second, "residual": -1, "gain": "", "shift": ""}
    record["bias"] = "" if case.bias is None else "bias"
    blobs = {} if case.bias is None else {"bias": case.bias}
    return formats.create(record, blobs).decode(y, None)


def tolerance(case: Case, lin: LinearOp, hidden: Any, push: Array) -> Array:
    """What float32 may cost, for each output.

    Summing d products in float32 in any order errs by at most (d + 1) u sum|a||b|, u = 2^-24 (Higham, Accuracy and
    Stability of Numerical Algorithms, 3.1). Here that happens to (w - f) and f over x + m and to w over m, and
    |w - f| + |f| + |w| <= 2 (|w| + |f|), |x + m| and |m| <= |x| + |m|. A dozen single roundings (of x + m, of the
    public weights, in restoring, bias and clipping) make d + 16 of d + 1. A wrong permutation, scalar or mask costs
    as much as the output itself, which is more by orders of magnitude.
    """
    rows = np.abs(lin.rows(case.weights))
    if hidden.restore.slot.shape[0] == 2:
        public = hidden.rows.reshape(-1, rows.shape[-1])
        rows = rows + np.abs(public[hidden.restore.slot[1]]).reshape(rows.shape)
    magnitude = case.linear(np.abs(case.x) + np.abs(push), layout(lin, rows))
    bias = 0.0 if case.bias is None else np.abs(case.bias)
    return (rows.shape[-1] + 16) * 2.0**-23 * (magnitude + bias) + np.finfo(np.float32).tiny


def layout(lin: LinearOp, rows: Array) -> Array:
    """Rows back in the op's own layout."""
    if lin.kind == "BATCH_MATMUL":
        matrix = rows[0] if lin.op.options.adjY else rows[0].T
        return matrix.reshape(lin.weight_shape)
    return lin.weights_from(rows)


def check(case: Case, scheme: Scheme, ratio: float, seed: int) -> None:
    lin = recognised(case.content)
    assert (lin.pad is not None) == bool(case.geometry.explicit)
    expected = case.expected()
    got, allowed = protected(case, lin, scheme, ratio, SeededRng(seed))
    assert got.shape == expected.shape and got.dtype == np.float32
    worst = np.max(np.abs(got - expected) / allowed, initial=0.0)
    assert worst <= 1.0, f"off by {worst:.3g} times what float32 may cost"


@pytest.mark.parametrize("kind", sorted(CASES))
@pytest.mark.parametrize("scheme", [PAPER, ARTIFACT], ids=lambda s: s.name.split(":")[1])
def test_restored_result_equals_the_float64_reference(kind: str, scheme: Scheme) -> None:
    @given(CASES[kind], st.floats(1.0, 2.0), st.integers(0, 1 << 32))
    def every(case: Case, ratio: float, seed: int) -> None:
        check(case, scheme, ratio, seed)

    every()


# Some configurations by name: LiteRT runs these, so nothing here may be assumed away.
NAMED = {
    "grouped": ("conv", {"filters": 6, "groups": 2, "stride": (2, 1)}),
    "grouped, one filter in each": ("conv", {"filters": 4, "groups": 4, "kernel": (1, 3)}),
    "one filter": ("conv", {"filters": 1, "kernel": 5}),
    "dilated": ("conv", {"filters": 3, "dilation": (2, 3), "padding": "VALID", "activation": "RELU6"}),
    "stride 3": ("conv", {"filters": 5, "stride": 3, "activation": "RELU_N1_TO_1"}),
    "depth multiplier": ("depthwise", {"multiplier": 3, "stride": 2}),
    "dilated depthwise": ("depthwise", {"multiplier": 1, "dilation": 2}),
    "transposed, kernel below stride": ("transpose_conv", {"filters": 3, "kernel": 2, "stride": 3}),
    "transposed, with activation": ("transpose_conv", {"filters": 3, "padding": "VALID", "activation": "RELU"}),
}


@pytest.mark.parametrize("name", NAMED)
def test_named_configuration(name: str) -> None:
    method, options = NAMED[name]
    net = Model().net()
    x = net.input(2, 8, 7, 4)
    y = getattr(net, method)(x, **options)
    kind = {"conv": "CONV_2D", "depthwise": "DEPTHWISE_CONV_2D", "transpose_conv": "TRANSPOSE_CONV"}[method]
    kernel = Geometry(
        pair(options.get("stride", 2 if method == "transpose_conv" else 1)),
        pair(options.get("dilation", 1)),
        options.get("padding", "SAME"),
    )
    shapes_of(net.output(y).model.content())  # or this raises
    check(case(net, kind, x, y, options.get("activation", "NONE"), kernel), PAPER, 1.2, 0)


def test_the_reference_is_right_about_a_convolution_computed_by_hand() -> None:
    x = np.arange(9.0).reshape(1, 3, 3, 1)
    ones = np.ones((1, 2, 2, 1))
    assert naive_conv(x, ones, Geometry()).ravel().tolist() == [8, 12, 20, 24]
    assert naive_conv(x, ones, Geometry(padding="SAME", stride=(2, 2))).ravel().tolist() == [8, 7, 13, 8]
    assert naive_conv(x, ones, Geometry(dilation=(2, 2))).ravel().tolist() == [0 + 2 + 6 + 8]
    spread = naive_transpose_conv(x[:, :1, :2], ones, Geometry(stride=(1, 1)))
    assert spread.ravel().tolist() == [0, 1, 1, 0, 1, 1]


# What the transform promises


def layer(groups: int = 1, n: int = 10, depth: int = 12, seed: int = 0, **options: bool) -> LayerWeights:
    rows = np.random.default_rng(seed).normal(0, 0.3, (groups, n, depth)).astype(np.float32)
    return LayerWeights(np.rint(rows * 100) if options.get("integer") else rows, **options)


@pytest.mark.parametrize("scheme", [PAPER, ARTIFACT], ids=lambda s: s.name)
@pytest.mark.parametrize("groups", [1, 3])
def test_public_rows_are_the_papers_equation_and_the_masks_in_the_clear(scheme: Scheme, groups: int) -> None:
    weights = layer(groups)
    hidden = scheme.obfuscate(weights, 1.5, SeededRng(1))
    assert hidden.rows.shape == (groups, 15, 12)
    public = hidden.rows.reshape(-1, 12).astype(np.float64)
    (real, mask), (scale, ones) = hidden.restore.slot, hidden.restore.coefficient
    assert (ones == 1).all()
    w = weights.rows.reshape(-1, 12).astype(np.float64)
    f = public[mask]  # a mask filter stands, as it is, in the slot that the secret names
    np.testing.assert_allclose(public[real], (w - f) / scale[:, None].astype(np.float64), rtol=1e-6, atol=1e-6)
    assert not set(real) & set(mask), "a filter hides behind a slot that is a filter itself"
    for g in range(groups):  # filters hide behind mask filters of their own group
        own = slice(g * 10, (g + 1) * 10)
        assert set(real[own] // 15) == set(mask[own] // 15) == {g}


@pytest.mark.parametrize("scheme", [PAPER, ARTIFACT], ids=lambda s: s.name)
def test_every_filter_has_a_slot_of_its_own_and_the_order_is_secret(scheme: Scheme) -> None:
    weights = layer(n=40)
    slots = [scheme.obfuscate(weights, 1.2, Rng()).restore.slot[0] for _ in range(2)]
    for real in slots:
        assert len(set(real)) == 40 and real.min() >= 0 and real.max() < 48
        assert not np.array_equal(real, np.sort(real)), "the filters are in their natural order"
    assert not np.array_equal(*slots)


@pytest.mark.parametrize("scheme", [PAPER, ARTIFACT], ids=lambda s: s.name)
@pytest.mark.parametrize("depthwise", [False, True])
def test_secrets_and_public_rows_differ_between_runs(scheme: Scheme, depthwise: bool) -> None:
    weights = layer(40, 1, depthwise=True) if depthwise else layer(n=40)
    first, second = (scheme.obfuscate(weights, 1.2, Rng()) for _ in range(2))
    assert not np.array_equal(first.rows, second.rows)
    ours, theirs = first.restore.to_blobs(), second.restore.to_blobs()
    for name, value in ours.items():
        if name != "coefficient" or scheme is PAPER:  # the artifact has no scalars
            assert not np.array_equal(value, theirs[name]), name


def test_scalars_are_those_of_the_variant() -> None:
    paper = PAPER.obfuscate(layer(n=400), 1.2, SeededRng(0)).restore.coefficient[0]
    assert paper.min() >= 1 / 16 and paper.max() <= 1 and len(np.unique(paper)) > 390
    # Uniform on (1/16, 1): mean 0.531, deviation 0.271; the mean of 400 deviates by 0.0135.
    assert abs(paper.mean() - 17 / 32) < 5 * 0.0135
    assert (ARTIFACT.obfuscate(layer(n=40), 1.2, SeededRng(0)).restore.coefficient == 1).all()


def test_mask_filters_have_the_deviation_of_the_variant() -> None:
    weights = layer(n=300, depth=50)
    for scheme, sigma in ((PAPER, float(weights.rows.std())), (ARTIFACT, 1.0)):
        hidden = scheme.obfuscate(weights, 2.0, SeededRng(0))
        masks = np.delete(hidden.rows[0], hidden.restore.slot[0], axis=0)
        assert masks.shape == (300, 50)
        assert masks.std() == pytest.approx(sigma, rel=0.03)  # 15,000 samples: 0.6 % is one deviation
        assert abs(masks.mean()) < 5 * sigma / math.sqrt(masks.size)


def test_all_mask_filters_are_used() -> None:
    hidden = PAPER.obfuscate(layer(n=200), 1.1, SeededRng(0))
    assert len(np.unique(hidden.restore.slot[1])) == 20  # 200 draws over 20: one left out has chance 7e-4


@pytest.mark.parametrize(
    ("n", "ratio", "filters"),
    [(10, 1.1, 11), (10, 1.2, 12), (16, 1.2, 20), (32, 1.2, 39), (64, 1.2, 77), (1, 1.0, 1), (1, 1.2, 2), (5, 2.0, 10),
     (1000, 1.001, 1001), (100, 1.15, 115), (3, 8.0, 24)],
)  # fmt: skip
def test_filters_are_the_ceiling_of_r_times_n(n: int, ratio: float, filters: int) -> None:
    """1.1 x 10 is 11.000000000000002 in binary, and still gives 11."""
    assert PAPER.obfuscate(layer(n=n), ratio, SeededRng(0)).rows.shape == (1, filters, 12)


def test_without_mask_filters_rows_are_permuted_and_scaled() -> None:
    weights = layer(n=7)
    hidden = PAPER.obfuscate(weights, 1.0, SeededRng(0))
    (real,), (scale,) = hidden.restore.slot, hidden.restore.coefficient
    np.testing.assert_allclose(hidden.rows[0][real] * scale[:, None], weights.rows[0], rtol=1e-6)


@pytest.mark.parametrize("scheme", [PAPER, ARTIFACT], ids=lambda s: s.name)
def test_depthwise_layers_have_no_mask_filters_but_a_channel_order(scheme: Scheme) -> None:
    weights = layer(16, 3, 9, depthwise=True)
    hidden = scheme.obfuscate(weights, 1.7, SeededRng(0))
    assert hidden.rows.shape == (16, 3, 9)
    order, (real,), (scale,) = hidden.restore.order, hidden.restore.slot, hidden.restore.coefficient
    assert sorted(order) == list(range(16)) and list(order) != list(range(16))
    assert sorted(real) == list(range(48))
    restored = hidden.rows.reshape(48, 9)[real] * scale[:, None]
    np.testing.assert_allclose(restored, weights.rows.reshape(48, 9), rtol=1e-6)
    # The channel that arrives at a group is the one that the group's weights are for.
    np.testing.assert_array_equal(hidden.restore.shuffle(np.arange(16)[None])[0], order)
    assert set(real.reshape(16, 3)[order[5]] // 3) == {5}


def test_only_the_artifact_keeps_the_last_dense_layer() -> None:
    weights = layer(last_dense=True)
    kept = ARTIFACT.obfuscate(weights, 1.2, SeededRng(0))
    np.testing.assert_array_equal(kept.rows, weights.rows)
    assert kept.restore.order is None
    answer = np.ones((2, 10), np.float32)
    np.testing.assert_array_equal(kept.restore.apply(answer), answer)
    assert PAPER.obfuscate(weights, 1.2, SeededRng(0)).rows.shape == (1, 12, 12)
    assert ARTIFACT.obfuscate(layer(), 1.2, SeededRng(0)).rows.shape == (1, 12, 12)


@pytest.mark.parametrize("scheme", [PAPER, ARTIFACT], ids=lambda s: s.name)
@pytest.mark.parametrize("depthwise", [False, True])
def test_integer_layers_keep_integers_and_restore_exactly(scheme: Scheme, depthwise: bool) -> None:
    weights = layer(12, 2, 9, integer=True, depthwise=True) if depthwise else layer(n=20, depth=30, integer=True)
    hidden = scheme.obfuscate(weights, 1.2, SeededRng(0))
    np.testing.assert_array_equal(hidden.rows, np.rint(hidden.rows))
    assert set(np.unique(hidden.restore.coefficient)) <= {-1.0, 1.0}
    assert hidden.rows.any(axis=-1).all(), "a mask filter of an integer layer was rounded to nothing"
    if depthwise:
        return
    x = np.random.default_rng(1).integers(-128, 128, (4, 30)).astype(np.float32)
    got = hidden.restore.apply(x @ hidden.rows[0].T)  # all sums below 2^24: float32 is exact
    np.testing.assert_array_equal(got, x @ weights.rows[0].T)


def test_obfuscating_and_restoring_leaves_its_inputs_alone() -> None:
    weights = layer()
    before = weights.rows.copy()
    hidden = PAPER.obfuscate(weights, 1.2, SeededRng(0))
    np.testing.assert_array_equal(weights.rows, before)
    answer = np.ones((2, 12), np.float32)
    hidden.restore.apply(answer)
    np.testing.assert_array_equal(answer, np.ones((2, 12), np.float32))


# The generator behind it


def test_normal_masks_are_normal() -> None:
    sample = SeededRng(0).normal(3.0, (200, 1001))
    assert sample.dtype == np.float32 and np.isfinite(sample).all()
    z = sample.ravel() / 3.0
    assert abs(z.mean()) < 5 / math.sqrt(z.size) and z.std() == pytest.approx(1.0, abs=5 / math.sqrt(2 * z.size))
    # Shares within one and two deviations, and a tail that a generator of 32 bits still reaches.
    assert np.mean(np.abs(z) < 1) == pytest.approx(0.6827, abs=0.006)
    assert np.mean(np.abs(z) < 2) == pytest.approx(0.9545, abs=0.003)
    assert 4.0 < np.abs(z).max() < 6.7
    # The two halves come from the same radius; they must not be related.
    assert abs(np.corrcoef(z[: z.size // 2], z[z.size // 2 : z.size // 2 * 2])[0, 1]) < 0.02


def test_two_generators_never_agree() -> None:
    assert Rng().bytes(64) != Rng().bytes(64)
    one = Rng()
    assert one.bytes(64) != one.bytes(64)


def test_the_seeded_generator_of_the_tests_repeats_itself() -> None:
    assert SeededRng(5).bytes(64) == SeededRng(5).bytes(64) != SeededRng(6).bytes(64)
    np.testing.assert_array_equal(SeededRng(5).normal(1.0, (7,)), SeededRng(5).normal(1.0, (7,)))


def test_permutations_are_permutations_and_spread() -> None:
    rng = SeededRng(0)
    first = [int(p[0]) for p in (rng.permutation(5) for _ in range(1000))]
    counts = np.bincount(first, minlength=5)
    assert counts.min() > 200 - 5 * 12.7 and counts.max() < 200 + 5 * 12.7  # sqrt(1000 * 0.2 * 0.8) = 12.65
    assert sorted(rng.permutation(1000)) == list(range(1000))
