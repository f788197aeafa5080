"""The inner loop in C (``_native.c``), where it was built: consecutive float layers in one call.

:func:`load` returns None where the library is missing; :mod:`enclave.executor` then does the same in NumPy, slower.
"""

from __future__ import annotations

import ctypes
import functools
import importlib.util
from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]

SEND, FINISH = 0, 1
OUTCOMES = ("ok", "gone", "late", "failed", "wrong", "not finite")

_ACTIVATION = [("kind", "i8"), ("low", "f4"), ("high", "f4")]
# The structures of _native.c; every field has 8 bytes but the two floats of an activation.
STEP = np.dtype(
    [
        ("kind", "i8"),
        ("send_rows", "i8"), ("send_n", "i8"), ("source", "u8"), ("order", "u8"), ("send_push", "u8"), ("target", "u8"),
        ("layer", "i8"), ("rows", "i8"), ("slots", "i8"), ("n", "i8"), ("answer", "u8"), ("copy", "u8"),
        ("real", "u8"), ("mask", "u8"), ("scale", "u8"), ("bias", "u8"), ("pop", "u8"), ("first", _ACTIVATION),
        ("gain", "u8"), ("shift", "u8"), ("residual", "u8"), ("second", _ACTIVATION), ("result", "u8"),
        ("send", "u8"), ("push", "u8"),
    ]
)  # fmt: skip


class Link(ctypes.Structure):
    """State of the call record, and nanoseconds spent since the start."""

    _fields_ = (
        ("record", ctypes.c_void_p),
        ("sequence", ctypes.c_uint64),
        ("ring", ctypes.c_int64),
        ("wait", ctypes.c_int64),
        ("hangup", ctypes.c_int64),
        ("spin_ns", ctypes.c_int64),
        ("timeout_ns", ctypes.c_int64),
        ("waiting_ns", ctypes.c_int64),
        ("reading_ns", ctypes.c_int64),
        ("finishing_ns", ctypes.c_int64),
        ("sending_ns", ctypes.c_int64),
    )


@functools.cache
def load() -> Any:
    """``sn_run`` of the compiled library, or None."""
    spec = importlib.util.find_spec("enclave._native")
    if spec is None or spec.origin is None:
        return None
    run = ctypes.CDLL(spec.origin).sn_run
    pointer, count = ctypes.c_void_p, ctypes.c_int64
    run.argtypes = (ctypes.POINTER(Link), pointer, count, pointer, pointer, ctypes.POINTER(count))
    run.restype = ctypes.c_int
    return run


def address(array: Array | None) -> int:
    """Where an array's data lies; 0 for None. The caller keeps the array alive."""
    return 0 if array is None else int(array.__array_interface__["data"][0])
