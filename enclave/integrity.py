"""Freivalds' check of the accelerator's answers (Freivalds 1977; used for outsourced layers by Slalom, ICLR 2019).

For secret vectors s, drawn from the CSPRNG when the enclave starts, an answer Y to the sent input X must satisfy
s Y = (s W) X, where W are the public weights; s W is made once, and (s W) X is the layer with one filter per vector.
The check is made on what crosses, before anything is restored or unmasked.

*Integer layers* are checked exactly, modulo the prime Q: answers are refused unless they are integers below 2^24, and
an error vector of integers below Q in magnitude survives one vector with chance 1/Q, both with 1/Q^2 < 2^-51.

*Float layers* have two continuous vectors (magnitude in [1/2, 1], random sign) and a tolerance. The accelerator's
rounding errs by about u sqrt(D) |w| |x| at worst for one output with D terms (each partial sum of D like-signed
terms errs by u times its size), so s Y errs by u sqrt(D) sqrt(sum s_m^2 |w_m|^2) |x|. ``KAPPA`` times that is accepted,
with |x| at most sqrt(taps) times the largest norm of an input position: about sixteen deviations for like-signed
terms, hundreds for others. An attacker may move an answer by as much unnoticed; docs/integrity.md has the chances.
Vectors are scaled by a power of two so that s Y is no larger than the largest answer: sums overflow no earlier than
answers do. Numbers near the smallest floats lose up to 2^-126 in each operation, which is allowed besides.
u is float32's 2^-24. In a coarser precision the tolerance would be larger than most answers, so that the converter
refuses to promise checks there.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from enclave import limbs
from enclave.native import CHECK, EXACT_POINTERS, GEOMETRY, POINTERS, TAPS, address, empty
from enclave.rng import Rng
from shadownet.wire.errors import BundleError
from shadownet.wire.precision import FLOAT32

Array = np.ndarray[Any, Any]
Shape = tuple[int, ...]

Q = 67_108_859  # the largest prime below 2^26
VECTORS = 2
KAPPA = 4.0
_CHUNK = 512  # filters folded at a time, so that no sum leaves int64


@dataclass(frozen=True)
class Public:
    """A layer as the accelerator has it. ``parts`` are (byte offset in the public model, shape, filters used)."""

    kind: str
    groups: int
    parts: list[tuple[int, Shape, int]]
    kernel: tuple[int, int]
    stride: tuple[int, int]
    dilation: tuple[int, int]
    same: bool
    paddings: tuple[tuple[int, int], tuple[int, int]]

    @classmethod
    def parse(cls, record: dict[str, Any]) -> Public:
        parts = [(int(at), tuple(int(d) for d in shape), int(used)) for at, shape, used in record["parts"]]
        kernel, stride, dilation = ((int(a), int(b)) for a, b in (record[k] for k in ("kernel", "stride", "dilation")))
        (top, bottom), (left, right) = ((int(a), int(b)) for a, b in record["paddings"])
        if min(*kernel, *stride, *dilation, int(record["groups"])) < 1 or min(top, bottom, left, right) < 0:
            raise ValueError("no geometry")
        padded = ((top, bottom), (left, right))
        return cls(str(record["kind"]), int(record["groups"]), parts, kernel, stride, dilation,
                   bool(record["same"]), padded)  # fmt: skip

    @property
    def channels(self) -> int:
        """Of the input."""
        return self.groups * (1 if self.kind == "DEPTHWISE_CONV_2D" else self.parts[0][1][-1])

    def weights(self, content: bytes) -> Array:
        """float32 [kh, kw, channels of a group, filters]; depthwise [kh, kw, 1, filters]."""
        found = []
        for at, shape, used in self.parts:
            values = np.frombuffer(content, "<f4", math.prod(shape), at).reshape(shape)
            if self.kind == "DEPTHWISE_CONV_2D":
                values = values.reshape(*self.kernel, 1, shape[-1])
            else:  # filters first; a dense layer has one tap. Widened parts hold each filter's own taps first.
                values = values.reshape(shape[0], *(shape[1:3] if len(shape) == 4 else (1, 1)), shape[-1])
                values = values[:used, :, : self.kernel[1]].transpose(1, 2, 3, 0)
            found.append(values)
        return np.concatenate(found, axis=-1)


class Geometry:
    """Where outputs find their inputs, for one shape: ``fields`` are those of the C structure."""

    def __init__(self, public: Public, source: Shape, target: Shape) -> None:
        self.public = public
        if public.kind in ("FULLY_CONNECTED", "BATCH_MATMUL"):
            rows = math.prod(target[:-1])
            source, target = (rows, 1, 1, math.prod(source) // max(rows, 1)), (rows, 1, 1, target[-1])
        self.source, self.target = source, target
        self.top = public.paddings[0][0] + self._same(0)
        self.left = public.paddings[1][0] + self._same(1)
        pairs = (public.kernel, public.stride, public.dilation)
        numbers = (*source, *target[1:3], *(n for pair in pairs for n in pair), self.top, self.left)
        self.fields = dict(zip(GEOMETRY, numbers, strict=True))

    def _same(self, axis: int) -> int:
        """What SAME pads before the first row or column."""
        if not self.public.same:
            return 0
        public, transposed = self.public, self.public.kind == "TRANSPOSE_CONV"
        inner = self.source[1 + axis] + sum(public.paddings[axis])
        small, large = (inner, self.target[1 + axis]) if transposed else (self.target[1 + axis], inner)
        reach = (public.kernel[axis] - 1) * public.dilation[axis] + 1
        return max((small - 1) * public.stride[axis] + reach - large, 0) // 2

    def apply(self, x: Array, filters: Array) -> Array:
        """The layer with ``filters`` [v, kh, kw, channels] in float64: [v, positions]."""
        x = x.reshape(self.source)
        out = np.zeros((*self.target[:3], len(filters)))
        for ky in range(self.public.kernel[0]):
            for kx in range(self.public.kernel[1]):
                taps = filters[:, ky, kx].astype(np.float64).T
                rows, columns = self.meets(0, ky), self.meets(1, kx)
                if self.public.kind == "TRANSPOSE_CONV":
                    out[:, rows[1], columns[1]] += x[:, rows[0], columns[0]] @ taps
                else:
                    out[:, rows[0], columns[0]] += x[:, rows[1], columns[1]] @ taps
        return out.reshape(-1, len(filters)).T

    def at(self, x: Array, filters: Array, positions: Array) -> tuple[Array, Array, float]:
        """As :meth:`apply`, at some positions only: [v, p]; the norms of the inputs that each meets [v, p], of channels
        that the filter reads; and how many those are at most."""
        x = x.reshape(self.source)
        image, y, column = np.unravel_index(positions, self.target[:3])
        out, squares = np.zeros((2, len(filters), len(positions)))
        reads = (filters != 0).any(axis=(1, 2))
        for ky in range(self.public.kernel[0]):
            for kx in range(self.public.kernel[1]):
                rows, columns = self._met(0, ky, y), self._met(1, kx, column)
                inside = (rows >= 0) & (columns >= 0)
                seen = np.where(inside[:, None], x[image, rows, columns].astype(np.float64), 0.0)
                out += filters[:, ky, kx] @ seen.T
                squares += reads @ np.square(seen).T
        return out, np.sqrt(squares), float(math.prod(filters.shape[1:]))

    def _met(self, axis: int, tap: int, at: Array) -> Array:
        """The input coordinates that a tap meets for these output coordinates, -1 for none."""
        stride, dilation = self.public.stride[axis], self.public.dilation[axis]
        start = tap * dilation - (self.top, self.left)[axis]
        if self.public.kind == "TRANSPOSE_CONV":
            met, hits = (at - start) // stride, (at - start) % stride == 0
        else:
            met, hits = at * stride + start, np.ones(len(at), bool)
        return np.where(hits & (met >= 0) & (met < self.source[1 + axis]), met, -1)

    def meets(self, axis: int, tap: int) -> tuple[slice, slice]:
        """Indices that stay inside: (along the side with the smaller steps' count, what they meet on the other)."""
        stride, dilation = self.public.stride[axis], self.public.dilation[axis]
        transposed = self.public.kind == "TRANSPOSE_CONV"
        near, far = (self.source, self.target) if transposed else (self.target, self.source)
        start = tap * dilation - (self.top, self.left)[axis]
        first = max(0, -(start // stride))
        last = min(near[1 + axis], (far[1 + axis] - 1 - start) // stride + 1)
        last = max(last, first)
        return slice(first, last), slice(first * stride + start, max((last - 1) * stride + start + 1, 0), stride)


class Checker:
    """The secret vectors of one layer and what they make of its public weights."""

    def __init__(self, public: Public, content: bytes, exact: bool, rng: Rng) -> None:
        """``content`` is the public model, whose hash was verified. Raises ``BundleError`` for a layer outside it."""
        try:
            weights = public.weights(content)
        except ValueError:
            raise BundleError("the bundle's plan does not fit its public model", "convert the model again") from None
        slots = weights.shape[-1]
        self._draw(public, slots, exact, rng)
        if exact:
            self._settle(self._fold(np.rint(weights).astype(np.int64)), np.empty(0))
        else:
            norms = np.square(weights, dtype=np.float64).sum(axis=(0, 1, 2))
            self._settle(self._fold(weights.astype(np.float64)), norms)

    def _draw(self, public: Public, slots: int, exact: bool, rng: Rng) -> None:
        """Draw the vectors of a layer with ``slots`` public filters."""
        self.public, self.exact = public, exact
        if exact:
            self.vectors = rng.integers(0, Q, (VECTORS, slots))
        else:
            magnitude = rng.uniform(0.5, 1.0, (VECTORS, slots)) * rng.signs(VECTORS * slots).reshape(VECTORS, slots)
            self.vectors = (magnitude * 0.5 ** math.ceil(math.log2(slots))).astype(np.float32)

    def _settle(self, folded: Array, norms: Array) -> None:
        """Take over s W [v, kh, kw, channels] and, in float layers, set the tolerance by the filters' squared norms."""
        if self.exact:
            self.filters = _centred(folded)
            return
        self.filters = folded.astype(np.float32)
        size = math.sqrt(float((np.square(self.vectors, dtype=np.float64) * norms).sum(axis=1).max()))
        taps = math.prod(self.filters.shape[1:3])
        terms = taps * self.filters.shape[3] + norms.size
        self.tolerance = KAPPA * FLOAT32.unit * math.sqrt(terms * taps) * size  # in units of a position's norm
        self.least = 4 * terms * FLOAT32.least

    def _fold(self, weights: Array) -> Array:
        """s W: [v, kh, kw, channels]. Each group's filters see its own channels only."""
        kh, kw, depth, slots = weights.shape
        groups = self.public.groups
        each = weights.reshape(kh, kw, depth, groups, slots // groups)
        vectors = self.vectors.reshape(VECTORS, groups, -1)
        out = np.zeros((VECTORS, kh, kw, groups, depth), weights.dtype)
        for at in range(0, each.shape[-1], _CHUNK):
            part = slice(at, at + _CHUNK)
            out += np.einsum("vgm,hwdgm->vhwgd", vectors[..., part].astype(weights.dtype), each[..., part])
            if self.exact:
                out %= Q
        return out.reshape(VECTORS, kh, kw, groups * depth)

    def holds(self, geometry: Geometry, sent: Array, answer: Array) -> bool:
        """Whether an answer (a private copy) belongs to what was sent."""
        rows = answer.reshape(-1, answer.shape[-1])
        if self.exact:
            if not possible(rows):
                return False
            vectors = _centred(self.vectors).astype(np.float64)
            left = _modular(lambda part: vectors @ part.T, rows)
            return bool((left == _modular(lambda part: geometry.apply(part, self.filters), sent)).all())
        wide = sent.astype(np.float64)
        left = self.vectors.astype(np.float64) @ rows.T.astype(np.float64)
        with np.errstate(over="ignore", invalid="ignore"):
            off = np.abs(left - geometry.apply(wide, self.filters))
            allowed = self.allowed(wide)
            return bool(np.isfinite(allowed) and (off <= allowed).all())

    def allowed(self, sent: Array) -> float:
        """By how much s Y may be off, for float layers."""
        positions = sent.astype(np.float64).reshape(-1, self.filters.shape[-1])
        norm = float(np.square(positions).sum(axis=1).max(initial=0))
        return float(self.tolerance * math.sqrt(norm) + self.least)

    def native(self, geometry: Geometry, kept: Array) -> NativeCheck:
        """The same check for the C loop; ``kept`` is where it finds what was sent."""
        return NativeCheck(self, geometry, kept)


def possible(answer: Array) -> bool:
    """Whether an honest accelerator may have given this answer of an integer layer: integers below 2^24."""
    return bool(np.abs(answer).max(initial=0) < limbs.LIMIT and (np.rint(answer) == answer).all())


class NativeCheck:
    """A check as the C loop has it; ``record`` [1] of ``enclave.native.CHECK``."""

    def __init__(self, checker: Checker, geometry: Geometry, kept: Array) -> None:
        self.record = np.zeros(1, CHECK)
        for name, value in geometry.fields.items():
            self.record[name] = value
        self.record["active"] = 1
        sums = (VECTORS, math.prod(geometry.target[:3]))
        if checker.exact:
            numbers, folded = _centred(checker.vectors).astype(np.int32), checker.filters.astype(np.float64)
            self._keep = self._point(EXACT_POINTERS, numbers, folded, np.empty(sums), np.empty(sums, np.int64))
            self._keep += self._point(("input",), kept)
            return
        products = empty((VECTORS * TAPS, geometry.fields["width"] + 4))
        filters = empty(checker.filters.shape)
        filters[...] = checker.filters
        self._keep = self._point(POINTERS, checker.vectors, filters, kept, empty(sums), empty(sums), products)
        self.record["tolerance"], self.record["least"] = checker.tolerance, checker.least

    def _point(self, names: tuple[str, ...], *arrays: Array) -> list[Array]:
        """Let fields point at arrays, which must be kept."""
        for name, array in zip(names, arrays, strict=True):
            self.record[name] = address(array)
        return list(arrays)


class Policy:
    """Which layer calls are checked: all of them, or each with probability ``share``."""

    def __init__(self, share: float, rng: Rng) -> None:
        self.share, self._rng = share, rng

    def chosen(self, count: int) -> Array:
        """bool [count], drawn afresh."""
        return np.ones(count, bool) if self.share >= 1 else self._rng.uniform(0, 1, (count,)) < self.share


def _centred(residues: Array) -> Array:
    return np.where(residues > Q // 2, residues - Q, residues)


def _modular(linear: Callable[[Array], Array], values: Array) -> Array:
    """A linear map with residues as coefficients, of integers below 2^24, mod Q.

    In two halves of 12 bits: a sum of up to 2^15 products of 25 and 12 bits is exact in float64.
    """
    high = np.rint(values / 4096.0)
    low = values - high * 4096.0
    total = linear(low).astype(np.int64) % Q
    return (total + linear(high).astype(np.int64) % Q * 4096) % Q if high.any() else total
