"""Where the tensors of the app's requests lie in the arena that it shares with the enclave."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from shadownet.wire.arena import Arena
from shadownet.wire.tensors import DTYPES, TensorSpec

Array = np.ndarray[Any, Any]
View = Array | None


def views(arena: Arena, specs: Sequence[TensorSpec], offsets: Sequence[int], start: int) -> list[View]:
    """The tensors of a request that begins at ``start``; None for strings, which go through the socket."""
    return [
        None if spec.dtype == "string" else arena.array(start + offset, spec.shape, DTYPES[spec.dtype])
        for spec, offset in zip(specs, offsets, strict=True)
    ]
