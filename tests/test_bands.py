"""Layers in bands of rows give what whole layers give, and the enclave takes them."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from ai_edge_litert import schema_py_generated as schema
from ai_edge_litert.interpreter import Interpreter
from boundary_helpers import Lab, the_lab  # noqa: F401, the fixture lab
from build import Model

import shadownet
from accelerator import bands, public
from shadownet.graph import ModelWriter

Array = np.ndarray[Any, Any]

SAME, VALID = schema.Padding.SAME, schema.Padding.VALID


def layer(
    size: tuple[int, int], channels: int, filters: list[int], kernel: int, stride: int, dilation: int, padding: int,
    pads: tuple[tuple[int, int], tuple[int, int]] | None = None, depthwise: bool = False,
    join: int = 3,
) -> bytes:  # fmt: skip
    """A layer as in a public model: an optional PAD, convolutions that read the same, joined if there are several."""
    rng = np.random.default_rng(0)
    writer = ModelWriter("one layer")
    graph = writer.subgraph("layer")
    x = source = graph.tensor("x", (1, *size, channels))
    inner = np.array(size)
    if pads:
        amounts = graph.tensor("paddings", (4, 2), np.array([(0, 0), *pads, (0, 0)], np.int32), "int32")
        inner = inner + np.sum(pads, axis=1)
        source = graph.tensor("padded", (1, *(int(d) for d in inner), channels))
        graph.op("PAD", [x, amounts], [source], schema.PadOptionsT())
    reach = (kernel - 1) * dilation + 1
    height, width = (int(d) for d in (-(-inner // stride) if padding == SAME else (inner - reach) // stride + 1))
    parts = []
    for n in filters:
        shape = (1, kernel, kernel, n) if depthwise else (n, kernel, kernel, channels)
        w = graph.tensor("w", shape, rng.normal(0, 0.1, shape).astype(np.float32))
        b = graph.tensor("b", (n,), np.zeros(n, np.float32))
        parts.append(graph.tensor("y", (1, height, width, n)))
        if depthwise:
            options: Any = schema.DepthwiseConv2DOptionsT(padding, stride, stride, 1, 0, dilation, dilation)
        else:
            options = schema.Conv2DOptionsT(padding, stride, stride, 0, dilation, dilation)
        graph.op("DEPTHWISE_CONV_2D" if depthwise else "CONV_2D", [source, w, b], [parts[-1]], options, version=2)
    y = parts[0]
    if len(parts) > 1:
        several = (1, height, width, sum(filters)) if join == 3 else (1, height * len(parts), width, filters[0])
        y = graph.tensor("joined", several)
        graph.op("CONCATENATION", parts, [y], schema.ConcatenationOptionsT(axis=join))
    graph.interface([x], [y])
    writer.signature("layer", graph, {"x": x}, {"y": y})
    return writer.finish()


def split(content: bytes, directory: Path) -> tuple[bytes, dict[str, list[bands.Band]]]:
    path = directory / "public.tflite"
    path.write_bytes(content)
    model = public.read(str(path))
    with contextlib.suppress(*public.DAMAGE):
        found = bands.split(model) if model else {}
        return public.write(model) if found else b"", found
    return b"", {}


def banded(content: bytes, x: Array, directory: Path) -> tuple[Array, Array, list[bands.Band]]:
    """What the whole layer gives, and what its bands give together."""
    content, found = split(content, directory)
    interpreter = Interpreter(model_content=content, num_threads=1)
    interpreter.allocate_tensors()

    def run(signature: str, value: Array) -> Array:
        return next(iter(interpreter.get_signature_runner(signature)(x=np.ascontiguousarray(value)).values()))

    parts = found.get("layer", [])
    results = [run(band.signature, x[:, band.begin : band.begin + band.source[1]]) for band in parts]
    return run("layer", x), np.concatenate(results, axis=1) if results else np.empty(0), parts


@pytest.mark.parametrize("depthwise", [False, True])
@pytest.mark.parametrize("pads", [None, ((1, 1), (1, 1)), ((0, 3), (2, 0))])
@pytest.mark.parametrize(
    ("kernel", "stride", "dilation", "padding"),
    [(1, 1, 1, VALID), (1, 2, 1, SAME), (3, 1, 1, SAME), (3, 2, 1, SAME), (3, 2, 1, VALID), (5, 3, 1, SAME),
     (3, 1, 2, SAME), (3, 1, 3, VALID), (2, 2, 1, SAME)],
)  # fmt: skip
def test_bands_give_what_the_layer_gives(
    kernel: int, stride: int, dilation: int, padding: int, pads: Any, depthwise: bool, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setattr(bands, "LEAST", 1 << 9)
    rng = np.random.default_rng(kernel * 7 + stride)
    for size in ((31, 32), (48, 16)):
        channels = 2 if kernel == 5 and not depthwise else 16  # or there would be more weights than answers
        filters = [16] if depthwise else [20, 12]
        content = layer(size, channels, filters, kernel, stride, dilation, padding, pads, depthwise)
        x = rng.normal(0, 1, (1, *size, channels)).astype(np.float32)
        whole, joined, parts = banded(content, x, tmp_path)
        assert parts and parts[0].first == 0 and parts[-1].last == whole.shape[1]
        assert [band.first for band in parts[1:]] == [band.last for band in parts[:-1]]
        assert joined.shape == whole.shape and np.abs(joined - whole).max() < 1e-5


def test_layers_that_are_not_worth_it_or_not_understood_stay_whole(tmp_path: Path) -> None:
    small = layer((16, 16), 16, [16], 3, 1, 1, SAME)
    heavy = layer((16, 16), 512, [1024], 3, 1, 1, SAME)  # more weights than answers
    uneven = layer((67, 67), 5, [33], 3, 1, 1, VALID)  # rows that begin where LiteRT takes no buffer
    padding = layer((8, 64), 64, [64], 1, 1, 1, VALID, ((0, 40), (0, 0)))  # rows made of nothing else
    joined = layer((64, 64), 16, [16, 16], 3, 1, 1, SAME, join=1)  # rows that move
    assert split(layer((64, 64), 16, [16, 16], 3, 1, 1, SAME), tmp_path)[1]
    for content in (small, heavy, uneven, padding, joined, b"", small[:300], bytes(64), small[: len(small) // 2]):
        assert split(content, tmp_path) == (b"", {})


def test_layers_with_many_weights_have_two_bands_that_share_a_signature(tmp_path: Path) -> None:
    content = layer((16, 16), 512, [256], 1, 1, 1, VALID)
    x = np.random.default_rng(1).normal(0, 1, (1, 16, 16, 512)).astype(np.float32)
    whole, joined, parts = banded(content, x, tmp_path)
    assert len(parts) == 2 and parts[0].signature == parts[1].signature
    assert np.abs(joined - whole).max() < 1e-4
    assert split(layer((16, 16), 512, [256], 3, 1, 1, SAME), tmp_path) == (b"", {})  # they would pad differently
    assert split(layer((16, 16), 2048, [256], 1, 1, 1, VALID), tmp_path) == (b"", {})  # too many


@pytest.mark.parametrize("integrity", ["none", "full"])
@pytest.mark.parametrize("scheme", ["shadownet:fast", "shadownet:paper"])
def test_a_network_in_bands_computes_the_same(integrity: str, scheme: str, lab: Lab, tmp_path: Path) -> None:
    net = Model().net()
    x = net.input(1, 96, 64, 16)
    y = net.conv(net.depthwise(net.conv(x, 32, kernel=3), kernel=3, stride=2), 64, kernel=1)
    net.output(y)
    model = tmp_path / "m.tflite"
    model.write_bytes(net.model.content())
    shadownet.convert(model, tmp_path / "m.shadow", scheme=scheme, integrity=integrity, key=lab.key)
    assert bands.split(public.read(str(tmp_path / "m.shadow" / "accelerator.tflite")))
