"""Layers in bands of rows: the enclave can take the first rows of an answer while the others are computed.

The public model has a signature for each layer. For convolutions with large answers this adds one for each band, which
reads the rows of the input that its rows of the output need: a view of the arena, nothing is copied. What the layer
pads becomes a PAD, which XNNPACK folds into the convolution. Weights are in the file once; XNNPACK packs them for each
signature, so layers with more weights than answers are left alone, or cut into two bands that are alike and share one.
"""

from __future__ import annotations

import copy
import itertools
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from ai_edge_litert import schema_py_generated as schema

from accelerator.public import CONVOLUTIONS, kind, text
from shadownet.wire.arena import ALL_ROWS

MOST = 4  # bands of a layer
LEAST = 1 << 14  # values of an answer in a band: fewer are finished in less time than a call takes
HEAVY = 4  # weights for each value of an answer: with more, reading them for each band costs more than it saves
_ALIGN = 64  # bytes; LiteRT wants buffers to begin so


@dataclass(frozen=True)
class Band:
    """Rows ``first`` to ``last`` of the output, of shape ``target``, by ``signature`` from input rows ``begin`` on."""

    signature: str
    begin: int
    first: int
    last: int
    source: tuple[int, ...]
    target: tuple[int, ...]


@dataclass(frozen=True)
class _Vertical:
    """How output rows of a layer find their input rows, and what it pads in all: ((top, bottom), (left, right))."""

    kernel: int
    stride: int
    dilation: int
    pads: tuple[tuple[int, int], tuple[int, int]]


def split(model: Any) -> dict[str, list[Band]]:
    """Add signatures for bands to a public model; returns the bands by layer. Raises what ``public.DAMAGE`` names for
    one that is damaged."""
    layers = {text(signature.signatureKey): _Layer(model, signature) for signature in model.signatureDefs}
    return {name: bands for name, layer in layers.items() if (bands := layer.bands())}


class _Layer:
    """One signature of the model: an optional PAD, convolutions that read the same, RESHAPE, CONCATENATION."""

    def __init__(self, model: Any, signature: Any) -> None:
        self.model, self.signature = model, signature
        self.graph = model.subgraphs[signature.subgraphIndex]
        self.made: dict[tuple[int, ...], str] = {}  # bands of the same shape are one signature

    def bands(self) -> list[Band]:
        """Write the bands' signatures; returns them in order, none where the layer is unfit or not worth it."""
        if len(self.graph.inputs) != 1 or len(self.graph.outputs) != 1:
            return []
        source, target = (self._shape(int(side[0])) for side in (self.graph.inputs, self.graph.outputs))
        values, weights = int(np.prod(target, dtype=np.int64)), self._weights()
        count = min(MOST if weights <= values else 2, values // LEAST)
        if len(source) != 4 or len(target) != 4 or source[0] != 1 or target[0] != 1 or not 2 <= count <= target[1]:
            return []
        vertical = self._vertical(target[1])
        if vertical is None or weights > HEAVY * values or target[1] * target[2] >= ALL_ROWS:
            return []
        edges = [round(target[1] * k / count) for k in range(count + 1)]
        planned = [_band(vertical, source, target, *rows) for rows in itertools.pairwise(edges)]
        if weights > values and len({_likeness(*plan) for plan in planned}) > 1:
            return []
        row_in, row_out = (4 * shape[2] * shape[3] for shape in (source, target))
        if any(band.source[1] < 1 or band.begin * row_in % _ALIGN or band.first * row_out % _ALIGN
               for band, _ in planned):  # fmt: skip
            return []
        return [replace(band, signature=self._write(vertical, band, pads)) for band, pads in planned]

    def _vertical(self, height: int) -> _Vertical | None:
        """None for what is not understood: all but a PAD of the input, convolutions that read the same of it, and what
        joins their results without moving rows; ``height`` is the number of output rows."""
        read, pads = int(self.graph.inputs[0]), ((0, 0), (0, 0))
        found: set[_Vertical] = set()
        for op in self.graph.operators:
            own = kind(self.model, op)
            if own == schema.BuiltinOperator.PAD and not found:
                amounts = self._constant(int(op.inputs[1])).reshape(-1, 2).tolist()
                if len(amounts) != 4 or amounts[0] != [0, 0] or amounts[3] != [0, 0]:
                    return None
                read, pads = int(op.outputs[0]), (tuple(amounts[1]), tuple(amounts[2]))
                continue
            made = self._shape(int(op.outputs[0]))
            if len(made) != 4 or made[:2] != (1, height):
                return None
            if own in CONVOLUTIONS and int(op.inputs[0]) == read:
                found.add(self._geometry(op, pads))
            elif own != schema.BuiltinOperator.RESHAPE and not self._joins_channels(op):
                return None
        return found.pop() if len(found) == 1 else None

    def _joins_channels(self, op: Any) -> bool:
        return kind(self.model, op) == schema.BuiltinOperator.CONCATENATION and int(op.builtinOptions.axis) in (3, -1)

    def _geometry(self, op: Any, pads: tuple[tuple[int, int], ...]) -> _Vertical:
        options, kernel = op.builtinOptions, self._shape(int(op.inputs[1]))[1:3]
        inner, reached = self._shape(int(op.inputs[0])), self._shape(int(op.outputs[0]))
        strides, dilations = (options.strideH, options.strideW), (options.dilationHFactor, options.dilationWFactor)
        total = []
        for axis in range(2):
            before, after = pads[axis]
            if options.padding == schema.Padding.SAME:
                reach = (kernel[axis] - 1) * dilations[axis] + 1
                more = max((reached[1 + axis] - 1) * strides[axis] + reach - inner[1 + axis], 0)
                before, after = before + more // 2, after + more - more // 2
            total.append((int(before), int(after)))
        return _Vertical(int(kernel[0]), int(strides[0]), int(dilations[0]), (total[0], total[1]))

    def _weights(self) -> int:
        ops = [op for op in self.graph.operators if kind(self.model, op) in CONVOLUTIONS]
        return sum(int(np.prod(self._shape(int(op.inputs[1])), dtype=np.int64)) for op in ops)

    def _write(self, vertical: _Vertical, band: Band, pads: tuple[int, int]) -> str:
        """Add a band's subgraph and signature, unless there is one like it; returns the signature's key."""
        key = _likeness(band, pads)
        if key in self.made:
            return self.made[key]
        name = self.made[key] = f"{text(self.signature.signatureKey)}#{len(self.made)}"
        graph = copy.copy(self.graph)
        graph.tensors = [copy.copy(tensor) for tensor in graph.tensors]
        graph.operators = [
            copy.copy(op) for op in graph.operators if kind(self.model, op) != schema.BuiltinOperator.PAD
        ]
        x = int(graph.inputs[0])
        graph.tensors[x].shape = np.array(band.source, np.int32)
        amounts = ((0, 0), pads, vertical.pads[1], (0, 0))
        padded = self._pad(graph, x, band, amounts) if any(map(any, amounts)) else x
        for op in graph.operators:
            self._fit(graph, op, padded, band.target[1])
        self.model.subgraphs.append(graph)
        signature = copy.copy(self.signature)
        signature.signatureKey, signature.subgraphIndex = name, len(self.model.subgraphs) - 1
        self.model.signatureDefs.append(signature)
        return name

    def _pad(self, graph: Any, x: int, band: Band, amounts: tuple[tuple[int, int], ...]) -> int:
        """Begin the subgraph with a PAD by these amounts; returns what it gives."""
        graph.tensors.append(self._integers("band_paddings", np.array(amounts, np.int32)))
        given = copy.copy(graph.tensors[x])
        given.name = "band_padded"
        given.shape = np.array([d + a + b for d, (a, b) in zip(band.source, amounts, strict=True)], np.int32)
        graph.tensors.append(given)
        paddings, padded = len(graph.tensors) - 2, len(graph.tensors) - 1
        op = schema.OperatorT(self._code_of_pad(), np.array([x, paddings], np.int32), np.array([padded], np.int32))
        op.builtinOptionsType, op.builtinOptions = schema.BuiltinOptions.PadOptions, schema.PadOptionsT()
        graph.operators.insert(0, op)
        return padded

    def _code_of_pad(self) -> int:
        code = schema.BuiltinOperator.PAD
        codes = [max(c.builtinCode, c.deprecatedBuiltinCode) for c in self.model.operatorCodes]
        if code not in codes:
            self.model.operatorCodes.append(schema.OperatorCodeT(code, None, 1, code))
        return codes.index(code) if code in codes else len(codes)

    def _fit(self, graph: Any, op: Any, source: int, rows: int) -> None:
        """Give an op of a band its number of rows; convolutions read ``source``, which has all that they pad."""
        if kind(self.model, op) == schema.BuiltinOperator.PAD:
            return
        result = graph.tensors[int(op.outputs[0])]
        shape = np.array(result.shape, np.int32)
        shape[1] = rows
        result.shape = shape
        if kind(self.model, op) in CONVOLUTIONS:
            op.inputs = np.array([source, *op.inputs[1:]], np.int32)
            op.builtinOptions = copy.copy(op.builtinOptions)
            op.builtinOptions.padding = schema.Padding.VALID
        elif kind(self.model, op) == schema.BuiltinOperator.RESHAPE:
            graph.tensors.append(self._integers("band_shape", shape))
            op.inputs = np.array([op.inputs[0], len(graph.tensors) - 1], np.int32)
            op.builtinOptions, op.builtinOptionsType = None, 0

    def _integers(self, name: str, values: Any) -> Any:
        self.model.buffers.append(schema.BufferT(data=values.reshape(-1).view(np.uint8)))
        return schema.TensorT(
            shape=np.array(values.shape, np.int32), type=schema.TensorType.INT32, name=name, hasRank=True,
            buffer=len(self.model.buffers) - 1,
        )  # fmt: skip

    def _shape(self, tensor: int) -> tuple[int, ...]:
        return tuple(int(d) for d in self.graph.tensors[tensor].shape)

    def _constant(self, tensor: int) -> Any:
        data = self.model.buffers[self.graph.tensors[tensor].buffer].data
        return np.frombuffer(bytes(data), "<i4")


def _band(
    vertical: _Vertical, source: tuple[int, ...], target: tuple[int, ...], first: int, last: int
) -> tuple[Band, tuple[int, int]]:
    """Output rows ``first`` to ``last``, still without a signature, and the rows that are padded above and below."""
    begin = first * vertical.stride - vertical.pads[0][0]
    end = (last - 1) * vertical.stride - vertical.pads[0][0] + (vertical.kernel - 1) * vertical.dilation + 1
    above, below = max(-begin, 0), max(end - source[1], 0)
    rows = (1, end - below - begin - above, *source[2:])
    return Band("", begin + above, first, last, rows, (1, last - first, *target[2:])), (above, below)


def _likeness(band: Band, pads: tuple[int, int]) -> tuple[int, ...]:
    """Bands of a layer for which these are equal are the same computation on other rows."""
    return (band.source[1], *pads, band.target[1])
