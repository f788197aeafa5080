"""A8: strip what has low rank, with a public model.

    LoRO, W~ = W + B A:             W^ = W~ - SVD_r(W~ - W0)
    ArrowCloak, w~ = s w + c v, rows permuted: v dominates W~; take it out of W~ and W0, match rows (A2), then least
                                    squares on (w0, v) give each row's s and c; w^ = (w~ - c v) / s

Sources: LoRO (NeurIPS 2025), ArrowCloak (Wang et al., USENIX Security 2025); that rank-one noise falls to its singular
vector is reported in arXiv 2608.21615. Here the direction is refined by alternating least squares, r is read off the
spectrum unless told, and the form that comes closer to the public model wins.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from shadownet.attacks.recovery import TINY, Recovery, assign, cosines, norms
from shadownet.attacks.view import AdversaryView, PublicLayer

Array = np.ndarray[Any, Any]

LARGEST_RANK = 64
ROUNDS = 5


def attack(view: AdversaryView, layer: PublicLayer) -> Recovery | None:
    """None without a public model, or where rows were added or are depthwise. ``rank`` may be told by the scheme."""
    prior = view.prior(layer)
    if prior is None or layer.depthwise or prior.shape != layer.rows.shape:
        return None
    told = view.parameters.get("rank")
    forms = {
        "added": [strip_added(x, w, int(told) if told else None) for x, w in zip(layer.rows, prior, strict=True)],
        "cloak": [strip_cloak(x, w) for x, w in zip(layer.rows, prior, strict=True)],
    }
    size = max(float(norms(prior.reshape(1, -1))[0, 0]), TINY)
    misfit = {name: float(norms((np.stack(r) - prior).reshape(1, -1))[0, 0]) / size for name, r in forms.items()}
    name = min(misfit, key=misfit.__getitem__)
    return Recovery(np.stack(forms[name]), ordered=True, doubt=misfit[name], form=name)


def strip_added(rows: Array, base: Array, rank: int | None = None) -> Array:
    """LoRO: take the ``rank`` largest directions of the difference away; [n, d]."""
    u, size, vt = np.linalg.svd(rows - base, full_matrices=False)
    r = rank or guess_rank(size, rows.shape)
    out: Array = rows - (u[:, :r] * size[:r]) @ vt[:r]
    return out


def guess_rank(size: Array, shape: tuple[int, ...]) -> int:
    """How many singular values of ``shape`` stand out of drift that looks like noise.

    Noise of median singular value mu ends near mu (1 + sqrt(beta)) / sqrt(m), beta the aspect ratio, m the median of
    the Marchenko-Pastur law; 5 % above that end counts as outside.
    """
    beta = min(shape) / max(shape)
    grid = np.linspace((1 - np.sqrt(beta)) ** 2, (1 + np.sqrt(beta)) ** 2, 4001)[1:-1]
    density = np.sqrt((grid[-1] - grid) * (grid - grid[0]) + TINY) / grid
    mass = np.cumsum(density)
    median = float(grid[np.searchsorted(mass, mass[-1] / 2)])
    end = float(np.median(size)) * (1 + np.sqrt(beta)) / np.sqrt(median)
    return min(int((size > 1.05 * end).sum()), LARGEST_RANK)


def strip_cloak(rows: Array, base: Array) -> Array:
    """ArrowCloak: rows [n, d] -> estimates in the order of base [n, d]."""
    _, _, vt = np.linalg.svd(rows, full_matrices=False)
    v = vt[0]
    out = base
    for _ in range(ROUNDS):
        x, w = (a - (a @ v)[:, None] * v for a in (rows, base))
        cosine = cosines(x, w)
        r, c = assign(np.abs(cosine))
        # w~ = s w0 + c v, per row, in closed form: s from the parts off v, c from what is left along v.
        s = (x[r] * w[c]).sum(axis=1) / np.maximum(np.square(w[c]).sum(axis=1), TINY)
        along = rows[r] @ v - s * (base[c] @ v)
        # The direction anew: what rows have beside s w0 is c v plus drift, and drift has no common direction.
        left = rows[r] - s[:, None] * base[c]
        _, _, vt = np.linalg.svd(left, full_matrices=False)
        stripped = (rows[r] - along[:, None] * v) / np.where(np.abs(s) < TINY, 1.0, s)[:, None]
        out = base.copy()
        out[c] = stripped
        if abs(float(v @ vt[0])) > 1.0 - 1e-12:
            break
        v = vt[0]
    return out
