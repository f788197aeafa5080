"""The cost model: counts times a device's parameters. docs/simulator.md has the formula and where it fails.

Latency is a sum of terms. Each has the uncertainty of its parameter; errors of different terms count as independent.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, replace

from shadownet.simulator.counts import Counts, Step
from shadownet.simulator.profile import Device, Number
from shadownet.simulator.work import Work

MIB = 1 << 20
PAGE = 4096
TILE = 256 << 10  # bytes of an answer that are handled at a time where a layer does not fit

FITS, TILED, PAGED, NOT = "fits", "fits with tiling", "fits with paging", "does not fit"

# Term -> (what it is, what would reduce it).
TERMS = {
    "accelerator_ops": ("starting ops on the accelerator", "fewer, larger layers; a runtime with cheaper launches"),
    "accelerator_macs": ("multiply-adds on the accelerator", "a smaller obfuscation ratio; a faster accelerator"),
    "accelerator_elements": ("activations moved on the accelerator", "fewer or smaller feature maps"),
    "accelerator_weights": ("weights read by the accelerator", "a smaller model; larger batches"),
    "app": ("the app's own call", "more work in one call"),
    "switch": ("entering and leaving the enclave", "fewer crossings: outsource fewer layers (--outsource auto)"),
    "mapping": ("mapping the enclave's memory at each entry", "a smaller trusted application; pre-allocated tables"),
    "pages": ("mapping shared pages at each entry", "memory that stays shared; fewer bytes crossed"),
    "copy": ("bytes crossing", "a smaller obfuscation ratio; outsource fewer layers with large maps"),
    "enclave_ops": ("starting ops in the enclave", "fewer trusted segments"),
    "enclave_macs": ("multiply-adds in the enclave", "outsource more layers; check fewer answers (--integrity spot:F)"),
    "enclave_elements": ("passes over activations in the enclave", "vector code in the enclave; fewer masked layers"),
    "enclave_weights": ("weights read by the enclave", "outsource the layers with the most weights"),
    "streaming": ("unsealing what the enclave has no room for", "more enclave memory; fewer masks"),
    "paging": ("pages swapped in and out of the enclave", "a working set that fits; outsource the largest layers"),
}


@dataclass(frozen=True)
class Interval:
    """``expected``, and where the profile's uncertainty puts the truth."""

    low: float
    expected: float
    high: float

    def to_json(self) -> dict[str, float]:
        return {"low": self.low, "expected": self.expected, "high": self.high}


@dataclass(frozen=True)
class Memory:
    """Bytes of secure memory: all at hand (``needed``), or tile by tile (``tiled``), against the ``budget``."""

    needed: int
    tiled: int
    budget: int
    verdict: str

    @property
    def size(self) -> int:
        """What the trusted application would be built with."""
        return self.tiled if self.verdict == TILED else self.needed


@dataclass(frozen=True)
class Estimate:
    """Milliseconds by term, as intervals; the sum of them; millijoules; memory; and making one set of masks (ms)."""

    terms: dict[str, Interval]
    latency_ms: Interval
    energy_mj: Interval
    memory: Memory
    masks_ms: Interval

    @property
    def dominant(self) -> str:
        """The largest term; of nothing, the first of all."""
        return max(self.terms, key=lambda term: self.terms[term].expected, default=next(iter(TERMS)))


class _Ledger:
    """Adds up milliseconds by term and number. All uses of one number share its error; numbers are independent."""

    def __init__(self, device: Device) -> None:
        self._device = device
        self._found: dict[tuple[str, Number], float] = {}

    def add(self, term: str, milliseconds: float, number: Number) -> None:
        """``milliseconds`` are those at the number's value."""
        key = (term, number)
        self._found[key] = self._found.get(key, 0.0) + milliseconds

    def layer(self, works: tuple[Work, ...]) -> float:
        """Charge a layer to the accelerator, on which small ones may run with fewer threads; returns the
        milliseconds."""
        small = sum(work.macs for work in works) < self._device.get("accelerator", "small_mmac").value * 1e6
        return self.work("accelerator", works, self._device.get("accelerator", "small_factor").value if small else 1.0)

    def work(self, side: str, works: Iterable[Work], factor: float = 1.0) -> float:
        """Charge ops to one side, ``factor`` times what its rates say; returns the milliseconds. Ops that only rename
        memory are free."""
        total, start = 0.0, self._device.get(side, "op_us")
        for work in works:
            if not (work.macs or work.elements):
                continue
            parts = [("ops", start.value * 1e-3, start)]
            for name, amount, parameter in (
                ("macs", work.macs, "gmac_s"), ("elements", work.elements, "gelem_s"),
                ("weights", work.weights, "weights_gb_s"),
            ):  # fmt: skip
                rate = self._device.rate(side, parameter, work.kind)
                parts.append((name, factor * amount / (rate.value * 1e6), rate))
            for name, milliseconds, number in parts:
                self.add(f"{side}_{name}", milliseconds, number)
                total += milliseconds
        return total

    def passes(self, elements: int) -> None:
        """Charge passes over activations: masking, copying, restoring."""
        rate = self._device.rate("enclave", "gelem_s", "PASS")
        self.add("enclave_elements", elements / (rate.value * 1e6), rate)

    def terms(self) -> dict[str, Interval]:
        """By term, in the order of ``TERMS``; those that are 0 are left out."""
        parts = {t: [(amount, n) for (term, n), amount in self._found.items() if term == t and amount] for t in TERMS}
        return {term: _sum(found) for term, found in parts.items() if found}

    def total(self) -> Interval:
        return _sum((amount, number) for (_, number), amount in self._found.items())

    def energy(self) -> Interval:
        """Power of the side that works times its time; crossings are the enclave's."""
        parts = []
        for (term, number), amount in self._found.items():
            side = "accelerator" if term.startswith("accelerator") else "enclave"
            power = self._device.get("power", f"{side}_w")
            parts.append((amount * power.value, replace(number, within=number.within * power.within)))
        return _sum(parts)


def _sum(parts: Iterable[tuple[float, Number]]) -> Interval:
    parts = list(parts)
    expected = sum(amount for amount, _ in parts)
    above = math.sqrt(sum((amount * (number.within - 1)) ** 2 for amount, number in parts))
    below = math.sqrt(sum((amount * (1 - 1 / number.within)) ** 2 for amount, number in parts))
    return Interval(expected - below, expected, expected + above)


def unprotected(works: Iterable[Work], device: Device) -> Estimate:
    """All of the model on the accelerator."""
    ledger = _Ledger(device)
    ledger.work("accelerator", works)
    none = Interval(0.0, 0.0, 0.0)
    return Estimate(ledger.terms(), ledger.total(), ledger.energy(), Memory(0, 0, _budget(device), FITS), none)


def protected(counts: Counts, device: Device, ta_memory: int = 0) -> Estimate:
    """One inference with one set of masks made beforehand.

    ``ta_memory`` is the bytes that the trusted application is built with, in place of the device's budget; 0 for as
    many as it needs.
    """
    ledger = _Ledger(device)
    memory = secure_memory(counts, device, ta_memory)
    hidden = 0.0  # accelerator time during which the enclave can do something of its own
    for step in counts.steps:
        hidden = ledger.layer(step.accelerator)
        ledger.work("enclave", step.enclave)
        ledger.passes(step.sent + step.received + step.lookups)
        _check(ledger, step, counts.checked, device, hidden if device.overlaps else 0.0)
    _crossings(ledger, counts, device, ta_memory or memory.size)
    _shortage(ledger, counts, device, memory)
    return Estimate(ledger.terms(), ledger.total(), ledger.energy(), memory, _masks(counts, device))


def _check(ledger: _Ledger, step: Step, share: float, device: Device, hidden: float) -> None:
    rate = device.rate("enclave", "gmac_s", "CHECK")
    visible = max(step.check * share / (rate.value * 1e6) - hidden, 0.0)
    ledger.add("enclave_macs", visible, rate)


def _crossings(ledger: _Ledger, counts: Counts, device: Device, size: int) -> None:
    """Every layer's round trip, and the app's own."""
    entries = counts.crossings + 1
    crossed = sum(step.bytes_out + step.bytes_in for step in counts.steps) + counts.interface
    pages = sum(-(-step.bytes_out // PAGE) + -(-step.bytes_in // PAGE) for step in counts.steps)
    pages += -(-counts.interface // PAGE)
    app = device.get("crossing", "app_us")
    ledger.add("app", app.value * 1e-3, app)
    switch, mapping, page, rate = (device.get("crossing", name) for name in ("switch_us", "map_us_per_mib", "page_us",
                                                                             "gb_s"))  # fmt: skip
    ledger.add("switch", entries * switch.value * 1e-3, switch)
    ledger.add("mapping", entries * mapping.value * 1e-3 * size / MIB, mapping)
    ledger.add("pages", pages * page.value * 1e-3, page)
    ledger.add("copy", crossed / (rate.value * 1e6), rate)


def _shortage(ledger: _Ledger, counts: Counts, device: Device, memory: Memory) -> None:
    """What it costs that not everything fits: sealed masks and weights are streamed, or pages swapped."""
    used = sum(work.weights for step in counts.steps for work in step.enclave)
    if memory.verdict in (TILED, NOT):  # what does not fit is priced as if it could be tiled further
        rate = device.get("enclave", "unseal_gb_s")
        ledger.add("streaming", (counts.mask_bytes + used) / (rate.value * 1e6), rate)
    if memory.verdict == PAGED:
        swap = device.get("enclave", "swap_us")
        touched = counts.mask_bytes + used + 4 * int(counts.totals()["enclave_elements"])
        ledger.add("paging", touched / PAGE * swap.value * 1e-3, swap)


def _masks(counts: Counts, device: Device) -> Interval:
    """Making one set: the enclave's own linear work on random values."""
    ledger = _Ledger(device)
    for step in counts.steps:
        ledger.work("enclave", step.offline)
    return ledger.total()


def _budget(device: Device) -> int:
    return int(device.get("enclave", "memory_mib").value * MIB)


def secure_memory(counts: Counts, device: Device, ta_memory: int = 0) -> Memory:
    """What the enclave needs, with everything at hand and one set of masks, and what it needs if it streams."""
    base = int(device.get("enclave", "base_mib").value * MIB) + counts.tables
    buffers = 4 * max((step.sent for step in counts.steps), default=0)
    buffers += 4 * max((step.received for step in counts.steps), default=0)
    tensors = max((step.held + step.arena for step in counts.steps), default=0)
    needed = base + counts.weights + counts.mask_bytes + buffers + tensors
    kept = max((step.across if step.crosses else step.held + step.arena for step in counts.steps), default=0)
    tiled = min(base + kept + 2 * TILE, needed)
    budget = ta_memory or _budget(device)
    if needed <= budget:
        verdict = FITS
    elif device.get("enclave", "swap_us").value > 0 and not ta_memory:
        verdict = PAGED
    else:
        verdict = TILED if tiled <= budget else NOT
    return Memory(needed, tiled, budget, verdict)
