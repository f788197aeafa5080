"""How much of a layer an attack really got: its rows against the truth, always beside controls.

Order is free: recovered rows are matched to true filters one to one. Weights up to a factor per filter count separately
(``direction``), since a batch normalisation that is refitted takes such factors up.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from shadownet.attacks.recovery import TINY, Recovery, assign, norms, unit
from shadownet.attacks.truth import TrueLayer

Array = np.ndarray[Any, Any]

STREAM = 0x5C02E  # of the controls, so that no victim drawn from the same seed is its own control
CLOSE = 0.05  # a filter counts as recovered below this relative error


@dataclass(frozen=True)
class RowScore:
    """Rows against truth. ``error`` is |w^ - w| / |w|, ``direction`` the sine of the angle between the two lines.

    ``recovered`` and ``aligned`` are the shares of filters where these stay below 5 %; errors are medians over filters,
    unclaimed filters counting as 1. ``in_order`` is the share of filters matched to a row at their own index.
    """

    recovered: float
    error: float
    aligned: float
    direction: float
    in_order: float


@dataclass(frozen=True)
class LayerScore:
    """One layer under one attack. ``deciles`` are those of the relative error over filters, 11 values from 0 to 100 %.

    ``pairs``: share of filters whose (filter, mask) slots were named; None where no such claim or truth exists.
    ``adp`` is <W^ - W, W0 - W> / |W0 - W|^2: 0 for the truth, 1 for the public model; None without a public model.
    ``subspace``: share of the filters' energy inside the space that the attack found. ``null`` scores random rows of
    the same norms, ``base`` the public model itself, ``null_pairs`` as many pairs of slots drawn at random.
    """

    layer: str
    filters: int
    depth: int
    form: str
    rows: RowScore
    deciles: tuple[float, ...]
    pairs: float | None
    adp: float | None
    subspace: float | None
    null: RowScore
    null_pairs: float | None
    base: RowScore | None

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def score_layer(recovery: Recovery, truth: TrueLayer, base: Array | None = None, seed: int = 0) -> LayerScore:
    """Score one layer. ``base`` [groups, n, d] is the public model's; ``seed`` draws the random controls.

    Rows that make no claim about the order of input channels are compared in the order in which these are sent. Raises
    ``AssertionError`` if what is scored is the victim itself: shared memory means the bench is broken.
    """
    assert not np.shares_memory(recovery.rows, truth.rows), "the object scored is the victim"
    rng = np.random.default_rng([seed, STREAM])
    rows = truth.rows if recovery.channels else truth.sent()
    true, claimed = _flat(rows, truth.depthwise), _flat(recovery.rows, truth.depthwise)
    errors, match = _matched(claimed, true)
    prior = None if base is None else _flat(base, truth.depthwise)
    noise = norms(true) * unit(np.asarray(rng.normal(size=true.shape)))
    slots = None if recovery.pairs is None else random_pairs(recovery.pairs, truth, rng)
    return LayerScore(
        layer=truth.name,
        filters=truth.rows.shape[0] * truth.rows.shape[1],
        depth=truth.rows.shape[2],
        form=recovery.form,
        rows=score_rows(claimed, true),
        deciles=tuple(round(float(q), 6) for q in np.quantile(errors, np.linspace(0, 1, 11))),
        pairs=pair_share(recovery.pairs, truth),
        adp=None if prior is None or not recovery.channels else _adp(claimed, true, prior, match),
        subspace=_inside(recovery.subspace, truth.rows),
        null=score_rows(noise, true),
        null_pairs=pair_share(slots, truth),
        base=None if prior is None else score_rows(prior, _flat(truth.rows, truth.depthwise)),
    )


def score_rows(claimed: Array, true: Array) -> RowScore:
    """Score rows [groups, p, d] against the truth [groups, n, d]; at most n rows of a group count."""
    errors, match = _matched(claimed, true)
    turned = _turned(claimed, true)
    return RowScore(
        recovered=float((errors < CLOSE).mean()),
        error=float(np.median(errors)),
        aligned=float((turned < CLOSE).mean()),
        direction=float(np.median(turned)),
        in_order=float((match == np.arange(true.shape[1])).mean()),
    )


def pair_share(pairs: Array | None, truth: TrueLayer) -> float | None:
    """Share of true (filter slot, mask slot) pairs among the claimed ones.

    Where both have the coefficient 1, y = Y[a] + Y[b] says nothing of who is who, and either order is right.
    """
    real = truth.pairs()
    if pairs is None or real is None or truth.restore is None:
        return None
    claimed = {(int(a), int(b)) for a, b in pairs}
    symmetric = (truth.restore.coefficient == 1.0).all(axis=0)
    hits = [
        (a, b) in claimed or (bool(s) and (b, a) in claimed) for (a, b), s in zip(real.tolist(), symmetric, strict=True)
    ]
    return float(np.mean(hits))


def random_pairs(pairs: Array, truth: TrueLayer, rng: np.random.Generator) -> Array:
    """As many pairs as claimed, of slots of one group drawn at random."""
    groups = truth.rows.shape[0]
    slots = int(truth.restore.slot.max()) + 1 if truth.restore is not None else int(pairs.max(initial=0)) + 1
    each = max(-(-slots // groups), 2)
    group = np.arange(len(pairs)) * groups // max(len(pairs), 1)
    return np.stack([rng.permuted(np.arange(each))[:2] for _ in pairs]).reshape(-1, 2) + each * group[:, None]


def _flat(rows: Array, depthwise: bool) -> Array:
    """Depthwise channels have no known order either: all filters form one group, [1, n, d]."""
    return rows.reshape(1, -1, rows.shape[-1]) if depthwise else rows


def _matched(claimed: Array, true: Array) -> tuple[Array, Array]:
    """(relative errors [groups, n], index of the claimed row of each filter or -1)."""
    errors, match = np.ones(true.shape[:2]), np.full(true.shape[:2], -1)
    for g, (mine, real) in enumerate(zip(claimed, true, strict=True)):
        size = np.square(norms(real))
        assert np.isfinite(mine).all(), "an attack claimed weights that are not finite"
        distance = size + np.square(norms(mine)).T - 2.0 * real @ mine.T
        relative = np.sqrt(np.maximum(distance, 0.0) / np.maximum(size, TINY))
        rows, columns = assign(-np.minimum(relative, 1.0))
        # The Gram form cancels: where rows agree, the difference is taken anew.
        exact = norms(real[rows] - mine[columns])[:, 0] / norms(real[rows])[:, 0]
        errors[g, rows], match[g, rows] = np.minimum(exact, 1.0), columns
    return errors, match


def _turned(claimed: Array, true: Array) -> Array:
    """Sines of angles between matched lines, [groups, n]."""
    sines = np.ones(true.shape[:2])
    for g, (mine, real) in enumerate(zip(claimed, true, strict=True)):
        mine, real = mine / norms(mine), real / norms(real)
        cosine = real @ mine.T
        rows, columns = assign(np.abs(cosine))
        sign = np.sign(cosine[rows, columns])[:, None]
        half = norms(real[rows] * sign - mine[columns])[:, 0] / 2.0
        sines[g, rows] = np.minimum(2.0 * half * np.sqrt(np.maximum(1.0 - half**2, 0.0)), 1.0)
    return sines


def _adp(claimed: Array, true: Array, prior: Array, match: Array) -> float:
    """Over the filters of the whole layer; unclaimed ones stand as in the public model."""
    ordered = prior.copy()
    for g in range(len(true)):
        found = match[g] >= 0
        ordered[g, found] = claimed[g, match[g, found]]
    away = prior - true
    return float(((ordered - true) * away).sum() / max(float(np.square(away).sum()), TINY))


def _inside(subspace: Array | None, true: Array) -> float | None:
    if subspace is None:
        return None
    return float(np.square(true @ np.swapaxes(subspace, -1, -2)).sum() / max(float(np.square(true).sum()), TINY))
