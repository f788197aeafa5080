"""One linear layer at a time, in NumPy: for what the C loop does not know, and where it was not built."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import numpy as np

from enclave import formats
from enclave.exact import Residues
from enclave.integrity import possible
from enclave.link import Accelerator
from enclave.masks import MaskSet
from enclave.program import Layer
from enclave.trace import Trace
from enclave.trusted import TrustedModel
from shadownet.wire.errors import IntegrityError

Array = np.ndarray[Any, Any]
Holds = Callable[[Array, Array], bool]


def run(
    layer: Layer, tensors: dict[int, Array], masks: MaskSet, link: Accelerator, weights: TrustedModel,
    holds: Holds | None, trace: Trace,
) -> Array:  # fmt: skip
    """Mask, dispatch, check, restore, unmask, finish. ``holds`` tells whether an answer belongs to what was sent, None
    if that is not checked. Raises ``IntegrityError`` if it does not, ``WorkerError`` if there is none."""
    encoded, context = formats.encode(layer.format, tensors[layer.input])
    shuffled = layer.restore.shuffle(encoded)
    if layer.residues is not None:
        y = _modular(layer, layer.residues, shuffled, masks, link, holds, trace)
    else:
        y = _plain(layer, shuffled, masks, link, holds, trace)
    if layer.private is not None:  # what the enclave keeps of the layer's weights to itself
        own, output, limbs = layer.private
        (part,) = weights.run(own, [0], [encoded.astype(np.float32)], [output])
        y += limbs.join(part) if layer.format.exact else part
    return layer.format.decode(y, context, tensors.get(layer.format.residual))


def _plain(layer: Layer, x: Array, masks: MaskSet, link: Accelerator, holds: Holds | None, trace: Trace) -> Array:
    """Masked with noise, or not at all: the true layer's image of ``x``."""
    sent = x + masks.push(layer.number) if layer.masked else x
    np.copyto(link.input(layer.number), sent)
    answer = _ask(layer, link, trace)
    if not (holds(sent, answer) if holds is not None else not layer.format.exact or possible(answer)):
        link.refuse(layer.name)
    y = layer.restore.apply(layer.limbs.join(answer) if layer.format.exact else answer)
    if layer.masked:
        y -= masks.pop(layer.number)
    return y


def _modular(
    layer: Layer, residues: Residues, x: Array, masks: MaskSet, link: Accelerator, holds: Holds | None, trace: Trace
) -> Array:
    """The same in Z_p: what crosses is uniform, what comes back is refused unless it may be right."""
    number, target = layer.number, link.input(layer.number)
    sent = link.kept[0][0][: target.size].reshape(target.shape)  # private: not read back from outside for the check
    residues.send(x, masks.push(number) if layer.masked else None, sent)
    np.copyto(target, sent)
    answer = _ask(layer, link, trace)
    if not residues.possible(answer):
        raise IntegrityError(f"the accelerator's answer for layer {layer.name} is impossible")
    if holds is not None and not holds(sent, answer):
        link.refuse(layer.name)
    return residues.receive(answer, layer.restore, masks.pop(number) if layer.masked else None)


def _ask(layer: Layer, link: Accelerator, trace: Trace) -> Array:
    """Have the accelerator run a layer, and copy its answer."""
    began = time.perf_counter()
    link.call(layer.number, layer.name)
    if trace.enabled:
        link.crossed(layer.number, began, (began, time.perf_counter() - began), trace)
    return link.read(layer.number, layer.name)
