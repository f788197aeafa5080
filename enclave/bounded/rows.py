"""Random rows from a seed, which another pass draws again instead of keeping them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from enclave.rng import Rng, Stream

Array = np.ndarray[Any, Any]


class Rows:
    """One image of random rows [columns, channels] of ``dtype``, a window of rows at a time.

    ``draw`` draws a row. Rows come in order from the stream ``number`` of ``seed``, whatever the windows; these may
    overlap but not go back.
    """

    def __init__(
        self, row: tuple[int, ...], dtype: Any, draw: Callable[[Rng], Array], seed: bytes, number: int
    ) -> None:
        self._row, self._draw, self._rng = row, draw, Stream(seed, number)
        self._next, self._last = 0, np.empty((0, *row), dtype)

    def window(self, start: int, stop: int) -> Array:
        """Rows [start, stop), a new array."""
        out = np.empty((stop - start, *self._row), self._last.dtype)
        kept = max(self._next - start, 0)
        out[:kept] = self._last[self._last.shape[0] - kept :]
        while self._next < stop:
            row = self._draw(self._rng)
            if self._next >= start:
                out[self._next - start] = row
            self._next += 1
        self._last = out
        return out
