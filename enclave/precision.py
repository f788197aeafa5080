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
from shadownet.wire.errors import BundleError, IntegrityError, WorkerError
from shadownet.wire.precision import PRECISIONS, Precision

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
        self._choose(weights.shape[-1], exact, rng)
        self._settle(public, weights[..., self._slots])

    def _choose(self, slots: int, exact: bool, rng: Rng) -> None:
        """Choose the filters that are looked at, of ``slots``."""
        self._exact, self._rng, self._count = exact, rng, slots
        self._slots = rng.permutation(slots)[:FILTERS]

    def _settle(self, public: Public, chosen: Array) -> None:
        """Take over the weights [kh, kw, channels of a group, filters] of the filters that were chosen."""
        kh, kw, depth, _ = chosen.shape
        slots = self._count
        self._filters = np.zeros((len(self._slots), kh, kw, public.groups * depth), np.float32)
        for filter_, slot, w in zip(self._filters, self._slots, np.moveaxis(chosen, -1, 0), strict=True):
            first = int(slot) // (slots // public.groups) * depth  # a group's filters see its own channels only
            filter_[..., first : first + depth] = w
        self._norms = np.sqrt(np.square(chosen, dtype=np.float64).sum(axis=(0, 1, 2)))
        self._largest = (limbs.LIMIT - 1) // max(1, int(np.abs(chosen).sum(axis=(0, 1, 2), dtype=np.float64).max()))

    def input(self, shape: tuple[int, ...], rng: Rng | None = None) -> Array:
        """What to send: float32, uniform in [-1, 1), or integers with which no sum that is looked at passes 2^24."""
        bits = np.frombuffer((rng or self._rng).bytes(4 * math.prod(shape)), "<i4").reshape(shape)
        if not self._exact:
            return bits * np.float32(2.0**-31)
        return np.asarray(np.rint(bits * (max(1, self._largest) * 2.0**-31)), np.float32)

    def excess(self, geometry: Geometry, sent: Array, answer: Array, precision: Precision) -> float:
        """By how many times an answer is off more than ``precision`` allows: at most 1 if it is as precise as that.

        ``answer`` may be shared memory; each value that matters is read once."""
        rows = answer.reshape(-1, answer.shape[-1])
        return self.excess_at(self.positions(len(rows)), geometry, sent, rows, precision)

    def positions(self, count: int) -> Array:
        """Which of ``count`` positions are looked at."""
        return self._rng.permutation(count)[:POSITIONS]

    def excess_at(self, positions: Array, geometry: Geometry, sent: Array, rows: Array, precision: Precision) -> float:
        """:meth:`excess` at these positions of an answer, [positions, filters]."""
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


def judge(excess: float, precision: str, layer: str) -> None:
    """Raises ``IntegrityError`` for a layer whose answers are off by more than the declared ``precision`` allows."""
    if excess > 1:
        raise IntegrityError(
            f"the accelerator says that it computes in {precision}, and layer {layer} is off by "
            f"{excess:.0f} times what that allows",
            "shadownet doctor; try another accelerator or another driver",
        )


def require(precision: str, wanted: str, exact: bool) -> None:
    """Raises ``WorkerError`` for an accelerator's ``precision`` that is coarser than a bundle (with ``exact`` layers)
    is made for."""
    if PRECISIONS[precision].unit <= PRECISIONS[wanted].unit:
        return
    if exact:
        raise WorkerError(
            f"the accelerator computes in {precision}, which is too coarse: this bundle sends integers up to 2^24, "
            "and only float32 holds them all",
            "choose an accelerator that computes in float32; shadownet doctor lists them",
        )
    raise WorkerError(
        f"the accelerator computes in {precision}, which is too coarse: this bundle's masks and checks are made "
        f"for {wanted}",
        f"choose another accelerator, or convert the model with --precision {precision} --integrity none",
    )
