"""The enclave's side of the accelerator: an arena, a call record, and no trust in what comes back."""

from __future__ import annotations

import os
import time
from typing import Any

import numpy as np

from shadownet.wire.arena import Arena, Caller, Doorbell, aligned
from shadownet.wire.channel import Channel
from shadownet.wire.errors import IntegrityError, WorkerError

Array = np.ndarray[Any, Any]
OPEN_DEADLINE_S = 300.0  # compiling a large model for a GPU takes a while


class Accelerator:
    """Layers by number: fill ``input(k)``, ``call(k)``, then ``read(k)`` copies the answer, once."""

    def __init__(self, channel: Channel, deadline_s: float, spin_s: float) -> None:
        self._channel, self._deadline_s, self._spin_s = channel, deadline_s, spin_s
        self._arena: Arena | None = None
        self.crossings = self.bytes_out = self.bytes_in = 0
        self.seconds = 0.0

    def open(self, layers: list[dict[str, Any]]) -> None:
        """Agree on shapes: each layer has ``signature``, ``input`` and ``output`` (float32 shapes).

        All layers share one input and one output region. Raises ``WorkerError``.
        """
        self._shapes = [(tuple(layer["input"]), tuple(layer["output"])) for layer in layers]
        sizes = [[4 * int(np.prod(s)) for s in column] for column in zip(*self._shapes, strict=True)]
        self._out_offset = aligned(max(sizes[0], default=0))
        arena = Arena.create(self._out_offset + aligned(max(sizes[1], default=0)), "accelerator")
        request, reply = (os.eventfd(0, os.EFD_CLOEXEC) for _ in range(2))
        self._channel.send(
            {"do": "open", "layers": layers, "input": 0, "output": self._out_offset}, fds=(arena.fd, request, reply)
        )
        answer, _, fds = self._channel.receive(OPEN_DEADLINE_S)
        for fd in fds:
            os.close(fd)
        if answer.get("ok") is not True:
            raise WorkerError(f"the accelerator cannot run the model: {str(answer.get('error', ''))[:500]}")
        if self._arena is not None:
            self._arena.close()
        self._arena = arena
        self._caller = Caller(arena.words(), Doorbell(request, reply, self._channel.fileno(), self._spin_s))
        self._views = [
            (arena.array(0, i, np.float32), arena.array(self._out_offset, o, np.float32)) for i, o in self._shapes
        ]
        self._private = np.empty(max(sizes[1], default=0) // 4, np.float32)

    def input(self, layer: int) -> Array:
        """The shared view into which the layer's masked input is written."""
        return self._views[layer][0]

    def call(self, layer: int, name: str) -> None:
        """Have a layer run. Raises ``WorkerError`` unless the accelerator says that it did, in time."""
        start = time.perf_counter()
        outcome = self._caller.call(layer, self._deadline_s)
        self.seconds += time.perf_counter() - start
        self.crossings += 1
        self.bytes_out += self._views[layer][0].nbytes
        if outcome != "ok":
            raise WorkerError(f"the accelerator {_OUTCOMES[outcome]} in layer {name}")

    def read(self, layer: int, name: str) -> Array:
        """Copy the answer into enclave memory, reading each shared byte once; the buffer is reused.

        Raises ``IntegrityError`` if a value is not finite.
        """
        shared = self._views[layer][1]
        private = self._private[: shared.size].reshape(shared.shape)
        np.copyto(private, shared)
        self.bytes_in += private.nbytes
        # One sum finds what is not finite; only a sum that overflows needs the longer look.
        with np.errstate(over="ignore", invalid="ignore"):
            suspicious = not np.isfinite(private.sum())
        if suspicious and not np.isfinite(private).all():
            raise IntegrityError(f"the accelerator's answer for layer {name} is not finite")
        return private


_OUTCOMES = {
    "gone": "died or broke the connection",
    "late": "did not answer in time",
    "failed": "failed",
    "wrong": "broke the protocol",
}
