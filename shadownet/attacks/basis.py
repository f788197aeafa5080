"""A11 and A12: masks that are not fresh.

    A12  x'_1 - x'_2 = x_1 - x_2 if two inferences share a mask: their distance is far below that of two masks
    A11  r_t in span(Q), K-dimensional: the singular values of x'_t - x'_0 (same x) drop after the K-th;
         then x^ = x' (I - Q Q^T) is free of masks, up to what of x lies in the span

Source: pad reuse is the textbook failure of the one-time pad; static bases of masks and of integrity challenges are
broken this way in arXiv:2602.11088. Knowledge: a transcript; A11 wants one input repeated, or inputs whose activations
are known. Nothing is to be found where every mask is drawn anew, which is what this project claims and tests.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from shadownet.attacks.recovery import TINY
from shadownet.attacks.view import AdversaryView, PublicLayer

Array = np.ndarray[Any, Any]

DROP = 1e-3  # from one singular value to the next: after the last of a static basis is rounding, fresh masks have none
NEAR = 0.5  # two inferences share a mask if they are nearer than this part of the usual distance


@dataclass(frozen=True, eq=False)
class Basis:
    """Where a layer's masks lie: orthonormal rows ``span`` [K, size of one input], around ``centre`` [size]."""

    span: Array
    centre: Array

    def clean(self, sent: Array) -> Array:
        """What of inputs [T, ...] lies outside the span, in their shape: activations without masks."""
        flat = sent.reshape(len(sent), -1).astype(np.float64)
        return (flat - (flat @ self.span.T) @ self.span).reshape(sent.shape)


def reused(view: AdversaryView, layer: PublicLayer) -> list[tuple[int, int]]:
    """A12: pairs of inferences (by their number in the transcript, the earlier first) that share a mask.

    Judged by distance: the usual one is that of two fresh masks. It finds masks larger than the differences between
    activations, which are the masks that protect something; where all runs are of one chosen input, masks of any size.
    """
    sent = _messages(view, layer)
    if len(sent) < 3 or not layer.masked:
        return []
    distance = _distances(sent)
    pairs = np.triu_indices(len(sent), 1)
    usual = float(np.median(distance[pairs]))
    alike = view.inputs is not None and not (view.inputs != view.inputs[0]).any()
    hits = distance[pairs] < max((DROP if alike else NEAR) * usual, TINY)
    return [(int(i), int(j)) for i, j, hit in zip(*pairs, hits, strict=True) if hit]


def static_basis(view: AdversaryView, layer: PublicLayer, activations: Array | None = None) -> Basis | None:
    """A11: the space that masks come from, or None if they seem to come from everywhere.

    ``activations`` [T, ...] are the layer's true inputs where the adversary knows them (chosen inputs); without, the
    transcript must be of one input repeated. More inferences are needed than the basis has dimensions.
    """
    sent = _messages(view, layer)
    if not layer.masked or len(sent) < 4:
        return None
    if activations is not None:
        masks = sent - activations.reshape(len(sent), -1)
        centre = np.zeros(masks.shape[1])
    else:
        masks, centre = sent - sent[0], sent[0]
    _, size, span = np.linalg.svd(masks, full_matrices=False)
    if size[0] <= TINY:
        return Basis(span[:0], centre)  # always the same mask
    drops = np.flatnonzero(size[1:] < DROP * size[:-1])
    rank = int(drops[0]) + 1 if len(drops) else len(size)
    enough = min(masks.shape) - (activations is None) - 2  # a full house proves nothing
    return Basis(span[:rank], centre) if rank <= enough else None


def _messages(view: AdversaryView, layer: PublicLayer) -> Array:
    """What was sent, float64 [T, size]."""
    sent = view.sent(layer)
    return np.stack([x.ravel() for x in sent]).astype(np.float64) if sent else np.empty((0, 0))


def _distances(sent: Array) -> Array:
    """Root mean square differences, [T, T]; computed from differences, since equal ones must give 0."""
    out = np.zeros((len(sent), len(sent)))
    for i, row in enumerate(sent):
        out[i] = np.sqrt(np.square(sent - row).mean(axis=1))
    return out
