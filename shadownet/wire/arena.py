"""Shared memory between two processes, and the call record with which one asks the other to work.

The arena is an anonymous memfd, created by the enclave, sealed against resizing (a peer that shrank it would
crash whoever reads it) and handed over as a descriptor: it has no name that could be left behind.

The first page is the call record. Requests are numbered; up to three are out at a time, and the number modulo three
says which slot is whose: the enclave writes ``layer`` and ``sent`` and then ``request``, the newest number; the
accelerator serves them in order and writes ``status`` and then ``reply``, the number it has served. ``sent`` says how
many rows of the input are there (the request's number, shifted by 24, and the rows, or ``ALL_ROWS``): a layer may be
asked for while its input is still being written. In the same way the accelerator may say in ``progress`` how many rows
of the answer are there. ``core`` is the processor on which the enclave runs, counted from 1, so that the accelerator
can keep off it. After a request, a reply or progress a byte goes into a pipe, so the other side may poll for a while
and then sleep; a side that polls says so in its word ``awake``, and need not be rung for. Everything in it is
untrusted: the enclave reads a field once per look.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import math
import mmap
import os
import select
import time
from collections.abc import Callable
from itertools import count
from typing import Any

import numpy as np

from shadownet.wire.errors import WorkerError

RECORD = 4096  # bytes reserved for the call record
ALIGN = 64  # LiteRT's host-memory buffers want this, and cache lines do
MAX_ARENA = 1 << 34

_REQUEST, _LAYER, _SENT, _REPLY, _STATUS = 0, 1, 4, 8, 9  # u64 words; request and reply on cache lines of their own
_CALLEE_AWAKE = 24  # and the caller's in word 16; set by the loops in C only
PROGRESS = 12  # written and read by the loops in C only
SLOTS = 3  # words each of layer, sent, status and progress
_ROW_BITS = 24
ALL_ROWS = (1 << _ROW_BITS) - 1
OK, FAILED = 0, 1
SOCKET_TURN = 16  # of so many looks at the record one is at the sockets, too


def aligned(size: int) -> int:
    """Round ``size`` up to the arena's alignment."""
    return -(-size // ALIGN) * ALIGN


class Arena:
    """A mapped shared-memory segment. ``close`` unmaps it; the memory goes when the last process lets go."""

    def __init__(self, fd: int, size: int) -> None:
        self.fd, self.size = fd, size
        try:
            self._map = mmap.mmap(fd, size)
        except (OSError, ValueError) as error:
            os.close(fd)
            if isinstance(error, OSError) and error.errno == errno.ENOMEM:
                raise MemoryError from None
            raise WorkerError(f"shared memory of {size} bytes cannot be mapped") from None

    @classmethod
    def create(cls, payload: int, name: str) -> Arena:
        """Make an arena with ``payload`` bytes behind the call record."""
        size = -(-(RECORD + payload) // mmap.PAGESIZE) * mmap.PAGESIZE
        if size > MAX_ARENA:
            raise WorkerError(f"the model needs {size} bytes of shared memory, more than the limit of {MAX_ARENA}")
        fd = os.memfd_create(name, os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        os.ftruncate(fd, size)
        fcntl.fcntl(fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL)
        return cls(fd, size)

    @classmethod
    def attach(cls, fd: int) -> Arena:
        """Map an arena received from another process. Raises ``WorkerError`` if it is not a sealed one."""
        try:
            seals, size = fcntl.fcntl(fd, fcntl.F_GET_SEALS), os.fstat(fd).st_size
        except OSError:  # not a memfd
            seals, size = 0, 0
        if not seals & fcntl.F_SEAL_SHRINK or not RECORD <= size <= MAX_ARENA:
            os.close(fd)
            raise WorkerError("the shared memory offered is not what was agreed")
        return cls(fd, size)

    def array(self, offset: int, shape: tuple[int, ...], dtype: Any) -> np.ndarray:
        """A view of the payload at ``offset`` (bytes, behind the call record). Raises ``ValueError`` outside it."""
        end = offset + math.prod(shape) * np.dtype(dtype).itemsize
        if offset < 0 or offset % ALIGN or end > self.size - RECORD:
            raise ValueError("a tensor would leave the shared memory")
        return np.ndarray(shape, dtype, self._map, RECORD + offset)

    def words(self) -> memoryview:
        """The call record as unsigned 64-bit words."""
        return memoryview(self._map)[:RECORD].cast("Q")

    def address(self) -> int:
        """The call record's address in this process."""
        return ctypes.addressof(ctypes.c_char.from_buffer(self._map))

    def close(self) -> None:
        """Close the descriptor; the mapping itself goes with its last view."""
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1


class Doorbell:
    """Two pipes, one in each direction: wake the peer, and wait for it by polling, yielding, then sleeping.

    Pipes, because each end has a file description of its own: a peer can make neither a write nor a read of ours
    block, as it could with an eventfd that both hold. A wait also ends when the socket ``watch`` stirs, or when the
    other end of the socket ``hangup`` is closed (-1 for none).
    """

    def __init__(self, ring_fd: int, wait_fd: int, watch: int, spin_s: float, hangup: int = -1) -> None:
        self.ring_fd, self.wait_fd, self.spin_s = ring_fd, wait_fd, spin_s
        self._poller = select.poll()
        self._poller.register(wait_fd, select.POLLIN)
        self._poller.register(watch, select.POLLIN)
        if hangup >= 0:
            self._poller.register(hangup, 0)  # its end is always reported

    def ring(self) -> None:
        with contextlib.suppress(BlockingIOError, BrokenPipeError):  # full: it has rung; broken: waiting finds out
            os.write(self.ring_fd, b"!")

    def wait(self, ready: Callable[[], bool], timeout: float | None) -> str:
        """Wait until ``ready()``: returns "ready", "socket" (a socket stirs or ends) or "late"."""
        start = time.perf_counter()
        limit = start + self.spin_s
        for spins in count(1):
            if ready():
                return "ready"
            if time.perf_counter() > limit:
                break
            if not spins % SOCKET_TURN and any(fd != self.wait_fd for fd, _ in self._poller.poll(0)):
                return "ready" if ready() else "socket"
            os.sched_yield()  # somebody else may need this core more, the peer first
        while True:
            left = None if timeout is None else start + timeout - time.perf_counter()
            if left is not None and left <= 0:
                return "late"
            for fd, events in self._poller.poll(None if left is None else max(1, int(left * 1000))):
                if fd != self.wait_fd:
                    return "ready" if ready() else "socket"
                if events & select.POLLIN:
                    with contextlib.suppress(BlockingIOError):
                        os.read(fd, 65536)  # before looking, so that no ring is lost
                if ready():
                    return "ready"
                if not events & select.POLLIN:
                    return "socket"  # the other end of the pipe is closed


def pipe() -> tuple[int, int]:
    """A pipe for a doorbell: (read end, write end), neither of which blocks."""
    return os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)


def _all_of(request: int) -> int:
    """The word that says that all of a request's input is there."""
    return (request << _ROW_BITS | ALL_ROWS) & (1 << 64) - 1


class Caller:
    """The enclave's side of the call record."""

    def __init__(self, words: memoryview, bell: Doorbell) -> None:
        self._words, self._bell, self.sequence = words, bell, 0

    def wake(self) -> None:
        """Ring for a request that has come, or is about to, unless the peer is awake."""
        if not self._words[_CALLEE_AWAKE]:
            self._bell.ring()

    def call(self, layer: int, timeout: float) -> str:
        """Run ``layer``: "ok", "failed" (it said so), "wrong" (it broke the protocol), "gone" or "late"."""
        words, seq = self._words, self.sequence + 1
        self.sequence = seq
        words[_LAYER + seq % SLOTS] = layer
        words[_SENT + seq % SLOTS] = _all_of(seq)
        words[_REQUEST] = seq
        self.wake()
        before = seq - 1
        outcome = self._bell.wait(lambda: words[_REPLY] != before, timeout)
        if outcome != "ready":
            return {"socket": "gone", "late": "late"}[outcome]
        if words[_REPLY] != seq:
            return "wrong"
        return "ok" if words[_STATUS + seq % SLOTS] == OK else "failed"


class Callee:
    """The accelerator's side of the call record."""

    def __init__(self, words: memoryview, bell: Doorbell) -> None:
        self._words, self._bell, self.done = words, bell, 0

    def next(self) -> int | None:
        """Wait for a request and all of its input; returns its layer, or None when the control socket stirs."""
        words, done = self._words, self.done
        slot, whole = _SENT + (done + 1) % SLOTS, _all_of(done + 1)
        if self._bell.wait(lambda: words[_REQUEST] != done and words[slot] == whole, None) == "socket":
            return None
        self.done += 1
        return words[_LAYER + self.done % SLOTS]

    def answer(self, status: int) -> None:
        self._words[_STATUS + self.done % SLOTS] = status
        self._words[_REPLY] = self.done
        self._bell.ring()
