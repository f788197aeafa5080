"""Gets from a bundle what a report of it needs: the same JSON that the other verbs print."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from shadownet.analysis import Reference
from shadownet.graph import load
from shadownet.inputs import random_inputs, split_batch
from shadownet.interface import interface_spec
from shadownet.outline import outline
from shadownet.partition import Partition, partition
from shadownet.progress import note, track
from shadownet.session import Session
from shadownet.wire.errors import InputError, WorkerError
from shadownet.wire.manifest import read_manifest
from shadownet.wire.paths import resolve_key

Array = np.ndarray[Any, Any]
Json = dict[str, Any]

WARM_UP = 3
ROUNDS = 30


@dataclass(frozen=True)
class Request:
    """A bundle, and what its owner adds: the original ``model``, a public ``base``, samples and labels in ``data``."""

    bundle: Path
    model: str | None = None
    base: str | None = None
    data: str | None = None
    key: str | None = None


def collect(request: Request) -> list[Json]:
    """Everything about one bundle, in the order of the page. Raises what the verbs raise.

    Without the original model: the public half and one traced inference. With it: the graph, the attacks, each layer's
    rounding, latency beside the unprotected model and the one all in the enclave, and with ``data`` accuracy.
    """
    manifest = read_manifest(request.bundle)
    sizes = {f.name: f.stat().st_size for f in sorted(request.bundle.iterdir()) if f.is_file()}
    found: list[Json] = [{"manifest": manifest, "sizes": sizes}]
    note("report: one traced inference")
    found.append(_trace(request))
    # From here on the manifest can be relied on: the enclave has opened the bundle, and the sealed half has its hash.
    if request.model is None:
        note("report: --model adds the graph, the attacks, latency and accuracy")
        return found
    with _original(request.model, manifest) as (reference, parts):
        entries = [{"subgraph": entry, "steps": outline(part)} for entry, part in parts.items()]
        found.append({"model": request.model, "entries": entries})
        if manifest["layers"]:
            found += _attacked(request, reference, parts[0])
        if request.data:
            note("report: accuracy")
            found.append(_accuracy(request, reference, parts[0]))
    note("report: latency, beside the unprotected model and the one all in the enclave")
    found += _latency(request)
    return found


@contextmanager
def _original(model: str, manifest: Json) -> Iterator[tuple[Reference, dict[int, Partition]]]:
    """The unmodified model and its entries, partitioned as the bundle is."""
    graph, _ = load(model)
    out = {int(layer["id"]) for layer in manifest["layers"]}
    with Reference(model, graph) as reference:
        yield reference, {e: partition(graph, e, reference.shapes(e), out or "none") for e in graph.entry_points()}


def _sample(part: Partition) -> list[Array]:
    return random_inputs([interface_spec(part, t) for t in part.graph.inputs], 0)


def _trace(request: Request) -> Json:
    """The timeline of a few inferences, all with prepared masks; the last one is shown."""
    session = Session(request.bundle, resolve_key(request.key), trace=True)
    try:
        specs = session.entries[0][0]
        session.allocate(0, [spec.shape for spec in specs])
        session.prepare(WARM_UP + 1)
        inputs = random_inputs(specs, 0)
        for _ in range(WARM_UP + 1):
            session.invoke(inputs)
        return session.timeline()
    finally:
        session.close()


def _attacked(request: Request, reference: Reference, part: Partition) -> list[Json]:
    """Scores of the attacks on weights, and the rounding of each layer on one recorded inference."""
    from shadownet.attacks import bench, lab, registry
    from shadownet.report import rounding

    assert request.model is not None
    view = bench.open_view(request.bundle, request.base)
    truth = bench.open_truth(request.bundle, request.model, request.key)
    outcomes = bench.weigh(view, truth, registry.select(None))
    total = sum(layer.filters for layer in view.layers)
    attack = {
        "bundle": str(request.bundle), "scheme": view.scheme, "layers": len(view.layers), "filters": total,
        "lost": bench.lost(outcomes, total), "attacks": [o.to_json() for o in outcomes], "stolen": None,
    }  # fmt: skip
    if len(part.graph.inputs) != 1:
        return [attack]
    sample = _sample(part)
    crossed = {c.layer: c for c in lab.record(request.bundle, sample, request.key)}
    tensors = {lin.op.id: lin.input for lin in part.linear}
    known = list(tensors.values())
    reference.observe(0, sample, known)
    values = dict(zip(known, reference.values(0, known), strict=True))
    errors = {
        layer.name: rounding.error(layer, true, crossed[layer.name], values.get(tensors.get(layer.op_id, -1)))
        for layer, true in track(list(zip(view.layers, truth, strict=True)), "rounding")
        if layer.name in crossed
    }
    return [attack, {"rounding": {name: error for name, error in errors.items() if error is not None}}]


def _accuracy(request: Request, reference: Reference, part: Partition) -> Json:
    """Top classes of both models on labelled samples: ``x`` and ``y`` of an ``.npz``."""
    assert request.data is not None and request.model is not None
    x, y = _labelled(request.data)
    samples = split_batch([x], [interface_spec(part, t) for t in part.graph.inputs])
    if len(part.graph.outputs) != 1:
        raise InputError("accuracy needs a model with one output, of class scores")
    right, worst, size = np.zeros(2, int), 0.0, 0.0
    session = Session(request.bundle, resolve_key(request.key))
    try:
        session.allocate(0, [value.shape for value in samples[0]])
        for sample, label in track(list(zip(samples, y, strict=True)), "accuracy"):
            reference.reset()
            session.reset()
            plain = reference.run(0, sample)
            answers = [np.asarray(a).ravel().astype(np.float64) for a in ((plain or [])[0], session.invoke(sample)[0])]
            right += [int(a.argmax()) == int(label) for a in answers]
            worst = max(worst, float(np.abs(answers[0] - answers[1]).max()))
            size = max(size, float(np.abs(answers[0]).max()))
    finally:
        session.close()
    return {
        "accuracy": {"unprotected": right[0] / len(y), "protected": right[1] / len(y)}, "samples": len(y),
        "model": Path(request.model).stem, "largest_difference": worst / size if size else worst,
    }  # fmt: skip


def _labelled(path: str) -> tuple[Array, Array]:
    """Held-out samples and labels of an ``.npz`` as ``attack --data`` takes it: x_test and y_test, else x and y."""
    try:
        with np.load(path, allow_pickle=False) as arrays:
            end = "_test" if "x_test" in arrays.files else ""
            x, y = arrays[f"x{end}"], arrays[f"y{end}"].ravel()
    except (OSError, ValueError, EOFError, KeyError, AttributeError):
        raise InputError(f"cannot read {path}", "--data takes an .npz with arrays x and y") from None
    if len(x) != len(y) or not len(x):
        raise InputError(f"{path} holds no samples, or not as many labels as samples")
    return x, y


def _latency(request: Request) -> list[Json]:
    """``bench`` for this very bundle; says so and gives nothing where it cannot be measured."""
    from shadownet.bench import Setting, bench

    assert request.model is not None
    setting = Setting(Path(request.model), [], [], 1, ROUNDS, key=request.key, bundles=(request.bundle,))
    try:
        return [bench(setting)]
    except WorkerError as error:  # something else ran on this machine
        note(f"report: latency was not measured: {error}")
        return []
