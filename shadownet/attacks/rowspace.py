"""A6: any invertible mixing of rows, W~ = K W, leaves the row space; project the public model onto it.

    Q = an orthonormal basis of the rows of W~;  W^ = W0 Q Q^T         error about sqrt(rank / d) of the prior's

Source: linear algebra; the floor is the share of the d dimensions in which the prior's error survives.
"""

from __future__ import annotations

import numpy as np

from shadownet.attacks.recovery import TINY, Recovery, row_space
from shadownet.attacks.view import AdversaryView, PublicLayer


def attack(view: AdversaryView, layer: PublicLayer) -> Recovery | None:
    """None without a public model, for depthwise layers, or where the rows span everything and tell nothing."""
    prior = view.prior(layer)
    if prior is None or layer.depthwise or layer.slots >= layer.depth:
        return None
    bases = [row_space(rows) for rows in layer.rows]
    if max(len(basis) for basis in bases) >= layer.depth:
        return None
    rows = np.stack([base @ basis.T @ basis for base, basis in zip(prior, bases, strict=True)])
    doubt = float(np.square(rows - prior).sum() / max(float(np.square(prior).sum()), TINY))
    space = np.stack(bases) if len({len(basis) for basis in bases}) == 1 else None
    return Recovery(rows, ordered=True, doubt=doubt, form="projection", subspace=space)
