"""A backend that misbehaves on request: ``hostile:MODE[@CALL]`` wraps litert-cpu and turns at the CALL-th layer call.

What the enclave must withstand, for the reliability tests and the attacks. CALL counts from 0 (default 0).
"""

from __future__ import annotations

import os
import time
from typing import Any

import numpy as np

from accelerator.backends import Backend

Array = np.ndarray[Any, Any]


def _nan(output: Array) -> None:
    output.reshape(-1)[-1] = np.nan


def _infinite(output: Array) -> None:
    output.reshape(-1)[0] = np.inf


def _zeros(output: Array) -> None:
    output[...] = 0


def _scale(output: Array) -> None:
    output *= np.float32(1.5)


def _die(output: Array) -> None:
    os._exit(9)


def _hang(output: Array) -> None:
    while True:
        time.sleep(3600)


def _fail(output: Array) -> None:
    raise RuntimeError("refused")


MODES = {"nan": _nan, "inf": _infinite, "zeros": _zeros, "scale": _scale, "die": _die, "hang": _hang, "fail": _fail}


class Hostile:
    """Wraps a backend; from the chosen call on every answer is spoilt. ``refuse`` fails when layers are opened."""

    def __init__(self, wrapped: Backend, request: str) -> None:
        mode, _, call = request.partition("@")
        if mode not in MODES and mode != "refuse":
            raise ValueError(f"hostile knows no mode {mode!r}")
        self._wrapped, self._mode, self._left = wrapped, mode, int(call or 0)
        self._outputs: list[Array] = []

    def open(self, layers: list[tuple[str, Array, Array]]) -> None:
        if self._mode == "refuse":
            raise ValueError("refused")
        self._wrapped.open(layers)
        self._outputs = [output for _, _, output in layers]

    def run(self, layer: int) -> None:
        self._wrapped.run(layer)
        self._left -= 1
        if self._left < 0:
            MODES[self._mode](self._outputs[layer])
