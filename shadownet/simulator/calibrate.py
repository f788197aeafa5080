"""``shadownet calibrate``: this machine's own parameters, measured on small networks and written as a profile.

Times are the least of many runs, since what disturbs a run only makes it longer. The networks are chains of layers
(:mod:`shadownet.simulator.networks`); real ones are not looked at, so that predictions for them can be checked.
"""

from __future__ import annotations

import os
import platform
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from enclave import keys
from shadownet.bench import SETTLE_S, environment
from shadownet.converter import convert
from shadownet.graph import parse
from shadownet.inputs import random_inputs
from shadownet.progress import track
from shadownet.session import Session
from shadownet.simulator import counts
from shadownet.simulator.counts import Counts
from shadownet.simulator.fitting import fit
from shadownet.simulator.networks import PLAIN, PROTECTED, Chain
from shadownet.simulator.profile import MINE, Device, Number
from shadownet.simulator.work import Work, work_of

Array = np.ndarray[Any, Any]

LEAST_RUNS = 5
SETS = 8
SCHEME = "shadownet:fast"
HUGE = 1e5  # a rate for what costs nothing of its own here


@dataclass(frozen=True)
class Timed:
    """A protected chain: what was counted, and the least milliseconds of one inference and of its phases."""

    counts: Counts
    total: float
    passes: float  # copying, restoring, masking
    checking: float
    masks: float


def calibrate(num_threads: int = 1, seconds: float = 0.3) -> Device:
    """Measure, with ``num_threads`` per process and about ``seconds`` for each network. Meant for a quiet machine."""
    plain = [(chain, work_of(parse(chain.model()).subgraphs[0])) for chain in PLAIN]
    times = [_plain(chain, num_threads, seconds) for chain, _ in track(plain, "timing ops")]
    rates = _rates(plain, np.array(times))
    with tempfile.TemporaryDirectory() as directory:
        key = Path(directory, "key")
        keys.create(key)
        timed = [_protected(chain, Path(directory), key, num_threads) for chain in track(PROTECTED, "timing layers")]
    return _device(rates, timed, num_threads)


def least(run: Callable[[], object], seconds: float) -> float:
    """The shortest of several runs, in milliseconds."""
    run()
    found: list[float] = []
    end = time.perf_counter() + seconds
    while len(found) < LEAST_RUNS or time.perf_counter() < end:
        start = time.perf_counter()
        run()
        found.append(time.perf_counter() - start)
    return min(found) * 1e3


def _plain(chain: Chain, num_threads: int, seconds: float) -> float:
    from ai_edge_litert.interpreter import Interpreter

    interpreter = Interpreter(model_content=chain.model(), num_threads=num_threads)
    interpreter.allocate_tensors()
    return least(interpreter.invoke, seconds)


def _rates(plain: list[tuple[Chain, tuple[Work, ...]]], times: Array) -> dict[str, dict[str, float]]:
    """Costs by kind of op: milliseconds per op, multiply-add, element and byte of weights; "" is the default."""

    def sums(kinds: tuple[str, ...]) -> tuple[Array, Array]:
        chosen = [i for i, (chain, _) in enumerate(plain) if chain.kind in kinds]
        rows = [[(1, w.macs, w.elements, w.weights) for w in plain[i][1]] for i in chosen]
        return np.array([np.sum(row, axis=0) for row in rows], float), times[chosen]

    found: dict[str, dict[str, float]] = {}
    counted, measured = sums(("CONV_2D", "FULLY_CONNECTED", "ADD"))
    found[""] = dict(zip(("op", "mac", "element", "weight"), fit(counted, measured), strict=True))
    for kind in ("DEPTHWISE_CONV_2D", "SOFTMAX"):
        counted, measured = sums((kind,))
        rest = np.maximum(measured - counted[:, 0] * found[""]["op"], 0.1 * measured)
        used = [1, 2] if counted[:, 1].any() else [2]
        cost = dict(zip([("mac", "element")[i - 1] for i in used], fit(counted[:, used], rest), strict=True))
        found[kind] = {"mac": cost.get("mac", 0.0), "element": cost["element"]}
    return found


def _protected(chain: Chain, directory: Path, key: Path, num_threads: int) -> Timed:
    model, bundle = directory / "chain.tflite", directory / "chain.shadow"
    model.write_bytes(chain.model())
    convert(model, bundle, scheme=SCHEME, key=key, overwrite=True)
    session = Session(bundle, key, num_threads)
    try:
        specs = session.entries[0][0]
        session.allocate(0, [spec.shape for spec in specs])
        inputs = random_inputs(specs, 0)
        runs = []
        for _ in range(4 * SETS):
            start = time.perf_counter()
            session.prepare(1)
            made = time.perf_counter() - start
            time.sleep(SETTLE_S)
            before = session.stats()
            start = time.perf_counter()
            session.invoke(inputs)
            total = time.perf_counter() - start
            spent = {name: value - before[name] for name, value in session.stats().items()}
            passes = spent["reading_seconds"] + spent["finishing_seconds"] + spent["sending_seconds"]
            runs.append((total, passes, spent["checking_seconds"], made))
    finally:
        session.close()
    return Timed(counts.of_bundle(bundle, key), *(float(v) * 1e3 for v in np.min(runs, axis=0)))


def _device(rates: dict[str, dict[str, float]], timed: list[Timed], num_threads: int) -> Device:
    source = f"shadownet calibrate on {environment()}, {num_threads} threads"[:400]

    def number(value: float, within: float = 1.2) -> Number:
        return Number(float(f"{value:.4g}"), within, "M", source)

    def rate(cost: float) -> Number:
        return number(1e-6 / cost if cost > 1e-6 / HUGE else HUGE)

    passes = _cost([(sum(s.sent + s.received + s.lookups for s in t.counts.steps), t.passes) for t in timed])
    check = _cost([(sum(s.check for s in t.counts.steps), t.checking) for t in timed])
    masks = _cost([(sum(w.elements for s in t.counts.steps for w in s.offline if w.kind == "MASK"), t.masks)
                   for t in timed])  # fmt: skip
    own = {
        kind: {"gmac_s": rate(cost["mac"]), "gelem_s": rate(cost["element"])} for kind, cost in rates.items() if kind
    }
    inside = {"CHECK": {"gmac_s": rate(check)}, "PASS": {"gelem_s": rate(passes)}, "MASK": {"gelem_s": rate(masks)}}
    base = rates[""]
    side = {"op_us": number(base["op"] * 1e3), "gmac_s": rate(base["mac"]), "gelem_s": rate(base["element"]),
            "weights_gb_s": rate(base["weight"])}  # fmt: skip
    numbers = {
        "accelerator": side,
        "enclave": side | {"unseal_gb_s": number(1.0, 2.0), "memory_mib": number(_memory_mib(), 1.0),
                           "base_mib": number(0.0, 1.0), "swap_us": number(0.0, 1.0)},
        "crossing": {"switch_us": number(0.0), "map_us_per_mib": number(0.0, 1.0), "page_us": number(0.0, 1.0),
                     "gb_s": number(HUGE, 1.0)},
        "power": {"accelerator_w": number(0.0, 1.0), "enclave_w": number(0.0, 1.0)},
    }  # fmt: skip
    name = MINE if num_threads == 1 else f"{MINE}-{num_threads}"
    description = f"this machine, {platform.machine()}, {os.cpu_count()} cores, {num_threads} threads per process"
    device = Device(name, description, numbers, {"accelerator": own, "enclave": own | inside}, True)
    numbers["crossing"]["switch_us"] = number(_switch(device, timed), 1.5)
    return device


def _cost(pairs: list[tuple[int, float]]) -> float:
    """Milliseconds for each of what was counted."""
    counted, measured = np.array(pairs, float).T
    return float(fit(counted[:, None], np.maximum(measured, 1e-6))[0])


def _switch(device: Device, timed: list[Timed]) -> float:
    """Microseconds of a crossing: what the rest of the model leaves unexplained, the median over chains."""
    from shadownet.simulator.predict import protected

    left = [(t.total - protected(t.counts, device).latency_ms.expected) / (t.counts.crossings + 1) for t in timed]
    return max(float(np.median(left)) * 1e3, 0.0)


def _memory_mib() -> float:
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / (1 << 20)
