"""What passes between linear layers and trusted segments: stored in place, pooled before it is joined."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from build import Model, litert

import shadownet
from enclave import container, keys, sealing
from shadownet.graph import parse
from shadownet.wire.errors import InputError

Array = np.ndarray[Any, Any]


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


def _trusted(bundle: Path, key: Path) -> bytes:
    _, plaintext = sealing.unseal(bundle, keys.load(key))
    return bytes(container.unpack(plaintext)[1]["trusted"])
