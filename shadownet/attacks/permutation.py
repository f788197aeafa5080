"""A2: undo a permutation and scalars with a public model (ArrowMatch, Wang et al., USENIX Security 2025).

    C = |cos(W~, W0)|;  (r, c) = the matching that maximises C;  W^[c] = W~[r] <W~[r], W0[c]> / <W~[r], W~[r]>

Three kinds of units are tried: rows, input channels (a permutation on the input side moves columns), and for
depthwise layers whole channels. The published attack takes the argmax, here the matching is one to one,
and where no scalars explain as much as scalars, there are none.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from shadownet.attacks.recovery import TINY, Recovery, assign, cosines, factors
from shadownet.attacks.view import AdversaryView, PublicLayer

Array = np.ndarray[Any, Any]

UNSCALED = 1.3  # no scalars fit as well as scalars do, if they leave at most this much more: they have no parameters
SURER = 0.5  # columns are short and many, so chance matches them well: they must fit twice as well as rows


def attack(view: AdversaryView, layer: PublicLayer) -> Recovery | None:
    """None without a public model. ``doubt`` is 1 minus the mean matched cosine."""
    prior = view.prior(layer)
    if prior is None:
        return None
    if layer.depthwise:
        return match_channels(layer.rows, prior)
    found = [match_rows(rows, base) for rows, base in zip(layer.rows, prior, strict=True)]
    rows = _joined(found, "rows")
    k = layer.geometry.kernel[0] * layer.geometry.kernel[1]
    if layer.slots != layer.per_group or layer.groups > 1 or layer.depth == k:
        return rows
    columns = match_columns(layer.rows[0], prior[0], k)
    return columns if columns.doubt < SURER * rows.doubt else rows


def match_rows(rows: Array, base: Array) -> Recovery:
    """One group: rows [M, d], M >= n, against base [n, d]. ``rows`` of the result is [1, n, d]."""
    cosine = np.abs(cosines(rows, base))
    r, c = assign(cosine)
    out = base.copy()
    out[c] = rows[r] * factors(rows[r], base[c])
    plain = match_plain(rows, base)
    if np.square(plain - base).sum() < UNSCALED * np.square(out - base).sum():
        out = plain
    return Recovery(out[None], ordered=True, doubt=1.0 - float(cosine[r, c].mean()), form="rows")


def match_plain(units: Array, base: Array) -> Array:
    """Units [p, ...] that were permuted and nothing else, in the order of base [q, ...]: matched by distance."""
    x, w = units.reshape(len(units), -1), base.reshape(len(base), -1)
    r, c = assign(2.0 * x @ w.T - np.square(x).sum(axis=1)[:, None])
    out = base.copy()
    out[c] = units[r]
    return out


def match_columns(rows: Array, base: Array, k: int) -> Recovery:
    """Input channels are the units: rows and base are [n, k * channels]. Permuted and scaled columns come back."""
    n = len(rows)
    mine, theirs = (a.reshape(n * k, -1).T for a in (rows, base))
    recovered = match_rows(mine, theirs)
    out = recovered.rows[0].T.reshape(1, n, -1)
    return Recovery(out, ordered=True, doubt=recovered.doubt, form="columns")


def match_channels(rows: Array, base: Array) -> Recovery:
    """Depthwise: channels [c, multiplier, k * k] are permuted, each filter has a scalar of its own."""
    cosine = np.abs(np.einsum("amd,bmd->abm", _unit(rows), _unit(base)))
    r, c = assign(cosine.mean(axis=2))
    out = base.copy()
    out[c] = rows[r] * factors(rows[r], base[c])
    plain = match_plain(rows, base)
    if np.square(plain - base).sum() < UNSCALED * np.square(out - base).sum():
        out = plain
    return Recovery(out, ordered=True, doubt=1.0 - float(cosine[r, c].mean()), form="channels")


def _unit(rows: Array) -> Array:
    out: Array = rows / np.maximum(np.sqrt(np.square(rows).sum(axis=-1, keepdims=True)), TINY)
    return out


def _joined(found: list[Recovery], form: str) -> Recovery:
    rows = np.concatenate([one.rows for one in found])
    return Recovery(rows, ordered=True, doubt=float(np.mean([one.doubt for one in found])), form=form)
