"""What protection costs, as the page shows it: latency, accuracy, and the timeline of one inference."""

from __future__ import annotations

from typing import Any

from shadownet.report.documents import count, items, number, record, text

Json = dict[str, Any]

MAX_EVENTS = 5000
MAX_BARS = 100
NOISY = 1.6  # a middle half of ratios that spans more than this factor: something else was running
WAIT = "wait for "  # before a layer's name
PHASES = ("bytes", "crossings")  # counters among a contender's phases; the rest are milliseconds


def bench(value: Any) -> Json:
    """One result of ``bench --json`` as a group of bars."""
    bars = [_bar(record(row), number(items(value["rows"])[0]["median_ms"])) for row in items(value["rows"])]
    threads, batch, rounds = (count(value[key]) for key in ("threads", "batch", "rounds"))
    return {
        "title": text(value["model"]),
        "where": "measured here",
        "how": f"Medians of {rounds} rounds; contenders run in turn in one run, masks prepared beforehand, {threads} "
        f"thread{'s' if threads != 1 else ''} per process, batch {batch}; lines: middle half of the ratio to the "
        f"unprotected model in the same round. {text(value['environment'])}. Processes, no hardware enclave.",
        "bars": bars,
        "noisy": any((bar["high"] or 0.0) > NOISY * (bar["low"] or 0.0) for bar in bars),
    }


def _bar(row: Json, plain: float | None) -> Json:
    low, _, high = (number(v) for v in items(row["pairwise_ratio"]))
    phases = {text(k): number(v) for k, v in record(row.get("phases", {})).items()}
    return {
        "name": text(row["name"]), "ms": number(row["median_ms"]), "ratio": number(row["ratio"]),
        "low": _times(low, plain), "high": _times(high, plain),
        "note": f"masks {text(row['masks'])}; integrity {text(row['integrity'])}",
        "phases": [[k, v] for k, v in phases.items() if k not in PHASES and v is not None][:20],
        "bytes": phases.get("bytes"), "crossings": phases.get("crossings"),
    }  # fmt: skip


def _times(a: float | None, b: float | None) -> float | None:
    return None if a is None or b is None else number(a * b)


def simulated(value: Any) -> list[Json]:
    """The predictions of ``simulate --json`` as groups of bars, one for each device."""
    if value["version"] != 1:
        raise ValueError("another version")
    rows = [record(row) for row in items(value["rows"])]
    notes = " ".join(text(n) for n in items(value["notes"])[:10])
    found = []
    for device in items(value["devices"])[:20]:
        name = text(device["name"])
        found.append({
            "title": text(value["model"]).removesuffix(".tflite"), "noisy": False, "where": f"simulated: {name}",
            "how": f"Simulated, not measured: {text(device['description'])}. {notes} Lines: from the lowest to the "
            "highest by the uncertainty of the device's numbers.",
            "bars": [_prediction(row, value["sweep"]) for row in rows if row["device"] == device["name"]][:MAX_BARS],
        })  # fmt: skip
    return found


def _prediction(row: Json, sweep: Any) -> Json:
    ms = {key: number(row["latency_ms"][key]) for key in ("low", "expected", "high")}
    name, counts, worst = text(row["contender"]), row["counts"], row["dominant"]
    swept = None if sweep is None else {"ratio": row["ratio"], "ta-memory": row["ta_memory"]}[sweep["parameter"]]
    note = f"memory {text(row['memory']['verdict'])}; mostly {text(worst['what'])}: {text(worst['remedy'])}"
    terms = [[text(k).replace("_", " "), number(v["expected"])] for k, v in record(row["terms"]).items()]
    return {
        "name": name if swept is None else f"{name}, {text(swept)}", "ms": ms["expected"], "low": ms["low"],
        "high": ms["high"], "ratio": number(row["times_unprotected"]), "note": note,
        "phases": [term for term in terms if term[1]][:20],
        "bytes": None if counts is None else count(counts["bytes_out"]) + count(counts["bytes_in"]),
        "crossings": None if counts is None else count(counts["crossings"]),
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
    return {
        "ok": bool(value["ok"]), "worst": number(value["worst"]), "differing": number(value["differing"]),
        "agreed": agreed, "compared": compared, "samples": count(value["samples"]), "why": text(value["why"]),
    }  # fmt: skip


def timeline(value: Any) -> Json:
    """The last inference of a trace (:mod:`shadownet.timeline`): spans in milliseconds from its start.

    ``where`` is "enclave", "wait" for the part of such a span in which the enclave waits, or "accelerator".
    """
    events = items(value["traceEvents"])
    names = {e["pid"]: text(e["args"]["name"]) for e in events if e["ph"] == "M" and e["name"] == "process_name"}
    spans = []
    for event in events:
        if event["ph"] != "X":
            continue
        start, length, name = number(event["ts"]), number(event["dur"]), text(event["name"])
        where = next((w for w in ("accelerator", "enclave") if names.get(event["pid"], "").startswith(w)), "")
        if where and start is not None and length is not None and length >= 0:
            layer = name.removeprefix(WAIT)
            spans.append((start, -length, layer, where if layer == name else "wait"))
    spans.sort()  # what contains comes before what it contains
    whole = next((s for s in reversed(spans) if s[2:] == ("inference", "enclave")), None)
    if whole is None:
        return {"spans": [], "total": 0.0}
    start, end = whole[0], whole[0] - whole[1]
    return {
        "total": (end - start) * 1e-3,
        "spans": [
            {"name": name, "where": where, "at": (at - start) * 1e-3, "ms": -length * 1e-3}
            for at, length, name, where in spans
            if at >= start and at - length <= end and name != "inference"
        ][:MAX_EVENTS],
    }
