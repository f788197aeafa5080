"""Attacks on a running bundle: what each breaks, and a null on which it finds nothing."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from build import Model
from malleable_network import Network

import shadownet
from enclave import keys, schemes
from enclave.restore import Restore
from enclave.schemes import PAPER, MaskRule
from shadownet.attacks import (
    alignment,
    averaging,
    basis,
    lab,
    live,
    malleation,
    mask_blind,
    peeling,
    registry,
    tampering,
)
from shadownet.attacks.base import model_layers
from shadownet.attacks.bench import open_view, read_data
from shadownet.attacks.outcome import Outcome
from shadownet.attacks.truth import TrueLayer, read_truth
from shadownet.attacks.view import AdversaryView, Crossing, Geometry, Knowledge, Oracle, PublicLayer, read_view
from shadownet.graph import load
from shadownet.wire.errors import InputError, IntegrityError

Array = np.ndarray[Any, Any]

DIGITS = Path(__file__).resolve().parent.parent / "models" / "digits"
VICTIMS = DIGITS.parent / "victims"


# What the tests share


class Bench:
    """Bundles by (model, scheme, further options), made when first asked for."""

    def __init__(self, root: Path) -> None:
        self.root, self.key = root, root / "device.key"
        keys.create(self.key)
        self._made: dict[tuple[Any, ...], Path] = {}

    def bundle(self, model: Path, scheme: str, **options: Any) -> Path:
        name = (model, scheme, *sorted((k, str(v)) for k, v in options.items()))
        if name not in self._made:
            target = self.root / f"{len(self._made)}.shadow"
            options.pop("draw", None)  # another draw of the same secrets
            samples, calibration = options.pop("samples", None), options.pop("calibrated", None)
            calibration = calibration if samples is None else images(model, samples)[:, None]
            calibration = None if calibration is None else [calibration]
            shadownet.convert(model, target, scheme=scheme, key=self.key, calibration=calibration, **options)
            self._made[name] = target
        return self._made[name]

    def seen(self, bundle: Path, inputs: Array, **options: Any) -> AdversaryView:
        transcript = lab.record(bundle, inputs, self.key, **options)
        return replace(read_view(bundle), knowledge=Knowledge.TRANSCRIPT, transcript=transcript)


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Bench:
    return Bench(tmp_path_factory.mktemp("bench"))


@pytest.fixture
def masked_by() -> Iterator[Callable[[float], str]]:
    """Register ShadowNet with masks of so many times the tensor's rms: the scheme's name."""
    made = []

    def register(sigma: float) -> str:
        name = f"shadownet:sigma{sigma:g}"
        schemes.SCHEMES[name] = replace(PAPER, name=name, mask=MaskRule(relative=sigma))
        made.append(name)
        return name

    yield register
    for name in made:
        schemes.SCHEMES.pop(name, None)


def images(model: Path, count: int, first: int = 0) -> Array:
    """Inputs [count, ...] from number ``first`` on: held-out digits for our own networks, CIFAR-10 for ResNet-20."""
    if "digits" in model.name:
        with np.load(DIGITS / "digits_test.npz") as data:
            return np.resize(data["x"], (count, *data["x"].shape[1:]))
    with np.load(model.parent.parent / "data" / "cifar10.npz") as data:
        x = data["x"][first : first + count].astype(np.float32)
    deviation = np.float32([0.017124753831663668, 0.01750700280112045, 0.017429193899782137])
    return (x - np.float32([123.675, 116.28, 103.53])) * deviation


def off_by(found: Array, true: Array) -> float:
    return float(np.linalg.norm(found - true) / np.linalg.norm(true))


def synthetic(sent: Array, masked: bool = True) -> AdversaryView:
    """A view of one layer to which ``sent`` [T, ...] went."""
    shape = (1, *sent.shape[1:])
    layer = PublicLayer(
        "layer000", 0, 0, "CONV_2D", np.zeros((1, 1, 1)), 1, False, "float", shape, shape,
        Geometry((1, 1), shape[-1]), masked,
    )  # fmt: skip
    crossings = tuple(Crossing("layer000", x[None], x[None]) for x in sent)
    return AdversaryView("other", {}, (layer,), Knowledge.TRANSCRIPT, transcript=crossings)


# A5: passive alignment, A10: hidden assignment


def in_place(found: alignment.Alignment, slots: Array, true: TrueLayer, following: TrueLayer) -> float:
    """Share of rows, by their filter slots, that were matched with the channel that they feed."""
    assert true.restore is not None and following.restore is not None
    order = following.restore.order
    sent_at = np.arange(len(found.order)) if order is None else np.argsort(order)
    right = 0
    for slot, column in zip(slots, found.order, strict=True):
        owner = np.flatnonzero((true.restore.slot == slot).any(axis=0))
        right += len(owner) >= 1 and column in sent_at[owner] and (true.restore.slot[0, owner] == slot).any()
    return right / len(slots)


def aligned(bench: Bench, model: Path, view: AdversaryView, bundle: Path, first: int) -> tuple[float, Any]:
    layer, following = view.layers[first : first + 2]
    recovery = mask_blind.attack(view, layer)
    assert recovery is not None and recovery.pairs is not None
    truth = read_truth(bundle, model, bench.key)
    found = alignment.attack(view, layer, following, recovery)
    assert found is not None
    return in_place(found, recovery.pairs[:, 0], truth[first], truth[first + 1]), found


def test_small_masks_do_not_hide_the_order_of_channels(bench: Bench) -> None:
    model = DIGITS / "digits_cnn.tflite"
    bundle = bench.bundle(model, "shadownet:artifact", samples=16)
    view = bench.seen(bundle, images(model, 60))
    share, found = aligned(bench, model, view, bundle, 2)
    assert share >= 0.9 and found.sure.mean() > 0.9


def test_unrelated_values_are_not_aligned() -> None:
    rng = np.random.default_rng(0)
    found = alignment.align(rng.normal(size=(4000, 24)), rng.normal(size=(4000, 24)), 4000)
    assert found is not None and found.sure.mean() < 0.3
    assert (found.order == np.arange(24)).mean() < 0.3
    assert alignment.align(np.zeros((4, 3)), np.zeros((4, 3)), 4) is None


def test_a_public_model_tells_a_hidden_assignment_of_channels(bench: Bench) -> None:
    """Depthwise layers are sent channels in a secret order; a public twin's activations give it away."""
    model = DIGITS / "digits_cnn.tflite"
    bundle = bench.bundle(model, "shadownet:artifact", samples=16)
    inputs = images(model, 40)
    view = bench.seen(bundle, inputs)
    layer = next(layer for layer in view.layers if layer.depthwise)
    true = read_truth(bundle, model, bench.key)[layer.index]
    assert true.restore is not None and true.restore.order is not None
    (activations,) = lab.features(model, [layer.op_id], inputs)
    found = alignment.hidden(view, layer, activations)
    assert found is not None and (found.order == true.restore.order).mean() > 0.9
    noise = np.random.default_rng(0).normal(size=activations.shape)
    blind = alignment.hidden(view, layer, noise)
    assert blind is not None and (blind.order == true.restore.order).mean() < 0.3
    with pytest.raises(InputError, match="same inputs"):
        alignment.hidden(view, layer, activations[1:])


# A11: static basis, A12: pad reuse


def test_a_pool_of_masks_is_seen_and_fresh_masks_are_not(bench: Bench) -> None:
    rng = np.random.default_rng(0)
    x = np.maximum(rng.normal(size=(12, 4, 4, 8)), 0)
    pool = rng.normal(0, 8, (5, 4, 4, 8))
    chosen = rng.integers(0, 5, 12)
    view = synthetic(x + pool[chosen])
    wanted = [(i, j) for i in range(12) for j in range(i + 1, 12) if chosen[i] == chosen[j]]
    assert basis.reused(view, view.layers[0]) == wanted and wanted
    (i, j), (a, b) = wanted[0], (view.transcript or ())[:2]
    sent = [c.sent for c in view.transcript or ()]
    np.testing.assert_allclose(sent[i] - sent[j], (x[i] - x[j])[None], atol=1e-9)
    assert a is not b
    model = DIGITS / "digits_cnn.tflite"
    for scheme in ("shadownet:paper", "shadownet:artifact"):
        live = bench.seen(bench.bundle(model, scheme, samples=16), np.repeat(images(model, 2), 5, axis=0))
        masked = [layer for layer in live.layers if layer.masked]
        assert len(masked) > 3
        if scheme == "shadownet:paper":
            assert not any(basis.reused(live, layer) for layer in masked)
        else:  # masks of 0.05 hide nothing that reuse could reveal; but no message came twice
            assert all(len({c.sent.tobytes() for c in live.crossings(layer)}) == 10 for layer in masked)


def test_masks_of_few_dimensions_are_projected_out_and_fresh_ones_stay(bench: Bench) -> None:
    rng = np.random.default_rng(1)
    size, k = 4 * 4 * 16, 10
    span = np.linalg.qr(rng.normal(size=(size, k)))[0].T
    x = np.maximum(rng.normal(size=(1, 4, 4, 16)), 0)

    def sent(activation: Array, count: int) -> Array:
        return activation + (50 * rng.normal(size=(count, k)) @ span).reshape(count, *activation.shape[1:])

    view = synthetic(sent(x, 2 * k))
    found = basis.static_basis(view, view.layers[0])
    assert found is not None and len(found.span) == k
    other = np.maximum(rng.normal(size=(1, 4, 4, 16)), 0)
    kept = np.square(found.clean(sent(other, 1))).sum() / np.square(other).sum()
    assert kept > 0.9 and off_by(found.clean(sent(other, 1)), other) < 0.35
    known = np.maximum(rng.normal(size=(2 * k, 4, 4, 16)), 0)
    view = synthetic(np.concatenate([sent(row[None], 1) for row in known]))
    assert basis.static_basis(view, view.layers[0]) is None
    assert basis.static_basis(view, view.layers[0], known) is not None
    model = DIGITS / "digits_cnn.tflite"
    live = bench.seen(bench.bundle(model, "shadownet:paper", samples=16), np.repeat(images(model, 1), 12, axis=0))
    assert all(basis.static_basis(live, layer) is None for layer in live.layers)


# A14: tampering


def test_without_integrity_every_finite_answer_passes(bench: Bench) -> None:
    model = DIGITS / "digits_mlp.tflite"
    bundle = bench.bundle(model, "shadownet:paper", samples=16, integrity="none")
    trial = lab.tamperer(bundle, images(model, 2), bench.key)
    found = {tally.kind: tally for tally in tampering.attack(trial, [1])}
    assert set(found) == set(tampering.KINDS)
    assert all(tally.false_accepts == 1.0 for tally in found.values())
    assert all(found[kind].changed for kind in ("flip", "scale", "zeros", "swap", "other", "replay"))
    # The null: what is not finite never passes.
    assert not trial("nan", 1).accepted


def test_with_integrity_no_wrong_answer_of_integers_passes(bench: Bench) -> None:
    model = DIGITS / "digits_mlp.tflite"
    bundle = bench.bundle(model, "shadownet:paper", activations="exact", integrity="full")
    found = tampering.attack(lab.tamperer(bundle, images(model, 2), bench.key), [1])
    assert all(tally.false_accepts == 0.0 for tally in found)


# A15: averaging


def test_repeats_average_masks_out(bench: Bench) -> None:
    model = DIGITS / "digits_cnn.tflite"
    bundle = bench.bundle(model, "shadownet:paper", samples=16)
    inputs = np.repeat(images(model, 2)[1:], 200, axis=0)
    view = bench.seen(bundle, np.concatenate([images(model, 1), inputs]))
    layer = view.layers[1]
    (average,) = averaging.attack(view, layer)
    assert average.repeats == 200 and average.runs[0] == 1
    true = read_truth(bundle, model, bench.key)[1]
    (activation,) = lab.features(model, [layer.op_id], inputs[:1])
    order = true.restore.order if true.restore is not None else None
    activation = activation if order is None else activation[..., order]
    size = float(np.sqrt(np.square(activation).mean()))
    # Masks of 8 rms: the error falls as one over the root of the repeats, whatever the layer.
    errors = {}
    for repeats in (2, 20, 200):
        value, spread = averaging.mean([c.sent for c in view.crossings(layer)[1 : 1 + repeats]])
        errors[repeats] = float(np.sqrt(np.square(value - activation).mean()))
        assert errors[repeats] == pytest.approx(spread / np.sqrt(repeats), rel=0.1)
    assert errors[2] / errors[200] == pytest.approx(10, rel=0.1)
    assert errors[200] == pytest.approx(average.error, rel=0.1)
    assert averaging.queries_to_break(16.0, size) == pytest.approx(4 * averaging.queries_to_break(8.0, size), rel=0.01)


def test_one_time_pads_and_single_inputs_average_to_nothing() -> None:
    rng = np.random.default_rng(0)
    prime = (1 << 20) - 3
    x = rng.integers(-100, 101, (1, 4, 4, 8))
    pads = rng.integers(0, prime, (400, 4, 4, 8))
    residues = (x + pads + prime // 2) % prime - prime // 2
    value, spread = averaging.mean(list(residues.astype(np.float64)))
    assert abs(np.corrcoef(value.ravel(), x.ravel())[0, 1]) < 0.3  # 128 elements
    assert spread == pytest.approx(prime / np.sqrt(12), rel=0.02)
    view = synthetic(rng.normal(size=(5, 4, 4, 8)), masked=False)
    assert averaging.attack(view, view.layers[0]) == []


def test_exact_activations_average_to_nothing(bench: Bench) -> None:
    bundle = bench.bundle(DIGITS / "digits_mlp.tflite", "shadownet:artifact", activations="exact", integrity="full")
    view = bench.seen(bundle, np.repeat(images(DIGITS / "digits_mlp.tflite", 1), 300, axis=0))
    for layer in view.layers[1:]:
        (average,) = averaging.attack(view, layer)
        assert average.repeats == 300 and average.relative > 0.5
        # Means of 300 uniform residues: none further from 0 than chance allows.
        assert np.abs(average.value).max() < 5 * np.abs(view.sent(layer)[0]).max() / np.sqrt(3 * 300)


# A16: peeling


def peeled(model: Path, bench: Bench, bundle: Path, inputs: Array, held_out: Array, count: int) -> list[float]:
    """Relative errors of the inputs of layers 1 .. ``count``, on inputs that the attack did not see."""
    chain = read_view(bundle).layers[: count + 1]
    view = bench.seen(bundle, inputs, keep=[layer.name for layer in chain])
    found = peeling.attack(view, chain)
    truth = read_truth(bundle, model, bench.key)
    true = lab.features(model, [layer.op_id for layer in chain], held_out)
    x, errors = true[0], []
    for k, peel in enumerate(found):
        x = peel(x)
        restore = truth[k + 1].restore
        order = None if restore is None else restore.order
        errors.append(off_by(x, true[k + 1] if order is None else true[k + 1][..., order]))
    return errors


def test_layers_are_peeled_off_our_own_network(bench: Bench, masked_by: Callable[[float], str]) -> None:
    """Masks of one rms, 40 digits: the first convolution, and the depthwise one after it."""
    model = DIGITS / "digits_cnn.tflite"
    bundle = bench.bundle(model, masked_by(1.0), samples=16)
    inputs = images(model, 60)
    first, second = peeled(model, bench, bundle, inputs[:40], inputs[40:], 2)
    assert first < 0.04 and second < 0.25


def test_noise_alone_is_not_peeled() -> None:
    rng = np.random.default_rng(0)
    x = rng.normal(size=(20, 8, 8, 3)).astype(np.float32)
    found = peeling.fit(x, rng.normal(size=(20, 8, 8, 4)).astype(np.float32), Geometry((3, 3), 3, padding="SAME"))
    assert found.residual == pytest.approx(1.0, abs=0.05)
    assert np.square(found(x)).mean() < 0.1


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("padding", ["SAME", "VALID"])
def test_peeling_a_layer_without_noise_gives_it_exactly(stride: int, padding: str) -> None:
    rng = np.random.default_rng(stride)
    geometry = Geometry((3, 2), 3, (stride, stride), padding=padding)
    weights, bias = rng.normal(size=(5, 18)), rng.normal(size=5)
    x = rng.normal(size=(40, 9, 8, 3)).astype(np.float32)
    true = peeling.Peeled(geometry, weights, bias, 0.0, 6.0, 0.0)
    found = peeling.fit(x, true(x), geometry)
    assert (found.low, found.high) == (0.0, 6.0)
    np.testing.assert_allclose(found.weights, weights, atol=1e-3)
    np.testing.assert_allclose(found.bias, bias, atol=1e-3)


# A18: malleation


def agreeing(found: list[malleation.Extracted], weights: list[Array], slots: list[Array]) -> list[float]:
    """Share of exactly right integers per layer. ``slots[k]`` [terms, n] are the true slots of each filter."""
    shares, columns = [], None
    for layer, true, slot in zip(found, weights, slots, strict=True):
        # A filter alone behind its mask may stand under either's slot.
        owner = [int(np.flatnonzero(slot[0] == s)[0]) if s in slot[0] else int(np.flatnonzero(slot[1] == s)[0])
                 for s in layer.slots]  # fmt: skip
        wanted = true[owner] if columns is None else true[owner][:, columns]
        shares.append(float((layer.weights == wanted).mean()))
        columns = owner
    return shares


@pytest.mark.parametrize("sizes", [[16, 12, 8, 5], [20, 16, 12, 10, 6], [24, 10]])
def test_labels_alone_give_every_weight(sizes: list[int]) -> None:
    net = Network(sizes)
    view = net.view(25 * net.parameters)
    found = malleation.attack(view)
    slots = [np.stack([real, mask]) for real, mask in zip(net.real, net.mask, strict=True)]
    assert agreeing(found, net.weights, slots) == [1.0] * len(net.weights)
    assert view.oracle is not None and view.oracle.used == sum(layer.queries for layer in found)


def test_labels_that_do_not_follow_the_answers_give_nothing() -> None:
    net = Network([16, 12, 8, 5])
    view = net.view(20 * net.parameters)
    honest = malleation.Malleable(lambda x, offsets: net.label(x, {}), 20 * net.parameters)
    with pytest.raises(InputError, match="could be made visible|no query"):
        malleation.attack(replace(view, oracle=honest))
    with pytest.raises(InputError, match="malicious accelerator"):
        malleation.attack(replace(view, knowledge=Knowledge.CHOSEN_INPUTS))
    short = malleation.Malleable(net.label, 1000)
    with pytest.raises(InputError, match="no query"):
        malleation.attack(replace(view, oracle=short))
    assert short.used == 1000


def exact_mlp(
    bench: Bench, integrity: str, model: Path = DIGITS / "digits_mlp.tflite"
) -> tuple[Path, AdversaryView]:  # fmt: skip
    bundle = bench.bundle(model, "shadownet:artifact", activations="exact", integrity=integrity)
    graph, _ = load(model)
    shape = graph.subgraphs[0].tensors[graph.subgraphs[0].inputs[0]].shape
    inputs = np.random.default_rng(0).uniform(0, 1, (64, *shape[1:])).astype(np.float32)
    return bundle, replace(bench.seen(bundle, inputs), knowledge=Knowledge.MALICIOUS)


def small_mlp(root: Path) -> Path:
    """Dense layers 16-8-5 with ReLU, random."""
    net = Model(3).net()
    net.output(net.dense(net.dense(net.input(1, 16), 8, activation="RELU"), 5))
    (root / "small.tflite").write_bytes(net.model.content())
    return root / "small.tflite"


@pytest.mark.slow
def test_labels_alone_give_every_weight_of_a_running_bundle(bench: Bench) -> None:
    model = DIGITS / "digits_mlp.tflite"
    bundle, view = exact_mlp(bench, "none", model)
    truth = read_truth(bundle, model, bench.key)
    weights = [np.rint(t.rows[0] / (np.abs(t.rows[0]).max(axis=1, keepdims=True) / 2047)) for t in truth]
    parameters = sum(w.size for w in weights)
    with lab.obedient(bundle, 25 * parameters, bench.key) as oracle:
        found = malleation.attack(replace(view, oracle=oracle))
    slots = [t.restore.slot for t in truth if t.restore is not None]
    shares = agreeing(found, weights, slots)
    print(f"A18: {oracle.used / parameters:.1f} queries per parameter, exact {shares}")
    assert min(shares) >= 0.95


def test_integrity_ends_malleation_at_the_first_query(bench: Bench) -> None:
    bundle, view = exact_mlp(bench, "full")
    with lab.obedient(bundle, 1000, bench.key) as oracle:
        with pytest.raises(IntegrityError):
            malleation.attack(replace(view, oracle=oracle))
        assert oracle.used == 1


# The harness


def test_the_lab_offers_labels_within_a_budget(bench: Bench) -> None:
    model = DIGITS / "digits_mlp.tflite"
    with np.load(DIGITS / "digits_test.npz") as data:
        x, y = data["x"][:20], data["y"][:20]
    with lab.labels(bench.bundle(model, "shadownet:paper", samples=16), 20, bench.key) as oracle:
        assert isinstance(oracle, Oracle) and (oracle(x) == y).mean() > 0.8
        with pytest.raises(InputError, match="0 of 20 left"):
            oracle(x[:1])


def test_the_obedient_accelerator_adds_what_it_is_told(bench: Bench) -> None:
    model = DIGITS / "digits_mlp.tflite"
    bundle = bench.bundle(model, "shadownet:artifact", samples=16, integrity="none")
    last = lab.answers(bundle)
    name = list(last)[-1]
    with lab.obedient(bundle, 20, bench.key) as oracle:
        for wanted in (3, 7):
            offsets = np.zeros(last[name], np.float32)
            offsets[..., wanted] = 1e3
            assert oracle.ask(images(model, 1)[0], {name: offsets}) == wanted
        plain = [oracle.ask(x, {}) for x in images(model, 3)]
    with lab.labels(bundle, 20, bench.key) as oracle:
        assert oracle(images(model, 3)).tolist() == plain


# Through the bench


@pytest.fixture(scope="module")
def taken(bench: Bench) -> Callable[..., dict[str, Outcome]]:
    """What attacks that take part get of a bundle of a fine-tuned victim: by the attack's name."""
    data = read_data(VICTIMS / "data.npz")

    def weigh(family: str, scheme: str, names: str, runs: int, **options: Any) -> dict[str, Outcome]:
        model, base = (VICTIMS / f"{family}_{kind}.tflite" for kind in ("tuned_3", "base"))
        key = bench.key
        bundle = bench.bundle(model, scheme, calibrated=data.queries[:16], **options)
        stage = live.Stage(
            open_view(bundle, base), bundle, model, read_truth(bundle, model, key), key, data.queries, base, runs, True
        )
        return {outcome.attack: outcome for outcome in live.weigh(stage, registry.select(names))}

    return weigh


def test_the_bench_shows_what_small_masks_leave(taken: Callable[..., dict[str, Outcome]]) -> None:
    found = taken("cnn", "shadownet:artifact", "A5,A10,A11,A12,A14,A15,A16", 48)
    # Means of five draws: in one of ten A4 takes a mask that several of 12 filters share for one, and A5 is off.
    draws = [found, *(taken("cnn", "shadownet:artifact", "A5,A10,A15,A16", 48, draw=i) for i in range(1, 5))]
    for name in ("A5", "A10", "A15", "A16"):
        got, null = (np.mean([getattr(draw[name], kind) or 0.0 for draw in draws]) for kind in ("recovered", "null"))
        assert got > 0.9 > 0.3 > null and found[name].queries == 48
    for name in ("A11", "A12"):  # masks are fresh
        assert found[name].recovered == found[name].null == 0.0
    assert (found["A10"].base or 0.0) < 0.3 and (found["A15"].base or 1.0) < (found["A15"].recovered or 0.0)
    # A float check has a tolerance: one unit in the last place lies within it, and moves no result.
    (note,) = found["A14"].forms.values()
    assert note in ("none", "step (changed no result)") and found["A14"].null == 0.0


def test_a_slot_that_no_filter_uses_feeds_nothing() -> None:
    map_ = Restore(np.int32([[0, 2], [1, 1]]), np.ones((2, 2), np.float32))
    layers = [TrueLayer(name, np.ones((1, 2, 3)), False, map_) for name in ("one", "next")]
    assert live._feeds(np.array([2, 0, 5]), *layers).tolist() == [1, 0, -1]


def test_the_bench_shows_that_pads_leave_nothing(taken: Callable[..., dict[str, Outcome]]) -> None:
    found = taken("mlp", "shadownet:paper", "A5,A11,A12,A15,A16", 64, activations="exact")
    assert set(found) == {"A5", "A11", "A12", "A15", "A16"}
    for name, one in found.items():
        assert one.recovered is not None and one.recovered <= {"A5": 0.2, "A15": 0.3, "A16": 0.05}.get(name, 0.0)


@pytest.mark.slow
def test_the_bench_malleates_what_nobody_checks(bench: Bench, tmp_path: Path) -> None:
    model = small_mlp(tmp_path)
    samples = np.random.default_rng(0).uniform(0, 1, (16, 16)).astype(np.float32)
    for integrity, got, asked in (("none", 1.0, 25 * 168), ("full", 0.0, 1)):
        bundle = bench.bundle(model, "shadownet:artifact", activations="exact", integrity=integrity)
        truth = read_truth(bundle, model, bench.key)
        stage = live.Stage(read_view(bundle), bundle, model, truth, bench.key, samples, runs=16, malicious=True)
        (one,) = live.weigh(stage, registry.select("A18"))
        assert one.recovered == got and one.queries <= asked and (one.null or 0.0) < 0.3
        assert len(one.scores) == (2 if got else 0)
        assert live.weigh(replace(stage, malicious=False), registry.select("A14,A18")) == []


def test_an_attack_that_takes_part_says_what_it_lacks() -> None:
    stage = live.Stage(synthetic(np.zeros((3, 2, 2, 4))), "b", "m", ())
    for attack in registry.ATTACKS.values():
        gets = {registry.Need.FILES, registry.Need.TRANSCRIPT}
        assert set(stage.missing(attack)) == set(attack.needs) - gets
        assert attack.on_weights != (attack.name in live.TAKING_PART or attack.name == registry.STEAL)


def test_what_is_scored_must_not_be_the_victims() -> None:
    true = np.random.default_rng(0).normal(size=(4, 4))
    for same in (true, true.copy()):
        with pytest.raises(AssertionError, match="is the victim"):
            live.explained(same, true)
    assert live.explained(3 * true + 1, true) == pytest.approx(1.0)


# Large ones: the shared ResNet-20


def resnet20(shared: Path) -> Path:
    return shared / "models" / "resnet20_cifar10_float32.tflite"


def outsourced(model: Path, count: int) -> str:
    """The ids of the first ``count`` linear ops; the others stay in the enclave, which saves time."""
    return ",".join(str(layer.op_id) for layer in model_layers(model)[:count])


@pytest.mark.slow
@pytest.mark.parametrize(("sigma", "most"), [(1.0, (0.014, 0.05)), (16 / np.sqrt(1000), (0.008, 0.026))])
def test_resnet_20_is_peeled(
    bench: Bench, shared: Path, masked_by: Callable[[float], str], sigma: float, most: tuple[float, float]
) -> None:
    """300 queries with masks of one rms; and of 16 rms, each repeated 1,000 times: averages have masks of 0.5 rms."""
    model = resnet20(shared)
    bundle = bench.bundle(model, masked_by(sigma), outsource=outsourced(model, 3), samples=16)
    first, second = peeled(model, bench, bundle, images(model, 300), images(model, 20, 300), 2)
    print(f"A16: sigma {sigma:.2f} rms, 300 queries: {first:.2%} and {second:.2%}")
    assert first < most[0] and second < most[1]
