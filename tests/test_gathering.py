"""Segments that only arrange what layers made are gathered with the next input: the same results, no segment."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from ai_edge_litert import schema_py_generated as schema
from build import Model, Net, litert

import shadownet
from enclave import native
from enclave.gather import Gather, window
from shadownet.session import Session

Array = np.ndarray[Any, Any]
Build = Callable[[Net, int], int]


def split(net: Net, x: int, count: int = 2) -> list[int]:
    *plane, channels = net.shapes[x]
    parts = [net.tensor((*plane, channels // count)) for _ in range(count)]
    net.writer.op("SPLIT", [net.constant(np.int32(3)), x], parts, schema.SplitOptionsT(count))
    return parts


def split_v(net: Net, x: int, *counts: int) -> list[int]:
    parts = [net.tensor((*net.shapes[x][:3], count)) for count in counts]
    inputs = [x, net.constant(np.array(counts, np.int32)), net.constant(np.int32(3))]
    net.writer.op("SPLIT_V", inputs, parts, schema.SplitVOptionsT(len(counts)))
    return parts


def channels(net: Net, x: int, first: int, count: int, strided: bool = False) -> int:
    shape = net.shapes[x]
    y = net.tensor((*shape[:3], count))
    begin = [0, 0, 0, first]
    if strided:
        ends = [net.constant(np.array(v, np.int32)) for v in (begin, [*shape[:3], first + count], [1] * 4)]
        net.writer.op("STRIDED_SLICE", [x, *ends], [y], schema.StridedSliceOptionsT())
    else:
        ends = [net.constant(np.array(v, np.int32)) for v in (begin, [*shape[:3], count])]
        net.writer.op("SLICE", [x, *ends], [y], schema.SliceOptionsT())
    return y


def pool(net: Net, x: int, kind: str, size: int, stride: int, same: bool = False) -> int:
    batch, height, width, n = net.shapes[x]
    plane = [-(-d // stride) if same else (d - size) // stride + 1 for d in (height, width)]
    y = net.tensor((batch, *plane, n))
    net.writer.op(kind, [x], [y], schema.Pool2DOptionsT(0 if same else 1, stride, stride, size, size))
    return y


def two(net: Net, x: int) -> tuple[int, int]:
    return net.conv(x, 16, activation="RELU"), net.conv(x, 8)


CASES: dict[str, Build] = {
    "concatenation": lambda net, x: net.conv(net.concat(*two(net, x)), 5),
    "concatenation of one thing": lambda net, x: net.conv(net.concat(*[two(net, x)[0]] * 2), 5),
    "split": lambda net, x: net.conv(split(net, net.conv(x, 12))[1], 5),
    "split, both halves read": lambda net, x: net.binary(
        "ADD", *[net.conv(part, 5) for part in split(net, net.conv(x, 12))]
    ),
    "split in parts of their own": lambda net, x: net.conv(split_v(net, net.conv(x, 12), 3, 4, 5)[1], 5),
    "slice": lambda net, x: net.conv(channels(net, net.conv(x, 12), 5, 6), 5),
    "strided slice": lambda net, x: net.conv(channels(net, net.conv(x, 12), 5, 6, strided=True), 5),
    "max pooling": lambda net, x: net.conv(pool(net, net.conv(x, 16), "MAX_POOL_2D", 2, 2), 5),
    "overlapping pooling": lambda net, x: net.conv(pool(net, net.conv(x, 16), "MAX_POOL_2D", 3, 2), 5),
    "pooling that needs no padding": lambda net, x: net.conv(pool(net, net.conv(x, 16), "MAX_POOL_2D", 2, 2, True), 5),
    "average pooling": lambda net, x: net.conv(pool(net, net.conv(x, 16), "AVERAGE_POOL_2D", 2, 2), 5),
    "mean": lambda net, x: net.dense(net.mean(net.conv(x, 20)), 5),
    "pooled, joined, flattened": lambda net, x: net.dense(
        net.reshape(pool(net, net.concat(*two(net, x)), "MAX_POOL_2D", 2, 2), 1, -1), 5, depth=6 * 6 * 24
    ),
    "into a depthwise layer": lambda net, x: net.depthwise(net.concat(*two(net, x))),
    "part of a part": lambda net, x: net.conv(channels(net, split(net, net.concat(*two(net, x)))[1], 1, 6), 5),
}  # fmt: skip

# What gathering must leave alone.
OTHERS: dict[str, Build] = {
    "pooling that pads": lambda net, x: net.conv(pool(net, net.conv(x, 16), "MAX_POOL_2D", 3, 2, True), 5),
    "read by another op, too": lambda net, x: net.binary(
        "ADD", net.conv(pooled := net.max_pool(net.conv(x, 16)), 16), net.unary("ABS", pooled)
    ),
    "reshaped, then pooled": lambda net, x: net.conv(
        pool(net, net.reshape(net.conv(x, 16), 1, 6, 24, 16), "MAX_POOL_2D", 2, 2), 5
    ),
    "something else": lambda net, x: net.conv(net.unary("ABS", net.concat(*two(net, x))), 5),
}  # fmt: skip


def converted(build: Build, work: Path, key: Path, **options: Any) -> tuple[bytes, Path]:
    net = Model(3).net()
    content = net.output(build(net, net.input(1, 12, 12, 3))).model.content()
    (work / "m.tflite").write_bytes(content)
    shadownet.convert(work / "m.tflite", work / "m.shadow", key=key, **options)
    return content, work / "m.shadow"


def segments(bundle: Path, key: Path, x: Array) -> tuple[Array, int]:
    """The output, and how many trusted segments ran for it."""
    session = Session(bundle, key, trace=True)
    try:
        session.allocate(0, [x.shape])
        (y,) = session.invoke([x])
        return y, sum(event["name"] == "trusted segment" for event in session.events())
    finally:
        session.close()


def agree(got: Array, want: Array) -> None:
    np.testing.assert_allclose(got, want, rtol=0, atol=1e-4 * np.abs(want).max())  # masks of eight times the size


@pytest.mark.parametrize("integrity", ["none", "full"])
@pytest.mark.parametrize("name", CASES)
def test_what_only_arranges_needs_no_segment(name: str, integrity: str, tmp_path: Path, device_key: Path) -> None:
    content, bundle = converted(CASES[name], tmp_path, device_key, integrity=integrity)
    x = np.random.default_rng(5).normal(0, 1, (1, 12, 12, 3)).astype(np.float32)
    got, ran = segments(bundle, device_key, x)
    agree(got, litert(content, [x])[0])
    assert ran == 0 or native.load() is None  # only the C loop gathers


@pytest.mark.parametrize("name", OTHERS)
def test_everything_else_stays_a_segment(name: str, tmp_path: Path, device_key: Path) -> None:
    content, bundle = converted(OTHERS[name], tmp_path, device_key)
    x = np.random.default_rng(5).normal(0, 1, (1, 12, 12, 3)).astype(np.float32)
    got, ran = segments(bundle, device_key, x)
    agree(got, litert(content, [x])[0])
    assert ran > 0


@pytest.mark.parametrize("name", ["max pooling", "mean", "pooling that needs no padding", "into a depthwise layer"])
def test_other_shapes_and_two_lanes_give_the_same(name: str, tmp_path: Path, device_key: Path) -> None:
    content, bundle = converted(CASES[name], tmp_path, device_key)
    rng = np.random.default_rng(6)
    with shadownet.Interpreter(bundle, key=device_key) as it:
        index = it.get_input_details()[0]["index"]
        for size in (12, 16, 9, 12):  # 9 rows need padding where 12 do not
            it.resize_tensor_input(index, (2, size, size, 3))
            requests = [[rng.normal(0, 1, (2, size, size, 3)).astype(np.float32)] for _ in range(3)]
            for (x,), (got,) in zip(requests, it.invoke_many(requests), strict=True):
                agree(got, litert(content, [x])[0])
            it.allocate_tensors()
            it.set_tensor(index, requests[0][0])
            it.invoke()
            agree(it.get_tensor(it.get_output_details()[0]["index"]), litert(content, requests[0])[0])


def test_a_gather_that_does_not_fit_is_none() -> None:
    gather = Gather([(0, 0, 4), (1, 2, 4)], 0, (1, 1), (1, 1))
    known = {0: (1, 4, 4, 4), 1: (1, 4, 4, 6)}
    assert window(gather, known, (1, 4, 4, 8)) is not None
    assert window(gather, known, (1, 128)) is not None  # the same values in order
    assert window(gather, known, (1, 4, 4, 7)) is None
    assert window(gather, known | {1: (1, 4, 4, 5)}, (1, 4, 4, 8)) is None  # channels that are not there
    assert window(gather, known | {1: (1, 4, 5, 6)}, (1, 4, 4, 8)) is None
    assert window(gather, known | {1: (4, 4, 6)}, (1, 4, 4, 8)) is None
    pooled = Gather([(0, 0, 4)], 1, (3, 3), (2, 2))
    assert window(pooled, known, (1, 1, 1, 4)) is not None
    assert window(pooled, known, (1, 2, 2, 4)) is None  # padded
    assert window(pooled, {0: (1, 2, 2, 4)}, (1, 1, 1, 4)) is None  # a window larger than the image
    assert window(Gather([(0, 0, 4)], 2, (0, 0), (1, 1)), known, (1, 4)) is not None


@pytest.mark.parametrize(
    "change",
    [{"how": "sum"}, {"pieces": []}, {"pieces": [[0, -1, 3]]}, {"pieces": [[0, 0, 0]]}, {"pieces": [[0, 0]]},
     {"size": [2]}, {"size": [-1, 2]}, {"stride": [0, 1]}, {"stride": None}],
)  # fmt: skip
def test_what_is_no_gather_is_refused(change: dict[str, Any]) -> None:
    good = {"pieces": [[0, 0, 3]], "how": "max", "size": [2, 2], "stride": [2, 2]}
    assert Gather.parse(good).way == 1
    with pytest.raises((KeyError, TypeError, ValueError)):
        Gather.parse(good | change)
