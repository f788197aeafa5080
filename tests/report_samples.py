"""Small results as the verbs print them, for the tests of the report."""

from __future__ import annotations

import base64
import io
from typing import Any

from PIL import Image

Json = dict[str, Any]

SCRIPT = "</script><script>alert('no')</script><img src=x onerror=alert(1)>"
LAYERS = ("layer000_conv_2d", "layer001_conv_2d", "layer002_fully_connected")


def inspected(repeat: int = 0) -> Json:
    """Two convolutions, a mean, a dense layer; ``repeat`` puts as many more convolutions in between."""
    conv = {
        "kind": "CONV_2D",
        "after": ["BIAS", "RELU"],
        "output": [1, 8, 8, 4],
        "filters": 4,
        "macs": 9216,
        "gives": False,
    }
    convs: list[Json] = [{**conv, "id": 0, "input": [1, 8, 8, 1], "reads": [-1], "sends": -1}]
    for n in range(1, 2 + repeat):
        convs.append({**conv, "id": n, "input": [1, 8, 8, 4], "reads": [n - 1], "sends": n - 1})
    n = len(convs)
    mean = {"kind": "", "after": ["MEAN"], "output": [1, 4], "reads": [0, n - 1], "gives": False}
    dense = {"kind": "FULLY_CONNECTED", "after": ["BIAS"], "output": [1, 10], "filters": 10, "macs": 40, "id": n + 1,
             "input": [1, 4], "reads": [n], "sends": n, "gives": True}  # fmt: skip
    return {"model": "/somewhere/net.tflite", "entries": [{"subgraph": 0, "ops": [], "steps": [*convs, mean, dense]}]}


def bundle() -> Json:
    def layer(name: str, op: str, number: int, source: list[int], target: list[int], masked: bool) -> Json:
        return {"signature": name, "op": op, "id": number, "input": source, "output": target, "filters": 4, "macs": 99,
                "masked": masked, "numbers": "float"}  # fmt: skip

    layers = [
        layer(LAYERS[0], "CONV_2D", 0, [1, 8, 8, 1], [1, 8, 8, 5], False),
        layer(LAYERS[1], "CONV_2D", 1, [2, 8, 8, 4], [2, 8, 8, 5], True),  # two digits of exact activations
        layer(LAYERS[2], "FULLY_CONNECTED", 3, [1, 4], [1, 12], True),
    ]
    options = {"ratio": 1.2, "activations": "float", "bits": None}
    sizes = {"accelerator.tflite": 4000, "enclave.sealed": 3000, "manifest.json": 900}
    return {"manifest": {"scheme": "shadownet:paper", "options": options, "layers": layers}, "sizes": sizes}


def bench() -> Json:
    phases = {"accelerator and waiting": 1.0, "mask and send": 0.5, "bytes": 9000, "crossings": 3}
    rows = [
        {"name": name, "median_ms": ms, "ratio": ms, "pairwise_ratio": [0.9 * ms, ms, 1.1 * ms], "scheme": name,
         "masks": "none", "integrity": "full", "phases": phases}
        for name, ms in (("unprotected", 1.0), ("tee", 1.2), ("shadownet:paper", 1.7))
    ]  # fmt: skip
    times = [{"layer": name, "accelerator_ms": 0.5, "enclave_ms": 0.25, "macs": 99} for name in LAYERS]
    return {"model": "net", "threads": 1, "batch": 1, "rounds": 30, "rows": rows, "layers": {"shadownet:paper": times},
            "environment": "a machine, 2 cores"}  # fmt: skip


def simulated() -> Json:
    def row(device: str, contender: str, ms: float, counts: Json | None) -> Json:
        spread = {"low": 0.5 * ms, "expected": ms, "high": 2.0 * ms}
        return {
            "device": device, "contender": contender, "ratio": 1.2, "ta_memory": None, "latency_ms": spread,
            "memory": {"verdict": "fits"}, "terms": {"enclave_macs": spread}, "times_unprotected": ms / 2,
            "dominant": {"what": "work", "remedy": "less"}, "counts": counts,
        }  # fmt: skip

    counts = {"crossings": 3, "bytes_out": 500, "bytes_in": 400}
    return {
        "version": 1, "model": "net.tflite", "kind": "model", "sweep": None, "notes": ["Predicted."],
        "devices": [{"name": name, "description": f"a {name}"} for name in ("board", "server")],
        "rows": [row(device, name, ms, None if name == "unprotected" else counts)
                 for device in ("board", "server")
                 for name, ms in (("unprotected", 2.0), ("tee", 20.0), ("shadownet:fast", 8.0))],
    }  # fmt: skip


def attack() -> Json:
    def scored(name: str, recovered: float) -> Json:
        scores = [
            {"layer": layer, "rows": {"recovered": recovered, "error": 0.1, "aligned": recovered},
             "null": {"recovered": 0.0}, "base": None}
            for layer in LAYERS
        ]  # fmt: skip
        return {"attack": name, "scores": scores}

    return {"bundle": "m.shadow", "scheme": "shadownet:paper", "filters": 12, "lost": 0.75,
            "attacks": [scored("A0", 0.0), scored("A4", 0.75)], "stolen": None}  # fmt: skip


def matrix() -> Json:
    def cell(scheme: str, name: str, *values: float | None) -> Json:
        runs = [{"recovered": v, "null": 0.01, "base": 0.05} for v in values]
        return {"model": "net", "scheme": scheme, "attack": name, "base": "net_base", "runs": runs, "problem": ""}

    return {
        "cells": [
            cell("shadownet:paper", "A4", 0.7, 0.8, 0.9), cell("shadownet:paper", "A0", 0.0, 0.0, 0.0),
            cell("slalom", "A0", 1.0, 1.0, 1.0), cell("shadownet:paper", "A19", None), cell("slalom", "A4", 0.0),
        ]
    }  # fmt: skip


def trace(inferences: int = 2) -> Json:
    enclave, accelerator = 11, 12
    events: list[Json] = [
        {"ph": "M", "name": "process_name", "pid": pid, "tid": pid, "args": {"name": name}}
        for pid, name in ((10, "app"), (enclave, "enclave (trusted)"), (accelerator, "accelerator (untrusted)"))
    ]
    layer = LAYERS[0]
    for start in range(1000, 1000 + 10_000 * inferences, 10_000):
        spans = [
            ("invoke", 10, -50, 1100), ("inference", enclave, 0, 900), ("mask and send", enclave, 0, 50),
            (layer, enclave, 100, 500), (f"wait for {layer}", enclave, 150, 400),
            ("trusted segment", enclave, 700, 200), (layer, accelerator, 120, 380),
        ]  # fmt: skip
        for name, pid, at, length in spans:
            events.append(
                {"name": name, "ph": "X", "pid": pid, "tid": pid, "ts": float(start + at), "dur": float(length)}
            )
    return {"traceEvents": events, "displayTimeUnit": "ms"}


def png() -> str:
    file = io.BytesIO()
    Image.new("RGB", (8, 8), (9, 99, 199)).save(file, "PNG")
    return base64.b64encode(file.getvalue()).decode()


def pictures() -> Json:
    schemes = [
        {"name": "shadownet:paper", "seen": png(), "stolen": png(), "attack": "A16, regression", "distance": 0.15},
        {"name": "tee", "seen": None, "stolen": None, "attack": "", "distance": None},
    ]
    return {"pictures": {"model": "net", "op": 1, "channel": 2, "input": png(), "inside": png(), "schemes": schemes,
                         "repeats": 24, "runs": 40}}  # fmt: skip
