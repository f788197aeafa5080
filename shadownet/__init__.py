"""Run a TFLite model with its secrets in an enclave and its linear layers on an untrusted accelerator.

A simulator: the two worlds are processes, not hardware. ``import shadownet`` stays light; LiteRT, NumPy and
the converter load on first use.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from shadownet.wire.errors import (
    BundleError,
    Error,
    InputError,
    IntegrityError,
    MismatchError,
    ModelError,
    WorkerError,
)

if TYPE_CHECKING:
    from shadownet.converter import convert
    from shadownet.interpreter import Interpreter

__version__ = "0.1.0"
__all__ = [
    "BundleError",
    "Error",
    "InputError",
    "IntegrityError",
    "Interpreter",
    "MismatchError",
    "ModelError",
    "WorkerError",
    "convert",
]


def __getattr__(name: str) -> Any:
    # Lazy: `import shadownet` costs milliseconds, and workers that need only shadownet.wire load nothing else.
    if name == "Interpreter":
        from shadownet.interpreter import Interpreter

        return Interpreter
    if name == "convert":
        from shadownet.converter import convert

        return convert
    raise AttributeError(f"module 'shadownet' has no attribute {name!r}")
