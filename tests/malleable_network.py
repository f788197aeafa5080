"""A network of dense layers in fixed point behind ShadowNet's mask filters, as exact activations run it, in NumPy."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from shadownet.attacks.malleation import Malleable
from shadownet.attacks.view import AdversaryView, Crossing, Geometry, Knowledge, PublicLayer

Array = np.ndarray[Any, Any]

LEVELS = 2047
COUNT = 4  # limbs of what crosses


class Network:
    """Random weights, 12 bits, of the given ``sizes``; every layer but the last has n / 4 mask slots."""

    def __init__(self, sizes: list[int], seed: int = 0) -> None:
        self.rng = rng = np.random.default_rng(seed)
        self.weights, self.scales, self.biases, self.primes, self.bases = [], [], [], [], []
        self.real: list[Array] = []
        self.mask: list[Array] = []
        self.slots: list[int] = []
        for k, (d, n) in enumerate(zip(sizes, sizes[1:], strict=False)):
            w = rng.normal(size=(n, d))
            scale = np.abs(w).max(axis=1) / LEVELS
            w = np.rint(w / scale[:, None]).astype(np.int64)
            masks = -(-n // 4) if k < len(sizes) - 2 else 0
            order = rng.permutation(n + masks) if masks else np.arange(n)
            chosen = rng.integers(0, masks, n) if masks else np.zeros(n, int)
            self.real.append(order[:n])
            self.mask.append(order[n + chosen] if masks else np.full(n, -1))
            self.slots.append(n + masks)
            bound = 2 * int(np.abs(w).sum(axis=1).max()) * LEVELS
            prime = (1 << bound.bit_length()) - 1  # any odd number will do here
            base = 3
            while base**COUNT < prime:
                base += 2
            self.weights.append(w)
            self.scales.append(scale / np.sqrt(d))
            self.biases.append(rng.normal(0, 0.3, n))
            self.primes.append(prime)
            self.bases.append(base)

    @property
    def parameters(self) -> int:
        return sum(w.size for w in self.weights)

    def label(self, x: Array, offsets: Mapping[str, Array]) -> int:
        x = x.astype(np.float64)
        for k, w in enumerate(self.weights):
            largest = np.abs(x).max()
            q = np.rint(x * (LEVELS / largest if largest else 0.0))
            y, name = w @ q.astype(np.int64), f"layer{k:03d}"
            if name in offsets:
                e = (self.bases[k] ** np.arange(COUNT)) @ offsets[name].astype(np.int64)
                y = y + e[self.real[k]] + np.where(self.mask[k] >= 0, e[self.mask[k]], 0)
            half = self.primes[k] // 2
            y = (y + half) % self.primes[k] - half
            z = y * self.scales[k] * (largest / LEVELS) + self.biases[k]
            x = np.maximum(z, 0.0) if k < len(self.weights) - 1 else z
        return int(x.argmax())

    def view(self, budget: int) -> AdversaryView:
        layers, transcript = [], []
        for k, w in enumerate(self.weights):
            n, d = w.shape
            m = self.slots[k]
            layers.append(
                PublicLayer(
                    f"layer{k:03d}",
                    k,
                    k,
                    "FULLY_CONNECTED",
                    np.zeros((1, m, d)),
                    n,
                    False,
                    "fixed",
                    (COUNT, d),
                    (COUNT, m),
                    Geometry((1, 1), d),
                    k > 0,
                )  # fmt: skip
            )
            reach = (self.bases[k] - 1) // 2
            sent = self.rng.integers(-reach, reach + 1, (COUNT, 50 * d)).astype(np.float32)
            transcript.append(Crossing(f"layer{k:03d}", sent, sent))
        return AdversaryView(
            "shadownet:artifact", {"bits": "12/12"}, tuple(layers), Knowledge.MALICIOUS, None, tuple(transcript),
            Malleable(self.label, budget),
        )  # fmt: skip
