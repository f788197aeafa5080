"""What protection costs, as the page shows it: latency, accuracy, and the timeline of one inference."""

from __future__ import annotations

import re
from typing import Any

from shadownet.report.documents import count, items, number, record, text

Json = dict[str, Any]

MAX_EVENTS = 5000
PHASES = ("bytes", "crossings")  # counters among a contender's phases; the rest are milliseconds


def bench(value: Any) -> Json:
    """One result of ``bench --json`` as a group of bars."""
    threads, batch, rounds = (count(value[key]) for key in ("threads", "batch", "rounds"))
    return {
        "title": text(value["model"]),
        "where": "here",
        "how": f"Medians of {rounds} rounds; contenders run in turn in one run, masks prepared beforehand, {threads} "
        f"thread{'s' if threads != 1 else ''} per process, batch {batch}; whiskers: middle half of the ratio to the "
        f"unprotected model in the same round. {text(value['environment'])}. Processes, no hardware enclave.",
        "bars": [_bar(record(row)) for row in items(value["rows"])],
    }


def _bar(row: Json) -> Json:
    low, _, high = (number(v) for v in items(row["pairwise_ratio"]))
    phases = {text(k): number(v) for k, v in record(row.get("phases", {})).items()}
    return {
        "name": text(row["name"]), "ms": number(row["median_ms"]), "ratio": number(row["ratio"]), "low": low,
        "high": high, "note": f"masks {text(row['masks'])}; integrity {text(row['integrity'])}",
        "phases": [[k, v] for k, v in phases.items() if k not in PHASES and v is not None][:20],
        "bytes": phases.get("bytes"), "crossings": phases.get("crossings"),
    }  # fmt: skip


def accuracy(value: Any) -> Json:
    """Accuracy of the unprotected and the protected model: of ``report`` on a bundle, or of ``demo --json``."""
    shares = record(value["accuracy"])
    samples = count(value.get("samples", value.get("images")))
    return {
        "title": text(value.get("model", "the digits network")),
        "how": f"Top class on {samples} labelled samples; both models ran on the same ones. The model entirely in the "
        "enclave computes what the unprotected one does.",
        "bars": [{"name": text(name), "share": number(share)} for name, share in list(shares.items())[:20]],
        "difference": number(value.get("largest_difference")),
    }


def run(value: Any) -> Json:
    """One result of ``run --json`` as facts."""
    crossed = count(value["bytes_to_accelerator"]) + count(value["bytes_from_accelerator"])
    return {"ms": number(value["median_ms"]), "runs": count(value["runs"]), "bytes": crossed,
            "crossings": count(value["crossings"])}  # fmt: skip


def verify(value: Any) -> Json:
    """One verdict of ``verify --json`` as facts."""
    agreed, compared = (count(v) for v in items(value["top"]))
    return {"ok": bool(value["ok"]), "worst": number(value["worst"]), "differing": number(value["differing"]),
            "agreed": agreed, "compared": compared, "samples": count(value["samples"]), "why": text(value["why"])}  # fmt: skip


def timeline(value: Any) -> Json:
    """The last inference of a trace: spans in milliseconds from its start.

    Spans of the accelerator lie inside those of the enclave that waits for it.
    """
    events = items(value["traceEvents"])
    names = {
        e.get("pid"): text(e["args"]["name"]) for e in events if isinstance(e, dict) and e.get("name") == "process_name"
    }
    spans = []
    for event in events:
        if event["ph"] != "X":
            continue
        where = _domain(text(names.get(event["pid"], event["pid"])))
        start, length = number(event["ts"]), number(event["dur"])
        if where and start is not None and length is not None and length >= 0:
            spans.append((start, length, text(event["name"]), where))
    spans = _last(sorted(spans))[:MAX_EVENTS]
    if not spans:
        return {"spans": [], "total": 0.0}
    zero = spans[0][0]
    total = max(start + length for start, length, *_ in spans) - zero
    return {
        "spans": [
            {"name": name, "where": where, "at": (start - zero) * 1e-3, "ms": length * 1e-3}
            for start, length, name, where in spans
        ],
        "total": total * 1e-3,
    }


def _domain(process: str) -> str:
    return next((where for where in ("accelerator", "enclave") if re.search(where, process)), "")


def _last(spans: list[tuple[float, float, str, str]]) -> list[tuple[float, float, str, str]]:
    """The spans of the last inference: each has as many, and one for its first layer."""
    own = [n for n, span in enumerate(spans) if span[3] == "enclave" and span[2].startswith("layer")]
    if not own:
        return spans
    runs = [n for n in own if spans[n][2] == spans[own[0]][2]]
    return spans[-(len(spans) // len(runs)) :] if len(spans) % len(runs) == 0 else spans[runs[-1] :]
