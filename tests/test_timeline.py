"""Timelines follow the Trace Event Format, agree with what crossed, and hold no value."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from boundary_helpers import Lab, digits, infer, the_lab  # noqa: F401, the_lab is the fixture lab

import shadownet
from shadownet.session import Session
from shadownet.timeline import Timeline
from shadownet.wire.calls import MAX_CALLS, CallLog
from shadownet.wire.errors import InputError

Event = dict[str, Any]


def check_format(trace: dict[str, Any]) -> dict[str, list[Event]]:
    """The rules of the Trace Event Format that we use; returns the events by phase.

    https://docs.google.com/document/d/1CvAClvFfyA5R-PhYUmn5OOQtYMH4h6I0nSsKchNAySU (JSON object format; complete,
    flow, counter and metadata events).
    """
    assert set(trace) <= {"traceEvents", "displayTimeUnit", "otherData"}
    assert trace["displayTimeUnit"] in ("ms", "ns")
    found: dict[str, list[Event]] = {phase: [] for phase in "XsfCM"}
    for event in trace["traceEvents"]:
        assert isinstance(event["name"], str) and type(event["pid"]) is type(event["tid"]) is int
        found[event["ph"]].append(event)
        if event["ph"] != "M":
            assert event["ts"] >= 0
    for event in found["X"]:
        assert event["dur"] >= 0
    for event in found["C"]:
        assert event["args"] and all(type(value) is int for value in event["args"].values())
    assert {e["name"] for e in found["M"]} <= {"process_name", "process_sort_index", "thread_name"}
    threads = {(e["pid"], e["tid"]) for e in found["X"]}
    for thread in threads:
        assert {e["name"] for e in found["M"] if (e["pid"], e["tid"]) == thread} >= {"process_name", "thread_name"}
        _nested([e for e in found["X"] if (e["pid"], e["tid"]) == thread])
    _arrows(found)
    return found


def _nested(slices: list[Event]) -> None:
    """Slices of one thread lie inside one another or apart."""
    open_until: list[float] = []
    for e in sorted(slices, key=lambda e: (e["ts"], -e["dur"])):
        while open_until and open_until[-1] <= e["ts"] + 1e-6:
            open_until.pop()
        end = e["ts"] + e["dur"]
        assert not open_until or end <= open_until[-1] + 2e-3, e
        open_until.append(end)


def _arrows(found: dict[str, list[Event]]) -> None:
    """Each begins once and ends once, later, and each end touches a slice of its thread."""
    starts, ends = ({(e["cat"], e["id"]): e for e in found[phase]} for phase in "sf")
    assert len(starts) == len(found["s"]) and len(ends) == len(found["f"]) and set(starts) == set(ends)
    for key, begun in starts.items():
        ended = ends[key]
        assert begun["name"] == ended["name"] and begun["pid"] != ended["pid"] and ended["bp"] == "e"
        assert begun["ts"] <= ended["ts"] + 2e-3
    for e in (*found["s"], *found["f"]):
        own = [x for x in found["X"] if x["pid"] == e["pid"]]
        assert any(x["ts"] - 2e-3 <= e["ts"] <= x["ts"] + x["dur"] + 2e-3 for x in own), e


def traced(lab: Lab, path: Path, model: str = "digits_cnn", runs: int = 2, **options: Any) -> dict[str, Any]:
    with lab.open(model, trace=path, **options) as interpreter:
        interpreter.allocate_tensors()
        interpreter.prepare(runs - 1)
        dtype = interpreter.get_input_details()[0]["dtype"]
        for k in range(runs):
            infer(interpreter, digits()[k : k + 1].astype(dtype))
        stats = interpreter.session.stats()
        pids = interpreter.session.pids
    return json.loads(path.read_text()) | {"stats": stats, "pids": pids}


def split(trace: dict[str, Any]) -> tuple[dict[str, Any], dict[str, list[Event]]]:
    stats = {name: trace.pop(name) for name in ("stats", "pids")}
    return stats, check_format(trace)


@pytest.mark.parametrize("model, options", [
    ("digits_cnn", {}), ("digits_cnn_int8", {}), ("digits_mlp", {"accelerator": "litert-python"}),
])  # fmt: skip
def test_every_crossing_is_an_event(lab: Lab, tmp_path: Path, model: str, options: dict[str, Any]) -> None:
    known, found = split(traced(lab, tmp_path / "t.json", model, **options))
    stats, (accelerator, enclave) = known["stats"], known["pids"]
    names = {e["args"]["name"]: e["pid"] for e in found["M"] if e["name"] == "process_name"}
    assert names == {"app": os.getpid(), "enclave (trusted)": enclave, "accelerator (untrusted)": accelerator}
    there, back, asked = (
        [e for e in found["s"] if e["pid"] == pid] for pid in (enclave, accelerator, os.getpid())
    )  # fmt: skip
    assert len(asked) == 2 and len(there) == stats["crossings"] + 2 and len(back) == stats["crossings"] > 0
    last = max(found["C"], key=lambda e: e["ts"])["args"]
    assert last == {
        "to accelerator": stats["bytes_to_accelerator"], "from accelerator": stats["bytes_from_accelerator"],
    }  # fmt: skip
    assert len(found["C"]) == stats["crossings"]
    slices = {pid: [e["name"] for e in found["X"] if e["pid"] == pid] for pid in names.values()}
    assert slices[os.getpid()].count("invoke") == slices[enclave].count("inference") == 2
    assert slices[enclave].count("make masks") == slices[enclave].count("take masks") == 1
    assert len(slices[accelerator]) == stats["crossings"]


def test_nothing_outsourced_has_two_processes(lab: Lab, tmp_path: Path) -> None:
    bundle = tmp_path / "b.shadow"
    shadownet.convert(lab.model("digits_mlp"), bundle, outsource="none", key=lab.key)
    with shadownet.Interpreter(bundle, key=lab.key, trace=tmp_path / "t.json") as interpreter:
        interpreter.allocate_tensors()
        infer(interpreter, digits()[:1])
    found = check_format(json.loads((tmp_path / "t.json").read_text()))
    assert len({e["pid"] for e in found["M"]}) == 2 and not found["C"]


def test_a_timeline_holds_names_times_and_sizes_only(lab: Lab, tmp_path: Path) -> None:
    """Every string is one that the public half or this project has; every number is a time, a size or an id."""
    _, found = split(traced(lab, tmp_path / "t.json"))
    public = {
        layer["signature"] for layer in json.loads((lab.bundle("digits_cnn") / "manifest.json").read_text())["layers"]
    }
    own = {
        "inference",
        "make masks",
        "take masks",
        "mask and send",
        "trusted segment",
        "invoke",
        "allocate",
        "prepare masks",
    }
    own |= {"input", "output", "bytes crossed"} | {f"wait for {name}" for name in public}
    for event in (e for phase in "XsfC" for e in found[phase]):
        assert event["name"] in public | own
        assert set(event) <= {"ph", "name", "pid", "tid", "ts", "dur", "cat", "id", "bp", "args"}
        assert event.get("cat") in (None, "work", "crossing")
        assert set(event.get("args", {})) <= {"to accelerator", "from accelerator"}


def test_off_by_default(lab: Lab) -> None:
    with lab.open("digits_mlp") as interpreter:
        interpreter.allocate_tensors()
        infer(interpreter, digits()[:1])
        session: Session = interpreter.session
        assert session.events() == []
        with pytest.raises(InputError, match="no timeline"):
            session.timeline()


def test_many_at_a_time_are_traced_one_after_the_other(lab: Lab, tmp_path: Path) -> None:
    with lab.open("digits_cnn", trace=tmp_path / "t.json") as interpreter:
        interpreter.allocate_tensors()
        interpreter.invoke_many([[digits()[k : k + 1]] for k in range(3)])
    found = check_format(json.loads((tmp_path / "t.json").read_text()))
    assert sum(e["name"] == "inference" for e in found["X"]) == 3


def test_a_timeline_that_cannot_be_written(lab: Lab, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    interpreter = lab.open("digits_mlp", trace=tmp_path / "file" / "t.json")
    pids = interpreter.session.pids
    with pytest.raises(InputError, match="cannot write"):
        interpreter.close()
    assert not any(Path(f"/proc/{pid}").exists() for pid in pids)
    assert os.listdir(tmp_path) == ["file"]


def test_what_the_accelerator_claims_is_bounded() -> None:
    """A log full of nonsense makes a smaller timeline, never a wrong one."""
    log = CallLog.create()
    log.table[1:] = np.random.default_rng(1).integers(-(2**62), 2**62, log.table[1:].shape)
    for used in (-5, MAX_CALLS + 7, 2**62):
        log.table[0, 0] = used
        assert len(log.rows()) in (0, MAX_CALLS)
        check_format({"traceEvents": Timeline().events([], log.rows(), ["layer"], [1, 2, 3]), "displayTimeUnit": "ms"})
    log.table[0, 0] = MAX_CALLS
    log.add(0, 0, 0)
    assert log.table[0, 0] == MAX_CALLS
    log.arena.close()
