"""Number formats: how a layer's input becomes what crosses, and how a restored accumulator becomes its output."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

import numpy as np

from shadownet.wire.errors import BundleError

Array = np.ndarray[Any, Any]

MASK_BOUND = 256  # integer activation masks are uniform in [-256, 256], as wide as the activations themselves


class Format(Protocol):
    """``encode`` gives what crosses (before the mask) and a context; ``decode`` finishes the restored result.

    ``exact``: what crosses are integers, and sums must be restored exactly.
    """

    exact: bool

    def encode(self, x: Array) -> tuple[Array, Any]: ...
    def decode(self, y: Array, context: Any) -> Array: ...


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

    exact = False

    def __init__(self, bias: Array | None, activation: str) -> None:
        self._bias, self._activation = bias, ACTIVATIONS[activation]

    def encode(self, x: Array) -> tuple[Array, None]:
        return x, None

    def decode(self, y: Array, context: None) -> Array:
        if self._bias is not None:
            y += self._bias
        return self._activation(y)


class Integer:
    """8-bit in and out: real = scale (q - zero). Requantises as XNNPACK, LiteRT's default, does:
    rint(float32(sum + bias) * float32(sx sw / sy)) + zero point, clamped to the fused activation's range.
    """

    exact = True

    def __init__(self, bias: Array | None, multiplier: Array, zero_in: int, zero_out: int, low: int, high: int,
                 dtype: str) -> None:  # fmt: skip
        self._bias, self._multiplier, self._zero_in, self._zero_out = bias, multiplier, zero_in, zero_out
        self._low, self._high, self._dtype = low, high, np.dtype(dtype)

    def encode(self, x: Array) -> tuple[Array, None]:
        return x.astype(np.float32) - np.float32(self._zero_in), None

    def decode(self, y: Array, context: None) -> Array:
        if self._bias is not None:
            y = y + self._bias
        scaled = y.astype(np.float32) * self._multiplier
        # Clamped before rounding, so that no value leaves the integer range.
        np.clip(scaled, np.float32(self._low - self._zero_out), np.float32(self._high - self._zero_out), out=scaled)
        return (np.rint(scaled) + np.float32(self._zero_out)).astype(self._dtype)


class Hybrid:
    """float32 in and out, 8-bit weights: the input is quantised at run time as XNNPACK does it, asymmetrically
    and per row (``inner`` trailing dimensions share a scale: 1 for dense layers, 3 for convolutions).
    """

    exact = True

    def __init__(self, bias: Array | None, scale: Array, inner: int, activation: str) -> None:
        self._bias, self._scale, self._inner, self._activation = bias, scale, inner, ACTIVATIONS[activation]

    def encode(self, x: Array) -> tuple[Array, Array]:
        one, low, high = np.float32(1), np.float32(-128), np.float32(127)
        rows = x.reshape(int(np.prod(x.shape[: x.ndim - self._inner])), -1)
        least = np.minimum(rows.min(axis=1), np.float32(0))
        most = np.maximum(rows.max(axis=1), np.float32(0))
        with np.errstate(divide="ignore"):
            factor = np.where(least == most, one, np.float32(255) / (most - least)).astype(np.float32)
        a, b = least * factor, most * factor
        zero = np.where((low + a) + (high + b) > 0, low - a, high - b)
        zero = np.rint(np.clip(zero, low, high))[:, None]
        q = np.clip(np.rint(rows * factor[:, None]) + zero, low, high) - zero
        shape = x.shape[: x.ndim - self._inner] + (1,) * self._inner
        return q.reshape(x.shape), (one / factor).reshape(shape)

    def decode(self, y: Array, context: Array) -> Array:
        if context.ndim != y.ndim:  # a dense layer that flattens its input to rows
            context = context.reshape(-1, 1)
        out = y.astype(np.float32) * context * self._scale
        if self._bias is not None:
            out += self._bias
        return self._activation(out.astype(np.float32))


def create(record: dict[str, Any], blobs: dict[str, Array]) -> Format:
    """Build the format of a layer's record. Raises ``KeyError`` or ``BundleError`` for one that is none."""
    bias = blobs[record["bias"]] if record["bias"] else None
    kind = record["kind"]
    if kind == "float":
        return Float(bias, record["activation"])
    if kind == "integer":
        zero_in, zero_out, low, high = (int(record[name]) for name in ("zero_in", "zero_out", "low", "high"))
        return Integer(bias, blobs[record["scale"]], zero_in, zero_out, low, high, str(record["dtype"]))
    if kind == "hybrid":
        return Hybrid(bias, blobs[record["scale"]], int(record["inner"]), record["activation"])
    raise BundleError(f"the bundle names the unknown number format {str(kind)[:40]!r}")
