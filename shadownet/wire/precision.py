"""How coarsely an accelerator computes: what backends declare, and what a bundle was made for."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Precision:
    """A number format. Rounding errs by at most ``unit`` of the result, or by ``least`` where that is too small for it.

    ``unit`` is the unit roundoff (Higham, Accuracy and Stability of Numerical Algorithms, 2002, section 2.1).
    """

    unit: float
    least: float


PRECISIONS = {
    "float32": Precision(2.0**-24, 2.0**-126),
    "tf32": Precision(2.0**-11, 2.0**-126),
    "fp16": Precision(2.0**-11, 2.0**-24),
    "bf16": Precision(2.0**-8, 2.0**-126),
}
FLOAT32 = PRECISIONS["float32"]
_WORST_MASK = 2.0**-14


def mask_share(precision: str) -> float:
    """The share of a scheme's float masks that fits ``precision``: 1 for float32, an eighth for fp16.

    A mask costs digits: what crosses is rounded in units of the mask. The share keeps mask times unit roundoff below
    2^-14 of what the scheme asks for, so with masks of 8 rms the error below 2^-11 rms, fp16's own.
    """
    return min(1.0, _WORST_MASK / PRECISIONS[precision].unit)
