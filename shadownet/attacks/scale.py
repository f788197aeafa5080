"""A1: undo a secret scalar with a public model.

    s = <W~, W0> / <W~, W~>,  W^ = s W~          one scalar for the layer, or one for each row

Source: SOTER's and TSQP's scalar morphing and the attack on it in the TEESlice artefact, there with the square root of
the ratio of variances for s. Least squares has the sign as well and weighs rows by what they say.
"""

from __future__ import annotations

import numpy as np

from shadownet.attacks.recovery import TINY, Recovery
from shadownet.attacks.view import AdversaryView, PublicLayer


def attack(view: AdversaryView, layer: PublicLayer) -> Recovery | None:
    """None without a public model, or where rows were added: then they have no order to go by.

    One scalar is preferred unless scalars of the rows differ by more than the distance to the public model explains.
    """
    prior = view.prior(layer)
    if prior is None or prior.shape != layer.rows.shape:
        return None
    rows = layer.rows
    cross, power = (rows * prior).sum(axis=2, keepdims=True), np.maximum((rows * rows).sum(axis=2, keepdims=True), TINY)
    single = cross.sum() / power.sum()
    each = cross / power
    left = [float(np.square(s * rows - prior).sum()) for s in (single, each)]
    # n - 1 more parameters take this share of a residual that is pure chance.
    chance = 1.0 - (each.size - 1) / max(rows.size - 1, 1)
    use_each = left[1] < 0.9 * chance * left[0]
    recovered = (each if use_each else single) * rows
    doubt = min(left) / max(float(np.square(prior).sum()), TINY)
    return Recovery(recovered, ordered=True, doubt=doubt, form="a scalar a row" if use_each else "one scalar")
