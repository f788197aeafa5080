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
CLIP = 20.0  # times a row's median share of a filter, which is that of strangers


def attack(view: AdversaryView, layer: PublicLayer) -> Recovery | None:
    """None without a public model, or where rows are depthwise. ``group`` may be told by the scheme; rows that were
    added are mask filters, as many in each group."""
    prior = view.prior(layer)
    if prior is None or layer.depthwise or layer.groups > 1 or prior.shape[1:] != (layer.per_group, layer.depth):
        return None
    candidates = group_sizes(view, layer)
    if not candidates:
        return None
    base, k = prior[0], layer.geometry.kernel[0] * layer.geometry.kernel[1]
    trials = []
    for rows, name in channel_orders(layer.rows[0], base, k):
        for sizes in candidates:
            filters, explained = project(rows, base, sizes)
            # g of d dimensions explain g / d of anything: larger groups must earn it.
            trials.append((explained - sizes[0] / layer.depth, filters, f"groups of {sizes[0]}{name}"))
    best = max(trials, key=lambda trial: trial[0])
    return Recovery(best[1][None], ordered=True, doubt=1.0 - best[0], form=best[2])


def group_sizes(view: AdversaryView, layer: PublicLayer) -> list[list[int]]:
    """How many public rows each of a layer's groups may have, the largest first: the scheme's own, or usual ones.

    Filters are dealt evenly: sizes differ by at most one.
    """
    n, told = layer.per_group, view.parameters.get("group")
    found = []
    for g in (int(told),) if told is not None else SIZES:
        count = -(-n // g)
        extra, left = divmod(layer.slots - n, count)
        if not left and (told is not None or not extra):
            found.append([n // count + (k < n % count) + extra for k in range(count)])
    return found


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


def project(rows: Array, base: Array, sizes: list[int]) -> tuple[Array, float]:
    """(filters [n, d] in the base's order, share of the base's energy explained) under groups of ``sizes`` rows."""
    trials = [balanced_groups(np.abs(cosines(rows, rows)), sizes)]
    if len(rows) <= rows.shape[1]:
        # Which public filters a row is made of: rows of one group are made of the same.
        coefficients, *_ = np.linalg.lstsq(base.T, rows.T, rcond=None)
        share = np.square(unit(coefficients.T))
        # Clipped, a coefficient counts for being there: a row near one filter of its group belongs to the others too.
        clipped = np.minimum(share, CLIP * np.median(share, axis=1, keepdims=True))
        trials += [balanced_groups(cosines(part, part), sizes) for part in (share, clipped)]
    return max((_project(rows, base, groups) for groups in trials), key=lambda result: result[1])


def _project(rows: Array, base: Array, groups: list[Array]) -> tuple[Array, float]:
    spaces = [np.linalg.svd(rows[group], full_matrices=False)[2] for group in groups]
    inside = [base @ space.T for space in spaces]
    energy = np.stack([np.square(part).sum(axis=1) for part in inside], axis=1)
    energy /= np.maximum(np.square(base).sum(axis=1, keepdims=True), TINY)
    masks = (len(rows) - len(base)) // len(groups)  # in each group; the other rows are as many seats for filters
    seats = np.repeat(np.arange(len(groups)), [len(group) - masks for group in groups])
    p, seat = assign(energy[:, seats])
    filters = base.copy()
    for i, g in zip(p, seats[seat], strict=True):
        filters[i] = inside[g][i] @ spaces[g]
    explained = float(np.square(filters).sum() / max(float(np.square(base).sum()), TINY))
    return filters, explained


def balanced_groups(affinity: Array, sizes: list[int]) -> list[Array]:
    """Partition n rows into groups of ``sizes`` with high affinity inside: int64 arrays of indices.

    Greedy, the surest group first; then rows are matched to the seats of groups again until nothing moves.
    """
    a = affinity.copy()
    np.fill_diagonal(a, 0.0)
    left = np.ones(len(a), bool)
    groups = []
    for g in sizes:
        free = np.flatnonzero(left)
        part = a[np.ix_(free, free)]
        mates = np.argsort(-part, axis=1)[:, : g - 1]
        seed = int(np.take_along_axis(part, mates, axis=1).sum(axis=1).argmax())
        others = mates[seed][mates[seed] != seed]  # itself only where all affinities are 0
        groups.append(free[np.append(others, seed)] if len(others) == g - 1 else free[:g])
        left[groups[-1]] = False
    return _reseat(a, groups)


def _reseat(a: Array, groups: list[Array]) -> list[Array]:
    sizes = np.array([len(group) for group in groups])
    seats = np.repeat(np.arange(len(groups)), sizes)
    home = np.empty(len(a), np.int64)
    home[np.concatenate(groups)] = seats
    for _ in range(ROUNDS):
        member = np.eye(len(groups))[home]
        # A row is no mate of its own.
        pull = a @ member / np.maximum(sizes - member, 1)
        rows, seat = assign(pull[:, seats])
        moved = np.empty(len(a), np.int64)
        moved[rows] = seats[seat]
        if _inside(a, moved) <= _inside(a, home) + 1e-12:
            break
        home = moved
    return [np.flatnonzero(home == g) for g in range(len(groups))]


def _inside(a: Array, home: Array) -> float:
    return float(a[home[:, None] == home[None]].sum())
