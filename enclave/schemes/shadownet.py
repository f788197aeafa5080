"""ShadowNet's transform (Sun et al., IEEE S&P 2023), as its authors' released code has it.

With filters w_i, mask filters f_k, scalars s_i and a secret order of the M = ceil(r n) slots:

    slot of filter i:  (w_i - f_j(i)) / s_i        slot of mask k:  f_k         j(i) uniform over the masks
    restore:           y_i = s_i * Y[slot of i] + Y[slot of j(i)]

A depthwise convolution has no mask filters: its channels are permuted, x'[c] = x[p[c]], and scaled; restoring
undoes both. Mask filters stand in the clear among the public rows, which is what breaks the scheme without any
prior knowledge: mask filters and the rows that hide behind them are collinear.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np

from enclave.restore import Restore
from enclave.rng import Rng
from enclave.schemes.base import Array, LayerWeights, MaskRule, Obfuscated

_LINE, _WIDE = 16, 128  # rows of answers of wide layers start on cache lines

PROTECTS = ("weights against an accelerator that only looks for the model file",)
LEAKS = (
    "weights: mask filters are public and collinear with what they hide; no prior needed (A4)",
    "weights: a public relative of the model gives permutation, masks and scalars (A3)",
    "depthwise weights: permuted and scaled only (A2)",
    "activations: float masks are noise; repeated inputs average them out (A15), and the known first input "
    "lets layers be peeled by regression (A16)",
    "architecture, shapes, timing, the first layer's input unless it is masked",
    "nothing checks the answers beyond being finite: a malicious accelerator may change results (A14, A18)",
)


@dataclass(frozen=True)
class ShadowNet:
    """One variant. ``matched`` mask filters have the layer's weight deviation, otherwise deviation 1."""

    name: str
    mask: MaskRule
    matched: bool
    smallest_scalar: float  # scalars are U(smallest, 1); 1.0 means none
    keeps_last_dense: bool
    tuned: bool = False
    protects: tuple[str, ...] = PROTECTS
    leaks: tuple[str, ...] = LEAKS

    def obfuscate(self, layer: LayerWeights, ratio: float, rng: Rng) -> Obfuscated:
        if layer.last_dense and self.keeps_last_dense:
            return Obfuscated(layer.rows, Restore.natural(layer.rows.shape[0] * layer.rows.shape[1]))
        if layer.depthwise:
            return self._depthwise(layer, rng)
        groups, n, d = layer.rows.shape
        total = slots(n, ratio, self.tuned)
        # Integers of many bits differ by more than float32 holds.
        public = np.empty((groups, total, d), np.float64 if layer.integer else np.float32)
        real, mask = np.empty((groups, n), np.int32), np.empty((groups, n), np.int32)
        scale = self._scalars(layer, groups * n, rng).reshape(groups, n)
        for g in range(groups):
            masks = self._mask_filters(layer.rows[g], total - n, layer.integer, rng)
            order = rng.permutation(total)  # order[k] is the slot of filter k, or of mask k - n
            real[g] = order[:n] + g * total
            if total > n:
                chosen = rng.integers(0, total - n, (n,))
                hidden = layer.rows[g] - masks[chosen]
                mask[g] = order[n + chosen] + g * total
            else:
                hidden = layer.rows[g]
            public[g, order[:n]] = hidden / scale[g][:, None]
            public[g, order[n:]] = masks
        scales = scale.ravel().astype(np.float32)
        if total == n:
            return Obfuscated(public, Restore(real.reshape(1, -1), scales[None]))
        slots_ = np.stack([real.ravel(), mask.ravel()])
        return Obfuscated(public, Restore(slots_, np.stack([scales, np.ones_like(scales)])))

    def _depthwise(self, layer: LayerWeights, rng: Rng) -> Obfuscated:
        channels, multiplier, _ = layer.rows.shape
        order = rng.permutation(channels)
        scale = self._scalars(layer, channels * multiplier, rng).reshape(channels, multiplier)
        public = (layer.rows / scale[..., None])[order].astype(np.float32)
        slot_of = np.argsort(order)  # channel c went to this slot
        real = slot_of[:, None] * multiplier + np.arange(multiplier)
        restore = Restore(
            real.ravel().astype(np.int32)[None], scale.ravel().astype(np.float32)[None], order.astype(np.int32)
        )
        return Obfuscated(public, restore)

    def _mask_filters(self, rows: Array, count: int, integer: bool, rng: Rng) -> Array:
        sigma = float(rows.std()) if self.matched or integer else 1.0
        masks = rng.normal(sigma, (count, rows.shape[1]))
        return np.rint(masks, dtype=np.float64) if integer else masks

    def _scalars(self, layer: LayerWeights, count: int, rng: Rng) -> Array:
        if self.smallest_scalar == 1.0:
            return np.ones(count)
        if layer.integer:
            return rng.signs(count)
        # Rounded to float32 before it divides, so that restoring multiplies by exactly what was divided by.
        return rng.uniform(self.smallest_scalar, 1.0, (count,)).astype(np.float32).astype(np.float64)


def slots(n: int, ratio: float, tuned: bool = False) -> int:
    """M = ceil(r n), not fooled by the binary representation of r; wide layers rounded up to 16 if ``tuned``."""
    total = math.ceil(round(ratio * n, 6))
    return -(-total // _LINE) * _LINE if tuned and total >= _WIDE else total


PAPER = ShadowNet("shadownet:paper", MaskRule(relative=8.0), True, 1 / 16, False)
ARTIFACT = ShadowNet("shadownet:artifact", MaskRule(absolute=0.05), False, 1.0, True)
FAST = replace(PAPER, name="shadownet:fast", tuned=True)
