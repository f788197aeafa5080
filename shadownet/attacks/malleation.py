"""A18: all weights of a network of dense layers through class labels alone, by a malicious accelerator and a client.

What is added to an answer is added to the true sum: pads are perfectly malleable. Exact activations compute

    z_j = (sum_i W_ji q_i + o_j mod p) s_j c + b_j        x = max(z, 0)        q = rint(levels x / max|x|)

with integers W and q, secret per-filter scales s and biases b, and c = max|x| / levels. The adversary chooses the first
x and, for each layer, the offsets o; it sees the top class.

1. Drown the biases: the first x is huge, hence c is huge in every layer that is reached.
2. Set q = levels u_i: in the layer before, offsets of p / 4 hold unit i on and all others off.
3. Isolate unit j: the others are held off; o_j is the question: unit j is on iff levels W_ji + o_j > 0. Offsets half
   way between multiples of ``levels`` are never near a tie.
4. Make the answer visible: if unit j is off, all of x is 0, c is 0, no later offset matters, and the biases alone
   decide the class. If it is on, offsets hold one unit of the next layer on, and the class is that unit's. A unit for
   which the two classes differ is found by trial, once per layer.
5. Bisect: as many labels as W_ji has bits.
6. The last layer: only differences of classes show. The offset that ties class a with class r as o_r grows gives
   s_r / s_a; ties then give W_ai - (s_r / s_a) W_ri, and integrality gives both.

Depth does not matter, since c = 0 cuts all layers off from each other. Answers are obfuscated; with mask filters,
y_j = Y[slot of j] + Y[slot of its mask], an offset on the first of the two moves y_j alone. Which slots these are, and
which mask slot each needs, is found by labels too: with one slot raised, output j stays on until its mask's is lowered.

Source: reconstructed from SEEK's published claims (Chen and Fan, arXiv:2209.06373), which are about MPC on fixed point
numbers; the forms for scales found at run time, and for mask filters, are this project's. Knowledge: malicious
accelerator and chosen inputs, labels only. One message of each layer is read, for the base of the limbs. Any check of
the answers ends it at the first query.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from shadownet.attacks.view import AdversaryView, Knowledge, Oracle, PublicLayer
from shadownet.wire.errors import InputError

Array = np.ndarray[Any, Any]

HUGE = 1e9  # the first input's largest value
TRIALS = 200  # of steering, before a layer counts as out of reach
WITNESSES = 2  # ways of making a layer's answer visible, while its slots are unknown


class Malleable(Oracle):
    """Labels of single inputs while the accelerator adds to its answers; a query is an inference, counted.

    ``answer(x, offsets)``: ``offsets`` maps layers' names to what is added, in the shape of the layer's answer.
    """

    def __init__(self, answer: Callable[[Array, Mapping[str, Array]], int], budget: int) -> None:
        super().__init__(lambda inputs: np.array([answer(x, {}) for x in inputs]), budget)
        self._malleable = answer

    def ask(self, x: Array, offsets: Mapping[str, Array]) -> int:
        """Raises ``InputError`` over budget, before asking."""
        if self.left < 1:
            raise InputError(f"no query of {self.budget} is left")
        self.used += 1
        return int(self._malleable(x, offsets))


@dataclass(frozen=True, eq=False)
class Extracted:
    """One layer: ``weights`` int64 [n, d], rows in the order of ``slots`` (int64 [n], which answer each of them is).

    Columns are the first input's own for the first layer, else the rows of the layer before. ``queries`` were spent.
    """

    name: str
    weights: Array
    slots: Array
    queries: int


@dataclass(frozen=True)
class Limbs:
    """How one layer's answers take offsets: ``count`` digits of ``base`` along the batch, ``step`` = p / 24."""

    count: int
    base: int
    step: float

    @classmethod
    def possible(cls, view: AdversaryView, layer: PublicLayer) -> list[Limbs]:
        """The likeliest first, from what the layer was sent: the largest digit bounds the base from below.

        p is a little below a power of two, and the base the smallest odd one whose ``count``-th power reaches it, so
        few are possible. Digits of masked inputs are spread evenly, and the first is right; an input that crosses
        unmasked may be too small to show its base.
        """
        crossings = view.crossings(layer)
        if not crossings:
            raise InputError("reading a layer's limbs needs a transcript")
        seen = 2 * int(max(np.abs(c.sent).max() for c in crossings)) + 1
        count = layer.input_shape[0]
        bases = [(bits, math.ceil(2.0 ** (bits / count) - 1e-6) | 1) for bits in range(16, 47)]
        found = [cls(count, base, 2.0**bits / 24) for bits, base in bases if base >= seen]
        if not found:
            raise InputError(f"what {layer.name} was sent are no limbs of residues")
        return found[:1] if layer.masked else found

    def cut(self, offsets: Array, width: int) -> Array:
        """Offsets of slots -> what is added to the answer, float32 [count, width]; limb 0 of the weights takes it."""
        out, rest = np.zeros((self.count, width), np.float32), np.rint(offsets)
        for digit in out:
            quotient = np.rint(rest / self.base)
            digit[: len(rest)] = rest - quotient * self.base
            rest = quotient
        return out


@dataclass
class _Layer:
    """A layer under attack. ``real`` [n] and ``mask`` [n] are slots, -1 for no mask; empty until they are found."""

    public: PublicLayer
    limbs: Limbs
    real: list[int] = field(default_factory=list)
    mask: list[int] = field(default_factory=list)

    @property
    def slots(self) -> int:
        return self.public.slots

    def raised(self, slot: int, lowered: Array | None = None) -> Array:
        """Offsets that hold what hangs on ``slot`` on, and all else off; slots ``lowered`` (boolean) turn it off."""
        e = np.full(self.slots, -self.limbs.step)
        e[slot] = 3 * self.limbs.step
        if lowered is not None:
            e[lowered] -= 4 * self.limbs.step
        return e

    def only(self, unit: int, offset: float | None = None) -> Array:
        """Offsets for known slots: ``unit`` gets ``offset`` (default: held on), the others are held off."""
        e = np.zeros(self.slots)
        e[self.real] = -6 * self.limbs.step
        e[self.real[unit]] = 6 * self.limbs.step if offset is None else offset
        return e


def attack(view: AdversaryView, seed: int = 0) -> list[Extracted]:
    """Extract every layer of a network of dense layers with ReLU between them, scalars 1 (``shadownet:artifact``).

    Raises ``InputError`` where it does not apply, over budget, and where no steering makes a layer's answers visible.
    """
    oracle = view.oracle
    if view.knowledge < Knowledge.MALICIOUS or not isinstance(oracle, Malleable):
        raise InputError("malleation needs a malicious accelerator")
    if not applies(view):
        raise InputError("malleation is written for dense layers, the last without mask filters")
    return _Attack(view, oracle, seed).run()


def applies(view: AdversaryView) -> bool:
    """Whether all layers are dense and exact, the scheme's scalars 1, and the last layer has no mask filters."""
    dense = all(layer.geometry.kernel == (1, 1) and layer.groups == 1 for layer in view.layers)
    fixed = all(layer.numbers == "fixed" for layer in view.layers)
    last = view.layers[-1]
    return dense and fixed and last.slots == last.filters and view.scheme == "shadownet:artifact"


class _Attack:
    def __init__(self, view: AdversaryView, oracle: Malleable, seed: int) -> None:
        self._oracle, self._rng = oracle, np.random.default_rng(seed)
        self._possible = [Limbs.possible(view, layer) for layer in view.layers]
        self._layers = [_Layer(layer, limbs[0]) for layer, limbs in zip(view.layers, self._possible, strict=True)]
        weights, activations = (int(bits) for bits in str(view.parameters.get("bits", "12/12")).split("/"))
        self._levels, self._largest = (1 << (activations - 1)) - 1, (1 << (weights - 1)) - 1

    def run(self) -> list[Extracted]:
        last = len(self._layers) - 1
        spent = []
        for k, layer in enumerate(self._layers):
            before = self._oracle.used
            if layer.slots == layer.public.filters:
                layer.real, layer.mask = list(range(layer.slots)), [-1] * layer.slots
            elif len(self._possible[k]) > 1:
                self._find_limbs(k)
            else:
                self._find_slots(k)
            spent.append(self._oracle.used - before)
        found = []
        for k, layer in enumerate(self._layers):
            before = self._oracle.used
            weights = self._last() if k == last else self._hidden(k)
            spent[k] += self._oracle.used - before
            found.append(Extracted(layer.public.name, weights, np.array(layer.real), spent[k]))
        return found

    # One query

    def _ask(self, unit: int, offsets: Mapping[int, Array]) -> int:
        """The label for the first input huge at ``unit``, with ``offsets`` of slots by layer."""
        x = np.zeros(self._layers[0].public.depth, np.float32)
        x[unit] = HUGE
        sent = {}
        for k, e in offsets.items():
            layer = self._layers[k].public
            sent[layer.name] = self._layers[k].limbs.cut(e, math.prod(layer.output_shape[1:]))
        return self._oracle.ask(x, sent)

    def _into(self, k: int, unit: int) -> tuple[int, dict[int, Array]]:
        """(first input, offsets of earlier layers) such that layer ``k`` is fed ``unit`` alone.

        Before slots are known any unit does, and some slot is raised.
        """
        if k == 0:
            return unit, {}
        held = {m: self._layers[m].only(0) for m in range(k - 1)}
        return 0, held | {k - 1: self._layers[k - 1].only(unit)}

    # What turns on and off

    def _witnesses(self, k: int, count: int) -> list[tuple[dict[int, Array], int]]:
        """Ways of telling by the label whether layer ``k`` gives nothing: (offsets of later layers, label if so)."""
        layer, following = self._layers[k], self._layers[k + 1]
        first, held = self._into(k, 0)
        nothing = np.full(layer.slots, -layer.limbs.step) if not layer.real else layer.only(0, -6 * layer.limbs.step)
        found = []
        for _ in range(TRIALS):
            if layer.real:
                something = layer.only(int(self._rng.integers(len(layer.real))))
            else:
                something = layer.raised(int(self._rng.integers(layer.slots)))
            if following.real:
                later = {k + 1: following.only(int(self._rng.integers(len(following.real))))}
            else:
                later = {k + 1: following.raised(int(self._rng.integers(following.slots)))}
            off = self._ask(first, held | later | {k: nothing})
            if off != self._ask(first, held | later | {k: something}):
                found.append((later, off))
            if len(found) == count:
                return found
        raise InputError(f"nothing that {layer.public.name} gives could be made visible")

    def _find_limbs(self, k: int) -> None:
        """Try bases until slots are told and weights make sense: each filter's largest is the largest there is."""
        layer = self._layers[k]
        for layer.limbs in self._possible[k]:
            layer.real, layer.mask = [], []
            try:
                self._find_slots(k)
                if np.abs(self._hidden(k, 1)).max() == self._largest:
                    return
            except InputError:
                if not self._oracle.left:
                    raise
        raise InputError(f"no base of limbs makes sense of {layer.public.name}")

    def _find_slots(self, k: int) -> None:
        """Tell filters' slots from masks', and the mask of each: an output is on iff its two slots add up to enough."""
        layer = self._layers[k]
        first, held = self._into(k, 0)
        witnesses = self._witnesses(k, WITNESSES)

        def on(slot: int, lowered: Array | None = None) -> bool:
            e = layer.raised(slot, lowered)
            return any(self._ask(first, held | later | {k: e}) != off for later, off in witnesses)

        partner = {}
        for slot in range(layer.slots):
            found = self._partner(layer, slot, on)
            if found is not None:
                partner[slot] = found
        # A filter alone behind its mask cannot be told from it, and need not: y = Y[a] + Y[b].
        for slot, other in partner.items():
            if not (partner.get(other) == slot and other < slot):
                layer.real.append(slot)
                layer.mask.append(other)
        if len(layer.real) != layer.public.filters:
            raise InputError(f"{len(layer.real)} of {layer.public.filters} slots of {layer.public.name} were told")

    @staticmethod
    def _partner(layer: _Layer, slot: int, on: Callable[..., bool]) -> int | None:
        """The slot that turns off what ``slot`` holds on, if there is one; masks of several filters have none."""
        if not on(slot):
            return None  # a mask that nothing hides behind
        inside = np.setdiff1d(np.arange(layer.slots), [slot])
        while True:
            halves = np.array_split(inside, 2) if len(inside) > 1 else [inside]
            for half in halves:
                lowered = np.zeros(layer.slots, bool)
                lowered[half] = True
                if not on(slot, lowered):
                    inside = half
                    break
            else:
                return None
            if len(halves) == 1:
                return int(inside[0])

    # Weights

    def _hidden(self, k: int, filters: int | None = None) -> Array:
        """Weights of the first ``filters`` (default: all) of a layer that feeds another, int64 [filters, d]."""
        layer = self._layers[k]
        ((later, off),) = self._witnesses(k, 1)
        weights = np.zeros((len(layer.real) if filters is None else filters, layer.public.depth), np.int64)
        for i in range(layer.public.depth):
            first, held = self._into(k, i)
            for j in range(len(weights)):

                def reaches(t: int, j: int = j, first: int = first, held: dict[int, Array] = held) -> bool:
                    e = layer.only(j, -self._levels * t + self._levels // 2)  # on iff W >= t
                    return self._ask(first, held | later | {k: e}) != off

                weights[j, i] = _bisect(reaches, -self._largest, self._largest)
        return weights

    def _last(self) -> Array:
        """Weights of the last layer, int64 [classes, d]."""
        k, layer = len(self._layers) - 1, self._layers[-1]
        classes, depth = layer.public.filters, layer.public.depth
        reach = int(self._levels * self._largest)

        def tie(a: int, r: int, i: int, at: float) -> int:
            """The least offset of class ``a`` that lets it win over class ``r``, which has the offset ``at``."""
            first, held = self._into(k, i)

            def wins(offset: int) -> bool:
                e = layer.only(a, offset)
                e[layer.real[r]] = at
                return self._ask(first, held | {k: e}) == a

            return _bisect(lambda t: not wins(t), -3 * reach, 3 * reach) + 1

        far = float(np.rint(layer.limbs.step))
        ratio = np.ones(classes)  # s_0 / s_a
        for a in range(1, classes):
            ratio[a] = (tie(a, 0, 0, far) - tie(a, 0, 0, -far)) / (2 * far)
        reference = int(ratio.argmax())  # the smallest scale: ties of the others then need the smallest offsets
        ratio = ratio / ratio[reference]
        others = [a for a in range(classes) if a != reference]
        weights = np.zeros((classes, depth), np.int64)
        for i in range(depth):
            first, held = self._into(k, i)
            probes = others[:3]
            ties = np.array([tie(a, reference, i, 0.0) for a in probes])
            guess = np.arange(-self._largest, self._largest + 1)
            real = ratio[probes][:, None] * guess - (ties / self._levels)[:, None]
            misfit = np.square(real - np.rint(real)).sum(axis=0)
            misfit[(np.abs(real) > self._largest + 0.5).any(axis=0)] = np.inf
            weights[reference, i] = guess[misfit.argmin()]
            weights[probes, i] = np.rint(real[:, misfit.argmin()]).astype(np.int64)
            for a in others[3:]:
                level = ratio[a] * self._levels * weights[reference, i]

                def reaches(t: int, a: int = a, level: float = level, first: int = first,
                            held: dict[int, Array] = held) -> bool:  # fmt: skip
                    e = layer.only(a, float(np.rint(level)) - self._levels * t + self._levels // 2)
                    e[layer.real[reference]] = 0.0
                    return self._ask(first, held | {k: e}) == a

                weights[a, i] = _bisect(reaches, -self._largest, self._largest)
        return weights


def _bisect(holds: Callable[[int], bool], low: int, high: int) -> int:
    """The largest t in [low, high] for which ``holds``, which is monotonous and taken to hold at ``low``."""
    while low < high:
        middle = -((-low - high) // 2)
        low, high = (middle, high) if holds(middle) else (low, middle - 1)
    return low
