"""The app's side of the arena that it shares with the enclave: inputs in, a request, outputs out."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

import numpy as np

from shadownet.wire.arena import Arena, Caller, Doorbell
from shadownet.wire.exchange import View, views
from shadownet.wire.tensors import TensorSpec

Array = np.ndarray[Any, Any]


class Desk:
    """One allocation's arena and doorbell, with room for ``room`` requests at a time."""

    def __init__(self, reply: dict[str, Any], fds: list[int], socket: int) -> None:
        """From the enclave's reply to ``allocate``; ``socket`` is that of the channel to it."""
        self.inputs, self.outputs = ([TensorSpec.from_json(s) for s in reply[side]] for side in ("inputs", "outputs"))
        self.room = int(reply["room"])
        self._bells = fds[1:]
        self._arena = Arena.attach(fds[0])
        bell = Doorbell(fds[2], fds[1], socket, 0.0)  # an inference takes too long to poll for
        self._caller: Caller | None = Caller(self._arena.words(), bell)
        sides = list(zip((self.inputs, self.outputs), reply["offsets"], strict=True))
        self._views = [
            [views(self._arena, specs, offsets, place * int(reply["apart"])) for specs, offsets in sides]
            for place in range(self.room)
        ]

    def put(self, requests: list[list[Array]]) -> list[Array]:
        """Lay requests out in the arena; returns the inputs that have no place there."""
        left = []
        for (places, _), inputs in zip(self._views, requests, strict=False):
            for place, value in zip(places, inputs, strict=True):
                if place is None:
                    left.append(value)
                else:
                    np.copyto(place, value)
        return left

    def call(self, count: int, timeout: float) -> str:
        """Have the enclave run the first ``count`` requests; returns as :meth:`Caller.call` does."""
        assert self._caller is not None
        return self._caller.call(count, timeout)

    def take(self, count: int) -> list[list[Array]]:
        """The outputs of ``count`` requests that lie in the arena."""
        return [[np.array(place) for place in self._views[request][1]] for request in range(count)]

    def merge(self, shapes: list[Any], arrived: Iterator[Array]) -> list[list[Array]]:
        """The outputs of requests with these shapes, of which some arrived through the socket."""
        return [self._merge(own, self._views[request][1], arrived) for request, own in enumerate(shapes)]

    def _merge(self, shapes: list[Any], places: list[View], arrived: Iterator[Array]) -> list[Array]:
        return [
            next(arrived) if spec.dynamic or place is None or tuple(shape) != spec.shape else np.array(place)
            for spec, place, shape in zip(self.outputs, places, shapes, strict=True)
        ]

    def close(self) -> None:
        """Let go of the arena and the doorbell."""
        self._caller, self._views = None, []
        self._arena.close()
        while self._bells:
            os.close(self._bells.pop())
