"""What crosses the boundary, and what must not: secrets, masks, imports, and what the enclave process drops."""

from __future__ import annotations

import ast
import os
import resource
import shutil
import socket
import subprocess
import sys
import sysconfig
import traceback
from pathlib import Path

import numpy as np
import pytest
from ai_edge_litert.interpreter import Interpreter as LiteRt
from ai_edge_litert.interpreter import OpResolverType
from boundary_helpers import (  # noqa: F401, the_lab is the fixture lab
    PATIENCE_S,
    ROOT,
    Lab,
    Secrets,
    descriptors,
    digits,
    enclave_here,
    end,
    files_below,
    gone,
    infer,
    launcher,
    memory_of,
    of_owner,
    sample,
    shadow,
    stop,
    the_lab,
)

import shadownet
from enclave import keys, native
from enclave.executor import Executor
from enclave.formats import Float
from enclave.link import Accelerator
from enclave.masks import MaskPool, MaskSet
from shadownet.graph import load
from shadownet.wire.channel import Channel
from shadownet.wire.errors import BundleError, Error, InputError
from shadownet.wire.manifest import read_manifest

PUBLIC = ("manifest.json", "accelerator.tflite")


# Canaries


def test_convert_and_run_leave_no_secret_in_any_file_or_output(lab: Lab, tmp_path: Path) -> None:
    model, bundle = lab.model("planted"), tmp_path / "out" / "planted.shadow"
    tmp, cwd, record = tmp_path / "tmp", tmp_path / "cwd", tmp_path / "record"
    for folder in (tmp, cwd, bundle.parent):
        folder.mkdir()
    np.save(tmp_path / "x.npy", sample())
    env = {"TMPDIR": str(tmp), "SHADOWNET_KEY": str(lab.key)}
    where = {"env": env, "cwd": cwd}
    texts = []
    for command in (
        ("convert", model, "-o", bundle),
        ("inspect", bundle),
        ("run", bundle, "--input", tmp_path / "x.npy", "--masks", 2, "--record", record, "--trace", record / "t.json"),
        ("verify", bundle, "--model", model, "--json"),
    ):
        done = shadow(*command, **where)
        assert done.returncode == 0, done.stderr
        texts.append(done.stdout + done.stderr)
    # Failures talk more than successes.
    np.save(tmp_path / "nan.npy", np.full((1, 8, 8, 4), np.nan, np.float32))
    for command in (
        ("run", bundle, "--input", tmp_path / "nan.npy"),
        ("run", bundle, "--input", tmp_path / "x.npy", "--accelerator", "hostile:nan@2"),
        ("run", bundle, "--input", tmp_path / "x.npy", "--accelerator", "hostile:die@3"),
        ("run", bundle, "--input", tmp_path / "x.npy", "--masks", 9, "--mask-memory", 10),
    ):
        done = shadow(*command, **where)
        assert done.returncode in (2, 3)
        texts.append(done.stdout + done.stderr)

    secrets = of_owner(model, bundle, lab.key)
    assert len(secrets) > 100
    for name, content in (files_below(bundle) | files_below(record)).items():
        assert not secrets.found_in(content), name
    for text in (*texts, (bundle / "manifest.json").read_text(), (record / "t.json").read_text()):
        assert not secrets.told_in(text)
    assert files_below(tmp) == {} == files_below(cwd)  # nothing temporary, and nothing where the command ran
    assert sorted(os.listdir(bundle)) == ["accelerator.tflite", "enclave.sealed", "manifest.json"]


def test_the_scanner_finds_what_a_scheme_leaves_in_the_clear(lab: Lab) -> None:
    # The authors' code leaves the last dense layer as it is; so does the variant "artifact".
    model, bundle = lab.model("planted"), lab.bundle("planted", "shadownet:artifact")
    graph, _ = load(model)
    kept = graph.subgraphs[0].ops[-1].inputs[1]
    secrets = of_owner(model, bundle, lab.key)
    found = secrets.found_in((bundle / "accelerator.tflite").read_bytes())
    assert found == {f"constant {kept}"}  # and nothing else
    # And every secret, if somebody wrote it anywhere, at any alignment, or printed it.
    everything = secrets.found_in(b"?" + model.read_bytes())
    assert {
        f"constant {t.id}" for t in graph.subgraphs[0].tensors if t.is_constant and t.dtype == "float32"
    } <= everything
    bias = graph.subgraphs[0].tensors[graph.subgraphs[0].ops[-1].inputs[2]].values()
    assert secrets.told_in(f"log: bias starts with {bias[0]}")
    assert secrets.told_in(f"log: the key is {keys.load(lab.key).hex()}") == {"device key"}


def test_neither_app_nor_accelerator_has_a_secret_in_memory(lab: Lab, tmp_path: Path) -> None:
    secrets = of_owner(lab.model("planted"), lab.bundle("planted"), lab.key)
    with launcher(lab, "planted", tmp_path, count=5) as (app, (accelerator, enclave)):
        assert app.stdout.readline() == "done\n"
        # Control: whoever has the secrets in memory is found out. The enclave has them, and only the enclave.
        inside = secrets.found_in(memory_of(enclave))
        for kind in (".slot", ".coefficient", ".order", ".bias"):
            assert any(name.endswith(kind) for name in inside), kind
        assert any(name.startswith("constant") for name in inside)
        assert not secrets.found_in(memory_of(accelerator))
        assert not secrets.found_in(memory_of(app.pid))


@pytest.mark.parametrize("loop", ["C", "NumPy"])
def test_masks_and_true_activations_never_reach_the_accelerator(
    lab: Lab, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, loop: str
) -> None:
    # The enclave's code runs here, so that its masks and activations are known to the last bit.
    if loop == "NumPy":
        monkeypatch.setattr(native, "load", lambda: None)
    elif native.load() is None:
        pytest.skip("the enclave's C loop was not built here")
    true = Secrets()
    with enclave_here(lab.bundle("planted"), lab.key, tmp_path / "t.npz") as (executor, accelerator):
        executor.allocate(0, [(1, 8, 8, 4)])
        executor.masks.prepare(1)  # the second inference makes its masks inline
        sets = _note_masks(executor)
        _note_activations(monkeypatch, executor, true)
        for seed in range(2):
            outputs = executor.invoke([sample(seed)])
            assert outputs[0].std() > 0
        memory = memory_of(accelerator.pid)
    masks, sent = Secrets(), Secrets()
    layers = [layer for layer in executor.program.layers if layer.masked]
    transcript = _transcript(tmp_path / "t.npz")
    for run, pairs in enumerate(sets):
        for layer in layers:
            push, arrived = pairs.push(layer.number), transcript[layer.name][run]
            # Where a tensor is zero, the mask itself is what is sent; nobody can tell these places from others.
            masks.add_values(f"push {layer.number}", push, arrived.reshape(push.shape) != push)
            masks.add_values(f"pop {layer.number}", pairs.pop(layer.number))
            sent.add_values(f"sent {layer.number}", arrived)
    assert len(sets) == 2 and len(masks) > 1000
    # Control: the scanner does see what crossed, where it still lies.
    assert sent.found_in(memory)
    assert not masks.found_in(memory)
    if loop == "NumPy":  # the C loop keeps most activations in registers, where nobody can note them
        assert len(true) > 300
        assert not true.found_in(memory)


def _note_masks(executor: Executor) -> list[MaskSet]:
    """A list that will hold every set of masks as it is handed out."""
    sets: list[MaskSet] = []
    take = executor.masks.take

    def taking() -> MaskSet:
        sets.append(take())
        return sets[-1]

    executor.masks.take = taking
    executor.masks.recycle = lambda used: None  # or the next set would be written over those noted
    return sets


def _note_activations(monkeypatch: pytest.MonkeyPatch, executor: Executor, true: Secrets) -> None:
    """Note every masked layer's input, and every layer's restored sum and output, as the enclave has them."""
    layers = {id(layer.format): layer for layer in executor.program.layers}
    quantise, decode = Float.quantise, Float.decode

    def quantising(self: Float, x: np.ndarray, context: None) -> np.ndarray:
        if layers[id(self)].masked:
            true.add_values(f"input of {layers[id(self)].name}", x)
        return quantise(self, x, context)

    def decoding(self: Float, y: np.ndarray, *rest: object) -> np.ndarray:
        true.add_values(f"sum of {layers[id(self)].name}", y.copy())
        result = decode(self, y, *rest)
        true.add_values(f"output of {layers[id(self)].name}", result)
        return result

    monkeypatch.setattr(Float, "quantise", quantising)
    monkeypatch.setattr(Float, "decode", decoding)


@pytest.mark.parametrize("scheme", ["shadownet:paper", "shadownet:artifact"])
def test_every_layer_but_the_first_is_sent_something_else_than_its_input(lab: Lab, tmp_path: Path, scheme: str) -> None:
    model, bundle = lab.model("digits_cnn"), lab.bundle("digits_cnn", scheme)
    with shadownet.Interpreter(bundle, key=lab.key, record=str(tmp_path / "t.npz")) as interpreter:
        interpreter.allocate_tensors()
        infer(interpreter, digits()[:1])
    true = _layer_inputs(model, bundle, digits()[:1])
    with np.load(tmp_path / "t.npz") as transcript:
        for number, layer in enumerate(read_manifest(bundle)["layers"]):
            sent = transcript[f"{number:06d}.{layer['signature']}.x"]
            if not layer["masked"]:  # control: the comparison is of the right tensors
                np.testing.assert_allclose(sent, true[number], rtol=1e-5)
                continue
            # A depthwise layer's channels are shuffled besides; sorted, they would still show an unmasked tensor.
            off = np.abs(np.sort(sent, axis=None) - np.sort(true[number], axis=None))
            assert off.mean() > 0.01, layer["signature"]
            assert np.isclose(sent, true[number], rtol=1e-4, atol=1e-6).mean() < 0.1, layer["signature"]


def _layer_inputs(model: Path, bundle: Path, x: np.ndarray) -> list[np.ndarray]:
    """The true input of each outsourced layer, computed by LiteRT on the original model."""
    graph, _ = load(model)
    plain = LiteRt(
        str(model), experimental_preserve_all_tensors=True,
        experimental_op_resolver_type=OpResolverType.BUILTIN_WITHOUT_DEFAULT_DELEGATES,
    )  # fmt: skip
    plain.allocate_tensors()
    plain.set_tensor(plain.get_input_details()[0]["index"], x)
    plain.invoke()
    ops = {op.id: op for op in graph.subgraphs[0].ops}
    return [plain.get_tensor(ops[layer["id"]].inputs[0]) for layer in read_manifest(bundle)["layers"]]


def test_exceptions_tell_no_secret(lab: Lab, tmp_path: Path) -> None:
    bundle = lab.bundle("planted")
    secrets = of_owner(lab.model("planted"), bundle, lab.key)
    other = tmp_path / "other.key"
    keys.create(other)
    told = []

    def fail(**options: object) -> None:
        with pytest.raises(Error) as caught, shadownet.Interpreter(bundle, **({"key": lab.key} | options)) as it:
            it.allocate_tensors()
            it.prepare(2)
            infer(it, sample())
            infer(it, np.full((1, 8, 8, 4), np.inf, np.float32))
        error = caught.value
        told.append(f"{error!r} {error.hint} {vars(error)}" + "".join(traceback.format_exception(error)))

    fail()
    fail(key=other)
    fail(mask_memory=1000)
    fail(enclave_memory=4096)
    for mode in ("nan@1", "inf@4", "die@2", "fail@3", "refuse"):
        fail(accelerator=f"hostile:{mode}")
    assert len(told) == 9
    secrets.add("other key", keys.load(other).hex().encode())
    for text in told:
        assert not secrets.told_in(text)


# Masks


def _transcript(path: Path) -> dict[str, list[np.ndarray]]:
    """What each layer was sent, in order."""
    sent: dict[str, list[np.ndarray]] = {}
    with np.load(path) as file:
        for name in file.files:
            _, signature, side = name.split(".")
            if side == "x":
                sent.setdefault(signature, []).append(file[name])
    return sent


def test_no_mask_is_seen_twice_in_200_inferences_with_kills_and_restarts(lab: Lab, tmp_path: Path) -> None:
    paths = []

    def session(end_with: str, runs: int, masks: int) -> None:
        paths.append(tmp_path / f"{len(paths)}.npz")
        it = lab.open("planted", record=str(paths[-1]))
        try:
            it.allocate_tensors()
            it.prepare(masks)
            for _ in range(runs):
                infer(it, sample())
            if end_with == "kill the enclave":
                stop(it.session.pids[1])
                assert gone(it.session.pids)
        finally:
            it.close()

    session("close", 40, 25)  # prepared masks, then inline ones
    session("kill the enclave", 40, 60)  # prepared masks that were not used die with it
    for number in range(2):  # killed in the middle of its work, and while it waits
        folder = tmp_path / f"app{number}"
        folder.mkdir()
        paths.append(folder / "t.npz")
        with launcher(lab, "planted", folder, 45 if number else 10**9, paths[-1]) as (app, workers):
            if number:
                assert app.stdout.readline() == "done\n"
            else:
                assert gone(workers, 0.3) is False
            stop(app.pid)
            assert gone(workers)
    session("kill the enclave", 40, 0)
    session("close", 60, 30)

    layers = read_manifest(lab.bundle("planted"))["layers"]
    runs = {layer["signature"]: [] for layer in layers}
    for path in paths:
        for signature, tensors in _transcript(path).items():
            runs[signature] += tensors[:60]  # the app that was cut short may have made thousands
    for layer in layers:
        tensors = np.stack([t.ravel() for t in runs[layer["signature"]]])
        assert len(tensors) >= 200
        if not layer["masked"]:  # control: it was the same input all the time
            assert (tensors == tensors[0]).all()
            continue
        assert len({t.tobytes() for t in tensors}) == len(tensors)
        # Nor in part: in every place nearly all values differ (two float32 in a few hundred may meet by chance).
        distinct = [np.unique(column).size for column in tensors.T[:200]]
        assert min(distinct) >= len(tensors) - 4
        # The difference of two masks is itself noise as large as a mask, never a constant.
        steps = np.diff(tensors, axis=0)
        assert (steps.std(axis=1) > 0.3 * np.median(steps.std(axis=1))).all()


def test_mask_input_masks_the_first_layer_too(lab: Lab, tmp_path: Path) -> None:
    with lab.open("planted", record=str(tmp_path / "t.npz"), mask_input=True) as it:
        it.allocate_tensors()
        outputs = [infer(it, sample()) for _ in range(5)]
    for tensors in _transcript(tmp_path / "t.npz").values():
        assert len({t.tobytes() for t in tensors}) == 5
    np.testing.assert_allclose(outputs, np.broadcast_to(outputs[0], np.shape(outputs)), atol=1e-3)


def test_a_set_is_handed_out_once() -> None:
    made = iter(range(1000))

    def make(layer: int) -> tuple[np.ndarray, np.ndarray]:
        return np.full(4, next(made), np.float32), np.full(2, layer, np.float32)

    pool = MaskPool([3, 5], make, 10_000)
    pool.prepare(4)
    assert len(pool) == 4 and pool.nbytes == 4 * 2 * 2 * 64  # pairs of cache lines
    taken = [pool.take() for _ in range(6)]
    assert len({float(masks.push(layer)[0]) for masks in taken for layer in (3, 5)}) == 12  # four sets, two inline
    assert all(masks.pop(layer)[0] == layer for masks in taken for layer in (3, 5))
    assert pool.made_inline == 2 and pool.nbytes == 0 == len(pool)
    pool.prepare(2)
    pool.discard()
    assert len(pool) == 0 == pool.nbytes
    assert pool.take().push(3)[0] == 16  # what was discarded does not come back


def test_memory_of_a_used_set_serves_the_next_with_fresh_masks() -> None:
    made = iter(range(1000))
    pool = MaskPool([0], lambda _: (np.full(4, next(made), np.float32), np.zeros(4, np.float32)), 10_000)
    first = pool.take()
    pool.recycle(first)
    pool.prepare(1)
    second, third = pool.take(), pool.take()
    assert second.memory is first.memory is not third.memory
    assert (second.push(0)[0], third.push(0)[0]) == (1, 2)


def test_a_full_pool_is_said_before_it_is_passed(lab: Lab) -> None:
    pool = MaskPool([0], lambda _: (np.zeros(4, np.float32), np.zeros(4, np.float32)), 400)
    with pytest.raises(InputError, match="do not fit in 400 bytes; 3") as caught:
        pool.prepare(4)
    assert "--mask-memory" in caught.value.hint and pool.nbytes <= 400 and len(pool) == 3
    with lab.open("planted", mask_memory=50_000) as it:
        it.allocate_tensors()
        with pytest.raises(InputError, match="do not fit"):
            it.prepare(1000)
        infer(it, sample())  # and it still runs


# Imports


def test_import_contracts_hold() -> None:
    command = [sys.executable, "-c", "from importlinter.cli import lint_imports_command as run; run()"]
    done = subprocess.run([*command, "--no-cache"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert " 0 broken" in done.stdout


def _modules_after(code: str) -> set[str]:
    """The modules that a fresh Python has loaded after ``code``."""
    done = subprocess.run(
        [sys.executable, "-P", "-c", f"{code}\nimport sys\nprint(*sys.modules)"], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return set(done.stdout.splitlines()[-1].split())


def _ours(modules: set[str]) -> set[str]:
    packages = ("shadownet", "enclave", "accelerator")
    return {m for m in modules if m.split(".")[0] in packages} - {"shadownet", "shadownet.wire"}


def test_each_worker_loads_its_own_package_and_the_wire() -> None:
    probe = "import {0}.__main__ as worker\nassert worker.main"
    for package in ("accelerator", "enclave"):
        loaded = _ours(_modules_after(probe.format(package)))
        assert f"{package}.__main__" in loaded
        strangers = {m for m in loaded if not m.startswith((f"{package}.", "shadownet.wire.")) and m != package}
        assert not strangers
    assert "Crypto" not in {m.split(".")[0] for m in _modules_after(probe.format("accelerator"))}


def test_import_shadownet_is_light() -> None:
    heavy = {"numpy", "tensorflow", "ai_edge_litert", "numba", "llvmlite", "PIL", "Crypto", "rich"}
    assert not heavy & _modules_after("import shadownet")
    assert not heavy & _modules_after("import shadownet.cli\nshadownet.cli.parser()")
    assert "numpy" in _modules_after("import shadownet\nshadownet.Interpreter")  # control


@pytest.mark.parametrize("package", ["accelerator", "enclave"])
def test_no_import_statement_anywhere_in_a_worker_names_a_stranger(package: str) -> None:
    # Also those inside functions, which a look at sys.modules misses.
    known = {package, "shadownet.wire", "numpy", "ai_edge_litert", "Crypto", "__future__"}
    known |= {"tflite_runtime", "flatbuffers"} if package == "accelerator" else set()
    for path in (ROOT / package).rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            names = []
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom):
                assert node.level == 0
                names = [f"{node.module}.{alias.name}" for alias in node.names]
            for name in names:
                top = name.split(".")[0]
                allowed = top in sys.stdlib_module_names or any(f"{name}.".startswith(f"{k}.") for k in known)
                assert allowed, f"{path.name} imports {name}"


def test_the_accelerator_runs_where_the_enclave_is_absent(lab: Lab, tmp_path: Path) -> None:
    copy = tmp_path / "normal_world"
    shutil.copytree(ROOT / "accelerator", copy / "accelerator")
    shutil.copytree(ROOT / "shadownet" / "wire", copy / "shadownet" / "wire")
    shutil.copy(ROOT / "shadownet" / "__init__.py", copy / "shadownet")
    model = shutil.copy(lab.bundle("planted") / "accelerator.tflite", tmp_path)
    # -S: without the site module, nothing leads back to the checkout.
    env = {"PYTHONPATH": f"{copy}:{sysconfig.get_path('purelib')}:{sysconfig.get_path('platlib')}"}
    python = [sys.executable, "-P", "-S"]
    absent = subprocess.run([*python, "-c", "import enclave"], env=env, capture_output=True, text=True)
    assert "No module named 'enclave'" in absent.stderr

    ours, theirs = socket.socketpair()
    with theirs:
        command = [*python, "-m", "accelerator", "--enclave", str(theirs.fileno()), "--model", str(model)]
        process = subprocess.Popen(command, env=env, cwd=tmp_path, pass_fds=[theirs.fileno()])
    channel = Channel(ours, "accelerator")
    try:
        layer = read_manifest(lab.bundle("planted"))["layers"][2]
        link = Accelerator(channel, PATIENCE_S, 0.0)
        link.open([{k: layer[k] for k in ("signature", "input", "output")}])
        x = np.random.default_rng(0).normal(size=layer["input"]).astype(np.float32)
        np.copyto(link.input(0), x)
        link.call(0, layer["signature"])
        y = link.read(0, layer["signature"])
        expected = LiteRt(str(model)).get_signature_runner(layer["signature"])(x=x)["y"]
        np.testing.assert_allclose(y, expected, rtol=1e-6, atol=1e-6)
        assert y.std() > 0
    finally:
        channel.close()
        assert process.wait(PATIENCE_S) == 0
        end(process)


# What the enclave process drops


PROBE = """
import ctypes, os
from enclave.hardening import drop_privileges
drop_privileges()
libc = ctypes.CDLL(None)
libc.getenv.restype = ctypes.c_char_p
print(libc.prctl(3, 0, 0, 0, 0), libc.prctl(39, 0, 0, 0, 0), dict(os.environ), libc.getenv(b"CANARY"))
"""


def test_hardening_takes_effect() -> None:
    command = [sys.executable, "-P", "-c", PROBE]
    done = subprocess.run(command, env=os.environ | {"CANARY": "x"}, capture_output=True, text=True)
    # Not dumpable, no new privileges, and no environment for Python or for C.
    assert done.stdout.split(maxsplit=2) == ["0", "1", "{} None\n"], done.stderr
    plain = subprocess.run([*command[:-1], PROBE.replace("\ndrop_privileges()", "")], capture_output=True, text=True)
    assert plain.stdout.startswith("1 0 ")  # control


def test_the_enclave_process_is_hardened(lab: Lab, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PRIVATE_TOKEN", "canary")
    leak = os.open(tmp_path / "of_the_app", os.O_RDWR | os.O_CREAT)
    os.set_inheritable(leak, True)
    arenas = descriptors().count("/memfd:accelerator")  # other tests play the enclave in this process
    first = lab.open("planted")
    second = lab.open("planted")  # must not inherit anything of the first
    try:
        for it in (first, second):
            it.allocate_tensors()
            infer(it, sample())
        accelerator, enclave = second.session.pids
        assert resource.prlimit(enclave, resource.RLIMIT_CORE) == (0, 0)
        assert "NoNewPrivs:\t1" in Path(f"/proc/{enclave}/status").read_text()
        for pid in (accelerator, enclave):
            names = {entry.split(b"=")[0] for entry in Path(f"/proc/{pid}/environ").read_bytes().split(b"\0") if entry}
            allowed = {b"LD_LIBRARY_PATH", b"VK_ICD_FILENAMES", b"VK_DRIVER_FILES", b"LANG", b"LC_ALL", b"TMPDIR"}
            own = {b"PYTHONPATH", b"PATH", b"MALLOC_ARENA_MAX", b"GLIBC_TUNABLES", b"OPENBLAS_NUM_THREADS"}
            assert names <= allowed | own | {b"PYTHONDONTWRITEBYTECODE"}
        null, bell, wire = "/dev/null", "pipe:[N]", "socket:[N]"
        have = set(descriptors(enclave))
        assert have <= {null, bell, wire, "/memfd:app", "/memfd:accelerator", "anon_inode:[pidfd]"}
        assert descriptors(enclave).count(wire) == 2  # the app and the accelerator
        public = str(lab.bundle("planted") / "accelerator.tflite")
        seen = {Path(name).name if name.endswith(".tflite") else name for name in descriptors(accelerator)}
        assert seen <= {null, bell, wire, "/memfd:accelerator", Path(public).name}
        assert descriptors(accelerator).count(wire) == 1
        # The app sees its own arenas only.
        assert descriptors().count("/memfd:accelerator") == arenas
    finally:
        first.close()
        second.close()
        os.close(leak)


@pytest.mark.parametrize("budget", [1, 1 << 20, 3 << 20, 6 << 20, 10 << 20, 16 << 20])
def test_too_little_enclave_memory_is_a_clean_error(lab: Lab, budget: int) -> None:
    # Where the limit starts to suffice depends on the machine: below it every budget must end in the same words.
    try:
        with lab.open("digits_cnn", enclave_memory=budget) as it:
            it.allocate_tensors()
            infer(it, digits()[:1])
            infer(it, digits()[1:2])
    except InputError as error:
        assert "memory" in str(error) and "--enclave-memory" in error.hint
    else:
        assert budget > 1 << 20


def test_the_enclave_memory_limit_is_in_force(lab: Lab) -> None:
    with lab.open("planted", enclave_memory=64 << 20, mask_memory=1 << 20) as it:
        it.allocate_tensors()
        infer(it, sample())
        soft, hard = resource.prlimit(it.session.pids[1], resource.RLIMIT_AS)
        assert soft == hard != resource.RLIM_INFINITY
        with pytest.raises(InputError, match="memory"):
            it.prepare(100_000)  # far more than fit; none is made


def test_wrong_key_and_any_changed_byte_give_one_message(lab: Lab, tmp_path: Path) -> None:
    other = tmp_path / "other.key"
    keys.create(other)
    with pytest.raises(BundleError) as caught:
        shadownet.Interpreter(lab.bundle("planted"), key=other)
    messages = {str(caught.value)}
    changes = [("enclave.sealed", -1), ("enclave.sealed", 40), ("enclave.sealed", 9000), ("accelerator.tflite", 4000)]
    for name, where in [*changes, ("manifest.json", None)]:
        copy = tmp_path / f"{name}{where}"
        shutil.copytree(lab.bundle("planted"), copy)
        data = bytearray((copy / name).read_bytes())
        if where is None:
            data += b"\n"  # the manifest says the same as before, and yet it is another file
        else:
            data[where] ^= 1
        (copy / name).write_bytes(data)
        with pytest.raises(BundleError) as caught:
            shadownet.Interpreter(copy, key=lab.key)
        messages.add(str(caught.value))
    assert len(messages) == 1
