"""The enclave in little memory: bands, streamed weights, storage in strange hands, and a budget that is kept."""

from __future__ import annotations

import contextlib
import math
import resource
import shutil
import tracemalloc
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from boundary_helpers import Lab, accelerator_of, digits, infer, the_lab
from build import Model, litert, parted
from layers import FORMS, Form, public_model
from seeded import SeededRng

import shadownet
from enclave import keys, sealing
from enclave.bounded.bands import Frame, Weights, linear
from enclave.bounded.checks import StreamedChecker
from enclave.bounded.executor import BoundedExecutor
from enclave.bounded.masks import push_rows
from enclave.bounded.meter import Meter
from enclave.bounded.plan import OVERHEAD
from enclave.bounded.storage import Locker, Paged, Sealed
from enclave.integrity import Checker, Public
from enclave.trace import Trace
from shadownet.lower import weight_parts
from shadownet.wire.errors import BundleError, InputError, IntegrityError

__all__ = ["the_lab"]

Array = np.ndarray[Any, Any]
M = 1 << 20


# Layers in bands


class InMemory(Paged):
    """Pages of a byte string."""

    def __init__(self, content: bytes) -> None:
        super().__init__(len(content), 4096, Meter())
        self.content = np.frombuffer(content, np.uint8)

    def _load(self, number: int, page: Array) -> None:
        page[:] = self.content[4096 * number :][: page.size]


def streamed(form: Form, whole: bool = True) -> tuple[Weights, bytes, Array, Array]:
    """A layer's weights, its model, an input of small integers, and LiteRT's answer."""
    net = Model(seed=6).net()
    x = net.input(*form.shape)
    net.output(form.op(net, x))
    (lin,) = parted(net.model.content()).linear
    content = public_model({"one": form}, whole)
    tiles = form.tiles or [(lin.groups * form.slots, 1)]
    parts = [[at, s, used] for (at, s), (used, _) in zip(weight_parts(content)[0], tiles, strict=True)]
    sent = np.random.default_rng(7).integers(-9, 10, lin.input_shape).astype(np.float32)
    public = Public.parse(lin.geometry() | {"parts": parts})
    return Weights(InMemory(content), public), content, sent, litert(content, [sent])[0]


@pytest.mark.parametrize("name", FORMS)
def test_bands_of_any_height_and_pieces_of_any_size_make_the_layer(name: str) -> None:
    weights, _, sent, answer = streamed(FORMS[name])
    frame = Frame(weights.public, sent.shape, answer.shape)
    x, expected = sent.reshape(frame.source), answer.reshape(frame.target)
    for rows in (1, 2, frame.target[1]):
        for piece in (1, 1000, M):
            for first, end in frame.bands(rows):
                start, stop = frame.reach(first, end)
                assert stop - start <= frame.widest(rows)
                band = linear(frame.geometry(first, end, len(x), weights.filters), x[:, start:stop], weights, piece)
                np.testing.assert_array_equal(band, expected[:, first:end])


@pytest.mark.parametrize("exact", [False, True])
@pytest.mark.parametrize("name", FORMS)
def test_vectors_made_in_pieces_are_those_made_at_once(name: str, exact: bool) -> None:
    weights, content, sent, answer = streamed(FORMS[name], whole=exact)
    plain = Checker(weights.public, content, exact, SeededRng(3))
    frame = Frame(weights.public, sent.shape, answer.shape)
    for piece in (1, M):
        checker = StreamedChecker(weights, exact, SeededRng(3), piece)
        np.testing.assert_allclose(checker.filters, plain.filters, rtol=0 if exact else 1e-6, atol=1e-7 * (not exact))
        if not exact:
            assert math.isclose(checker.tolerance, plain.tolerance, rel_tol=1e-9)
        x, y = sent.reshape(frame.source), answer.reshape(frame.target)
        first, end = 0, max(frame.target[1] - 1, 1)
        start, stop = frame.reach(first, end)
        geometry = frame.geometry(first, end, len(x), weights.filters)
        assert checker.holds(geometry, x[:, start:stop], y[:, first:end])
        wrong = y[:, first:end] + np.eye(1, y.shape[3], dtype=np.float32)[0]
        assert not checker.holds(geometry, x[:, start:stop], wrong)


# A whole model in this process


@contextlib.contextmanager
def bounded(bundle: Path, key: Path, budget: int = M << 10, **options: Any) -> Iterator[BoundedExecutor]:
    """The bounded enclave's code in this process, without the kernel's limit, and a real accelerator process."""
    meter = Meter()
    header, sealed = Sealed.open(bundle, keys.load(key), meter)
    settings = {"mask_memory": M << 8, "mask_input": False, "trace": Trace(False)} | options
    with accelerator_of(bundle) as (link, _):
        yield BoundedExecutor(bundle, header, sealed, link, meter, budget, baseline=0, limit=lambda _: None, **settings)


def photograph(lab: Lab) -> Path:
    """A network whose tensors are much larger than its objects, with a residual, stride and a segment."""
    path = lab.root / "photograph.tflite"
    if not path.exists():
        net = Model(seed=22).net()
        x = net.conv(net.input(1, 40, 40, 3), 16, stride=2, activation="RELU")
        y = net.conv(net.depthwise(x, activation="RELU6"), 16, kernel=1)
        net.output(net.dense(net.mean(net.conv(net.conv(net.binary("ADD", x, y), 32), 64, activation="RELU")), 10))
        path.write_bytes(net.model.content())
    return path


KINDS: dict[str, dict[str, Any]] = {
    "float": {},
    "exact": {"activations": "exact"},
    "fast": {"scheme": "shadownet:fast"},
    "mix": {"scheme": "mix"},
    "unchecked": {"integrity": "none"},
    "delta": {"scheme": "delta"},
}


def converted(kind: str, lab: Lab) -> tuple[Path, Path]:
    """(model, bundle) of one kind; made once."""
    model = lab.model("digits_cnn_int8") if kind == "integer" else photograph(lab)
    target = lab.root / f"bounded-{kind}.shadow"
    if not target.exists():
        options = dict(KINDS.get(kind, {}))
        if kind == "delta":
            options["base"] = other = lab.root / "relative.tflite"
            content = bytearray(model.read_bytes())
            ((at, _),) = weight_parts(bytes(content))[0][:1]
            near = np.frombuffer(content, np.float32, 16 * 27, at)
            near += np.float32(0.01)
            other.write_bytes(content)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(sealing, "CHUNK", 1 << 16)  # the least, so that there are several
            shadownet.convert(model, target, key=lab.key, **options)
    return model, target


def example(model: Path) -> Array:
    if "int8" in model.name:
        return np.random.default_rng(1).integers(-128, 128, (1, 8, 8, 1)).astype(np.int8)
    return np.random.default_rng(1).uniform(-1, 1, (1, 40, 40, 3)).astype(np.float32)


def once(executor: BoundedExecutor, x: Array) -> Array:
    """One inference; outputs count as long as they are held."""
    return executor.invoke_many([[x.copy()]])[0][0].copy()


@pytest.mark.parametrize(
    "kind",
    [k if k in ("float", "exact", "integer") else pytest.param(k, marks=pytest.mark.slow) for k in (*KINDS, "integer")],
)
def test_in_the_smallest_budget_a_model_computes_the_same_and_what_is_counted_is_true(kind: str, lab: Lab) -> None:
    """NumPy tells tracemalloc of every array; LiteRT's own memory is not in it."""
    model, bundle = converted(kind, lab)
    x = example(model)
    (expected,) = litert(model.read_bytes(), [x])
    with bounded(bundle, lab.key) as probe:
        smallest = probe.memory()["memory_smallest"]
    tracemalloc.start()
    try:
        with bounded(bundle, lab.key, smallest) as executor:
            executor.allocate(0, [x.shape])
            results = [once(executor, x)]
            executor.masks.prepare(2)
            results += [once(executor, x) for _ in range(2)]
            allocated, counted = tracemalloc.get_traced_memory()[1], executor.meter.peak
    finally:
        tracemalloc.stop()
    assert executor.masks.made_inline == 1 and len(executor.masks) == 0
    assert allocated <= counted <= smallest
    assert allocated > (counted - OVERHEAD) / 8, "the count is no fiction either"
    for result in results:
        if kind == "integer":
            np.testing.assert_array_equal(result, expected)
        else:
            np.testing.assert_allclose(result, expected, atol=0.03 if kind in ("exact", "delta", "mix") else 1e-3)


def test_a_larger_budget_is_used_and_kept(lab: Lab) -> None:
    model, bundle = converted("float", lab)
    x = example(model)
    tracemalloc.start()
    try:
        with bounded(bundle, lab.key, 16 * M) as executor:
            executor.allocate(0, [x.shape])
            once(executor, x)
            allocated, counted = tracemalloc.get_traced_memory()[1], executor.meter.peak
    finally:
        tracemalloc.stop()
    assert allocated <= counted <= 16 * M
    assert counted > executor.memory()["memory_smallest"]


# The worker


def limit_of(pid: int) -> int:
    soft, hard = resource.prlimit(pid, resource.RLIMIT_AS)
    assert soft == hard
    return soft


def resident(pid: int, field: str = "VmHWM") -> int:
    """Bytes that a process occupies at most (VmHWM) or now (VmRSS)."""
    (line,) = (line for line in Path(f"/proc/{pid}/status").read_text().splitlines() if line.startswith(field))
    return int(line.split()[1]) << 10


def test_the_worker_grows_by_no_more_than_its_budget(lab: Lab) -> None:
    model, bundle = converted("float", lab)
    x, budget = example(model), 6 * M
    with shadownet.Interpreter(bundle, key=lab.key, enclave_memory=budget) as it:
        pid, before = it.session.pids[1], resident(it.session.pids[1], "VmRSS")
        it.allocate_tensors()
        once_more = [infer(it, x) for _ in range(2)]
        it.prepare(2)
        once_more += [infer(it, x) for _ in range(2)]
        stats = it.session.stats()
        slack = 3 * M  # pages of libraries that are touched for the first time
        assert resident(pid) <= before + budget + stats["memory_shared"] + slack
        assert stats["memory_peak"] <= stats["memory_budget"] == budget
        assert stats["bytes_unsealed"] > 4 * 65536
        assert stats["masks_made_inline"] == 2
        assert limit_of(pid) == stats["memory_baseline"] + budget + stats["memory_shared"]
    (expected,) = litert(model.read_bytes(), [x])
    for result in once_more:
        np.testing.assert_allclose(result, expected, atol=1e-3)


def test_the_smallest_budget_is_told_and_works(lab: Lab) -> None:
    model, bundle = converted("float", lab)
    with pytest.raises(InputError, match="bytes of enclave memory") as caught:
        shadownet.Interpreter(bundle, key=lab.key, enclave_memory=1)
    told = int(str(caught.value).split()[3])
    assert f"--enclave-memory {-(-told // 1024)}K" in caught.value.hint
    with pytest.raises(InputError, match=f"needs {told} bytes"):
        shadownet.Interpreter(bundle, key=lab.key, enclave_memory=told - 1)
    with shadownet.Interpreter(bundle, key=lab.key, enclave_memory=told) as it:
        it.allocate_tensors()
        infer(it, example(model))


def test_passing_the_limit_fails(lab: Lab) -> None:
    """The kernel's limit is a real one: with less of it than the plan counts on, the inference ends, and says why."""
    model, bundle = converted("float", lab)
    with shadownet.Interpreter(bundle, key=lab.key, enclave_memory=6 * M) as it:
        it.allocate_tensors()
        pid = it.session.pids[1]
        now = int(Path(f"/proc/{pid}/statm").read_text().split()[0]) * resource.getpagesize()
        resource.prlimit(pid, resource.RLIMIT_AS, (now - M, now - M))
        with pytest.raises(InputError, match="memory"):
            infer(it, example(model))


def test_the_meter_refuses_what_passes_the_budget() -> None:
    meter = Meter()
    meter.budget = 1000
    first = meter.empty((200,), np.float32)
    view = first[10:]
    with pytest.raises(MemoryError):
        meter.empty((51,), np.float32)
    del first
    assert meter.held == 800, "a view keeps its memory"
    del view
    assert (meter.held, meter.peak) == (0, 800)
    with meter.scratch(1000), pytest.raises(MemoryError):
        meter.charge(1)


def test_shapes_are_those_of_conversion(lab: Lab) -> None:
    with lab.open("pixels", enclave_memory=16 * M) as it:
        it.resize_tensor_input(it.get_input_details()[0]["index"], (1, 9, 8, 4))
        with pytest.raises(InputError, match="shapes"):
            it.allocate_tensors()


def test_models_with_nothing_outside_run_in_what_litert_needs(lab: Lab, tmp_path: Path) -> None:
    shadownet.convert(lab.model("digits_cnn"), tmp_path / "tee.shadow", scheme="tee", key=lab.key)
    with shadownet.Interpreter(tmp_path / "tee.shadow", key=lab.key, enclave_memory=16 * M) as it:
        it.allocate_tensors()
        (expected,) = litert(lab.model("digits_cnn").read_bytes(), [digits()[:1]])
        np.testing.assert_allclose(infer(it, digits()[:1]), expected, atol=1e-6)


# Storage in strange hands


@pytest.mark.parametrize("name", ["enclave.sealed", "accelerator.tflite"])
def test_a_file_that_changes_after_it_was_opened_is_refused(name: str, lab: Lab, tmp_path: Path) -> None:
    """What is read again is authenticated again. In place, since an open file outlives its name."""
    _, bundle = converted("float", lab)
    copy = tmp_path / "copy.shadow"
    shutil.copytree(bundle, copy)
    with bounded(copy, lab.key) as executor:
        file = executor._sealed if name == "enclave.sealed" else executor._plan.layers[0].public.file
        before = [np.array(file._fetch(number)) for number in range(file.pages)]
        with open(copy / name, "r+b") as changed:
            changed.seek(-20, 2)
            byte = changed.read(1)[0]
            changed.seek(-20, 2)
            changed.write(bytes([byte ^ 1]))
        for number in range(file.pages - 1):  # the others are what they were
            np.testing.assert_array_equal(file._fetch(number), before[number])
        file._held = -1
        with pytest.raises(BundleError, match="changed"):
            file._fetch(file.pages - 1)
        assert file._held == -1
        with pytest.raises(BundleError, match="changed"):  # and it stays refused
            file._fetch(file.pages - 1)


def test_a_wrong_key_and_a_changed_byte_are_refused_at_the_start(lab: Lab, tmp_path: Path) -> None:
    _, bundle = converted("float", lab)
    other = tmp_path / "other.key"
    keys.create(other)
    messages = set()
    with pytest.raises(BundleError) as caught:
        shadownet.Interpreter(bundle, key=other, enclave_memory=16 * M)
    messages.add(str(caught.value))
    for name, where in (("enclave.sealed", -1), ("enclave.sealed", 9000), ("accelerator.tflite", 4000)):
        copy = tmp_path / f"{name}{where}"
        shutil.copytree(bundle, copy)
        data = bytearray((copy / name).read_bytes())
        data[where] ^= 1
        (copy / name).write_bytes(data)
        with pytest.raises(BundleError) as caught:
            Sealed.open(copy, keys.load(lab.key), Meter()) if name == "enclave.sealed" else bounded(
                copy, lab.key
            ).__enter__()
        messages.add(str(caught.value))
    assert len(messages) == 1


def test_what_was_put_away_comes_back_or_is_refused() -> None:
    locker, values = Locker(), np.arange(1000.0)
    for number, at in ((1, 0), (2, 9000)):
        locker.put(number, at, values + number)
    locker._file.seek(0)
    assert (values + 1).tobytes()[:64] not in locker._file.read()
    out = np.empty(1000)
    locker.take(2, 9000, out)
    np.testing.assert_array_equal(out, values + 2)
    for number, at in ((1, 9000), (2, 0), (3, 0)):  # mixed up, or of a set that this place no longer holds
        with pytest.raises(IntegrityError, match="changed"):
            locker.take(number, at, out)
        assert not out.any(), "nothing of it is left"
    locker._file.seek(100)
    locker._file.write(b"?")
    with pytest.raises(IntegrityError):
        locker.take(1, 0, out)
    locker._file.truncate(50)
    with pytest.raises(IntegrityError):
        locker.take(2, 9000, out)
    with pytest.raises(IntegrityError):
        Locker().take(1, 0, out)


def test_masks_that_came_back_changed_end_the_inference(lab: Lab) -> None:
    model, bundle = converted("float", lab)
    with bounded(bundle, lab.key) as executor:
        executor.allocate(0, [example(model).shape])
        executor.masks.prepare(2)
        file = executor.masks._locker._file
        first = file.seek(0) or file.read(executor.masks._size)
        file.seek(executor.masks._size)
        file.write(first)  # the first set once more, in the second one's place
        once(executor, example(model))
        with pytest.raises(IntegrityError, match="masks"):
            once(executor, example(model))


# Masks


def test_windows_of_a_push_mask_overlap_and_repeat_and_differ_by_seed_layer_and_image(lab: Lab) -> None:
    _, bundle = converted("exact", lab)
    with bounded(bundle, lab.key) as executor:
        known = next(k for k in executor._plan.layers if k.masked and k.frame.source[1] > 8)
        layer, height = executor._load_layer(known), known.frame.source[1]
        whole = push_rows(known, layer, 0, bytes(32)).window(0, height)
        again = push_rows(known, layer, 0, bytes(32))
        for start, stop in ((0, 3), (1, 5), (2, 5), (7, 8), (8, height), (height, height)):
            np.testing.assert_array_equal(again.window(start, stop), whole[start:stop])
        other = replace(known, number=known.number + 1)
        for masks in ((known, layer, 1, bytes(32)), (other, layer, 0, bytes(32)), (known, layer, 0, b"1" * 32)):
            assert (push_rows(*masks).window(0, height) == whole).mean() < 0.01


def test_no_mask_serves_twice(lab: Lab, tmp_path: Path) -> None:
    """The same input four times, two of them with prepared masks: what crosses is different each time."""
    model, bundle = converted("float", lab)
    with shadownet.Interpreter(
        bundle, key=lab.key, enclave_memory=8 * M, record=str(tmp_path / "transcript.npz"), mask_input=True
    ) as it:
        it.allocate_tensors()
        infer(it, example(model))
        it.prepare(2)
        for _ in range(3):
            infer(it, example(model))
        layers = len(it.session.manifest["layers"])
    with np.load(tmp_path / "transcript.npz") as transcript:
        sent = [transcript[name] for name in sorted(transcript) if name.endswith(".x")]
    assert len(sent) == 4 * layers
    for layer in range(layers):
        runs = np.stack(sent[layer::layers]).reshape(4, -1)
        for a in range(4):
            for b in range(a):
                assert (runs[a] == runs[b]).mean() < 0.01


@pytest.mark.slow
@pytest.mark.parametrize(("name", "budget"), [("mobilenet_v1", 14 * M), ("resnet50", 32 * M)])
def test_networks_of_the_zoo_run_in_the_memory_of_a_trusted_application(
    name: str, budget: int, lab: Lab, tmp_path: Path
) -> None:
    pytest.importorskip("tensorflow", reason="the zoo needs TensorFlow")
    from models.__main__ import convert

    model, bundle = tmp_path / f"{name}.tflite", tmp_path / f"{name}.shadow"
    model.write_bytes(convert(name, quantize=False))
    shadownet.convert(model, bundle, key=lab.key)
    x = np.random.default_rng(2).uniform(-1, 1, (1, 224, 224, 3)).astype(np.float32)
    (expected,) = litert(model.read_bytes(), [x])
    with shadownet.Interpreter(bundle, key=lab.key, enclave_memory=budget) as it:
        it.allocate_tensors()
        result, stats, pid = infer(it, x), it.session.stats(), it.session.pids[1]
        assert stats["memory_peak"] <= stats["memory_budget"] == budget
        assert limit_of(pid) == stats["memory_baseline"] + budget + stats["memory_shared"]
    np.testing.assert_allclose(result, expected, atol=1e-3 * np.abs(expected).max())
