"""One-time activation masks. Made ahead on request, used once, in this process's memory only, never stored.

A pair is a push mask, added to a layer's input before it crosses, and a pop mask, the layer's true linear image of
it, subtracted from the answer (ShadowNet 1.4). Making one costs the enclave that layer's linear work.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Any

import numpy as np

from shadownet.wire.errors import InputError

Array = np.ndarray[Any, Any]
Pair = tuple[Array, Array]


class MaskPool:
    """Sets of pairs, one pair per masked layer. ``make(layer)`` draws a fresh pair."""

    def __init__(self, layers: list[int], make: Callable[[int], Pair], limit: int) -> None:
        self._layers, self._make, self.limit = layers, make, limit
        self._ready: dict[int, deque[Pair]] = {k: deque() for k in layers}
        self.made_inline = 0
        self.nbytes = 0

    def prepare(self, sets: int) -> None:
        """Make ``sets`` more sets. Raises ``InputError`` before the pool would pass its limit in bytes."""
        for _ in range(sets):
            for layer in self._layers:
                pair = self._make(layer)
                size = pair[0].nbytes + pair[1].nbytes
                if self.nbytes + size > self.limit:
                    raise InputError(
                        f"the masks do not fit in {self.limit} bytes; {len(self)} sets are ready",
                        "prepare fewer sets, or allow more with --mask-memory",
                    )
                self.nbytes += size
                self._ready[layer].append(pair)

    def take(self, layer: int) -> Pair:
        """Hand out a pair that nobody had before; makes one if none is ready."""
        if not self._ready[layer]:
            self.made_inline += 1
            return self._make(layer)
        pair = self._ready[layer].popleft()
        self.nbytes -= pair[0].nbytes + pair[1].nbytes
        return pair

    def __len__(self) -> int:
        return min((len(queue) for queue in self._ready.values()), default=0)

    def discard(self) -> None:
        """Forget everything that is ready."""
        for queue in self._ready.values():
            queue.clear()
        self.nbytes = 0
