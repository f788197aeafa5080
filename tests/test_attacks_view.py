"""What an adversary gets: the public half, to the byte, and nothing else."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from build import Model

import shadownet
from enclave import keys
from shadownet.attacks.base import align, model_layers, public_base
from shadownet.attacks.truth import read_truth
from shadownet.attacks.view import AdversaryView, Crossing, Knowledge, Oracle, join_limbs, read_transcript, read_view
from shadownet.wire.errors import BundleError, InputError
from shadownet.wire.manifest import read_manifest

Array = np.ndarray[Any, Any]


def small_net(seed: int = 0) -> bytes:
    net = Model(seed).net()
    x = net.input(1, 8, 8, 4)
    y = net.conv(x, 10, stride=2, activation="RELU")
    y = net.depthwise(y, 2, kernel=(3, 2), dilation=(1, 2))
    y = net.conv(y, 6, 1, groups=2)
    net.output(net.dense(net.mean(y), 5))
    return net.model.content()


@pytest.fixture
def bundle(tmp_path: Path, device_key: Path) -> Path:
    (tmp_path / "m.tflite").write_bytes(small_net())
    shadownet.convert(tmp_path / "m.tflite", tmp_path / "m.shadow")
    return tmp_path / "m.shadow"


def same(a: AdversaryView, b: AdversaryView) -> bool:
    plain = (a.scheme, a.parameters, a.interface, a.knowledge) == (b.scheme, b.parameters, b.interface, b.knowledge)
    return plain and all(
        {k: v for k, v in vars(x).items() if k != "rows"} == {k: v for k, v in vars(y).items() if k != "rows"}
        and np.array_equal(x.rows, y.rows)
        for x, y in zip(a.layers, b.layers, strict=True)
    )


def test_the_sealed_half_is_never_read(bundle: Path) -> None:
    before = read_view(bundle)
    (bundle / "enclave.sealed").write_bytes(b"\x5a" * 1000)
    assert same(before, read_view(bundle))
    (bundle / "enclave.sealed").unlink()
    assert same(before, read_view(bundle))


def test_reading_a_view_loads_no_code_of_the_owner_or_the_enclave(bundle: Path) -> None:
    program = (
        "import sys; from shadownet.attacks.view import read_view; read_view(sys.argv[1]);"
        "print(*[m for m in sys.modules if m.split('.')[0] in ('enclave', 'accelerator', 'shadownet')])"
    )
    loaded = subprocess.run([sys.executable, "-c", program, bundle], capture_output=True, text=True, check=True).stdout
    allowed = ("shadownet.attacks.view", "shadownet.graph", "shadownet.wire")
    for name in set(loaded.split()) - {"shadownet", "shadownet.attacks"}:
        assert name.startswith(allowed), name


def test_a_view_describes_every_layer(bundle: Path) -> None:
    view = read_view(bundle)
    assert view.scheme == "shadownet:paper" and view.parameters["ratio"] == 1.2 and view.knowledge is Knowledge.PUBLIC
    conv, depthwise, grouped, dense = view.layers
    assert [layer.index for layer in view.layers] == [0, 1, 2, 3]
    assert conv.rows.shape == (1, 12, 36) and conv.filters == 10 and not conv.masked
    assert conv.geometry.kernel == (3, 3) and conv.geometry.channels == 4 and conv.geometry.stride == (2, 2)
    assert depthwise.rows.shape == (10, 2, 6) and depthwise.depthwise and depthwise.filters == 20
    assert depthwise.geometry.dilation == (1, 2) and depthwise.geometry.padding == "SAME" and depthwise.masked
    assert grouped.rows.shape == (2, 4, 10) and grouped.per_group == 3
    assert dense.rows.shape == (1, 6, 6) and dense.geometry.kernel == (1, 1)
    assert not dense.rows.flags.writeable


def test_public_rows_and_the_restoring_map_give_the_truth(bundle: Path, tmp_path: Path) -> None:
    """Ties the view's layout to the truth's: what the enclave does to answers gives the true rows when done to rows."""
    view, truth = read_view(bundle), read_truth(bundle, tmp_path / "m.tflite")
    for layer, true in zip(view.layers, truth, strict=True):
        assert layer.name == true.name and true.restore is not None
        flat = layer.rows.reshape(-1, layer.depth).T
        np.testing.assert_allclose(true.restore.apply(flat).T.reshape(true.rows.shape), true.rows, atol=1e-5)
        pairs = true.pairs()
        assert (pairs is None) == layer.depthwise
        assert pairs is None or pairs.shape == (layer.filters, 2)


def test_a_public_relative_is_aligned_layer_by_layer(bundle: Path, tmp_path: Path) -> None:
    view = read_view(bundle)
    base = public_base(tmp_path / "m.tflite", view.layers)
    for layer, rows, true in zip(view.layers, base, read_truth(bundle, tmp_path / "m.tflite"), strict=True):
        assert rows is not None and rows.shape == (layer.groups, layer.per_group, layer.depth)
        np.testing.assert_array_equal(rows, true.rows)
    shorter = align(view.layers, model_layers(tmp_path / "m.tflite")[1:])
    assert shorter[0] is None and all(rows is not None for rows in shorter[1:])


def test_truth_of_another_model_is_refused(bundle: Path, tmp_path: Path) -> None:
    net = Model().net()
    net.output(net.dense(net.input(1, 7), 3))
    (tmp_path / "other.tflite").write_bytes(net.model.content())
    with pytest.raises(InputError, match="was not made from"):
        read_truth(bundle, tmp_path / "other.tflite")


def test_knowledge_is_graded(bundle: Path) -> None:
    assert Knowledge.PUBLIC < Knowledge.TRANSCRIPT < Knowledge.CHOSEN_INPUTS < Knowledge.MALICIOUS
    view = read_view(bundle)
    crossing = Crossing(view.layers[0].name, np.zeros(3), np.ones(3))
    with pytest.raises(InputError, match="no transcript"):
        replace(view, transcript=(crossing,))
    more = replace(view, transcript=(crossing,), knowledge=Knowledge.TRANSCRIPT)
    assert more.crossings(view.layers[0]) == [crossing] and more.crossings(view.layers[1]) == []
    with pytest.raises(InputError, match="one entry"):
        replace(view, base=(None,))


def test_a_recorded_run_is_read_back(bundle: Path, tmp_path: Path) -> None:
    from accelerator.recorder import Recorder

    recorder = Recorder(str(tmp_path / "t.npz"))
    sent, received = np.arange(6, dtype=np.float32).reshape(1, 6), np.ones((1, 2), np.float32)
    recorder.record("layer003_fully_connected", sent, received)
    recorder.record("layer003_fully_connected", sent + 1, received)
    recorder.close()
    first, second = read_transcript(tmp_path / "t.npz")
    assert first.layer == second.layer == "layer003_fully_connected"
    np.testing.assert_array_equal(second.sent, sent + 1)
    np.testing.assert_array_equal(second.received, received)
    (tmp_path / "bad.npz").write_bytes(b"not a transcript")
    with pytest.raises(InputError, match="not a transcript"):
        read_transcript(tmp_path / "bad.npz")


def test_an_oracle_counts_and_refuses_over_budget() -> None:
    asked: list[int] = []

    def answer(x: Array) -> Array:
        asked.append(len(x))
        return x.argmax(axis=1)

    oracle = Oracle(answer, budget=5)
    np.testing.assert_array_equal(oracle(np.eye(3)), [0, 1, 2])
    with pytest.raises(InputError, match="2 of 5 left"):
        oracle(np.eye(3))
    assert asked == [3] and oracle.used == 3 and oracle.left == 2


def test_limbs_are_put_together_without_the_sealed_base() -> None:
    from enclave.limbs import split

    rows = np.random.default_rng(0).integers(-127, 128, (2, 5, 4096)).astype(np.float32)
    cut, limbs, _ = split(rows, 400.0)
    assert limbs > 1
    np.testing.assert_array_equal(join_limbs(cut.astype(np.float64), limbs), rows)


def test_halves_that_do_not_fit_are_refused(bundle: Path) -> None:
    text = (bundle / "manifest.json").read_text()
    (bundle / "manifest.json").write_text(text.replace("layer000_conv_2d", "layer000_other"))
    with pytest.raises(BundleError, match="do not fit"):
        read_view(bundle)


@pytest.mark.parametrize("scheme", ["shadownet:fast", "none"])
@pytest.mark.parametrize("activations", ["float", "exact"])
def test_all_rows_of_a_layer_are_seen_however_it_goes_out(tmp_path: Path, scheme: str, activations: str) -> None:
    """Tiles and limbs are put together: with the scheme that hides nothing, the rows are the layer's own."""
    key, bundle = tmp_path / "key", tmp_path / "bundle"
    keys.create(key)
    model = Path(__file__).parent.parent / "models" / "digits" / "digits_cnn.tflite"
    shadownet.convert(model, bundle, scheme=scheme, activations=activations, bits=None, key=key)
    view = read_view(bundle)
    for layer, record in zip(view.layers, read_manifest(bundle)["layers"], strict=True):
        assert layer.rows.shape[0] * layer.rows.shape[1] * record["limbs"] == record["output"][-1]
    if scheme == "none":
        base = public_base(model, view.layers)
        for layer, true in zip(view.layers, base, strict=True):
            assert true is not None
            scale = np.abs(true).max(axis=-1, keepdims=True) / np.abs(layer.rows).max(axis=-1, keepdims=True)
            np.testing.assert_allclose(layer.rows * scale, true, atol=1e-3 * np.abs(true).max())
