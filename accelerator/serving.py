"""The serving loop in C, where it was built and the backend can be called from C."""

from __future__ import annotations

import ctypes
import importlib.util
import os
from typing import Any

_CORES = 1024  # of a cpu_set_t


class _Part(ctypes.Structure):
    _fields_ = (
        ("model", ctypes.c_void_p),
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


class _Server(ctypes.Structure):
    _fields_ = (
        ("record", ctypes.c_void_p),
        ("run", ctypes.c_void_p),
        ("layers", ctypes.POINTER(_Layer)),
        ("count", ctypes.c_uint64),
        ("ring", ctypes.c_int64),
        ("wait", ctypes.c_int64),
        ("control", ctypes.c_int64),
        ("spin_ns", ctypes.c_int64),
        ("calls", ctypes.c_void_p),
        ("cores", ctypes.c_char_p),
    )


class NativeLoop:
    """Answers requests until the control socket stirs. ``create`` returns None where that is impossible."""

    def __init__(
        self, library: ctypes.CDLL, backend: Any, record: int, fds: tuple[int, int, int], spin_s: float, calls: int
    ) -> None:
        run, table = backend.native()
        self._parts = [(_Part * len(parts))(*(_Part(*part) for part in parts)) for parts, _, _ in table]
        layers = [_Layer(own, len(own), *row[1:]) for own, row in zip(self._parts, table, strict=True)]
        self._layers = (_Layer * len(table))(*layers)
        self._serve = library.sn_serve
        self._serve.restype = ctypes.c_uint64
        self._serve.argtypes = (ctypes.POINTER(_Server), ctypes.c_uint64)
        address = ctypes.cast(run, ctypes.c_void_p).value
        self._server = _Server(
            record, address, self._layers, len(table), *fds, int(spin_s * 1e9), calls or None, _cores()
        )

    @classmethod
    def create(
        cls, backend: Any, record: int, fds: tuple[int, int, int], spin_s: float, calls: int
    ) -> NativeLoop | None:
        """``fds`` are pipes to ring and to be woken, and the enclave's socket; ``calls`` is the address of a
        :class:`~shadownet.wire.calls.CallLog`'s table, 0 for none."""
        spec = importlib.util.find_spec("accelerator._serve")
        if spec is None or spec.origin is None or not hasattr(backend, "native"):
            return None
        return cls(ctypes.CDLL(spec.origin), backend, record, fds, spin_s, calls)

    def run(self, done: int) -> int:
        """Serve from request number ``done`` on; returns the number of the last request served."""
        return int(self._serve(self._server, done))


def _cores() -> bytes:
    """The cores that this process may use, as a cpu_set_t."""
    allowed = sum(1 << core for core in os.sched_getaffinity(0) if core < _CORES)
    return allowed.to_bytes(_CORES // 8, "little")
