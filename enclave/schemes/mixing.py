"""Schemes that publish secret mixtures of filters: GroupCover (Zhang et al., ICML 2024), and ``mix``, our own.

The n filters of a layer are dealt at random into groups of g; with F the k mask filters of a group (none in
GroupCover), the public rows are A [W_g; F] for a secret matrix A, all in a secret order, and the enclave applies the
first g rows of A's inverse. Input channels are sent in a secret order.

*Conditioning.* A = U diag(s) V with U, V uniform orthogonal (QR of Gaussians) and s uniform in [1, 2]: its condition
number is at most 2, so restoring amplifies the accelerator's rounding at most so much. Where results must be exact
(8-bit models), A is a product of unit triangular matrices with entries in {-1, 0, 1}, whose inverse is integer; about
``_TERMS`` entries of a row are not 0, since the inverses of full ones grow exponentially with their size.

What mixing cannot hide: the row space of each group (A6, A7 with a public relative); integer rows span a lattice
whose shortest vectors are the filters (so 8-bit models are not hidden at all from lattice reduction).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np

from enclave.restore import Restore
from enclave.rng import Rng
from enclave.schemes.base import (
    FLOAT_MASKS,
    NOISE,
    PUBLIC,
    Array,
    Claims,
    LayerWeights,
    Obfuscated,
    Place,
    Plain,
    is_count,
)
from shadownet.wire.errors import InputError

MAX_GROUP = 256
_COEFFICIENT = 1 << 10  # of an integer inverse, so that restoring stays exact
_TERMS = 6
_NEAR = 0.95  # small matrices may come out next to a permutation, which would mix nothing; then another is drawn


@dataclass(frozen=True)
class Mixing(Plain):
    """Groups of ``group`` filters; with ``masked`` each gets ceil(r g) - g mask filters of matched deviation."""

    group: int = 4
    masked: bool = False
    depthwise_inside: bool = False

    def keeps(self, place: Place) -> str:
        return "mixing hides no depthwise layer" if self.depthwise_inside and place.depthwise else ""

    def obfuscate(self, layer: LayerWeights, ratio: float, rng: Rng) -> Obfuscated:
        if layer.depthwise:
            return self._depthwise(layer, rng)
        columns = self._order(layer, rng)
        rows = layer.rows if columns is None else _permuted(layer.rows, columns)
        parts: list[Array] = []
        maps: list[tuple[Array, Array]] = []
        for each in rows:
            public, restore = self._mix(each, layer, ratio, rng)
            parts.append(public)
            maps.append((restore.slot + len(maps) * len(public), restore.coefficient))
        slot = np.concatenate([s for s, _ in maps], axis=1).astype(np.int32)
        coefficient = np.concatenate([c for _, c in maps], axis=1)
        order = None if columns is None else columns.astype(np.int32)
        return Obfuscated(np.stack(parts), Restore(slot, coefficient, order))

    def _mix(self, rows: Array, layer: LayerWeights, ratio: float, rng: Rng) -> tuple[Array, Restore]:
        """One group of the layer: (public rows [M, d], its part of the restoring map)."""
        n, d = rows.shape
        dealt = rng.permutation(n)
        groups = np.array_split(dealt, -(-n // self.group))  # of even sizes: a filter left alone would not be mixed
        extra = max(1, math.ceil(round(ratio * self.group, 6)) - self.group) if self.masked else 0
        sizes = [len(group) + extra for group in groups]
        total, terms = sum(sizes), max(sizes)
        order = rng.permutation(total)  # order[j] is the slot of the j-th mixed row
        public = np.empty((total, d), np.float64 if layer.integer else np.float32)
        slot, coefficient = np.zeros((terms, n), np.int64), np.zeros((terms, n), np.float32)
        first = 0
        for group, size in zip(groups, sizes, strict=True):
            matrix, inverse = _unimodular(size, rng) if layer.integer and not layer.rounded else _dense(size, rng)
            masks = rng.normal(float(rows.std()), (extra, d))
            mixed = matrix @ np.concatenate([rows[group], np.rint(masks) if layer.integer else masks])
            where = order[first : first + size]
            public[where] = np.rint(mixed) if layer.integer else mixed
            slot[:size, group] = where[:, None]
            coefficient[:size, group] = inverse[: len(group)].T
            first += size
        return public, Restore(slot.astype(np.int32), coefficient)

    @staticmethod
    def _order(layer: LayerWeights, rng: Rng) -> Array | None:
        """A secret order of the input channels, where a row holds all of them."""
        groups, _, d = layer.rows.shape
        if groups != 1 or layer.channels < 2 or d % layer.channels:
            return None
        return rng.permutation(layer.channels)

    @staticmethod
    def _depthwise(layer: LayerWeights, rng: Rng) -> Obfuscated:
        """Channels are permuted; there is nothing to mix, since each filter has an input of its own."""
        channels, multiplier, _ = layer.rows.shape
        order = rng.permutation(channels)
        real = np.argsort(order)[:, None] * multiplier + np.arange(multiplier)
        ones = np.ones((1, channels * multiplier), np.float32)
        restore = Restore(real.reshape(1, -1).astype(np.int32), ones, order.astype(np.int32))
        return Obfuscated(layer.rows[order], restore)


def _permuted(rows: Array, columns: Array) -> Array:
    """Rows [groups, n, taps * channels] with input channels in another order."""
    return rows.reshape(*rows.shape[:2], -1, columns.size)[..., columns].reshape(rows.shape)


def _dense(size: int, rng: Rng) -> tuple[Array, Array]:
    """A secret matrix of condition number at most 2, float64, and its inverse."""
    while True:
        u, v = (np.linalg.qr(rng.normal(1.0, (size, size)).astype(np.float64))[0] for _ in range(2))
        s = rng.uniform(1.0, 2.0, (size,))
        matrix = (u * s) @ v
        if size == 1 or (np.abs(matrix).max(axis=1) <= _NEAR * np.linalg.norm(matrix, axis=1)).all():
            return matrix, (v.T / s) @ u.T


def _unimodular(size: int, rng: Rng) -> tuple[Array, Array]:
    """A secret integer matrix of determinant 1 or -1, and its integer inverse with entries that stay small."""

    def some() -> Array:
        chosen = rng.uniform(0, size, (size, size)) < min(_TERMS, size / 1.5)
        return rng.signs(size * size).reshape(size, size) * chosen

    while True:
        signs = np.diag(rng.signs(size))
        lower, upper = np.tril(some(), -1) + np.eye(size), np.triu(some(), 1) + np.eye(size)
        matrix = signs @ lower @ upper
        inverse = np.rint(np.linalg.inv(matrix))
        small, right = np.abs(inverse).max() <= _COEFFICIENT, np.array_equal(matrix @ inverse, np.eye(size))
        if small and right and (np.count_nonzero(matrix, axis=1) >= min(2, size)).all():  # no filter goes out bare
            return matrix, inverse


_LATTICE = "weights of 8-bit models: integer mixtures span a lattice whose shortest vectors are the filters (A20)"
_SPAN = "weights: a public relative projected on the span of a group gives them back (A6, A7)"
_ICA = "weights: heavy-tailed filters, as in early layers, are unmixed without a prior (A19)"
_TWICE = "weights: two obfuscations of one model intersect in them (A17): obfuscate once, then seal for each device"

_GROUPCOVER = Mixing(
    "groupcover",
    Claims("mixed in groups of g", "float masks", "g multiply-adds for each output", "Zhang et al. 2024"),
    (_SPAN, _ICA, _LATTICE, "depthwise weights: permuted only (A2)", _TWICE, FLOAT_MASKS, PUBLIC),
    mask=NOISE,
)
_MIX = Mixing(
    "mix",
    Claims("mixed in groups with mask filters", "one-time pads mod p", "r g multiply-adds for each output", "ours"),
    (_SPAN, _ICA, _LATTICE, _TWICE, FLOAT_MASKS, PUBLIC),
    mask=NOISE, masks_input=True, activations="exact", masked=True, depthwise_inside=True,
)  # fmt: skip


def groupcover(variant: str) -> Mixing:
    """``g``, the filters of a group. Raises ``InputError``."""
    return _sized(_GROUPCOVER, variant)


def mix(variant: str) -> Mixing:
    """``g``, the filters of a group. Raises ``InputError``."""
    return _sized(_MIX, variant)


def _sized(scheme: Mixing, variant: str) -> Mixing:
    if not is_count(variant, 2, MAX_GROUP):
        raise InputError(f"{scheme.name} takes a group size from 2 to {MAX_GROUP}, not {variant!r}",
                         f"such as {scheme.name}:8")  # fmt: skip
    return replace(scheme, name=f"{scheme.name}:{int(variant)}", group=int(variant))
