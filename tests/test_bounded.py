"""The enclave in little memory: bands, streamed weights, storage in strange hands, and a budget that is kept."""

from __future__ import annotations

import contextlib
import math
import tracemalloc
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from boundary_helpers import Lab, accelerator_of, the_lab
from build import Model, litert, parted
from layers import FORMS, Form, public_model
from seeded import SeededRng

import shadownet
from enclave import keys
from enclave.bounded.bands import Frame, Weights, linear
from enclave.bounded.checks import StreamedChecker
from enclave.bounded.executor import BoundedExecutor
from enclave.bounded.meter import Meter
from enclave.bounded.plan import OVERHEAD
from enclave.bounded.storage import Paged, Sealed
from enclave.integrity import Checker, Public
from enclave.trace import Trace
from shadownet.lower import weight_parts

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
        yield BoundedExecutor(bundle, header, sealed, link, meter, budget, limit=lambda _: None, **settings)


def photograph(lab: Lab) -> Path:
    """A network whose tensors are much larger than its objects, with a residual, stride and a segment."""
    path = lab.root / "photograph.tflite"
    if not path.exists():
        net = Model(seed=22).net()
        x = net.conv(net.input(1, 64, 64, 3), 16, stride=2, activation="RELU")
        y = net.conv(net.depthwise(x, activation="RELU6"), 16, kernel=1)
        net.output(net.dense(net.mean(net.conv(net.binary("ADD", x, y), 32, activation="RELU")), 10))
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
        shadownet.convert(model, target, key=lab.key, **options)
    return model, target


def example(model: Path) -> Array:
    if "int8" in model.name:
        return np.random.default_rng(1).integers(-128, 128, (1, 8, 8, 1)).astype(np.int8)
    return np.random.default_rng(1).uniform(-1, 1, (1, 64, 64, 3)).astype(np.float32)


def once(executor: BoundedExecutor, x: Array) -> Array:
    """One inference; outputs count as long as they are held."""
    return executor.invoke_many([[x.copy()]])[0][0].copy()


@pytest.mark.parametrize("kind", [*KINDS, "integer"])
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
            np.testing.assert_allclose(result, expected, atol=0.03 if kind in ("exact", "delta") else 1e-3)


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
