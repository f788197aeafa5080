"""Number formats: how a layer's input becomes what crosses, and how a restored accumulator becomes its output."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from shadownet.wire.errors import BundleError

Array = np.ndarray[Any, Any]


def _clip(low: float, high: float) -> Callable[[Array], Array]:
    return lambda y: np.clip(y, np.float32(low), np.float32(high), out=y)


ACTIVATIONS: dict[str, Callable[[Array], Array]] = {
    "NONE": lambda y: y,
    "RELU": lambda y: np.maximum(y, np.float32(0), out=y),
    "RELU6": _clip(0, 6),
    "RELU_N1_TO_1": _clip(-1, 1),
    "TANH": lambda y: np.tanh(y, out=y),
}


class Float:
    """float32 in, float32 out; bias and activation are applied to the restored result."""

    def __init__(self, bias: Array | None, activation: str) -> None:
        if activation not in ACTIVATIONS:
            raise BundleError(f"the bundle names the unknown activation {activation[:40]!r}")
        self._bias, self._activation = bias, ACTIVATIONS[activation]

    def encode(self, x: Array) -> tuple[Array, None]:
        return x, None

    def decode(self, y: Array, context: None) -> Array:
        if self._bias is not None:
            y += self._bias
        return self._activation(y)
