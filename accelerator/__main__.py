"""``python -m accelerator --enclave FD --model FILE``: the untrusted worker. Serves until its socket closes."""

from __future__ import annotations

import argparse
import contextlib
import os
import sys
import time
from typing import Any

import numpy as np

from accelerator.backends import Backend, create
from accelerator.recorder import Recorder
from accelerator.serving import NativeLoop
from shadownet.wire import arena as shared
from shadownet.wire.calls import CallLog
from shadownet.wire.channel import Channel, Closed
from shadownet.wire.errors import Error, WorkerError
from shadownet.wire.tensors import parse_shape


class Worker:
    """Answers one enclave: set-up over the socket, layers over the arena."""

    def __init__(
        self, enclave: Channel, backend: Backend, spin_s: float, recorder: Recorder | None, notes: int | None,
        calls: CallLog | None,
    ) -> None:  # fmt: skip
        self._enclave, self._backend, self._spin_s, self._recorder = enclave, backend, spin_s, recorder
        self._notes, self._calls = notes, calls
        self._callee: shared.Callee | None = None
        self._native: NativeLoop | None = None
        self._arena: shared.Arena | None = None
        self._held: list[int] = []

    def serve(self) -> None:
        while True:
            layer = None
            if self._callee and self._native:
                self._callee.done = self._native.run(self._callee.done)
            elif self._callee:
                layer = self._callee.next()
            if layer is None:
                self._control()
            else:
                self._run(layer)

    def _run(self, layer: int) -> None:
        assert self._callee is not None
        begun = time.monotonic_ns() if self._calls else 0
        try:
            self._backend.run(layer)
        except (RuntimeError, ValueError, IndexError):
            self._callee.answer(shared.FAILED)
            return
        if self._calls:
            self._calls.add(layer, begun, time.monotonic_ns())
        if self._recorder is not None and layer < len(self._layers):
            self._recorder.record(*self._layers[layer])
        self._callee.answer(shared.OK)

    def _control(self) -> None:
        request, _, fds = self._enclave.receive(None)
        layer = request.get("layer")
        if request.get("do") == "probe" and self._callee and isinstance(layer, int) and not fds:
            self._probe(layer)
            return
        if request.get("do") != "open" or len(fds) != 3:
            raise WorkerError("the enclave sent an unknown request")
        for fd in self._held:
            os.close(fd)
        self._held = fds[1:]
        if self._arena is not None:
            self._arena.close()
        self._arena = arena = shared.Arena.attach(fds[0])
        try:
            self._layers = [
                _views(arena, record, int(i), int(o))
                for record, (i, o) in zip(request["layers"], request["offsets"], strict=True)
            ]
            self._tell(self._backend.open(self._layers))
        except (RuntimeError, ValueError, KeyError, TypeError) as error:
            self._enclave.send({"error": (str(error).splitlines() or ["?"])[0][:500]})
            return
        if self._recorder is None:
            bells = fds[2], fds[1], self._enclave.fileno()
            self._native = NativeLoop.create(self._backend, arena.address(), bells, self._spin_s, self._table())
        bell = shared.Doorbell(fds[2], fds[1], self._enclave.fileno(), self._spin_s)
        self._callee = shared.Callee(arena.words(), bell)
        self._enclave.send({"ok": True, "precision": self._backend.precision})

    def _probe(self, layer: int) -> None:
        """Run a layer for the enclave's test of our arithmetic. Not recorded: the numbers are random."""
        run = getattr(self._backend, "probe", self._backend.run)
        try:
            run(layer)
            self._enclave.send({"ok": True})
        except (RuntimeError, ValueError, IndexError):
            self._enclave.send({"ok": False})

    def _table(self) -> int:
        return self._calls.table.ctypes.data if self._calls else 0

    def _tell(self, notes: list[str]) -> None:
        """Pass on what the user should know, as far as the pipe takes it without waiting for a reader."""
        if self._notes is not None:
            with contextlib.suppress(OSError):
                os.write(self._notes, "".join(f"{line}\n" for line in notes).encode())


def _views(arena: shared.Arena, record: dict[str, Any], input_at: int, output_at: int) -> tuple[str, Any, Any]:
    inp = arena.array(input_at, parse_shape(record["input"]), np.float32)
    out = arena.array(output_at, parse_shape(record["output"]), np.float32)
    return str(record["signature"]), inp, out


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m accelerator", description=__doc__)
    parser.add_argument("--enclave", type=int, required=True, metavar="FD", help="socket to the enclave")
    parser.add_argument("--model", required=True, metavar="FILE", help="the public model, accelerator.tflite")
    parser.add_argument("--backend", default="litert-cpu", help="default: %(default)s")
    parser.add_argument("--num_threads", type=int, default=1, metavar="N")
    parser.add_argument("--delegate", default="", metavar="LIB.so[:key=value,…]", help="a vendor's delegate")
    parser.add_argument("--spin", type=float, default=0.0, metavar="SECONDS", help="poll this long before sleeping")
    parser.add_argument("--record", metavar="FILE", help="write every byte that crosses to this .npz file")
    parser.add_argument("--notes", type=int, metavar="FD", help="pipe for what the user should know, line by line")
    parser.add_argument("--calls", type=int, metavar="FD", help="shared memory for when which layer ran")
    args = parser.parse_args(argv)
    enclave = Channel.from_fd(args.enclave, "enclave")
    try:
        backend = create(args.backend, args.model, args.num_threads, args.delegate)
    except (RuntimeError, ValueError, ImportError, OSError) as error:
        enclave.receive(None)
        enclave.send({"error": (str(error).splitlines() or ["?"])[0][:500]})
        return 3
    recorder = Recorder(args.record) if args.record else None
    try:
        calls = CallLog.attach(args.calls) if args.calls is not None else None
        Worker(enclave, backend, args.spin, recorder, args.notes, calls).serve()
    except Closed:
        pass  # the enclave is done with us
    except Error as error:
        print(f"accelerator: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        return 130
    finally:
        if recorder is not None:
            recorder.close()
    return 0


if __name__ == "__main__":
    sys.exit(main())
