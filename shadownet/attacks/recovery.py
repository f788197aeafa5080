"""What an attack on weights hands back, and the little linear algebra that all of them share."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.optimize import linear_sum_assignment

Array = np.ndarray[Any, Any]

TINY = 1e-300


@dataclass(frozen=True, eq=False)
class Recovery:
    """One layer as an attack believes it to be.

    ``rows`` are float64 [groups, n, d], in any order unless ``ordered`` says that they stand as in the public model.
    ``pairs``, int64 [k, 2], are claimed (filter slot, mask slot), counted over all groups; None where the attack makes
    no such claim. ``scaled`` is False where rows are known up to a factor, ``channels`` False where input channels
    stand in the order in which they are sent, which may be secret. ``doubt`` is the attack's own criterion, lower is
    better, comparable between variants of one attack only; ``form`` says which variant won. ``subspace`` [groups, r, d]
    has orthonormal rows that should span the layer's filters, if the attack found such a space.
    """

    rows: Array
    pairs: Array | None = None
    ordered: bool = False
    scaled: bool = True
    channels: bool = True
    doubt: float = 0.0
    form: str = ""
    subspace: Array | None = None


def norms(rows: Array) -> Array:
    """Euclidean norms along the last axis, kept as an axis, never 0."""
    size: Array = np.sqrt(np.einsum("...d,...d->...", rows, rows))[..., None]
    return np.maximum(size, TINY)


def unit(rows: Array) -> Array:
    """Rows of norm 1; rows of zeros stay."""
    out: Array = rows / norms(rows)
    return out


def cosines(a: Array, b: Array) -> Array:
    """[..., p, d] and [..., q, d] -> [..., p, q]."""
    out: Array = unit(a) @ np.swapaxes(unit(b), -1, -2)
    return out


def assign(score: Array) -> tuple[Array, Array]:
    """The matching of rows to columns with the largest sum of ``score`` (Hungarian method): (rows, columns)."""
    rows, columns = linear_sum_assignment(np.nan_to_num(score, nan=-1e30), maximize=True)
    return rows, columns


def factors(rows: Array, base: Array) -> Array:
    """s [..., 1] for which s * rows comes closest to ``base``; all 1 if they are that within chance."""
    power = np.maximum(np.square(rows).sum(axis=-1, keepdims=True), TINY)
    s: Array = (rows * base).sum(axis=-1, keepdims=True) / power
    left = np.square(s * rows - base).sum(axis=-1, keepdims=True) / max(rows.shape[-1] - 1, 1)
    unusual = np.abs(s - 1.0) / np.sqrt(np.maximum(left / power, 1e-24))
    # The median of |z| is 0.67, and of so many draws at most this:
    return np.ones_like(s) if np.median(unusual) < 0.67 + 3.0 / np.sqrt(s.size) else s


def row_space(rows: Array, tolerance: float = 1e-5) -> Array:
    """An orthonormal basis [r, d] of the space that ``rows`` [n, d] span; smaller directions count as rounding."""
    _, size, basis = np.linalg.svd(rows, full_matrices=False)
    out: Array = basis[size > tolerance * max(float(size.max(initial=0)), TINY)]
    return out
