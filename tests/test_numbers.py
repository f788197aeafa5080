"""Number formats: float16 weights, dynamic-range int8, full int8 and uint8, int16, int4; limbs; requantisation.

A layer whose arithmetic cannot be repeated exactly stays in the enclave without an error, so every test that is
about a format also asserts that its layers did go out.
"""

from __future__ import annotations

import json
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from ai_edge_litert import schema_py_generated as schema
from boundary_helpers import enclave_here
from build import ACTIVATIONS, PADDINGS, Model, litert, pair, window
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st
from test_ops import Ops

import shadownet
from enclave import formats, limbs, native

Array = np.ndarray[Any, Any]

RANGE = {"int8": (-128, 127), "uint8": (0, 255)}
IDENTITY = {"kind": "clamp", "low": "-inf", "high": "inf"}


# Models


class Quantised(Ops):
    """Layers with 8-bit weights. ``dtype`` is that of activations: int8, uint8, or float32 for hybrid layers."""

    def __init__(self, dtype: str, per_channel: bool, seed: int = 0) -> None:
        super().__init__(Model(seed))
        self.dtype, self.per_channel, self.odd_axis = dtype, per_channel, False
        self.scales: dict[int, float] = {}

    def start(self, *shape: int) -> int:
        x = self.plain(*shape, dtype=self.dtype)
        if self.dtype != "float32":
            self.activation(x, 1 / 40, 131 if self.dtype == "uint8" else 5)
        return x

    def activation(self, t: int, scale: float, zero: int) -> int:
        self.scales[t] = scale
        return self.quantised(t, scale, zero)

    def layer(
        self, kind: str, x: int, units: int, kernel: Any = 3, stride: Any = 1, dilation: Any = 1, padding: str = "SAME",
        activation: str = "NONE", scale: float = 1 / 16, values: Array | None = None, bias: bool = True,
    ) -> int:  # fmt: skip
        """CONV_2D, DEPTHWISE_CONV_2D (``units`` is the multiplier) or FULLY_CONNECTED over the last dimension."""
        (kh, kw), (sh, sw), (dh, dw) = pair(kernel), pair(stride), pair(dilation)
        dtype, shape, code = self.types[x], self.shapes[x], ACTIVATIONS[activation]
        spatial: tuple[int, ...] = ()
        if kind != "FULLY_CONNECTED":
            spatial = (shape[0], window(shape[1], kh, sh, dh, padding), window(shape[2], kw, sw, dw, padding))
        if kind == "CONV_2D":
            form, depth, out = (units, kh, kw, shape[3]), kh * kw * shape[3], (*spatial, units)
            options: Any = schema.Conv2DOptionsT(PADDINGS[padding], sw, sh, code, dw, dh)
        elif kind == "DEPTHWISE_CONV_2D":
            n = units * shape[3]
            form, depth, out = (1, kh, kw, n), kh * kw, (*spatial, n)
            options = schema.DepthwiseConv2DOptionsT(PADDINGS[padding], sw, sh, units, code, dw, dh)
        else:
            form, depth, out = (units, shape[-1]), shape[-1], (*shape[:-1], units)
            options = schema.FullyConnectedOptionsT(code, keepNumDims=True)
        w, w_scale = self._weights(kind, dtype, form, depth, out[-1], self.scales.get(x, 1 / 40), scale, values)
        inputs = [x, w, *([self._bias8(out[-1], self.scales.get(x), w_scale)] if bias else [-1])]
        version = 5 if kind == "FULLY_CONNECTED" else 3
        y = self.op(kind, inputs, (out, dtype), options, version)
        self.linear += 1
        if dtype != "float32":
            self.activation(y, scale, 117 if dtype == "uint8" else -7)
        return y

    def _weights(
        self, kind: str, dtype: str, form: tuple[int, ...], depth: int, n: int, scale_in: float, scale_out: float,
        values: Array | None,
    ) -> tuple[int, Array]:  # fmt: skip
        if values is None:
            low, high = (0, 256) if dtype == "uint8" else (-127, 128)
            values = self.model.rng.integers(low, high, form)
        # Inputs and weights both deviate by about 74: outputs by about 45 steps.
        scale = np.float32(scale_out / scale_in * 45 / (74 * 74 * np.sqrt(depth)))
        scales = scale * self.model.rng.uniform(0.5, 2, n if self.per_channel else 1).astype(np.float32)
        w = self.constant(values.astype("uint8" if dtype == "uint8" else "int8"))
        # A uint8 depthwise layer whose one scale belongs to axis 3 is none that XNNPACK takes.
        axis = 3 if kind == "DEPTHWISE_CONV_2D" and (self.per_channel or self.odd_axis) else 0
        zero = 120 if dtype == "uint8" else 0
        return self.quantised(w, scales, np.full(scales.size, zero), axis), scales

    def _bias8(self, n: int, scale_in: float | None, w_scale: Array) -> int:
        if scale_in is None:  # the input is a float
            return self.constant(self.model.rng.normal(0, 0.5, n).astype(np.float32))
        b = self.constant(self.model.rng.integers(-3000, 3000, n).astype(np.int32))
        scales = np.float32(scale_in) * w_scale
        return self.quantised(b, scales, np.zeros(scales.size))

    def content(self, *outputs: int) -> bytes:
        self.writer.interface(self.inputs, list(outputs))
        return self.model.content()

    def sample(self, seed: int) -> list[Array]:
        rng = np.random.default_rng(seed)
        if self.dtype == "float32":
            return [rng.normal(0, 1 + seed, self.shapes[t]).astype(np.float32) for t in self.inputs]
        low, high = RANGE[self.dtype]
        return [rng.integers(low, high, self.shapes[t], endpoint=True).astype(self.dtype) for t in self.inputs]


def protected(content: bytes, samples: list[list[Array]], work: Path) -> tuple[dict[str, Any], list[list[Array]]]:
    """Convert and run: (summary, outputs per sample)."""
    (work / "model.tflite").write_bytes(content)
    summary = shadownet.convert(work / "model.tflite", work / "model.shadow", overwrite=True)
    outputs = []
    with shadownet.Interpreter(work / "model.shadow") as interpreter:
        interpreter.allocate_tensors()
        for sample in samples:
            for detail, value in zip(interpreter.get_input_details(), sample, strict=True):
                interpreter.set_tensor(detail["index"], value)
            interpreter.invoke()
            outputs.append([interpreter.get_tensor(d["index"]) for d in interpreter.get_output_details()])
    return summary, outputs


def went_out(summary: dict[str, Any], layers: int) -> None:
    assert summary["kept_inside"] == []
    assert summary["layers_outsourced"] == layers


def every_form(n: Quantised) -> list[int]:
    """Layers of all kinds, with strides, paddings, dilations and activations, behind one that makes them masked."""
    x = n.layer("CONV_2D", n.start(1, 7, 6, 5), 6, 1, scale=1 / 24)
    a = n.layer("CONV_2D", x, 5, 3, scale=1 / 8)
    return [
        a,
        n.layer("CONV_2D", x, 7, 3, 2, padding="VALID", activation="RELU"),
        n.layer("CONV_2D", x, 4, (1, 3), (2, 1), activation="RELU6", scale=1 / 30),
        n.layer("CONV_2D", x, 4, 2, dilation=2, activation="RELU_N1_TO_1", scale=1 / 100),
        n.layer("DEPTHWISE_CONV_2D", x, 1, 3),
        n.layer("DEPTHWISE_CONV_2D", x, 2, 3, 2, padding="VALID", activation="RELU6", scale=1 / 30),
        n.layer("DEPTHWISE_CONV_2D", a, 1, (3, 2), activation="RELU"),
        n.layer("FULLY_CONNECTED", x, 9, activation="RELU"),
        n.layer("FULLY_CONNECTED", a, 3, activation="RELU6", bias=False),
        n.layer("FULLY_CONNECTED", a, 3, activation="RELU_N1_TO_1", scale=1 / 90),
    ]


# Formats from end to end


@pytest.mark.parametrize(
    ("dtype", "per_channel"),
    [("int8", False), pytest.param("int8", True, marks=pytest.mark.slow), ("uint8", False)],
)
def test_integer_layers_equal_litert_element_for_element(
    dtype: str, per_channel: bool, tmp_path: Path, device_key: Path
) -> None:
    n = Quantised(dtype, per_channel)
    content = n.content(*every_form(n))
    samples = [n.sample(seed) for seed in range(4)]
    summary, got = protected(content, samples, tmp_path)
    went_out(summary, n.linear)
    for sample, outputs in zip(samples, got, strict=True):
        for want, have in zip(litert(content, sample), outputs, strict=True):
            assert want.dtype == dtype
            assert len(np.unique(want)) > 10, "a saturated layer would show nothing"
            np.testing.assert_array_equal(have, want)


@pytest.mark.parametrize("dtype", ["int8", "float32"])
@pytest.mark.parametrize("scheme", ["shadownet:fast", "shadownet:paper", "mix:4", "groupcover:4", "slalom"])
def test_the_c_loop_and_numpy_agree_with_litert(
    scheme: str, dtype: str, tmp_path: Path, device_key: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A chain whose layers permute their channels, of blocks of 16 positions and some over, that meets in a sum."""
    n = Quantised(dtype, True)
    x = n.layer("CONV_2D", n.start(2, 11, 9, 3), 20, activation="RELU6", scale=1 / 30)
    y = n.layer("DEPTHWISE_CONV_2D", x, 1, activation="RELU")
    y = n.layer("CONV_2D", n.layer("CONV_2D", y, 37, 1), 20, 1)
    total = n.op("ADD", [x, y], (n.shapes[x], dtype), schema.AddOptionsT())
    if dtype != "float32":
        n.activation(total, 1 / 10, 3)
    content = n.content(n.layer("FULLY_CONNECTED", n.layer("CONV_2D", total, 5, 2, 2), 6), y)
    (tmp_path / "model.tflite").write_bytes(content)
    bundle = tmp_path / "model.shadow"
    summary = shadownet.convert(tmp_path / "model.tflite", bundle, scheme=scheme)
    assert summary["layers_outsourced"] >= 4  # some schemes keep the depthwise one
    samples = [n.sample(seed) for seed in range(4)]
    for compiled in (True, False) if native.load() is not None else (False,):
        transcript = tmp_path / f"{compiled}.npz"
        with monkeypatch.context() as patch, enclave_here(bundle, device_key, transcript) as (executor, _):
            if not compiled:
                patch.setattr(native, "load", lambda: None)
            executor.allocate(0, [value.shape for value in samples[0]])
            for sample in samples[:2]:
                agree(executor.invoke(sample), litert(content, sample))
    with shadownet.Interpreter(bundle) as it:  # two at a time
        for sample, got in zip(samples, it.invoke_many(samples), strict=True):
            agree(got, litert(content, sample))


def agree(got: list[Array], want: list[Array]) -> None:
    """Integers are equal; of hybrid layers a rounded input may fall on the other side of a step."""
    for have, right in zip(got, want, strict=True):
        step = 0.0 if right.dtype.kind in "iu" else 0.02 * float(np.abs(right).max())
        assert have.dtype == right.dtype and np.abs(have.astype(float) - right.astype(float)).max() <= step
        assert np.mean(have.astype(float) - right.astype(float)) <= step / 20


def test_layers_that_litert_rounds_differently_stay_inside_alone(tmp_path: Path, device_key: Path) -> None:
    """LiteRT's own kernels requantise in fixed point, which differs in 1 element of 200: easily overlooked."""
    n = Quantised("uint8", False)
    n.odd_axis = True
    content = n.content(*every_form(n))
    sample = n.sample(0)
    summary, got = protected(content, [sample], tmp_path)
    assert summary["layers_outsourced"] == n.linear - 3, summary["kept_inside"]
    for want, have in zip(litert(content, sample), got[0], strict=True):
        np.testing.assert_array_equal(have, want)


@pytest.mark.parametrize("per_channel", [False, True])
def test_hybrid_layers_follow_litert(per_channel: bool, tmp_path: Path, device_key: Path) -> None:
    """int8 weights, float activations that are quantised at run time: plain dequantised weights are off by 4 %."""
    n = Quantised("float32", per_channel)
    x = n.start(1, 7, 6, 5)
    forms = [
        n.layer("FULLY_CONNECTED", x, 9, activation="RELU"),
        n.layer("FULLY_CONNECTED", x, 4, bias=False),
    ]
    if per_channel:  # LiteRT runs hybrid convolutions only with per-channel scales
        forms += [
            n.layer("CONV_2D", x, 6, 3, activation="RELU6"),
            n.layer("CONV_2D", x, 4, 3, 2, padding="VALID"),
            n.layer("DEPTHWISE_CONV_2D", x, 1, 3, activation="RELU"),
            n.layer("DEPTHWISE_CONV_2D", x, 2, 3, 2),
        ]
    forms.append(n.layer("FULLY_CONNECTED", forms[0], 3))
    content = n.content(*forms)
    samples = [n.sample(seed) for seed in range(3)]
    samples += [[np.zeros_like(v) for v in samples[0]], [-np.abs(v) for v in samples[0]]]
    summary, got = protected(content, samples, tmp_path)
    went_out(summary, n.linear)
    for sample, outputs in zip(samples, got, strict=True):
        for want, have in zip(litert(content, sample), outputs, strict=True):
            np.testing.assert_allclose(have, want, rtol=0, atol=1e-3 * np.abs(want).max())


def test_float16_weights_behind_dequantize_go_out(tmp_path: Path, device_key: Path) -> None:
    n = Quantised("float32", False)
    x = n.start(1, 6, 6, 4)
    rng = n.model.rng

    def half(*shape: int) -> int:
        return n.dequantize(rng.normal(0, 0.3, shape))

    conv = n.conv(x, 5, weights=half(5, 3, 3, 4), activation="RELU6")
    depthwise = n.op(
        "DEPTHWISE_CONV_2D", [conv, half(1, 3, 3, 5), half(5)], ((1, 6, 6, 5), "float32"),
        schema.DepthwiseConv2DOptionsT(0, 1, 1, 1, ACTIVATIONS["RELU"], 1, 1), 2,
    )  # fmt: skip
    content = n.content(n.dense(depthwise, 3, weights=half(3, 5), keep=True), conv)
    samples = [n.sample(seed) for seed in range(3)]
    summary, got = protected(content, samples, tmp_path)
    went_out(summary, 3)
    for sample, outputs in zip(samples, got, strict=True):
        for want, have in zip(litert(content, sample), outputs, strict=True):
            np.testing.assert_allclose(have, want, rtol=0, atol=1e-3 * np.abs(want).max())


def int16_model(n: Ops) -> int:
    x = n.quantised(n.plain(2, 6, dtype="int16", low=-30000, high=30000), 1 / 8000)
    w = n.quantised(n.constant(n.model.rng.integers(-127, 128, (4, 6)).astype(np.int8)), 1 / 200)
    b = n.quantised(n.constant(n.model.rng.integers(-9000, 9000, 4)), np.float32(1 / 8000) * np.float32(1 / 200))
    return n.quantised(n.op("FULLY_CONNECTED", [x, w, b], ((2, 4), "int16"), schema.FullyConnectedOptionsT(), 4), 1e-3)


def int4_model(n: Ops) -> int:
    nibbles = n.model.rng.integers(0, 256, 4 * 8 // 2).astype(np.uint8)
    w = n.quantised(n.tensor((4, 8), dtype="int4", data=nibbles), np.full(4, 0.1), np.zeros(4))
    b = n.constant(n.model.rng.normal(0, 1, 4).astype(np.float32))
    return n.op("FULLY_CONNECTED", [n.plain(2, 8), w, b], ((2, 4), "float32"), schema.FullyConnectedOptionsT(), 9)


@pytest.mark.parametrize("make", [int16_model, int4_model])
def test_formats_that_cannot_go_out_stay_inside_and_are_right(make: Any, tmp_path: Path, device_key: Path) -> None:
    n = Ops(Model())
    y = make(n)
    n.writer.interface(n.inputs, [y])
    content = n.model.content()
    t = n.inputs[0]
    rng = np.random.default_rng(1)
    x = rng.uniform(-2, 2, n.shapes[t]) if n.types[t] == "float32" else rng.integers(-30000, 30000, n.shapes[t])
    sample = [x.astype(n.types[t])]
    summary, got = protected(content, [sample], tmp_path)
    assert summary["layers_outsourced"] == 0
    np.testing.assert_array_equal(got[0][0], litert(content, sample)[0])


def test_a_model_that_only_the_default_kernels_take_converts(tmp_path: Path, device_key: Path) -> None:
    """XNNPACK asks nothing of a bias's scale, LiteRT's plain kernels want it to be the product of the others'."""
    n = Quantised("int8", False)
    x = n.start(2, 6)
    y = n.layer("FULLY_CONNECTED", x, 4)
    bias = n.writer.raw.operators[-1].inputs[2]
    n.quantised(int(bias), 1.0)
    content = n.content(y)
    sample = n.sample(0)
    want = litert(content, sample)
    _, got = protected(content, [sample], tmp_path)
    np.testing.assert_array_equal(got[0][0], want[0])


# Limbs


def test_a_layer_too_large_for_float32_sums_is_cut_into_limbs_and_exact(tmp_path: Path, device_key: Path) -> None:
    """4096 extreme weights: an L1 norm of 520,000, with inputs and masks of up to 500 far beyond 2^24."""
    n = Quantised("int8", False)
    x = n.layer("DEPTHWISE_CONV_2D", n.start(1, 16, 16, 16), 1, 1)
    flat = n.op("RESHAPE", [x, n.const([1, 4096])], ((1, 4096), "int8"))
    n.activation(flat, 1 / 16, -7)
    signs = np.where(np.arange(4096) % 2, 127, -127)
    rows = [np.full(4096, 127), np.full(4096, -127), signs, np.sort(signs), -signs, np.full(4096, -128)]
    rows += list(n.model.rng.integers(-128, 128, (3, 4096)))
    content = n.content(flat, n.layer("FULLY_CONNECTED", flat, 9, values=np.array(rows), scale=1 / 8))
    samples = [n.sample(seed) for seed in range(3)]
    samples += [[np.full((1, 16, 16, 16), v, np.int8)] for v in (-128, 0, 6, 127)]
    summary, got = protected(content, samples, tmp_path)
    went_out(summary, 2)
    manifest = json.loads((tmp_path / "model.shadow" / "manifest.json").read_text())
    assert [layer["limbs"] > 1 for layer in manifest["layers"]] == [False, True]
    want = [litert(content, sample) for sample in samples]
    assert len({int(v) for outputs in want for v in outputs[1].ravel()}) > 20
    for left, right in zip(want, got, strict=True):
        np.testing.assert_array_equal(right[0], left[0])
        np.testing.assert_array_equal(right[1], left[1])


@st.composite
def layers(draw: st.DrawFn) -> tuple[Array, int]:
    groups, n, d = draw(st.integers(1, 3)), draw(st.integers(1, 4)), draw(st.integers(1, 40))
    bits = draw(st.integers(1, 22))
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    rows = rng.integers(-(1 << bits), (1 << bits) + 1, (groups, n, d))
    if draw(st.booleans()):
        rows[:] = draw(st.sampled_from([-(1 << bits), (1 << bits) - 1, 1 << bits]))
    return rows.astype(np.float32), draw(st.integers(1, 1 << 16))


@given(layers(), st.integers(0, 2**32))
@example((np.zeros((1, 1, 1), np.float32), 1), 0)
@example((np.full((1, 2, 4096), -128, np.float32), 511), 0)
@settings(max_examples=150)
def test_limbs_restore_what_python_integers_give(layer: tuple[Array, int], seed: int) -> None:
    rows, largest = layer
    groups, n, d = rows.shape
    assume(d * largest < limbs.LIMIT)
    cut, count, base = limbs.split(rows, largest)
    assert cut.shape == (groups, count * n, d) and cut.dtype == np.float32
    # Every partial sum, in whatever order, is an integer that float32 holds.
    assert int(np.abs(cut.astype(np.int64)).sum(axis=-1).max()) * largest < 1 << 24
    rng = np.random.default_rng(seed)
    for x in (rng.integers(-largest, largest + 1, d), np.full(d, largest), np.full(d, -largest)):
        answer = (cut @ x.astype(np.float32)).reshape(1, -1)
        joined = limbs.join(answer, groups, count, base)
        exact = [sum(int(w) * int(v) for w, v in zip(row, x, strict=True)) for row in rows.reshape(-1, d)]
        assert joined.dtype == np.float64
        assert [int(v) for v in joined.ravel()] == exact


def test_limbs_are_not_cut_where_nothing_forces_them() -> None:
    rows = np.full((1, 2, 10), 127, np.float32)
    cut, count, _ = limbs.split(rows, 511)
    assert count == 1
    np.testing.assert_array_equal(cut, rows)


def test_sums_that_no_limb_can_hold_are_refused() -> None:
    with pytest.raises(ValueError, match="exact"):
        limbs.split(np.ones((1, 1, 4), np.float32), limbs.LIMIT)


# Requantisation


def requantise(total: int, multiplier: np.float32, zero: int, low: int, high: int) -> int:
    """One element as XNNPACK does it, with rationals: two roundings to float32, then to the nearest even integer."""

    def to_float32(value: Fraction) -> Fraction:
        if value == 0:
            return value
        exponent = 0
        while abs(value) >= 1 << 24:
            value, exponent = value / 2, exponent + 1
        while abs(value) < 1 << 23:
            value, exponent = value * 2, exponent - 1
        return Fraction(round(value)) * Fraction(2) ** exponent  # round() of a Fraction goes to even

    product = to_float32(to_float32(Fraction(total)) * Fraction(float(multiplier)))
    return min(max(round(product) + zero, low), high)


@given(
    st.lists(st.integers(-(2**31), 2**31 - 1) | st.integers(-5000, 5000), min_size=1, max_size=20),
    st.integers(-70000, 70000) | st.just(0),
    st.floats(2**-24, 2.0, width=32),
    st.sampled_from(["int8", "uint8"]),
    st.data(),
)
def test_requantisation_equals_a_scalar_reference(
    sums: list[int], bias: int, multiplier: float, dtype: str, data: st.DataObject
) -> None:
    least, most = RANGE[dtype]
    zero = data.draw(st.integers(least, most))
    low = data.draw(st.integers(least, most))
    high = data.draw(st.integers(low, most))
    record = {"kind": "integer", "zero_in": 3, "zero_out": zero, "low": low, "high": high, "dtype": dtype,
              "scale": "scale", "bias": "bias"}  # fmt: skip
    blobs = {"scale": np.array([multiplier], np.float32), "bias": np.array([bias], np.float64)}
    got = formats.create(record, blobs).decode(np.array(sums, np.float64)[:, None], None)
    assert got.dtype == dtype
    assert got.ravel().tolist() == [requantise(s + bias, np.float32(multiplier), zero, low, high) for s in sums]


@pytest.mark.parametrize(("total", "want"), [(1, 0), (3, 2), (5, 2), (7, 4), (-1, 0), (-3, -2), (-5, -2)])
def test_requantisation_rounds_half_to_even(total: int, want: int) -> None:
    record = {"kind": "integer", "zero_in": 0, "zero_out": 0, "low": -128, "high": 127, "dtype": "int8",
              "scale": "scale", "bias": ""}  # fmt: skip
    format_ = formats.create(record, {"scale": np.array([0.5], np.float32)})
    assert format_.decode(np.array([[float(total)]]), None).item() == want


def test_integer_inputs_cross_without_their_zero_point() -> None:
    record = {"kind": "integer", "zero_in": -9, "zero_out": 0, "low": -128, "high": 127, "dtype": "int8",
              "scale": "scale", "bias": ""}  # fmt: skip
    integer = formats.create(record, {"scale": np.ones(1, np.float32)})
    sent, _ = formats.encode(integer, np.array([[-128, -9, 127]], np.int8))
    np.testing.assert_array_equal(sent, [[-119, 0, 136]])


# Quantising at run time


def hybrid(inner: int) -> formats.Format:
    record = {"kind": "hybrid", "bias": "", "scale": "scale", "inner": inner, "first": IDENTITY}
    return formats.create(record, {"scale": np.ones(1, np.float32)})


def quantised_rows(x: Array, inner: int = 1) -> tuple[Array, Array]:
    """(integers that cross, step of each row), with what always holds asserted."""
    sent, (factor, _) = formats.encode(hybrid(inner), x)
    step = 1 / factor
    assert np.isfinite(sent).all() and np.isfinite(step).all()
    np.testing.assert_array_equal(sent, np.rint(sent))
    assert np.abs(sent).max() <= 255
    assert step.shape == x.shape[: x.ndim - inner] + (1,) * inner
    return sent, step


def test_rows_of_zeros_cross_as_zeros() -> None:
    sent, _ = quantised_rows(np.zeros((3, 5), np.float32))
    assert not sent.any()


@pytest.mark.parametrize("value", [0.001, 7.5, 1e30, -0.001, -7.5, -1e30])
def test_constant_rows_use_the_whole_range(value: float) -> None:
    """Zero is always in the range, so a constant is one of its ends."""
    sent, step = quantised_rows(np.full((2, 6), value, np.float32))
    np.testing.assert_array_equal(sent, np.full((2, 6), 255 * np.sign(value)))
    np.testing.assert_allclose(sent * step, np.full((2, 6), value), rtol=1e-6)


def test_negative_rows_stay_negative() -> None:
    x = -np.random.default_rng(0).uniform(0.1, 4, (5, 7)).astype(np.float32)
    sent, step = quantised_rows(x)
    assert (sent < 0).all() and (sent.min(axis=1) == -255).all()
    assert (np.abs(sent * step - x) <= step * 0.5001).all()


@pytest.mark.parametrize("value", [1e-37, 1e-40, 1e-45])
def test_rows_next_to_nothing_stay_finite(value: float) -> None:
    """Values so small that 255 / range is no float32."""
    quantised_rows(np.array([[value, 0, -value, value], [value] * 4], np.float32))


@given(st.integers(0, 2**32), st.floats(1e-6, 1e6), st.floats(-3, 3), st.sampled_from([1, 3]))
def test_quantised_rows_are_within_one_step_and_independent(seed: int, size: float, centre: float, inner: int) -> None:
    rng = np.random.default_rng(seed)
    x = ((rng.normal(0, 1, (3, 2, 4, 5)) + centre) * size).astype(np.float32)
    sent, step = quantised_rows(x, inner)
    # Half a step from rounding, and another half where the rounded zero point pushes an end out of the range.
    assert (np.abs(sent * step - x) <= step * 1.001).all()
    one, one_step = quantised_rows(x[1:2], inner)
    np.testing.assert_array_equal(one, sent[1:2])
    np.testing.assert_array_equal(one_step, step[1:2])
