"""One report from many documents: joins what they say of the same layers and says how each number was measured."""

from __future__ import annotations

import datetime
from collections.abc import Sequence
from pathlib import PurePath
from typing import Any

from shadownet import __version__
from shadownet.report import costs, leaks, network, pictures
from shadownet.report.documents import Document, count, number, parsed, text
from shadownet.wire.errors import InputError

Json = dict[str, Any]

HOW = {
    "bytes": "Bytes per inference: 4 for each element of what crosses, by the shapes in the bundle's manifest.",
    "macs": "Multiply-adds of one run, by the layer's shapes.",
    "error": "Largest difference between the restored answer and the product of the true weights in float64 with what "
    "was sent, on one recorded inference, relative to the largest true value of the layer without its mask. Subtracting "
    "the mask rounds once more, which is not in it.",
    "leak": "Share of the layer's filters that the best attack recovers within 5 % of their size (fixed point: of their "
    "direction), with the truth at hand for the score only.",
}


def assemble(documents: Sequence[Document]) -> Json:
    """The report as plain data for the page. Raises ``InputError`` for documents that are damaged or do not fit."""
    by = _by_kind(documents)
    one = {kind: _only(by, kind) for kind in ("inspect", "bundle", "attack", "meter", "trace", "rounding", "pictures")}
    described = parsed(one["bundle"], network.bundle) if one["bundle"] else None
    steps = parsed(one["inspect"], network.steps) if one["inspect"] else []
    steps = network.joined(steps, described.layers if described else ())
    how = dict(HOW)
    title = _title(one)
    timeline = parsed(one["trace"], costs.timeline) if one["trace"] else None
    benches = [parsed(d, costs.bench) for d in by.get("bench", [])]
    _add_times(steps, by, one, timeline, title, how)
    for kind, add in (("rounding", network.add_errors), ("attack", network.add_leaks)):
        document = one[kind]
        if document:
            parsed(document, lambda value, add=add: add(steps, value))  # type: ignore[misc]
    shown = parsed(one["pictures"], pictures.parse) if one["pictures"] else None
    report: Json = {
        "title": title,
        "version": __version__,
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "bundle": None if described is None else vars(described) | {"layers": []},
        "steps": steps,
        "timeline": timeline,
        "latency": benches + [group for d in by.get("simulate", []) for group in parsed(d, costs.simulated)],
        "accuracy": [parsed(d, costs.accuracy) for d in by.get("accuracy", [])],
        "runs": [parsed(d, costs.run) for d in by.get("run", [])],
        "verdicts": [parsed(d, costs.verify) for d in by.get("verify", [])],
        "heat": _heat(by, one),
        "theft": parsed(one["attack"], leaks.theft) if one["attack"] else None,
        "gates": [gate for d in by.get("check", []) for gate in parsed(d, leaks.gates)],
        "pictures": shown,
        "how": how,
        "sources": [{"file": d.source, "kind": d.kind} for d in documents],
    }
    return report | {"facts": _facts(report, one["attack"])}


def _by_kind(documents: Sequence[Document]) -> dict[str, list[Document]]:
    by: dict[str, list[Document]] = {}
    for document in documents:
        by.setdefault(document.kind, []).append(document)
    return by


def _only(by: dict[str, list[Document]], kind: str) -> Document | None:
    found = by.get(kind, [])
    if len(found) > 1:
        files = ", ".join(d.source for d in found[:2])
        raise InputError(f"two results of the kind {kind!r}: {files}", "a report describes one network in detail")
    return found[0] if found else None


def _title(one: dict[str, Document | None]) -> str:
    """The network's name: the file's that was inspected, predicted or attacked."""
    for kind, key in (("inspect", "model"), ("meter", "model"), ("attack", "bundle")):
        document = one[kind]
        if document:
            return parsed(document, lambda value, key=key: text(PurePath(text(value[key])).stem))  # type: ignore[misc]
    return "Results"


def _add_times(
    steps: list[Json], by: dict[str, list[Document]], one: dict[str, Document | None], timeline: Json | None,
    title: str, how: dict[str, str],
) -> None:  # fmt: skip
    """Times per layer: from a bench of this network if there is one, else from the traced inference."""
    results = by.get("bench", [])
    chosen = next((d for d in results if parsed(d, lambda v: text(v["model"])) == title), None)
    chosen = chosen or (results[0] if len(results) == 1 else None)
    if chosen is not None and any(s["name"] for s in steps):
        names = parsed(chosen, lambda v: [text(name) for name in v["layers"]])
        if names:
            parsed(chosen, lambda v: network.add_times(steps, next(iter(v["layers"].values()))))
            how["time"] = f"Median of traced inferences of {names[0]} ({chosen.source}): in the accelerator and on the way, and in the enclave."  # fmt: skip
            return
    if timeline is not None:
        _times_of(steps, timeline["spans"])
        how["time"] = f"One traced inference ({one['trace'].source if one['trace'] else ''}); the enclave waiting, and at work; a single run scatters."


def _times_of(steps: list[Json], spans: list[Json]) -> None:
    away = {s["name"]: s["ms"] for s in spans if s["where"] == "wait"}
    both = {s["name"]: s["ms"] for s in spans if s["where"] == "enclave"}
    for step in steps:
        if step["name"] in both and step["name"] in away:
            step["accelerator_ms"] = away[step["name"]]
            step["enclave_ms"] = max(both[step["name"]] - away[step["name"]], 0.0)


def _heat(by: dict[str, list[Document]], one: dict[str, Document | None]) -> list[Json]:
    found = []
    arenas = [cell for d in by.get("arena", []) for cell in parsed(d, lambda v: list(v["cells"]))]
    cells = arenas + [d.value for d in by.get("cell", [])]
    if cells:
        source = (by.get("arena") or by["cell"])[0].source
        found.append(parsed(Document("arena", source, cells), leaks.matrix))
    for kind, parse in (("attack", leaks.layers), ("meter", leaks.predicted)):
        document = one[kind]
        if document:
            found.append(parsed(document, parse))
    return [heat for heat in found if heat["rows"] and heat["columns"]]


def _facts(report: Json, attacked: Document | None) -> list[Json]:
    """The few numbers that come first, each with how it was measured."""
    facts = []
    for group in report["latency"][:2]:
        bar = next((b for b in group["bars"] if b["name"] not in ("unprotected", "tee") and b["ratio"]), None)
        if bar is not None:
            note = f"the unprotected model’s, {bar['name']}"
            facts.append({"label": f"latency, {group['where']}", "value": f"{bar['ratio']:.2f}×", "note": note, "how": group["how"]})
    if report["accuracy"]:
        shares = [_percent(b["share"]) for b in report["accuracy"][0]["bars"][:2] if b["share"] is not None]
        facts.append({"label": "accuracy", "value": " → ".join(shares), "note": "unprotected → protected", "how": report["accuracy"][0]["how"]})
    out = [s for s in report["steps"] if s["out"] and "sent" in s]
    if out:
        crossed = sum(s["sent"] + s["received"] for s in out)
        facts.append({"label": "crosses", "value": _bytes(crossed), "note": f"in {len(out)} calls per inference", "how": report["how"]["bytes"]})
    lost = parsed(attacked, lambda v: number(v["lost"])) if attacked else None
    if attacked and lost is not None:
        total = parsed(attacked, lambda v: count(v["filters"]))
        facts.append({"label": "leaks", "value": _percent(lost), "note": f"of {total} outsourced filters", "how": report["how"]["leak"]})
    return facts


def _percent(share: float) -> str:
    return f"{100 * share:.1f}\N{NO-BREAK SPACE}%"


def _bytes(n: float) -> str:
    for unit in ("B", "kB", "MB", "GB"):
        if n < 1000 or unit == "GB":
            return f"{n:.3g} {unit}"
        n /= 1000
    raise AssertionError
