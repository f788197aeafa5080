"""Fitting non-negative parameters by relative least squares."""

from __future__ import annotations

from itertools import combinations
from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]


def fit(counts: Array, measured: Array) -> Array:
    """Non-negative costs [k] that minimise the relative errors of ``counts`` [n, k] @ costs against ``measured`` [n].

    All subsets of columns are tried, so k is at most 8. Relative, because a network of 1 ms counts as much as one of
    100 ms. Raises ``ValueError`` for too many columns, or none.
    """
    scaled = counts / measured[:, None]
    if not 1 <= scaled.shape[1] <= 8:
        raise ValueError("between 1 and 8 parameters can be fitted")
    size = np.maximum(np.abs(scaled).max(axis=0), np.finfo(float).tiny)
    best, least = np.zeros(scaled.shape[1]), np.inf
    for used in (c for k in range(1, scaled.shape[1] + 1) for c in combinations(range(scaled.shape[1]), k)):
        chosen = list(used)
        found = np.linalg.lstsq(scaled[:, chosen] / size[chosen], np.ones(len(measured)), rcond=None)[0]
        error = float(np.square(scaled[:, chosen] / size[chosen] @ found - 1).sum())
        if (found >= 0).all() and error < least - 1e-12:
            best, least = np.zeros(scaled.shape[1]), error
            best[chosen] = found / size[chosen]
    return best
