"""From bundle to stolen model: the engine is right, the claim holds, and the controls say what they should."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from ai_edge_litert.interpreter import Interpreter

import shadownet
from shadownet.attacks import bench, lab, order, surrogate
from shadownet.attacks.network import Network, replace_constants, skeleton
from shadownet.attacks.steal import steal
from shadownet.attacks.view import AdversaryView, Knowledge, Oracle
from shadownet.wire.errors import InputError, ModelError

Array = np.ndarray[Any, Any]

ROOT = Path(__file__).resolve().parent.parent
VICTIMS = ROOT / "models" / "victims"
DIGITS = ROOT / "models" / "digits"
POINT = 0.01


@pytest.fixture(scope="module")
def data() -> bench.Data:
    return bench.read_data(VICTIMS / "data.npz")


@pytest.fixture
def bundled(tmp_path: Path, device_key: Path, data: bench.Data) -> Callable[..., AdversaryView]:
    """Convert a victim; its view, with a transcript of the attacker's own runs if ``runs``."""

    def make(
        model: Path, scheme: str = "shadownet:artifact", runs: int = 0, base: Path | None = None, **options: Any
    ) -> AdversaryView:
        bundle = tmp_path / f"{model.stem}.shadow"
        samples = [data.queries[:16]]
        if scheme == "delta":
            options["base"] = base
        shadownet.convert(model, bundle, scheme=scheme, calibration=samples, overwrite=True, **options)
        view = bench.open_view(bundle, base)
        if runs:
            crossed = lab.record(bundle, data.queries[:runs])
            view = replace(view, knowledge=Knowledge.TRANSCRIPT, transcript=crossed)
        return view

    return make


def litert(model: bytes, x: Array) -> Array:
    interpreter = Interpreter(model_content=model)
    interpreter.allocate_tensors()
    source, target = interpreter.get_input_details()[0]["index"], interpreter.get_output_details()[0]["index"]
    out = []
    for sample in x:
        interpreter.set_tensor(source, sample[None])
        interpreter.invoke()
        out.append(interpreter.get_tensor(target)[0])
    return np.array(out)


# The engine.


@pytest.mark.parametrize(
    "path", [DIGITS / "digits_mlp.tflite", DIGITS / "digits_cnn.tflite", VICTIMS / "cnn_scratch.tflite"]
)
def test_the_engine_computes_what_litert_computes(path: Path, data: bench.Data) -> None:
    network = Network.load(path)
    values, _ = network.forward(data.x[:20], until=network.output)
    np.testing.assert_allclose(values[network.output], litert(path.read_bytes(), data.x[:20]), atol=1e-5)


@pytest.mark.parametrize("path", [DIGITS / "digits_cnn.tflite", VICTIMS / "cnn_scratch.tflite"])
def test_gradients_agree_with_differences(path: Path) -> None:
    network = Network.load(path)
    rng = np.random.default_rng(0)
    x = rng.random((8, 8, 8, 1)).astype(np.float32)
    values, tape = network.forward(x)
    weights = rng.normal(size=values[network.logits].shape)
    gradients = network.gradients(tape, network.logits, weights)
    for t, value in list(network.parameters.items()):
        if not value.ndim:
            continue
        direction = np.sign(gradients[t])  # the steepest, so that rounding is small beside the change
        step = 1e-3 / max(float(np.abs(gradients[t]).sum()), 1e-3)
        found = []
        for sign in (1, -1):
            network.parameters[t] = (value + sign * step * direction).astype(np.float64)
            found.append(float((network.forward(x)[0][network.logits] * weights).sum()))
        network.parameters[t] = value
        expected = float((gradients[t] * direction).sum())
        assert (found[0] - found[1]) / (2 * step) == pytest.approx(expected, rel=0.1, abs=1e-2)


def test_a_skeleton_holds_none_of_the_victims_numbers() -> None:
    content = (VICTIMS / "cnn_scratch.tflite").read_bytes()
    empty = skeleton(content)
    for value in Network(content).parameters.values():
        if value.size >= 8:
            assert value.tobytes() in content and value.tobytes()[:32] not in empty
    assert {t: a.shape for t, a in Network(empty).parameters.items()} == {
        t: a.shape for t, a in Network(content).parameters.items()
    }


def test_replaced_constants_are_read_back() -> None:
    content = (VICTIMS / "mlp_scratch.tflite").read_bytes()
    network = Network(content)
    fresh = {t: np.full_like(a, 0.5) for t, a in network.parameters.items()}
    again = Network(replace_constants(content, fresh))
    assert all(np.array_equal(again.parameters[t], fresh[t]) for t in fresh)


def test_a_quantised_model_cannot_be_refitted() -> None:
    with pytest.raises(ModelError, match="refitted"):
        Network.load(DIGITS / "digits_cnn_int8.tflite")


# The claim.


@pytest.mark.parametrize(
    "name", ["mlp_scratch", *(pytest.param(name, marks=pytest.mark.slow) for name in ("cnn_scratch", "cnn_tuned_3"))]
)
def test_a_model_stolen_from_artifact_is_as_good_as_the_victim(name: str, bundled: Any, data: bench.Data) -> None:
    path = VICTIMS / f"{name}.tflite"
    got = bench.theft(bundled(path, runs=32), path, data, 50)
    assert got.queries == 50 and all(piece["order"] != "unknown" for piece in got.pieces)
    assert got.stolen.accuracy >= got.white_box.accuracy - POINT
    assert got.stolen.fidelity > 0.95
    # The file that is handed over works, in the real runtime.
    right = (litert(got.model, data.x).argmax(axis=1) == data.y).mean()
    assert right == pytest.approx(got.stolen.accuracy, abs=0.005)
    # Controls: random weights are at chance, and the same labels without the leak buy far less.
    assert got.null.accuracy < 0.3
    assert got.black_box.accuracy < got.white_box.accuracy - 0.1
    assert got.normalised["accuracy"] > 0.9
    # Adversarial examples carry over as from the victim itself.
    assert got.stolen.pgd > 0.8 * got.white_box.pgd > got.black_box.pgd


def test_members_of_an_overfitted_victim_show(bundled: Any, data: bench.Data) -> None:
    """80 samples, learnt by heart: the stolen model tells them as well as the victim, other models hardly."""
    path = VICTIMS / "mlp_few.tflite"
    x, y = data.members or (data.x, data.y)
    got = bench.theft(bundled(path, runs=32), path, replace(data, members=(x[:80], y[:80])), 50)
    white, stolen, null = got.white_box, got.stolen, got.null
    assert min(white.member_auc or 0, white.gradient_auc or 0, stolen.member_auc or 0, stolen.gradient_auc or 0) >= 0.7
    assert (white.member_tpr or 0) > 0.02 and got.normalised["member_auc"] > 0.9
    assert abs((null.member_auc or 0) - 0.5) < 0.1 and (got.black_box.member_auc or 1) < 0.62


@pytest.mark.slow
def test_a_network_with_a_residual_block_falls_too(bundled: Any, data: bench.Data) -> None:
    path = DIGITS / "digits_cnn.tflite"
    got = bench.theft(bundled(path, runs=32), path, replace(data, members=None), 50)
    assert got.stolen.accuracy >= got.white_box.accuracy - POINT


def test_with_a_public_relative_no_transcript_is_needed(bundled: Any, data: bench.Data) -> None:
    path, base = VICTIMS / "mlp_tuned_3.tflite", VICTIMS / "mlp_base.tflite"
    got = bench.theft(bundled(path, base=base), path, data, 500, base)
    assert {piece["order"] for piece in got.pieces} <= {"public model", "natural"}
    assert got.stolen.fidelity > 0.95 and got.base is not None
    assert got.base.accuracy < 0.5 < got.stolen.accuracy


@pytest.mark.parametrize(("scheme", "least"), [("shadownet:artifact", 0.95), ("shadownet:paper", 0.9), ("slalom", 0.9)])
def test_weights_in_fixed_point_are_stolen_with_a_public_relative(
    scheme: str, least: float, bundled: Any, data: bench.Data
) -> None:
    """Pads hide activations, not weights: the steps of filters come from the public model, biases from 100 labels."""
    path, base = VICTIMS / "mlp_tuned_3.tflite", VICTIMS / "mlp_base.tflite"
    got = bench.theft(
        bundled(path, scheme, base=base, activations="exact"), path, replace(data, members=None), 100, base
    )
    assert got.stolen.fidelity > least > got.black_box.fidelity and got.fitted == "biases"


def test_a_transcript_of_pads_is_of_no_use(bundled: Any, data: bench.Data) -> None:
    path = VICTIMS / "mlp_scratch.tflite"
    got = steal(bundled(path, activations="exact", runs=4), Network(skeleton(path.read_bytes())))
    assert {piece.order for piece in got.pieces} == {"unknown", "natural"}
    assert (got.network.classify(data.x) == data.y).mean() < 0.3


def test_delta_leaves_no_more_to_steal_than_labels_buy(bundled: Any, data: bench.Data) -> None:
    path, base = VICTIMS / "mlp_tuned_3.tflite", VICTIMS / "mlp_base.tflite"
    view = bundled(path, "delta", base=base, activations="exact")
    got = bench.theft(view, path, replace(data, members=None), 0, base)
    assert got.base is not None and got.stolen.accuracy < got.base.accuracy + 0.05 < 0.3


def test_files_alone_and_labels_are_less(bundled: Any, data: bench.Data) -> None:
    path = VICTIMS / "mlp_scratch.tflite"
    got = bench.theft(bundled(path), path, data, 50)
    assert got.fitted == "everything" and "unknown" in {piece["order"] for piece in got.pieces}
    assert got.stolen.fidelity < 0.95


def test_large_masks_hide_the_order(bundled: Any, data: bench.Data) -> None:
    """The null of ordering: behind masks of eight times the activations, few runs tell nothing, and it knows."""
    path = VICTIMS / "mlp_scratch.tflite"
    view = bundled(path, "shadownet:paper", runs=16)
    got = steal(view, Network(skeleton(path.read_bytes())))
    assert all(piece.order == "unknown" for piece in got.pieces) and got.queries == 0 and got.fitted == "nothing"
    assert (got.network.classify(data.x) == data.y).mean() < 0.3  # ten classes


def test_a_relative_of_another_seed_helps_little(bundled: Any, data: bench.Data) -> None:
    """The null of the public model: independent training gives no prior."""
    path, other = VICTIMS / "mlp_scratch.tflite", VICTIMS / "mlp_other.tflite"
    (found,) = bench.weigh(bundled(path, "shadownet:paper", base=other), None, bench.registry.select("A2"))
    assert found.recovered is None
    got = bench.theft(bundled(path, "shadownet:paper", base=other), path, data, 0, other)
    assert got.stolen.accuracy < 0.5


def test_scoring_the_victim_is_caught(bundled: Any, monkeypatch: pytest.MonkeyPatch, data: bench.Data) -> None:
    path = VICTIMS / "mlp_scratch.tflite"
    view = bundled(path)

    def cheat(*_: Any, **__: Any) -> Any:
        return bench.Stolen(Network.load(path), (), 0, "nothing")

    monkeypatch.setattr(bench, "steal", cheat)
    with pytest.raises(AssertionError, match="is the victim"):
        bench.theft(view, path, data, 0)


def test_another_architecture_is_refused(bundled: Any) -> None:
    view = bundled(VICTIMS / "mlp_scratch.tflite")
    with pytest.raises(InputError, match="skeleton"):
        steal(view, Network.load(VICTIMS / "cnn_scratch.tflite"))


# Its parts.


def test_labels_are_counted(bundled: Any, data: bench.Data) -> None:
    path = VICTIMS / "mlp_scratch.tflite"
    oracle = Oracle(Network.load(path).classify, 30)
    view = replace(bundled(path), oracle=oracle)
    assert steal(view, Network(skeleton(path.read_bytes())), data.queries).queries == 30 == oracle.used


def test_order_is_found_in_clean_observations() -> None:
    network = Network.load(VICTIMS / "mlp_scratch.tflite")
    rng = np.random.default_rng(0)
    values, _ = network.forward(rng.random((40, 8, 8, 1)))
    first, second, _ = network.linear()
    sent = {op.inputs[0]: values[op.inputs[0]] for op in (first, second)}
    shuffled = rng.permutation(32)
    rows = network.parameters[first.inputs[1]][shuffled]
    found = order.order_layer(network, first, rows, sent)
    assert found is not None and found.believed
    alive = values[second.inputs[0]].std(axis=0) > 1e-3
    np.testing.assert_array_equal(shuffled[found.order][alive], np.arange(32)[alive])
    np.testing.assert_allclose(found.bias[alive], network.parameters[first.inputs[2]][alive], atol=0.05)


def test_membership_is_told_by_confidence_and_by_nothing_else() -> None:
    network = Network.load(VICTIMS / "mlp_scratch.tflite")
    rng = np.random.default_rng(0)
    a, b = rng.random((2, 400, 8, 8, 1))
    top = network.classify(a)
    auc, tpr = surrogate.membership(network, (a, top), (b, (network.classify(b) + 1) % 10))
    assert auc > 0.95 and tpr > 0.5
    auc, tpr = surrogate.membership(network, (a, top), (b, network.classify(b)))
    assert abs(auc - 0.5) < 0.06 and tpr < 0.06


def test_intervals() -> None:
    mean, half = bench.interval([1.0, 2.0, 3.0])
    assert mean == 2.0 and half == pytest.approx(4.303 / np.sqrt(3), rel=1e-3)
    assert bench.interval([1.0])[1] == float("inf")
