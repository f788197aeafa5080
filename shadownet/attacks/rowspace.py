"""A6: any invertible mixing of rows, W~ = K W, leaves the row space; project the public model onto it.

    Q = an orthonormal basis of the rows of W~;  W^ = W0 Q Q^T         error about sqrt(rank / d) of the prior's

Source: linear algebra; the floor is the share of the d dimensions in which the prior's error survives.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from shadownet.attacks.group import channel_orders
from shadownet.attacks.recovery import TINY, Recovery, row_space
from shadownet.attacks.view import AdversaryView, PublicLayer

Array = np.ndarray[Any, Any]


def attack(view: AdversaryView, layer: PublicLayer) -> Recovery | None:
    """None without a public model, for depthwise layers, or where the rows span everything and tell nothing."""
    prior = view.prior(layer)
    if prior is None or layer.depthwise or layer.slots >= layer.depth:
        return None
    if len(layer.rows) == 1:  # schemes that mix may also permute input channels: what explains the base better
        kernel = layer.geometry.kernel[0] * layer.geometry.kernel[1]
        trials = [(rows[None], name) for rows, name in channel_orders(layer.rows[0], prior[0], kernel)]
    else:
        trials = [(layer.rows, "")]
    found = [_project(rows, prior, layer.depth, f"projection{name}") for rows, name in trials]
    usable = [recovery for recovery in found if recovery is not None]
    return min(usable, key=lambda recovery: recovery.doubt, default=None)


def _project(rows: Array, prior: Array, depth: int, form: str) -> Recovery | None:
    bases = [row_space(group) for group in rows]
    if max(len(basis) for basis in bases) >= depth:
        return None
    projected = np.stack([base @ basis.T @ basis for base, basis in zip(prior, bases, strict=True)])
    doubt = float(np.square(projected - prior).sum() / max(float(np.square(prior).sum()), TINY))
    space = np.stack(bases) if len({len(basis) for basis in bases}) == 1 else None
    return Recovery(projected, ordered=True, doubt=doubt, form=form, subspace=space)
