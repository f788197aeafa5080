"""Checks of the accelerator's answers: that wrong ones are caught, and right ones never."""

from __future__ import annotations

import contextlib
import ctypes
import json
import math
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from boundary_helpers import Lab, digits, enclave_here, gone, infer, marked, sample, shadow, the_lab
from build import Model, litert, parted
from hypothesis import given, settings
from hypothesis import strategies as st
from seeded import SeededRng
from test_transform import CASES, Case, convolutions, recognised

import shadownet
from enclave import native
from enclave.integrity import Checker, Geometry, Policy, Public
from enclave.restore import Restore
from shadownet import tiling
from shadownet.graph import ModelWriter
from shadownet.linear import LinearOp
from shadownet.lower import weight_parts
from shadownet.wire.errors import Error, InputError, IntegrityError
from shadownet.wire.manifest import read_manifest

Array = np.ndarray[Any, Any]
SEEDS = 1000
__all__ = ["the_lab"]


# One layer, as the accelerator has it


class Answered:
    """A layer's public model, an input, and LiteRT's answer to it."""

    def __init__(self, lin: LinearOp, rows: Array, x: Array, tiles: tiling.Tiles | None = None) -> None:
        slots = rows.shape[0] * rows.shape[1]
        tiles = tiles or [(slots, 1)]
        writer = ModelWriter("one layer")
        tiling.emit(lin, writer.subgraph("layer"), lin.weights_from(rows), tiles)
        self.content, self.sent = writer.finish(), np.ascontiguousarray(x, np.float32)
        (found,) = weight_parts(self.content)
        parts = [[at, shape, used] for (at, shape), (used, _) in zip(found, tiles, strict=True)]
        self.public = Public.parse(json.loads(json.dumps(lin.geometry() | {"parts": parts})))
        self.answer = litert(self.content, [self.sent])[0]
        self.geometry = Geometry(self.public, self.sent.shape, self.answer.shape)

    def checker(self, exact: bool, seed: int) -> Checker:
        return Checker(self.public, self.content, exact, SeededRng(seed))

    def holds(self, checker: Checker, answer: Array | None = None) -> bool:
        return checker.holds(self.geometry, self.sent, self.answer if answer is None else answer)


def convolved(seed: int = 0, integer: bool = False, slots: int = 24, channels: int = 8) -> Answered:
    net = Model(seed).net()
    x = net.input(1, 7, 6, channels)
    (lin,) = parted(net.output(net.conv(x, slots)).model.content()).linear
    rng = np.random.default_rng(seed)
    rows, sent = rng.normal(0, 0.2, (1, slots, lin.depth)), rng.normal(0, 3, lin.input_shape)
    if integer:
        rows, sent = rng.integers(-127, 128, rows.shape), rng.integers(-300, 301, sent.shape)
    return Answered(lin, rows.astype(np.float32), sent)


def in_c(layer: Answered, checker: Checker, answer: Array | None = None) -> bool:
    """The judgement of the C loop, which finds the answer given when it asks."""
    answer = np.array(layer.answer if answer is None else answer)
    rows, slots = math.prod(answer.shape[:-1]), answer.shape[-1]
    sent, kept, target = layer.sent, np.zeros_like(layer.sent), np.zeros_like(layer.sent)
    check = checker.native(layer.geometry, kept)
    check.record["active"] = 1
    natural, result, copy = Restore.natural(slots), np.empty_like(answer), np.empty_like(answer)
    steps = np.zeros(2, native.STEP)
    for name in ("send_push", "pop", "push"):
        steps[name] = -1
    steps["first"]["low"], steps["first"]["high"] = -np.inf, np.inf
    steps["second"] = steps["first"]
    pointers = {"source": sent, "target": target, "send_keep": kept}
    steps["kind"], steps["send_rows"][0], steps["send_n"][0] = (native.SEND, native.FINISH), sent.size, 1
    for name, array in pointers.items():
        steps[name][0] = native.address(array)
    for name, number in {"rows": rows, "slots": slots, "n": slots, "terms": 1}.items():
        steps[name][1] = number
    pointers = {"answer": answer, "copy": copy, "slot": natural.slot, "coefficient": natural.coefficient}
    if checker.exact:  # integers of 32 bits, and a result that is rounded
        pointers |= {"coefficient": np.ones((1, slots), np.int32), "multiplier": np.ones(slots, np.float32)}
    for name, array in (pointers | {"result": result, "check": check.record}).items():
        steps[name][1] = native.address(array)
    record = np.zeros(512, np.uint64)
    record[8] = 1  # the reply to the first request is there already
    ring, bell = os.pipe()
    try:
        link = native.Link(native.address(record), 0, bell, ring, ring, -1, 10**9, 10**9)
        lane = native.Lane(steps=native.address(steps), count=2)
        code = native.load()(link, lane, 1, native.Scratch(slots), ctypes.c_int64(0))
    finally:
        os.close(ring)
        os.close(bell)
    assert native.OUTCOMES[code] in ("ok", "not right", "not finite")
    if code == 0:
        np.testing.assert_array_equal(result, answer)
    return bool(code == 0)


needs_c = pytest.mark.skipif(native.load() is None, reason="the enclave's C loop was not built here")


# Of more than 32 channels the C loop takes columns of the kernel together, three at a time.
CHECKED = {**CASES, "many channels": convolutions("DEPTHWISE_CONV_2D", (33, 48), 5)}


@pytest.mark.parametrize("kind", sorted(CHECKED))
def test_right_answers_hold_and_wrong_ones_do_not(kind: str) -> None:
    """Every op, stride, dilation, padding, group and batch; in NumPy, in C where it can, and for integers."""
    compiled = native.load() is not None and kind != "TRANSPOSE_CONV"

    @given(CHECKED[kind], st.integers(0, 1 << 32), st.floats(0, 1, exclude_max=True))
    @settings(max_examples=60)
    def every(case: Case, seed: int, where: float) -> None:
        lin = recognised(case.content)
        layer = Answered(lin, lin.rows(case.weights), case.x)
        checker = layer.checker(False, seed)
        wrong = layer.answer.copy()
        wrong.reshape(-1)[int(where * wrong.size)] += np.float32(4 * checker_tolerance(checker, layer))
        assert layer.holds(checker) and not layer.holds(checker, wrong)
        if compiled:
            assert in_c(layer, checker) and not in_c(layer, checker, wrong)
        integers = Answered(lin, np.rint(20 * lin.rows(case.weights)), np.rint(20 * case.x))
        checker = integers.checker(True, seed)
        wrong = integers.answer.copy()
        wrong.reshape(-1)[int(where * wrong.size)] += 1
        assert integers.holds(checker) and not integers.holds(checker, wrong)
        if compiled:
            assert in_c(integers, checker) and not in_c(integers, checker, wrong)

    every()


def checker_tolerance(checker: Checker, layer: Answered) -> float:
    """By how much one value of an answer may be off: the check's tolerance for s Y, where |s| is 1 (unscaled)."""
    return checker.allowed(layer.sent) / unit(checker)


def unit(checker: Checker) -> float:
    """The power of two by which vectors are scaled."""
    return 0.5 ** math.ceil(math.log2(checker.vectors.shape[1]))


@needs_c
@pytest.mark.parametrize("tiles", [[(32, 1), (8, 2)], [(24, 1), (16, 1)], [(36, 1), (4, 4)], [(40, 1)]])
@pytest.mark.parametrize("stride", [1, 2])
def test_tiles_are_checked_as_one_layer(tiles: tiling.Tiles, stride: int) -> None:
    net = Model(3).net()
    x = net.input(2, 16, 16, 5)
    (lin,) = parted(net.output(net.conv(x, 40, stride=stride)).model.content()).linear
    rng = np.random.default_rng(0)
    layer = Answered(lin, rng.normal(0, 0.2, (1, 40, 45)).astype(np.float32), rng.normal(0, 1, (2, 16, 16, 5)), tiles)
    checker = layer.checker(False, 0)
    for slot in range(40):
        wrong = layer.answer.copy()
        wrong[1, -1, -1, slot] += np.float32(4 * checker_tolerance(checker, layer))
        assert not layer.holds(checker, wrong) and not in_c(layer, checker, wrong)
    assert layer.holds(checker) and in_c(layer, checker)


@needs_c
def test_both_compute_the_same_sums() -> None:
    layer = convolved(slots=37, channels=5)
    checker = layer.checker(False, 0)
    check = checker.native(layer.geometry, layer.sent)
    assert in_c(layer, checker)
    want = layer.geometry.apply(layer.sent.astype(np.float64), checker.filters)
    left = checker.vectors.astype(np.float64) @ layer.answer.reshape(-1, 37).T
    assert np.abs(want - left).max() <= checker.allowed(layer.sent)
    assert check.record["tolerance"][0] == checker.tolerance and check.record["least"][0] == checker.least


# Tampering, a thousand times


def other_answers(layer: Answered, integer: bool) -> dict[str, Array]:
    """An honest answer to another input, and another layer's, both of the right shape."""
    rng = np.random.default_rng(99)
    x = rng.integers(-300, 301, layer.sent.shape) if integer else rng.normal(0, 3, layer.sent.shape)
    other = convolved(1, integer)
    return {"replay": litert(layer.content, [x.astype(np.float32)])[0], "other": other.answer}


def spoilt(layer: Answered, integer: bool) -> dict[str, Callable[[int], Array]]:
    """Wrong answers by name; the seed says where."""
    found = {name: lambda _, a=answer: a for name, answer in other_answers(layer, integer).items()}

    def changed(change: Callable[[Array, Any], None]) -> Callable[[int], Array]:
        def make(seed: int) -> Array:
            answer = layer.answer.reshape(-1, layer.answer.shape[-1]).copy()
            change(answer, np.random.default_rng(seed))
            return answer.reshape(layer.answer.shape)

        return make

    def off(answer: Array, rng: Any) -> None:
        answer[rng.integers(len(answer)), rng.integers(answer.shape[1])] += 1

    def pair(answer: Array, rng: Any) -> None:
        one, two = rng.choice(answer.shape[1], 2, False)
        amount = 1 if integer else np.rint(np.abs(answer).max() / 4)
        answer[rng.integers(len(answer))][[one, two]] += np.float32([amount, -amount])

    def flip(answer: Array, rng: Any) -> None:
        answer.reshape(-1).view(np.uint32)[np.abs(answer).argmax()] ^= np.uint32(1 << 22)

    def rows(answer: Array, rng: Any) -> None:
        answer[[0, -1]] = answer[[-1, 0]]

    def channels(answer: Array, rng: Any) -> None:
        one, two = rng.choice(answer.shape[1], 2, False)
        answer[:, [one, two]] = answer[:, [two, one]]

    def scale(answer: Array, rng: Any) -> None:
        answer *= np.float32(2)

    def zeros(answer: Array, rng: Any) -> None:
        answer[...] = 0

    def one_zero(answer: Array, rng: Any) -> None:
        answer[:, rng.integers(answer.shape[1])] = 0

    changes = {"off": off, "pair": pair, "flip": flip, "rows": rows, "channels": channels, "scale": scale,
               "zeros": zeros, "one channel zero": one_zero}  # fmt: skip
    if integer:
        changes["a fraction"] = lambda answer, rng: answer.reshape(-1).__setitem__(0, answer[0, 0] + 2.0**-6)
        changes["the least"] = lambda answer, rng: answer.__setitem__(np.nonzero(answer == 0), 1e-45)
    return found | {name: changed(change) for name, change in changes.items()}


@pytest.mark.parametrize("integer", [True, False], ids=["exact", "float"])
def test_tampering_is_caught_a_thousand_times_of_a_thousand(integer: bool) -> None:
    layer = convolved(integer=integer)
    kinds = spoilt(layer, integer)
    missed = dict.fromkeys(kinds, 0)
    for seed in range(SEEDS):
        checker = layer.checker(integer, seed)
        assert layer.holds(checker)
        for name, make in kinds.items():
            answer = make(seed)
            if not np.array_equal(answer, layer.answer):
                missed[name] += layer.holds(checker, answer)
                if integer and native.load() is not None:
                    missed[name] += in_c(layer, checker, answer)
    assert not any(missed.values()), missed


def test_a_value_next_to_an_integer_is_refused_even_where_it_is_zero() -> None:
    """What rounds to the right integer is still no honest answer: it could move a result across a rounding step."""
    layer = convolved(integer=True)
    layer.sent[...] = 0
    layer.answer[...] = 0
    checker = layer.checker(True, 0)
    assert layer.holds(checker)
    for value in (1e-45, -1e-30, 2.0**-20, 0.5, 1e30, -1e30, float(1 << 24), math.nan, math.inf):
        wrong = layer.answer.copy()
        wrong[0, 1, 2, 3] = value
        assert not layer.holds(checker, wrong), value
        if native.load() is not None:
            assert not in_c(layer, checker, wrong), value


def test_every_value_off_by_four_tolerances_is_caught() -> None:
    layer = convolved()
    rows = layer.answer.reshape(-1, 24)
    for seed in range(SEEDS):
        checker = layer.checker(False, seed)
        amount = np.float32(4 * checker_tolerance(checker, layer))
        rng = np.random.default_rng(seed)
        wrong = rows.copy()
        wrong[rng.integers(len(rows)), rng.integers(24)] += amount * rng.choice([-1, 1])
        assert not layer.holds(checker, wrong.reshape(layer.answer.shape))


def shapes_of_change(seed: int) -> dict[str, Array]:
    """Changes of a row of 24 values, the largest of which is 1."""
    rng = np.random.default_rng(seed)
    at = rng.permutation(24)
    found = {name: np.zeros(24) for name in ("one value", "a pair that cancels", "a pair alike", "four that cancel")}
    found["one value"][at[0]] = rng.choice([-1, 1])
    found["a pair that cancels"][at[:2]] = 1, -1
    found["a pair alike"][at[:2]] = 1
    found["four that cancel"][at[:4]] = 1, -1, 1, -1
    found |= {"all alike": np.ones(24), "signs": rng.choice([-1.0, 1.0], 24)}
    noise = rng.normal(0, 1, 24)
    return found | {"noise": noise / np.abs(noise).max()}


def test_nothing_passes_above_four_stated_tolerances() -> None:
    """The stated tolerance holds for changes of any shape: 70 times the allowance for rounding in one value."""
    layer = convolved()
    rows = layer.answer.reshape(-1, 24)
    for seed in range(SEEDS):
        checker = layer.checker(False, seed)
        size = 4 * 70 * checker_tolerance(checker, layer)
        for name, shape in shapes_of_change(seed).items():
            wrong = rows.copy()
            wrong[seed % len(rows)] += np.float32(size * shape)
            assert not layer.holds(checker, wrong.reshape(layer.answer.shape)), (seed, name)


@pytest.mark.parametrize("times", [4, 16, 64])
def test_a_cancelling_pair_passes_no_more_often_than_the_bound(times: int) -> None:
    """P <= (2 t / e)^2 for tolerance t and largest change e, since each s e has density at most 1 / e there."""
    layer = convolved()
    rows, passed = layer.answer.reshape(-1, 24), 0
    for seed in range(SEEDS):
        checker = layer.checker(False, seed)
        amount = np.float32(times * checker_tolerance(checker, layer))
        wrong = rows.copy()
        wrong[7, [3, 20]] += np.float32([amount, -amount])
        passed += layer.holds(checker, wrong.reshape(layer.answer.shape))
    bound = (2.2 / times) ** 2
    assert passed <= SEEDS * bound + 4 * math.sqrt(SEEDS * bound) + 1


def kernel(vectors: Array, modulus: int = 0) -> Array:
    """A change of the first three values of a row that these two vectors do not see."""
    if not modulus:
        return np.append(np.linalg.solve(vectors[:, :2], -vectors[:, 2]), 1.0)
    (a, b, c), (d, e, f) = ([int(v) for v in row[:3]] for row in vectors)
    change = [(b * f - c * e) % modulus, (c * d - a * f) % modulus, (a * e - b * d) % modulus]
    return np.array([v - modulus if v > modulus // 2 else v for v in change], np.float64)


def test_whoever_knows_the_vectors_passes_so_they_are_secret() -> None:
    """Why vectors are drawn from the CSPRNG when the enclave starts, and are not constants."""
    layer = convolved()
    known = layer.checker(False, 1)
    wrong = layer.answer.astype(np.float64)
    wrong[0, 2, 2, :3] += 100 * kernel(known.vectors.astype(np.float64))
    assert np.abs(wrong - layer.answer).max() >= 100
    assert layer.holds(known, wrong)
    assert not any(layer.holds(layer.checker(False, seed), wrong) for seed in range(2, 300))
    # Exact: a lattice has small changes that known residues do not see; unknown ones see all of them.
    layer = convolved(integer=True)
    known = layer.checker(True, 1)
    known.vectors[:, :3] = [[1, 1, 0], [0, 1, 1]]  # as constants of old would be
    known.filters = Checker(layer.public, layer.content, True, Fixed(known.vectors)).filters
    wrong = layer.answer.copy()
    wrong[0, 2, 2, :3] += np.float32([50, -50, 50])
    assert layer.holds(known) and layer.holds(known, wrong)
    assert not any(layer.holds(layer.checker(True, seed), wrong) for seed in range(2, 300))


class Fixed(SeededRng):
    """Gives these vectors for the first draw of integers."""

    def __init__(self, vectors: Array) -> None:
        super().__init__(0)
        self._vectors = vectors

    def integers(self, low: int, high: int, shape: tuple[int, ...]) -> Array:
        return self._vectors


def test_signs_alone_miss_a_pair_half_the_time() -> None:
    """Why vectors are continuous: +1 and -1 cancel in every second vector, so in one of four pairs of vectors."""
    layer, passed = convolved(), 0
    wrong = layer.answer.astype(np.float64)
    wrong[0, 0, 0, [1, 2]] += [5, -5]
    for seed in range(400):
        checker = layer.checker(False, seed)
        checker.vectors = np.sign(checker.vectors).astype(np.float32) * np.float32(unit(checker))
        checker.filters = checker._fold(checker.public.weights(layer.content).astype(np.float64)).astype(np.float32)
        assert layer.holds(checker)
        passed += layer.holds(checker, wrong)
    assert 60 < passed < 140


def test_vectors_are_drawn_afresh() -> None:
    from enclave.rng import Rng

    layer = convolved()
    for exact in (False, True):
        one, two = (Checker(layer.public, layer.content, exact, Rng()).vectors for _ in range(2))
        assert not np.array_equal(one, two) and not np.array_equal(one[0], one[1])


# Extreme values


EXTREMES = {
    "zeros": 0.0, "the least": 1e-45, "subnormal": 1e-40, "squares vanish": 1e-30, "faint": 1e-20, "loud": 1e18,
    "squares overflow": 1e20, "very loud": 1e30, "sums would overflow": 2e36,
}  # fmt: skip


@needs_c
@pytest.mark.parametrize("name", EXTREMES)
@pytest.mark.parametrize("constant", [False, True])
def test_extreme_values_raise_no_false_alarm_and_are_still_checked(name: str, constant: bool) -> None:
    base, size = convolved(slots=64), EXTREMES[name]
    x = np.ones_like(base.sent) if constant else base.sent / np.abs(base.sent).max()
    net = Model(0).net()
    (lin,) = parted(net.output(net.conv(net.input(*x.shape), 64)).model.content()).linear
    rows = np.random.default_rng(0).normal(0, 0.2, (1, 64, lin.depth)).astype(np.float32)
    layer = Answered(lin, rows, x * np.float32(size))
    assert np.isfinite(layer.answer).all()
    wrong = layer.answer.copy()
    wrong[0, 0, 0, 0] = wrong[0, 0, 0, 0] * 2 + np.float32(max(size, 1e-30))
    for seed in range(20):
        checker = layer.checker(False, seed)
        assert layer.holds(checker) and in_c(layer, checker)
        assert not layer.holds(checker, wrong) and not in_c(layer, checker, wrong)


@needs_c
def test_an_input_that_overflowed_is_not_taken_for_a_large_tolerance() -> None:
    layer = convolved()
    layer.sent[0, 0, 0, 0] = np.inf
    checker = layer.checker(False, 0)
    for answer in (layer.answer, np.zeros_like(layer.answer)):
        assert not layer.holds(checker, answer) and not in_c(layer, checker, answer)


@needs_c
@pytest.mark.parametrize("depth", [64, 1000, 20_000])
@pytest.mark.parametrize("kind", ["like-signed", "random"])
def test_long_sums_raise_no_false_alarm(depth: int, kind: str) -> None:
    net = Model(0).net()
    (lin,) = parted(net.output(net.dense(net.input(3, depth), 10)).model.content()).linear
    rng = np.random.default_rng(0)
    for seed in range(20):
        rows, x = rng.normal(0, 0.05, (1, 10, depth)), rng.normal(0, 1, (3, depth))
        if kind == "like-signed":
            rows, x = np.abs(rows), np.abs(x)
        layer = Answered(lin, rows.astype(np.float32), x)
        checker = layer.checker(False, seed)
        assert layer.holds(checker) and in_c(layer, checker)


# Spot checks


@pytest.mark.parametrize("share", [0.01, 0.1, 0.5, 1.0])
def test_calls_are_chosen_at_the_rate_that_was_asked_for(share: float) -> None:
    policy, count = Policy(share, SeededRng(0)), 40_000
    chosen = np.concatenate([policy.chosen(40) for _ in range(count // 40)])
    assert abs(chosen.mean() - share) <= 5 * math.sqrt(share * (1 - share) / count)
    if share < 1:  # neighbours are chosen independently
        both = np.mean(chosen[1:] & chosen[:-1])
        assert abs(both - share**2) <= 5 * math.sqrt(share**2 / count)


@pytest.mark.parametrize("loop", ["C", "NumPy"])
def test_spot_checks_catch_at_the_predicted_rate(
    loop: str, lab: Lab, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if loop == "NumPy":
        monkeypatch.setattr(native, "load", lambda: None)
    share, runs, caught = 0.2, 600, 0
    bundle = tmp_path / "m.shadow"
    shadownet.convert(lab.model("planted"), bundle, key=lab.key, integrity=f"spot:{share}")
    with enclave_here(bundle, lab.key, tmp_path / "t.npz", "hostile:zeros") as (executor, _):
        executor.allocate(0, [(1, 8, 8, 4)])
        for _ in range(runs):
            try:
                executor.invoke([sample()])
            except IntegrityError:
                caught += 1
    expected = 1 - (1 - share) ** 5  # five layers, all of them wrong
    assert abs(caught / runs - expected) <= 5 * math.sqrt(expected * (1 - expected) / runs)


# Through processes


@pytest.fixture(scope="module")
def bundles(lab: Lab, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("bundles")
    made = {}
    for name in ("float", "exact"):
        made[name] = folder / f"{name}.shadow"
        shadownet.convert(lab.model("digits_cnn"), made[name], activations=name, key=lab.key)
    return made


MODES = ["flip", "scale", "pair", "zeros", "swap", "rows", "replay", "other", "nan", "inf"]


@pytest.mark.parametrize(
    ("activations", "mode"), [*(("float", m) for m in MODES), *(("exact", m) for m in [*MODES, "step"])]
)
def test_a_hostile_accelerator_ends_the_session(
    activations: str, mode: str, lab: Lab, bundles: dict[str, Path]
) -> None:
    layers = len(read_manifest(bundles[activations])["layers"])
    it = shadownet.Interpreter(bundles[activations], key=lab.key, accelerator=f"hostile:{mode}@{2 * layers + 1}")
    try:
        it.allocate_tensors()
        pids = list(it.session.pids)
        for k in range(2):
            infer(it, digits()[k : k + 1])
        with pytest.raises(IntegrityError):
            infer(it, digits()[2:3])
        with pytest.raises(IntegrityError):  # and for good
            infer(it, digits()[:1])
        assert gone(pids)
    finally:
        it.close()


@pytest.mark.parametrize(("activations", "mode"), [("float", "zeros"), ("float", "replay"), ("exact", "step")])
def test_the_command_ends_with_3_and_no_output(
    activations: str, mode: str, lab: Lab, bundles: dict[str, Path], tmp_path: Path
) -> None:
    np.save(tmp_path / "x.npy", digits()[:4])
    (tmp_path / "tmp").mkdir()
    layers = len(read_manifest(bundles[activations])["layers"])
    done = shadow(
        "run", bundles[activations], "--input", tmp_path / "x.npy", "--output", tmp_path / "y.npy", "--key", lab.key,
        "--accelerator", f"hostile:{mode}@{2 * layers}", env={"TMPDIR": str(tmp_path / "tmp")},
    )  # fmt: skip
    assert done.returncode == 3 and "answer for layer" in done.stderr and not done.stdout
    assert not (tmp_path / "y.npy").exists()
    assert not marked(tmp_path / "tmp")


def test_without_checks_wrong_answers_pass(lab: Lab, tmp_path: Path) -> None:
    """Control: it is the check that ends those sessions."""
    shadownet.convert(lab.model("digits_cnn"), tmp_path / "m.shadow", key=lab.key, integrity="none")
    for mode in ("zeros", "rows", "pair"):
        with shadownet.Interpreter(tmp_path / "m.shadow", key=lab.key, accelerator=f"hostile:{mode}") as it:
            it.allocate_tensors()
            infer(it, digits()[:1])


@pytest.mark.parametrize("scheme", ["none", "shadownet", "slalom"])
def test_extreme_inputs_run_or_are_refused(scheme: str, lab: Lab, tmp_path: Path) -> None:
    shadownet.convert(lab.model("planted"), tmp_path / "m.shadow", key=lab.key, scheme=scheme)
    with shadownet.Interpreter(tmp_path / "m.shadow", key=lab.key) as it:
        it.allocate_tensors()
        pixel = np.zeros((1, 8, 8, 4), np.float32)
        pixel[0, 3, 3, 1] = 1
        for value in (0, 1e-45, 1e-40, 1e-30, 1e10, 1e18, 1e20, 1e30, -1e30):
            for x in (pixel, sample(), np.ones_like(pixel)):
                with contextlib.suppress(InputError):
                    assert np.isfinite(infer(it, x * np.float32(value))).all()
        with contextlib.suppress(Error):  # beyond what floats hold
            infer(it, pixel + np.float32(3e38))


# No false alarm


@pytest.mark.slow
@pytest.mark.parametrize("activations", ["float", "exact"])
def test_ten_thousand_honest_inferences(activations: str, lab: Lab, bundles: dict[str, Path]) -> None:
    images = digits()
    rng = np.random.default_rng(0)
    with shadownet.Interpreter(bundles[activations], key=lab.key) as it:
        it.allocate_tensors()
        for k in range(10_000):
            x = images[k % 500][None] if k % 2 else rng.normal(0, 10.0 ** rng.integers(-3, 4), (1, 8, 8, 1))
            infer(it, x.astype(np.float32))


@pytest.mark.slow
@pytest.mark.parametrize("scheme", ["none", "shadownet:paper", "shadownet:fast", "groupcover"])
def test_honest_inferences_of_a_larger_model(scheme: str, lab: Lab, shared: Path, tmp_path: Path) -> None:
    model = shared / "models" / "resnet20_cifar10_float32.tflite"
    if not model.exists():
        pytest.skip("no such model beside this checkout")
    shadownet.convert(model, tmp_path / "m.shadow", scheme=scheme, key=lab.key)
    rng = np.random.default_rng(0)
    with shadownet.Interpreter(tmp_path / "m.shadow", key=lab.key) as it:
        it.allocate_tensors()
        shape = tuple(it.get_input_details()[0]["shape"])
        for _ in range(300):
            infer(it, rng.normal(0, 1, shape).astype(np.float32))
