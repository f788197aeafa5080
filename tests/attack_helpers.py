"""Layers made up for attacks: synthetic weights, schemes of the field in a few lines, views of one layer."""

from __future__ import annotations

from typing import Any

import numpy as np
from seeded import SeededRng

from enclave import schemes
from enclave.restore import Restore
from enclave.schemes import LayerWeights
from shadownet.attacks.truth import TrueLayer
from shadownet.attacks.view import AdversaryView, Geometry, PublicLayer

Array = np.ndarray[Any, Any]


def gaussian(n: int, d: int, seed: int = 0) -> Array:
    """Filters [1, n, d] without structure."""
    return np.random.default_rng(seed).normal(0, 1 / np.sqrt(d), (1, n, d))


def relative(rows: Array, delta: float, seed: int = 100) -> Array:
    """A public model at distance ``delta``: rows plus noise of that relative size."""
    noise = np.random.default_rng(seed).normal(size=rows.shape)
    return rows + delta * np.linalg.norm(rows) / np.linalg.norm(noise) * noise


def one_layer(
    rows: Array, true: Array, scheme: str = "other", base: Array | None = None, kernel: int = 1,
    depthwise: bool = False, numbers: str = "float", **parameters: Any,
) -> AdversaryView:  # fmt: skip
    """A view of one layer whose public rows are ``rows``, as float32 would store them."""
    d = rows.shape[2]
    channels = 1 if depthwise else d // kernel**2
    layer = PublicLayer(
        "layer000", 0, 0, "DEPTHWISE_CONV_2D" if depthwise else "CONV_2D", rows.astype(np.float32).astype(np.float64),
        true.shape[0] * true.shape[1], depthwise, numbers, (1, 8, 8, channels), (1, 8, 8, rows[..., 0].size),
        Geometry((kernel, kernel), channels), True,
    )  # fmt: skip
    return AdversaryView(scheme, parameters, (layer,), base=None if base is None else (base,))


def shadownet(
    true: Array, variant: str, seed: int = 0, base: Array | None = None, depthwise: bool = False, kernel: int = 1,
    integer: bool = False,
) -> tuple[AdversaryView, TrueLayer]:  # fmt: skip
    """The project's own ShadowNet on filters [groups, n, d]."""
    scheme = schemes.get(f"shadownet:{variant}")
    hidden = scheme.obfuscate(LayerWeights(true.astype(np.float32), depthwise, integer), 1.2, SeededRng(seed))
    numbers = "integer" if integer else "float"
    view = one_layer(hidden.rows, true, scheme.name, base, kernel, depthwise, numbers, ratio=1.2)
    return view, TrueLayer("layer000", true.astype(np.float32).astype(np.float64), depthwise, hidden.restore)


def mixed(
    true: Array, name: str, seed: int = 0, base: Array | None = None, integer: bool = False, rounded: bool = False,
    kernel: int = 3,
) -> tuple[AdversaryView, TrueLayer]:  # fmt: skip
    """A scheme that mixes, such as "mix:8", on filters [1, n, d]; integers exactly, or ``rounded``."""
    channels = true.shape[2] // kernel**2
    layer = LayerWeights(true.astype(np.float32), integer=integer, rounded=rounded, channels=channels)
    hidden = schemes.get(name).obfuscate(layer, 1.2, SeededRng(seed))
    group = int(name.partition(":")[2])
    numbers = ("fixed" if rounded else "integer") if integer else "float"
    view = one_layer(hidden.rows, true, name, base, kernel, False, numbers, group=group)
    return view, TrueLayer("layer000", true.copy(), False, hidden.restore)


def truth(true: Array, restore: Restore | None = None, depthwise: bool = False) -> TrueLayer:
    return TrueLayer("layer000", true.copy(), depthwise, restore)


def group_cover(true: Array, g: int, k: int, seed: int = 0, signed: bool = False) -> Array:
    """Random groups of ``g`` filters mixed with coefficients 1 to 99 (or normal ones), input channels permuted.

    Where g does not divide their number, filters are dealt evenly."""
    rng = np.random.default_rng(seed)
    n, d = true.shape[1:]
    members = np.array_split(rng.permutation(n), -(-n // g))
    mixed = np.empty((n, d))
    for row in members:
        size = (len(row), len(row))
        mix = rng.normal(size=size) if signed else rng.integers(1, 100, size).astype(float)
        mixed[row] = mix @ true[0, row]
    mixed = mixed[rng.permutation(n)]
    order = rng.permutation(d // k)
    return mixed.reshape(n, k, -1)[:, :, order].reshape(1, n, d)


def loro(true: Array, rank: int = 8, seed: int = 0, size: float = 0.1) -> Array:
    """W + B A, entries uniform in [0, ``size``]."""
    rng = np.random.default_rng(seed)
    n, d = true.shape[1:]
    return true + (rng.uniform(0, size, (n, rank)) @ rng.uniform(0, size, (rank, d)))[None]


def arrow_cloak(true: Array, seed: int = 0) -> Array:
    """s w + b v with v = W^T c, s in {1, 2}, b in {-5 .. 5}, c in {0 .. 4}; rows permuted."""
    rng = np.random.default_rng(seed)
    n = true.shape[1]
    v = rng.integers(0, 5, n) @ true[0]
    rows = rng.integers(1, 3, (n, 1)) * true[0] + rng.integers(-5, 6, (n, 1)) * v
    return rows[rng.permutation(n)][None]


def orthogonal(size: int, seed: int = 0) -> Array:
    q, r = np.linalg.qr(np.random.default_rng(seed).normal(size=(size, size)))
    return q * np.sign(np.diag(r))
