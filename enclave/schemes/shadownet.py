"""ShadowNet's transform (Sun et al., IEEE S&P 2023), as its authors' released code has it.

With filters w_i, mask filters f_k, scalars s_i and a secret order of the M = ceil(r n) slots:

    slot of filter i:  (w_i - f_j(i)) / s_i        slot of mask k:  f_k         j(i) uniform over the masks
    restore:           y_i = s_i * Y[slot of i] + Y[slot of j(i)]

A depthwise convolution has no mask filters: its channels are permuted, x'[c] = x[p[c]], and scaled; restoring
undoes both. Mask filters stand in the clear among the public rows, which is what breaks the scheme without any
prior knowledge: mask filters and the rows that hide behind them are collinear.
"""

from __future__ import annotations

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
    MaskRule,
    Obfuscated,
    Plain,
    slots,
)

_LANES = 32  # filters that XNNPACK computes at a time

LEAKS = (
    "weights: mask filters are public and collinear with what they hide; no prior needed (A4)",
    "weights: a public relative of the model gives permutation, masks and scalars (A3)",
    "weights: two obfuscations of one model intersect in them (A17): obfuscate once, then seal for each device",
    "depthwise weights: permuted and scaled only (A2)",
    FLOAT_MASKS,
    PUBLIC,
)
CLAIMS = Claims("transformed; falls to A4", "float masks", "r times the filters", "Sun et al. 2023")


@dataclass(frozen=True)
class ShadowNet(Plain):
    """One variant. ``matched`` mask filters have the layer's weight deviation, otherwise deviation 1."""

    matched: bool = True
    smallest_scalar: float = 1 / 16  # scalars are U(smallest, 1); 1.0 means none
    keeps_last_dense: bool = False

    def obfuscate(self, layer: LayerWeights, ratio: float, rng: Rng) -> Obfuscated:
        if layer.last_dense and self.keeps_last_dense:
            return Obfuscated(layer.rows, Restore.natural(layer.rows.shape[0] * layer.rows.shape[1]))
        if layer.depthwise:
            return self._depthwise(layer, rng)
        groups, n, d = layer.rows.shape
        total = slots(n, ratio)
        if self.tuned:
            total = _comfortable(total)
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


def _comfortable(total: int) -> int:
    """At least ``total`` filters, as many as XNNPACK computes in the same time or less.

    The last 16 or fewer beyond a multiple of 32 send it to slower kernels: on 14x14x512, 624 filters take 598
    microseconds, 640 take 496; on 32x32x16, 20 take 52, 32 take 39. In between, where rounding up would cost much,
    shadownet/tiling.py cuts them off instead."""
    rounded = -(-total // _LANES) * _LANES
    few = total % _LANES <= _LANES // 2 and _LANES < total < 4 * _LANES
    return total if few or total <= _LANES // 2 else rounded


PAPER = ShadowNet("shadownet:paper", CLAIMS, LEAKS, NOISE)
ARTIFACT = replace(
    PAPER,
    name="shadownet:artifact",
    mask=MaskRule(absolute=0.05),
    matched=False,
    smallest_scalar=1.0,
    keeps_last_dense=True,
    leaks=(*LEAKS, "weights: the last dense layer is public, as in the authors' code"),
)
FAST = replace(PAPER, name="shadownet:fast", tuned=True)
