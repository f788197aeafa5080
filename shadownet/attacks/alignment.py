"""A5 and A10: which channel is which, from how values vary together over many inferences.

    A5   C = |corr_t(y~[t, i], x'[t, j])|      order = Hungarian(-C)        [passive]
    A10  the same with a public model's activations in place of y~          [passive, public relative]

y~ are a layer's answers after A4's stripping, that is the true sums plus the linear image of the push mask; x' is what
the next layer is sent. Masks are independent of both, so they only dilute a correlation: with masks of s times the
activations' size it shrinks to about 1 / s^2, while chance gives 1 / sqrt(samples). Fresh masks therefore do not hide
the order of channels, they raise the number of inferences, as s^4. Order is what stays secret after A4.

Source: Pearson correlation and optimal assignment, as in the hidden-dimension matching of permuted transformers (A10)
and in this field's notes on ShadowNet (A5). Knowledge: a transcript; A10 also a public relative to run.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from shadownet.attacks.recovery import TINY, Recovery, assign, norms
from shadownet.attacks.view import AdversaryView, PublicLayer
from shadownet.wire.errors import InputError

Array = np.ndarray[Any, Any]


@dataclass(frozen=True, eq=False)
class Alignment:
    """``order`` int64 [n]: the column that each row goes with; ``strength`` [n] are the correlations of these pairs.

    ``chance``: what the largest of as many correlations would be about without any relation.
    """

    order: Array
    strength: Array
    chance: float
    samples: int

    @property
    def sure(self) -> Array:
        """Boolean [n]: pairs whose correlation is no accident."""
        return self.strength > self.chance


def attack(view: AdversaryView, layer: PublicLayer, following: PublicLayer, found: Recovery) -> Alignment | None:
    """A5. ``found`` is what A4, or any attack with pairs, got from ``layer``; None without room to look.

    ``order[i]`` is then the channel, as ``following`` is sent it, of the i-th row of ``found``.
    Raises ``InputError`` without a transcript of both layers.
    """
    sent, received = view.sent(following), view.crossings(layer)
    if not sent or len(sent) != len(received):
        raise InputError("aligning two layers needs a transcript of both")
    answers = restored(layer, found, [c.received for c in received])
    return align(answers, flat(sent), len(sent))


def hidden(view: AdversaryView, layer: PublicLayer, features: Array) -> Alignment | None:
    """A10. ``features`` [T, ..., C]: the input of this layer in a public model, for the inputs of the transcript.

    ``order[j]`` is the public channel of the j-th channel that is sent.
    """
    sent = view.sent(layer)
    if len(sent) != len(features):
        raise InputError("a transcript and a public model's activations must be of the same inputs")
    return align(flat(sent), features.reshape(-1, features.shape[-1]), len(sent))


def restored(layer: PublicLayer, found: Recovery, answers: list[Array]) -> Array:
    """Sums behind masks, [samples, n]: s Y[filter] + Y[mask] for the claimed pairs, or the answers themselves."""
    y = flat(answers)
    if found.pairs is None:
        return y
    rows = layer.rows.reshape(-1, layer.depth)
    x, f = rows[found.pairs[:, 0]], rows[found.pairs[:, 1]]
    w = found.rows.reshape(-1, layer.depth)
    s = np.einsum("nd,nd->n", w - f, x) / np.maximum(np.einsum("nd,nd->n", x, x), TINY)
    out: Array = s * y[:, found.pairs[:, 0]] + y[:, found.pairs[:, 1]]
    return out


def flat(arrays: list[Array]) -> Array:
    """[T][..., C] -> float64 [T * positions, C]."""
    return np.concatenate([a.reshape(-1, a.shape[-1]) for a in arrays]).astype(np.float64)


def align(a: Array, b: Array, runs: int) -> Alignment | None:
    """Columns of ``a`` [samples, n] against columns of ``b`` [samples, m], from ``runs`` inferences.

    Where two layers differ in their positions (pooling, strides) the means over positions are compared. None where
    nothing varies or there are fewer than 8 samples.
    """
    if len(a) != len(b):
        a, b = (side.reshape(runs, -1, side.shape[-1]).mean(axis=1) for side in (a, b))
    if len(a) < 8:
        return None
    c = np.abs(correlations(a, b))
    rows, columns = assign(c)
    order, strength = np.full(a.shape[1], -1), np.zeros(a.shape[1])
    order[rows], strength[rows] = columns, c[rows, columns]
    chance = float(np.sqrt(2.0 * np.log(max(c.size, 2)) / len(a)))
    return Alignment(order, strength, chance, len(a))


def correlations(a: Array, b: Array) -> Array:
    """Pearson's coefficient between columns, [n, m]; 0 for columns that do not vary."""
    a, b = ((side - side.mean(axis=0)).T.astype(np.float64) for side in (a, b))
    out: Array = np.where(norms(a) > 1e-12, a / norms(a), 0.0) @ np.where(norms(b) > 1e-12, b / norms(b), 0.0).T
    return out
