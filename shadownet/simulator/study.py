"""``shadownet simulate``: a model or bundle on devices, beside everything in the enclave and the unprotected model."""

from __future__ import annotations

import os
import tempfile
from argparse import ArgumentTypeError
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from enclave import keys
from shadownet.analysis import Reference
from shadownet.converter import Conversion, checked_options, convert
from shadownet.graph import load
from shadownet.simulator import counts, predict, profile
from shadownet.simulator.counts import Counts
from shadownet.simulator.predict import Estimate
from shadownet.simulator.profile import Device
from shadownet.simulator.work import Work, work_of
from shadownet.wire.errors import InputError
from shadownet.wire.manifest import read_manifest

JSON_VERSION = 1
MAX_POINTS = 64
POINTS = 11  # of a sweep that names no step


@dataclass(frozen=True)
class Choice:
    """A scheme with its settings, as ``convert`` takes them; a device only where ``outsource`` is "auto"."""

    scheme: str
    ratio: float = 1.2
    integrity: str = "full"
    activations: str | None = None
    outsource: str = "all"
    device: str | None = None


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


def _range(text: str, number: Callable[[str], float]) -> list[float]:
    low, high, *step = (number(part) for part in text.split(":"))
    if not low <= high or len(step) > 1 or not all(part > 0 for part in step):
        raise ValueError("a range goes up")
    count = POINTS if not step else min(int((high - low) / step[0] + 1e-9) + 1, MAX_POINTS + 1)
    spread = np.linspace(low, high, count) if not step else low + step[0] * np.arange(count)
    return [round(float(value), 6) for value in spread]


class Subject:
    """A model or a bundle whose inference is simulated. Use as a context manager."""

    def __init__(self, path: Path, key: Path) -> None:
        self.path, self._key, self.is_bundle = path, key, path.is_dir()
        self._counted: dict[Choice, Counts] = {}
        if path == Path():
            raise InputError("name a model or a bundle", "shadownet simulate MODEL.tflite --device NAME")
        if self.is_bundle:
            self.manifest = read_manifest(path)
        else:
            self._graph, self._content = load(path)

    def __enter__(self) -> Subject:
        self._reference = None if self.is_bundle else Reference(os.fspath(self.path), self._graph)
        return self

    def __exit__(self, *_: object) -> None:
        if self._reference is not None:
            self._reference.__exit__()

    def counts(self, choice: Choice) -> Counts:
        """What conversion with these settings gives; a bundle's own counts whatever they are."""
        if choice not in self._counted:
            self._counted[choice] = counts.of_bundle(self.path, self._key) if self.is_bundle else self._plan(choice)
        return self._counted[choice]

    def _plan(self, choice: Choice) -> Counts:
        options = checked_options(
            choice.scheme, choice.ratio, choice.activations, choice.integrity, choice.outsource, device=choice.device
        )
        assert self._reference is not None
        conversion = Conversion(self._graph, self._content, options, self._reference)
        if conversion.doubtful():  # what a trial run keeps inside, only a trial run tells
            return self._tried(choice)
        lowered = conversion.lower()
        return counts.of_program(lowered.program, lowered.blobs, lowered.accelerator)

    def _tried(self, choice: Choice) -> Counts:
        with tempfile.TemporaryDirectory() as directory:
            bundle, key = Path(directory, "bundle"), Path(directory, "key")
            keys.create(key)
            convert(self.path, bundle, scheme=choice.scheme, ratio=choice.ratio, activations=choice.activations,
                    integrity=choice.integrity, outsource=choice.outsource, device=choice.device, key=key)  # fmt: skip
            return counts.of_bundle(bundle, key)

    def works(self) -> tuple[Work, ...]:
        """The ops of the unprotected model; of a bundle, its layers and segments, whose fused ops do not show."""
        if not self.is_bundle:
            return work_of(self._graph.subgraphs[counts.MAIN])
        layers = {layer["signature"]: layer for layer in self.manifest["layers"]}
        works: list[Work] = []
        for step in self.counts(Choice("")).steps:
            layer = layers.get(step.name)
            works += step.enclave if layer is None else [_original(layer, step.offline)]
        return tuple(works)

    def inside(self) -> Counts:
        """Everything in the enclave."""
        if not self.is_bundle:
            return self.counts(Choice("tee", integrity="none"))
        own = self.counts(Choice(""))
        whole = counts.Step("everything", enclave=self.works(), held=max(s.held + s.arena for s in own.steps))
        return Counts((whole,), 0.0, own.weights, 0, own.interface)


def _original(layer: dict[str, Any], offline: tuple[Work, ...]) -> Work:
    """A layer as it is without protection. The manifest informs: what is odd in it makes figures odd, no more."""
    positions = int(np.prod(layer["output"][:-1])) // max(int(layer["input_limbs"]), 1)
    elements = int(np.prod(layer["input"])) // max(int(layer["input_limbs"]), 1) + positions * int(layer["filters"])
    return Work(str(layer["op"]), int(layer["macs"]), elements, sum(work.weights for work in offline))


def simulate(
    subject: Subject, devices: list[Device], choices: list[Choice], sweep: Sweep | None = None, ta_memory: int = 0,
    layers: bool = False,
) -> dict[str, Any]:  # fmt: skip
    """The record that ``simulate --json`` prints; docs/simulator.md describes it. ``layers``: with counts of each."""
    rows = []
    for device in devices:
        for row, counted in _rows(subject, device, choices, sweep, ta_memory):
            rows.append(row | ({"layers": None if counted is None else counted.layers()} if layers else {}))
    return {
        "version": JSON_VERSION,
        "model": subject.path.name,
        "kind": "bundle" if subject.is_bundle else "model",
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
    subject: Subject, device: Device, choices: list[Choice], sweep: Sweep | None, ta_memory: int
) -> Iterator[tuple[dict[str, Any], Counts | None]]:
    plain = predict.unprotected(subject.works(), device)
    inside = predict.protected(subject.inside(), device, ta_memory)
    known = (plain, inside)
    yield _row(device, "unprotected", None, 0, plain, None, known), None
    yield _row(device, "tee", None, ta_memory, inside, subject.inside(), known), subject.inside()
    for given in choices:
        choice = replace(given, device=str(device.path)) if given.outsource == "auto" else given
        for point in sweep.values if sweep is not None else (None,):
            size, varied = ta_memory, choice
            if sweep is not None and point is not None:
                size, varied = (int(point), choice) if sweep.parameter == "ta-memory" else (
                    ta_memory, replace(choice, ratio=point))  # fmt: skip
            counted = subject.counts(varied)
            estimate = predict.protected(counted, device, size)
            yield _row(device, varied.scheme, varied, size, estimate, counted, known), counted


def _row(
    device: Device, contender: str, choice: Choice | None, ta_memory: int, estimate: Estimate, counted: Counts | None,
    known: tuple[Estimate, Estimate],
) -> dict[str, Any]:  # fmt: skip
    latency, memory = estimate.latency_ms, estimate.memory
    what, remedy = predict.TERMS[estimate.dominant]
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
        "dominant": {"term": estimate.dominant, "what": what, "remedy": remedy,
                     "share": estimate.terms[estimate.dominant].expected / (latency.expected or 1.0)},
        "times_unprotected": latency.expected / (known[0].latency_ms.expected or 1.0),
        "times_tee": latency.expected / (known[1].latency_ms.expected or 1.0),
        "counts": None if counted is None else counted.totals(),
    }  # fmt: skip


def beside(model: Path, key: Path, rows: list[dict[str, Any]], given: list[Device]) -> list[dict[str, Any]]:
    """For each row of ``shadownet bench``: predicted milliseconds and ratio to the unprotected model, by device."""
    found: list[dict[str, Any]] = []
    with Subject(model, key) as subject:
        plain = {device.name: predict.unprotected(subject.works(), device).latency_ms.expected for device in given}
        for row in rows:
            counted = None if row["scheme"] == "none" else subject.counts(_measured(row))
            times = {d.name: plain[d.name] if counted is None else
                     predict.protected(counted, d).latency_ms.expected for d in given}  # fmt: skip
            found.append({name: {"ms": ms, "ratio": ms / plain[name]} for name, ms in times.items()})
    return found


def _measured(row: dict[str, Any]) -> Choice:
    """What a row of ``shadownet bench`` was converted with."""
    if row["scheme"] == "tee":
        return Choice("tee", integrity="none")
    return Choice(row["scheme"], row["obfuscation_ratio"], row["integrity"])


def devices(given: list[str]) -> list[Device]:
    """Profiles by name or file. Raises ``InputError``."""
    return [profile.load(name) for name in given]
