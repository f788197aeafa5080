"""A3: strip mask filters with a public model of the same architecture.

    G = X X^T, H = X W0^T;  for filter p of the public model, row a and mask b, if w = s a + b:
    s = <a, p - b> / |a|^2,   residual = |p - b|^2 - <a, p - b>^2 / |a|^2          (s = 1: |p - a - b|^2)
    the least residual over b, then the matching of rows a to filters p with the least sum

All from G and H, so no row is ever added up. Rows that win as b name the mask set; so does A4; with that set fixed the
search is done again, and the set that explains the public model better wins. s is the mean of what the prior and A4's
regression say, weighed by their variances. Source: the full ShadowNet transform against a public relative; no published
attack has the masks unknown.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from shadownet.attacks import hubs, mask_blind
from shadownet.attacks.recovery import TINY, Recovery, assign
from shadownet.attacks.view import AdversaryView, PublicLayer

Array = np.ndarray[Any, Any]

EXHAUSTIVE = 2e8  # combinations of row, mask and filter up to which all are tried
NEAREST = 24  # else for each row the masks that it correlates with most
OPTIMISM = 2.0  # by how much the variance that A4's regression claims for itself is enlarged


def attack(view: AdversaryView, layer: PublicLayer) -> Recovery | None:
    """None without a public model or without room for masks. Rows come in the public model's order."""
    prior = view.prior(layer)
    if prior is None or layer.depthwise or layer.slots <= layer.per_group:
        return None
    rows, pairs, doubts, names = [], [], [], []
    for g in range(layer.groups):
        found, pair, doubt, name = strip(view, layer, layer.rows[g], prior[g])
        rows.append(found)
        pairs.append(pair + g * layer.slots)
        doubts.append(doubt)
        names.append(name)
    return Recovery(np.stack(rows), np.concatenate(pairs), ordered=True, doubt=float(np.mean(doubts)), form=names[0])


def strip(view: AdversaryView, layer: PublicLayer, x: Array, base: Array) -> tuple[Array, Array, float, str]:
    """One group: (filters [n, d] in the order of ``base``, pairs [n, 2], share of the prior unexplained, form)."""
    count = layer.slots - layer.per_group
    masks = [hubs_of(mask_blind.strip(view, layer, x).pairs, len(x), count)]
    if float(len(x)) ** 2 * len(base) <= EXHAUSTIVE:
        everyone = np.arange(len(x))
        for sign in (1.0, -1.0):
            masks.append(_vote(_search(view, layer, x, base, everyone, sign), len(x), count))
    trials = [(_search(view, layer, x, base, m, sign), sign) for m in masks for sign in (1.0, -1.0)]
    (residual, a, b), sign = min(trials, key=lambda trial: float(trial[0][0].sum()))
    f = sign * x[b]
    filters, name = _factor(view, layer, x[a], f, base, residual)
    doubt = float(residual.sum()) / max(float(np.square(base).sum()), TINY)
    return filters, np.stack([a, b], axis=1), doubt, name if sign > 0 else name + ", masks added"


def hubs_of(pairs: Array, rows: int, count: int) -> Array:
    """The mask set that A4's pairs imply: whoever is no filter."""
    rest = np.setdiff1d(np.arange(rows), pairs[:, 0])
    assert len(rest) == count
    return rest


def _search(
    view: AdversaryView, layer: PublicLayer, x: Array, base: Array, masks: Array, sign: float
) -> tuple[Array, Array, Array]:
    """(residual, row a, mask b) for each filter of the base, masks b out of ``masks``; ``sign`` is that of b in w."""
    gram, cross = x @ x.T, x @ base.T
    power = np.maximum(np.diag(gram), TINY)
    size = np.square(base).sum(axis=1)
    some = len(masks) < len(x)
    rows = np.setdiff1d(np.arange(len(x)), masks) if some else np.arange(len(x))
    near = np.abs(gram[np.ix_(rows, masks)]) / np.sqrt(power[rows][:, None] * power[masks])
    if not some:
        near[np.arange(len(x)), np.arange(len(x))] = -1.0
    keep = len(masks) - (not some)
    if float(keep) * len(rows) * len(base) > EXHAUSTIVE:
        keep = min(keep, NEAREST)
    order = masks[np.argsort(-near, axis=1)[:, :keep]]
    unit = layer.numbers == "float" and view.scheme == "shadownet:artifact"
    best, choice = np.full((len(rows), len(base)), np.inf), np.zeros((len(rows), len(base)), np.int64)
    for b in order.T:
        apart = size[None] - 2.0 * sign * cross[b] + power[b][:, None]
        pull = cross[rows] - sign * gram[rows, b][:, None]
        if unit:
            left = apart - 2.0 * pull + power[rows][:, None]
        else:
            left = apart - np.square(pull if layer.numbers != "float" else np.maximum(pull, 0.0)) / power[rows][:, None]
        better = left < best
        best = np.where(better, left, best)
        choice = np.where(better, b[:, None], choice)
    a, p = assign(-best / np.maximum(size, TINY))
    index = np.argsort(p)
    a, p = a[index], p[index]
    return np.maximum(best[a, p], 0.0), rows[a], choice[a, p]


def _vote(found: tuple[Array, Array, Array], rows: int, count: int) -> Array:
    """The ``count`` rows that serve as masks most often; among equals those that are nobody's filter."""
    residual, a, b = found
    votes: Array = np.bincount(b, weights=1.0 / (residual + np.median(residual) + TINY), minlength=rows)
    votes = votes / max(float(votes.max()), TINY)
    votes[a] -= 0.05
    return np.sort(np.argsort(-votes)[:count])


def _factor(
    view: AdversaryView, layer: PublicLayer, x: Array, f: Array, base: Array, residual: Array
) -> tuple[Array, str]:
    """Filters s x + f, the scalars known, or the mean of two estimates weighed by variance."""
    power = np.maximum(np.square(x).sum(axis=1), TINY)
    s = (x * (base - f)).sum(axis=1) / power
    if layer.numbers != "float":
        return np.where(s < 0, -1.0, 1.0)[:, None] * x + f, "s = +1 or -1"
    deviation = np.sqrt(residual / layer.depth / power)
    if view.scheme == "shadownet:artifact" or np.median(np.abs(s - 1.0) / np.maximum(deviation, 1e-6)) < 2.0:
        return x + f, "s = 1"
    slope, error = hubs.slopes(x, f, layer.geometry)
    blind = -1.0 / np.minimum(slope, -1e-6)
    spread = OPTIMISM * np.square(error * np.square(blind)) + TINY
    variance = np.square(deviation)
    agree = np.square(s - blind) < 16.0 * (variance + spread)
    mean = np.where(agree, (s * spread + blind * variance) / np.maximum(spread + variance, TINY), s)
    return mean[:, None] * x + f, "s unknown"
