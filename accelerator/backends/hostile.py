"""A backend that misbehaves on request: ``hostile:MODE[@CALL]`` wraps litert-cpu and turns at the CALL-th layer call;
``hostile+BACKEND:MODE[@CALL]`` wraps another. It behaves while its arithmetic is tested, but for the mode ``coarse``,
which is as coarse then as it is later.

What the enclave must withstand, for the reliability tests and the attacks. CALL counts from 0 (default 0).
``hostile:offsets@FILE`` adds to all answers, from the first on, what stands in FILE: the float32 answers of all layers,
one after the other. It is read anew for every call, so that whoever writes it steers the accelerator.
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


def _flip(output: Array) -> None:
    """The highest bit of the mantissa of the largest value, which stays a whole number if it was one above 1."""
    flat = output.reshape(-1)
    flat.view(np.uint32)[np.abs(flat).argmax()] ^= np.uint32(1 << 22)


def _step(output: Array) -> None:
    """One value off by the least that the layer's numbers allow."""
    flat = output.reshape(-1)
    k = int(np.abs(flat).argmax())
    whole = bool((np.rint(flat) == flat).all())
    flat[k] += np.float32(1) if whole else np.spacing(flat[k])


def _pair(output: Array) -> None:
    """Two values of one row off by amounts that cancel in any sum of the row."""
    row = output.reshape(-1, output.shape[-1])[0]
    amount = np.float32(max(1.0, np.rint(np.abs(row).max() / 4)))
    row[0] += amount
    row[-1] -= amount


def _swap(output: Array) -> None:
    """The answers of two channels exchanged."""
    output[..., [0, -1]] = output[..., [-1, 0]]


def _rows(output: Array) -> None:
    """The answers of two positions exchanged."""
    rows = output.reshape(-1, output.shape[-1])
    rows[[0, -1]] = rows[[-1, 0]]


def _coarse(output: Array) -> None:
    """Ten bits of the mantissa, as tf32 has."""
    output.reshape(-1).view(np.uint32)[...] &= np.uint32(0xFFFFE000)


def _die(output: Array) -> None:
    os._exit(9)


def _hang(output: Array) -> None:
    while True:
        time.sleep(3600)


def _fail(output: Array) -> None:
    raise RuntimeError("refused")


MODES = {
    "nan": _nan, "inf": _infinite, "zeros": _zeros, "scale": _scale, "flip": _flip, "step": _step, "pair": _pair,
    "swap": _swap, "rows": _rows, "coarse": _coarse, "die": _die, "hang": _hang, "fail": _fail,
}  # fmt: skip
OTHERS = ("refuse", "replay", "other", "offsets")  # which need more than the answer to spoil


class Hostile:
    """Wraps a backend; from the chosen call on every answer is spoilt. ``refuse`` fails when layers are opened.

    ``replay`` answers with what the layer gave the first time, ``other`` with what the last call gave, cut or
    repeated to the right size.
    """

    def __init__(self, wrapped: Backend, request: str) -> None:
        mode, _, argument = request.partition("@")
        if mode not in MODES and mode not in OTHERS:
            raise ValueError(f"hostile knows no mode {mode!r}")
        self._wrapped, self._mode, self.precision = wrapped, mode, wrapped.precision
        self._file = argument if mode == "offsets" else ""
        if mode == "offsets" and not os.path.isfile(argument):
            raise ValueError("hostile:offsets needs a file, hostile:offsets@FILE")
        self._left = 0 if self._file else int(argument or 0)
        self._outputs: list[Array] = []
        self._offsets: list[Array] = []
        self._first: dict[int, Array] = {}
        self._last: Array | None = None

    def open(self, layers: list[tuple[str, Array, Array]]) -> list[str]:
        if self._mode == "refuse":
            raise ValueError("refused")
        notes = self._wrapped.open(layers)
        self._outputs = [output for _, _, output in layers]
        if self._mode == "offsets":
            everything = np.memmap(self._file, np.float32, "r")
            ends = np.cumsum([output.size for output in self._outputs])
            self._offsets = [part[: o.size] for part, o in zip(np.split(everything, ends), self._outputs, strict=False)]
        return notes

    def probe(self, layer: int) -> None:
        self._wrapped.run(layer)
        if self._mode == "coarse":
            _coarse(self._outputs[layer])

    def run(self, layer: int) -> None:
        self._wrapped.run(layer)
        self._left -= 1
        output = self._outputs[layer]
        if self._mode in ("replay", "other"):
            honest = output.copy()
            if self._left < 0:
                self._substitute(layer, output)
            self._first.setdefault(layer, honest)
            self._last = honest
        elif self._left < 0 and self._mode == "offsets":
            output += self._offsets[layer].reshape(output.shape)
        elif self._left < 0:
            MODES[self._mode](output)

    def _substitute(self, layer: int, output: Array) -> None:
        found = self._first.get(layer) if self._mode == "replay" else self._last
        if found is not None:
            output[...] = np.resize(found, output.shape)
