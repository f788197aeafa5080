"""One suite over all backends: every form of layer, other shapes, threads, restarts, and nonsense.

``tflite-runtime`` and ``litert-gpu`` need more than a development environment has: ``make accelerators`` brings
it. Without it their tests are skipped and say why.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from ai_edge_litert.interpreter import Interpreter, OpResolverType
from boundary_helpers import (  # noqa: F401, the_lab is the fixture lab
    ROOT,
    Lab,
    digits,
    end,
    gone,
    infer,
    stop,
    the_lab,
    worker,
)
from build import litert
from layers import FORMS, Form, public_model, signature

import shadownet
from accelerator.backends import DELEGATING, NAMES
from enclave.link import Accelerator
from shadownet import workers
from shadownet.cli import main
from shadownet.wire.arena import pipe
from shadownet.wire.channel import Channel
from shadownet.wire.errors import IntegrityError, WorkerError

TFLITE_PYTHON = ROOT / ".venv" / "tflite-runtime" / "bin" / "python"
DRIVERS = [Path("/usr/lib/chromium"), ROOT / ".venv" / "swiftshader" / "usr" / "lib" / "chromium"]
SLOW = ["litert-python", "tflite-runtime", "litert-gpu"]
BACKENDS = ["litert-cpu", "numpy", *(pytest.param(name, marks=pytest.mark.slow) for name in SLOW)]
TOLERANCE = 2e-5  # of the largest value; float32 sums in any order


def _settings(backend: str) -> dict[str, str]:
    """Environment variables that the backend needs here."""
    if backend == "tflite-runtime" and TFLITE_PYTHON.exists():
        return {workers.TFLITE_PYTHON: str(TFLITE_PYTHON)}
    found = [folder for folder in DRIVERS if (folder / "vk_swiftshader_icd.json").exists()]
    if backend == "litert-gpu" and found and not {"VK_ICD_FILENAMES", "VK_DRIVER_FILES"} & set(os.environ):
        loader = [str(p.parent) for p in (ROOT / ".venv" / "swiftshader").rglob("libvulkan.so.1")]
        path = {"LD_LIBRARY_PATH": loader[0]} if loader else {}
        return {"VK_ICD_FILENAMES": str(found[0] / "vk_swiftshader_icd.json"), **path}
    return {}


@pytest.fixture(scope="module", params=BACKENDS)
def backend(request: pytest.FixtureRequest) -> Iterator[str]:
    """The name of a backend that runs on this machine; workers started meanwhile find what it needs."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in _settings(request.param).items():
            patch.setenv(name, value)
        command = [*workers.command("accelerator.survey", request.param), request.param]
        done = subprocess.run(command, env=workers.environment(), capture_output=True, timeout=120)
        found = json.loads(done.stdout)[request.param]
        if not found["ok"]:
            pytest.skip(f"{request.param} {found['found']}: {found['hint']}")
        yield request.param


class Running:
    """An accelerator's worker that a test speaks to as the enclave does."""

    def __init__(self, name: str, model: Path, *arguments: str) -> None:
        ours, theirs = socket.socketpair()
        read, write = pipe()
        command = [*workers.command("accelerator", name), "--enclave", str(theirs.fileno()), "--model", str(model)]
        with theirs:
            self.process = subprocess.Popen(
                [*command, "--backend", name, "--notes", str(write), *arguments], pass_fds=[theirs.fileno(), write],
                env=workers.environment(), stdin=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
            )  # fmt: skip
        os.close(write)
        self.channel, self._notes = Channel(ours, "accelerator"), read
        self.link = Accelerator(self.channel, 30.0, 0.0)

    def open(self, shapes: dict[str, tuple[tuple[int, ...], tuple[int, ...]]], lanes: int = 1) -> None:
        self.names = list(shapes)
        self.link.open([{"signature": n, "input": list(i), "output": list(o)} for n, (i, o) in shapes.items()], lanes)

    def __call__(self, name: str, x: np.ndarray, lane: int = 0) -> np.ndarray:
        layer = self.link.of_lane(self.names.index(name), lane)
        np.copyto(self.link.input(layer), x)
        self.link.call(layer, name)
        return np.array(self.link.read(layer, name))

    def notes(self) -> str:
        with contextlib.suppress(BlockingIOError):
            return os.read(self._notes, 65536).decode()
        return ""

    def close(self) -> None:
        self.channel.close()
        os.close(self._notes)
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(15)
        end(self.process)


class Truth:
    """A public model under the plain kernels of LiteRT, which share no code with XNNPACK or a GPU."""

    def __init__(self, content: bytes) -> None:
        kernels = OpResolverType.BUILTIN_REF
        self._interpreter = Interpreter(model_content=content, experimental_op_resolver_type=kernels)
        self._raw = self._interpreter._interpreter

    def __call__(self, name: str, x: np.ndarray) -> np.ndarray:
        tensors = self._interpreter._get_full_signature_list()[name]
        graph, inp = self._raw.GetSubgraphIndexFromSignature(name), tensors["inputs"]["x"]
        self._raw.ResizeInputTensor(inp, np.array(x.shape, np.int32), False, graph)
        self._raw.AllocateTensors(graph)
        self._raw.SetTensor(inp, x, graph)
        self._raw.Invoke(graph)
        return np.array(self._raw.GetTensor(tensors["outputs"]["y"], graph))


class Bench:
    """The model of all forms, with weights that are integers or not, and its truth."""

    def __init__(self, root: Path, whole: bool) -> None:
        content = public_model(FORMS, whole)
        self.path, self.whole, self.truth = root / f"forms{whole:d}.tflite", whole, Truth(content)
        self.path.write_bytes(content)
        self.inputs = {signature(name): self.input(form.shape) for name, form in FORMS.items()}
        self.outputs = {name: self.truth(name, x) for name, x in self.inputs.items()}

    def input(self, shape: tuple[int, ...], seed: int = 0) -> np.ndarray:
        rng = np.random.default_rng(seed)
        return (rng.integers(-99, 100, shape) if self.whole else rng.normal(0, 3, shape)).astype(np.float32)

    def shapes(self) -> dict[str, tuple[tuple[int, ...], tuple[int, ...]]]:
        return {name: (x.shape, self.outputs[name].shape) for name, x in self.inputs.items()}

    def check(self, name: str, y: np.ndarray, expected: np.ndarray) -> None:
        largest = float(np.abs(expected).max())
        assert largest > 0 and np.abs(y - expected).max() <= (0 if self.whole else TOLERANCE * largest), name


@pytest.fixture(scope="module", params=["floats", "integers"])
def bench(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Bench:
    return Bench(tmp_path_factory.mktemp("forms"), request.param == "integers")


@pytest.fixture(scope="module")
def forms(tmp_path_factory: pytest.TempPathFactory) -> Bench:
    """For tests to which the numbers do not matter."""
    return Bench(tmp_path_factory.mktemp("forms"), False)


@pytest.fixture(scope="module")
def running(backend: str, bench: Bench) -> Iterator[Running]:
    made = Running(backend, bench.path)
    made.open(bench.shapes())
    yield made
    made.close()


# What it computes


@pytest.mark.parametrize("form", FORMS)
def test_every_form_of_layer(running: Running, bench: Bench, form: str) -> None:
    name = signature(form)
    bench.check(name, running(name, bench.inputs[name]), bench.outputs[name])
    x = bench.input(FORMS[form].shape, 1)  # again, with other numbers
    bench.check(name, running(name, x), bench.truth(name, x))


@pytest.mark.parametrize("threads", [1, 2])
def test_reopening_with_other_shapes_on_two_lanes(backend: str, forms: Bench, threads: int) -> None:
    """Other batches for all that may have them, another height and width for a convolution, and back."""
    made = Running(backend, forms.path, "--num_threads", str(threads))
    try:
        made.open(forms.shapes())
        larger = {signature(n): (4, *f.shape[1:]) for n, f in FORMS.items() if f.batches}
        larger["conv_3x3"] = (2, 11, 6, 4)
        inputs = forms.inputs | {name: forms.input(shape, 2) for name, shape in larger.items()}
        expected = {name: forms.truth(name, x) for name, x in inputs.items()}
        made.open({name: (x.shape, expected[name].shape) for name, x in inputs.items()}, lanes=2)
        for name, x in inputs.items():
            for lane in (0, 1):
                forms.check(name, made(name, x, lane), expected[name])
        made.open(forms.shapes())
        for name, x in forms.inputs.items():
            forms.check(name, made(name, x), forms.outputs[name])
    finally:
        made.close()


def test_two_workers_at_once(running: Running, bench: Bench, backend: str) -> None:
    other = Running(backend, bench.path)
    try:
        other.open(bench.shapes())
        for name, x in bench.inputs.items():
            bench.check(name, other(name, x), bench.outputs[name])
            bench.check(name, running(name, x), bench.outputs[name])
    finally:
        other.close()


def test_values_that_float32_cannot_hold(running: Running, bench: Bench) -> None:
    """The enclave refuses them, and the worker goes on."""
    shape = FORMS["conv 1x1"].shape
    with pytest.raises(IntegrityError, match="not finite"):
        running("conv_1x1", np.full(shape, np.inf, np.float32))
    bench.check("conv_1x1", running("conv_1x1", bench.inputs["conv_1x1"]), bench.outputs["conv_1x1"])


# Whole models, in two processes


@pytest.mark.parametrize("name", ["digits_mlp", "digits_cnn"])
def test_a_bundle_computes_what_its_model_does(lab: Lab, backend: str, name: str) -> None:
    content, x = lab.model(name).read_bytes(), digits()[:1]
    (expected,) = litert(content, [x])
    with lab.open(name, accelerator=backend) as one, lab.open(name, accelerator=backend, num_threads=2) as two:
        for interpreter in (one, two, one):
            if interpreter.session.entry is None:
                interpreter.allocate_tensors()
            np.testing.assert_allclose(infer(interpreter, x), expected, atol=1e-3)


def test_a_bundle_of_exact_integers(lab: Lab, backend: str) -> None:
    """They are right to the last unit, or the enclave's test of the arithmetic would refuse the backend."""
    path, x = lab.bundle("digits_mlp", activations="exact"), digits()[:1]
    (expected,) = litert(lab.model("digits_mlp").read_bytes(), [x])
    with shadownet.Interpreter(path, key=lab.key, accelerator=backend) as interpreter:
        interpreter.allocate_tensors()
        np.testing.assert_allclose(infer(interpreter, x), expected, atol=0.02)  # 12 bits


def test_half_precision(lab: Lab, backend: str) -> None:
    """Refused by a bundle for float32. A bundle for fp16 computes what its model does, but for a little."""
    half, x = f"{backend}-fp16", digits()[:1]
    if half not in NAMES:
        pytest.skip(f"{backend} has no half precision")
    with lab.open("digits_mlp", accelerator=half) as interpreter, pytest.raises(WorkerError, match="too coarse"):
        interpreter.allocate_tensors()
    (expected,) = litert(lab.model("digits_mlp").read_bytes(), [x])
    path = lab.bundle("digits_mlp", precision="fp16", integrity="none")
    with shadownet.Interpreter(path, key=lab.key, accelerator=half) as interpreter:
        interpreter.allocate_tensors()
        np.testing.assert_allclose(infer(interpreter, x), expected, atol=0.05)


def test_kill_and_restart(lab: Lab, backend: str) -> None:
    with lab.open("digits_mlp", accelerator=backend) as interpreter:
        interpreter.allocate_tensors()
        expected = infer(interpreter, digits()[:1])
        pids = interpreter.session.pids
        stop(worker(pids, "accelerator"))
        with pytest.raises(WorkerError):
            infer(interpreter, digits()[:1])
        assert gone(pids)
    with lab.open("digits_mlp", accelerator=backend) as interpreter:
        interpreter.allocate_tensors()
        np.testing.assert_allclose(infer(interpreter, digits()[:1]), expected, atol=1e-3)


def test_a_hostile_one_of_any_kind_is_caught(lab: Lab, backend: str) -> None:
    with lab.open("digits_mlp", accelerator=f"hostile+{backend}:flip@1") as interpreter:
        interpreter.allocate_tensors()
        with pytest.raises(IntegrityError):
            infer(interpreter, digits()[:1])
    with (
        lab.open("digits_mlp", accelerator=f"hostile+{backend}:coarse") as interpreter,
        pytest.raises(IntegrityError, match="computes in float32, and layer"),
    ):
        interpreter.allocate_tensors()


# Nonsense


@pytest.mark.parametrize(
    "nonsense",
    [
        {"signature": "nothing", "input": [1, 24], "output": [1, 12]},
        {"signature": "dense", "input": [1, 24], "output": [1, 13]},
        {"signature": "dense", "input": [1, 23], "output": [1, 12]},
        {"signature": "conv_3x3", "input": [1, 8, 8, 5], "output": [1, 8, 8, 11]},
        {"signature": "conv_stride_2_valid", "input": [1, 2, 2, 3], "output": [1, 1, 1, 6]},
        {"signature": "", "input": [], "output": []},
    ],
)
def test_layers_that_do_not_fit_are_refused_and_the_next_ones_run(
    backend: str, forms: Bench, nonsense: dict[str, Any]
) -> None:
    made = Running(backend, forms.path)
    try:
        with pytest.raises(WorkerError, match="cannot run the model: ."):
            made.link.open([nonsense])
        made.open({"dense": forms.shapes()["dense"]})
        forms.check("dense", made("dense", forms.inputs["dense"]), forms.outputs["dense"])
    finally:
        made.close()


def test_a_layer_that_does_not_exist_fails_alone(running: Running, bench: Bench) -> None:
    for layer in (len(FORMS), 10**6, 2**63):
        assert running.link._caller.call(layer, 30.0) == "failed"
    bench.check("dense", running("dense", bench.inputs["dense"]), bench.outputs["dense"])


@pytest.mark.parametrize(
    "bytes_sent",
    [
        b"",
        b"\xff" * 64,
        b"\2\0\0\0{}",
        b"\x28\0\0\0" + b'{"m": {"do": "dance"}, "t": []}'.ljust(40),
        b"\x34\0\0\0" + b'{"m": {"do": "probe", "layer": 0}, "t": []}'.ljust(52),
    ],
    ids=["nothing", "too large", "no message", "another request", "a test too early"],
)
def test_a_worker_that_is_sent_garbage_ends(backend: str, forms: Bench, bytes_sent: bytes) -> None:
    made = Running(backend, forms.path)
    try:
        made.channel.sock.sendall(bytes_sent)
        made.channel.sock.shutdown(socket.SHUT_WR)
        assert made.process.wait(30) in (0, 3)
    finally:
        made.close()


@pytest.mark.parametrize("content", [None, b"", b"no model at all", b"\x1c\0\0\0TFL3" + bytes(60)])
def test_a_file_that_is_no_model(backend: str, tmp_path: Path, content: bytes | None) -> None:
    if content is not None:
        (tmp_path / "m.tflite").write_bytes(content)
    made = Running(backend, tmp_path / "m.tflite")
    try:
        with pytest.raises(WorkerError):
            made.open({"dense": ((1, 24), (1, 12))})
        assert made.process.wait(30) != 0
    finally:
        made.close()


# Delegates

DELEGATE = r"""
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* What load_delegate expects of a vendor's library; it takes no op, and notes in a file that it was asked. */
typedef struct Delegate {
    void *data;
    int (*prepare)(void *context, struct Delegate *delegate);
    void *from, *to, *release;
    int64_t flags;
    void *builder;
} Delegate;

static char path[4096];

static int prepare(void *context, Delegate *delegate) {
    FILE *file = fopen(path, "a");
    (void)context, (void)delegate;
    if (file) fputs("prepared\n", file), fclose(file);
    return 0;
}

Delegate *tflite_plugin_create_delegate(char **keys, char **values, size_t count, void (*report)(const char *)) {
    for (size_t i = 0; i < count; i++)
        if (!strcmp(keys[i], "log")) snprintf(path, sizeof path, "%s", values[i]);
    if (!path[0]) {
        report("it wants the option log");
        return NULL;
    }
    Delegate *made = calloc(1, sizeof *made);
    made->prepare = prepare;
    return made;
}

void tflite_plugin_destroy_delegate(Delegate *delegate) { free(delegate); }
"""


@pytest.fixture(scope="module")
def delegate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    compiler = shutil.which("gcc") or shutil.which("cc")
    if compiler is None:
        pytest.skip("no C compiler to build a delegate with")
    folder = tmp_path_factory.mktemp("delegate")
    (folder / "delegate.c").write_text(DELEGATE)
    command = [compiler, "-shared", "-fPIC", "-o", folder / "libdelegate.so", folder / "delegate.c"]
    subprocess.run(command, check=True, timeout=60)
    return folder / "libdelegate.so"


def test_a_vendors_delegate_is_asked(lab: Lab, backend: str, delegate: Path, tmp_path: Path) -> None:
    if backend not in DELEGATING:
        with pytest.raises(WorkerError, match="takes no delegate"):
            lab.open("digits_mlp", accelerator=backend, delegate=str(delegate)).allocate_tensors()
        return
    np.save(tmp_path / "x.npy", digits()[:1])
    log = tmp_path / "log"
    arguments = ["run", lab.bundle("digits_mlp"), "--key", lab.key, "--input", tmp_path / "x.npy"]
    arguments += ["--accelerator", backend, "--delegate", f"{delegate}:log={log},other=1"]
    assert main([str(a) for a in arguments]) == 0
    assert "prepared" in log.read_text()


@pytest.mark.slow
@pytest.mark.parametrize(
    "text, message",
    [("nothing.so", "nothing.so cannot be loaded"), ("{}", "wants the option log"), ("{}:log", "names no delegate"),
     (":a=b", "names no delegate"), ("libc.so.6", "libc.so.6 cannot be loaded")],
)  # fmt: skip
def test_a_delegate_that_cannot_be_loaded(lab: Lab, delegate: Path, text: str, message: str) -> None:
    with (
        lab.open("digits_mlp", accelerator="litert-python", delegate=text.format(delegate)) as interpreter,
        pytest.raises(WorkerError, match=message),
    ):
        interpreter.allocate_tensors()


# What the user is told


@pytest.mark.slow
def test_without_a_driver_litert_gpu_says_what_to_install(
    lab: Lab, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("VK_ICD_FILENAMES", "VK_DRIVER_FILES"):
        monkeypatch.setenv(name, str(tmp_path / "none.json"))
    np.save(tmp_path / "x.npy", digits()[:1])
    arguments = ["run", lab.bundle("digits_mlp"), "--key", lab.key, "--input", tmp_path / "x.npy"]
    assert main([*map(str, arguments), "--accelerator", "litert-gpu"]) == 3
    message = capsys.readouterr().err
    assert all(word in message for word in ("finds no GPU", "libvulkan1", "chromium-common", "VK_ICD_FILENAMES="))


def test_layers_that_a_gpu_does_not_take_or_gets_wrong_run_on_the_cpu_and_are_named(
    backend: str, forms: Bench, running: Running
) -> None:
    if backend != "litert-gpu":
        pytest.skip("about litert-gpu only")
    assert "conv_in_groups" in running.notes()
    deep = {"dense deep": Form((1, 2, 3, 4, 8), lambda n, x: n.dense(x, 6, keep=True), 8), "dense": FORMS["dense"]}
    path = forms.path.with_name("deep.tflite")
    path.write_bytes(public_model(deep))
    made, x = Running(backend, path), forms.input((1, 2, 3, 4, 8))
    try:
        made.open({"dense_deep": (x.shape, (1, 2, 3, 4, 8)), "dense": ((1, 24), (1, 12))})
        notes = made.notes()
        assert "does not take layer dense_deep" in notes and "layer dense," not in notes
        forms.check("dense_deep", made("dense_deep", x), Truth(path.read_bytes())("dense_deep", x))
    finally:
        made.close()
