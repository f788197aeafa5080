"""One-time activation masks. Made ahead on request, used once, in this process's memory only, never stored.

A pair is a push mask, added to a layer's input before it crosses, and a pop mask, the layer's true linear image of
it, subtracted from the answer (ShadowNet 1.4). Making one costs the enclave that layer's linear work. A set has a
pair for every masked layer and serves one inference. It lies in one piece of memory, in the order of use and on huge
pages where the system has them, because it is streamed through once; the memory is used again, its content never.
"""

from __future__ import annotations

import contextlib
import ctypes
import mmap
from collections import deque
from collections.abc import Callable
from typing import Any

import numpy as np

from shadownet.wire.errors import InputError

Array = np.ndarray[Any, Any]
Pair = tuple[Array, Array]

_LINE, _HUGE = 64, 2 << 20


class Layout:
    """Where the pairs of a set lie: byte offsets by layer number. The same for all sets of a pool."""

    def __init__(self, pairs: dict[int, Pair]) -> None:
        self.push_at, self.pop_at = (np.full(max(pairs, default=-1) + 1, -1, np.int64) for _ in range(2))
        self.nbytes = 0
        for layer, (push, pop) in pairs.items():
            self.push_at[layer], self.pop_at[layer] = self.nbytes, self.nbytes + _padded(push)
            self.nbytes += _padded(push) + _padded(pop)


class MaskSet:
    """The pairs of one inference by layer number, copied into ``memory``, whose start is at ``address``."""

    def __init__(self, pairs: dict[int, Pair], layout: Layout, memory: mmap.mmap) -> None:
        self.layout, self.memory = layout, memory
        self._pairs: dict[int, Pair] = {}
        for layer, (push, pop) in pairs.items():
            self._pairs[layer] = self._put(push, layout.push_at[layer]), self._put(pop, layout.pop_at[layer])
        self.address = ctypes.addressof(ctypes.c_char.from_buffer(memory))

    def _put(self, array: Array, offset: int) -> Array:
        view = np.ndarray(array.shape, array.dtype, self.memory, int(offset))
        np.copyto(view, array)
        return view

    def push(self, layer: int) -> Array:
        return self._pairs[layer][0]

    def pop(self, layer: int) -> Array:
        return self._pairs[layer][1]

    def sizes(self) -> dict[int, int]:
        """Bytes of each layer's pair."""
        return {layer: push.nbytes + pop.nbytes for layer, (push, pop) in self._pairs.items()}


def _padded(array: Array) -> int:
    return -(-array.nbytes // _LINE) * _LINE


def _piece(size: int) -> mmap.mmap:
    grain = _HUGE if size >= _HUGE else mmap.PAGESIZE
    rounded = max(-(-size // grain), 1) * grain
    try:
        memory = mmap.mmap(-1, rounded, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    except OSError:
        raise MemoryError from None
    with contextlib.suppress(OSError):  # a kernel without huge pages
        memory.madvise(mmap.MADV_HUGEPAGE)
    return memory


class MaskPool:
    """Sets that nobody has used. ``make(layer)`` draws a fresh pair; ``limit`` bounds the pool in bytes."""

    def __init__(self, layers: list[int], make: Callable[[int], Pair], limit: int) -> None:
        self._layers, self._make, self.limit = layers, make, limit
        self._ready: deque[MaskSet] = deque()
        self._spent: list[mmap.mmap] = []
        self._layout: Layout | None = None
        self.made_inline = 0

    def prepare(self, sets: int) -> None:
        """Make ``sets`` more sets. Raises ``InputError`` before the pool would pass its limit."""
        for _ in range(sets if self._layers else 0):
            if self._set_bytes() * (len(self) + 1) > self.limit:
                raise self._full()
            made = self._draw()
            if self._set_bytes() * (len(self) + 1) > self.limit:  # the first set tells how large they are
                raise self._full()
            self._ready.append(made)

    def take(self) -> MaskSet:
        """Hand out a set that nobody had before; makes one if none is ready."""
        if self._ready:
            return self._ready.popleft()
        self.made_inline += bool(self._layers)
        return self._draw()

    def recycle(self, used: MaskSet) -> None:
        """Give the memory of a set that was used to sets to come."""
        self._spent.append(used.memory)

    def _draw(self) -> MaskSet:
        pairs = {layer: self._make(layer) for layer in self._layers}
        if self._layout is None:
            self._layout = Layout(pairs)
        return MaskSet(pairs, self._layout, self._spent.pop() if self._spent else _piece(self._layout.nbytes))

    def _full(self) -> InputError:
        return InputError(
            f"{len(self) + 1} sets of masks do not fit in {self.limit} bytes; {len(self)} are ready",
            "prepare fewer sets, or allow more with --mask-memory",
        )

    def __len__(self) -> int:
        return len(self._ready)

    @property
    def nbytes(self) -> int:
        return len(self) * self._set_bytes()

    def _set_bytes(self) -> int:
        return self._layout.nbytes if self._layout else 0

    @property
    def held(self) -> int:
        """Bytes of memory, that of sets which were used included."""
        return sum(len(memory) for memory in (*(masks.memory for masks in self._ready), *self._spent))

    def discard(self) -> None:
        """Forget everything that is ready."""
        self._ready.clear()
        self._spent.clear()
