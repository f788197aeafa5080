"""Randomness that can be repeated, for tests only: what a real run draws always comes from the system's CSPRNG."""

from __future__ import annotations

import numpy as np

from enclave.rng import Rng


class SeededRng(Rng):
    """An :class:`enclave.rng.Rng` whose bytes depend on a seed and nothing else."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        self._stream = np.random.default_rng(seed)

    def bytes(self, size: int) -> bytes:
        return self._stream.bytes(size)
