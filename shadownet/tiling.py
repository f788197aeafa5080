"""Widths that XNNPACK likes: a convolution's M filters as one wide part and a narrow rest.

XNNPACK computes filters 32 at a time, and 16 only where a layer has no more: 39 filters cost as much as 64. So a layer
goes out as a part whose width is a multiple of 32, and a rest of at most 16 filters, whose free columns compute its
neighbours: with p positions side by side, a kernel s (p - 1) columns wider at stride s p gives p outputs of each filter
at once, in the same memory order. Which filters are in the rest is as secret as their order. Measured on the 3x3 layers
of ResNet-44 with 32 and 64 filters: 1.95 and 1.48 times the unprotected layer become 1.5 and 1.38. Where a filter has
few weights, joining the parts costs more than it saves.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from ai_edge_litert import schema_py_generated as schema

from shadownet.graph import SubgraphWriter
from shadownet.linear import LinearOp

Array = np.ndarray[Any, Any]
Tiles = list[tuple[int, int]]  # (filters, positions side by side), in the order of the filters

_COPY = 40  # joining the parts costs about as much as this many multiply-adds for each output element
_OPS = 100_000  # and this many for the ops themselves


def choose(lin: LinearOp, filters: int) -> Tiles:
    """The cheapest parts for ``filters`` filters; one part where splitting does not pay or is not possible."""
    whole = [(filters, 1)]
    options = lin.op.options
    if lin.kind != "CONV_2D" or lin.groups != 1 or options.dilationWFactor != 1:
        return whole
    wide = filters // 32 * 32 or 16
    rest = filters - wide
    if not 0 < rest <= 16:
        return whole
    positions = max(p for p in (1, 2, 4, 8) if p * rest <= 16 and lin.output_shape[2] % p == 0)
    kernel = lin.weight_shape[2]
    widened = 16 * (kernel + options.strideW * (positions - 1)) / (kernel * positions)
    saved = lin.positions * lin.depth * (_columns(filters) - _columns(wide) - widened)
    cost = lin.positions * filters * _COPY + _OPS
    return [(wide, 1), (rest, positions)] if saved > cost else whole


def _columns(filters: int) -> int:
    return 16 if filters <= 16 else -(-filters // 32) * 32


def emit(lin: LinearOp, graph: SubgraphWriter, weights: Array, tiles: Tiles) -> tuple[int, int]:
    """Write the op in parts; as :meth:`LinearOp.emit`, which a single part equals. The height and width are fixed."""
    if len(tiles) == 1:
        return lin.emit(graph, weights)
    x, source = lin.emit_input(graph)
    batch, height, width, _ = lin.output_shape
    stride = lin.op.options.strideW
    parts, first = [], 0
    for filters, positions in tiles:
        part = _widen(weights[first : first + filters], stride, positions)
        y = lin.emit_convolution(graph, source, part, width // positions, stride * positions)
        if positions > 1:
            shape = graph.tensor("shape", (4,), np.array([-1, height, width, filters], np.int32), "int32")
            joined = graph.tensor("part", (batch, height, width, filters))
            graph.op("RESHAPE", [y, shape], [joined], schema.ReshapeOptionsT())
            y = joined
        parts.append(y)
        first += filters
    y = graph.tensor("y", (batch, height, width, first))
    graph.op("CONCATENATION", parts, [y], schema.ConcatenationOptionsT(axis=3))
    graph.interface([x], [y])
    return x, y


def _widen(weights: Array, stride: int, positions: int) -> Array:
    """[m, kh, kw, c] -> [positions m, kh, kw + stride (positions - 1), c], one shifted copy for each position."""
    m, height, width, channels = weights.shape
    out = np.zeros((positions, m, height, width + stride * (positions - 1), channels), np.float32)
    for p in range(positions):
        out[p, :, :, p * stride : p * stride + width] = weights
    return out.reshape(-1, *out.shape[2:])


def narrow(parts: list[Array], tiles: Tiles, kernel: int) -> Array:
    """The weights [M, kh, kw, c] of parts that :func:`emit` wrote, for whoever reads the public model."""
    return np.concatenate([part[:m, :, :kernel] for part, (m, _) in zip(parts, tiles, strict=True)])
