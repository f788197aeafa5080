"""A9: undo an orthogonal mixing of the input side, W~ = W Q, with a public model.

    U S V^T = svd(W0^T W~);  W^ = W~ V U^T            over all d inputs, or over channels (the same Q at each position)

Source: the orthogonal Procrustes problem (Schoenemann 1966). Fewer filters than inputs leave Q undetermined outside
the two row spaces, which is where W has nothing.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from shadownet.attacks.recovery import Recovery, norms
from shadownet.attacks.view import AdversaryView, PublicLayer

Array = np.ndarray[Any, Any]

SIMPLER = 3.0  # the channel form has far fewer unknowns: it may fit this much worse and is still believed,
UNRELATED = 1.0  # if it leaves less than this share of the prior; strangers leave 1.4


def attack(view: AdversaryView, layer: PublicLayer) -> Recovery | None:
    """None without a public model, or where rows were added or are depthwise."""
    prior = view.prior(layer)
    if prior is None or layer.depthwise or prior.shape != layer.rows.shape:
        return None
    k = layer.geometry.kernel[0] * layer.geometry.kernel[1]
    forms = {"inputs": np.stack([turn(x, w, 1) for x, w in zip(layer.rows, prior, strict=True)])}
    if k > 1 and layer.depth > k:
        forms["channels"] = np.stack([turn(x, w, k) for x, w in zip(layer.rows, prior, strict=True)])
    misfit = {name: float(norms((rows - prior).reshape(1, -1))[0, 0]) for name, rows in forms.items()}
    size = float(norms(prior.reshape(1, -1))[0, 0])
    limit = min(SIMPLER * misfit["inputs"], UNRELATED * size)
    name = "channels" if misfit.get("channels", np.inf) < limit else "inputs"
    return Recovery(forms[name], ordered=True, doubt=misfit[name] / size, form=name)


def turn(rows: Array, base: Array, k: int) -> Array:
    """rows [n, k * c] turned back towards base by one orthogonal c x c matrix: the same shape."""
    n = len(rows)
    x, w = rows.reshape(n * k, -1), base.reshape(n * k, -1)
    if n * k < x.shape[1]:  # the factors lie in the row spaces: work there
        qw, rw = np.linalg.qr(w.T)
        qx, rx = np.linalg.qr(x.T)
        u, _, vt = np.linalg.svd(rw @ rx.T)
        return (((x @ qx) @ vt.T) @ u.T @ qw.T).reshape(rows.shape)
    u, _, vt = np.linalg.svd(w.T @ x)
    return (x @ vt.T @ u.T).reshape(rows.shape)
