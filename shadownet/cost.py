"""Is a layer worth outsourcing? Without a device, a first rule for ``--outsource auto``: bytes against multiply-adds.

Outsourcing takes a layer's multiply-adds off the enclave, and costs it passes over every byte that crosses (mask, copy,
restore) and a crossing. Both prices are in multiply-adds, measured with ``shadownet bench`` on MobileNet v1 and
ResNet-44 on an AMD EPYC (Zen 5): about 0.13 ns per byte and 15 us per crossing, against 0.01 ns per multiply-add. The
accelerator's own time counts as free, as if it were much faster than the enclave; masks are taken as prepared.

With a device's profile the simulator's cost model decides (:func:`verdict_on`).
"""

from __future__ import annotations

import math

from shadownet.linear import LinearOp
from shadownet.simulator import predict
from shadownet.simulator.counts import Counts, Step, checking
from shadownet.simulator.profile import Device
from shadownet.simulator.work import Work

PER_BYTE = 13
PER_CROSSING = 1_500_000


def price(lin: LinearOp, ratio: float) -> int:
    """What outsourcing costs the enclave, in multiply-adds; answers have ceil(r n) channels."""
    crossed = 4 * (math.prod(lin.input_shape) + lin.positions * _channels(lin, ratio))
    return PER_BYTE * crossed + PER_CROSSING


def _channels(lin: LinearOp, ratio: float) -> int:
    """Filters that leave: ceil(r n), and n of a depthwise layer."""
    return lin.filters if lin.depthwise else math.ceil(round(lin.filters * ratio, 6))


def sending(lin: LinearOp) -> float:
    """What sending one limb of an exact layer's input costs, against computing one and reading the answer."""
    return 4 * PER_BYTE * math.prod(lin.input_shape) / (lin.macs + 4 * PER_BYTE * lin.positions * lin.filters)


def verdict(lin: LinearOp, ratio: float) -> str:
    """Why the layer is not worth outsourcing, or "" if it is."""
    cost = price(lin, ratio)
    if lin.macs > cost:
        return ""
    return f"not worth it: saves {lin.macs / 1e6:.2g} M multiply-adds, costs the work of {cost / 1e6:.2g} M"


def verdict_on(device: Device, lin: LinearOp, ratio: float) -> str:
    """The same for a device: predicted milliseconds of the layer outside, every answer checked, against inside.

    Each layer is judged alone, and the trusted application taken as large as the device allows.
    """
    inputs, n, m = math.prod(lin.input_shape), lin.filters, _channels(lin, ratio)
    inside = Work(lin.kind, lin.macs, inputs + lin.positions * n, 4 * n * lin.depth)
    outside = Work(lin.kind, lin.macs * m // n, inputs + lin.positions * m, 4 * m * lin.depth)
    out = Step(
        "outside", (outside,), sent=inputs, received=lin.positions * m, lookups=2 * lin.positions * n,
        check=checking(lin.geometry(), lin.input_shape, (*lin.output_shape[:-1], m)),
    )  # fmt: skip
    size = int(device.get("enclave", "memory_mib").value * predict.MIB)
    times = [
        predict.protected(Counts((step,), 1.0, 0, 0, 0), device, size).latency_ms.expected
        for step in (out, Step("inside", enclave=(inside,)))
    ]
    if times[0] < times[1]:
        return ""
    return f"not worth it on {device.name}: {times[0]:.2g} ms outside, {times[1]:.2g} ms inside"
