"""Every form of linear layer that the converter writes, in one public model. Not a test: material for tests."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from build import Model, Net, parted

from shadownet import tiling
from shadownet.graph import ModelWriter

Build = Callable[[Net, int], int]


@dataclass(frozen=True)
class Form:
    """One form: an input shape, the op on it, and ``slots`` filters a group where the original had fewer.

    ``tiles``: the layer goes out in parts. ``sizes``: its height and width may change, as its batch may."""

    shape: tuple[int, ...]
    op: Build
    slots: int
    tiles: list[tuple[int, int]] | None = None
    batches: bool = True


def _padded(net: Net, x: int) -> int:
    return net.pad(x, (0, 0), (2, 1), (0, 3), (0, 0))


FORMS: dict[str, Form] = {
    "conv 3x3": Form((1, 8, 8, 4), lambda n, x: n.conv(x, 8), 11),
    "conv 1x1": Form((1, 7, 5, 16), lambda n, x: n.conv(x, 24, kernel=1), 29),
    "conv wide": Form((1, 16, 16, 64), lambda n, x: n.conv(x, 64), 77),
    "conv stride 2 valid": Form((1, 9, 8, 3), lambda n, x: n.conv(x, 5, stride=2, padding="VALID"), 6),
    "conv stride 2 same": Form((1, 9, 8, 3), lambda n, x: n.conv(x, 5, stride=2), 6),
    "conv oblong": Form((1, 9, 12, 3), lambda n, x: n.conv(x, 4, kernel=(3, 5), stride=(1, 2)), 5),
    "conv dilated": Form((1, 12, 12, 3), lambda n, x: n.conv(x, 4, dilation=(2, 3)), 5),
    "conv dilated valid": Form((1, 12, 12, 3), lambda n, x: n.conv(x, 4, dilation=2, padding="VALID"), 5),
    "conv in groups": Form((1, 8, 8, 6), lambda n, x: n.conv(x, 8, groups=2), 5),
    "conv of a batch": Form((3, 6, 6, 4), lambda n, x: n.conv(x, 8), 10),
    "conv behind a pad": Form((1, 7, 8, 3), lambda n, x: n.conv(_padded(n, x), 4, padding="VALID"), 5),
    "conv in parts": Form((1, 8, 8, 4), lambda n, x: n.conv(x, 34), 39, [(32, 1), (7, 2)]),
    "conv in parts, stride 2": Form((2, 9, 8, 4), lambda n, x: n.conv(x, 20, stride=2), 20, [(16, 1), (4, 4)]),
    "depthwise": Form((1, 8, 8, 6), lambda n, x: n.depthwise(x), 1),
    "depthwise stride 2": Form((2, 9, 9, 5), lambda n, x: n.depthwise(x, stride=2), 1),
    "depthwise multiplied": Form((1, 8, 8, 4), lambda n, x: n.depthwise(x, multiplier=2, padding="VALID"), 3),
    "depthwise dilated": Form((1, 12, 12, 4), lambda n, x: n.depthwise(x, dilation=2), 1),
    "depthwise behind a pad": Form((1, 7, 8, 4), lambda n, x: n.depthwise(_padded(n, x), padding="VALID"), 1),
    "dense": Form((1, 24), lambda n, x: n.dense(x, 10), 12),
    "dense of a batch": Form((5, 24), lambda n, x: n.dense(x, 10), 12),
    "dense with all dimensions": Form((1, 3, 4, 8), lambda n, x: n.dense(x, 6, keep=True), 8),
    "dense of an image": Form((2, 3, 4, 8), lambda n, x: n.dense(x, 6, depth=96), 8),
    "product of matrices": Form((1, 5, 16), lambda n, x: n.matmul(x, 7), 9),
    "transpose conv": Form((1, 5, 6, 4), lambda n, x: n.transpose_conv(x, 3), 4, batches=False),
    "transpose conv valid": Form((1, 5, 6, 4), lambda n, x: n.transpose_conv(x, 3, padding="VALID"), 4, batches=False),
    "transpose conv 2x2": Form((2, 4, 4, 4), lambda n, x: n.transpose_conv(x, 5, kernel=2), 6, batches=False),
    "transpose conv stride 1": Form((1, 5, 6, 4), lambda n, x: n.transpose_conv(x, 3, stride=1), 4, batches=False),
}


def signature(name: str) -> str:
    return name.replace(" ", "_").replace(",", "")


def public_model(forms: dict[str, Form], whole: bool = False) -> bytes:
    """A model as the converter writes its public half, with random weights: integers if ``whole``."""
    rng = np.random.default_rng(5)
    writer = ModelWriter("layers of the tests")
    for name, form in forms.items():
        net = Model(seed=6).net()
        x = net.input(*form.shape)
        net.output(form.op(net, x))
        (linear,) = parted(net.model.content()).linear
        rows = rng.normal(size=(linear.groups, form.slots, linear.depth))
        rows = np.rint(4 * rows) if whole else rows / np.sqrt(linear.depth)
        graph = writer.subgraph(signature(name))
        tiles = form.tiles or [(linear.groups * form.slots, 1)]
        ends = tiling.emit(linear, graph, linear.weights_from(rows.astype(np.float32)), tiles)
        writer.signature(signature(name), graph, *({key: end} for key, end in zip("xy", ends, strict=True)))
    return writer.finish()
