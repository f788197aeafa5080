"""A17: two different obfuscations of one model give away what they share, with no prior.

    row space of W is in both public row spaces: B = their intersection (principal cosines of 1)
    off B a row (w - f) / s is exactly -f / s: collinear with its mask, however small the mask, and s is a ratio
    where the rows span everything there is no B; then A4 on both halves, filters matched by |cos|, and
    s x + f = s' x' + f' is d equations for two unknowns

Source: intersection of column spaces as in arXiv 2609.10117; the second form is elementary.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from shadownet.attacks import mask_blind
from shadownet.attacks.recovery import TINY, Recovery, assign, cosines, norms, row_space
from shadownet.attacks.view import AdversaryView, PublicLayer

Array = np.ndarray[Any, Any]

SHARED = 1e-4  # a principal angle below this is none; float32 rounding stays far below
CERTAIN = 1e-3  # residual of two descriptions of one filter, relative, that proves the match


def attack(view: AdversaryView, layer: PublicLayer) -> Recovery | None:
    """None without another bundle of the same model (``view.other``), for depthwise layers and for lone halves."""
    other = view.other
    if other is None:
        return None
    twin = next((o for o in other.layers if (o.op_id, o.kind, o.depth) == (layer.op_id, layer.kind, layer.depth)), None)
    if twin is None or layer.depthwise or twin.groups != layer.groups or np.array_equal(twin.rows, layer.rows):
        return None
    spaces = [intersect(a, b) for a, b in zip(layer.rows, twin.rows, strict=True)]
    known = all(len(space) == layer.per_group < layer.depth for space in spaces)
    if layer.slots <= layer.per_group:
        if not known:
            return None
        prior = view.prior(layer)
        basis = np.stack(spaces)
        if prior is None:
            return Recovery(basis, scaled=False, form="basis", subspace=basis)
        inside = prior @ np.swapaxes(basis, 1, 2) @ basis
        return Recovery(inside, ordered=True, form="basis", subspace=basis)
    rows, pairs = [], []
    for g in range(layer.groups):
        if known:
            found, pair = split(layer.rows[g], spaces[g], layer.slots - layer.per_group)
        else:
            found, pair = agree(view, layer, other, twin, g)
        rows.append(found)
        pairs.append(pair + g * layer.slots)
    space = np.stack(spaces) if known else None
    form = "intersection" if known else "two descriptions"
    return Recovery(np.stack(rows), np.concatenate(pairs), form=form, subspace=space)


def intersect(a: Array, b: Array) -> Array:
    """An orthonormal basis [r, d] of what the row spaces of a [p, d] and b [q, d] share."""
    qa, qb = row_space(a), row_space(b)
    # Sines, not cosines: rounding would hide an angle of 1e-5 in a cosine.
    u, cosine, vt = np.linalg.svd(qa @ qb.T)
    count = min(len(qa), len(qb))
    left, right = u[:, :count].T @ qa, vt[:count] @ qb
    sine = norms(left - right * np.sign(cosine[:count, None] + TINY))[:, 0]
    return left[sine < SHARED]


def split(x: Array, space: Array, masks: int) -> tuple[Array, Array]:
    """Pair rows x [M, d] by what they are off ``space``: (filters [n, d], pairs [n, 2])."""
    off = x - x @ space.T @ space
    size = norms(off)[:, 0]
    cosine = cosines(off, off)
    alike = np.abs(cosine) > 1.0 - 1e-3
    # In each bundle of parallel rows the mask points against the others; in a pair it is the shorter one.
    against = (alike & (cosine < 0)).sum(axis=1)
    with_ = (alike & (cosine > 0)).sum(axis=1) - 1
    lead = against - with_ - 1e-3 * size / max(float(size.max()), TINY)
    chosen: list[int] = []
    for k in np.argsort(-lead):
        if not alike[k, chosen].any():
            chosen.append(int(k))
        if len(chosen) == masks:
            break
    hubs = np.array(chosen)
    real = np.setdiff1d(np.arange(len(x)), hubs)
    best = hubs[np.abs(cosine[np.ix_(real, hubs)]).argmax(axis=1)]
    slope = (off[real] * off[best]).sum(axis=1) / np.maximum(np.square(off[best]).sum(axis=1), TINY)
    slope = np.where(np.abs(slope) < 1e-9, 1.0, slope)
    return x[best] - x[real] / slope[:, None], np.stack([real, best], axis=1)


def agree(
    view: AdversaryView, layer: PublicLayer, other: AdversaryView, twin: PublicLayer, g: int
) -> tuple[Array, Array]:
    """A4 on both halves, then scalars from the equality of matched filters: (filters [n, d], pairs [n, 2])."""
    one = mask_blind.strip(view, layer, layer.rows[g])
    two = mask_blind.strip(other, twin, twin.rows[g])
    a, b = assign(np.abs(cosines(one.rows, two.rows)))
    x, f = (layer.rows[g][one.pairs[a, k]] for k in (0, 1))
    y, h = (twin.rows[g][two.pairs[b, k]] for k in (0, 1))
    filters = one.rows.copy()
    xx, yy, xy = (x * x).sum(1), (y * y).sum(1), (x * y).sum(1)
    rx, ry = (x * (h - f)).sum(1), -(y * (h - f)).sum(1)
    det = np.maximum(xx * yy - xy * xy, TINY)
    s, t = (rx * yy + ry * xy) / det, (ry * xx + rx * xy) / det
    left = norms(s[:, None] * x + f - t[:, None] * y - h)[:, 0] / norms(f)[:, 0]
    sure = left < CERTAIN
    filters[a[sure]] = (s[:, None] * x + f)[sure]
    return filters, one.pairs
