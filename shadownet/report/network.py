"""The network of a report: its steps in order, each with all that is known of it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from shadownet.outline import INPUT
from shadownet.report.documents import count, items, number, record, shape, text

Json = dict[str, Any]


@dataclass(frozen=True)
class Bundle:
    """The public description of a bundle, as ``inspect BUNDLE --json`` prints it."""

    scheme: str
    options: list[list[str]]
    sizes: list[list[Any]]
    layers: list[Json] = field(default_factory=list)


def bundle(value: Any) -> Bundle:
    """Parse ``inspect BUNDLE --json``. Raises as :mod:`~shadownet.report.documents` does."""
    manifest = record(value["manifest"])
    options = [[text(k), text("none" if v is None else v)] for k, v in record(manifest["options"]).items()]
    sizes = [[text(k), count(v)] for k, v in record(value["sizes"]).items()]
    layers = [_crossing(record(layer)) for layer in items(manifest["layers"])]
    return Bundle(text(manifest["scheme"]), options[:50], sizes[:50], layers)


def _crossing(layer: Json) -> Json:
    source, target = shape(layer["input"]), shape(layer["output"])
    return {
        "name": text(layer["signature"]), "kind": text(layer["op"]), "id": count(layer["id"]), "input": source,
        "slots": target[-1] if target else 0, "filters": count(layer["filters"]), "macs": count(layer["macs"]),
        "sent": _bytes(source), "received": _bytes(target), "masked": bool(layer["masked"]),
        "numbers": text(layer["numbers"]), "output": target,
    }  # fmt: skip


def _bytes(dims: list[int]) -> int:
    """What crosses for a tensor: float32 for every element."""
    return 4 * math.prod(max(d, 0) for d in dims)


def steps(inspected: Any) -> list[Json]:
    """Parse the steps of ``inspect MODEL --json``, entries one after the other."""
    found: list[Json] = []
    for entry in items(inspected["entries"]):
        start = len(found)
        for step in items(entry["steps"]):
            found.append(_step(record(step), start, len(found)))
    return found


def _step(step: Json, start: int, number_: int) -> Json:
    def earlier(value: Any) -> int:
        at = INPUT if value == INPUT else start + count(value)
        if at >= number_:
            raise ValueError("a step reads a later one")
        return at

    kind = text(step["kind"])
    made: Json = {
        "kind": kind, "name": "", "after": [text(op) for op in items(step["after"])[:200]],
        "output": shape(step["output"]), "reads": [earlier(r) for r in items(step["reads"])],
        "gives": bool(step["gives"]), "out": bool(kind),
    }  # fmt: skip
    if kind:
        made |= {key: count(step[key]) for key in ("id", "filters", "macs")}
        made |= {"input": shape(step["input"]), "sends": earlier(step["sends"])}
    return made


def joined(steps_: list[Json], described: Sequence[Json]) -> list[Json]:
    """Steps with what the bundle says of them; a layer that the bundle does not have stays in the enclave.

    Without steps, the bundle's layers alone, as a chain. Without a bundle, layers get the names they would have.
    """
    if not steps_:
        return [_alone(layer, n, len(described)) for n, layer in enumerate(described)]
    left, number_ = list(described), 0
    for step in steps_:
        if not step["kind"]:
            continue
        if not described:
            step["name"] = f"layer{number_:03d}_{step['kind'].lower()}"
            number_ += 1
            continue
        match = next((d for d in left if (d["id"], d["kind"]) == (step["id"], step["kind"])), None)
        if match is None:
            step |= {"out": False, "name": f"op {step['id']}"}
        else:
            left.remove(match)  # entries come in order: where ids collide, the first left is the right one
            # Shapes stay the layer's own: what crosses may be digits, stacked, and has more channels.
            step |= {k: v for k, v in match.items() if k not in ("input", "output")}
    return steps_


def _alone(layer: Json, n: int, total: int) -> Json:
    return {**layer, "after": [], "reads": [n - 1], "sends": n - 1, "gives": n == total - 1, "out": True}


def add_times(steps_: list[Json], layers: Any) -> None:
    """Median times per layer, as ``bench --json`` has them for one contender."""
    times = {text(row["layer"]): (number(row["accelerator_ms"]), number(row["enclave_ms"])) for row in items(layers)}
    for step in steps_:
        if step["name"] in times:
            step["accelerator_ms"], step["enclave_ms"] = times[step["name"]]


def add_errors(steps_: list[Json], rounding: Any) -> None:
    """Relative errors per layer, as :mod:`shadownet.report.rounding` measures them."""
    errors = {text(name): number(error) for name, error in record(rounding["rounding"]).items()}
    for step in steps_:
        if step["name"] in errors:
            step["error"] = errors[step["name"]]


def add_leaks(steps_: list[Json], attacked: Any) -> None:
    """For each layer the attack that got most of it, as ``attack --json`` scored them."""
    best: dict[str, Json] = {}
    for outcome in items(attacked["attacks"]):
        for score in items(outcome["scores"]):
            rows, name = score["rows"], text(score["layer"])
            leak = {
                "attack": text(outcome["attack"]), "recovered": number(rows["recovered"]) or 0.0,
                "distance": number(rows["error"]), "random": number(score["null"]["recovered"]),
                "public": None if score["base"] is None else number(score["base"]["recovered"]),
            }  # fmt: skip
            if name not in best or leak["recovered"] > best[name]["recovered"]:
                best[name] = leak
    for step in steps_:
        if step["name"] in best:
            step["leak"] = best[step["name"]]
