"""What the enclave did and when, for a timeline: names that the public half has too, times and sizes; never values.

Off unless the app asks. It tells the normal world how long the enclave's own steps take, which crossings alone do not
say exactly, and nothing else.
"""

from __future__ import annotations

import time
from typing import Any

MAX_EVENTS = 50_000


class Trace:
    """Collects events while enabled; beyond the limit it stops collecting."""

    def __init__(self, enabled: bool) -> None:
        self.enabled = enabled
        self._events: list[dict[str, Any]] = []

    def work(self, name: str, start: float, counts: dict[str, int] | None = None) -> None:
        """The enclave did ``name`` from ``start`` (``time.perf_counter``) until now; ``counts`` are sizes."""
        if self.enabled:
            event = {"kind": "work", "name": name, "start": start, "seconds": time.perf_counter() - start}
            self._add(event | {"counts": counts or {}})

    def call(self, name: str, asked: float, waiting: tuple[float, float], sent: int, received: int) -> None:
        """A layer crossed: asked for at ``asked``, waited for from ``waiting[0]`` on, ``waiting[1]`` seconds."""
        if self.enabled:
            event = {"kind": "wait", "name": name, "start": waiting[0], "seconds": waiting[1], "asked": asked}
            self._add(event | {"sent": sent, "received": received})

    def _add(self, event: dict[str, Any]) -> None:
        if len(self._events) < MAX_EVENTS:
            self._events.append(event)

    def take(self) -> list[dict[str, Any]]:
        """The events since the last call."""
        events, self._events = self._events, []
        return events
