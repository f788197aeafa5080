"""The linear layers of an ordinary ``.tflite`` model, as rows: what a public relative gives an adversary."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from shadownet.analysis import Reference
from shadownet.attacks.view import PublicLayer
from shadownet.graph import load
from shadownet.inputs import random_inputs
from shadownet.lower import interface_spec
from shadownet.partition import Partition, partition
from shadownet.quantized import constants, numbers

Array = np.ndarray[Any, Any]


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
    def form(self) -> tuple[bool, tuple[int, ...]]:
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


def align(layers: Sequence[PublicLayer], model: Sequence[ModelLayer]) -> tuple[Array | None, ...]:
    """For each outsourced layer the rows of the same layer in a public model, or None.

    Layers correspond in order, shape for shape: the longest common subsequence, equal op ids preferred. Integer
    layers get the public model's integers where it has some, float ones its real weights.
    """
    a, b = len(layers), len(model)
    best = np.zeros((a + 1, b + 1))
    for i in range(a - 1, -1, -1):
        for j in range(b - 1, -1, -1):
            best[i, j] = max(best[i + 1, j], best[i, j + 1], best[i + 1, j + 1] + _affinity(layers[i], model[j]))
    found: list[Array | None] = [None] * a
    i = j = 0
    while i < a and j < b:
        fits = _affinity(layers[i], model[j])
        if fits and best[i, j] == best[i + 1, j + 1] + fits:
            exact = layers[i].numbers != "float"
            found[i] = model[j].rows if exact else model[j].rows * model[j].scale
            i, j = i + 1, j + 1
        elif best[i, j] == best[i + 1, j]:
            i += 1
        else:
            j += 1
    return tuple(found)


def public_base(model: str | os.PathLike[str], layers: Sequence[PublicLayer]) -> tuple[Array | None, ...]:
    """:func:`align` for a file. Raises ``ModelError``."""
    return align(layers, model_layers(model))


def _affinity(layer: PublicLayer, other: ModelLayer) -> float:
    """0 unless the two can be the same layer."""
    form = (layer.depthwise, (layer.groups, layer.per_group, layer.depth))
    return (1.0 + 1e-3 * (layer.op_id == other.op_id)) if form == other.form else 0.0


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
