"""What is simulated: a model, as conversion would make it, or a bundle, as it is."""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from enclave import keys
from shadownet.analysis import Reference
from shadownet.converter import Conversion, checked_options, convert
from shadownet.graph import load
from shadownet.simulator import counts
from shadownet.simulator.counts import Counts
from shadownet.simulator.work import Work, work_of
from shadownet.wire.errors import InputError
from shadownet.wire.manifest import read_manifest


@dataclass(frozen=True)
class Choice:
    """A scheme with its settings, as ``convert`` takes them; a device only where ``outsource`` is "auto"."""

    scheme: str
    ratio: float = 1.2
    integrity: str = "full"
    activations: str | None = None
    outsource: str = "all"
    device: str | None = None
    base: str | None = None


@contextlib.contextmanager
def opened(path: Path, key: Path) -> Iterator[Model | Bundle]:
    """A model or bundle; ``key`` opens the latter. Raises ``ModelError``, ``BundleError``, ``InputError``."""
    if path == Path():
        raise InputError("name a model or a bundle", "shadownet simulate MODEL.tflite --device NAME")
    if path.is_dir():
        yield Bundle(path, key)
        return
    graph, content = load(path)
    with Reference(os.fspath(path), graph) as reference:
        reference.shapes(counts.MAIN)  # what LiteRT allocates has the inputs and ranks that counting relies on
        yield Model(path, graph, content, reference)


class Model:
    """A ``.tflite`` file, with the process that runs it unprotected."""

    kind = "model"

    def __init__(self, path: Path, graph: Any, content: bytes, reference: Reference) -> None:
        self.path, self._graph, self._content, self._reference = path, graph, content, reference
        self._counted: dict[Choice, Counts] = {}

    def counts(self, choice: Choice) -> Counts:
        """Of what conversion with these settings makes."""
        if choice not in self._counted:
            self._counted[choice] = self._planned(choice)
        return self._counted[choice]

    def _planned(self, choice: Choice) -> Counts:
        options = checked_options(**vars(choice))
        conversion = Conversion(self._graph, self._content, options, self._reference)
        if conversion.doubtful():  # what a trial run keeps inside, only a trial run tells
            return self._tried(choice)
        lowered = conversion.lower()
        return counts.of_program(lowered.program, lowered.blobs, lowered.accelerator)

    def _tried(self, choice: Choice) -> Counts:
        with tempfile.TemporaryDirectory() as directory:
            bundle, key = Path(directory, "bundle"), Path(directory, "key")
            keys.create(key)
            convert(self.path, bundle, key=key, **vars(choice))
            return counts.of_bundle(bundle, key)

    def works(self) -> tuple[Work, ...]:
        """The ops of the unprotected model."""
        return work_of(self._graph.subgraphs[counts.MAIN])

    def inside(self) -> Counts:
        """Everything in the enclave."""
        return self.counts(Choice("tee", integrity="none"))


class Bundle:
    """A bundle. Its sealed half is opened first: that authenticates the manifest."""

    kind = "bundle"

    def __init__(self, path: Path, key: Path) -> None:
        self.path, self._own = path, counts.of_bundle(path, key)
        self._manifest = read_manifest(path)
        options = self._manifest["options"]
        self.choice = Choice(str(self._manifest["scheme"]), float(options["ratio"]), str(options["integrity"]))

    def counts(self, choice: Choice) -> Counts:
        """Its own, whatever the choice."""
        return self._own

    def works(self) -> tuple[Work, ...]:
        """Its layers and segments without protection; ops that were fused into a layer's kernel do not show."""
        layers = {layer["signature"]: layer for layer in self._manifest["layers"]}
        works: list[Work] = []
        for step in self._own.steps:
            layer = layers.get(step.name)
            works += step.enclave if layer is None else [_original(layer)]
        return tuple(works)

    def inside(self) -> Counts:
        """Everything in the enclave."""
        own = self._own
        whole = counts.Step("everything", enclave=self.works(), held=max(s.held + s.arena for s in own.steps))
        return Counts((whole,), 0.0, own.weights, 0, own.interface)


def _original(layer: dict[str, Any]) -> Work:
    """A layer of the manifest as it is without protection."""
    limbs, filters = layer["input_limbs"], layer["filters"]
    source, positions = int(np.prod(layer["input"])) // limbs, int(np.prod(layer["output"][:-1])) // limbs
    depth = layer["macs"] // (positions * filters)  # of a transposed convolution, about
    return Work(layer["op"], layer["macs"], source + positions * filters, 4 * filters * depth)
