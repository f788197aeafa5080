"""What the enclave holds, counted against its budget."""

from __future__ import annotations

import contextlib
import math
import sys
import weakref
from collections.abc import Iterator
from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]


class Meter:
    """Bytes held now and at most; passing ``budget``, once it is set, raises ``MemoryError``."""

    def __init__(self) -> None:
        self.budget, self.held, self.peak = sys.maxsize, 0, 0

    def charge(self, size: int) -> None:
        """Count ``size`` bytes more. Raises ``MemoryError`` before the budget is passed."""
        if self.held + size > self.budget:
            raise MemoryError
        self.held += size
        self.peak = max(self.peak, self.held)

    def release(self, size: int) -> None:
        self.held -= size

    @contextlib.contextmanager
    def scratch(self, size: int) -> Iterator[None]:
        """Count ``size`` bytes for the duration of a block, whose arrays are not counted one by one."""
        self.charge(size)
        try:
            yield
        finally:
            self.release(size)

    def adopt(self, array: Array) -> Array:
        """Count an array that owns its memory until it, and every view of it, is gone."""
        self.charge(array.nbytes)
        weakref.finalize(array, self.release, array.nbytes).atexit = False
        return array

    def empty(self, shape: tuple[int, ...], dtype: Any) -> Array:
        """An array that counts until it, and every view of it, is gone."""
        if self.held + math.prod(shape) * np.dtype(dtype).itemsize > self.budget:
            raise MemoryError  # before anything is allocated
        return self.adopt(np.empty(shape, dtype))
