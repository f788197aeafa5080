"""Two worker processes and an app: clean ends, hostile answers, broken protocols, and nobody left behind."""

from __future__ import annotations

import contextlib
import gc
import json
import os
import signal
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from boundary_helpers import (  # noqa: F401, the_lab is the fixture lab
    PATIENCE_S,
    Lab,
    alive,
    descriptors,
    digits,
    end,
    gone,
    infer,
    launcher,
    marked,
    sample,
    start,
    stop,
    the_lab,
    wait_for,
    worker,
)

import shadownet
from enclave import link, native
from enclave.link import Accelerator
from enclave.trace import Trace
from shadownet import session
from shadownet.cli import main
from shadownet.wire import arena as shared
from shadownet.wire import channel as wire
from shadownet.wire.arena import Arena, Doorbell
from shadownet.wire.channel import Channel
from shadownet.wire.errors import InputError, IntegrityError, WorkerError

LAYERS = 3  # of digits_mlp


@contextlib.contextmanager
def nothing_left() -> Iterator[None]:
    """What the block opened in this process, or left in /dev/shm, must be gone when it ends, or soon after."""
    gc.collect()
    before, shm = descriptors(), set(os.listdir("/dev/shm"))
    yield
    left = wait_for(lambda: gc.collect() >= 0 and descriptors() == before, 3)
    assert left, f"before: {before}; after: {descriptors()}"
    assert "/memfd:app" not in [line.split()[-2] for line in Path("/proc/self/maps").read_text().splitlines()]
    assert not {name for name in set(os.listdir("/dev/shm")) - shm if "shadow" in name or "app" in name}


def ready(lab: Lab, **options: Any) -> shadownet.Interpreter:
    """An interpreter on the small perceptron that has run once."""
    interpreter = lab.open("digits_mlp", **options)
    interpreter.allocate_tensors()
    infer(interpreter, digits()[:1])
    return interpreter


def every_call_raises(interpreter: shadownet.Interpreter, error: shadownet.Error) -> None:
    """A final error is final: each later call gives it again, and closing is allowed."""
    source, target = 0, 10**6  # indices do not matter any more
    calls: dict[str, Callable[[], Any]] = {
        "invoke": interpreter.invoke,
        "invoke again": interpreter.invoke,
        "prepare": lambda: interpreter.prepare(1),
        "set_tensor": lambda: interpreter.set_tensor(source, digits()[:1]),
        "get_tensor": lambda: interpreter.get_tensor(target),  # the output of an earlier run is not that of this one
        "reset_all_variables": interpreter.reset_all_variables,
        "stats": interpreter.session.stats,
        "allocate_tensors": interpreter.allocate_tensors,
    }
    got = {name: repr(in_time(call)) for name, call in calls.items()}
    assert got == dict.fromkeys(calls, repr(error))
    interpreter.close()
    assert repr(in_time(interpreter.invoke)) == repr(error)


# Start and stop


def test_clean_start_and_stop(lab: Lab) -> None:
    with nothing_left():
        with lab.open("digits_mlp") as interpreter:
            pids = interpreter.session.pids
            assert len(pids) == 2 and all(alive(pid) for pid in pids)
            interpreter.allocate_tensors()
            infer(interpreter, digits()[:1])
        assert not any(alive(pid) for pid in pids)
        interpreter.close()  # twice does no harm
        with pytest.raises(WorkerError, match="closed"):
            interpreter.invoke()


def test_an_interpreter_that_never_ran_ends_cleanly(lab: Lab) -> None:
    with nothing_left():
        interpreter = lab.open("digits_mlp")
        pids = interpreter.session.pids
        interpreter.close()
        assert gone(pids)


def test_an_exception_in_the_block_ends_the_workers(lab: Lab) -> None:
    with nothing_left():
        with pytest.raises(ZeroDivisionError), lab.open("digits_mlp") as interpreter:
            pids = interpreter.session.pids
            interpreter.allocate_tensors()
            _ = 1 / 0
        del interpreter
        assert gone(pids)


def test_garbage_collection_ends_the_workers(lab: Lab) -> None:
    with nothing_left():
        interpreter = ready(lab)
        pids = interpreter.session.pids
        del interpreter
        gc.collect()
        assert gone(pids)


def test_a_bundle_that_does_not_open_leaves_no_worker(lab: Lab, tmp_path: Path) -> None:
    with nothing_left():
        refused = 0
        # How little memory is too little to open a bundle depends on the machine; the key is wrong everywhere.
        for options in ({"key": tmp_path / "none.key"}, *({"enclave_memory": size} for size in (1, 4096, 1 << 16))):
            try:
                interpreter = shadownet.Interpreter(lab.bundle("digits_mlp"), **({"key": lab.key} | options))
            except shadownet.Error as error:
                kept = error  # as long as the error is held, its frames are, too
                assert wait_for(lambda: not _children(), 5), options
                refused += 1
                del kept
            else:
                interpreter.close()
                del interpreter
        assert refused


def _children() -> list[int]:
    """Living children of this process that are workers."""
    found = []
    for path in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError, ValueError):
            parent = int((path / "stat").read_text().rpartition(")")[2].split()[1])
            if parent == os.getpid() and alive(int(path.name)) and b"-m\0" in (path / "cmdline").read_bytes():
                found.append(int(path.name))
    return found


def test_an_input_error_does_not_end_the_session(lab: Lab) -> None:
    with lab.open("digits_mlp") as interpreter:
        interpreter.allocate_tensors()
        expected = infer(interpreter, digits()[:1])
        for bad in (np.nan, np.inf, -np.inf):
            with pytest.raises(InputError, match="not finite"):
                infer(interpreter, np.full((1, 8, 8, 1), bad, np.float32))
        np.testing.assert_allclose(infer(interpreter, digits()[:1]), expected, atol=1e-4)


def test_new_shapes_leave_no_descriptor_behind(lab: Lab) -> None:
    with nothing_left(), lab.open("pixels") as interpreter:
        counts = []
        for height in (4, 5) * 6:
            interpreter.resize_tensor_input(interpreter.get_input_details()[0]["index"], [1, height, 8, 4])
            interpreter.allocate_tensors()
            assert infer(interpreter, np.ones((1, height, 8, 4), np.float32)).shape == (1, height, 8, 6)
            counts.append([len(descriptors(pid)) for pid in ("self", *interpreter.session.pids)])
        assert counts[3] == counts[-1]


def test_several_interpreters_on_one_bundle(lab: Lab) -> None:
    with nothing_left(), contextlib.ExitStack() as stack:
        running = [stack.enter_context(lab.open("digits_mlp")) for _ in range(3)]
        for interpreter in running:
            interpreter.allocate_tensors()
        for k in range(4):
            outputs = [infer(interpreter, digits()[k : k + 1]) for interpreter in running]
            np.testing.assert_allclose(outputs, np.broadcast_to(outputs[0], np.shape(outputs)), atol=1e-4)
        running[1].close()
        infer(running[2], digits()[:1])  # the others do not mind


def test_an_interpreter_works_in_and_across_threads(lab: Lab) -> None:
    results: dict[str, Any] = {}

    def work() -> None:
        results["interpreter"] = interpreter = ready(lab)
        results["first"] = infer(interpreter, digits()[:1])

    thread = threading.Thread(target=work)
    thread.start()
    thread.join(PATIENCE_S)
    # The thread that started the workers is gone; they are not.
    interpreter = results["interpreter"]
    time.sleep(0.1)
    np.testing.assert_allclose(infer(interpreter, digits()[:1]), results["first"], atol=1e-4)
    interpreter.close()


# Killed, at several moments


MOMENTS: dict[str, Callable[[shadownet.Interpreter], Any]] = {
    "before allocating": lambda interpreter: None,
    "before the first run": lambda interpreter: interpreter.allocate_tensors(),
    "with masks prepared": lambda interpreter: (interpreter.allocate_tensors(), interpreter.prepare(3)),
    "between two runs": lambda interpreter: (interpreter.allocate_tensors(), interpreter.invoke()),
}


@pytest.mark.parametrize("moment", MOMENTS)
@pytest.mark.parametrize("victim", ["accelerator", "enclave"])
def test_a_killed_worker_is_a_final_typed_error(lab: Lab, victim: str, moment: str) -> None:
    with nothing_left():
        interpreter = lab.open("digits_mlp")
        pids = interpreter.session.pids
        MOMENTS[moment](interpreter)
        stop(worker(pids, victim))
        with pytest.raises(WorkerError) as caught:
            interpreter.allocate_tensors()
            interpreter.invoke()
        assert gone(pids)
        assert victim in str(caught.value)
        every_call_raises(interpreter, caught.value)
        del interpreter, caught


@pytest.mark.parametrize("delay", [0.0, 0.03, 0.11])
@pytest.mark.parametrize("victim", ["accelerator", "enclave"])
def test_a_worker_killed_while_it_works(lab: Lab, victim: str, delay: float) -> None:
    interpreter = ready(lab)
    pids = interpreter.session.pids
    timer = threading.Timer(delay, stop, [worker(pids, victim)])
    timer.start()
    limit = time.monotonic() + PATIENCE_S
    with pytest.raises(WorkerError) as caught:
        while time.monotonic() < limit:
            interpreter.invoke()
    timer.join()
    assert gone(pids)
    every_call_raises(interpreter, caught.value)


def test_a_stopped_accelerator_is_late(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(session, "CALL_DEADLINE_S", 0.3)
    with nothing_left():
        interpreter = ready(lab)
        pids = interpreter.session.pids
        stop(worker(pids, "accelerator"), signal.SIGSTOP)
        with pytest.raises(WorkerError, match="in time") as caught:
            interpreter.invoke()
        assert gone(pids)
        every_call_raises(interpreter, caught.value)
        del interpreter, caught


def test_a_stopped_enclave_is_late(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    interpreter = ready(lab)
    pids = interpreter.session.pids
    monkeypatch.setattr(session, "APP_DEADLINE_S", 0.3)
    stop(worker(pids, "enclave"), signal.SIGSTOP)
    with pytest.raises(WorkerError, match="in time") as caught:
        interpreter.invoke()
    assert gone(pids)
    every_call_raises(interpreter, caught.value)


@pytest.mark.parametrize("delay", [0.05, 0.15, 0.2, 0.25, 0.3, 0.4, 0.6])
def test_a_killed_app_takes_its_workers_along(lab: Lab, tmp_path: Path, delay: float) -> None:
    np.save(tmp_path / "x.npy", digits()[:1])
    command = ["-m", "shadownet", "run", lab.bundle("digits_mlp"), "--key", lab.key, "--num_runs", 10**9, "--input"]
    process = start([*command, tmp_path / "x.npy"], tmp_path / "tmp")
    try:
        time.sleep(delay)
        stop(process.pid)
        process.wait()
        assert wait_for(lambda: not marked(tmp_path / "tmp")), marked(tmp_path / "tmp")
    finally:
        end(process)
        for pid in marked(tmp_path / "tmp"):
            stop(pid)


def test_a_killed_app_with_idle_workers_and_a_killed_worker_without_an_app(lab: Lab, tmp_path: Path) -> None:
    with launcher(lab, "digits_mlp", tmp_path, count=2) as (app, pids):
        assert app.stdout.readline() == "done\n" and all(alive(pid) for pid in pids)
        stop(app.pid)
        assert gone(pids)


@pytest.mark.parametrize("how", ["stopped", "hanging"])
def test_a_killed_app_whose_accelerator_does_not_answer(lab: Lab, tmp_path: Path, how: str) -> None:
    # The worst case: nobody is left to kill an accelerator that no longer looks at its socket.
    np.save(tmp_path / "x.npy", digits()[:1])
    mode = "hostile:hang@3" if how == "hanging" else "litert-cpu"
    command = ["-m", "shadownet", "run", lab.bundle("digits_mlp"), "--key", lab.key, "--num_runs", 10**9]
    process = start([*command, "--accelerator", mode, "--input", tmp_path / "x.npy"], tmp_path / "tmp")
    try:
        assert wait_for(lambda: worker(marked(tmp_path / "tmp"), "enclave"))
        time.sleep(0.7)
        if how == "stopped":
            stop(worker(marked(tmp_path / "tmp"), "accelerator"), signal.SIGSTOP)
        stop(process.pid)
        process.wait()
        assert wait_for(lambda: not marked(tmp_path / "tmp"), 5), "workers outlive the app"
    finally:
        end(process)
        for pid in marked(tmp_path / "tmp"):
            stop(pid)


@pytest.mark.parametrize("delay", [0.0, 0.5])
@pytest.mark.parametrize("whom", ["the app", "the whole group"])
def test_control_c(lab: Lab, tmp_path: Path, delay: float, whom: str) -> None:
    np.save(tmp_path / "x.npy", digits()[:1])
    command = ["-m", "shadownet", "run", lab.bundle("digits_mlp"), "--key", lab.key, "--num_runs", 10**9]
    process = start([*command, "--output", tmp_path / "y.npy", "--input", tmp_path / "x.npy"], tmp_path / "tmp")
    try:
        assert wait_for(lambda: worker(marked(tmp_path / "tmp"), "enclave"))
        time.sleep(delay)
        (os.killpg if whom == "the whole group" else os.kill)(process.pid, signal.SIGINT)
        out, err = process.communicate(timeout=PATIENCE_S)
        assert process.returncode == 130, err
        assert "Traceback" not in err and out == ""
        assert gone(marked(tmp_path / "tmp")) and not (tmp_path / "y.npy").exists()
        assert os.listdir(tmp_path / "tmp") == []
    finally:
        end(process)


def test_control_c_while_converting_leaves_nothing(lab: Lab, tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    command = ["-m", "shadownet", "convert", lab.model("digits_cnn"), "-o", out / "b.shadow", "--key", lab.key]
    process = start(command, tmp_path / "tmp")
    try:
        assert wait_for(lambda: os.listdir(out))  # the working directory is there
        os.kill(process.pid, signal.SIGINT)
        _, err = process.communicate(timeout=PATIENCE_S)
        assert process.returncode == 130, err
        assert "Traceback" not in err
        assert os.listdir(out) == [] == os.listdir(tmp_path / "tmp") and gone(marked(tmp_path / "tmp"))
    finally:
        end(process)


# Hostile answers


HOSTILE = {
    "nan": (IntegrityError, "not finite"),
    "inf": (IntegrityError, "not finite"),
    "die": (WorkerError, "died"),
    "fail": (WorkerError, "failed"),
    "hang": (WorkerError, "in time"),
}


@pytest.mark.parametrize("call", [0, 1, 3 * LAYERS - 1])
@pytest.mark.parametrize("mode", HOSTILE)
def test_a_hostile_answer_ends_the_session(lab: Lab, monkeypatch: pytest.MonkeyPatch, mode: str, call: int) -> None:
    monkeypatch.setattr(session, "CALL_DEADLINE_S", 0.3)
    kind, words = HOSTILE[mode]
    interpreter = lab.open("digits_mlp", accelerator=f"hostile:{mode}@{call}")
    pids = interpreter.session.pids
    interpreter.allocate_tensors()
    for k in range(call // LAYERS):
        infer(interpreter, digits()[k : k + 1])
    with pytest.raises(kind, match=words) as caught:
        infer(interpreter, digits()[9:10])
    assert gone(pids)
    every_call_raises(interpreter, caught.value)


def test_an_accelerator_that_refuses_the_layers(lab: Lab) -> None:
    interpreter = lab.open("digits_mlp", accelerator="hostile:refuse")
    with pytest.raises(WorkerError, match="refused") as caught:
        interpreter.allocate_tensors()
    assert gone(interpreter.session.pids)
    every_call_raises(interpreter, caught.value)


@pytest.mark.parametrize("mode", [*HOSTILE, "refuse"])
def test_the_command_reports_a_hostile_accelerator(
    lab: Lab, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], mode: str
) -> None:
    monkeypatch.setattr(session, "CALL_DEADLINE_S", 0.3)
    np.save(tmp_path / "x.npy", digits()[:4])
    arguments = ["run", lab.bundle("digits_mlp"), "--key", lab.key, "--input", tmp_path / "x.npy"]
    arguments += ["--output", tmp_path / "y.npy", "--accelerator", f"hostile:{mode}@{2 * LAYERS}"]
    arguments[-1] = arguments[-1].replace("refuse@6", "refuse")
    assert main([str(a) for a in arguments]) == 3
    out, err = capfd.readouterr()
    assert out == "" and "shadownet: error: the accelerator" in err and "Traceback" not in err
    assert not (tmp_path / "y.npy").exists()


@pytest.mark.parametrize("name", ["nonsense", "hostile:nonsense", "hostile:nan@x", "hostile:", ""])
def test_an_unknown_accelerator_is_named(lab: Lab, name: str) -> None:
    with pytest.raises(shadownet.Error) as caught, lab.open("digits_mlp", accelerator=name) as interpreter:
        interpreter.allocate_tensors()
    assert isinstance(caught.value, (InputError, WorkerError))
    assert "accelerator" in str(caught.value) and "Traceback" not in str(caught.value)
    assert gone(interpreter.session.pids) if "interpreter" in locals() else True


@pytest.mark.parametrize("ready", [False, True])
def test_who_polls_looks_at_the_socket_too(ready: bool) -> None:
    """A message must not wait until there is nothing to poll for any more, here for an hour."""
    ours, theirs = socket.socketpair()
    wait, ring = shared.pipe()
    later = threading.Timer(0.05, theirs.send, [b"!"])
    try:
        bell = Doorbell(ring, wait, ours.fileno(), 3600.0)
        bell.ring()  # a ring without a request, which is no reason to stop
        later.start()
        looks = iter(range(10**9))
        assert bell.wait(lambda: ready and next(looks) > 100, None) == ("ready" if ready else "socket")
    finally:
        later.join()
        for end in (wait, ring):
            os.close(end)
        ours.close()
        theirs.close()


# A fake accelerator, which breaks the protocol


OPENED = {"ok": True, "precision": "float32"}


class Fake:
    """The other end of the enclave's socket. ``opened`` holds arena, doorbell and call record once that is done."""

    def __init__(self, deadline_s: float = 0.5, rows: int = 1) -> None:
        self.rows = rows
        ours, theirs = socket.socketpair()
        self.sock = theirs
        self.channel = Channel(ours, "accelerator")
        self.link = Accelerator(self.channel, deadline_s, 0.0)
        self.fds: list[int] = []

    def __enter__(self) -> Fake:
        return self

    def __exit__(self, *_: object) -> None:
        self.sock.close()
        self.channel.close()
        for fd in self.fds:
            os.close(fd)

    def in_background(self, work: Callable[[], Any]) -> None:
        def run() -> None:
            with contextlib.suppress(OSError, WorkerError):  # the enclave may hang up first
                work()

        threading.Thread(target=run, daemon=True).start()

    def open(self) -> None:
        """Let the enclave open a layer, rows of four values to rows of three, and take part as an honest one would."""
        self.in_background(lambda: self._accept(OPENED))
        self.link.open([LAYER | {"input": [self.rows, 4], "output": [self.rows, 3]}])
        assert wait_for(lambda: self.fds)
        self.arena = Arena(os.dup(self.fds[0]), os.fstat(self.fds[0]).st_size)
        self.words = self.arena.words()
        self.output = self.arena.array(2 * shared.aligned(16 * self.rows), (self.rows, 3), np.float32)
        self.bell = Doorbell(self.fds[2], self.fds[1], self.sock.fileno(), 0.0)

    def _accept(self, answer: dict[str, Any]) -> None:
        peer = Channel(self.sock, "enclave")
        _, _, fds = peer.receive(PATIENCE_S)
        peer.send(answer)
        self.fds = fds

    def on_request(self, work: Callable[[], Any]) -> None:
        """Do ``work`` when the enclave asks for a layer, then ring."""

        def wait() -> None:
            self.bell.wait(lambda: self.words[shared._REQUEST] != self.words[shared._REPLY], PATIENCE_S)
            work()
            self.bell.ring()

        self.in_background(wait)

    def ask(self, loop: str) -> np.ndarray:
        """Have the enclave run the layer and read the answer, as its C loop does it or as NumPy does."""
        if loop == "NumPy":
            self.link.call(0, "layer")
            return self.link.read(0, "layer")
        if native.load() is None:
            pytest.skip("the enclave's C loop was not built here")
        slot, coefficient, result = (
            np.arange(3, dtype=np.int32),
            np.ones(3, np.float32),
            np.zeros((self.rows, 3), np.float32),
        )
        steps = np.zeros(1, native.STEP)
        for name, value in {
            "kind": native.FINISH, "rows": self.rows, "slots": 3, "n": 3, "answer": native.address(self.link.output(0)),
            "copy": native.address(self.link.private), "terms": 1, "slot": native.address(slot),
            "coefficient": native.address(coefficient), "pop": -1, "push": -1, "send_push": -1,
            "first": (0, -np.inf, np.inf), "second": (0, -np.inf, np.inf), "result": native.address(result),
        }.items():  # fmt: skip
            steps[name] = value
        self.link.begin(0, self.link.plan(steps), 0)
        self.link.run(Trace(False))
        return result

    def progress(self, rows: int, sequence: int = 1) -> None:
        """Say that so many rows are there, and ring."""
        self.words[shared.PROGRESS + sequence % shared.SLOTS] = (sequence << 24 | rows) & (1 << 64) - 1
        self.bell.ring()

    def reply(self, sequence: int, status: int = shared.OK) -> None:
        self.words[shared._STATUS + sequence % shared.SLOTS] = status
        self.words[shared._REPLY] = sequence


LAYER = {"signature": "layer", "input": [1, 4], "output": [1, 3]}


def in_time(work: Callable[[], Any], seconds: float = 3.0) -> Any:
    """Do something that may block; returns what it raised or None. Fails if it does not come back."""
    result: list[Any] = []

    def run() -> None:
        try:
            work()
            result.append(None)
        except Exception as error:
            result.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(seconds)
    assert result, "blocked for ever"
    return result[0]


def message(record: object, length: int | None = None) -> bytes:
    body = record if isinstance(record, bytes) else json.dumps(record).encode()
    return struct.pack("<I", len(body) if length is None else length) + body


ROWS = 40


def test_rows_that_are_there_are_taken_while_the_others_are_computed() -> None:
    with Fake(5.0, ROWS) as fake:
        fake.open()
        answer = np.arange(3.0 * ROWS, dtype=np.float32).reshape(ROWS, 3)

        def work() -> None:
            fake.output[:20] = answer[:20]
            fake.progress(20)
            time.sleep(0.2)
            fake.output[:16] = np.nan  # taken already: of 20 rows the first whole block
            fake.output[16:] = answer[16:]
            fake.reply(1)

        fake.on_request(work)
        got = fake.ask("C")
        assert np.array_equal(got, answer) or native.block() == 1


@pytest.mark.parametrize("rows", [ROWS, ROWS + 1, (1 << 24) - 1])
def test_whoever_says_that_all_rows_are_there_has_not_answered(rows: int) -> None:
    with Fake(0.5, ROWS) as fake:
        fake.open()
        fake.on_request(lambda: fake.progress(rows))
        error = in_time(lambda: fake.ask("C"))
        assert isinstance(error, WorkerError) and "in time" in str(error)


@pytest.mark.parametrize("sequence", [0, 2, 3, 1 << 39])
def test_progress_of_another_request_is_none(sequence: int) -> None:
    with Fake(5.0, ROWS) as fake:
        fake.open()
        answer = np.ones((ROWS, 3), np.float32)

        def work() -> None:
            fake.output[...] = np.nan
            for slot in range(shared.PROGRESS, shared.PROGRESS + shared.SLOTS):
                fake.words[slot] = sequence << 24 | 32
            fake.bell.ring()
            time.sleep(0.1)
            fake.output[...] = answer
            fake.reply(1)

        fake.on_request(work)
        assert np.array_equal(fake.ask("C"), answer)


@pytest.mark.parametrize("end", ["dies", "fails", "takes it back", "not finite"])
def test_an_accelerator_that_stops_between_rows(end: str) -> None:
    with Fake(0.5, ROWS) as fake:
        fake.open()

        def work() -> None:
            fake.output[...] = np.nan if end == "not finite" else 1.0
            fake.progress(16)
            time.sleep(0.1)
            if end == "dies":
                fake.sock.close()
            elif end == "fails":
                fake.reply(1, shared.FAILED)
            elif end == "takes it back":
                fake.progress(0)

        fake.on_request(work)
        error = in_time(lambda: fake.ask("C"))
        assert isinstance(error, IntegrityError if end == "not finite" else WorkerError), repr(error)


BROKEN = {
    "garbage": message(b"\x00\xff not JSON"),
    "no UTF-8": message(b'{"m": "\xff\xfe"}'),
    "a list": message([1, 2]),
    "a number": message(7),
    "no body": message({"t": []}),
    "body of another kind": message({"m": [1], "t": []}),
    "tensors of another kind": message({"m": {}, "t": 5}),
    "a tensor without shape": message({"m": {}, "t": [["float32"]]}),
    "a negative shape": message({"m": {}, "t": [["float32", [-1]]]}),
    "a shape of text": message({"m": {}, "t": [["float32", ["x"]]]}),
    "too many dimensions": message({"m": {}, "t": [["float32", [1] * 99]]}),
    "a tensor of 2^62 bytes": message({"m": {}, "t": [["float32", [1 << 31, 1 << 31]]]}),
    "a tensor of 8 GiB": message({"m": {}, "t": [["float32", [1 << 31]]]}),
    "an unknown type": message({"m": {}, "t": [["object", [2]]]}) + bytes(64),
    "deep nesting": message(b"[" * 100_000),
    "an infinite shape": message(b'{"m": {}, "t": [["float32", [Infinity]]]}'),
    "an oversized message": message(b"", 0xFFFFFFFF),
    "just over the limit": message(b"", wire.MAX_MESSAGE + 1),
    "an empty message": message(b""),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_message_that_cannot_be_read_is_a_worker_error(name: str) -> None:
    with Fake() as fake:
        fake.sock.sendall(BROKEN[name])
        error = in_time(lambda: fake.channel.receive(1.0))
        assert isinstance(error, WorkerError) and "accelerator" in str(error), repr(error)
    with Fake() as fake:  # and so it is in place of the answer to "open"
        fake.sock.sendall(BROKEN[name])
        assert isinstance(in_time(lambda: fake.link.open([LAYER])), WorkerError)


@pytest.mark.parametrize("part", [b"", b"\x09", message({"m": {}, "t": []})[:9],
                                  message({"m": {}, "t": [["float32", [4]]]}) + bytes(7)])  # fmt: skip
def test_a_peer_that_stops_in_the_middle(part: bytes) -> None:
    with Fake() as fake:  # falls silent
        fake.sock.sendall(part)
        began = time.monotonic()
        assert "in time" in str(in_time(lambda: fake.channel.receive(0.2)))
        assert time.monotonic() - began < 2
    with Fake() as fake:  # goes away
        fake.sock.sendall(part)
        fake.sock.close()
        assert isinstance(in_time(lambda: fake.channel.receive(5.0)), wire.Closed)


def test_a_peer_that_drips_cannot_stretch_the_deadline() -> None:
    with Fake() as fake:
        data = message({"m": {"ok": True}, "t": []})

        def drip() -> None:
            with contextlib.suppress(OSError):
                for byte in data:
                    fake.sock.send(bytes([byte]))
                    time.sleep(0.1)

        fake.in_background(drip)
        began = time.monotonic()
        assert "in time" in str(in_time(lambda: fake.channel.receive(0.5)))
        assert time.monotonic() - began < 2


CLAIM = """
import resource, socket, sys
from shadownet.wire.channel import Channel
from shadownet.wire.errors import WorkerError

resource.setrlimit(resource.RLIMIT_AS, (3 << 30, 3 << 30))  # more than any message may bring along
ours, theirs = socket.socketpair()
theirs.sendall(bytes.fromhex(sys.argv[1]))
theirs.close()
try:
    Channel(ours, "accelerator").receive(5.0)
except WorkerError:
    print("refused")
"""


@pytest.mark.parametrize("count", [1 << 29, 1 << 31])
def test_a_small_message_cannot_claim_much_memory(tmp_path: Path, count: int) -> None:
    claim = message({"m": {}, "t": [["string", [count]]]})
    process = start(["-c", CLAIM, claim.hex()], tmp_path / "tmp")
    out, err = process.communicate(timeout=60)
    assert out == "refused\n", err[-300:]


def test_a_peer_that_does_not_read_cannot_hold_the_sender(monkeypatch: pytest.MonkeyPatch) -> None:
    # A model with many layers makes a message that no socket buffer holds.
    monkeypatch.setattr(link, "OPEN_DEADLINE_S", 0.5)
    with Fake() as fake:
        assert isinstance(in_time(lambda: fake.link.open([LAYER] * 20_000)), WorkerError)


@pytest.mark.parametrize(
    "answer",
    [{}, {"ok": False}, {"ok": 1}, {"ok": "yes"}, {"error": "no"}, {"error": [1] * 999}, {"ok": True},
     {"ok": True, "precision": "fp8"}, {"ok": True, "precision": ["float32"]}],
)  # fmt: skip
def test_only_a_plain_yes_opens_the_accelerator(answer: dict[str, Any]) -> None:
    with Fake() as fake:
        fake.in_background(lambda: fake._accept(answer))
        error = in_time(lambda: fake.link.open([LAYER]))
        assert isinstance(error, WorkerError) and len(str(error)) < 1000


@pytest.mark.parametrize("answer", [{}, {"ok": False}, {"ok": 1}, {"error": "no"}, None])
def test_only_a_plain_yes_answers_a_test_of_the_arithmetic(answer: dict[str, Any] | None) -> None:
    with Fake() as fake:
        fake.open()
        extra = os.open("/dev/null", os.O_RDONLY)
        before = descriptors().count("/dev/null")
        if answer is None:
            fake.sock.shutdown(socket.SHUT_RDWR)
        else:
            Channel(fake.sock, "enclave").send(answer, fds=(extra,))
        assert isinstance(in_time(lambda: fake.link.probe(0, "layer")), WorkerError)
        assert descriptors().count("/dev/null") == before
        os.close(extra)


def test_descriptors_that_an_accelerator_sends_are_closed() -> None:
    with Fake() as fake:
        extra = [os.open("/dev/null", os.O_RDONLY) for _ in range(4)]
        before = descriptors().count("/dev/null")
        Channel(fake.sock, "enclave").send(OPENED, fds=tuple(extra))
        assert in_time(lambda: fake.link.open([LAYER])) is None
        assert descriptors().count("/dev/null") == before
        for fd in extra:
            os.close(fd)


class Interrupted(socket.socket):
    """A socket whose peer answers and ends as soon as it has the request, before the sender goes on."""

    peer: socket.socket

    def sendmsg(self, *data: Any) -> int:
        sent = super().sendmsg(*data)
        self.peer.sendall(message({"m": {"final": True}, "t": []}))
        self.peer.recv(1 << 20)
        self.peer.close()
        return sent


def test_the_last_words_of_a_peer_that_ended_are_read() -> None:
    # An enclave that refuses an answer says why and ends; that must not look like a crash.
    ours, theirs = socket.socketpair()
    sock = Interrupted(fileno=ours.detach())
    sock.peer = theirs
    channel = Channel(sock, "enclave")
    assert in_time(lambda: channel.send({"do": "invoke"})) is None
    assert channel.receive(1.0)[0] == {"final": True}
    channel.close()


LOOPS = pytest.mark.parametrize("loop", ["C", "NumPy"])


@LOOPS
def test_an_honest_fake_is_believed(loop: str) -> None:
    # Control for what follows: the fake speaks the protocol.
    with Fake() as fake:
        fake.open()
        for sequence in (1, 2, 3):
            np.copyto(fake.link.input(0), sequence)
            fake.output[...] = [1, 2, sequence]
            fake.on_request(lambda sequence=sequence: fake.reply(sequence))
            answer = fake.ask(loop)
            np.testing.assert_array_equal(answer, [[1, 2, sequence]])
        # What was read is the enclave's own copy.
        fake.output[...] = 77
        np.testing.assert_array_equal(answer, [[1, 2, 3]])


ANSWERS: dict[str, tuple[Callable[[Fake], Any], str]] = {
    "an answer to the future": (lambda fake: fake.reply(2), "protocol"),
    "an answer to something else": (lambda fake: fake.reply(1 << 63), "protocol"),
    "a failure": (lambda fake: fake.reply(1, shared.FAILED), "failed"),
    "an unknown status": (lambda fake: fake.reply(1, 1 << 40), "failed"),
    "no answer": (lambda fake: None, "in time"),
    "the last answer again": (lambda fake: fake.reply(0), "in time"),
    "a changed question": (lambda fake: fake.words.__setitem__(shared._REQUEST, 9), "in time"),
    "a hang-up": (lambda fake: fake.sock.shutdown(socket.SHUT_RDWR), "died"),
    "a word on the socket": (lambda fake: fake.sock.send(b"x"), "died"),
    "a flood of rings": (lambda fake: [fake.bell.ring() for _ in range(5000)], "in time"),
}


@LOOPS
@pytest.mark.parametrize("name", ANSWERS)
def test_a_wrong_answer_is_a_worker_error_in_time(name: str, loop: str) -> None:
    act, words = ANSWERS[name]
    with Fake() as fake:
        fake.open()
        fake.on_request(lambda: act(fake))
        error = in_time(lambda: fake.ask(loop))
        assert isinstance(error, WorkerError) and words in str(error), repr(error)


@LOOPS
def test_a_blocked_doorbell_cannot_hold_the_enclave(loop: str) -> None:
    # A peer that never empties its pipe: the pipe fills, and ringing must not wait for room in it.
    with Fake() as fake:
        fake.open()
        for _ in range(70_000):
            fake.link._caller._bell.ring()
        assert isinstance(in_time(lambda: fake.ask(loop)), WorkerError)


@LOOPS
def test_values_that_are_not_finite_are_found_and_large_ones_are_not_accused(loop: str) -> None:
    for values in ([1, 2, np.nan], [np.inf, 0, 0], [np.inf, -np.inf, 1], [-np.inf, 3e38, 3e38]):
        with Fake() as fake:
            fake.open()
            fake.output[...] = values
            fake.on_request(lambda fake=fake: fake.reply(1))
            with pytest.raises(IntegrityError, match="not finite"):
                fake.ask(loop)
    with Fake() as fake:
        fake.open()
        fake.output[...] = 3e38  # the sum overflows, the values do not
        fake.on_request(lambda: fake.reply(1))
        np.testing.assert_array_equal(fake.ask(loop), np.full((1, 3), 3e38, np.float32))


# Shared memory


def test_an_arena_cannot_be_resized_by_the_other_side() -> None:
    arena = Arena.create(1000, "test")
    for size in (0, 4096, arena.size + 4096):
        with pytest.raises(OSError):
            os.ftruncate(arena.fd, size)
    other = Arena.attach(os.dup(arena.fd))
    other.array(0, (4,), np.float32)[...] = 7
    assert arena.array(0, (4,), np.float32).tolist() == [7] * 4
    for offset in (arena.size, arena.size - shared.RECORD - 8, -8192):
        with pytest.raises((ValueError, TypeError)):
            arena.array(offset, (4,), np.float32)
    other.close()
    arena.close()
    arena.close()


def _memfd(size: int, seal: bool) -> int:
    fd = os.memfd_create("test", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    os.ftruncate(fd, size)
    if seal:
        import fcntl

        fcntl.fcntl(fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK)
    return fd


@pytest.mark.parametrize("offered", ["unsealed", "short", "empty", "a pipe", "a file", "an eventfd"])
def test_memory_that_is_no_arena_is_refused(tmp_path: Path, offered: str) -> None:
    with nothing_left():
        ends: list[int] = []
        if offered == "a pipe":
            fd, *ends = os.pipe()
        elif offered == "a file":
            (tmp_path / "file").write_bytes(bytes(8192))
            fd = os.open(tmp_path / "file", os.O_RDWR)
        elif offered == "an eventfd":
            fd = os.eventfd(0)
        else:
            fd = _memfd({"unsealed": 8192, "short": 100, "empty": 0}[offered], offered != "unsealed")
        with pytest.raises(WorkerError):
            Arena.attach(fd)
        with contextlib.suppress(OSError):  # it may have been closed where it was refused
            os.close(fd)
        for end_ in ends:
            os.close(end_)
