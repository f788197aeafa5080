"""The linear layers of an ordinary ``.tflite`` model, as rows: what a public relative gives an adversary."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

import numpy as np

from shadownet.attacks.view import PublicLayer
from shadownet.relatives import ModelLayer, match, model_layers

Array = np.ndarray[Any, Any]

__all__ = ["ModelLayer", "align", "model_layers", "public_base"]


def align(layers: Sequence[PublicLayer], model: Sequence[ModelLayer]) -> tuple[Array | None, ...]:
    """For each outsourced layer the rows of the same layer in a public model, or None.

    Integer layers get the public model's integers where it has some, float ones its real weights.
    """
    forms = [(layer.op_id, (layer.depthwise, (layer.groups, layer.per_group, layer.depth))) for layer in layers]
    found = zip(layers, match(forms, model), strict=True)
    return tuple(
        None if other is None else other.rows if layer.numbers != "float" else other.rows * other.scale
        for layer, other in found
    )


def public_base(model: str | os.PathLike[str], layers: Sequence[PublicLayer]) -> tuple[Array | None, ...]:
    """:func:`align` for a file. Raises ``ModelError``."""
    return align(layers, model_layers(model))
