"""Is a layer worth outsourcing? A first rule for ``--outsource auto``: bytes crossed against multiply-adds.

Outsourcing takes a layer's multiply-adds off the enclave, and costs it passes over every byte that crosses (mask, copy,
restore) and a crossing. Both prices are in multiply-adds, measured with ``shadownet bench`` on MobileNet v1 and
ResNet-44 on an AMD EPYC (Zen 5): about 0.13 ns per byte and 15 us per crossing, against 0.01 ns per multiply-add. The
accelerator's own time counts as free, as if it were much faster than the enclave; masks are taken as prepared.
"""

from __future__ import annotations

import math

from shadownet.linear import LinearOp

PER_BYTE = 13
PER_CROSSING = 1_500_000


def price(lin: LinearOp, ratio: float) -> int:
    """What outsourcing costs the enclave, in multiply-adds; answers have ceil(r n) channels."""
    channels = lin.filters if lin.depthwise else math.ceil(round(lin.filters * ratio, 6))
    crossed = 4 * (math.prod(lin.input_shape) + lin.positions * channels)
    return PER_BYTE * crossed + PER_CROSSING


def sending(lin: LinearOp) -> float:
    """What sending one limb of an exact layer's input costs, against computing one and reading the answer."""
    return 4 * PER_BYTE * math.prod(lin.input_shape) / (lin.macs + 4 * PER_BYTE * lin.positions * lin.filters)


def verdict(lin: LinearOp, ratio: float) -> str:
    """Why the layer is not worth outsourcing, or "" if it is."""
    cost = price(lin, ratio)
    if lin.macs > cost:
        return ""
    return f"not worth it: saves {lin.macs / 1e6:.2g} M multiply-adds, costs the work of {cost / 1e6:.2g} M"
