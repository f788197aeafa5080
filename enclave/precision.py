"""Whether an accelerator computes as precisely as it says, tried with secret numbers whenever shapes are fixed.

Random numbers cross in every layer's own shape. The enclave, which kept the weights of a few public filters, computes
their answers at a few positions in float64; which filters and positions, the accelerator does not learn. What is
allowed follows from the declared precision with unit roundoff u. Adding D terms of random sign one after the other errs
by u |w| |x| / sqrt(6) (root mean square; |.| are the Euclidean norms of a filter and of the inputs that it meets), and
rounding inputs, weights, product and result by at most 4 u for each term. ``MARGIN`` u |w| |x| is allowed: twenty
deviations of the former, and twice the latter at D = 1. tf32, 8192 times coarser than float32, errs by about
u |w| |x| / sqrt(D) and so shows below a million terms. Exact layers get integers whose sums fill 2^24 and must be right
to the last unit.

This finds devices, drivers and settings that are coarser than they say. It is no protection: an accelerator may
compute well while it is tried, and badly later. Against that every answer is checked (``enclave.integrity``).
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from enclave import limbs
from enclave.integrity import Geometry, Public
from enclave.rng import Rng
from shadownet.wire.errors import BundleError
from shadownet.wire.precision import Precision

Array = np.ndarray[Any, Any]

FILTERS = 8
POSITIONS = 16
MARGIN = 8.0


class Probe:
    """Tries one layer."""

    def __init__(self, public: Public, content: bytes, exact: bool, rng: Rng) -> None:
        """``content`` is the public model, whose hash was verified. Raises ``BundleError`` for a layer outside it."""
        try:
            weights = public.weights(content)
        except ValueError:
            raise BundleError("the bundle's plan does not fit its public model", "convert the model again") from None
        kh, kw, depth, slots = weights.shape
        self._exact, self._rng = exact, rng
        self._slots = rng.permutation(slots)[:FILTERS]
        chosen = weights[..., self._slots]
        self._filters = np.zeros((len(self._slots), kh, kw, public.groups * depth), np.float32)
        for filter_, slot, w in zip(self._filters, self._slots, np.moveaxis(chosen, -1, 0), strict=True):
            first = int(slot) // (slots // public.groups) * depth  # a group's filters see its own channels only
            filter_[..., first : first + depth] = w
        self._norms = np.sqrt(np.square(chosen, dtype=np.float64).sum(axis=(0, 1, 2)))
        self._largest = (limbs.LIMIT - 1) // max(1, int(np.abs(chosen).sum(axis=(0, 1, 2), dtype=np.float64).max()))

    def input(self, shape: tuple[int, ...]) -> Array:
        """What to send: float32, uniform in [-1, 1), or integers with which no sum that is looked at passes 2^24."""
        bits = np.frombuffer(self._rng.bytes(4 * math.prod(shape)), "<i4").reshape(shape)
        if not self._exact:
            return bits * np.float32(2.0**-31)
        return np.asarray(np.rint(bits * (max(1, self._largest) * 2.0**-31)), np.float32)

    def excess(self, geometry: Geometry, sent: Array, answer: Array, precision: Precision) -> float:
        """By how many times an answer is off more than ``precision`` allows: at most 1 if it is as precise as that.

        ``answer`` may be shared memory; each value that matters is read once."""
        rows = answer.reshape(-1, answer.shape[-1])
        positions = self._rng.permutation(len(rows))[:POSITIONS]
        got = rows[np.ix_(positions, self._slots)].T.astype(np.float64)
        expected, norms, terms = geometry.at(sent, self._filters, positions)
        off = np.abs(got - expected)
        if self._exact:
            allowed = np.full_like(off, 0.5)
        else:
            # By Cauchy and Schwarz, rounding each of D inputs by ``least`` moves the sum by least sqrt(D) |w|.
            tiny = precision.least * np.sqrt(terms) * (self._norms[:, None] + norms)
            allowed = MARGIN * (precision.unit * self._norms[:, None] * norms + tiny)
        with np.errstate(divide="ignore", invalid="ignore"):  # what is off by nothing is right where nothing is allowed
            worst = float(np.divide(off, allowed, out=np.zeros_like(off), where=off != 0).max(initial=0))
        return worst if np.isfinite(worst) else float("inf")
