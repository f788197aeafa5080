"""The linear layers of an ordinary ``.tflite`` model, as rows: what a public relative gives an adversary."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

import numpy as np

from shadownet.attacks.view import PublicLayer
from shadownet.relatives import ModelLayer, match, model_layers

Array = np.ndarray[Any, Any]

__all__ = ["ModelLayer", "align", "model_layers", "public_base", "same_ops"]


def align(layers: Sequence[PublicLayer], model: Sequence[ModelLayer], bits: int = 12) -> tuple[Array | None, ...]:
    """For each outsourced layer the rows of the same layer in a public model, or None.

    Integer layers get the public model's integers where it has some, float ones its real weights, fixed-point ones
    those in steps of ``bits`` bits per filter, as the scheme is known to take them.
    """
    found = zip(layers, _matched(layers, model), strict=True)
    return tuple(None if other is None else _in_units(other, layer.numbers, bits) for layer, other in found)


def same_ops(model: str | os.PathLike[str], layers: Sequence[PublicLayer]) -> tuple[int | None, ...]:
    """For each outsourced layer the id of the op of a public model that it corresponds to. Raises ``ModelError``."""
    return tuple(None if other is None else other.op_id for other in _matched(layers, model_layers(model)))


def _matched(layers: Sequence[PublicLayer], model: Sequence[ModelLayer]) -> list[ModelLayer | None]:
    forms = [(layer.op_id, (layer.depthwise, (layer.groups, layer.per_group, layer.depth))) for layer in layers]
    return match(forms, model)


def _in_units(other: ModelLayer, numbers: str, bits: int) -> Array:
    """A public layer's rows in the units of a layer with these numbers."""
    if numbers in ("integer", "hybrid"):
        return other.rows
    real = other.rows * other.scale
    if numbers == "float":
        return real
    largest = np.abs(real).max(axis=-1, keepdims=True)
    return real / np.where(largest > 0, largest, 1.0) * ((1 << (bits - 1)) - 1)


def public_base(
    model: str | os.PathLike[str], layers: Sequence[PublicLayer], bits: int = 12
) -> tuple[Array | None, ...]:
    """:func:`align` for a file. Raises ``ModelError``."""
    return align(layers, model_layers(model), bits)
