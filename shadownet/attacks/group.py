"""A7: undo the mixing of small groups of rows and a permutation of input channels (GroupCover, ICML 2024).

    P = Q Q^T, Q an orthonormal basis of the rows of W~; its c-th diagonal block (k*k x k*k) belongs to a channel:
    matched to the blocks of W0's projector it gives the permutation
    rows of a group lie in one g-dimensional space: found by |cos|, and by which public filters they are made of
    public filters are assigned to groups by projection energy, g each, and projected          error about sqrt(g / d)

Source: the projector of a row space survives mixing of rows; grouping by cosine as in published analyses of GroupCover.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from shadownet.attacks.recovery import TINY, Recovery, assign, cosines, row_space, unit
from shadownet.attacks.view import AdversaryView, PublicLayer

Array = np.ndarray[Any, Any]

SIZES = (2, 3, 4, 6, 8)  # group sizes tried when the scheme does not tell
ROUNDS = 8


def attack(view: AdversaryView, layer: PublicLayer) -> Recovery | None:
    """None without a public model, or where rows are depthwise or groups uneven. ``group`` may be told by the scheme;
    rows that were added are mask filters, as many in each group."""
    prior = view.prior(layer)
    if prior is None or layer.depthwise or layer.groups > 1 or prior.shape[1:] != (layer.per_group, layer.depth):
        return None
    counts = group_counts(view, layer)
    if not counts:
        return None
    base, k = prior[0], layer.geometry.kernel[0] * layer.geometry.kernel[1]
    trials = []
    for rows, name in channel_orders(layer.rows[0], base, k):
        for count in counts:
            g = len(rows) // count
            filters, explained = project(rows, base, g)
            # g of d dimensions explain g / d of anything: larger groups must earn it.
            trials.append((explained - g / layer.depth, filters, f"groups of {g}{name}"))
    best = max(trials, key=lambda trial: trial[0])
    return Recovery(best[1][None], ordered=True, doubt=1.0 - best[0], form=best[2])


def group_counts(view: AdversaryView, layer: PublicLayer) -> list[int]:
    """How many groups of equal size a layer may have: the scheme's own, or those of the usual sizes."""
    n, told = layer.per_group, view.parameters.get("group")
    if told is None:
        return [n // g for g in SIZES if n % g == 0] if layer.slots == n else []
    count = -(-n // int(told))  # filters are dealt evenly
    return [count] if n % count == 0 and layer.slots % count == 0 else []


def channel_orders(rows: Array, base: Array, k: int) -> list[tuple[Array, str]]:
    """The rows as they are, and with input channels put back in the base's order if the projector tells it."""
    out = [(rows, "")]
    if len(rows) < rows.shape[1] and rows.shape[1] > k:
        order = channel_order(rows, base, k)
        if (order != np.arange(len(order))).any():
            out.append((rows.reshape(len(rows), k, -1)[:, :, order].reshape(rows.shape), ", channels permuted"))
    return out


def channel_order(rows: Array, base: Array, k: int) -> Array:
    """order[c]: the channel of ``rows`` [n, k * channels] that is channel c of ``base``; int64 [channels]."""
    mine, theirs = (_blocks(row_space(a), k) for a in (rows, base))
    # Blocks have a large common part (the mean block), which would drown what tells channels apart.
    mine, theirs = mine - mine.mean(axis=0), theirs - theirs.mean(axis=0)
    distance = np.square(theirs).sum(1)[:, None] + np.square(mine).sum(1)[None] - 2.0 * theirs @ mine.T
    _, order = assign(-distance)
    return order


def _blocks(basis: Array, k: int) -> Array:
    """Diagonal blocks of the projector basis^T basis, one a channel, flattened: [channels, k * k]."""
    shaped = basis.reshape(len(basis), k, -1)
    return np.einsum("rkc,rlc->ckl", shaped, shaped).reshape(shaped.shape[2], -1)


def project(rows: Array, base: Array, g: int) -> tuple[Array, float]:
    """(filters [n, d] in the base's order, share of the base's energy explained) under groups of ``g``."""
    affinities = [np.abs(cosines(rows, rows))]
    if len(rows) <= rows.shape[1]:
        # Which public filters a row is made of: rows of one group are made of the same.
        coefficients, *_ = np.linalg.lstsq(base.T, rows.T, rcond=None)
        share = np.square(unit(coefficients.T))
        affinities.append(cosines(share, share))
    results = [_project(rows, base, balanced_groups(affinity, g)) for affinity in affinities]
    return max(results, key=lambda result: result[1])


def _project(rows: Array, base: Array, groups: Array) -> tuple[Array, float]:
    spaces = np.linalg.svd(rows[groups], full_matrices=False)[2]  # [groups, g, d]
    inside = np.einsum("gid,nd->ngi", spaces, base, optimize=True)
    energy = np.square(inside).sum(axis=2) / np.maximum(np.square(base).sum(axis=1, keepdims=True), TINY)
    seats = len(base) // len(groups)  # of filters; with mask filters a group has more rows than that
    p, seat = assign(np.repeat(energy, seats, axis=1))
    home = np.empty(len(base), np.int64)
    home[p] = seat // seats
    filters = np.einsum("ni,nid->nd", inside[np.arange(len(base)), home], spaces[home])
    explained = float(np.square(filters).sum() / max(float(np.square(base).sum()), TINY))
    return filters, explained


def balanced_groups(affinity: Array, g: int) -> Array:
    """Partition n rows into groups of ``g`` with high affinity inside: int64 [n / g, g].

    Greedy, the surest group first; then rows are matched to the seats of groups again until nothing moves.
    """
    a = affinity.copy()
    np.fill_diagonal(a, 0.0)
    left = np.ones(len(a), bool)
    groups = []
    while left.any():
        free = np.flatnonzero(left)
        part = a[np.ix_(free, free)]
        if g == 1:
            groups.append(free[:1])
        else:
            top = np.partition(part, -(g - 1), axis=1)[:, -(g - 1) :].sum(axis=1)
            seed = int(top.argmax())
            mates = np.argsort(-part[seed])[: g - 1]
            groups.append(free[np.append(mates[mates != seed], seed)][:g])
        left[groups[-1]] = False
    found = np.array(groups)
    return _reseat(a, found)


def _reseat(a: Array, groups: Array) -> Array:
    g = groups.shape[1]
    for _ in range(ROUNDS):
        home = np.empty(len(a), np.int64)
        home[groups.ravel()] = np.repeat(np.arange(len(groups)), g)
        pull = a[:, groups.ravel()].reshape(len(a), -1, g).sum(axis=2)
        own = np.zeros_like(pull, dtype=bool)
        own[np.arange(len(a)), home] = True
        pull = np.where(own, pull / max(g - 1, 1), pull / g)  # a row is no mate of its own
        rows, seat = assign(np.repeat(pull, g, axis=1))
        moved = np.empty(len(a), np.int64)
        moved[rows] = seat // g
        if _inside(a, moved) <= _inside(a, home) + 1e-12:
            break
        groups = np.argsort(moved, kind="stable").reshape(-1, g)
    return groups


def _inside(a: Array, home: Array) -> float:
    return float(a[home[:, None] == home[None]].sum())
