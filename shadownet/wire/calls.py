"""When the accelerator ran which layer, as it says itself: rows in memory that the app shares with it, for a timeline.

Untrusted: the app reads it when all is done, bounds it, and draws it. The enclave never sees it.
"""

from __future__ import annotations

import numpy as np

from shadownet.wire.arena import Arena

MAX_CALLS = 50_000
_ROW = 3 * 8


class CallLog:
    """Rows (layer, begun, ended), int64, in nanoseconds of ``CLOCK_MONOTONIC``; beyond the limit none is added.

    Row 0 is (rows used, rows there are, unused), so that the loop in C can add rows too.
    """

    def __init__(self, arena: Arena) -> None:
        self.arena = arena
        self.table = arena.array(0, (MAX_CALLS + 1, 3), np.int64)

    @classmethod
    def create(cls) -> CallLog:
        log = cls(Arena.create((MAX_CALLS + 1) * _ROW, "calls"))
        log.table[0] = 0, MAX_CALLS, 0
        return log

    @classmethod
    def attach(cls, fd: int) -> CallLog:
        """Raises ``WorkerError`` if the descriptor is no sealed memory, ``ValueError`` if it is too small."""
        return cls(Arena.attach(fd))

    def add(self, layer: int, begun: int, ended: int) -> None:
        used = int(self.table[0, 0])
        if used < MAX_CALLS:
            self.table[used + 1] = layer, begun, ended
            self.table[0, 0] = used + 1

    def rows(self) -> list[tuple[int, int, int]]:
        """A copy of what was added, however the count reads."""
        used = min(max(int(self.table[0, 0]), 0), MAX_CALLS)
        return [(int(layer), int(begun), int(ended)) for layer, begun, ended in self.table[1 : used + 1].copy()]
