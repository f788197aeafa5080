"""A timeline of what the enclave did, for Perfetto and chrome://tracing. Holds names and times, never values."""

from __future__ import annotations

import time
from typing import Any

_MAX_EVENTS = 50_000


class Trace:
    """Collects events while enabled; beyond the limit it stops collecting."""

    def __init__(self, enabled: bool) -> None:
        self.enabled = enabled
        self._events: list[dict[str, Any]] = []

    def add(self, name: str, where: str, start: float, seconds: float | None = None, **counters: int) -> None:
        """Record that ``name`` ran from ``start`` (``time.perf_counter``) for ``seconds``, or until now."""
        if self.enabled and len(self._events) < _MAX_EVENTS:
            if seconds is None:
                seconds = time.perf_counter() - start
            event = {"name": name, "ph": "X", "pid": where, "tid": 0, "ts": start * 1e6, "dur": seconds * 1e6}
            self._events.append(event | {"args": counters})

    def take(self) -> list[dict[str, Any]]:
        """The events since the last call."""
        events, self._events = self._events, []
        return events
