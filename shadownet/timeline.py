"""A timeline of a session for Perfetto (ui.perfetto.dev) and chrome://tracing.

Three processes: the app, the enclave, the accelerator. Every crossing has an arrow each way, and counters add up its
bytes. The format is Chrome's Trace Event Format (JSON, object form): ``X`` slices, ``s``/``f`` flows, ``C`` counters,
``M`` names. Times are those of one clock, CLOCK_MONOTONIC, in microseconds since the session began.

It discloses layer names that the public half has as well, times, and sizes; no value ever. The enclave's own steps
between two crossings are timed too, which an observer of the crossings alone would not see in such detail. What the
accelerator's track shows is its own word.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from shadownet.wire.errors import InputError

Event = dict[str, Any]
Call = tuple[int, int, int]  # layer, begun, ended (nanoseconds)

NAMES = ("app", "enclave (trusted)", "accelerator (untrusted)")


class Timeline:
    """Collects what the app did; :meth:`events` puts it together with what the two workers tell."""

    def __init__(self) -> None:
        self.zero = time.perf_counter()
        self._spans: list[tuple[str, float, float]] = []

    def span(self, name: str, start: float) -> None:
        """The app was busy with ``name`` from ``start`` (seconds of ``time.perf_counter``) until now."""
        self._spans.append((name, start, time.perf_counter()))

    def events(
        self, enclave: Iterable[dict[str, Any]], calls: list[Call], layers: list[str], pids: list[int]
    ) -> list[Event]:
        """The events of a trace file. ``enclave`` are records of ``enclave.trace``, ``calls`` those of the
        accelerator's log, ``layers`` the layers' names by number, ``pids`` of app, enclave and accelerator (if there is
        one)."""
        writer = _Writer(self.zero, pids)
        for span in self._spans:
            writer.slice(pids[0], *span)
        records = sorted(enclave, key=lambda r: float(r["start"]))
        waits = [r for r in records if r["kind"] == "wait"]
        for record in records:
            name = "trusted segment" if record["name"].startswith("segment ") else record["name"]
            name = f"wait for {name}" if record["kind"] == "wait" else name
            writer.slice(pids[1], name, record["start"], record["start"] + record["seconds"])
        inferences = [r for r in records if r["name"] == "inference"]
        for (_, start, end), record in zip((s for s in self._spans if s[0] == "invoke"), inferences, strict=False):
            finished = record["start"] + record["seconds"]
            writer.arrow("input", (pids[0], start), (pids[1], record["start"]))
            writer.arrow("output", (pids[1], finished), (pids[0], end))
        if len(pids) > 2:
            _crossings(writer, pids, waits, _plausible(calls, self.zero), layers)
        return writer.events


def write(path: str | os.PathLike[str], timeline: Event) -> None:
    """Write a trace file, whole or not at all. Raises ``InputError``."""
    target = Path(path)
    work = target.with_name(f".{target.name}.{secrets.token_hex(4)}.tmp")
    try:
        work.write_text(json.dumps(timeline))
        os.replace(work, target)
    except (OSError, ValueError) as error:
        with contextlib.suppress(OSError):
            work.unlink(missing_ok=True)
        raise InputError(f"cannot write {path}: {getattr(error, 'strerror', None) or error}") from None


def _plausible(calls: list[Call], zero: float) -> list[tuple[int, float, float]]:
    """In seconds. The accelerator may have written anything: from the first row that cannot be, nothing is drawn."""
    kept: list[tuple[int, float, float]] = []
    last, now = int(zero * 1e9), time.perf_counter_ns()
    for layer, begun, ended in calls:
        if not last <= begun <= ended <= now:
            break
        kept.append((layer, begun * 1e-9, ended * 1e-9))
        last = ended
    return kept


def _crossings(
    writer: _Writer,
    pids: list[int],
    waits: list[dict[str, Any]],
    calls: list[tuple[int, float, float]],
    names: list[str],
) -> None:
    sent = received = 0
    for layer, begun, ended in calls:
        writer.slice(pids[2], names[layer % len(names)] if names else "?", begun, ended)
    for k, wait in enumerate(waits):
        answered = wait["start"] + wait["seconds"]
        sent, received = sent + wait["sent"], received + wait["received"]
        writer.counter(pids[1], "bytes crossed", answered, {"to accelerator": sent, "from accelerator": received})
        if k < len(calls):  # calls are served in the order in which they were asked for
            writer.arrow(wait["name"], (pids[1], wait["asked"]), (pids[2], calls[k][1]))
            writer.arrow(wait["name"], (pids[2], calls[k][2]), (pids[1], answered))


class _Writer:
    def __init__(self, zero: float, pids: list[int]) -> None:
        self._zero, self._arrows = zero, 0
        self.events: list[Event] = []
        for order, (pid, name) in enumerate(zip(pids, NAMES, strict=False)):
            for kind, args in (
                ("process_name", {"name": name}), ("process_sort_index", {"sort_index": order}),
                ("thread_name", {"name": "main"}),
            ):  # fmt: skip
                self.events.append({"ph": "M", "name": kind, "pid": pid, "tid": pid, "args": args})

    def _us(self, seconds: float) -> float:
        return round((seconds - self._zero) * 1e6, 3)

    def _event(self, phase: str, pid: int, name: str, at: float, **more: Any) -> None:
        self.events.append({"ph": phase, "name": name, "pid": pid, "tid": pid, "ts": at, **more})

    def slice(self, pid: int, name: str, start: float, end: float) -> None:
        begun = self._us(start)
        self._event("X", pid, name, begun, cat="work", dur=round(self._us(end) - begun, 3))

    def counter(self, pid: int, name: str, at: float, values: dict[str, int]) -> None:
        self._event("C", pid, name, self._us(at), args=values)

    def arrow(self, name: str, origin: tuple[int, float], target: tuple[int, float]) -> None:
        """From a slice of one process to one of another. An arrow belongs to the slice that is open at its time."""
        self._arrows += 1
        for phase, (pid, at), more in (("s", origin, {}), ("f", target, {"bp": "e"})):
            self._event(phase, pid, name, self._us(at), cat="crossing", id=self._arrows, **more)
