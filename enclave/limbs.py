"""Exact integers on float hardware: weights cut into limbs whose accumulators stay below 2^24.

A float32 sum of integer products is exact, in whatever order it is made, as long as the sum of the magnitudes
stays below 2^24. Where a filter's L1 norm times the largest input passes that, its weights are written in base
2^k with digits in [-2^(k-1), 2^(k-1)), one filter per digit, and the enclave adds the answers up in float64.
"""

from __future__ import annotations

from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]

LIMIT = 1 << 24


def split(rows: Array, largest: float) -> tuple[Array, int, int]:
    """Cut integer-valued ``rows`` [groups, n, d] for inputs of magnitude at most ``largest``.

    Returns (rows [groups, limbs * n, d] float32, limbs, base); limb l of filter k stands at row l * n + k.
    Raises ``ValueError`` if even single-bit limbs would be too large.
    """
    values = np.rint(rows).astype(np.int64)
    bits = int(np.abs(values).max(initial=0)).bit_length() + 1
    for limbs in range(1, bits + 1):
        width = -(-bits // limbs)
        digits = [values] if limbs == 1 else _digits(values, width, limbs)
        if max(_norm(digit) for digit in digits) * largest < LIMIT:
            return np.concatenate(digits, axis=1).astype(np.float32), limbs, 1 << width
    raise ValueError("the layer's sums cannot be kept exact")


def _digits(values: Array, width: int, limbs: int) -> list[Array]:
    half, out = 1 << (width - 1), []
    for _ in range(limbs - 1):
        digit = ((values + half) & ((1 << width) - 1)) - half
        out.append(digit)
        values = (values - digit) >> width
    return [*out, values]


def _norm(rows: Array) -> float:
    return float(np.abs(rows).sum(axis=-1).max(initial=0))


def join(y: Array, groups: int, limbs: int, base: int) -> Array:
    """Add up answers [..., groups * limbs * n] of :func:`split` rows: float64 [..., groups * n], exact."""
    wide = y.astype(np.float64)
    if limbs == 1:
        return wide
    parts = wide.reshape(*y.shape[:-1], groups, limbs, -1)
    out = parts[..., limbs - 1, :]
    for k in range(limbs - 2, -1, -1):
        out = out * base + parts[..., k, :]
    return out.reshape(*y.shape[:-1], -1)
