"""What LiteRT itself says about a model: real shapes, folded constants, activation sizes, reference outputs.

The unmodified model runs in a child process (:mod:`shadownet.reference`): a hostile file that crashes LiteRT
becomes a ``ModelError`` here, and an owner's convert process stays alive.
"""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from dataclasses import dataclass
from typing import Any

import numpy as np

from shadownet.graph import Graph
from shadownet.wire import errors
from shadownet.wire.channel import Channel, Closed
from shadownet.wire.errors import ModelError
from shadownet.workers import environment

Array = np.ndarray[Any, Any]
DEADLINE_S = 1800.0


@dataclass(frozen=True)
class Shapes:
    """Of one entry: each tensor's shape after LiteRT's own inference, and which are fixed before a run."""

    shape: list[tuple[int, ...]]
    static: list[bool]


class Reference:
    """A child process that holds the unmodified model. Use as a context manager."""

    def __init__(self, model: str, graph: Graph, num_threads: int = 2) -> None:
        self._graph = graph
        ours, theirs = socket.socketpair()
        with theirs:
            self._process = subprocess.Popen(
                [
                    *(sys.executable, "-P", "-m", "shadownet.reference"),
                    *(str(theirs.fileno()), os.fspath(model), str(num_threads)),
                ],
                pass_fds=[theirs.fileno()], stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL, env=environment(),
            )  # fmt: skip
        self._channel = Channel(ours, "reference")

    def __enter__(self) -> Reference:
        return self

    def __exit__(self, *_: object) -> None:
        self._channel.close()
        self._process.kill()
        self._process.wait()

    def shapes(self, entry: int) -> Shapes:
        """Allocate an entry point and report its tensors."""
        count = len(self._graph.subgraphs[entry].tensors)
        reply, _ = self._ask({"do": "shapes", "entry": entry, "tensors": count})
        return Shapes([tuple(s) for s in reply["shape"]], list(reply["static"]))

    def observe(self, entry: int, inputs: list[Array], tensors: list[int]) -> list[float]:
        """Run with LiteRT's plain kernels, keeping every tensor; returns the root mean square of ``tensors``."""
        ids = list(self._graph.subgraphs[entry].inputs)
        reply, _ = self._ask({"do": "observe", "entry": entry, "inputs": ids, "tensors": tensors}, inputs)
        return [float(v) for v in reply["rms"]]

    def values(self, entry: int, tensors: list[int]) -> list[Array]:
        """Values of tensors after the last :meth:`observe`."""
        return self._ask({"do": "values", "entry": entry, "tensors": tensors})[1]

    def run(self, entry: int, inputs: list[Array], kernels: str = "default") -> list[Array] | None:
        """Outputs of the unmodified model; ``kernels`` is "default" or "reference". None: these do not take it."""
        graph = self._graph.subgraphs[entry]
        request = {"do": "run", "entry": entry, "kernels": kernels}
        reply, outputs = self._ask(request | {"inputs": list(graph.inputs), "outputs": list(graph.outputs)}, inputs)
        return outputs if reply["ran"] else None

    def probe(self, model: bytes, value: Array) -> Array | None:
        """Run another, one-input, one-output model once; None if LiteRT does not take it."""
        reply, values = self._ask({"do": "probe"}, [np.frombuffer(model, np.uint8), value])
        return values[0] if reply["ran"] else None

    def reset(self) -> None:
        self._ask({"do": "reset"})

    def _ask(self, request: dict[str, Any], tensors: list[Array] | None = None) -> tuple[dict[str, Any], list[Array]]:
        try:
            self._channel.send(request, tensors)
            reply, values, _ = self._channel.receive(DEADLINE_S)
        except Closed:
            raise ModelError(
                "LiteRT crashed on this model", "try it with LiteRT's own interpreter; the file may be damaged"
            ) from None
        if "error" in reply:
            raise errors.unpack(reply["error"])
        return reply, values
