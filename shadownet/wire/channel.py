"""Control messages between processes: length-prefixed JSON, optional tensors and file descriptors, deadlines.

A message is ``u32 length | JSON | tensor bytes…`` over a UNIX stream socket. Only set-up and small results go
this way; the data of an inference goes through the arena.
"""

from __future__ import annotations

import array
import json
import math
import os
import select
import socket
import struct
import time
from typing import Any

import numpy as np

from shadownet.wire.errors import WorkerError
from shadownet.wire.tensors import DTYPES, parse_shape

MAX_MESSAGE = 16 << 20  # bytes of JSON
MAX_ATTACHED = 1 << 31  # bytes of tensors in one message
MAX_FDS = 4
PIECE = 1 << 16  # bytes received at a time
SEND_DEADLINE_S = 60.0


class Closed(WorkerError):
    """The other end is gone."""


class Channel:
    """One end of a socket pair. Every wait has a deadline; a broken peer raises ``WorkerError``."""

    def __init__(self, sock: socket.socket, peer: str) -> None:
        self.peer = peer
        self.sock = sock
        self.sock.setblocking(True)
        self._pollers = {event: select.poll() for event in (select.POLLIN, select.POLLOUT)}
        for event, poller in self._pollers.items():
            poller.register(self.sock, event)
        self._arrived, self._fds = bytearray(), list[int]()  # what belongs to the next message

    @classmethod
    def from_fd(cls, fd: int, peer: str) -> Channel:
        return cls(socket.socket(fileno=fd), peer)

    def fileno(self) -> int:
        return self.sock.fileno()

    def close(self) -> None:
        """Close the socket, and descriptors that came with half a message."""
        self.sock.close()
        while self._fds:
            os.close(self._fds.pop())

    def send(
        self,
        message: dict[str, Any],
        tensors: list[np.ndarray] | None = None,
        fds: tuple[int, ...] = (),
        timeout: float = SEND_DEADLINE_S,
    ) -> None:
        """Send ``message``; ``tensors`` travel behind it, ``fds`` with its first byte.

        Raises ``WorkerError`` if the peer does not read for ``timeout`` seconds."""
        arrays = [_encode(t) for t in tensors or []]
        body = json.dumps({"m": message, "t": [spec for spec, _ in arrays]}).encode()
        if len(body) > MAX_MESSAGE:
            raise WorkerError("a message is too large to send")
        deadline = time.monotonic() + timeout
        self._send(struct.pack("<I", len(body)) + body, deadline, fds)
        for _, data in arrays:
            self._send(data, deadline)

    def _send(self, data: bytes | memoryview, deadline: float, fds: tuple[int, ...] = ()) -> None:
        view = memoryview(data)
        while view:
            try:
                rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))] if fds else []
                sent = self.sock.sendmsg([view], rights, socket.MSG_DONTWAIT)
            except BlockingIOError:
                self._wait(deadline, select.POLLOUT)
                if time.monotonic() > deadline:
                    raise WorkerError(f"the {self.peer} does not read what it is sent") from None
                time.sleep(0.001)  # there may be room, but not enough of it
                continue
            except OSError:
                raise Closed(f"the {self.peer} is gone") from None
            view, fds = view[sent:], ()

    def receive(self, timeout: float | None) -> tuple[dict[str, Any], list[np.ndarray], list[int]]:
        """Wait up to ``timeout`` seconds (None: for ever) for a message: (message, tensors, descriptors)."""
        deadline = None if timeout is None else time.monotonic() + timeout
        size = struct.unpack("<I", self._exactly(4, deadline))[0]
        if size > MAX_MESSAGE:
            raise WorkerError(f"the {self.peer} sent a message that is too large")
        try:
            record = json.loads(self._exactly(size, deadline))
            message, specs = record["m"], [(str(d), parse_shape(s)) for d, s in record["t"]]
            if not isinstance(message, dict):
                raise ValueError
        except (ValueError, KeyError, TypeError, OverflowError, RecursionError):
            raise WorkerError(f"the {self.peer} sent a message that cannot be read") from None
        left = MAX_ATTACHED
        tensors = []
        for dtype, shape in specs:
            tensor, size = self._tensor(dtype, shape, left, deadline)
            tensors.append(tensor)
            left -= size
        fds, self._fds = self._fds, []
        return message, tensors, fds

    def _tensor(self, dtype: str, shape: tuple[int, ...], left: int, deadline: float | None) -> tuple[np.ndarray, int]:
        """Receive one tensor of at most ``left`` bytes: (tensor, bytes)."""
        if dtype == "string":
            lengths = np.frombuffer(self._exactly(self._bounded(8 * math.prod(shape), left), deadline), "<u8")
            total = self._bounded(int(lengths.sum(dtype=np.float64)) + lengths.nbytes, left)
            items = [bytes(self._exactly(int(n), deadline)) for n in lengths]
            out = np.empty(len(items), object)
            out[:] = items
            return out.reshape(shape), total
        if dtype not in DTYPES:
            raise WorkerError(f"the {self.peer} sent a tensor of an unknown type")
        size = self._bounded(math.prod(shape) * DTYPES[dtype].itemsize, left)
        return np.frombuffer(self._exactly(size, deadline), DTYPES[dtype]).reshape(shape), size

    def _bounded(self, size: int, limit: int) -> int:
        if size > limit:
            raise WorkerError(f"the {self.peer} sent a tensor that is too large")
        return size

    def _exactly(self, size: int, deadline: float | None) -> bytearray:
        while len(self._arrived) < size:  # grows with what arrives: a claim alone costs no memory
            if deadline is not None:
                self._wait(deadline)
            try:
                piece, fds, _, _ = socket.recv_fds(self.sock, PIECE, MAX_FDS)
            except OSError:
                piece, fds = b"", []
            self._fds += fds
            if len(self._fds) > MAX_FDS:
                raise WorkerError(f"the {self.peer} sent too many descriptors")
            if not piece:
                raise Closed(f"the {self.peer} is gone")
            self._arrived += piece
        data = self._arrived[:size]
        del self._arrived[:size]
        return data

    def _wait(self, deadline: float, event: int = select.POLLIN) -> None:
        left = max(0.0, deadline - time.monotonic())
        if not self._pollers[event].poll(math.ceil(left * 1000)):
            raise WorkerError(f"the {self.peer} did not answer in time")


def _encode(tensor: np.ndarray) -> tuple[tuple[str, list[int]], bytes | memoryview]:
    if tensor.dtype.kind in "OSU":
        items = [s if isinstance(s, bytes) else str(s).encode() for s in tensor.ravel()]
        lengths = np.array([len(s) for s in items], "<u8").tobytes()
        return ("string", list(tensor.shape)), lengths + b"".join(items)
    data = np.asarray(tensor, order="C")  # ascontiguousarray would make a vector of a scalar
    return (data.dtype.name, list(data.shape)), data.reshape(-1).view(np.uint8).data
