"""A20: integer mixtures span a lattice, and its short vectors are the filters (8-bit models under mixing schemes).

    X = A [W; F], A unimodular: the rows of X and of [W; F] span one lattice, whatever A is
    filters are nearly orthogonal to each other, so the shortest vectors are they: LLL, then pairwise reduction

No group needs to be known: A is block diagonal, so the whole layer is one lattice where it has no more rows than
weights a filter; elsewhere groups are told by |cos|, as in A7. Filters come back exactly, up to sign, in no order, and
with input channels as they are sent. Mask filters are short vectors too: filters that were quantised with a scale of
their own reach 127, and of the others those that look most Gaussian are left out.
Where results need not be exact (float layers in fixed point) mixtures are rounded, and there is no lattice.

Source: Lenstra, Lenstra and Lovasz, Math. Annalen 261, 1982. Knowledge: public files.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from shadownet.attacks.group import balanced_groups, group_sizes
from shadownet.attacks.recovery import Recovery, cosines
from shadownet.attacks.unmix import least_gaussian
from shadownet.attacks.view import AdversaryView, PublicLayer

Array = np.ndarray[Any, Any]

LOVASZ = 0.99
LARGEST = 160  # rows that are reduced together
LIMIT = 127  # of the weights of a model of 8 bits
STEPS = 200_000  # of the reduction, before it is cut off: what is short by then counts
PASSES = 50  # over all rows


def attack(view: AdversaryView, layer: PublicLayer) -> Recovery | None:
    """None for depthwise layers and where public rows are not integer mixtures."""
    if layer.depthwise or layer.numbers not in ("integer", "hybrid"):
        return None
    found = []
    for rows in layer.rows:
        if len(rows) <= min(layer.depth, LARGEST):
            short, form = reduce(rows), "one lattice"
        else:
            sizes = group_sizes(view, layer)
            if not sizes or max(sizes[0]) > layer.depth:
                return None
            groups = balanced_groups(np.abs(cosines(rows, rows)), sizes[0])
            short, form = np.concatenate([reduce(rows[group]) for group in groups]), "a lattice for each group"
        found.append(short[_filters(short, layer.per_group)])
    return Recovery(np.stack(found), scaled=False, channels=False, form=form)


def _filters(short: Array, count: int) -> Array:
    """Indices of the ``count`` rows that are no mask filters: a filter with a scale of its own reaches 127."""
    order = least_gaussian(short / np.maximum(short.std(axis=1, keepdims=True), 1e-12), len(short))
    whole = np.abs(short).max(axis=1) == LIMIT
    return np.concatenate([order[whole[order]], order[~whole[order]]])[:count]


def reduce(rows: Array) -> Array:
    """A reduced basis of the lattice that independent integer rows [m, d], m <= d, span: float64 [m, d]."""
    basis = rows[np.argsort(np.square(rows).sum(axis=1))].copy()
    return pairwise(lll(basis))


def lll(rows: Array) -> Array:
    """LLL on the triangular factor; integers stay exact, only the factor is rounded (entries far below 2^53)."""
    m = len(rows)
    basis = rows.astype(np.float64)
    r = np.asarray(np.linalg.qr(basis.T).R)  # r[:, k] are coordinates of row k
    k, steps = 1, 0
    while k < m and steps < STEPS:
        steps += 1
        for j in range(k - 1, -1, -1):
            times = np.rint(r[j, k] / r[j, j])
            if times:
                r[: j + 1, k] -= times * r[: j + 1, j]
                basis[k] -= times * basis[j]
        if r[k, k] ** 2 + r[k - 1, k] ** 2 >= LOVASZ * r[k - 1, k - 1] ** 2:
            k += 1
            continue
        basis[[k - 1, k]] = basis[[k, k - 1]]
        r[:, [k - 1, k]] = r[:, [k, k - 1]]
        a, b = r[k - 1, k - 1], r[k, k - 1]
        size = np.hypot(a, b)
        turn = np.array([[a, b], [-b, a]]) / size
        r[k - 1 : k + 1, k - 1 :] = turn @ r[k - 1 : k + 1, k - 1 :]
        k = max(k - 1, 1)
    return basis


def pairwise(basis: Array) -> Array:
    """Subtract rows from longer rows while that makes them shorter."""
    basis = basis.copy()
    for _ in range(PASSES * len(basis)):
        gram = basis @ basis.T
        size = np.diag(gram)
        times = np.rint(gram / np.maximum(size, 1.0))  # of row j off row i
        np.fill_diagonal(times, 0.0)
        gain = 2.0 * times * gram - np.square(times) * size
        i, j = np.unravel_index(int(gain.argmax()), gain.shape)
        if gain[i, j] <= 0:
            break
        basis[i] -= times[i, j] * basis[j]
    return basis
