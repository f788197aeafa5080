"""The harness: runs a bundle as its owner's app would, and gives adversaries what their level lets them have.

Starts the real two processes. What comes out are a transcript, an oracle of labels, or an accelerator that obeys the
adversary; strategies get these through an :class:`~shadownet.attacks.view.AdversaryView` and never import this module.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from shadownet.analysis import Reference
from shadownet.attacks.malleation import Malleable
from shadownet.attacks.tampering import Outcome
from shadownet.attacks.view import PUBLIC_MODEL, Crossing, Oracle, read_transcript
from shadownet.graph import load
from shadownet.progress import track
from shadownet.session import Session
from shadownet.wire.errors import InputError, IntegrityError, WorkerError
from shadownet.wire.manifest import read_manifest
from shadownet.wire.paths import resolve_key

Array = np.ndarray[Any, Any]
PathLike = str | os.PathLike[str]


@contextmanager
def running(bundle: PathLike, key: PathLike | None = None, **options: Any) -> Iterator[Session]:
    """A session on the bundle's first entry, at the shapes that it was converted with. ``options`` are Session's."""
    session = Session(bundle, resolve_key(key), **options)
    try:
        session.allocate(0, [spec.shape for spec in session.entries[0][0]])
        yield session
    finally:
        session.close()


def infer(session: Session, x: Array) -> Array:
    """One inference of a model with one input: its first output. Raises ``InputError`` for other models."""
    if len(session.inputs) != 1:
        raise InputError("the lab feeds models with one input")
    spec = session.inputs[0]
    return session.invoke([np.asarray(x).reshape(spec.shape)])[0]


def record(
    bundle: PathLike, inputs: Iterable[Array], key: PathLike | None = None, keep: Iterable[str] | None = None,
    **options: Any,
) -> tuple[Crossing, ...]:  # fmt: skip
    """The transcript of inferences on ``inputs``, each one sample; ``keep`` names the layers that are wanted."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "transcript.npz"
        with running(bundle, key, record=os.fspath(path), **options) as session:
            for x in track(inputs, "recording what crosses"):
                infer(session, x)
        wanted = None if keep is None else set(keep)
        return tuple(c for c in read_transcript(path) if wanted is None or c.layer in wanted)


@contextmanager
def labels(bundle: PathLike, budget: int, key: PathLike | None = None) -> Iterator[Oracle]:
    """An oracle of top classes, as the app's users have it."""
    with running(bundle, key) as session:

        def answer(inputs: Array) -> Array:
            return np.array([int(infer(session, x).argmax()) for x in inputs])

        yield Oracle(answer, budget)


@contextmanager
def obedient(bundle: PathLike, budget: int, key: PathLike | None = None) -> Iterator[Malleable]:
    """An oracle of top classes whose accelerator adds offsets to its answers, as the adversary wants them.

    The offsets go through a file that the accelerator has mapped: a query costs little more than an inference.
    """
    shapes = answers(bundle)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "offsets"
        shared = np.memmap(path, np.float32, "w+", shape=sum(int(np.prod(s)) for s in shapes.values()))
        ends = np.cumsum([int(np.prod(s)) for s in shapes.values()])
        parts = dict(zip(shapes, np.split(shared, ends[:-1]), strict=True))
        with running(bundle, key, accelerator=f"hostile:offsets@{path}") as session:

            def answer(x: Array, offsets: Mapping[str, Array]) -> int:
                for name, part in parts.items():
                    part[:] = offsets[name].ravel() if name in offsets else 0.0
                return int(infer(session, x).argmax())

            yield Malleable(answer, budget)


def features(model: PathLike, op_ids: Sequence[int], inputs: Array) -> list[Array]:
    """The inputs of ops of a model's first entry as LiteRT computes them, [N, ...] each, for ``inputs`` [N, ...]."""
    graph, _ = load(model)
    ops = {op.id: op for op in graph.subgraphs[0].ops}
    tensors = [ops[k].inputs[2 if ops[k].kind == "TRANSPOSE_CONV" else 0] for k in op_ids]
    shape = graph.subgraphs[0].tensors[graph.subgraphs[0].inputs[0]].shape
    found: list[list[Array]] = [[] for _ in op_ids]
    with Reference(os.fspath(model), graph) as reference:
        for x in inputs:
            reference.observe(0, [x.reshape(shape)], [])
            for values, value in zip(found, reference.values(0, tensors), strict=True):
                values.append(value)
    return [np.concatenate(values) for values in found]


def answers(bundle: PathLike) -> dict[str, tuple[int, ...]]:
    """The shape of each layer's answer, in the order of the bundle."""
    graph, _ = load(Path(bundle) / PUBLIC_MODEL)
    shapes = {s.key: graph.subgraphs[s.subgraph].tensors[s.outputs["y"]].shape for s in graph.signatures}
    return {str(layer["signature"]): shapes[str(layer["signature"])] for layer in read_manifest(Path(bundle))["layers"]}


def tamperer(bundle: PathLike, inputs: Array, key: PathLike | None = None) -> Callable[[str, int], Outcome]:
    """Trials for :mod:`~shadownet.attacks.tampering`: ``inputs`` [N, ...] are run in turn, the last one is judged.

    A trial spoils answers from layer call ``call`` of the last inference on.
    """
    with running(bundle, key) as session:
        honest = [infer(session, x) for x in inputs][-1]
        again = infer(session, inputs[-1])
    noise = 4 * float(np.abs(again - honest).max()) + 1e-6
    layers = len(answers(bundle))

    def trial(kind: str, call: int) -> Outcome:
        spoilt = f"hostile:{kind}@{(len(inputs) - 1) * layers + call}"
        try:
            with running(bundle, key, accelerator=spoilt) as session:
                result = [infer(session, x) for x in inputs][-1]
        except (IntegrityError, WorkerError):
            return Outcome(False, False)
        return Outcome(True, bool(np.abs(result - honest).max() > noise))

    return trial
