"""A19: unmix small groups of rows without a prior, by independent component analysis.

    X_G = K W_G, g rows of d values: trained filters are heavy-tailed and nearly independent, mixtures are closer to
    Gaussian; whiten X_G, then w <- E[z h(w^T z)] - E[h'(w^T z)] w, all g at once, orthogonal

Recovers filters up to order and factors inside each group, with input channels as they are sent. Groups are told
(``groups``), or found by |cos|. Groups of one size run as one batch, from several starts and with two contrasts; the
largest negentropy wins. Source: FastICA (Hyvarinen, IEEE Trans. Neural Networks 1999), symmetric form.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from shadownet.attacks.group import balanced_groups, group_sizes
from shadownet.attacks.recovery import TINY, Recovery, cosines
from shadownet.attacks.view import AdversaryView, PublicLayer

Array = np.ndarray[Any, Any]

STARTS, STEPS = 6, 60
GAUSSIAN_LOG_COSH = 0.374567  # E[log cosh(z)] of a standard normal z


def attack(view: AdversaryView, layer: PublicLayer, groups: Sequence[Array] | None = None) -> Recovery | None:
    """None for depthwise layers, or where no group size is told. ``groups`` are arrays of rows' indices.

    Of rows that were added, mask filters, as many of each group are left out: the most Gaussian.
    """
    if layer.depthwise or (groups is None and not view.parameters.get("group")):
        return None
    sizes = group_sizes(view, layer)[:1] if groups is None else [[len(group) for group in groups]]
    if not sizes or max(sizes[0]) >= layer.depth:
        return None
    masks = (layer.slots - layer.per_group) // len(sizes[0])
    rows, doubts = [], []
    for x in layer.rows:
        found = balanced_groups(np.abs(cosines(x, x)), sizes[0]) if groups is None else groups
        parts, gains = [], []
        for size in sorted(set(sizes[0])):  # groups of one size are a batch
            sources, gain = unmix(x[np.stack([group for group in found if len(group) == size])])
            parts += [group[least_gaussian(group, size - masks)] for group in sources]
            gains += gain.tolist()
        rows.append(np.concatenate(parts))
        doubts.append(-float(np.mean(gains)))
    return Recovery(
        np.stack(rows), scaled=False, channels=False, doubt=float(np.mean(doubts)), form="independent components"
    )


def least_gaussian(sources: Array, count: int) -> Array:
    """Indices of the ``count`` rows of ``sources`` [g, d], of unit variance, that are furthest from Gaussian."""
    bent = np.square(np.log(np.cosh(np.clip(sources, -30, 30))).mean(axis=1) - GAUSSIAN_LOG_COSH)
    return np.argsort(-bent)[:count]


def unmix(mixed: Array, seed: int = 0) -> tuple[Array, Array]:
    """Groups of mixed rows [G, g, d] -> (sources [G, g, d] of unit variance, negentropy proxy [G])."""
    rng = np.random.default_rng(seed)
    count, g, d = mixed.shape
    mean = mixed.mean(axis=2, keepdims=True)
    values, vectors = np.linalg.eigh(np.einsum("Gid,Gjd->Gij", mixed - mean, mixed - mean) / d)
    whitening = np.swapaxes(vectors, 1, 2) / np.sqrt(np.maximum(values, 1e-12 * values[:, -1:] + TINY))[..., None]
    z = whitening @ (mixed - mean)
    best, gain = np.zeros((count, g, g)), np.full(count, -np.inf)
    for start in range(STARTS):
        turn = _orthogonal(rng.normal(size=(count, g, g)))
        for _ in range(STEPS):
            turn = _orthogonal(_step(turn, z, sharp=start % 2 == 1))
        found = np.square(np.log(np.cosh(np.clip(turn @ z, -30, 30))).mean(axis=2) - GAUSSIAN_LOG_COSH).sum(axis=1)
        better = found > gain
        best[better], gain[better] = turn[better], found[better]
    return best @ whitening @ mixed, gain


def _step(turn: Array, z: Array, sharp: bool) -> Array:
    """One fixed-point step with h = tanh, or for heavier tails h = y exp(-y^2 / 2)."""
    y = turn @ z
    if sharp:
        bell = np.exp(-0.5 * np.square(y))
        h, slope = y * bell, (1.0 - np.square(y)) * bell
    else:
        h = np.tanh(y)
        slope = 1.0 - np.square(h)
    out: Array = h @ np.swapaxes(z, 1, 2) / z.shape[2] - slope.mean(axis=2)[..., None] * turn
    return out


def _orthogonal(matrix: Array) -> Array:
    """The nearest orthogonal matrices."""
    u, _, vt = np.linalg.svd(matrix)
    return u @ vt
