"""The enclave's side of the accelerator: an arena, a call record, and no trust in what comes back."""

from __future__ import annotations

import ctypes
import os
import time
from dataclasses import dataclass
from typing import Any

import numpy as np

from enclave import native
from enclave.trace import Trace
from shadownet.wire.arena import Arena, Caller, Doorbell, aligned, pipe
from shadownet.wire.channel import Channel
from shadownet.wire.errors import IntegrityError, WorkerError
from shadownet.wire.precision import PRECISIONS

Array = np.ndarray[Any, Any]
PHASES = ("reading_seconds", "finishing_seconds", "sending_seconds", "checking_seconds")
OPEN_DEADLINE_S = 300.0  # compiling a large model for a GPU takes a while


@dataclass(frozen=True)
class Plan:
    """Steps of the C loop, where they lie, and what crosses when they run."""

    steps: Array
    address: int
    crossings: int
    bytes_out: int
    bytes_in: int


class Accelerator:
    """Layers by number: fill ``input(k)``, ``call(k)``, then ``read(k)`` copies the answer, once."""

    def __init__(self, channel: Channel, deadline_s: float, spin_s: float, app: int = -1) -> None:
        """``app`` is the app's socket, whose end ends every wait; -1 for none."""
        self._channel, self._deadline_s, self._spin_s, self._app = channel, deadline_s, spin_s, app
        self._arena: Arena | None = None
        self._bells: tuple[int, ...] = ()
        self.private = np.empty(0, np.float32)
        self.kept = [[self.private] * 2]  # by lane: what was sent, for checks; layers take turns
        self.precision = "float32"
        self._native = native.Link()
        self._lanes = (native.Lane * 1)()
        self._plans: list[Plan | None] = [None]
        self._scratch = native.Scratch(0)
        self.crossings = self.bytes_out = self.bytes_in = 0
        self.seconds = 0.0

    def open(self, layers: list[dict[str, Any]], lanes: int = 1, buffers: bool = True) -> None:
        """Agree on shapes: each layer has ``signature``, ``input`` and ``output`` (float32 shapes).

        Layers take turns with two input and two output regions. A second lane has regions of its own; its layers
        follow those of the first. Without ``buffers`` there is no private memory, and answers are not :meth:`read`.
        ``precision`` is what the accelerator says of itself. Raises ``WorkerError``.
        """
        self._layer_count = len(layers)
        self._names = [str(layer["signature"]) for layer in layers]
        shapes = [(tuple(layer["input"]), tuple(layer["output"])) for layer in layers]
        sizes = [[4 * int(np.prod(s)) for s in column] for column in zip(*shapes, strict=True)] or [[], []]
        size_in, size_out = (aligned(max(column, default=0)) for column in sizes)
        # Two regions each, in turn: while one is read, the other's cache lines can change hands.
        regions = 2 * (size_in + size_out)
        self._offsets = [
            (lane * regions + k % 2 * size_in, lane * regions + 2 * size_in + k % 2 * size_out)
            for lane in range(lanes)
            for k in range(len(layers))
        ]
        layers, shapes, self._names = layers * lanes, shapes * lanes, self._names * lanes
        arena = Arena.create(lanes * regions, "accelerator")
        theirs, request = pipe()
        reply, answer_fd = pipe()
        try:
            message = {"do": "open", "layers": layers, "offsets": self._offsets}
            self._channel.send(message, fds=(arena.fd, theirs, answer_fd), timeout=OPEN_DEADLINE_S)
            answer, _, fds = self._channel.receive(OPEN_DEADLINE_S)
            for fd in fds:
                os.close(fd)
            if answer.get("ok") is not True:
                raise WorkerError(f"the accelerator cannot run the model: {_plain(answer.get('error', ''))}")
            self.precision = str(answer.get("precision"))
            if self.precision not in PRECISIONS:
                raise WorkerError(f"the accelerator computes in {_plain(self.precision)}, which is no known precision")
        except WorkerError:
            arena.close()
            for fd in (request, reply):
                os.close(fd)
            raise
        finally:
            os.close(theirs)
            os.close(answer_fd)
        if self._arena is not None:
            self._arena.close()
        self._arena = arena
        for fd in self._bells:
            os.close(fd)
        self._bells = (request, reply)
        hangup = self._channel.fileno()
        self._caller = Caller(arena.words(), Doorbell(request, reply, hangup, self._spin_s, self._app))
        spin, deadline = int(self._spin_s * 1e9), int(self._deadline_s * 1e9)
        spent = [getattr(self._native, name) for name in native.COUNTERS]
        self._native = native.Link(arena.address(), 0, request, reply, hangup, self._app, spin, deadline, *spent)
        self._views = [
            (arena.array(at[0], i, np.float32), arena.array(at[1], o, np.float32))
            for (i, o), at in zip(shapes, self._offsets, strict=True)
        ]
        sent, answered = (max(column, default=0) // 4 if buffers else 0 for column in sizes)
        self.private = native.empty(answered)
        self._lanes, self._plans = (native.Lane * lanes)(), [None] * lanes
        self.kept = [[native.empty(sent) for _ in range(2)] for _ in range(lanes)]

    def wake(self) -> None:
        """Have an accelerator that sleeps get up: a request is about to come."""
        self._caller.wake()

    def probe(self, layer: int, name: str) -> None:
        """Have a layer run for a test, which neither counts nor enters a transcript. Raises ``WorkerError``."""
        self._channel.send({"do": "probe", "layer": layer}, timeout=OPEN_DEADLINE_S)
        answer, _, fds = self._channel.receive(OPEN_DEADLINE_S)
        for fd in fds:
            os.close(fd)
        if answer.get("ok") is not True:
            self._refuse("failed", name)

    def refuse(self, name: str, outcome: str = "not right") -> None:
        """Raise the error for an answer that failed its check (or is "not finite")."""
        self._refuse(outcome, name)

    def of_lane(self, layer: int, lane: int) -> int:
        """The number under which the accelerator has a layer of this lane."""
        return layer + lane * self._layer_count

    def input(self, layer: int, lane: int = 0) -> Array:
        """The shared view into which the layer's masked input is written."""
        return self._views[self.of_lane(layer, lane)][0]

    def output(self, layer: int, lane: int = 0) -> Array:
        """The shared view of a layer's answer. Untrusted, and to be read once: through :meth:`read`."""
        return self._views[self.of_lane(layer, lane)][1]

    def plan(self, steps: Array) -> Plan:
        """Make ready steps of the C loop (``enclave.native.STEP``), and room for the widest row that goes in or out."""
        layers = [int(layer) for layer in steps["layer"][steps["kind"] == native.FINISH]]
        sent, received = (sum(self._views[layer][side].nbytes for layer in layers) for side in (0, 1))
        width = int(max(steps["send_n"].max(), steps["n"].max()))
        if width > self._scratch.width:
            self._scratch = native.Scratch(width)
        return Plan(steps, native.address(steps), len(layers), sent, received)

    def begin(self, lane: int, plan: Plan, masks: int) -> None:
        """Let :meth:`run` run a plan in a lane that has nothing to do, with the masks at this address."""
        self._lanes[lane] = native.Lane(plan.address, len(plan.steps), 0, masks)
        self._plans[lane] = plan

    def run(self, trace: Trace) -> int:
        """Run the plans of all lanes, in turn, until one is through; returns its lane.

        Raises as :meth:`call` and :meth:`read` do.
        """
        link = self._native
        link.sequence, waited = self._caller.sequence, link.waiting_ns
        lane = self._traced(trace) if trace.enabled and len(self._lanes) == 1 else self._run()
        self._caller.sequence = link.sequence
        self.seconds += (link.waiting_ns - waited) * 1e-9
        plan, self._plans[lane] = self._plans[lane], None
        assert plan is not None
        self.crossings += plan.crossings
        self.bytes_out += plan.bytes_out
        self.bytes_in += plan.bytes_in
        return lane

    def settle(self) -> None:
        """Wait until nothing is under way, and forget what was. Raises ``WorkerError``."""
        if any(lane.sequence for lane in self._lanes):
            outcome = native.settle(self._native, self._lanes)
            if outcome != "ok":
                self._refuse(outcome, "that was given up")
        # Nor does a plan that was begun and not run yet: its masks are gone.
        self._lanes, self._plans = (native.Lane * len(self._lanes))(), [None] * len(self._plans)

    def _run(self) -> int:
        which = ctypes.c_int64(0)
        code = native.load()(self._native, self._lanes, len(self._lanes), self._scratch, which)
        if code:
            self._caller.sequence = self._native.sequence
            self._refuse(native.OUTCOMES[code], self._names[which.value])
        return int(which.value)

    def _traced(self, trace: Trace) -> int:
        """Step by step, so that each can be timed."""
        (plan,), (lane,) = self._plans, self._lanes
        assert plan is not None
        for step, (kind, layer) in enumerate(zip(plan.steps["kind"], plan.steps["layer"], strict=True)):
            start, waited = time.perf_counter(), self._native.waiting_ns
            lane.next, lane.count = step, step + 1
            self._run()
            if kind != native.FINISH:
                trace.work("mask and send", start)
                continue
            waited = self._native.waiting_ns - waited
            waiting = 1e-9 * (self._native.arrived_ns - waited), 1e-9 * waited
            self.crossed(layer, 1e-9 * lane.asked, waiting, trace)
            trace.work(self._names[layer], start)
        return 0

    def crossed(self, layer: int, asked: float, waiting: tuple[float, float], trace: Trace) -> None:
        """Record that a layer ran; times as :meth:`Trace.call` takes them."""
        sent, received = (view.nbytes for view in self._views[layer])
        trace.call(self._names[layer], asked, waiting, sent, received)

    @property
    def nbytes(self) -> int:
        """Bytes of private buffers."""
        return (
            self.private.nbytes + self._scratch.memory.nbytes + sum(kept.nbytes for pair in self.kept for kept in pair)
        )

    def phases(self) -> dict[str, float]:
        """Seconds that the C loop spent copying, restoring and sending; 0 without it."""
        return {name: 1e-9 * getattr(self._native, name.replace("seconds", "ns")) for name in PHASES}

    def _count(self, layer: int) -> None:
        self.crossings += 1
        self.bytes_out += self._views[layer][0].nbytes
        self.bytes_in += self._views[layer][1].nbytes

    @staticmethod
    def _refuse(outcome: str, name: str) -> None:
        if outcome in ("not finite", "not right"):
            raise IntegrityError(f"the accelerator's answer for layer {name} is {outcome}")
        raise WorkerError(f"the accelerator {_OUTCOMES[outcome]} in layer {name}")

    def call(self, layer: int, name: str) -> None:
        """Have a layer run. Raises ``WorkerError`` unless the accelerator says that it did, in time."""
        start = time.perf_counter()
        outcome = self._caller.call(layer, self._deadline_s)
        self.seconds += time.perf_counter() - start
        self._count(layer)
        if outcome != "ok":
            self._refuse(outcome, name)

    def read(self, layer: int, name: str) -> Array:
        """Copy the answer into enclave memory, reading each shared byte once; the buffer is reused.

        Raises ``IntegrityError`` if a value is not finite.
        """
        shared = self._views[layer][1]
        private = self.private[: shared.size].reshape(shared.shape)
        np.copyto(private, shared)
        # One sum finds what is not finite; only a sum that overflows needs the longer look.
        with np.errstate(over="ignore", invalid="ignore"):
            suspicious = not np.isfinite(private.sum())
        if suspicious and not np.isfinite(private).all():
            self._refuse("not finite", name)
        return private


def _plain(text: object) -> str:
    """What a stranger says, fit for a terminal."""
    return "".join(c if c.isprintable() else "?" for c in str(text)[:500])


_OUTCOMES = {
    "gone": "died or broke the connection",
    "late": "did not answer in time",
    "failed": "failed",
    "wrong": "broke the protocol",
}
