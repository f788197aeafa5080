"""The serving loop in C, where it was built and the backend can be called from C."""

from __future__ import annotations

import ctypes
import importlib.util
from typing import Any


class _Part(ctypes.Structure):
    _fields_ = (
        ("signature", ctypes.c_uint64),
        ("input", ctypes.c_void_p),
        ("output", ctypes.c_void_p),
        ("needs", ctypes.c_uint64),
        ("rows", ctypes.c_uint64),
        ("source", ctypes.c_void_p),
        ("size", ctypes.c_uint64),
    )


class _Layer(ctypes.Structure):
    _fields_ = (
        ("parts", ctypes.POINTER(_Part)),
        ("count", ctypes.c_uint64),
        ("next", ctypes.c_void_p),
        ("size", ctypes.c_uint64),
    )


class NativeLoop:
    """Answers requests until none comes for a while. ``create`` returns None where that is impossible."""

    def __init__(
        self, library: ctypes.CDLL, backend: Any, record: int, ring_fd: int, spin_s: float, calls: int
    ) -> None:
        run, model, table = backend.native()
        self._parts = [(_Part * len(parts))(*(_Part(*part) for part in parts)) for parts, _, _ in table]
        layers = [_Layer(own, len(own), *row[1:]) for own, row in zip(self._parts, table, strict=True)]
        self._layers = (_Layer * len(table))(*layers)
        self._serve = library.sn_serve
        self._serve.restype = ctypes.c_uint64
        self._serve.argtypes = (
            ctypes.c_void_p, ctypes.c_uint64, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_uint64,
            ctypes.c_int64, ctypes.c_int64, ctypes.c_void_p,
        )  # fmt: skip
        self._arguments = (
            ctypes.cast(run, ctypes.c_void_p),
            model,
            self._layers,
            len(table),
            ring_fd,
            int(spin_s * 1e9),
            calls,
        )
        self._record = record

    @classmethod
    def create(cls, backend: Any, record: int, ring_fd: int, spin_s: float, calls: int) -> NativeLoop | None:
        """``calls`` is the address of a :class:`~shadownet.wire.calls.CallLog`'s table, 0 for none."""
        spec = importlib.util.find_spec("accelerator._serve")
        if spec is None or spec.origin is None or not hasattr(backend, "native"):
            return None
        return cls(ctypes.CDLL(spec.origin), backend, record, ring_fd, spin_s, calls)

    def run(self, done: int) -> int:
        """Serve from request number ``done`` on; returns the number of the last request served."""
        return int(self._serve(self._record, done, *self._arguments))
