"""Backends: ways to run the public model. Each takes the model's path and a number of threads."""

from __future__ import annotations

import importlib.metadata
from typing import Any, Protocol

import numpy as np

Array = np.ndarray[Any, Any]

NAMES = (
    "litert-cpu", "litert-cpu-fp16", "litert-python", "litert-gpu", "litert-gpu-fp16", "tflite-runtime", "numpy",
)  # fmt: skip
DELEGATING = ("litert-python", "tflite-runtime")


class Backend(Protocol):
    """Runs one layer at a time, reading and writing float32 views of the shared arena.

    ``precision`` is how coarsely it computes, one of ``shadownet.wire.precision``. The enclave tests that.
    """

    precision: str

    def open(self, layers: list[tuple[str, Array, Array]]) -> list[str]:
        """Prepare layers: (signature, input view, output view) each; returns what the user should know of them, as
        where they run if not where they should. Raises ``ValueError`` if one does not fit."""
        ...

    def run(self, layer: int) -> None:
        """Compute a layer's output view from its input view."""
        ...


def create(name: str, model: str, num_threads: int, delegate: str = "") -> Backend:
    """Make the backend ``name``. ``delegate`` is a vendor's library, LIB.so[:key=value,...], "" for none.

    Raises ``ValueError`` if there is no such backend or it cannot start, with what to do about it.
    """
    if name.startswith(("hostile:", "hostile+")):
        from accelerator.backends.hostile import Hostile

        base, _, mode = name.partition(":")
        wrapped = base.removeprefix("hostile").removeprefix("+") or "litert-cpu"
        return Hostile(create(wrapped, model, num_threads, delegate), mode)
    if name not in NAMES:
        raise ValueError(f"there is no accelerator {name!r}; there are {', '.join(NAMES)}, and hostile:MODE for tests")
    if delegate and name not in DELEGATING:
        raise ValueError(f"{name} takes no delegate; {' and '.join(DELEGATING)} do")
    try:
        return _create(name, model, num_threads, delegate)
    except ImportError as error:
        raise ValueError(
            f"{name} needs a package that this Python lacks: pip install ai-edge-litert ({error})"
        ) from None


def _create(name: str, model: str, num_threads: int, delegate: str) -> Backend:
    if name == "numpy":
        from accelerator.backends.reference import Reference

        return Reference(model)
    name, fp16 = name.removesuffix("-fp16"), name.endswith("-fp16")
    if name == "litert-gpu":
        from accelerator.backends.litert_gpu import LiteRtGpu

        return LiteRtGpu(model, num_threads, fp16)
    from accelerator.backends import interpreter

    if name == "tflite-runtime":
        return interpreter.tflite_runtime(model, num_threads, delegate)
    # The C library's interface is not promised to stay; elsewhere the Python one does the same, slower.
    if name == "litert-cpu":
        from accelerator.backends.litert_cpu import SUPPORTED, LiteRtCpu

        if importlib.metadata.version("ai-edge-litert").startswith(SUPPORTED):
            return LiteRtCpu(model, num_threads, fp16)
        if fp16:
            raise ValueError(f"litert-cpu-fp16 needs a version of ai-edge-litert among {', '.join(SUPPORTED)}")
    return interpreter.litert(model, num_threads, delegate)
