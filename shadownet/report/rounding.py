"""What a protected layer loses in precision: its restored answer against float64, on one recorded inference.

    error = max |restore(answer) - W x'| / max |W x|        x' what was sent, x the same without its mask

W x' is computed here in float64 from the true weights, so this is the rounding of transform, accelerator and restore
together. Belongs to the owner: it needs the model, and the sealed half for the restoring maps.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from shadownet.attacks.peeling import patches
from shadownet.attacks.truth import TrueLayer
from shadownet.attacks.view import Crossing, PublicLayer

Array = np.ndarray[Any, Any]

KINDS = ("CONV_2D", "DEPTHWISE_CONV_2D", "FULLY_CONNECTED")
LARGEST = 1 << 26  # elements of a layer's patches


def error(layer: PublicLayer, true: TrueLayer, crossing: Crossing, x: Array | None) -> float | None:
    """The error of one layer. ``x`` is its true input; where None, the layer's size is taken with the mask.

    None for layers whose numbers are not float (those are exact, or in units of their own), for other kinds of ops,
    for layers that are too large, and without the restoring map.
    """
    if layer.numbers != "float" or layer.kind not in KINDS or true.restore is None:
        return None
    sent = crossing.sent if true.restore.order is None else crossing.sent[..., np.argsort(true.restore.order)]
    if sent.size * layer.geometry.kernel[0] * layer.geometry.kernel[1] > LARGEST:
        return None
    expected = _product(sent, layer, true)
    got = true.restore.apply(crossing.received.astype(np.float64)).reshape(expected.shape)
    size = np.abs(expected if x is None else _product(x, layer, true)).max(initial=0)
    return float(np.abs(got - expected).max(initial=0) / size) if size > 0 else None


def _product(x: Array, layer: PublicLayer, true: TrueLayer) -> Array:
    """W x in float64, [positions, n]."""
    kernel, groups = layer.geometry.kernel[0] * layer.geometry.kernel[1], true.rows.shape[0]
    seen = patches(x.astype(np.float64), layer.geometry)
    seen = seen.reshape(-1, kernel, groups, seen.shape[-1] // kernel // groups)
    return np.einsum(
        "pkgc,gnkc->pgn", seen, true.rows.reshape(*true.rows.shape[:2], kernel, -1), optimize=True
    ).reshape(len(seen), -1)
