"""The test of the accelerator's precision with one row of input at a time, and weights a few filters at a time."""

from __future__ import annotations

import math
import os
from typing import Any

import numpy as np

from enclave.bounded.bands import Frame, Weights
from enclave.bounded.rows import Rows
from enclave.link import Accelerator
from enclave.precision import FILTERS, Probe
from enclave.rng import Rng
from shadownet.wire.precision import PRECISIONS

Array = np.ndarray[Any, Any]


class StreamedProbe(Probe):
    """A :class:`Probe` of a layer that is sent as ``images`` images of a frame."""

    def __init__(self, weights: Weights, frame: Frame, images: int, exact: bool, rng: Rng, limit: int) -> None:
        """``limit``: bytes of weights at a time. Raises ``BundleError`` for weights outside the public model."""
        self._frame, self._images = frame, images
        self._choose(weights.filters, exact, rng)
        chosen = np.empty((*weights.public.kernel, weights.depth, len(self._slots)), np.float32)
        for filters, _, taps in weights.pieces(limit):
            for place, slot in enumerate(self._slots):
                if filters.start <= slot < filters.stop:
                    chosen[..., place] = taps[..., slot - filters.start]
        self._settle(weights.public, chosen)

    def run(self, link: Accelerator, number: int, name: str) -> float:
        """Have the layer run on random numbers; returns as :meth:`Probe.excess`. Raises ``WorkerError``."""
        height = self._frame.source[1]
        seed, shared = os.urandom(32), link.input(number).reshape(self._images, *self._frame.source[1:])
        for image in range(self._images):
            rows = self._rows(seed, image)
            for at in range(height):
                shared[image, at : at + 1] = rows.window(at, at + 1)
        link.probe(number, name)
        answer = link.output(number).reshape(self._images, *self._frame.target[1:3], -1)
        positions = np.sort(self.positions(math.prod(answer.shape[:-1])))
        images, y, x = np.unravel_index(positions, answer.shape[:-1])
        worst, at, rows = 0.0, -1, self._rows(seed, 0)
        for which, row in sorted(set(zip(images.tolist(), y.tolist(), strict=True))):
            if which != at:
                at, rows = which, self._rows(seed, which)
            sent = rows.window(*self._frame.reach(row, row + 1))[None]
            geometry = self._frame.geometry(row, row + 1, 1, answer.shape[-1])
            columns = x[(images == which) & (y == row)]
            precision = PRECISIONS[link.precision]
            worst = max(worst, self.excess_at(columns, geometry, sent, answer[which, row], precision))
        return worst

    def _rows(self, seed: bytes, image: int) -> Rows:
        shape = self._frame.source[2:]
        return Rows(shape, np.float32, lambda rng: self.input(shape, rng), seed, image)

    @staticmethod
    def making(weights: Weights, limit: int) -> int:
        """Bytes that making it takes, with ``limit`` bytes of weights at a time."""
        kernel, public = math.prod(weights.public.kernel), weights.public
        few = min(FILTERS, weights.filters)
        return 2 * max(limit, weights.least) + 8 * few * kernel * (3 * weights.depth + public.groups * weights.depth)

    @staticmethod
    def running(weights: Weights, frame: Frame, images: int) -> int:
        """Bytes that running it takes, with what it holds."""
        row, positions = math.prod(frame.source[2:]), images * math.prod(frame.target[:3])
        held = (
            8 * min(FILTERS, weights.filters) * math.prod(weights.public.kernel) * weights.depth * weights.public.groups
        )
        return (
            held
            + 24 * row
            + 12 * frame.widest(1) * row
            + 24 * positions
            + 64 * 16 * weights.depth * weights.public.groups
        )
