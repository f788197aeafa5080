"""A public relative of a model: its linear layers matched with the model's, and the private difference between them."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from shadownet.analysis import Reference
from shadownet.graph import load
from shadownet.inputs import random_inputs
from shadownet.interface import interface_spec
from shadownet.linear import LinearOp
from shadownet.partition import Partition, partition
from shadownet.quantized import Bits, Numbers, constants, fixed, numbers

Array = np.ndarray[Any, Any]
Form = tuple[bool, tuple[int, ...]]  # depthwise, shape of the rows


@dataclass(frozen=True, eq=False)
class ModelLayer:
    """One linear layer. ``rows`` float64 [groups, n, d]; ``scale`` float64 [groups, n, 1] gives real weights.

    Rows of quantised layers are centred integers; ``scale`` is 1 for float ones.
    """

    entry: int
    op_id: int
    kind: str
    depthwise: bool
    rows: Array
    scale: Array

    @property
    def form(self) -> Form:
        return self.depthwise, self.rows.shape


def model_layers(model: str | os.PathLike[str]) -> list[ModelLayer]:
    """Every linear layer that could be outsourced, in the order of a bundle. Raises ``ModelError``."""
    graph, _ = load(model)
    found: list[ModelLayer] = []
    with Reference(os.fspath(model), graph) as reference:
        for entry in graph.entry_points():
            part = partition(graph, entry, reference.shapes(entry), "all")
            folded = _folded(part, entry, reference)
            for lin in part.linear:
                values = numbers(lin, part.graph, constants(lin, part.graph, folded))
                groups, n, _ = values.rows.shape
                scale = np.broadcast_to(_scale(part, lin.weight), groups * n).reshape(groups, n, 1)
                found.append(
                    ModelLayer(entry, lin.op.id, lin.kind, lin.depthwise, values.rows.astype(np.float64), scale)
                )
    return found


def match(layers: Sequence[tuple[int, Form]], model: Sequence[ModelLayer]) -> list[ModelLayer | None]:
    """For each (op id, form) the same layer of a model, or None.

    Layers correspond in order, shape for shape: the longest common subsequence, equal op ids preferred.
    """
    a, b = len(layers), len(model)
    best = np.zeros((a + 1, b + 1))
    for i in range(a - 1, -1, -1):
        for j in range(b - 1, -1, -1):
            best[i, j] = max(best[i + 1, j], best[i, j + 1], best[i + 1, j + 1] + _affinity(layers[i], model[j]))
    found: list[ModelLayer | None] = [None] * a
    i = j = 0
    while i < a and j < b:
        fits = _affinity(layers[i], model[j])
        if fits and best[i, j] == best[i + 1, j + 1] + fits:
            found[i] = model[j]
            i, j = i + 1, j + 1
        elif best[i, j] == best[i + 1, j]:
            i += 1
        else:
            j += 1
    return found


def base_rows(base: str | os.PathLike[str], layers: Sequence[LinearOp]) -> dict[int, Array]:
    """The real weights of a public model, float64 [groups, n, d], by id of the op of ``layers`` that they match.

    Raises ``ModelError``.
    """
    forms = [(lin.op.id, (lin.depthwise, (lin.groups, lin.filters // lin.groups, lin.depth))) for lin in layers]
    found = zip(forms, match(forms, model_layers(base)), strict=True)
    return {op: layer.rows * layer.scale for (op, _), layer in found if layer is not None}


def against(values: Numbers, base: Array, bits: Bits | None) -> tuple[Numbers, Array]:
    """(numbers with public rows, private difference [groups, n, d]) so that both together are the layer.

    Public rows are a function of the public base alone. The difference is in units of the public rows.
    """
    if not values.exact:
        return Numbers(base.astype(np.float32), values.record, values.blobs, 0.0), values.rows - base
    if values.record["kind"] == "fixed":
        assert bits is not None
        public = fixed(base, values.record, values.blobs, bits)
        true = values.rows * values.blobs["scale"].reshape(*values.rows.shape[:2], 1)
        return public, true / public.blobs["scale"].reshape(*base.shape[:2], 1) - public.rows
    scale = np.abs(base).max(axis=-1, keepdims=True) / 127
    rows = np.rint(base / np.where(scale > 0, scale, 1.0)).astype(np.float32)
    return Numbers(rows, values.record, values.blobs, values.largest), values.rows - rows


def factored(lin: LinearOp, difference: Array, allowed: float) -> tuple[Array, Array] | None:
    """(left [n, r], right [r, d]) of the least rank within ``allowed`` (Frobenius), or None if it saves nothing."""
    if lin.kind not in ("CONV_2D", "FULLY_CONNECTED") or lin.groups != 1:
        return None
    u, s, v = np.linalg.svd(difference[0].astype(np.float64), full_matrices=False)
    left_over = np.sqrt(np.concatenate([np.cumsum(np.square(s[::-1]))[::-1], [0.0]]))
    noise = s[0] * max(difference.shape[1:]) * np.finfo(np.float32).eps if s.size else 0.0
    rank = max(1, int(np.argmax(left_over <= max(allowed, noise))))
    if rank * (lin.filters + lin.depth) >= lin.filters * lin.depth:
        return None
    return (u[:, :rank] * s[:rank]).astype(np.float32), v[:rank].astype(np.float32)


def _affinity(layer: tuple[int, Form], other: ModelLayer) -> float:
    """0 unless the two can be the same layer."""
    return (1.0 + 1e-3 * (layer[0] == other.op_id)) if layer[1] == other.form else 0.0


def _folded(part: Partition, entry: int, reference: Reference) -> dict[int, Array]:
    """Values of weights that ops compute from constants; LiteRT computes them."""
    if not part.folded:
        return {}
    specs = [interface_spec(part, t) for t in part.graph.inputs]
    reference.observe(entry, random_inputs(specs, 0), [])
    return dict(zip(part.folded, reference.values(entry, part.folded), strict=True))


def _scale(part: Partition, weight: int) -> Array:
    tensor = part.graph.tensors[weight]
    if tensor.dtype not in ("int8", "uint8") or tensor.quantization is None:
        return np.ones(1)
    return tensor.quantization.scale.astype(np.float64)
