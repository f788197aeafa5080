"""The inner loop in C (``_native.c``), where it was built: consecutive float layers in one call.

:func:`load` returns None where the library is missing; :mod:`enclave.executor` then does the same in NumPy, slower.
"""

from __future__ import annotations

import ctypes
import functools
import importlib.util
import math
from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]

SEND, FINISH = 0, 1
LINE = 16  # floats of a cache line
PART = 8192  # floats that the loop takes, or sends, before it looks for more; and up to 16 rows
OUTCOMES = ("ok", "gone", "late", "failed", "wrong", "not finite", "not right")

COUNTERS = ("waiting_ns", "reading_ns", "finishing_ns", "sending_ns", "checking_ns")

_ACTIVATION = [("kind", "i8"), ("low", "f4"), ("high", "f4")]
# The structures of _native.c; every field has 8 bytes but the two floats of an activation. Masks (send_push, pop, push)
# are byte offsets into the set of an inference, -1 for none; the other u8 are addresses.
STEP = np.dtype(
    [
        ("kind", "i8"),
        ("send_rows", "i8"), ("send_n", "i8"), ("source", "u8"), ("order", "u8"), ("send_push", "i8"), ("target", "u8"),
        ("send_keep", "u8"), ("gather", "u8"), ("send_scales", "u8"), ("send_scope", "i8"),
        ("layer", "i8"), ("rows", "i8"), ("slots", "i8"), ("n", "i8"), ("answer", "u8"), ("copy", "u8"),
        ("terms", "i8"), ("slot", "u8"), ("coefficient", "u8"), ("bias", "u8"), ("multiplier", "u8"),
        ("scales", "u8"), ("scope", "i8"),
        ("pop", "i8"), ("first", _ACTIVATION), ("gain", "u8"), ("shift", "u8"), ("residual", "u8"),
        ("second", _ACTIVATION), ("result", "u8"), ("send", "u8"), ("apart", "i8"), ("push", "i8"), ("keep", "u8"),
        ("check", "u8"),
    ]
)  # fmt: skip
SCALE = np.dtype([("factor", "f4"), ("zero", "f4"), ("step", "f4")])
PIECE = np.dtype([("source", "u8"), ("channels", "i8"), ("first", "i8"), ("count", "i8")])
GATHER = np.dtype(
    [
        ("way", "i8"), ("count", "i8"), ("pieces", "u8"), ("height", "i8"), ("width", "i8"), ("out_height", "i8"),
        ("out_width", "i8"), ("size_height", "i8"), ("size_width", "i8"), ("down", "i8"), ("right", "i8"),
    ]
)  # fmt: skip
GEOMETRY = (
    "batch", "height", "width", "channels", "out_height", "out_width", "kernel_height", "kernel_width",
    "stride_height", "stride_width", "dilation_height", "dilation_width", "top", "left",
)  # fmt: skip
POINTERS = ("vectors", "filters", "input", "expected", "sums", "products")
EXACT_POINTERS = ("numbers", "folded", "exact_expected", "exact_sums")  # of integer layers, instead
MOST_SLOTS, MOST_TERMS = 1 << 13, 1 << 19  # of an integer layer and of one of its sums
TAPS = 3  # columns of a kernel that it takes together
CHECK = np.dtype(
    [
        ("active", "i8"), *((name, "i8") for name in GEOMETRY),
        *((name, "u8") for name in POINTERS),
        ("tolerance", "f8"), ("least", "f8"),
        *((name, "u8") for name in EXACT_POINTERS),
    ]
)  # fmt: skip


class Lane(ctypes.Structure):
    """One inference on its way through its steps."""

    _fields_ = (
        ("steps", ctypes.c_uint64),
        ("count", ctypes.c_int64),
        ("next", ctypes.c_int64),
        ("masks", ctypes.c_uint64),
        ("sequence", ctypes.c_uint64),
        ("ahead", ctypes.c_uint64),
        ("expected", ctypes.c_int64),
        ("asked", ctypes.c_int64),
    )


class Scratch(ctypes.Structure):
    """Private memory that the loop works in, for rows of up to ``width`` floats."""

    _fields_ = (("row", ctypes.c_uint64), ("zeros", ctypes.c_uint64), ("stage", ctypes.c_uint64))

    def __init__(self, width: int) -> None:
        row = -(-width // LINE) * LINE
        self.memory = empty(18 * row + PART)
        self.memory[:] = 0
        start = address(self.memory)
        super().__init__(start, start + 4 * row, start + 8 * row)
        self.width = width


class Link(ctypes.Structure):
    """State of the call record, and nanoseconds spent since the start."""

    _fields_ = (
        ("record", ctypes.c_void_p),
        ("sequence", ctypes.c_uint64),
        ("ring", ctypes.c_int64),
        ("wait", ctypes.c_int64),
        ("hangup", ctypes.c_int64),
        ("app", ctypes.c_int64),
        ("spin_ns", ctypes.c_int64),
        ("timeout_ns", ctypes.c_int64),
        *((name, ctypes.c_int64) for name in COUNTERS),
        ("arrived_ns", ctypes.c_int64),
    )


@functools.cache
def _library() -> ctypes.CDLL | None:
    spec = importlib.util.find_spec("enclave._native")
    return None if spec is None or spec.origin is None else ctypes.CDLL(spec.origin)


@functools.cache
def load() -> Any:
    """``sn_run`` of the compiled library, or None."""
    library = _library()
    if library is None:
        return None
    run = library.sn_run
    count = ctypes.c_int64
    own = ctypes.POINTER(Link), ctypes.POINTER(Lane), count, ctypes.POINTER(Scratch)
    run.argtypes = (*own, ctypes.POINTER(count))
    run.restype = ctypes.c_int
    return run


def settle(link: Link, lanes: ctypes.Array[Lane]) -> str:
    """Wait for the requests that are out; returns one of ``OUTCOMES``."""
    library = _library()
    assert library is not None
    return OUTCOMES[library.sn_settle(ctypes.byref(link), lanes, ctypes.c_int64(len(lanes)))]


@functools.cache
def block() -> int:
    """Positions that the C loop takes together, 1 if it goes row by row."""
    library = _library()
    if library is None:
        return 1
    library.sn_block.restype = ctypes.c_int64
    return int(library.sn_block())


def empty(shape: int | tuple[int, ...]) -> Array:
    """float32, on cache lines: the C loop takes lines, and one that lies across two costs as much as two."""
    count = math.prod(shape) if isinstance(shape, tuple) else shape
    memory = np.empty(count + LINE, np.float32)
    start = -address(memory) % (4 * LINE) // 4
    return memory[start : start + count].reshape(shape)


def finite(value: Array) -> bool:
    """Whether all of a float or complex array is."""
    library = _library()
    if library is None or value.dtype != np.float32 or not value.flags.c_contiguous:
        return bool(np.isfinite(value).all())
    return bool(library.sn_finite(ctypes.c_void_p(address(value)), ctypes.c_int64(value.size)))


def in_stream_order(mask: Array) -> Array:
    """Lay a mask [..., n] out as the C loop reads it: whole blocks of positions, 16 columns at a time."""
    size, n = block(), mask.shape[-1]
    rows = mask.reshape(-1, n)
    whole = rows.shape[0] // size * size if size > 1 else 0
    if not whole:
        return mask
    out = np.empty(mask.size, np.float32)
    blocks = rows[:whole].reshape(-1, size, n)
    target = out[: whole * n].reshape(-1, size * n)
    for column in range(0, n, 16):
        part = blocks[:, :, column : column + 16]
        target[:, size * column : size * column + size * part.shape[2]] = part.reshape(part.shape[0], -1)
    out[whole * n :] = rows[whole:].reshape(-1)
    return out.reshape(mask.shape)


def address(array: Array | None) -> int:
    """Where an array's data lies; 0 for None. The caller keeps the array alive."""
    return 0 if array is None else int(array.__array_interface__["data"][0])
