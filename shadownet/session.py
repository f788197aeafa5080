"""Starts the two workers of a bundle and speaks for the app. Nothing here sees a key or a secret."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import time
import weakref
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from shadownet import workers
from shadownet.desk import Desk
from shadownet.progress import note
from shadownet.timeline import Timeline
from shadownet.wire import errors
from shadownet.wire.arena import pipe
from shadownet.wire.calls import MAX_CALLS, CallLog
from shadownet.wire.channel import Channel, Closed
from shadownet.wire.errors import BundleError, InputError, WorkerError
from shadownet.wire.manifest import read_manifest
from shadownet.wire.tensors import TensorSpec

Array = np.ndarray[Any, Any]

CALL_DEADLINE_S = 60.0  # one layer on the accelerator
APP_DEADLINE_S = 3600.0  # one request of ours; the enclave has its own, shorter deadlines
DEFAULT_MASK_MEMORY = 2 << 30


class Session:
    """A running enclave, its accelerator, and the app's channel to the former.

    ``delegate`` is a vendor's library for the accelerator, LIB.so[:key=value,...]; "" for none.
    ``trace`` keeps a timeline (:meth:`timeline`): names, times and sizes, never values.
    After an ``IntegrityError`` or a ``WorkerError`` both processes are gone and every call raises it again.
    """

    def __init__(
        self, bundle: str | os.PathLike[str], key: Path, num_threads: int = 1, accelerator: str = "litert-cpu",
        mask_input: bool = False, mask_memory: int = DEFAULT_MASK_MEMORY, enclave_memory: int = 0,
        record: str | None = None, trace: bool = False, delegate: str = "",
    ) -> None:  # fmt: skip
        path = Path(bundle).resolve()
        self.manifest = read_manifest(path)
        if num_threads < 1:
            raise InputError("num_threads must be at least 1")
        self._failure: errors.Error | None = None
        self._limited = enclave_memory > 0
        self._timeline = Timeline() if trace else None
        self._calls = CallLog.create() if trace else None
        self._desks: list[Desk] = []  # the one in use; a list, so that the finalizer sees it
        spin_s = 2e-3 if (os.cpu_count() or 1) > 1 else 50e-6  # two on one core would wait for each other
        ours, theirs = socket.socketpair()
        left, right = socket.socketpair()
        self._notes, notes = _pipe()  # for what the accelerator has to say to the user
        # The log's memory stays mapped; its descriptor is for the accelerator alone.
        log = contextlib.closing(self._calls.arena) if self._calls else contextlib.nullcontext()
        with theirs, left, right, notes, log:
            command = [*workers.command("enclave"), "--app", str(theirs.fileno())]
            self._processes = []
            public = path / "accelerator.tflite"
            if self.manifest.get("accelerator") is not None:
                command += ["--accelerator", str(left.fileno())]
                worker = [*workers.command("accelerator", accelerator), "--enclave", str(right.fileno())]
                worker += ["--model", str(public), "--notes", str(notes.fileno())]
                worker += ["--backend", accelerator, "--num_threads", str(num_threads), "--spin", str(spin_s)]
                worker += ["--record", os.path.abspath(record)] if record else []
                worker += ["--delegate", delegate] if delegate else []
                own = [right.fileno(), notes.fileno()]
                if self._calls is not None:
                    own.append(self._calls.arena.fd)
                    worker += ["--calls", str(own[-1])]
                self._processes.append(_start(worker, num_threads, *own))
            fds = [theirs.fileno(), left.fileno()]
            for process in self._processes:  # whatever ends the enclave ends the accelerator
                fds.append(os.pidfd_open(process.pid))
                command += ["--kill", str(fds[-1])]
            # With little memory it has one thread, as a trusted application has.
            self._processes.append(_start(command, 1 if enclave_memory else num_threads, *fds))
            for fd in fds[2:]:
                os.close(fd)
        self._channel = Channel(ours, "enclave")
        self._finalizer = weakref.finalize(self, _shut_down, self._channel, self._processes, self._desks, self._notes)
        try:
            reply, _, _ = self._ask(
                {
                    "do": "open", "bundle": str(path), "key": os.path.abspath(key), "num_threads": num_threads,
                    "mask_input": mask_input, "mask_memory": mask_memory, "enclave_memory": enclave_memory,
                    "deadline_s": CALL_DEADLINE_S, "spin_s": spin_s, "trace": trace,
                }
            )  # fmt: skip
        except errors.Error:
            self._end()
            raise
        self.entries = {
            int(key): tuple([TensorSpec.from_json(spec) for spec in side] for side in sides)
            for key, sides in reply["entries"].items()
        }
        self.signatures: list[dict[str, Any]] = reply["signatures"]
        self._stateful = bool(reply["stateful"])
        self.entry: int | None = None

    @property
    def pids(self) -> list[int]:
        """Process ids of the workers: accelerator (if any), enclave."""
        return [process.pid for process in self._processes]

    def allocate(self, entry: int, shapes: list[tuple[int, ...]], pipelined: bool = False) -> None:
        """Fix the input shapes of an entry. Sets ``inputs`` and ``outputs`` (specs with concrete shapes).

        ``pipelined`` makes room for two inferences under way at a time (:meth:`invoke_many`).
        """
        start = time.perf_counter()
        pipelined = pipelined and self._timeline is None  # a timeline shows one inference after the other
        request = {"do": "allocate", "entry": entry, "shapes": [list(s) for s in shapes], "pipelined": pipelined}
        reply, _, fds = self._ask(request)
        while self._desks:
            self._desks.pop().close()
        desk = Desk(reply, fds, self._channel.fileno())
        self._desks.append(desk)
        self.inputs, self.outputs, self.room = desk.inputs, desk.outputs, desk.room
        for line in (self._notes.read() or b"").decode(errors="replace").splitlines():
            note("".join(c if c.isprintable() else "?" for c in line))
        self.entry = entry
        self._span("allocate", start)

    def invoke(self, inputs: list[Array]) -> list[Array]:
        """One inference. ``inputs`` must have the allocated shapes and types."""
        return self.invoke_many([inputs])[0]

    def invoke_many(self, requests: list[list[Array]]) -> list[list[Array]]:
        """Several inferences in order, two under way at a time where :meth:`allocate` made room for it."""
        self.check()
        if not self._desks:
            raise InputError("call allocate_tensors() first")
        results: list[list[Array]] = []
        for first in range(0, len(requests), self.room):
            results += self._invoke(requests[first : first + self.room])
        return results

    def _invoke(self, requests: list[list[Array]]) -> list[list[Array]]:
        start = time.perf_counter()
        (desk,) = self._desks
        attached, count = desk.put(requests), len(requests)
        if attached:
            reply, tensors, _ = self._ask({"do": "invoke", "count": count}, attached)
            results = desk.merge(reply["shapes"], iter(tensors))
        elif self._call(desk, count):
            results = desk.take(count)
        else:
            reply, tensors, _ = self._hear()
            results = desk.merge(reply["shapes"], iter(tensors))
        self._span("invoke", start)
        return results

    def _call(self, desk: Desk, count: int) -> bool:
        """Have the enclave run the requests on the desk. False if its reply comes through the socket."""
        try:
            outcome = desk.call(count, APP_DEADLINE_S)
        except KeyboardInterrupt:
            self._fail(WorkerError("the run was interrupted"))
            raise
        if outcome == "late":
            raise self._fail(WorkerError("the enclave did not answer in time"))
        return outcome == "ok"

    def prepare(self, sets: int) -> dict[str, int]:
        """Make ``sets`` more sets of one-time masks; returns how many are ready and their bytes."""
        start = time.perf_counter()
        reply = self._ask({"do": "prepare", "sets": sets})[0]
        self._span("prepare masks", start)
        return reply

    def reset(self) -> None:
        """Set all state of the model to zero."""
        self.check()
        if self._stateful:
            self._ask({"do": "reset"})

    def stats(self) -> dict[str, Any]:
        """The enclave's counters; see ``enclave.__main__.Worker.stats``."""
        return self._ask({"do": "stats"})[0]

    def events(self) -> list[dict[str, Any]]:
        """What the enclave traced since the last call: records of ``enclave.trace``."""
        return list(self._ask({"do": "events"})[0]["events"])

    def timeline(self) -> dict[str, Any]:
        """A trace file for Perfetto and chrome://tracing, as JSON; see :mod:`shadownet.timeline`. Needs ``trace=True``
        and an enclave that runs. Raises ``InputError`` without the former."""
        if self._timeline is None or self._calls is None:
            raise InputError("this session keeps no timeline", "start it with trace=True")
        enclave = self.events()
        layers = [str(layer.get("signature")) for layer in self.manifest["layers"] if isinstance(layer, dict)]
        pids = [os.getpid(), *reversed(self.pids)]
        events = self._timeline.events(enclave, self._calls.rows(), layers, pids)
        about = {"what": "shadownet: names, times and sizes, no values", "complete": len(enclave) < MAX_CALLS}
        return {"traceEvents": events, "displayTimeUnit": "ms", "otherData": about}

    def _span(self, name: str, start: float) -> None:
        if self._timeline is not None:
            self._timeline.span(name, start)

    def _ended(self) -> errors.Error:
        """Why the enclave process may have ended without a word."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            code = self._processes[-1].wait(2)
            if self._limited and code != -signal.SIGKILL:  # out of memory native code aborts
                return errors.memory_limit_too_small()
        return WorkerError("the enclave process ended unexpectedly", "run it again; shadownet doctor")

    @property
    def alive(self) -> bool:
        """Whether nothing final has happened yet."""
        return self._failure is None

    def check(self) -> None:
        """Raise the final error, if there was one."""
        if self._failure is not None:
            raise self._failure

    def close(self) -> None:
        """End both workers. Safe to call twice."""
        if self._failure is None:
            self._failure = WorkerError("the interpreter is closed")
        self._end()

    def _end(self) -> None:
        self._finalizer()

    def _ask(
        self, request: dict[str, Any], tensors: list[Array] | None = None
    ) -> tuple[dict[str, Any], list[Array], list[int]]:
        self.check()
        with contextlib.suppress(Closed):  # it may have ended with last words, which are worth more
            self._channel.send(request, tensors)
        return self._hear()

    def _hear(self) -> tuple[dict[str, Any], list[Array], list[int]]:
        """Receive a reply. Raises the error that it tells of."""
        try:
            reply, values, fds = self._channel.receive(APP_DEADLINE_S)
        except Closed:
            raise self._fail(self._ended()) from None
        except WorkerError as error:
            raise self._fail(error) from None
        except KeyboardInterrupt:
            self._fail(WorkerError("the run was interrupted"))
            raise
        if "error" in reply:
            problem = errors.unpack(reply["error"])
            raise self._fail(problem) if reply.get("final") or isinstance(problem, BundleError) else problem
        return reply, values, fds

    def _fail(self, error: errors.Error) -> errors.Error:
        self._failure = error
        self._end()
        return error


def _start(command: list[str], num_threads: int, *fds: int) -> subprocess.Popen[bytes]:
    # NumPy's threads, which otherwise take every core; and weights on huge pages, where the system has them.
    own = {"OPENBLAS_NUM_THREADS": str(num_threads), "GLIBC_TUNABLES": "glibc.malloc.hugetlb=1"}
    try:
        return subprocess.Popen(
            command, pass_fds=fds, stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=workers.environment() | own,
            start_new_session=True,  # Ctrl-C in the terminal reaches the app alone, which then ends the workers
        )  # fmt: skip
    except OSError as error:
        raise InputError(f"{command[0]} cannot be started: {error.strerror}", f"see ${workers.TFLITE_PYTHON}") from None


def _pipe() -> tuple[BinaryIO, BinaryIO]:
    """Both ends of a pipe that neither side waits for."""
    read, write = pipe()
    return os.fdopen(read, "rb"), os.fdopen(write, "wb")


def _shut_down(channel: Channel, processes: list[subprocess.Popen[bytes]], desks: list[Desk], notes: BinaryIO) -> None:
    """Close our end, which ends the enclave and then the accelerator; kill what does not go."""
    channel.close()
    notes.close()
    while desks:
        desks.pop().close()
    for process in reversed(processes):
        try:
            process.wait(2)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
