"""``shadownet simulate``: a model or bundle on devices, beside everything in the enclave and the unprotected model."""

from __future__ import annotations

from argparse import ArgumentTypeError
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from shadownet.simulator import predict, profile
from shadownet.simulator.counts import Counts
from shadownet.simulator.predict import Estimate, Interval
from shadownet.simulator.profile import Device
from shadownet.simulator.subject import Bundle, Choice, Model, opened
from shadownet.wire.errors import InputError

JSON_VERSION = 1
MAX_POINTS = 64
POINTS = 11  # of a sweep that names no step


@dataclass(frozen=True)
class Sweep:
    """One parameter, ``ratio`` or ``ta-memory`` (bytes), and its values."""

    parameter: str
    values: tuple[float, ...]

    @classmethod
    def parse(cls, text: str, size: Callable[[str], int]) -> Sweep:
        """``ratio=1.0:2.0``, ``ratio=1.0:2.0:0.25`` or ``ta-memory=1M,4M,16M``. Raises ``InputError``."""
        name, _, values = text.partition("=")
        if name not in ("ratio", "ta-memory") or not values:
            raise InputError(f"cannot sweep {text[:60]!r}", "write ratio=1.0:2.0 or ta-memory=1M:64M")
        try:
            number: Callable[[str], float] = float if name == "ratio" else size
            points = _range(values, number) if ":" in values else [number(part) for part in values.split(",")]
        except (ValueError, OverflowError, ArgumentTypeError) as error:
            raise InputError(f"cannot sweep {text[:60]!r}: {error}", "write LOW:HIGH, LOW:HIGH:STEP or A,B,C") from None
        low, high = (1.0, 8.0) if name == "ratio" else (1.0, float(1 << 40))
        if len(points) > MAX_POINTS or not all(low <= point <= high for point in points):
            raise InputError(f"{name} takes at most {MAX_POINTS} values from {low:g} to {high:g}")
        return cls(name, tuple(points))

    def points(self, choice: Choice, ta_memory: int) -> list[tuple[Choice, int]]:
        """The choice and the enclave's memory at each value."""
        if self.parameter == "ratio":
            return [(replace(choice, ratio=value), ta_memory) for value in self.values]
        return [(choice, int(value)) for value in self.values]


def _range(text: str, number: Callable[[str], float]) -> list[float]:
    low, high, *step = (number(part) for part in text.split(":"))
    if not low <= high or len(step) > 1 or not all(part > 0 for part in step):
        raise ValueError("a range goes up")
    count = POINTS if not step else min(int((high - low) / step[0] + 1e-9) + 1, MAX_POINTS + 1)
    spread = np.linspace(low, high, count) if not step else low + step[0] * np.arange(count)
    return [round(float(value), 6) for value in spread]


def simulate(
    subject: Model | Bundle, devices: list[Device], choices: list[Choice], sweep: Sweep | None = None,
    ta_memory: int = 0, layers: bool = False,
) -> dict[str, Any]:  # fmt: skip
    """The record that ``simulate --json`` prints; docs/simulator.md describes it. ``layers``: with counts of each.

    ``choices`` are for a model. Raises ``InputError`` for a ratio to sweep in a bundle, which has its own."""
    if isinstance(subject, Bundle):
        choices = [subject.choice]
        if sweep is not None and sweep.parameter == "ratio":
            raise InputError("a bundle has one ratio", "sweep it on the model")
    rows = []
    for device in devices:
        for row, counted in _rows(subject, device, choices, sweep, ta_memory):
            rows.append(row | ({"layers": None if counted is None else counted.layers()} if layers else {}))
    return {
        "version": JSON_VERSION,
        "model": subject.path.name,
        "kind": subject.kind,
        "sweep": None if sweep is None else {"parameter": sweep.parameter, "values": list(sweep.values)},
        "devices": [{"name": d.name, "description": d.description} for d in devices],
        "rows": rows,
        "notes": NOTES,
    }


NOTES = [
    "Predicted from counts and published or measured rates, not run on the device.",
    "With one set of masks made beforehand; masks_ms is what making it costs the enclave.",
    "The unprotected model is taken at the accelerator's float32 rates, 8-bit models too.",
]


def _rows(
    subject: Model | Bundle, device: Device, choices: list[Choice], sweep: Sweep | None, ta_memory: int
) -> Iterator[tuple[dict[str, Any], Counts | None]]:
    plain = predict.unprotected(subject.works(), device)
    inside = predict.protected(subject.inside(), device, ta_memory)
    known = (plain, inside)
    yield _row(device, "unprotected", None, 0, plain, None, known), None
    yield _row(device, "tee", None, ta_memory, inside, subject.inside(), known), subject.inside()
    for given in choices:
        choice = replace(given, device=str(device.path)) if given.outsource == "auto" else given
        for varied, size in [(choice, ta_memory)] if sweep is None else sweep.points(choice, ta_memory):
            counted = subject.counts(varied)
            estimate = predict.protected(counted, device, size)
            yield _row(device, varied.scheme, varied, size, estimate, counted, known), counted


def _row(
    device: Device, contender: str, choice: Choice | None, ta_memory: int, estimate: Estimate, counted: Counts | None,
    known: tuple[Estimate, Estimate],
) -> dict[str, Any]:  # fmt: skip
    latency, memory = estimate.latency_ms, estimate.memory
    most, (what, remedy) = estimate.dominant, predict.TERMS[estimate.dominant]
    return {
        "device": device.name,
        "contender": contender,
        "ratio": None if choice is None else choice.ratio,
        "integrity": None if choice is None else choice.integrity,
        "ta_memory": ta_memory or None,
        "latency_ms": latency.to_json(),
        "masks_ms": estimate.masks_ms.to_json(),
        "energy_mj": estimate.energy_mj.to_json(),
        "memory": {"needed": memory.needed, "tiled": memory.tiled, "budget": memory.budget, "verdict": memory.verdict},
        "terms": {term: interval.to_json() for term, interval in estimate.terms.items()},
        "dominant": {"term": most, "what": what, "remedy": remedy,
                     "share": _times(estimate.terms[most], latency) if estimate.terms else 0.0},
        "times_unprotected": _times(latency, known[0].latency_ms),
        "times_tee": _times(latency, known[1].latency_ms),
        "counts": None if counted is None else counted.totals(),
    }  # fmt: skip


def _times(one: Interval, other: Interval) -> float:
    """How often ``other`` goes into ``one``; 0 where nothing costs anything."""
    return one.expected / other.expected if other.expected else 0.0


def beside(model: Path, key: Path, rows: list[dict[str, Any]], given: list[Device]) -> list[dict[str, Any]]:
    """For each row of ``shadownet bench``: predicted milliseconds and ratio to the unprotected model, by device."""
    found: list[dict[str, Any]] = []
    with opened(model, key) as subject:
        for row in rows:
            found.append({})
            for device in given:
                plain = took = predict.unprotected(subject.works(), device).latency_ms
                if row["scheme"] != "none":
                    took = predict.protected(subject.counts(_measured(row)), device).latency_ms
                found[-1][device.name] = {"ms": took.expected, "ratio": _times(took, plain)}
    return found


def _measured(row: dict[str, Any]) -> Choice:
    """What a row of ``shadownet bench`` was converted with."""
    if row["scheme"] == "tee":
        return Choice("tee", integrity="none")
    return Choice(row["scheme"], row["obfuscation_ratio"], row["integrity"])


def devices(given: list[str]) -> list[Device]:
    """Profiles by name or file. Raises ``InputError``."""
    return [profile.load(name) for name in given]
