"""Making masks: what is added to a layer's input, and the true layer's image of it, which is taken from the answer."""

from __future__ import annotations

from typing import Any

import numpy as np

from enclave import formats
from enclave.exact import Residues
from enclave.masks import Pair
from enclave.program import Layer
from enclave.rng import Rng
from enclave.trusted import TrustedModel

Array = np.ndarray[Any, Any]
Shape = tuple[int, ...]


def pair_of(layer: Layer, shape: Shape, weights: TrustedModel, rng: Rng) -> Pair:
    """A fresh push mask of this shape, as it will be added, and its pop mask by the layer's true ``weights``.

    Float layers have Gaussian masks of deviation ``layer.sigma``, integer ones uniform integers, exact ones one-time
    pads mod p."""
    if layer.residues is not None:
        return _pad(layer, layer.residues, shape, weights, rng)
    if layer.format.exact:
        push = rng.integers(-formats.MASK_BOUND, formats.MASK_BOUND + 1, shape).astype(np.float32)
    else:
        push = rng.normal(layer.sigma, shape)
    order = layer.restore.order
    natural = push if order is None else push[..., np.argsort(order)]
    (pop,) = weights.run(layer.pop, [0], [natural], [layer.pop_output])
    return push, layer.pop_limbs.join(pop) if layer.format.exact else pop


def _pad(layer: Layer, residues: Residues, shape: Shape, weights: TrustedModel, rng: Rng) -> Pair:
    push, order = residues.pad(rng, shape), layer.restore.order
    # Restored late, the pop mask is the public rows' image of the pad, which they take as it is sent.
    natural = push.copy() if order is None or residues.late else push[..., np.argsort(order)]
    digits = np.empty((residues.pop.digits.count, *push.shape), np.float32)
    residues.pop.digits.cut(natural, digits)
    # Copies: each run leaves its result where the last one was.
    parts = [np.array(weights.run(layer.pop, [0], [digit], [layer.pop_output])[0]) for digit in digits]
    return push, residues.image(parts)
