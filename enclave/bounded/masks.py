"""One-time masks in little memory: push masks are seeds, pop masks that were made beforehand are put away."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from enclave.bounded.plan import Bands, Known
from enclave.bounded.rows import Rows
from enclave.bounded.storage import Locker
from enclave.formats import MASK_BOUND
from enclave.program import Layer
from enclave.rng import Rng
from enclave.sealing import TAG
from shadownet.wire.errors import InputError

Array = np.ndarray[Any, Any]

_SEED = 32
_PIECES = 1 << 32  # numbers of a set's pieces


def push_rows(known: Known, layer: Layer, image: int, seed: bytes) -> Rows:
    """The push mask of one image of a layer in the order in which it is sent: float32, or float64 for residues."""
    row, residues = known.frame.source[2:], layer.residues

    def draw(rng: Rng) -> Array:
        if residues is not None:
            return residues.pad(rng, row)
        if layer.format.exact:
            return rng.integers(-MASK_BOUND, MASK_BOUND + 1, row).astype(np.float32)
        return rng.normal(layer.sigma, row)

    return Rows(row, np.float64 if known.wide else np.float32, draw, seed, known.number << 32 | image)


@dataclass
class MaskSet:
    """The masks of one inference: a seed, and where pop masks lie if they were made beforehand."""

    seed: bytes = field(default_factory=lambda: os.urandom(_SEED))
    number: int = 0  # of the set, from 1; 0 if its pop masks are made when they are needed
    at: int = 0


class Masks:
    """Sets that nobody has used. ``limit`` bounds what is put away, in bytes."""

    def __init__(
        self, layers: list[Known], bands: dict[int, Bands], make: Callable[[Known, bytes], Iterator[Array]],
        limit: int,
    ) -> None:  # fmt: skip
        """``make`` yields a layer's pop masks, band by band, for a seed."""
        self._make, self._limit = make, limit
        self._layers = [layer for layer in layers if layer.masked]
        self._ready: deque[MaskSet] = deque()
        self._free: list[int] = []
        self._locker: Locker | None = None
        self.made_inline = self._made = 0
        self._first: dict[int, tuple[int, int]] = {}  # by layer: its first piece's number and place within a set
        self._size = piece = 0
        for layer in self._layers:
            self._first[layer.number] = piece, self._size
            for first, end in layer.frame.bands(bands[layer.number].rows):
                piece += layer.frame.source[0]
                self._size += layer.frame.source[0] * (layer.pop_bytes(end - first) + TAG)

    def prepare(self, sets: int) -> None:
        """Make ``sets`` more sets. Raises ``InputError``, and makes none, if they would pass the limit."""
        if self._size * (len(self) + sets) > self._limit:
            raise InputError(
                f"{len(self) + sets} sets of masks do not fit in the {self._limit} bytes of mask memory; "
                f"{len(self)} are ready",
                "prepare fewer sets, or allow more with --mask-memory",
            )
        for _ in range(sets if self._layers else 0):
            self._ready.append(self._put_away())

    def _put_away(self) -> MaskSet:
        self._locker = self._locker or Locker()
        self._made += 1
        made = MaskSet(number=self._made, at=self._free.pop() if self._free else self._size * (self._made - 1))
        for layer in self._layers:
            piece, at = self._first[layer.number]
            for pop in self._make(layer, made.seed):
                self._locker.put(made.number * _PIECES + piece, made.at + at, pop)
                piece, at = piece + 1, at + pop.nbytes + TAG
        return made

    def take(self) -> MaskSet:
        """Hand out a set that nobody had before."""
        if self._ready:
            return self._ready.popleft()
        self.made_inline += bool(self._layers)
        return MaskSet()

    def pops(self, layer: Known, masks: MaskSet, shapes: Iterable[tuple[int, ...]]) -> Iterator[Array]:
        """A layer's pop masks that were put away, band by band with these ``shapes``. Raises ``IntegrityError``."""
        assert self._locker is not None
        piece, at = self._first[layer.number]
        for shape in shapes:
            pop = np.empty(shape, np.float64 if layer.exact else np.float32)
            self._locker.take(masks.number * _PIECES + piece, masks.at + at, pop)
            yield pop
            piece, at = piece + 1, at + pop.nbytes + TAG

    def recycle(self, used: MaskSet) -> None:
        """The place of a set that was used may serve another, under another number."""
        if used.number:
            self._free.append(used.at)

    def __len__(self) -> int:
        return len(self._ready)

    @property
    def nbytes(self) -> int:
        """Bytes put away for sets that are ready."""
        return len(self) * self._size
