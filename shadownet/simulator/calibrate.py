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
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from accelerator.backends.litert_cpu import MANY
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
from shadownet.simulator.predict import protected
from shadownet.simulator.profile import MINE, Device, Number
from shadownet.simulator.work import Work, work_of

Array = np.ndarray[Any, Any]

LEAST_RUNS = 5
SCHEME = "shadownet:fast"
HUGE = 1e5  # a rate for what costs nothing of its own here
NOTHING = Number(HUGE, 1.0, "M", "not counted")


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
    gains = [
        _plain(chain, 1, seconds) / time_
        for (chain, _), time_ in zip(plain, times, strict=True) if chain.kind == "CONV_2D" and num_threads > 1
    ]  # fmt: skip
    with tempfile.TemporaryDirectory() as directory:
        key = Path(directory, "key")
        keys.create(key)
        chains = track(PROTECTED, "timing layers")
        timed = [_protected(chain, Path(directory), key, num_threads, seconds) for chain in chains]
    return _device(rates, timed, num_threads, float(np.median(gains)) if gains else 1.0)


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
    counted, measured = sums(("FULLY_CONNECTED", "ADD"))
    found[""] = dict(zip(("op", "mac", "element", "weight"), fit(counted, measured), strict=True))
    for kind in ("CONV_2D", "DEPTHWISE_CONV_2D", "SOFTMAX"):  # which read their weights while they compute
        counted, measured = sums((kind,))
        rest = np.maximum(measured - counted[:, 0] * found[""]["op"], 0.1 * measured)
        used = [1, 2] if counted[:, 1].any() else [2]
        cost = dict(zip([("mac", "element")[i - 1] for i in used], fit(counted[:, used], rest), strict=True))
        found[kind] = {"mac": cost.get("mac", 0.0), "element": cost["element"]}
    return found


def _protected(chain: Chain, directory: Path, key: Path, num_threads: int, seconds: float) -> Timed:
    model, bundle = directory / "chain.tflite", directory / "chain.shadow"
    model.write_bytes(chain.model())
    sample = np.random.default_rng(0).uniform(-1, 1, (1, *chain.shape)).astype(np.float32)
    convert(model, bundle, scheme=SCHEME, key=key, overwrite=True, calibration=[sample])
    session = Session(bundle, key, num_threads)
    try:
        specs = session.entries[0][0]
        session.allocate(0, [spec.shape for spec in specs])
        return Timed(counts.of_bundle(bundle, key), *least_protected(session, random_inputs(specs, 0), seconds))
    finally:
        session.close()


def least_protected(session: Session, inputs: list[Array], seconds: float) -> tuple[float, float, float, float]:
    """The least milliseconds of an inference with a set of masks made before it, of its passes, of its checks, and of
    making the set. Every turn begins with the workers asleep."""
    runs: list[tuple[float, float, float, float]] = []
    end = time.perf_counter() + seconds
    while len(runs) < 2 * LEAST_RUNS or time.perf_counter() < end:
        start = time.perf_counter()
        session.prepare(2)
        made = (time.perf_counter() - start) / 2
        time.sleep(SETTLE_S)
        session.invoke(inputs)  # as in bench, what is timed finds its own data in the caches
        before = session.stats()
        start = time.perf_counter()
        session.invoke(inputs)
        total = time.perf_counter() - start
        spent = {name: value - before[name] for name, value in session.stats().items()}
        passes = spent["reading_seconds"] + spent["finishing_seconds"] + spent["sending_seconds"]
        runs.append((total, passes, spent["checking_seconds"], made))
    total, passes, checking, masks = (float(value) * 1e3 for value in np.min(runs, axis=0))
    return total, passes, checking, masks


def _device(rates: dict[str, dict[str, float]], timed: list[Timed], num_threads: int, gain: float) -> Device:
    """``gain`` is how much faster several threads make a convolution; the accelerator has one for small layers."""
    source = f"shadownet calibrate on {environment()}, {num_threads} threads"[:400]

    def number(value: float, within: float = 1.2) -> Number:
        return Number(float(f"{value:.4g}"), within, "M", source)

    def rate(cost: float) -> Number:
        return number(1e-6 / cost if cost > 1e-6 / HUGE else HUGE)

    passes = _cost([(sum(s.sent + s.received + s.lookups for s in t.counts.steps), t.passes) for t in timed])
    check = _cost([(sum(s.check for s in t.counts.steps), t.checking) for t in timed])
    own = {
        kind: {"gmac_s": rate(cost["mac"]), "gelem_s": rate(cost["element"]), "weights_gb_s": number(HUGE, 1.0)}
        for kind, cost in rates.items() if kind
    }  # fmt: skip
    inside = {"CHECK": {"gmac_s": rate(check)}, "PASS": {"gelem_s": rate(passes)}}
    base = rates[""]
    side = {"op_us": number(base["op"] * 1e3), "gmac_s": rate(base["mac"]), "gelem_s": rate(base["element"]),
            "weights_gb_s": rate(base["weight"])}  # fmt: skip
    free = number(0.0, 1.0)
    small = {"small_mmac": number(MANY / 1e6, 1.0), "small_factor": number(max(gain, 1.0))}
    numbers = {
        "accelerator": side | (small if num_threads > 1 else {}),
        "enclave": side | {"unseal_gb_s": number(1.0, 2.0), "memory_mib": number(_memory_mib(), 1.0), "base_mib": free,
                           "swap_us": free},
        "crossing": {"app_us": free, "switch_us": free, "map_us_per_mib": free, "page_us": free,
                     "gb_s": number(HUGE, 1.0)},
        "power": {"accelerator_w": free, "enclave_w": free},
    }  # fmt: skip
    name = MINE if num_threads == 1 else f"{MINE}-{num_threads}"
    description = f"this machine, {platform.machine()}, {os.cpu_count()} cores, {num_threads} threads per process"
    device = Device(name, description, numbers, {"accelerator": own, "enclave": own | inside}, True)
    app, switch, byte = _crossing(device, timed)
    numbers["crossing"] |= {
        "app_us": number(app * 1e3, 1.5), "switch_us": number(switch * 1e3, 1.5), "gb_s": rate(byte)
    }  # fmt: skip
    inside["MASK"] = {"gelem_s": rate(_drawing(device, timed))}
    return replace(device, kinds={"accelerator": own, "enclave": own | inside})


def _cost(pairs: list[tuple[int, float]]) -> float:
    """Milliseconds for each of what was counted."""
    counted, measured = np.array(pairs, float).T
    return float(fit(counted[:, None], np.maximum(measured, 1e-6))[0])


def _crossing(device: Device, timed: list[Timed]) -> tuple[float, float, float]:
    """Milliseconds of the app's call, of a crossing and of a byte: what the rest of the model leaves unexplained."""
    explained = [protected(t.counts, device).latency_ms.expected for t in timed]
    left = [max(t.total - known, t.total / 100) for t, known in zip(timed, explained, strict=True)]
    crossed = [(1, t.counts.crossings, sum(s.bytes_out + s.bytes_in for s in t.counts.steps)) for t in timed]
    app, switch, byte = fit(np.array(crossed, float), np.array(left))
    return float(app), float(switch), float(byte)


def _drawing(device: Device, timed: list[Timed]) -> float:
    """Milliseconds of one random value: what making masks takes beyond the linear layers."""
    free = replace(device, kinds=device.kinds | {"enclave": device.kinds["enclave"] | {"MASK": {"gelem_s": NOTHING}}})
    left = [max(t.masks - protected(t.counts, free).masks_ms.expected, t.masks / 100) for t in timed]
    drawn = [sum(w.elements for s in t.counts.steps for w in s.offline if w.kind == "MASK") for t in timed]
    return _cost(list(zip(drawn, left, strict=True)))


def _memory_mib() -> float:
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / (1 << 20)
