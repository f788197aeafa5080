"""Freivalds' check with vectors that are made from the public weights a few filters at a time."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from enclave.bounded.bands import Weights
from enclave.integrity import VECTORS, Checker, Q
from enclave.rng import Rng

Array = np.ndarray[Any, Any]

_CHUNK = 512  # filters folded at a time, so that no sum leaves int64


class StreamedChecker(Checker):
    """A :class:`Checker` that never holds a layer's weights whole."""

    def __init__(self, weights: Weights, exact: bool, rng: Rng, limit: int) -> None:
        """``limit``: bytes of weights at a time. Raises ``BundleError`` for weights outside the public model."""
        public = weights.public
        self._draw(public, weights.filters, exact, rng)
        dtype = np.int64 if exact else np.float64
        channels = weights.depth * public.groups
        folded = np.zeros((VECTORS, *public.kernel, channels), dtype)
        norms = np.zeros(weights.filters)
        for filters, inputs, taps in weights.pieces(limit):
            values = np.rint(taps).astype(dtype) if exact else taps.astype(dtype)
            if not exact:
                norms[filters] = np.square(values).sum(axis=(0, 1, 2))
            if public.kind == "DEPTHWISE_CONV_2D":
                each = values.reshape(*public.kernel, channels, -1)
                vectors = self.vectors[:, filters].astype(dtype).reshape(VECTORS, channels, -1)
                folded += np.einsum("vcm,hwcm->vhwc", vectors, each)
                continue
            for at in range(0, values.shape[3], _CHUNK):
                part = slice(at, at + _CHUNK)
                vectors = self.vectors[:, filters][:, part].astype(dtype)
                folded[..., inputs] += np.einsum("vm,hwdm->vhwd", vectors, values[..., part])
                if exact:
                    np.mod(folded, Q, out=folded)
        self._settle(folded % Q if exact else folded, norms)

    @staticmethod
    def resident(weights: Weights, exact: bool) -> int:
        """Bytes that the vectors take for good."""
        public = weights.public
        values = VECTORS * (weights.filters + math.prod(public.kernel) * weights.depth * public.groups)
        return (8 if exact else 4) * values

    @staticmethod
    def making(weights: Weights, limit: int) -> int:
        """Bytes that making them takes besides, with ``limit`` bytes of weights at a time."""
        public = weights.public
        folded = math.prod(public.kernel) * weights.depth * public.groups
        return 5 * max(limit, weights.least) + 8 * VECTORS * (3 * folded + 6 * weights.filters) + 8 * weights.filters
