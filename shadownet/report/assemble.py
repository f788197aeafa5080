"""One report from many documents: joins what they say of the same layers and says how each number was measured."""

from __future__ import annotations

import datetime
from collections.abc import Callable, Sequence
from pathlib import PurePath
from typing import Any, TypeVar

from shadownet import __version__
from shadownet.report import costs, leaks, network, pictures
from shadownet.report.documents import Document, count, number, parsed, text
from shadownet.wire.errors import InputError

Json = dict[str, Any]
T = TypeVar("T")

HOW = {
    "bytes": "Bytes per inference: 4 for each element of what crosses, by the shapes in the bundle's manifest.",
    "macs": "Multiply-adds of one run, by the layer's shapes.",
    "error": "Largest difference between the restored answer and the product of the true weights in float64 with what "
    "was sent, on one recorded inference, relative to the largest true value of the layer without its mask. Taking the "
    "mask off rounds once more, which is not in it.",
    "leak": "Share of the layer's filters that the best attack recovers within 5 % of their size (fixed point: of "
    "their direction), with the truth at hand for the score only.",
}
REFERENCES = ("unprotected", "tee")  # contenders that protection is compared with


class _Documents:
    """The documents by kind; parsing names the one that is damaged."""

    def __init__(self, documents: Sequence[Document]) -> None:
        self._by: dict[str, list[Document]] = {}
        for document in documents:
            self._by.setdefault(document.kind, []).append(document)

    def all(self, kind: str) -> list[Document]:
        return self._by.get(kind, [])

    def each(self, kind: str, parse: Callable[[Any], T]) -> list[T]:
        return [parsed(document, parse) for document in self.all(kind)]

    def joined(self, kind: str, parse: Callable[[Any], list[T]]) -> list[T]:
        return [part for parts in self.each(kind, parse) for part in parts]

    def one(self, kind: str, parse: Callable[[Any], T]) -> T | None:
        """Of a kind that describes the one network in detail. Raises ``InputError`` if there are several."""
        found = self.all(kind)
        if len(found) > 1:
            files = ", ".join(d.source for d in found[:2])
            raise InputError(f"two results of the kind {kind!r}: {files}", "a report describes one network in detail")
        return parsed(found[0], parse) if found else None


def assemble(documents: Sequence[Document]) -> Json:
    """The report as plain data for the page. Raises ``InputError`` for documents that are damaged or do not fit."""
    given = _Documents(documents)
    bundle = given.one("bundle", network.bundle)
    steps = network.joined(given.one("inspect", network.steps) or [], bundle.layers if bundle else ())
    title, timeline = _title(given), given.one("trace", costs.timeline)
    how = HOW | _add_times(steps, given, timeline, title)
    given.one("rounding", lambda value: network.add_errors(steps, value))
    given.one("attack", lambda value: network.add_leaks(steps, value))
    report: Json = {
        "title": title,
        "version": __version__,
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "bundle": bundle and {"scheme": bundle.scheme, "options": bundle.options, "sizes": bundle.sizes},
        "steps": steps,
        "timeline": timeline,
        "latency": [*given.each("bench", costs.bench), *given.joined("simulate", costs.simulated)],
        "accuracy": given.each("accuracy", costs.accuracy),
        "runs": given.each("run", costs.run),
        "verdicts": given.each("verify", costs.verify),
        "heat": _heat(given),
        "theft": given.one("attack", leaks.theft),
        "gates": given.joined("check", leaks.gates),
        "pictures": given.one("pictures", pictures.parse),
        "how": how,
        "sources": [{"file": d.source, "kind": d.kind} for d in documents],
    }
    return report | {"facts": _facts(report, given)}


def _title(given: _Documents) -> str:
    """The network's name: the file's that was inspected, predicted or attacked."""
    for kind, key in (("inspect", "model"), ("meter", "model"), ("attack", "bundle")):
        for document in given.all(kind):
            return parsed(document, lambda value, key=key: text(PurePath(text(value[key])).stem))  # type: ignore[misc]
    return "Results"


def _add_times(steps: list[Json], given: _Documents, timeline: Json | None, title: str) -> dict[str, str]:
    """Times per layer, from a bench of this network if there is one, else from the traced inference; and how."""
    benches = given.all("bench")
    same = [d for d in benches if parsed(d, lambda value: text(value["model"])) == title]
    for document in same or (benches if len(benches) == 1 else []):
        contenders = parsed(document, lambda value: list(value["layers"].items()))
        if contenders:
            name = parsed(document, lambda value: text(next(iter(value["layers"]))))
            parsed(document, lambda value: network.add_times(steps, next(iter(value["layers"].values()))))
            return {"time": f"Median of traced inferences of {name} ({document.source}): the enclave waiting for the "
                    "accelerator, and at work."}  # fmt: skip
    if timeline is None:
        return {}
    spent = {(span["name"], span["where"]): span["ms"] for span in timeline["spans"]}
    for step in steps:
        both, away = spent.get((step["name"], "enclave")), spent.get((step["name"], "wait"))
        if both is not None and away is not None:
            step["accelerator_ms"], step["enclave_ms"] = away, max(both - away, 0.0)
    return {
        "time": "One traced inference: the enclave waiting for the accelerator, and at work; a single run scatters."
    }


def _heat(given: _Documents) -> list[Json]:
    cells = given.joined("arena", lambda value: list(value["cells"]))
    cells += [document.value for document in given.all("cell")]
    sources = given.all("arena") + given.all("cell")
    found = [parsed(Document("arena", sources[0].source, cells), leaks.matrix)] if cells else []
    found += [heat for heat in (given.one("attack", leaks.layers), given.one("meter", leaks.predicted)) if heat]
    return [heat for heat in found if heat["rows"] and heat["columns"]]


def _facts(report: Json, given: _Documents) -> list[Json]:
    """The few numbers that come first, each with how it was measured."""
    facts: list[Json] = []

    def add(label: str, value: str, note: str, how: str) -> None:
        facts.append({"label": label, "value": value, "note": note, "how": how})

    for group in report["latency"][:2]:
        bar = next((b for b in group["bars"] if b["name"] not in REFERENCES and b["ratio"]), None)
        if bar is not None and not group["noisy"]:
            note = f"of the unprotected model, {bar['name']}"
            add(f"latency, {group['where']}", f"{bar['ratio']:.2f}\N{MULTIPLICATION SIGN}", note, group["how"])
    for group in report["accuracy"][:1]:
        shares = [f"{100 * bar['share']:.1f}" for bar in group["bars"][:2] if bar["share"] is not None]
        add("accuracy", " → ".join(shares) + "\N{NO-BREAK SPACE}%", "unprotected → protected", group["how"])
    out = [s for s in report["steps"] if s["out"] and "sent" in s]
    if out:
        crossed = sum(s["sent"] + s["received"] for s in out)
        add("crosses", _bytes(crossed), f"in {len(out)} calls per inference", report["how"]["bytes"])
    lost, total = given.one("attack", lambda value: (number(value["lost"]), count(value["filters"]))) or (None, 0)
    if lost is not None:
        add("leaks", f"{100 * lost:.1f}\N{NO-BREAK SPACE}%", f"of {total} outsourced filters", report["how"]["leak"])
    return facts


def _bytes(n: float) -> str:
    for unit in ("B", "kB", "MB", "GB"):
        if n < 1000 or unit == "GB":
            return f"{n:.3g}\N{NO-BREAK SPACE}{unit}"
        n /= 1000
    raise AssertionError
