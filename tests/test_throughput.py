"""Two inferences under way at a time, batches, start-up and long runs."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from boundary_helpers import Lab, digits, infer, the_lab

import shadownet
from shadownet.wire.errors import InputError, IntegrityError, WorkerError

lab = the_lab

MODELS = ["digits_cnn", "planted"]


def requests(it: shadownet.Interpreter, count: int) -> list[list[np.ndarray]]:
    rng = np.random.default_rng(0)
    shape = it.get_input_details()[0]["shape"]
    return [[rng.uniform(0, 1, shape).astype(np.float32)] for _ in range(count)]


def one_by_one(it: shadownet.Interpreter, asked: list[list[np.ndarray]]) -> list[np.ndarray]:
    it.allocate_tensors()
    return [infer(it, *values) for values in asked]


@pytest.mark.parametrize("integrity", ["none", "full", "spot:0.5"])
@pytest.mark.parametrize("name", MODELS)
def test_pipelined_results_are_those_of_one_after_the_other(
    lab: Lab, tmp_path: Path, name: str, integrity: str
) -> None:
    bundle = tmp_path / "bundle"
    shadownet.convert(lab.model(name), bundle, scheme="shadownet:fast", integrity=integrity, key=lab.key)
    with shadownet.Interpreter(bundle, key=lab.key) as it:
        asked = requests(it, 5)  # odd: the last one travels alone
        want = one_by_one(it, asked)
        got = it.invoke_many(asked)
        assert it.session.room > 1 or not _has_c_loop()
        crossed = it.session.stats()["crossings"]
        assert crossed == 10 * len(it.session.manifest["layers"])
    for expected, (answer,) in zip(want, got, strict=True):
        # Masks differ, so the last digits do: float32 rounding at eight times the activations' size.
        np.testing.assert_allclose(answer, expected, atol=1e-3 * np.abs(expected).max())
    assert len({answer.tobytes() for (answer,) in got}) == 5, "two requests got one answer"


def _has_c_loop() -> bool:
    from enclave import native

    return native.load() is not None


def test_exact_activations_are_pipelined_bit_for_bit(lab: Lab, tmp_path: Path) -> None:
    bundle = tmp_path / "bundle"
    shadownet.convert(lab.model("digits_cnn"), bundle, activations="exact", key=lab.key)
    with shadownet.Interpreter(bundle, key=lab.key) as it:
        asked = requests(it, 3)
        want = one_by_one(it, asked)
        for expected, (answer,) in zip(want, it.invoke_many(asked), strict=True):
            np.testing.assert_array_equal(answer, expected)


def test_a_wrong_answer_in_either_lane_ends_the_session(lab: Lab) -> None:
    layers = len(shadownet_layers(lab))
    for call in (1, layers, layers + 1):  # calls of two lanes alternate
        with lab.open("digits_cnn", accelerator=f"hostile:scale@{call}") as it:
            asked = requests(it, 2)
            with pytest.raises(IntegrityError):
                it.invoke_many(asked)
            with pytest.raises(IntegrityError):
                it.invoke_many(asked)


def shadownet_layers(lab: Lab) -> list[object]:
    from shadownet.wire.manifest import read_manifest

    return list(read_manifest(lab.bundle("digits_cnn"))["layers"])


def test_a_bad_request_leaves_those_under_way_behind_and_no_trace(lab: Lab) -> None:
    with lab.open("digits_cnn") as it:
        asked = requests(it, 8)
        for bad in (1, 2, 7):
            spoilt = [[value.copy()] for (value,) in asked]
            spoilt[bad][0][:] = np.nan
            with pytest.raises(InputError, match="not finite"):
                it.invoke_many(spoilt)
            for expected, (answer,) in zip(one_by_one(it, asked), it.invoke_many(asked), strict=True):
                np.testing.assert_allclose(answer, expected, atol=1e-3 * np.abs(expected).max())


def test_what_was_begun_for_a_request_that_fails_is_forgotten(lab: Lab) -> None:
    """A plan that nobody ran would run with masks that are gone, beside the next request."""
    with lab.open("digits_cnn") as it:
        good = requests(it, 1)
        bad = [[np.full_like(good[0][0], np.nan)]]
        with pytest.raises(InputError, match="not finite"):
            it.invoke_many(good + bad)  # the first one's plan is begun when the second comes
        before = it.session.stats()["crossings"]
        ((answer,),) = it.invoke_many(good)
        assert it.session.stats()["crossings"] - before == len(it.session.manifest["layers"])
        (expected,) = one_by_one(it, good)
        np.testing.assert_allclose(answer, expected, atol=1e-3 * np.abs(expected).max())


def test_requests_of_another_shape_are_refused(lab: Lab) -> None:
    with lab.open("digits_cnn") as it, pytest.raises(InputError):
        it.invoke_many([[np.zeros((1, 3, 3, 1), np.float32)]])


def test_one_by_one_and_pipelined_may_alternate(lab: Lab) -> None:
    with lab.open("digits_cnn") as it:
        it.allocate_tensors()
        first = infer(it, digits()[:1])
        ((second,),) = it.invoke_many([[digits()[:1]]])
        it.allocate_tensors()
        third = infer(it, digits()[:1])
        np.testing.assert_allclose(second, first, atol=1e-4)
        np.testing.assert_allclose(third, first, atol=1e-4)


@pytest.mark.parametrize("batch", [2, 5])
def test_batches_give_what_single_images_give(lab: Lab, batch: int) -> None:
    with lab.open("digits_cnn") as it:
        it.allocate_tensors()
        want = np.concatenate([infer(it, digits()[k : k + 1]) for k in range(batch)])
        it.resize_tensor_input(it.get_input_details()[0]["index"], (batch, 8, 8, 1))
        it.allocate_tensors()
        np.testing.assert_allclose(infer(it, digits()[:batch]), want, atol=1e-4)


def test_import_loads_nothing_heavy() -> None:
    code = "import sys, shadownet; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert not {"numpy", "ai_edge_litert", "tensorflow", "Crypto", "PIL", "rich"} & set(loaded)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_ten_thousand_inferences_leave_no_trace(lab: Lab) -> None:
    """No growth of memory in any process, and the last thousand are as fast as the second."""
    import time

    with lab.open("digits_cnn") as it:
        it.allocate_tensors()
        sizes, seconds = [], []
        for _ in range(10):
            start = time.perf_counter()
            for _ in range(10):
                it.prepare(100)
                for k in range(100):
                    infer(it, digits()[k : k + 1])
            seconds.append(time.perf_counter() - start)
            sizes.append([_resident(pid) for pid in it.session.pids])
        assert it.session.stats()["masks_made_inline"] == 0
    for early, late in zip(sizes[1], sizes[-1], strict=True):
        assert late <= early * 1.02 + 1_000_000, (sizes[1], sizes[-1])
    # No wall-clock figure is asserted; a slowdown by work that piles up would be far more than this.
    assert seconds[-1] < 5 * min(seconds)


def _resident(pid: int) -> int:
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * 4096


def test_a_worker_that_dies_in_a_pair_is_a_worker_error(lab: Lab) -> None:
    with lab.open("digits_cnn", accelerator="hostile:die@3") as it, pytest.raises(WorkerError):
        it.invoke_many(requests(it, 2))
