"""What lies between linear layers: results stored in a segment's input, pooled before they are joined, activations that
are part of the layer."""

from __future__ import annotations

import ctypes
import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from boundary_helpers import enclave_here
from build import Model, litert

import shadownet
from enclave import container, formats, keys, native, sealing
from enclave.restore import Restore
from shadownet.graph import parse
from shadownet.wire.errors import InputError

Array = np.ndarray[Any, Any]
NOTHING = np.float32(1e9)  # what was in memory before


def network(pooled: bool = True, read_twice: bool = False) -> bytes:
    """Two branches that meet in a concatenation, of which one is read by a layer as well."""
    net = Model(1).net()
    x = net.input(1, 12, 12, 3)
    a = net.conv(x, 8, activation="RELU")
    b = net.conv(a, 6)
    joined = net.concat(a, b)
    y = net.conv(net.max_pool(joined) if pooled else joined, 5)
    return net.output(y, *([joined] if read_twice else [])).model.content()


def converted(content: bytes, work: Path, key: Path, **options: Any) -> Path:
    (work / "m.tflite").write_bytes(content)
    shadownet.convert(work / "m.tflite", work / "m.shadow", key=key, **options)
    return work / "m.shadow"


def agree(got: Array, want: Array) -> None:
    np.testing.assert_allclose(got, want, rtol=0, atol=1e-4 * np.abs(want).max())  # masks of eight times the size


def random(seed: int, *shape: int) -> Array:
    return np.random.default_rng(seed).normal(0, 1, shape).astype(np.float32)


@pytest.mark.parametrize("pooled", [True, False])
def test_results_stored_in_a_segments_input_follow_new_shapes(pooled: bool, tmp_path: Path, device_key: Path) -> None:
    content = network(pooled)
    with shadownet.Interpreter(converted(content, tmp_path, device_key), key=device_key) as it:
        index = it.get_input_details()[0]["index"]
        for seed, size in enumerate([12, 16, 12, 8]):
            it.resize_tensor_input(index, (1, size, size, 3))
            it.allocate_tensors()
            for repeat in range(2):
                x = random(10 * seed + repeat, 1, size, size, 3)
                it.set_tensor(index, x)
                it.invoke()
                agree(it.get_tensor(it.get_output_details()[0]["index"]), litert(content, [x])[0])


def test_lanes_do_not_share_a_segments_input(tmp_path: Path, device_key: Path) -> None:
    content = network()
    requests = [[random(seed, 1, 12, 12, 3)] for seed in range(4)]
    with shadownet.Interpreter(converted(content, tmp_path, device_key), key=device_key) as it:
        for (x,), (got,) in zip(requests, it.invoke_many(requests), strict=True):
            agree(got, litert(content, [x])[0])


def test_after_a_shape_that_fails_nothing_runs_until_one_succeeds(tmp_path: Path, device_key: Path) -> None:
    content, x = network(), random(0, 1, 12, 12, 3)
    with shadownet.Interpreter(converted(content, tmp_path, device_key), key=device_key) as it:
        index = it.get_input_details()[0]["index"]
        it.allocate_tensors()
        it.resize_tensor_input(index, (1, 12, 12, 4))
        with pytest.raises(InputError):
            it.allocate_tensors()
        it.resize_tensor_input(index, x.shape)
        it.allocate_tensors()
        it.set_tensor(index, x)
        it.invoke()
        agree(it.get_tensor(it.get_output_details()[0]["index"]), litert(content, [x])[0])


@pytest.mark.parametrize("read_twice", [False, True])
def test_parts_are_pooled_before_they_are_joined(read_twice: bool, tmp_path: Path, device_key: Path) -> None:
    content, x = network(read_twice=read_twice), random(0, 1, 12, 12, 3)
    bundle = converted(content, tmp_path, device_key)
    kinds = [op.kind for graph in parse(_trusted(bundle, device_key)).subgraphs for op in graph.ops]
    moved = kinds.index("CONCATENATION") > kinds.index("MAX_POOL_2D")
    assert moved != read_twice and kinds.count("MAX_POOL_2D") == (1 if read_twice else 2)
    with shadownet.Interpreter(bundle, key=device_key) as it:
        it.allocate_tensors()
        it.set_tensor(it.get_input_details()[0]["index"], x)
        it.invoke()
        outputs = [it.get_tensor(d["index"]) for d in it.get_output_details()]
    for got, want in zip(outputs, litert(content, [x]), strict=True):
        agree(got, want)


@pytest.mark.parametrize("kind", ["ELU", "HARD_SWISH"])
@pytest.mark.parametrize("loop", ["C", "NumPy"])
def test_activations_with_a_curve_are_part_of_their_layer(
    kind: str, loop: str, tmp_path: Path, device_key: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Blocks of 16 positions and some over; values from nearly nothing to far beyond where the curve ends."""
    if loop == "NumPy":
        monkeypatch.setattr(native, "load", lambda: None)
    elif native.load() is None:
        pytest.skip("the enclave's C loop was not built here")
    net = Model(5).net()
    y = net.unary(kind, net.conv(net.input(1, 9, 7, 3), 37))
    content = net.output(
        net.conv(net.unary(kind, net.binary("MUL", y, net.constant(np.float32([0.5])))), 4)
    ).model.content()
    bundle = converted(content, tmp_path, device_key)
    assert not _trusted(bundle, device_key)  # no segment is left
    with enclave_here(bundle, device_key, tmp_path / "t.npz") as (executor, _):
        executor.allocate(0, [(1, 9, 7, 3)])
        for scale in (1, 300):
            x = np.float32(scale) * random(1, 1, 9, 7, 3)
            agree(executor.invoke([x])[0], litert(content, [x])[0])


@pytest.mark.skipif(native.load() is None, reason="the enclave's C loop was not built here")
def test_the_c_loops_curves_are_those_of_float64() -> None:
    """To a few units in the last place, blocks of 16 positions and some over."""
    x = np.concatenate([-np.geomspace(1e-30, 200, 5000), np.geomspace(1e-30, 200, 1000), [0.0]]).astype(np.float32)
    wide = x.astype(np.float64)
    step = 2.0**-23 * np.abs(wide)
    elu, swish = np.where(wide < 0, np.expm1(wide), wide), wide * np.clip(wide + 3, 0, 6) / 6
    assert (np.abs(activated("elu", x) - elu) <= 2 * 2.0**-23 * np.abs(elu)).all()
    assert (np.abs(activated("hard_swish", x) - swish) <= 2 * step).all()  # x + 3 is rounded at the size of 3


def activated(kind: str, x: Array) -> Array:
    """What the C loop makes of an answer ``x`` that is there before it asks, of a layer with this activation."""
    answer, result, copy = x.reshape(-1, 1), native.empty((x.size, 1)), native.empty(x.size)
    natural, record = Restore.natural(1), np.zeros(512, np.uint64)
    step = np.zeros(1, native.STEP)
    for name, value in {"kind": native.FINISH, "rows": x.size, "slots": 1, "n": 1, "terms": 1}.items():
        step[name] = value
    pointers = {"answer": answer, "copy": copy, "slot": natural.slot, "coefficient": natural.coefficient}
    for name, array in (pointers | {"result": result}).items():
        step[name] = native.address(array)
    for name in ("send_push", "pop", "push"):
        step[name] = -1
    step["first"] = (formats.ACTIVATIONS.index(kind), 0, 0)
    step["second"] = (0, -np.inf, np.inf)
    record[8] = 1  # the reply to the first request
    wait, ring = os.pipe()
    try:
        link = native.Link(native.address(record), 0, ring, wait, wait, -1, 10**9, 10**9)
        lane = native.Lane(steps=native.address(step), count=1)
        assert native.load()(link, lane, 1, native.Scratch(16), ctypes.c_int64(0)) == 0
    finally:
        os.close(wait)
        os.close(ring)
    return result[:, 0]


@pytest.mark.parametrize("sizes", [(60_000, 3), (3, 60_000)])
def test_rows_of_any_width_have_room(sizes: tuple[int, int], tmp_path: Path, device_key: Path) -> None:
    """What is not checked is put together in scratch memory, which must hold what goes in as well as what comes out."""
    net = Model(2).net()
    content = net.output(net.dense(net.input(1, sizes[0]), sizes[1])).model.content()
    bundle = converted(content, tmp_path, device_key, integrity="none")
    x = random(0, 1, sizes[0])
    with enclave_here(bundle, device_key, tmp_path / "t.npz") as (executor, _):
        executor.allocate(0, [(1, sizes[0])])
        agree(executor.invoke([x])[0], litert(content, [x])[0])
        if native.load() is not None:
            assert executor._link is not None and executor._link._scratch.width >= max(sizes)


class Watched:
    """Memory that another thread looks at all the while; ``seen`` tells whether anything but ``allowed`` was there."""

    def __init__(self, size: int) -> None:
        self.memory, self.allowed, self.seen = native.empty(size), np.zeros(size, np.float32), False
        self._done = False

    def look(self) -> None:
        while not self._done:
            now = self.memory.copy()
            self.seen |= bool(((now != NOTHING) & (now != self.allowed)).any())

    def watch(self, work: Callable[[], None]) -> None:
        self.memory[...], self._done = NOTHING, False
        thread = threading.Thread(target=self.look)
        thread.start()
        work()
        self._done = True
        thread.join()


@pytest.mark.skipif(native.load() is None, reason="the enclave's C loop was not built here")
@pytest.mark.parametrize("kept", [False, True])
@pytest.mark.parametrize("way", ["plain", "ordered", "quantised"])
def test_nothing_is_in_shared_memory_before_it_is_masked(way: str, kept: bool) -> None:
    """One row of two million values, which takes long enough to be looked at while it is written."""
    size = 1 << 21
    rng = np.random.default_rng(0)
    source, order = rng.normal(0, 1, size).astype(np.float32), rng.permutation(size).astype(np.int32)
    push = rng.integers(1, 257, size).astype(np.float32)  # without zeros
    watched, keep, scales = Watched(size), native.empty(size), np.zeros(1, native.SCALE)
    step = np.zeros(1, native.STEP)
    for name in ("send_push", "pop", "push"):
        step[name] = -1
    fields = {"kind": native.SEND, "send_rows": 1, "send_n": size, "send_push": 0}
    pointers = {"source": source, "target": watched.memory}
    if kept:
        pointers["send_keep"] = keep
    if way == "ordered":
        pointers["order"] = order
    if way == "quantised":
        pointers["send_scales"], fields["send_scope"] = scales, 1
    for name, value in (fields | {name: native.address(array) for name, array in pointers.items()}).items():
        step[name] = value
    record, scratch = np.zeros(512, np.uint64), native.Scratch(size)
    link = native.Link(native.address(record), 0, -1, -1, -1, -1, 10**9, 10**9)

    def send() -> None:
        lane = native.Lane(steps=native.address(step), count=1, masks=native.address(push))
        assert native.load()(link, lane, 1, scratch, ctypes.c_int64(0)) == 0

    send()
    watched.allowed[...] = watched.memory
    x = source[order] if way == "ordered" else source
    if way == "quantised":
        hybrid = formats.Hybrid(None, np.ones(1, np.float32), 1, formats.Activation("clamp", -np.inf, np.inf))
        x, _ = formats.encode(hybrid, source[None])
    np.testing.assert_array_equal(watched.allowed, (x + push).reshape(-1))
    for _ in range(10):
        watched.watch(send)
    assert not watched.seen


def _trusted(bundle: Path, key: Path) -> bytes:
    _, plaintext = sealing.unseal(bundle, keys.load(key))
    return bytes(container.unpack(plaintext)[1]["trusted"])
