"""Backends: ways to run the public model. Each takes the model's path and a number of threads."""

from __future__ import annotations

import importlib.metadata
from typing import Any, Protocol

import numpy as np

Array = np.ndarray[Any, Any]


class Backend(Protocol):
    """Runs one layer at a time, reading and writing float32 views of the shared arena."""

    def open(self, layers: list[tuple[str, Array, Array]]) -> None:
        """Prepare layers: (signature, input view, output view) each. Raises ``ValueError`` if one does not fit."""
        ...

    def run(self, layer: int) -> None:
        """Compute a layer's output view from its input view."""
        ...


def create(name: str, model: str, num_threads: int) -> Backend:
    """Make the backend ``name``. Raises ``ValueError`` if there is none or it cannot start."""
    if name == "litert-cpu":
        from accelerator.backends.litert_cpu import SUPPORTED, LiteRtCpu

        # The C library's interface is not promised to stay; elsewhere the Python one does the same, slower.
        if importlib.metadata.version("ai-edge-litert").startswith(SUPPORTED):
            return LiteRtCpu(model, num_threads)
        name = "litert-python"
    if name == "litert-python":
        from accelerator.backends.interpreter import LiteRtInterpreter

        return LiteRtInterpreter(model, num_threads)
    if name.startswith("hostile:"):
        from accelerator.backends.hostile import Hostile

        return Hostile(create("litert-cpu", model, num_threads), name.removeprefix("hostile:"))
    raise ValueError(
        f"there is no accelerator {name!r}; this version has litert-cpu and litert-python, and hostile:MODE for tests"
    )
