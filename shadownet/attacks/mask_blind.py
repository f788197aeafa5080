"""A4: strip mask filters with no public model and no query.

    C = cos(X, X);  t = 5 / sqrt(d), at least 0.2 and at most 0.9
    mask(a) iff some C[a, b] < -t and no C[a, b] > t         every other row: f = the mask with the lowest cosine
    s = 1: w = x + f                                         s unknown: s = -|f|^2 / <x, f>, w = s x + f

Source: the collinearity of ShadowNet's released transform (rows (w - f) / s beside their f, in the clear). Made
stronger here: the thresholded guess is the start of a facility location with the known number of masks, in a metric
fitted to the filters, and s comes from a regression that knows what trained weights look like (:mod:`hubs`).
The sign-free form, |C| in place of -C, serves masks that were added, and scalars of both signs.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from shadownet.attacks import hubs
from shadownet.attacks.recovery import Recovery, cosines, norms
from shadownet.attacks.view import AdversaryView, PublicLayer

Array = np.ndarray[Any, Any]

ROUNDS = 3
LARGEST_FACTOR = 16.0  # scalars are U(1/16, 1) in the published variant


@dataclass(frozen=True, eq=False)
class Stripped:
    """One group: filters x = b f + w / s read off as ``rows`` [n, d], slots of filters and of their masks, fit."""

    rows: Array
    pairs: Array
    affinity: float
    form: str


def attack(view: AdversaryView, layer: PublicLayer) -> Recovery | None:
    """None for layers without room for masks. See the module for the method."""
    if layer.depthwise or layer.slots <= layer.per_group:
        return None
    found = [strip(view, layer, rows) for rows in layer.rows]
    pairs = [group.pairs + g * layer.slots for g, group in enumerate(found)]
    return Recovery(
        rows=np.stack([group.rows for group in found]),
        pairs=np.concatenate(pairs),
        doubt=1.0 - float(np.mean([group.affinity for group in found])),
        form=found[0].form,
    )


def strip(view: AdversaryView, layer: PublicLayer, rows: Array) -> Stripped:
    """Strip one group's ``rows`` [M, d]: the form that explains them better wins, ShadowNet's own if they tie."""
    if layer.numbers != "float":  # scalars of both signs
        return form(view, layer, rows, False)
    own = form(view, layer, rows, True)
    if view.scheme.startswith("shadownet:"):
        return own
    general = form(view, layer, rows, False)
    return own if own.affinity > 0.98 * general.affinity else general


def form(view: AdversaryView, layer: PublicLayer, rows: Array, signed: bool) -> Stripped:
    """Alternate between finding the masks and learning the metric from what was found."""
    masks = layer.slots - layer.per_group
    seen, chosen = rows, np.zeros(len(rows), bool)
    candidates = []
    for round_ in range(ROUNDS):
        for metric in (seen, rows)[: 2 if round_ == 0 else 1]:
            c = cosines(metric, metric)
            start = hubs.hubs_by_threshold(c, hubs.threshold(layer.depth)) if signed and not chosen.any() else chosen
            found = hubs.hubs_by_cover(-c if signed else np.abs(c), masks, start)
            real, mask, affinity = hubs.nearest(metric, found, signed)
            real, mask = _smaller_is_mask(rows, real, mask)
            candidates.append((float(affinity.mean()), real, mask))
        _, real, mask = max(candidates, key=lambda item: item[0])
        chosen = np.zeros(len(rows), bool)
        plain = hubs.plain_slopes(rows[real], rows[mask])
        plain = np.where(np.abs(plain) < 1e-6, 1.0, plain)
        seen = hubs.whiten(rows, rows[mask] - rows[real] / plain[:, None], layer.geometry)
    fit, real, mask = max(candidates, key=lambda item: item[0])
    filters, name = factor(view, layer, rows[real], rows[mask])
    if signed and name == "unit":
        name = "shadownet, s = 1"
    elif signed:
        name = "shadownet, s unknown"
    return Stripped(filters, np.stack([real, mask], axis=1), fit, name)


def factor(view: AdversaryView, layer: PublicLayer, x: Array, f: Array) -> tuple[Array, str]:
    """Filters [n, d] behind rows x with masks f, w = f - x / b for the slope b = -1 / s: (filters, form)."""
    b = hubs.plain_slopes(x, f)
    if not _told_unit(view, layer):
        b, _ = hubs.slopes(x, f, layer.geometry)
    if _unit_scalars(view, layer, x, f, b):
        b, name = np.where(b < 0, -1.0, 1.0), "unit"
    else:
        magnitude = np.abs(b)
        if view.scheme.startswith("shadownet"):
            magnitude = np.clip(magnitude, 1.0, LARGEST_FACTOR)
        b, name = np.where(b < 0, -1.0, 1.0) * np.maximum(magnitude, 1e-6), "sign-free"
    filters = f - x / b[:, None]
    if not view.scheme.startswith("shadownet"):  # masks added rather than subtracted: the other sign, if s > 0
        filters = np.where(b[:, None] > 0, -filters, filters)
    return filters, name


def _told_unit(view: AdversaryView, layer: PublicLayer) -> bool:
    return layer.numbers != "float" or view.scheme == "shadownet:artifact"


def _unit_scalars(view: AdversaryView, layer: PublicLayer, x: Array, f: Array, b: Array) -> bool:
    """Whether all scalars are +1 or -1: told by the scheme's name, or seen in slopes that are all near 1."""
    if _told_unit(view, layer):
        return True
    if view.scheme == "shadownet:paper" or not len(b):
        return False
    noise = norms(f - x / b[:, None])[:, 0] / norms(f)[:, 0] / np.sqrt(layer.depth)
    return bool(np.median(np.abs(np.abs(b) - 1.0)) < min(max(3.0 * float(np.median(noise)), 1e-3), 0.3))


def _smaller_is_mask(rows: Array, real: Array, mask: Array) -> tuple[Array, Array]:
    """In a cluster of two nothing but the norm tells the filter from its mask: (w - f) / s is the longer one."""
    hub, count = np.unique(mask, return_counts=True)
    lonely = np.isin(mask, hub[count == 1])
    swap = lonely & (norms(rows[real])[:, 0] < norms(rows[mask])[:, 0])
    return np.where(swap, mask, real), np.where(swap, real, mask)
