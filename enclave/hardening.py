"""What a plain Linux process can drop. It is no hardware isolation: root, and the kernel, still see everything."""

from __future__ import annotations

import ctypes
import os
import resource

from shadownet.wire.errors import WorkerError

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
_PR_SET_DUMPABLE, _PR_SET_NO_NEW_PRIVS = 4, 38


def drop_privileges() -> None:
    """No core dump, no ptrace or /proc/PID/mem by the same user, no new privileges, no environment."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_PR_SET_DUMPABLE, 0, 0, 0, 0) or libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0):
        raise WorkerError("the enclave process cannot be hardened on this system")
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    os.environ.clear()


def mapped_bytes() -> int:
    """Address space that this process has mapped: at the start, Python and libraries."""
    with open("/proc/self/statm") as file:
        return int(file.read().split()[0]) * resource.getpagesize()


def limit_memory(size: int) -> None:
    """Allow ``size`` bytes of address space, for good. Arrays that are freed go back to the system at once from now on,
    so that what is mapped is what is held."""
    libc = ctypes.CDLL(None)
    if hasattr(libc, "mallopt"):
        libc.mallopt(_M_MMAP_THRESHOLD, 1 << 16)
        libc.mallopt(_M_TRIM_THRESHOLD, 1 << 16)
    resource.setrlimit(resource.RLIMIT_AS, (size, size))


def resident_bytes() -> int:
    """Memory that this process occupies, Python and libraries included."""
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * resource.getpagesize()
