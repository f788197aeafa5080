"""What the tests of the boundary, the processes and the command line share: bundles, processes, a scanner.

A module that imports ``the_lab`` has the fixture ``lab``.
"""

from __future__ import annotations

import contextlib
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from build import Model

import shadownet
from enclave import container, keys, sealing
from enclave.executor import Executor
from enclave.link import Accelerator
from enclave.program import Program
from enclave.trace import Trace
from shadownet.graph import load
from shadownet.wire.channel import Channel
from shadownet.workers import environment

ROOT = Path(__file__).resolve().parent.parent
DIGITS = ROOT / "models" / "digits"
PATIENCE_S = 15.0  # how long a thing that takes milliseconds may take on a busy machine


# Models and bundles


def planted() -> bytes:
    """A small network with every kind of layer; its random constants are what the canary test looks for."""
    model = Model(seed=20)
    net = model.net()
    x = net.conv(net.input(1, 8, 8, 4), 16, activation="RELU")
    x = net.conv(net.depthwise(x, activation="RELU6"), 24, kernel=1, activation="RELU")
    net.output(net.dense(net.dense(net.mean(x), 16, activation="RELU"), 12))
    return model.content()


def pixels() -> bytes:
    """Two convolutions and nothing else: it runs at any height and width."""
    model = Model(seed=21)
    net = model.net()
    net.output(net.conv(net.conv(net.input(1, 8, 8, 4), 8, activation="RELU"), 6))
    return model.content()


class Lab:
    """A device key, models, and one bundle of each, made when first asked for."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.key = root / "device.key"
        keys.create(self.key)
        self._bundles: dict[tuple[str, ...], Path] = {}

    def model(self, name: str) -> Path:
        """A model of models/digits, or one of the builders above."""
        if name.startswith("digits"):
            return DIGITS / f"{name}.tflite"
        path = self.root / f"{name}.tflite"
        if not path.exists():
            path.write_bytes({"planted": planted, "pixels": pixels}[name]())
        return path

    def bundle(self, name: str, scheme: str = "shadownet:paper", **options: str) -> Path:
        """The bundle of a model. Tests share it and must not change it."""
        made = (name, scheme.partition(":")[2], *options.values())
        if made not in self._bundles:
            target = self.root / f"{'-'.join(made)}.shadow"
            shadownet.convert(self.model(name), target, scheme=scheme, key=self.key, **options)
            self._bundles[made] = target
        return self._bundles[made]

    def open(self, name: str, **options: Any) -> shadownet.Interpreter:
        """An interpreter on the bundle of a model, not yet allocated."""
        return shadownet.Interpreter(self.bundle(name), key=self.key, **options)


@pytest.fixture(scope="session", name="lab")
def the_lab(tmp_path_factory: pytest.TempPathFactory) -> Lab:
    return Lab(tmp_path_factory.mktemp("lab"))


def digits() -> np.ndarray:
    """The held-out digits, float32 [500, 8, 8, 1]."""
    with np.load(DIGITS / "digits_test.npz") as data:
        return data["x"]


def sample(seed: int = 0) -> np.ndarray:
    """An input of the hand-made models."""
    return np.random.default_rng(seed).uniform(-1, 1, (1, 8, 8, 4)).astype(np.float32)


def infer(interpreter: shadownet.Interpreter, x: np.ndarray) -> np.ndarray:
    """One inference of a model with one input and one output."""
    interpreter.set_tensor(interpreter.get_input_details()[0]["index"], x)
    interpreter.invoke()
    return interpreter.get_tensor(interpreter.get_output_details()[0]["index"])


# Processes


def alive(pid: int) -> bool:
    """Whether a process runs; one that only waits to be reaped does not."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state not in "ZX"


def wait_for(condition: Callable[[], Any], seconds: float = PATIENCE_S) -> Any:
    """Poll until ``condition`` is true; returns its last value, whatever it is."""
    end = time.monotonic() + seconds
    while not (value := condition()) and time.monotonic() < end:
        time.sleep(0.01)
    return value


def gone(pids: list[int], seconds: float = PATIENCE_S) -> bool:
    """Whether the processes end in time."""
    return wait_for(lambda: not any(alive(pid) for pid in pids), seconds)


def marked(folder: Path) -> list[int]:
    """Living processes whose TMPDIR is ``folder``: a command and its workers, whoever their parent is now."""
    mark = f"TMPDIR={folder}\0".encode()
    found = []
    for path in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if mark in (path / "environ").read_bytes() and alive(int(path.name)):
                found.append(int(path.name))
    return found


def worker(pids: list[int], package: str) -> int:
    """The one of ``pids`` that was started as ``python -m package``; 0 if none was yet."""
    for pid in pids:
        with contextlib.suppress(OSError):
            command = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
            if package.encode() in command[1:5]:
                return pid
    return 0


def descriptors(pid: int | str = "self") -> list[str]:
    """What the open descriptors of a process are: paths, or names such as ``anon_inode:[eventfd]``."""
    found = []
    for entry in os.listdir(f"/proc/{pid}/fd"):
        with contextlib.suppress(OSError):
            found.append(re.sub(r"\d+", "N", os.readlink(f"/proc/{pid}/fd/{entry}").removesuffix(" (deleted)")))
    return sorted(found)


def start(arguments: list[Any], folder: Path, **options: Any) -> subprocess.Popen[str]:
    """Start Python in the background with TMPDIR as the mark for :func:`marked`."""
    folder.mkdir(exist_ok=True)
    env = os.environ | {"TMPDIR": str(folder)} | options.pop("env", {})
    return subprocess.Popen(
        [sys.executable, "-P", *map(str, arguments)], env=env, text=True, start_new_session=True,
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, **options,
    )  # fmt: skip


def shadow(*arguments: Any, **options: Any) -> subprocess.CompletedProcess[str]:
    """Run the command ``shadownet`` in a process of its own."""
    command = [sys.executable, "-P", "-m", "shadownet", *map(str, arguments)]
    env = os.environ | options.pop("env", {})
    return subprocess.run(command, env=env, capture_output=True, text=True, timeout=120, **options)


def end(process: subprocess.Popen[Any]) -> None:
    """Kill a process that a test started and take its remains away."""
    if process.poll() is None:
        process.kill()
    for pipe in (process.stdin, process.stdout, process.stderr):
        if pipe is not None:
            pipe.close()
    process.wait()


LAUNCHER = """
import sys
import numpy as np
import shadownet

bundle, key, source, count, record = sys.argv[1:6]
interpreter = shadownet.Interpreter(bundle, key=key, record=record or None)
interpreter.allocate_tensors()
interpreter.prepare(2)
x = np.load(source)
index = interpreter.get_input_details()[0]["index"]
print(*interpreter.session.pids, flush=True)
for done in range(int(count)):
    interpreter.set_tensor(index, x)
    interpreter.invoke()
print("done", flush=True)
sys.stdin.read()
"""


@contextlib.contextmanager
def launcher(
    lab: Lab, name: str, folder: Path, count: int, record: Path | None = None
) -> Iterator[tuple[subprocess.Popen[str], list[int]]]:
    """An app in a process of its own that runs ``count`` inferences and then waits: (process, its workers)."""
    np.save(folder / "sample.npy", sample() if name in ("planted", "pixels") else digits()[:1])
    arguments = [lab.bundle(name), lab.key, folder / "sample.npy", count, record or ""]
    process = start(["-c", LAUNCHER, *arguments], folder / "tmp")
    try:
        line = process.stdout.readline()
        assert line, process.stderr.read()
        yield process, [int(pid) for pid in line.split()]
    finally:
        end(process)


@contextlib.contextmanager
def accelerator_of(bundle: Path, *options: str) -> Iterator[tuple[Accelerator, subprocess.Popen[bytes]]]:
    """A real accelerator process for a bundle's public half, and this process's link to it."""
    ours, theirs = socket.socketpair()
    with theirs:
        process = subprocess.Popen(
            [
                *(sys.executable, "-P", "-m", "accelerator", "--enclave", str(theirs.fileno())),
                *("--model", str(bundle / sealing.ACCELERATOR), *options),
            ],
            pass_fds=[theirs.fileno()], env=environment(), stdin=subprocess.DEVNULL,
        )  # fmt: skip
    channel = Channel(ours, "accelerator")
    try:
        yield Accelerator(channel, 30.0, 0.0), process
    finally:
        channel.close()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(PATIENCE_S)
        end(process)


@contextlib.contextmanager
def enclave_here(
    bundle: Path, key: Path, record: Path, backend: str = "litert-cpu"
) -> Iterator[tuple[Executor, subprocess.Popen[bytes]]]:
    """The enclave's own code in this process, so that a test knows every mask, and a real accelerator process.

    The transcript is at ``record`` when the block has ended.
    """
    with accelerator_of(bundle, "--record", str(record), "--backend", backend) as (link, process):
        program = Program.parse(*unsealed(bundle, key), False)
        public = (bundle / sealing.ACCELERATOR).read_bytes()
        yield Executor(program, public, 1, link, 1 << 30, Trace(False)), process


def unsealed(bundle: Path, key: Path) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """The program and the secrets of a bundle: the owner may open it."""
    return container.unpack(sealing.unseal(bundle, keys.load(key))[1])


# The scanner


class Secrets:
    """Byte strings that must not be found, and where they come from."""

    WINDOW = 16
    _MIX, _BITS = np.uint64(0x9E3779B97F4A7C15), 22

    def __init__(self) -> None:
        self._needles: dict[bytes, dict[bytes, set[str]]] = {}  # by their first eight bytes
        self._texts: dict[str, str] = {}

    def __len__(self) -> int:
        return sum(map(len, self._needles.values()))

    def add(self, name: str, data: bytes) -> None:
        """Look for exactly these bytes, at least 16."""
        assert len(data) >= self.WINDOW
        self._needles.setdefault(data[:8], {}).setdefault(data, set()).add(name)

    def add_values(self, name: str, values: np.ndarray, telling: np.ndarray | None = None) -> None:
        """Look for any four neighbours in an array of floats, and for any one of them in decimal.

        ``telling``: where a value tells something; by default where it is not zero, as many are after a ReLU.
        """
        flat = np.ascontiguousarray(values).reshape(-1)
        telling = (flat != 0) if telling is None else telling.reshape(-1)
        step = max(1, self.WINDOW // flat.itemsize)
        for at in range(0, flat.size - step + 1, step):
            window = flat[at : at + step]
            if np.unique(window).size == step and telling[at : at + step].all():
                self.add(name, window.tobytes())
        for value in flat[:50]:
            if value != np.rint(value):
                self._texts[str(value)] = self._texts[repr(float(value))] = name

    def add_order(self, name: str, indices: np.ndarray) -> None:
        """Look for a whole array of small integers in the types that it may be stored in."""
        if np.unique(indices).size >= 4 and indices.size >= 8:
            for dtype in ("i8", "i4", "i2", "u1"):
                data = indices.astype(dtype).tobytes()
                if len(data) >= self.WINDOW:
                    self.add(name, data)

    def found_in(self, data: bytes | bytearray) -> set[str]:
        """Names of the secrets whose bytes occur anywhere in ``data``, at any alignment."""
        table = np.zeros(1 << self._BITS, bool)
        table[self._hash(np.frombuffer(b"".join(self._needles), "<u8"))] = True
        found = set()
        for shift in range(8):
            words = np.frombuffer(data, "<u8", max(0, len(data) - shift) // 8, shift) if len(data) >= 8 + shift else []
            for at in np.flatnonzero(table[self._hash(np.asarray(words, "<u8"))]):
                position = 8 * int(at) + shift
                for needle, names in self._needles.get(bytes(data[position : position + 8]), {}).items():
                    if data.startswith(needle, position):
                        found |= names
        return found

    def told_in(self, text: str) -> set[str]:
        """Names of the secrets of which a value stands in ``text`` as a decimal number, or the bytes in hex."""
        numbers = set(re.findall(r"-?\d+\.\d+(?:e-?\d+)?", text))
        found = {self._texts[number] for number in numbers if number in self._texts}
        lower = text.lower()
        for needles in self._needles.values():
            for needle, names in needles.items():
                if needle[:16].hex() in lower:
                    found |= names
        return found | self.found_in(text.encode(errors="surrogateescape"))

    def _hash(self, words: np.ndarray) -> np.ndarray:
        return (words * self._MIX) >> np.uint64(64 - self._BITS)


def of_owner(model: Path, bundle: Path, key: Path) -> Secrets:
    """Everything of a bundle that only owner and enclave may know before it runs: weights, sealed secrets, keys."""
    secrets = Secrets()
    graph, _ = load(model)
    for tensor in graph.subgraphs[0].tensors:
        if tensor.is_constant and tensor.dtype == "float32":
            values = tensor.values()
            secrets.add_values(f"constant {tensor.id}", values)
            if values.ndim > 1:  # in the other order as well
                secrets.add_values(f"constant {tensor.id} transposed", values.reshape(-1, values.shape[-1]).T)
    for name, blob in unsealed(bundle, key)[1].items():
        if name != "trusted":
            (secrets.add_values if blob.dtype.kind == "f" else secrets.add_order)(name, blob)
    device_key = keys.load(key)
    secrets.add("device key", device_key)
    secrets.add("device key", device_key.hex().encode())
    secrets.add("device key", device_key.hex().upper().encode())
    with open(bundle / sealing.SEALED, "rb") as file:
        secrets.add("sealing key", sealing.derive(device_key, sealing.read_header(file)[0].salt))
    return secrets


def memory_of(pid: int) -> bytes:
    """Everything readable in a process's address space. Skips the test where the system does not allow it."""
    parts = []
    try:
        with open(f"/proc/{pid}/maps") as maps, open(f"/proc/{pid}/mem", "rb", 0) as memory:
            for line in maps:
                span, access, *_ = line.split()
                low, high = (int(part, 16) for part in span.split("-"))
                if access[0] == "r":
                    with contextlib.suppress(OSError, ValueError, OverflowError):  # the kernel's own pages
                        memory.seek(low)
                        parts.append(memory.read(high - low))
    except PermissionError:
        pytest.skip("this user may not read the memory of other processes")
    return b"".join(parts)


def files_below(folder: Path) -> dict[str, bytes]:
    """The content of every file below a folder."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def stop(pid: int, sign: signal.Signals = signal.SIGKILL) -> None:
    """Signal a process of the test's own; it may be gone already."""
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, sign)
