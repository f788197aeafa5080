"""Exact activations: arithmetic mod p in limbs against Python integers, and what the accelerator sees of it."""

from __future__ import annotations

import math
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from boundary_helpers import Lab, digits, infer, the_lab
from build import Model, litert
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st
from seeded import SeededRng
from test_numbers import Quantised, every_form
from test_transform import CASES, Case, finished, layout, on_accelerator, recognised

import shadownet
from enclave import container, exact, formats, keys, limbs, sealing
from enclave.exact import Digits, Product, Residues, Weights
from enclave.program import Program
from enclave.restore import Restore
from enclave.rng import Rng
from enclave.schemes import ARTIFACT, PAPER, LayerWeights, Scheme
from shadownet.cli import main
from shadownet.graph import parse
from shadownet.quantized import Bits, constants, numbers
from shadownet.verify import tolerance_for
from shadownet.wire.errors import InputError, IntegrityError

Array = np.ndarray[Any, Any]
__all__ = ["the_lab"]

# Arithmetic

primes = st.sampled_from(exact.PRIMES)


def test_the_primes_are_the_largest_below_powers_of_two() -> None:
    def witness(n: int) -> bool:  # Miller and Rabin; these bases decide every n below 2^64
        odd, twos = n - 1, 0
        while odd % 2 == 0:
            odd, twos = odd // 2, twos + 1
        powers = [[pow(a, odd << k, n) for k in range(twos)] for a in (2, 3, 5, 7, 11, 13, 17, 19, 23, 29, 31, 37)]
        return all(row[0] == 1 or n - 1 in row for row in powers)

    for bits, prime in enumerate(exact.PRIMES, 16):
        assert [n for n in range(prime, 1 << bits, 2) if witness(n)] == [prime]


@given(st.lists(st.integers(1 - exact.WIDE, exact.WIDE - 1), min_size=1), primes | st.sampled_from([3, 5, 257, 1023]))
@settings(max_examples=300)
def test_balancing_finds_the_residue_nearest_zero(values: list[int], modulus: int) -> None:
    half = modulus // 2
    near = [v - v % modulus + offset for v in values for offset in (half, half + 1, -half, -half - 1)]
    values = [v for v in [*values, *near] if abs(v) < exact.WIDE]
    got = exact.balance(np.array(values, np.float64), modulus)
    assert [int(v) for v in got] == [(v + half) % modulus - half for v in values]


@st.composite
def filters(draw: st.DrawFn) -> tuple[Array, int]:
    """(integer rows [groups, n, d], a prime)."""
    shape = draw(st.integers(1, 3)), draw(st.integers(1, 3)), draw(st.sampled_from([1, 2, 9, 40, 600]))
    bits = draw(st.integers(0, 25))
    rows = np.random.default_rng(draw(st.integers(0, 2**32))).integers(-(1 << bits), (1 << bits) + 1, shape)
    if draw(st.booleans()):
        rows[:] = draw(st.sampled_from([-(1 << bits), (1 << bits) - 1, 0]))
    return rows.astype(np.float64), draw(primes)


@given(filters(), st.integers(0, 2**32))
@example((np.full((1, 1, 4000), (1 << 24) - 1.0), exact.PRIMES[-4]), 0)
@settings(max_examples=150)
def test_a_product_in_limbs_is_what_python_integers_give(layer: tuple[Array, int], seed: int) -> None:
    rows, prime = layer
    groups, n, d = rows.shape
    try:
        cut, product = exact.plan(rows, prime)
    except ValueError:
        assume(False)
    assert Product.from_json(product.to_json()) == product
    # Every partial sum, in whatever order, is an integer that float32 holds.
    assert np.abs(cut.astype(np.int64)).sum(axis=-1).max() * product.digits.largest <= product.bound < limbs.LIMIT
    rng = np.random.default_rng(seed)
    half = prime // 2
    for x in (rng.integers(-half, half + 1, d), np.full(d, half), np.full(d, -half), np.zeros(d, int)):
        parts = np.empty((product.digits.count, d), np.float32)
        product.digits.cut(x.astype(np.float64), parts)
        assert np.abs(parts).max() <= product.digits.largest
        answers = np.einsum("gnd,kd->kgn", cut, parts).reshape(product.digits.count, 1, -1)
        got = product.join(answers, prime).reshape(groups, n)
        for g in range(groups):
            for i in range(n):
                true = sum(int(w) * int(v) for w, v in zip(rows[g, i], x, strict=True))
                assert int(got[g, i]) == (true + half) % prime - half


def test_the_cheapest_cut_is_chosen() -> None:
    """1152 weights of 12 bits: seven limbs of inputs, or four with weights in two, when each must be sent as well."""
    rows = np.random.default_rng(0).integers(-2047, 2048, (1, 8, 1152)).astype(np.float32)
    prime = exact.prime_above(2 * exact.largest_sum(rows, 2047))
    for sending, wanted in ((0.0, (1, 7)), (1.0, (2, 4))):
        _, product = exact.plan(rows, prime, sending)
        assert (product.weights.count, product.digits.count) == wanted
    with pytest.raises(ValueError, match="no prime"):
        exact.prime_above(1 << 46)


# Whole layers, from floats to sums, for every op


def sums(case: Case, scheme: Scheme, bits: Bits, ratio: float, rng: Rng) -> tuple[Array, Array, Array, Any]:
    """(our sums, true sums, our output, format) of one layer as the enclave runs it."""
    lin = recognised(case.content)
    graph = parse(case.content).subgraphs[0]
    values = numbers(lin, graph, constants(lin, graph, {}), bits)
    hidden = scheme.obfuscate(LayerWeights(values.rows, depthwise=lin.depthwise, integer=True), ratio, rng)
    try:
        prime = exact.prime_above(2 * exact.largest_sum(values.rows, values.largest))
        (public, product), (true, pop) = exact.plan(hidden.rows, prime), exact.plan(values.rows, prime)
    except ValueError:
        assume(False)
    residues = Residues.from_json(Residues(prime, product, pop).to_json())
    record = values.record | {"residual": -1, "gain": "", "shift": ""}
    record |= {name: part.to_json() for name, part in (("first", lin.epilogue.first), ("second", lin.epilogue.second))}
    format_ = formats.create(record, values.blobs)
    encoded, context = formats.encode(format_, case.x)
    pad = residues.pad(rng, case.x.shape)
    natural = pad.copy() if hidden.restore.order is None else pad[..., np.argsort(hidden.restore.order)]
    parts = np.empty((pop.digits.count, *case.x.shape), np.float32)
    pop.digits.cut(natural, parts)
    image = residues.image([on_accelerator(lin, true, part) for part in parts])
    stacked = lin.stacked(product.digits.count)
    sent = np.empty((product.digits.count * case.x.shape[0], *case.x.shape[1:]), np.float32)
    residues.send(hidden.restore.shuffle(encoded), pad, sent)
    answer = on_accelerator(stacked, public, sent)
    assert residues.possible(answer)
    y = residues.receive(answer, hidden.restore, image)
    want = case.linear(encoded, layout(lin, values.rows))
    step = context / values.record["levels"]
    scaled = (want * (values.blobs["scale"] * step)).astype(np.float32)
    return y, want, format_.decode(y, context), finished(case, lin, scaled)


@pytest.mark.parametrize("kind", sorted(CASES))
@pytest.mark.parametrize("scheme", [PAPER, ARTIFACT], ids=lambda s: s.name.split(":")[1])
def test_every_layer_equals_integers_bit_for_bit(kind: str, scheme: Scheme) -> None:
    @given(
        CASES[kind], st.floats(1.0, 2.0), st.integers(0, 1 << 32), st.sampled_from(["12/12", "16/16", "2/2", "24/8"])
    )
    @settings(max_examples=30)
    def every(case: Case, ratio: float, seed: int, bits: str) -> None:
        y, want, got, expected = sums(case, scheme, Bits.parse(bits), ratio, SeededRng(seed))
        np.testing.assert_array_equal(y, want)
        np.testing.assert_array_equal(got, expected)

    every()


@pytest.mark.parametrize(
    "x",
    [np.zeros((1, 3)), np.full((1, 3), 3e38), np.array([[0, 0, -1e-45]]), np.array([[0, 5, 0]]), np.zeros((1, 0))],
    ids=["zeros", "largest", "subnormal", "single", "empty"],
)
def test_inputs_are_quantised_symmetrically_whatever_their_size(x: Array) -> None:
    identity = formats.Activation("clamp", -math.inf, math.inf)
    plain = formats.Float(None, identity, None, None, -1, identity)
    fixed = formats.Fixed(np.ones(3, np.float32), 2047, plain)
    q, largest = formats.encode(fixed, x.astype(np.float32))
    assert (q == np.rint(q)).all() and np.abs(q).max(initial=0) == (2047 if x.any() else 0)
    if x.size:
        worst = np.abs(fixed.decode(q, largest).astype(np.float64) - x.astype(np.float32)).max()
        assert worst <= np.abs(x).max() / 4094
    with pytest.raises(InputError, match="not finite"):
        fixed.measure(np.array([1, np.inf], np.float32))


# What crosses


def test_residues_are_uniform_and_below_the_prime() -> None:
    for prime, buckets in ((5, 5), (11, 11), (65521, 64)):
        drawn = SeededRng(1).residues(prime, (200, 500))
        assert drawn.shape == (200, 500) and drawn.min() == 0 and drawn.max() == prime - 1
        assert spread((drawn + 0.5) / prime, buckets) < LIMIT_OF[buckets]


LIMIT_OF = {5: 23.5, 11: 35.6, 64: 126.0}  # of chi-square: P of passing them is 1e-4, 1e-4 and 4e-6


def spread(unit: Array, buckets: int) -> float:
    """Chi-square of values in [0, 1) against the uniform distribution."""
    counts = np.histogram(unit, buckets, (0.0, 1.0))[0]
    expected = unit.size / buckets
    return float(((counts - expected) ** 2).sum() / expected)


def opened(bundle: Path, key: Path) -> Program:
    _, plaintext = sealing.unseal(bundle, keys.load(key))
    return Program.parse(*container.unpack(plaintext), True)


def test_what_crosses_is_uniform_and_fresh(lab: Lab, tmp_path: Path) -> None:
    """The same image again and again, the first layer's too: every residue of every layer is as likely as another."""
    bundle, runs = tmp_path / "exact.shadow", 6
    shadownet.convert(lab.model("digits_cnn"), bundle, activations="exact", key=lab.key)
    from shadownet.session import Session

    session = Session(bundle, lab.key, mask_input=True, record=str(tmp_path / "transcript.npz"))
    try:
        session.allocate(0, [(1, 8, 8, 1)])
        outputs = [session.invoke([digits()[:1]])[0] for _ in range(runs)]
    finally:
        session.close()
    assert all(np.array_equal(outputs[0], other) for other in outputs), "pads leave nothing behind"
    layers = opened(bundle, lab.key).layers
    with np.load(tmp_path / "transcript.npz") as transcript:
        sent = [transcript[name] for name in sorted(transcript) if name.endswith(".x")]
    assert len(sent) == runs * len(layers)
    everything = []
    for number, layer in enumerate(layers):
        assert layer.masked and layer.residues is not None
        count, base, prime = *vars(layer.residues.public.digits).values(), layer.residues.prime
        seen = []
        for run in range(runs):
            parts = sent[run * len(layers) + number].astype(np.int64).reshape(count, -1)
            assert np.abs(parts).max() <= base // 2
            seen.append(sum(part * base**k for k, part in enumerate(parts)))
            assert np.abs(seen[-1]).max() <= prime // 2
        assert (seen[0] == seen[1]).mean() < 0.01, "a pad was used twice"
        unit = (np.concatenate(seen) + prime // 2 + 0.5) / prime
        everything.append(unit)
        if unit.size > 1000:
            assert spread(unit, 64) < LIMIT_OF[64], layer.name
    assert spread(np.concatenate(everything), 64) < LIMIT_OF[64]


# Answers


def small() -> Residues:
    one = Product(Weights(1, 1, 3), Digits(2, 257), 1000)
    return Residues(exact.PRIMES[0], one, one)


@pytest.mark.parametrize("value", [0.5, -0.25, 1001.0, -1001.0, np.nan, np.inf, 1e-30])
def test_an_answer_that_cannot_be_right_is_refused(value: float) -> None:
    answer = np.arange(-1000, 1000, dtype=np.float32).reshape(2, 10, 100)
    assert small().possible(answer)
    answer[1, 9, 99] = value
    assert not small().possible(answer)


def test_a_hostile_accelerator_ends_the_session(lab: Lab, tmp_path: Path) -> None:
    shadownet.convert(lab.model("digits_mlp"), tmp_path / "m.shadow", activations="exact", key=lab.key)
    with shadownet.Interpreter(tmp_path / "m.shadow", key=lab.key, accelerator="hostile:scale@1") as it:
        it.allocate_tensors()
        for _ in range(2):
            with pytest.raises(IntegrityError, match="impossible"):
                infer(it, digits()[:1])


def test_a_restoring_map_must_be_of_integers_and_small() -> None:
    slot = np.zeros((2, 1), np.int32)
    assert small().restorable(Restore(slot, np.ones((2, 1), np.float32)))
    assert not small().restorable(Restore(slot, np.full((2, 1), 0.5, np.float32)))
    assert not small().restorable(Restore(slot, np.full((2, 1), 2.0**40, np.float32)))


# Models


def run_exact(content: bytes, samples: list[list[Array]], work: Path, **options: Any) -> tuple[Any, list[list[Array]]]:
    (work / "model.tflite").write_bytes(content)
    summary = shadownet.convert(work / "model.tflite", work / "m.shadow", activations="exact", **options)
    outputs = []
    with shadownet.Interpreter(work / "m.shadow") as it:
        for sample in samples:
            for detail, value in zip(it.get_input_details(), sample, strict=True):
                if tuple(detail["shape"]) != value.shape:
                    it.resize_tensor_input(detail["index"], value.shape)
            it.allocate_tensors()
            for detail, value in zip(it.get_input_details(), sample, strict=True):
                it.set_tensor(detail["index"], value)
            it.invoke()
            outputs.append([it.get_tensor(d["index"]) for d in it.get_output_details()])
    return summary, outputs


@pytest.mark.parametrize(
    ("dtype", "per_channel"), [("int8", True), ("uint8", False), pytest.param("int8", False, marks=pytest.mark.slow)]
)
def test_integer_layers_equal_litert(dtype: str, per_channel: bool, tmp_path: Path, device_key: Path) -> None:
    n = Quantised(dtype, per_channel)
    content = n.content(*every_form(n))
    samples = [n.sample(seed) for seed in range(2)]
    samples += [[np.full_like(samples[0][0], v)] for v in (np.iinfo(dtype).min, np.iinfo(dtype).max)]
    summary, got = run_exact(content, samples, tmp_path)
    assert summary["kept_inside"] == [] and summary["layers_outsourced"] == n.linear
    for sample, outputs in zip(samples, got, strict=True):
        for want, have in zip(litert(content, sample), outputs, strict=True):
            np.testing.assert_array_equal(have, want)


def test_hybrid_layers_follow_litert(tmp_path: Path, device_key: Path) -> None:
    n = Quantised("float32", True)
    x = n.start(1, 7, 6, 5)
    content = n.content(n.layer("CONV_2D", n.layer("CONV_2D", x, 6, 3, activation="RELU6"), 4, 1))
    samples = [n.sample(0), [np.zeros((1, 7, 6, 5), np.float32)]]
    summary, got = run_exact(content, samples, tmp_path)
    assert summary["layers_outsourced"] == n.linear
    for sample, (have,) in zip(samples, got, strict=True):
        (want,) = litert(content, sample)
        np.testing.assert_allclose(have, want, rtol=0, atol=1e-3 * max(np.abs(want).max(), 1))


def test_the_trained_integer_network_is_bit_exact(models: Path, tmp_path: Path, device_key: Path) -> None:
    content = (models / "digits_cnn_int8.tflite").read_bytes()
    (detail,) = _inputs(content)
    scale, zero = detail["quantization"]
    images = digits()[:20]
    if detail["dtype"] != np.float32:
        info = np.iinfo(detail["dtype"])
        images = np.clip(np.round(images / scale) + zero, info.min, info.max).astype(detail["dtype"])
    samples = [[image[None]] for image in images]
    summary, got = run_exact(content, samples, tmp_path)
    assert summary["layers_outsourced"] > 1
    for sample, (have,) in zip(samples, got, strict=True):
        np.testing.assert_array_equal(have, litert(content, sample)[0])


def _inputs(content: bytes) -> list[dict[str, Any]]:
    from ai_edge_litert.interpreter import Interpreter

    return list(Interpreter(model_content=content).get_input_details())


@pytest.mark.parametrize(("bits", "worst"), [("12/12", 0.05), ("16/16", 0.003)])
def test_trained_float_networks_keep_their_class(
    bits: str, worst: float, models: Path, tmp_path: Path, device_key: Path
) -> None:
    content = (models / "digits_cnn.tflite").read_bytes()
    samples = [[image[None]] for image in digits()[:50]]
    summary, got = run_exact(content, samples, tmp_path, bits=bits)
    assert summary["kept_inside"] == [] and summary["layers_outsourced"] > 1
    for sample, (have,) in zip(samples, got, strict=True):
        (want,) = litert(content, sample)
        assert have.argmax() == want.argmax()
        assert np.abs(have - want).max() <= worst


def test_extreme_inputs_residuals_and_other_shapes(tmp_path: Path, device_key: Path) -> None:
    net = Model(seed=3).net()
    x = net.conv(net.input(1, 6, 5, 3), 4, activation="RELU")
    y = net.binary("ADD", net.depthwise(x), x, "RELU6")
    content = net.output(net.conv(y, 5)).model.content()
    pixel = np.zeros((1, 6, 5, 3), np.float32)
    pixel[0, 2, 3, 1] = 7
    rng = np.random.default_rng(0)
    samples = [[v] for v in (pixel, pixel * 0, pixel + 1e30, rng.normal(0, 1, (2, 9, 4, 3)).astype(np.float32))]
    summary, got = run_exact(content, samples, tmp_path, bits="20/20")
    assert summary["layers_outsourced"] == 3
    for sample, (have,) in zip(samples, got, strict=True):
        (want,) = litert(content, sample)
        np.testing.assert_allclose(have, want, rtol=0, atol=1e-4 * np.abs(want).max())


def test_layers_before_a_logarithm_stay_inside(tmp_path: Path, device_key: Path) -> None:
    """Fixed point loses what is faint beside what is loud; trial inputs need not show it."""
    net = Model().net()
    loud = net.unary("EXP", net.dense(net.input(2, 6), 5))
    content = net.output(net.dense(net.unary("LOG", loud), 3)).model.content()
    summary, _ = run_exact(content, [], tmp_path)
    assert summary["layers_outsourced"] == 1 and "LOG" in summary["kept_inside"][0]


# Options


@pytest.mark.parametrize("bits", ["12", "1/12", "12/25", "a/b", "12/12/12", "", "-4/8"])
def test_bits_out_of_bounds_are_refused(bits: str) -> None:
    with pytest.raises(InputError, match="bit width"):
        Bits.parse(bits)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--bits", "12/12"], "exact activations"),
        (["--activations", "exact", "--bits", "12/30"], "between 2 and 24"),
        (["--activations", "exact", "--bits", ""], "no pair"),
    ],
)
def test_nonsense_is_refused(options: list[str], message: str, lab: Lab, tmp_path: Path, capsys: Any) -> None:
    model = str(lab.model("digits_mlp"))
    code = main(["convert", model, "-o", str(tmp_path / "m.shadow"), "--key", str(lab.key), *options])
    assert code == 2 and message in capsys.readouterr().err
    assert not (tmp_path / "m.shadow").exists()


def test_the_manifest_says_it_and_verify_knows_it(lab: Lab, tmp_path: Path, capsys: Any) -> None:
    model, bundle, key = str(lab.model("digits_mlp")), str(tmp_path / "m.shadow"), str(lab.key)
    options = ["--activations", "exact", "--bits", "8/8"]
    assert main(["convert", model, "-o", bundle, "--key", key, *options]) == 0
    manifest = shadownet.wire.manifest.read_manifest(Path(bundle))
    assert manifest["options"]["activations"] == "exact" and manifest["options"]["bits"] == "8/8"
    assert {layer["numbers"] for layer in manifest["layers"]} == {"fixed"}
    assert all(layer["input"][0] == layer["input_limbs"] for layer in manifest["layers"])
    assert main(["verify", bundle, "--model", model, "--key", key]) == 0
    assert main(["verify", bundle, "--model", model, "--key", key, "--tolerance", "1e-6"]) == 1


def test_the_tolerance_follows_the_bits() -> None:
    assert tolerance_for({"bits": None}) == tolerance_for({"bits": "24/24"}) == 1e-3
    assert 0.03 <= tolerance_for({"bits": "16/16"}) < 0.031
    assert tolerance_for({"bits": "16/12"}) == tolerance_for({"bits": "12/12"}) == Fraction(2000, 4096)
