"""Number formats: how a layer's input becomes what crosses, and how a restored accumulator becomes its output."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from shadownet.wire.errors import BundleError, InputError

Array = np.ndarray[Any, Any]

FLOAT32 = np.dtype(np.float32)
ACTIVATIONS = ("clamp", "leaky", "elu", "hard_swish")  # numbered as in _activation.h
MASK_BOUND = 256  # integer activation masks are uniform in [-256, 256], as wide as the activations themselves


class Format(Protocol):
    """``measure`` a whole tensor, ``quantise`` it or a part of it to what crosses (before the mask), and ``decode``
    what was restored; the last two need what was measured.

    ``exact``: what crosses are integers, and sums must be restored exactly. ``residual`` is the id of a tensor that
    ``decode`` adds, -1 for none. ``scope`` is what belongs together when measuring: the "tensor", an "image" (its first
    dimension), or nothing beyond a "row". ``dtype`` is that of the result.
    """

    @property
    def exact(self) -> bool: ...
    @property
    def residual(self) -> int: ...
    @property
    def scope(self) -> str: ...
    @property
    def dtype(self) -> np.dtype[Any]: ...

    def measure(self, x: Array) -> Any: ...
    def quantise(self, x: Array, context: Any) -> Array: ...
    def decode(self, y: Array, context: Any, residual: Array | None = None) -> Array: ...


@dataclass(frozen=True)
class Activation:
    """One of ``ACTIVATIONS``: ``clamp`` to [low, high], ``leaky`` with slope ``low``; the others have no parameters."""

    kind: str
    low: float
    high: float

    @classmethod
    def parse(cls, record: dict[str, Any]) -> Activation:
        if record["kind"] not in ACTIVATIONS:
            raise BundleError("the bundle names an unknown activation", "convert the model again")
        return cls(record["kind"], float(record["low"]), float(record["high"]))

    def apply(self, y: Array) -> Array:
        """Apply to float32 ``y``, in place."""
        if self.kind == "leaky":
            return np.multiply(y, np.float32(self.low), out=y, where=y < 0)
        if self.kind == "elu":
            return np.expm1(y, out=y, where=y < 0)
        if self.kind == "hard_swish":
            y *= np.clip(y + np.float32(3), np.float32(0), np.float32(6)) * np.float32(1 / 6)
            return y
        if self.low == -np.inf and self.high == np.inf:
            return y
        return np.clip(y, np.float32(self.low), np.float32(self.high), out=y)


@dataclass(frozen=True)
class Float:
    """float32 in, float32 out. After restoring, each part optional:

    t = y + bias;  t = first(t);  t = gain t + shift;  t = t + residual;  t = second(t)
    """

    bias: Array | None
    first: Activation
    gain: Array | None
    shift: Array | None
    residual: int
    second: Activation
    exact: bool = False
    scope: str = "row"
    dtype: np.dtype[Any] = FLOAT32

    def measure(self, x: Array) -> None:
        return None

    def quantise(self, x: Array, context: None) -> Array:
        return x

    def decode(self, y: Array, context: None, residual: Array | None = None) -> Array:
        if self.bias is not None:
            y += self.bias
        y = self.first.apply(y)
        if self.gain is not None and self.shift is not None:
            y *= self.gain
            y += self.shift
        if residual is not None:
            y = y + residual  # not in place: the residual may be the larger one
        return self.second.apply(y)


class Fixed:
    """float32 in and out, in fixed point between: the input in steps of its largest magnitude / ``levels``, the
    weights in steps of ``scale`` per filter. The input's scale stays in the enclave. Then as :class:`Float`.
    """

    exact = True
    scope = "tensor"
    dtype = FLOAT32

    def __init__(self, scale: Array, levels: int, epilogue: Float) -> None:
        self._scale, self._levels, self._epilogue = scale.astype(np.float64), levels, epilogue
        self.residual = epilogue.residual

    def measure(self, x: Array) -> float:
        """The largest magnitude. Raises ``InputError`` unless it is finite."""
        largest = float(max(x.max(initial=0), -x.min(initial=0)))
        if not np.isfinite(largest):
            raise InputError("the model's activations are not finite on this input")
        return largest

    def quantise(self, x: Array, context: float) -> Array:
        """Integers (float64) in [-levels, levels]."""
        # In float64 the largest value becomes exactly ``levels``, however small it is.
        q = np.multiply(x, self._levels / context if context else 0.0, dtype=np.float64)
        return np.rint(q, out=q)

    def decode(self, y: Array, context: float, residual: Array | None = None) -> Array:
        out = np.empty(y.shape, np.float32)
        np.multiply(y, self._scale * (context / self._levels), out=out, casting="same_kind")  # in float64, rounded once
        return self._epilogue.decode(out, None, residual)


class Integer:
    """8-bit in and out: real = scale (q - zero). Requantises as XNNPACK, LiteRT's default, does:
    rint(float32(sum + bias) * float32(sx sw / sy)) + zero point, clamped to the fused activation's range.
    """

    exact = True
    residual = -1
    scope = "row"

    def __init__(self, bias: Array | None, multiplier: Array, zero_in: int, zero_out: int, low: int, high: int,
                 dtype: str) -> None:  # fmt: skip
        self.bias, self.multiplier, self.zero_in, self.zero_out = bias, multiplier, zero_in, zero_out
        self.low, self.high, self.dtype = low, high, np.dtype(dtype)

    def measure(self, x: Array) -> None:
        return None

    def quantise(self, x: Array, context: None) -> Array:
        return x.astype(np.float32) - np.float32(self.zero_in)

    def decode(self, y: Array, context: None, residual: Array | None = None) -> Array:
        if self.bias is not None:
            y = y + self.bias
        scaled = y.astype(np.float32) * self.multiplier
        # Clamped before rounding, so that no value leaves the integer range.
        np.clip(scaled, np.float32(self.low - self.zero_out), np.float32(self.high - self.zero_out), out=scaled)
        return (np.rint(scaled) + np.float32(self.zero_out)).astype(self.dtype)


class Hybrid:
    """float32 in and out, 8-bit weights: the input is quantised at run time as XNNPACK does it, asymmetrically
    and per row (``inner`` trailing dimensions share a scale: 1 for dense layers, 3 for convolutions).
    """

    exact = True
    residual = -1
    dtype = FLOAT32

    def __init__(self, bias: Array | None, scale: Array, inner: int, activation: Activation) -> None:
        self.bias, self.scale, self.inner, self.activation = bias, scale, inner, activation
        self.scope = "image" if inner == 3 else "row"

    def measure(self, x: Array) -> tuple[Array, Array]:
        """Each row's factor and zero point, [..., 1, 1, 1]."""
        one, low, high = np.float32(1), np.float32(-128), np.float32(127)
        rows = x.reshape(int(np.prod(x.shape[: x.ndim - self.inner])), -1)
        least = np.minimum(rows.min(axis=1), np.float32(0))
        most = np.maximum(rows.max(axis=1), np.float32(0))
        with np.errstate(divide="ignore", over="ignore"):
            factor = (np.float32(255) / (most - least)).astype(np.float32)
        factor = np.where(np.isfinite(factor), factor, one)  # a row of nothing, or next to it, becomes zeros
        a, b = least * factor, most * factor
        zero = np.where((low + a) + (high + b) > 0, low - a, high - b)
        shape = x.shape[: x.ndim - self.inner] + (1,) * self.inner
        return factor.reshape(shape), np.rint(np.clip(zero, low, high)).reshape(shape)

    def quantise(self, x: Array, context: tuple[Array, Array]) -> Array:
        factor, zero = context
        quantised: Array = np.clip(np.rint(x * factor) + zero, np.float32(-128), np.float32(127)) - zero
        return quantised

    def decode(self, y: Array, context: tuple[Array, Array], residual: Array | None = None) -> Array:
        step = np.float32(1) / context[0]
        if step.ndim != y.ndim:  # a dense layer that flattens its input to rows
            step = step.reshape(-1, 1)
        out = y.astype(np.float32) * step * self.scale
        if self.bias is not None:
            out += self.bias
        return self.activation.apply(out.astype(np.float32))


def encode(format_: Format, x: Array) -> tuple[Array, Any]:
    """A whole tensor as it crosses, before the mask, and what was measured of it."""
    context = format_.measure(x)
    return format_.quantise(x, context), context


def create(record: dict[str, Any], blobs: Mapping[str, Array]) -> Format:
    """Build the format of a layer's record. Raises ``KeyError`` or ``BundleError`` for one that is none."""

    def blob(name: str) -> Array | None:
        return blobs[record[name]] if record[name] else None

    kind = record["kind"]
    if kind in ("float", "fixed"):
        first, second = (Activation.parse(record[name]) for name in ("first", "second"))
        plain = Float(blob("bias"), first, blob("gain"), blob("shift"), int(record["residual"]), second)
        return plain if kind == "float" else Fixed(blobs[record["scale"]], int(record["levels"]), plain)
    if kind == "integer":
        zero_in, zero_out, low, high = (int(record[name]) for name in ("zero_in", "zero_out", "low", "high"))
        return Integer(blob("bias"), blobs[record["scale"]], zero_in, zero_out, low, high, str(record["dtype"]))
    if kind == "hybrid":
        return Hybrid(blob("bias"), blobs[record["scale"]], int(record["inner"]), Activation.parse(record["first"]))
    raise BundleError(f"the bundle names the unknown number format {str(kind)[:40]!r}")
