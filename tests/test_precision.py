"""How coarsely an accelerator computes: what backends declare, what the enclave finds, what a bundle allows."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from boundary_helpers import Lab, digits, gone, infer, the_lab, unsealed
from hypothesis import given, settings
from hypothesis import strategies as st
from seeded import SeededRng
from test_integrity import Answered, convolved
from test_transform import CASES, Case, recognised

import shadownet
from enclave.precision import Probe
from shadownet.wire.errors import InputError, IntegrityError, WorkerError
from shadownet.wire.precision import FLOAT32, PRECISIONS, mask_share

__all__ = ["the_lab"]
MANTISSAS = {"tf32": 10, "fp16": 10, "bf16": 7}  # bits stored


def rounded(values: np.ndarray, precision: str) -> np.ndarray:
    """To the nearest number with so many bits of mantissa."""
    mantissa, exponent = np.frexp(values.astype(np.float64))
    steps = 2.0 ** (MANTISSAS[precision] + 1)
    return np.ldexp(np.rint(mantissa * steps) / steps, exponent).astype(np.float32)


def computed(layer: Answered, probe: Probe, precision: str = "") -> tuple[np.ndarray, np.ndarray]:
    """What a probe sends, and the answer of a device that rounds inputs and weights, but adds exactly."""
    sent = probe.input(layer.sent.shape)
    weights = layer.public.weights(layer.content)
    kh, kw, depth, slots = weights.shape
    groups = layer.public.groups
    filters = np.zeros((slots, kh, kw, groups * depth))
    for slot in range(slots):
        first = slot // (slots // groups) * depth
        filters[slot, ..., first : first + depth] = weights[..., slot]
    x = sent
    if precision:
        filters, x = rounded(filters, precision), rounded(sent, precision)
    answer = layer.geometry.apply(x.astype(np.float64), filters).T
    return sent, answer.reshape(layer.answer.shape).astype(np.float32)


def excess(layer: Answered, probe: Probe, answer: tuple[np.ndarray, np.ndarray], precision: str = "float32") -> float:
    return probe.excess(layer.geometry, *answer, PRECISIONS[precision])


@pytest.mark.parametrize("kind", sorted(CASES))
def test_every_layer_is_judged_by_its_own_mathematics(kind: str) -> None:
    """Every op, stride, dilation, padding, group and batch: some positions by themselves are those of the whole."""

    @given(CASES[kind], st.integers(0, 1 << 32))
    @settings(max_examples=40)
    def every(case: Case, seed: int) -> None:
        lin = recognised(case.content)
        layer = Answered(lin, lin.rows(case.weights), case.x)
        filters = np.random.default_rng(seed).normal(size=(3, *layer.public.kernel, case.x.shape[-1]))
        if layer.geometry.source[-1] == filters.shape[-1]:
            whole = layer.geometry.apply(layer.sent.astype(np.float64), filters)
            at = np.arange(whole.shape[1])
            np.testing.assert_allclose(layer.geometry.at(layer.sent, filters, at)[0], whole, atol=1e-9)
        probe = Probe(layer.public, layer.content, False, SeededRng(seed))
        assert excess(layer, probe, computed(layer, probe)) <= 1
        assert excess(layer, probe, (layer.sent, layer.answer)) <= 1  # LiteRT's own

    every()


@pytest.mark.parametrize("exact", [False, True], ids=["floats", "integers"])
@pytest.mark.parametrize("precision", sorted(MANTISSAS))
def test_a_coarser_device_is_found_out_and_fits_what_it_declares(precision: str, exact: bool) -> None:
    for seed in range(20):
        # Of integers with small weights and few bits in the inputs, tf32 loses none; hence no wide layers there.
        layer = convolved(seed, integer=exact, channels=(1, 8, 1 if exact else 64)[seed % 3])
        probe = Probe(layer.public, layer.content, exact, SeededRng(seed))
        assert excess(layer, probe, computed(layer, probe)) <= 1
        coarse = computed(layer, probe, precision)
        assert excess(layer, probe, coarse) > 5
        if not exact:
            assert excess(layer, probe, coarse, precision) <= 1
        sent, answer = computed(layer, probe)
        assert excess(layer, probe, (sent, rounded(answer, precision))) > 5  # only its results are coarse


@pytest.mark.parametrize("wrong", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_is_never_precise(wrong: float) -> None:
    layer = convolved()
    probe = Probe(layer.public, layer.content, False, SeededRng(1))
    sent, answer = computed(layer, probe)
    assert excess(layer, probe, (sent, np.full_like(answer, wrong))) == np.inf


def test_a_filter_of_zeros_answers_zero() -> None:
    layer = convolved()
    layer.content = bytes(len(layer.content))  # whose weights are zeros
    probe = Probe(layer.public, layer.content, False, SeededRng(4))
    sent = probe.input(layer.sent.shape)
    assert excess(layer, probe, (sent, np.zeros_like(layer.answer))) == 0
    assert excess(layer, probe, (sent, np.ones_like(layer.answer))) == np.inf


def test_integers_of_a_test_fill_float32_and_no_more() -> None:
    layer = convolved(integer=True)
    probe = Probe(layer.public, layer.content, True, SeededRng(2))
    sent = probe.input(layer.sent.shape)
    largest = np.abs(layer.public.weights(layer.content)[..., probe._slots]).sum(axis=(0, 1, 2)).max()
    assert 2**23 < np.abs(sent).max() * largest < 2**24 and (np.rint(sent) == sent).all()


def test_test_vectors_are_fresh() -> None:
    layer = convolved()
    probe = Probe(layer.public, layer.content, False, SeededRng(3))
    assert not np.array_equal(probe.input(layer.sent.shape), probe.input(layer.sent.shape))


# In two processes


def run(path: Path, lab: Lab, accelerator: str, name: str = "digits_mlp") -> np.ndarray:
    with shadownet.Interpreter(path, key=lab.key, accelerator=accelerator) as interpreter:
        pids = interpreter.session.pids
        try:
            interpreter.allocate_tensors()
            (detail,) = interpreter.get_input_details()
            x = digits()[:1].reshape(detail["shape"])
            if detail["dtype"] != np.float32:
                x = np.rint(x / detail["quantization"][0] + detail["quantization"][1])
            return infer(interpreter, x.astype(detail["dtype"]))
        except (IntegrityError, WorkerError):
            assert gone(pids)
            raise


FLOAT, EXACT, CHEAP = {"integrity": "full"}, {"activations": "exact"}, {"integrity": "none"}
HALF = {"precision": "fp16", "integrity": "none"}


@pytest.mark.parametrize(
    "name, options",
    [("digits_mlp", FLOAT), ("digits_mlp", CHEAP), ("digits_mlp", EXACT), ("digits_cnn_int8", FLOAT)],
)
def test_a_backend_that_is_coarser_than_it_says_is_refused(lab: Lab, name: str, options: dict[str, str]) -> None:
    with pytest.raises(IntegrityError, match=r"computes in float32, and layer \w+ is off by \d+ times"):
        run(lab.bundle(name, **options), lab, "hostile:coarse", name)


@pytest.mark.parametrize(
    "options, message", [(FLOAT, "made for float32"), (CHEAP, "made for float32"), (EXACT, "integers up to 2\\^24")]
)
def test_a_backend_that_says_that_it_is_too_coarse_is_refused(lab: Lab, options: dict[str, str], message: str) -> None:
    with pytest.raises(WorkerError, match=f"computes in fp16, which is too coarse: .*{message}") as caught:
        run(lab.bundle("digits_mlp", **options), lab, "litert-cpu-fp16")
    assert "choose" in caught.value.hint


@pytest.mark.parametrize("accelerator", ["litert-cpu-fp16", "litert-cpu"])
def test_a_bundle_for_fp16_runs_on_what_is_at_least_as_precise(lab: Lab, accelerator: str) -> None:
    path = lab.bundle("digits_mlp", **HALF)
    exact = run(lab.bundle("digits_mlp", **CHEAP), lab, "litert-cpu")
    np.testing.assert_allclose(run(path, lab, accelerator), exact, atol=0.05)


def test_a_test_neither_counts_nor_enters_the_transcript(lab: Lab, tmp_path: Path) -> None:
    with lab.open("digits_mlp", record=str(tmp_path / "t.npz")) as interpreter:
        interpreter.allocate_tensors()
        assert not interpreter.session.stats()["crossings"]
    with np.load(tmp_path / "t.npz") as transcript:
        assert not transcript.files


def test_masks_follow_the_precision(lab: Lab) -> None:
    sizes = [
        [layer["sigma"] for layer in unsealed(lab.bundle("digits_mlp", **options), lab.key)[0]["layers"]]
        for options in (CHEAP, HALF)
    ]
    np.testing.assert_allclose(np.array(sizes[1]) * 8, sizes[0])
    assert mask_share("float32") == 1 and mask_share("tf32") == 1 / 8 and mask_share("bf16") == 1 / 64
    assert FLOAT32.unit == np.finfo(np.float32).epsneg and PRECISIONS["fp16"].unit == np.finfo(np.float16).epsneg


def test_integer_layers_stay_inside_where_the_accelerator_is_coarse(lab: Lab, tmp_path: Path) -> None:
    made = shadownet.convert(lab.model("digits_cnn_int8"), tmp_path / "b", key=lab.key, **HALF)
    assert made["layers_outsourced"] == 0 and all("need float32" in line for line in made["kept_inside"])


@pytest.mark.parametrize(
    "options, message",
    [
        ({"precision": "fp8"}, "one of float32, tf32"),
        ({"precision": "fp16"}, "cannot be checked"),
        ({"precision": "bf16", "integrity": "spot:0.1"}, "cannot be checked"),
        ({"precision": "tf32", "integrity": "none", "activations": "exact"}, "up to 2\\^24"),
    ],
)
def test_what_a_precision_cannot_do_is_refused(lab: Lab, tmp_path: Path, options: dict[str, str], message: str) -> None:
    with pytest.raises(InputError, match=message):
        shadownet.convert(lab.model("digits_mlp"), tmp_path / "b", key=lab.key, **options)
    assert not (tmp_path / "b").exists()
