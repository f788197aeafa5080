"""One linear layer in bands: what is sent row by row, and what becomes of the answer band by band."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from enclave.bounded.bands import Weights, linear
from enclave.bounded.checks import StreamedChecker
from enclave.bounded.masks import Masks, MaskSet, push_rows
from enclave.bounded.plan import Bands, Known
from enclave.bounded.rows import Rows
from enclave.link import Accelerator
from enclave.program import Layer
from shadownet.wire.errors import IntegrityError

Array = np.ndarray[Any, Any]


def pop_mask(known: Known, layer: Layer, push: Array, first: int, end: int, piece: int) -> Array:
    """The true linear image, on output rows [first, end), of the push mask [rows, columns, channels] that they reach:
    float32 [end - first, columns, filters], float64 where it is exact."""
    order, residues = layer.restore.order, layer.residues
    # Restored late, the pop mask is the public rows' image of the pad, which they take as it is sent.
    natural = push if order is None or known.late else push[..., np.argsort(order)]
    frame, filters = known.frame, known.true.filters
    if residues is None:
        (sums,) = linear(frame.geometry(first, end, 1, filters), natural[None], known.true, piece)
        return layer.pop_limbs.join(sums) if layer.format.exact else sums
    digits = np.empty((known.digits, *natural.shape), np.float32)
    residues.pop.digits.cut(natural.copy(), digits)
    return residues.image(list(linear(frame.geometry(first, end, known.digits, filters), digits, known.true, piece)))


class LayerRun:
    """A layer that runs once, on input ``x`` and with a ``residual`` or None, with the masks of one inference."""

    def __init__(
        self, known: Known, layer: Layer, bands: Bands, x: Array, residual: Array | None, masks: MaskSet,
    ) -> None:  # fmt: skip
        self._known, self._layer, self._bands, self._masks = known, layer, bands, masks
        frame = self._frame = known.frame
        self._x = x.reshape(frame.source)
        self._residual = None if residual is None else residual.reshape(frame.target)
        self._scope = layer.format.scope
        self._measured = layer.format.measure(self._x) if self._scope == "tensor" else None

    def _push(self, image: int) -> Rows | None:
        return push_rows(self._known, self._layer, image, self._masks.seed) if self._known.masked else None

    def _context(self, image: int) -> Any:
        """What the number format has to know of a whole image."""
        if self._scope == "image":
            return self._layer.format.measure(self._x[image : image + 1])
        return self._measured

    def _encode(self, image: int, start: int, stop: int, context: Any) -> tuple[Array, Any]:
        """Input rows [start, stop) as they are before the mask, [1, rows, columns, channels], and their context."""
        rows = self._x[image : image + 1, start:stop]
        if self._scope == "row":
            context = self._layer.format.measure(rows)
        return self._layer.format.quantise(rows, context), context

    def _masked(self, encoded: Array, push: Array | None) -> Array:
        """What crosses: float32 [stack, rows, columns, channels]."""
        residues, shuffled = self._layer.residues, self._layer.restore.shuffle(encoded)
        if residues is not None:
            out = np.empty((self._known.stack, *encoded.shape[1:]), np.float32)
            residues.send(shuffled, push, out)
            return out
        return np.asarray(shuffled if push is None else shuffled + push, np.float32)

    def send(self, shared: Array) -> None:
        """Write the masked input into shared memory."""
        images, height = self._frame.source[:2]
        target = shared.reshape(self._known.stack, *self._frame.source)
        step = max(self._frame.widest(self._bands.rows), 1)
        for image in range(images):
            push, context = self._push(image), self._context(image)
            for start in range(0, height, step):
                stop = min(start + step, height)
                encoded, _ = self._encode(image, start, stop, context)
                target[:, image, start:stop] = self._masked(encoded, push.window(start, stop) if push else None)

    def finish(
        self, shared: Array, pool: Masks, checker: StreamedChecker | None, link: Accelerator, out: Array
    ) -> None:
        """Write the result to ``out``. Raises ``IntegrityError`` for an answer that cannot be right."""
        known, frame = self._known, self._frame
        answers = shared.reshape(known.stack, frame.source[0], *frame.target[1:3], known.slots)
        results = out.reshape(frame.target)
        prepared = pool.pops(known, self._masks, self._pop_shapes()) if self._masks.number and known.masked else None
        for image in range(frame.source[0]):
            push, context = self._push(image), self._context(image)
            for first, end in frame.bands(self._bands.rows):
                start, stop = frame.reach(first, end)
                needed = push is not None and (checker is not None or prepared is None)
                window = push.window(start, stop) if push is not None and needed else None
                encoded, measured = self._encode(image, start, stop, context)
                answer = self._take(answers[:, image, first:end], link)
                if checker is not None:
                    geometry = frame.geometry(first, end, known.stack, known.slots)
                    if not checker.holds(geometry, self._masked(encoded, window), answer):
                        link.refuse(self._layer.name)
                pop = next(prepared) if prepared else self._pop(window, first, end)
                y = self._restore(answer, pop)
                self._add_private(encoded, first, end, y)
                residual = None if self._residual is None else self._residual[image : image + 1, first:end]
                # Where rows are measured by themselves, a layer's output rows are its input rows.
                results[image : image + 1, first:end] = self._layer.format.decode(y, measured, residual)

    def _pop(self, push: Array | None, first: int, end: int) -> Array | None:
        return None if push is None else pop_mask(self._known, self._layer, push, first, end, self._bands.piece)

    def _pop_shapes(self) -> Iterator[tuple[int, ...]]:
        for _ in range(self._frame.source[0]):
            for first, end in self._frame.bands(self._bands.rows):
                yield end - first, self._frame.target[2], self._known.pop_channels

    def _take(self, shared: Array, link: Accelerator) -> Array:
        """A private copy of a part of the answer, each shared byte read once. Raises ``IntegrityError``."""
        answer, residues = np.array(shared), self._layer.residues
        if residues is not None and not residues.possible(answer):
            raise IntegrityError(f"the accelerator's answer for layer {self._layer.name} is impossible")
        if residues is None and not np.isfinite(answer).all():
            link.refuse(self._layer.name, "not finite")
        return answer

    def _restore(self, answer: Array, pop: Array | None) -> Array:
        """The true sums [1, rows, columns, filters] from an answer [stack, rows, columns, slots] that was checked."""
        layer = self._layer
        if layer.residues is not None:
            return layer.residues.receive(answer, layer.restore, pop)
        y = layer.restore.apply(layer.limbs.join(answer) if layer.format.exact else answer)
        if pop is not None:
            y -= pop
        return y

    def _add_private(self, encoded: Array, first: int, end: int, y: Array) -> None:
        """Add what the enclave keeps of a layer's weights to itself, in place."""
        if self._layer.private is None:
            return
        own, *left = self._known.private
        sums = linear(
            self._frame.geometry(first, end, 1, own.filters), encoded.astype(np.float32), own, self._bands.piece
        )
        for weights in left:
            sums = _dense(sums, weights, self._bands.piece)
        y += self._layer.private[2].join(sums) if self._layer.format.exact else sums


def _dense(x: Array, weights: Weights, piece: int) -> Array:
    """x [..., depth] times the transpose of weights [filters, depth]."""
    out = np.empty((*x.shape[:-1], weights.filters), np.float32)
    for filters, _, taps in weights.pieces(piece):
        out[..., filters] = x @ taps[0, 0]
    return out
