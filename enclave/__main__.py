"""``python -m enclave --app FD [--accelerator FD]``: the trusted worker.

Serves one app over a socket pair until it goes away. Whatever goes wrong with the accelerator ends this process:
no further output, no second chance, and the masks go with it.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import select
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from enclave import container, sealing
from enclave.bounded.executor import BoundedExecutor, load_libraries
from enclave.bounded.meter import Meter
from enclave.bounded.storage import Sealed
from enclave.executor import Executor
from enclave.freshness import Counters
from enclave.hardening import drop_privileges, mapped_bytes, resident_bytes
from enclave.keys import load
from enclave.link import PHASES, Accelerator
from enclave.program import Program
from enclave.trace import Trace
from shadownet.wire import errors
from shadownet.wire.arena import FAILED, OK, Arena, Callee, Doorbell, aligned, pipe
from shadownet.wire.channel import Channel, Closed
from shadownet.wire.exchange import views
from shadownet.wire.tensors import TensorSpec, parse_shape

Array = np.ndarray[Any, Any]

MOST_ROOM, ROOM = 16, 64 << 20  # requests in one message where two are under way at a time, and bytes for them
GRACE_S = 1.0  # for the accelerator to end by itself


class Worker:
    """One opened bundle. Each public method answers one request of the app: (reply, tensors, descriptors)."""

    def __init__(self, accelerator: Channel | None, app: Channel) -> None:
        self._accelerator, self._app = accelerator, app
        self._arena: Arena | None = None
        self._callee: Callee | None = None  # for inferences, which come through the arena
        self._bells: tuple[int, ...] = ()
        self._interface: tuple[list[TensorSpec], list[TensorSpec]] | None = None
        self._executor: Executor | BoundedExecutor

    def open(self, request: dict[str, Any]) -> dict[str, Any]:
        """Unseal the bundle and load it. The key is read here and nowhere else."""
        link, self._spin_s = None, float(request["spin_s"])
        if self._accelerator is not None:
            link = Accelerator(self._accelerator, float(request["deadline_s"]), self._spin_s, self._app.fileno())
        self._link = link
        signatures = self._open_bounded(request) if request["enclave_memory"] else self._open(request)
        return {
            "entries": {
                key: [[spec.to_json() for spec in side] for side in (entry.inputs, entry.outputs)]
                for key, entry in self._executor.entries.items()
            },
            "signatures": signatures,
            "stateful": self._executor.stateful,
        }

    def _open(self, request: dict[str, Any]) -> Any:
        """Unseal everything at once. Returns the signatures."""
        bundle, key = Path(request["bundle"]), Path(request["key"])
        secret = load(key)
        header, plaintext = sealing.unseal(bundle, secret)
        Counters(key, secret).admit(header.lineage, header.serial)
        program, blobs = container.unpack(plaintext)
        self._unsealed = sum(blob.nbytes for blob in blobs.values())
        parsed = Program.parse(program, blobs, bool(request["mask_input"]))
        threads, memory = int(request["num_threads"]), int(request["mask_memory"])
        public = sealing.public_half(bundle, header) if parsed.layers else b""
        self._executor = Executor(parsed, public, threads, self._link, memory, Trace(bool(request["trace"])))
        return program["signatures"]

    def _open_bounded(self, request: dict[str, Any]) -> Any:
        """Read the plan alone, and run within ``enclave_memory`` bytes. Returns the signatures."""
        load_libraries()
        baseline, meter = mapped_bytes(), Meter()
        bundle, key = Path(request["bundle"]), Path(request["key"])
        secret = load(key)
        header, sealed = Sealed.open(bundle, secret, meter)
        Counters(key, secret).admit(header.lineage, header.serial)
        self._unsealed = header.size
        self._executor = executor = BoundedExecutor(
            bundle, header, sealed, self._link, meter, int(request["enclave_memory"]), int(request["mask_memory"]),
            bool(request["mask_input"]), Trace(bool(request["trace"])), baseline,
        )  # fmt: skip
        return executor.signatures

    def allocate(self, request: dict[str, Any]) -> tuple[dict[str, Any], list[int], list[int]]:
        """Fix the input shapes of one entry, lay out the app's arena and hand it over with a doorbell.

        Returns the reply, the descriptors that go with it, and those of them that are the app's alone."""
        self._entry = int(request["entry"])
        if self._entry not in self._executor.entries:
            raise errors.InputError("the model has no such subgraph")
        shapes = [parse_shape(s) for s in request["shapes"]]
        self._interface = self._executor.allocate(self._entry, shapes, 2 if request["pipelined"] else 1)
        offsets, end = [], 0
        for spec in (*self._interface[0], *self._interface[1]):
            offsets.append(end)
            end += aligned(spec.nbytes)
        if self._arena is not None:
            self._arena.close()
        self._room = max(2, min(MOST_ROOM, ROOM // max(end, 1))) if self._executor.lanes > 1 else 1
        self._arena = Arena.create(end * self._room, "app")
        count = len(self._interface[0])
        halves = offsets[:count], offsets[count:]
        self._views = [
            [views(self._arena, specs, at, end * place) for specs, at in zip(self._interface, halves, strict=True)]
            for place in range(self._room)
        ]
        sides = [[spec.to_json() for spec in side] for side in self._interface]
        places = {"offsets": halves, "apart": end, "room": self._room}  # apart: bytes from a request to the next
        reply = {"inputs": sides[0], "outputs": sides[1], **places}
        return reply, *self._hang_bells(self._arena)

    def _hang_bells(self, arena: Arena) -> tuple[list[int], list[int]]:
        """Be ready for requests through this arena; returns as :meth:`allocate` does."""
        for fd in self._bells:
            os.close(fd)
        (asked, ask), (answered, answer) = pipe(), pipe()
        self._bells = asked, answer
        self._callee = Callee(arena.words(), Doorbell(answer, asked, self._app.fileno(), self._spin_s))
        return [arena.fd, answered, ask], [answered, ask]

    def invoke(self, count: int, strings: list[Array]) -> tuple[dict[str, Any], list[Array]]:
        """Run ``count`` requests: fixed-size tensors through the app's arena, others with the message."""
        if self._interface is None or self._arena is None:
            raise errors.InputError("call allocate_tensors() first")
        if not 1 <= count <= self._room:
            raise errors.InputError("so many requests do not fit in one message")
        if self._link is not None:
            self._link.wake()
        waiting = iter(strings)
        attached: list[Array] = []
        shapes = []
        for k, outputs in enumerate(self._executor.invoke_many([self._inputs(k, waiting) for k in range(count)])):
            shapes.append([list(value.shape) for value in outputs])
            self._deliver(k, outputs, attached)
        return {"shapes": shapes}, attached

    def _inputs(self, place: int, strings: Iterator[Array]) -> list[Array]:
        """Private copies: the app may write while we read."""
        return [next(strings) if view is None else np.array(view) for view in self._views[place][0]]

    def _deliver(self, place: int, outputs: list[Array], attached: list[Array]) -> None:
        assert self._interface is not None
        for spec, view, value in zip(self._interface[1], self._views[place][1], outputs, strict=True):
            if spec.dynamic or view is None or value.shape != spec.shape:
                attached.append(value.copy())  # it is valid until the next inference, and the message goes later
            else:
                np.copyto(view, value)

    def prepare(self, sets: int) -> dict[str, Any]:
        if self._interface is None:
            raise errors.InputError("call allocate_tensors() first")
        self._executor.masks.prepare(sets)
        return {"ready": len(self._executor.masks), "bytes": self._executor.masks.nbytes}

    def stats(self) -> dict[str, Any]:
        """Counters since the start: what crossed, how often, and where the time went (seconds)."""
        link = self._link
        return {
            "crossings": link.crossings if link else 0,
            "bytes_to_accelerator": link.bytes_out if link else 0,
            "bytes_from_accelerator": link.bytes_in if link else 0,
            "accelerator_seconds": link.seconds if link else 0.0,
            **(link.phases() if link else dict.fromkeys(PHASES, 0.0)),
            "total_seconds": self._executor.seconds,
            "unsealed_bytes": self._unsealed,
            "masks_ready": len(self._executor.masks),
            "masks_made_inline": self._executor.masks.made_inline,
            "tracked_bytes": self._executor.nbytes,
            **(self._executor.memory() if isinstance(self._executor, BoundedExecutor) else {}),
            "resident_bytes": resident_bytes(),
        }

    def serve(self) -> None:
        """Answer requests until the app goes away; final errors are reported and end the loop."""
        while True:
            count = self._callee.next() if self._callee else None
            try:
                if count is None:
                    self._answer(*self._app.receive(None)[:2])
                else:
                    self._run(count)
            except (errors.IntegrityError, errors.WorkerError) as error:
                self._refuse(count, {"error": errors.pack(error), "final": True})
                return
            except errors.Error as error:
                self._refuse(count, {"error": errors.pack(error)})
            except MemoryError:
                self._refuse(count, {"error": errors.pack(errors.memory_limit_too_small())})

    def _run(self, count: int) -> None:
        """Answer a request that came through the arena; what does not fit there follows through the socket."""
        reply, attached = self.invoke(count, [])
        assert self._callee is not None
        if attached:
            self._refuse(count, reply, attached)
        else:
            self._callee.answer(OK)

    def _refuse(self, count: int | None, reply: dict[str, Any], attached: list[Array] | None = None) -> None:
        """Answer through the socket; ``count`` is None for a request that came through it."""
        if count is not None and self._callee is not None:
            self._callee.answer(FAILED)  # first: the next request may follow the reply at once
        self._app.send(reply, attached)

    def _answer(self, request: dict[str, Any], tensors: list[Array]) -> None:
        verb, app = request.get("do"), self._app
        if verb == "invoke":
            app.send(*self.invoke(int(request["count"]), tensors))
        elif verb == "open":
            app.send(self.open(request))
        elif verb == "allocate":
            reply, fds, theirs = self.allocate(request)
            app.send(reply, fds=tuple(fds))
            for fd in theirs:
                os.close(fd)
        elif verb == "prepare":
            app.send(self.prepare(int(request["sets"])))
        elif verb == "reset":
            self._executor.reset()
            app.send({})
        elif verb == "stats":
            app.send(self.stats())
        elif verb == "events":
            app.send({"events": self._executor.trace.take()})
        else:
            raise errors.WorkerError("the app sent an unknown request")


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m enclave", description=__doc__)
    parser.add_argument("--app", type=int, required=True, metavar="FD", help="socket to the app")
    parser.add_argument("--accelerator", type=int, metavar="FD", help="socket to the accelerator")
    parser.add_argument("--kill", type=int, metavar="FD", help="process descriptor of the accelerator: ends with us")
    args = parser.parse_args(argv)
    drop_privileges()
    accelerator = None if args.accelerator is None else Channel.from_fd(args.accelerator, "accelerator")
    try:
        app = Channel.from_fd(args.app, "app")
        Worker(accelerator, app).serve()
    except Closed:
        pass  # the app is done with us
    except KeyboardInterrupt:
        return 130
    finally:
        if accelerator is not None:
            accelerator.close()  # it ends by itself, unless it is stopped or hangs
        if args.kill is not None and not select.select([args.kill], [], [], GRACE_S)[0]:
            with contextlib.suppress(OSError):
                signal.pidfd_send_signal(args.kill, signal.SIGKILL)
    return 0


if __name__ == "__main__":
    sys.exit(main())
