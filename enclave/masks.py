"""One-time activation masks. Made ahead on request, used once, in this process's memory only, never stored.

A pair is a push mask, added to a layer's input before it crosses, and a pop mask, the layer's true linear image of
it, subtracted from the answer (ShadowNet 1.4). Making one costs the enclave that layer's linear work. A set has a
pair for every masked layer and serves one inference.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Any

import numpy as np

from enclave.native import address
from shadownet.wire.errors import InputError

Array = np.ndarray[Any, Any]
Pair = tuple[Array, Array]


class MaskSet:
    """The pairs of one inference by layer number; ``push_at`` and ``pop_at`` are their addresses, for the C loop."""

    def __init__(self, pairs: dict[int, Pair]) -> None:
        self._pairs = pairs
        size = max(pairs, default=-1) + 1
        self.push_at, self.pop_at = np.zeros(size, np.uint64), np.zeros(size, np.uint64)
        for layer, (push, pop) in pairs.items():
            self.push_at[layer], self.pop_at[layer] = address(push), address(pop)
        self.nbytes = sum(push.nbytes + pop.nbytes for push, pop in pairs.values())

    def push(self, layer: int) -> Array:
        return self._pairs[layer][0]

    def pop(self, layer: int) -> Array:
        return self._pairs[layer][1]


class MaskPool:
    """Sets that nobody has used. ``make(layer)`` draws a fresh pair; ``limit`` bounds the pool in bytes."""

    def __init__(self, layers: list[int], make: Callable[[int], Pair], limit: int) -> None:
        self._layers, self._make, self.limit = layers, make, limit
        self._ready: deque[MaskSet] = deque()
        self._set_bytes = 0
        self.made_inline = 0

    def prepare(self, sets: int) -> None:
        """Make ``sets`` more sets. Raises ``InputError`` before the pool would pass its limit."""
        for _ in range(sets if self._layers else 0):
            if self._set_bytes * (len(self) + 1) > self.limit:
                raise self._full()
            made = self._draw()
            if self._set_bytes * (len(self) + 1) > self.limit:  # the first set tells how large they are
                raise self._full()
            self._ready.append(made)

    def take(self) -> MaskSet:
        """Hand out a set that nobody had before; makes one if none is ready."""
        if self._ready:
            return self._ready.popleft()
        self.made_inline += bool(self._layers)
        return self._draw()

    def _draw(self) -> MaskSet:
        made = MaskSet({layer: self._make(layer) for layer in self._layers})
        self._set_bytes = made.nbytes
        return made

    def _full(self) -> InputError:
        return InputError(
            f"{len(self) + 1} sets of masks do not fit in {self.limit} bytes; {len(self)} are ready",
            "prepare fewer sets, or allow more with --mask-memory",
        )

    def __len__(self) -> int:
        return len(self._ready)

    @property
    def nbytes(self) -> int:
        return len(self) * self._set_bytes

    def discard(self) -> None:
        """Forget everything that is ready."""
        self._ready.clear()
