"""How the enclave gets a layer's true result back: a sparse linear map over the accelerator's answer.

Every scheme's inverse has this form, so the enclave needs no code of any scheme: ShadowNet looks up two of the M slots
for each output, mixing schemes look up a group of g, and schemes that hide nothing look up one.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class Restore:
    """y[i] = sum over t of coefficient[t, i] * Y[slot[t, i]].

    ``slot`` int32 [terms, n]; ``coefficient`` float32 [terms, n], integers where the layer's weights are.
    ``order`` int32 [channels]: input channels are sent as x[..., order]; None for the natural order.
    """

    slot: Array
    coefficient: Array
    order: Array | None = None

    @classmethod
    def natural(cls, n: int) -> Restore:
        """The answer is the result."""
        return cls(np.arange(n, dtype=np.int32)[None], np.ones((1, n), np.float32))

    @classmethod
    def from_blobs(cls, blobs: dict[str, Array]) -> Restore:
        """Raises ``ValueError`` or ``KeyError`` unless the arrays form a map."""
        slot, coefficient, order = blobs["slot"], blobs["coefficient"], blobs.get("order")
        if slot.ndim != 2 or slot.shape != coefficient.shape or slot.dtype != np.int32 or slot.size == 0:
            raise ValueError("no restoring map")
        if slot.min() < 0 or coefficient.dtype != np.float32 or not np.isfinite(coefficient).all():
            raise ValueError("no restoring map")
        if order is not None and (order.dtype != np.int32 or (np.sort(order) != np.arange(order.size)).any()):
            raise ValueError("no order of channels")
        return cls(slot, coefficient, order)

    def to_blobs(self) -> dict[str, Array]:
        blobs = {"slot": self.slot, "coefficient": self.coefficient}
        return blobs if self.order is None else blobs | {"order": self.order}

    def shuffle(self, x: Array) -> Array:
        """Reorder the (already masked) input [..., channels] as the accelerator's weights expect it."""
        shuffled: Array = x if self.order is None else x[..., self.order]
        return shuffled

    def apply(self, y: Array) -> Array:
        """The true linear result [..., n] from the accelerator's answer [..., slots]; a new array of y's type."""
        out: Array = np.take(y, self.slot[0], axis=-1)
        out *= self.coefficient[0]
        for slot, coefficient in zip(self.slot[1:], self.coefficient[1:], strict=True):
            part = np.take(y, slot, axis=-1)
            part *= coefficient
            out += part
        return out
