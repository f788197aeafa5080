"""A15: repeat an input, average what crosses.

    x^ = mean over R repeats of x'          error = sigma / sqrt(R)          R to reach an error e: (sigma / e)^2

The first layer's input crosses in the clear, so repeats are seen in a transcript even where others made the queries.
Masks of any size fall this way, at a cost that grows only as their variance. A one-time pad mod p does not: the mean of
uniform residues says nothing, however many there are.

Source: the law of large numbers. Knowledge: a transcript with repeats, or the right to repeat inputs.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from shadownet.attacks.recovery import TINY
from shadownet.attacks.view import AdversaryView, PublicLayer

Array = np.ndarray[Any, Any]


@dataclass(frozen=True, eq=False)
class Average:
    """One input of a layer as its repeats tell: ``value`` and its standard error per element, from ``repeats``.

    ``runs`` are the inferences' numbers in the transcript.
    """

    value: Array
    error: float
    runs: tuple[int, ...]

    @property
    def repeats(self) -> int:
        return len(self.runs)

    @property
    def relative(self) -> float:
        """The error that the adversary expects, relative to the activations' size without the noise; at most 1."""
        size = float(np.square(self.value).mean())
        return min(1.0, self.error / math.sqrt(max(size - self.error**2, self.error**2, TINY)))


def attack(view: AdversaryView, layer: PublicLayer) -> list[Average]:
    """The inputs of ``layer`` for every input of the transcript that was repeated, most often first."""
    sent = view.sent(layer)
    found = []
    for runs in repeated(view):
        value, spread = mean([sent[t] for t in runs])
        found.append(Average(value, spread / math.sqrt(len(runs)), tuple(runs)))
    return sorted(found, key=lambda average: -average.repeats)


def repeated(view: AdversaryView) -> list[list[int]]:
    """Inferences of equal inputs: chosen ones, or told by what the first unmasked layer is sent; [] without either."""
    plain = next((layer for layer in view.layers if not layer.masked), None)
    seen = [c.sent for c in view.crossings(plain)] if plain else []
    groups: dict[bytes, list[int]] = {}
    for t, x in enumerate(view.inputs if view.inputs is not None else seen):
        groups.setdefault(x.tobytes(), []).append(t)
    return [runs for runs in groups.values() if len(runs) > 1]


def mean(messages: list[Array]) -> tuple[Array, float]:
    """(mean, standard deviation per element) of equal-shaped messages, in one pass and float64."""
    total = np.zeros(messages[0].shape)
    square = 0.0
    for message in messages:
        total += message
    total /= len(messages)
    for message in messages:
        square += float(np.square(message - total).mean())
    return total, math.sqrt(square / max(len(messages) - 1, 1))


def queries_to_break(sigma: float, size: float, error: float = 0.1) -> int:
    """Repeats after which activations of root mean square ``size`` are known to a relative ``error``."""
    return math.ceil((sigma / (size * error)) ** 2)
