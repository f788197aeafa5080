"""Attacks on a bundle at work, scored. Belongs to the bench: a :class:`Stage` holds the truth, strategies get views.

Each score is a share from 0 to 1, beside two controls: the same claim drawn at random, and what the public model says
by itself. Activations count up to a factor and an offset, which biases and scales take up when a model is refitted. The
third control, that what is scored is not the victim's own, is asserted.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np

from shadownet.attacks import alignment, averaging, basis, lab, malleation, mask_blind, peeling, tampering
from shadownet.attacks.base import same_ops
from shadownet.attacks.outcome import Outcome, Part, in_its_units, summed
from shadownet.attacks.recovery import TINY, Recovery, assign, cosines
from shadownet.attacks.registry import Attack, Need
from shadownet.attacks.score import score_layer
from shadownet.attacks.truth import TrueLayer
from shadownet.attacks.view import AdversaryView, Crossing, Knowledge, PublicLayer
from shadownet.wire.errors import InputError, IntegrityError

Array = np.ndarray[Any, Any]
PathLike = str | os.PathLike[str]

TRANSCRIPT_BYTES = 1 << 30  # of what crosses, for one transcript
DEPTH = 4  # layers that peeling starts on
HELD_OUT = 20  # inputs that features are judged on
QUERIES = 25  # labels for each weight, for malleation
LARGEST = 6000  # weights that malleation is tried on


@dataclass(eq=False)
class Stage:
    """One bundle, what its attackers may be given, and the truth.

    ``view`` has the public files, and the public model and another bundle if there are any; ``samples`` [N, ...] are
    the attacker's own inputs, ``runs`` how many inferences it may record, ``base`` the public model's file.
    ``malicious``: it may be the accelerator.
    """

    view: AdversaryView
    bundle: PathLike
    model: PathLike
    truth: Sequence[TrueLayer]
    key: PathLike | None = None
    samples: Array | None = None
    base: PathLike | None = None
    runs: int = 32
    malicious: bool = False
    seed: int = 0

    def missing(self, attack: Attack) -> list[Need]:
        """What ``attack`` needs that this stage does not give."""
        inputs = self.samples is not None and self.runs > 0
        given = {
            Need.FILES: True,
            Need.BASE: self.base is not None,
            Need.TRANSCRIPT: inputs or self.view.transcript is not None,
            Need.INPUTS: inputs,
            Need.LABELS: inputs,
            Need.MALICIOUS: self.malicious and inputs,
            Need.OTHER: self.view.other is not None,
        }
        return [need for need in attack.needs if not given[need]]

    @cached_property
    def varied(self) -> AdversaryView:
        """With a transcript of different inputs, and the public model's activations on them."""
        if self.samples is None:
            return self.view
        inputs = self.samples[: self._room()]
        view = self._recorded(inputs)
        if self.base is None:
            return view
        known = [layer for layer in view.layers if self._public_ops[layer.index] is not None]
        values = lab.features(self.base, [self._public_ops[layer.index] or 0 for layer in known], inputs)
        return replace(view, features={layer.name: v for layer, v in zip(known, values, strict=True)})

    @cached_property
    def repeated(self) -> AdversaryView:
        """With a transcript of one input, over and over."""
        assert self.samples is not None
        return self._recorded(np.repeat(self.samples[:1], self._room(), axis=0))

    def _recorded(self, inputs: Array) -> AdversaryView:
        transcript = lab.record(self.bundle, inputs, self.key)
        return replace(self.view, knowledge=Knowledge.CHOSEN_INPUTS, transcript=transcript, inputs=inputs)

    def _room(self) -> int:
        """Runs that fit into memory."""
        each = 4 * sum(int(np.prod(layer.input_shape)) + int(np.prod(layer.output_shape)) for layer in self.view.layers)
        return max(4, min(self.runs, TRANSCRIPT_BYTES // max(each, 1)))

    def activations(self, layers: Sequence[PublicLayer], inputs: Array) -> list[tuple[Array, Array | None]]:
        """The true inputs of ``layers`` and those in the public model, [N, ...], channels as they are sent."""
        true = lab.features(self.model, [layer.op_id for layer in layers], inputs)
        public: list[Array | None] = [None] * len(layers)
        if self.base is not None:
            known = [k for k, layer in enumerate(layers) if self._public_ops[layer.index] is not None]
            values = lab.features(self.base, [self._public_ops[layers[k].index] or 0 for k in known], inputs)
            for k, value in zip(known, values, strict=True):
                public[k] = self._sent(layers[k], value)
        return [(self._sent(layer, mine), other) for layer, mine, other in zip(layers, true, public, strict=True)]

    @cached_property
    def _public_ops(self) -> tuple[int | None, ...]:
        return same_ops(self.base, self.view.layers) if self.base is not None else (None,) * len(self.view.layers)

    def _sent(self, layer: PublicLayer, activations: Array) -> Array:
        restore = self.truth[layer.index].restore
        return activations if restore is None or restore.order is None else activations[..., restore.order]

    def random(self) -> np.random.Generator:
        return np.random.default_rng([self.seed, 0x11FE])


def weigh(stage: Stage, attacks: Iterable[Attack]) -> list[Outcome]:
    """Run those of ``attacks`` that take part in runs of the bundle and have what they need; n/a ones are left out."""
    outcomes = []
    for attack in attacks:
        if attack.name not in TAKING_PART or stage.missing(attack):
            continue
        start = time.perf_counter()
        parts, queries = TAKING_PART[attack.name](stage)
        if parts:
            outcomes.append(summed(attack, parts, queries, time.perf_counter() - start))
    return outcomes


def explained(found: Array, true: Array) -> float:
    """Share of the variance of ``true`` that ``found``, of the same size, explains up to a factor and an offset."""
    assert not np.shares_memory(found, true) and not np.array_equal(found, true), "the object scored is the victim"
    a, b = (side.ravel().astype(np.float64) - side.mean() for side in (found, true))
    return float(np.square(a @ b) / max(float((a @ a) * (b @ b)), TINY))


# Order of channels


def _order(stage: Stage) -> tuple[list[Part], int]:
    """A5, between each layer that A4 strips and the next of the file, if it has as many channels."""
    view, rng, parts = stage.varied, stage.random(), []
    for layer, following in zip(view.layers, view.layers[1:], strict=False):
        if following.input_shape[-1] != layer.filters or layer.groups > 1:
            continue
        recovery = mask_blind.attack(view, layer)
        if recovery is None or recovery.pairs is None or stage.truth[layer.index].pairs() is None:
            continue
        found = alignment.attack(view, layer, following, recovery)
        if found is None:
            continue
        feeds = _feeds(recovery.pairs[:, 0], stage.truth[layer.index], stage.truth[following.index])
        parts.append(
            Part(
                layer.name, float((feeds == found.order).mean()), float((feeds == rng.permutation(feeds)).mean()),
                note=f"{found.sure.mean():.0%} of the pairs beyond chance",
            )
        )  # fmt: skip
    return parts, len(view.crossings(view.layers[0]))


def _feeds(slots: Array, true: TrueLayer, following: TrueLayer) -> Array:
    """The channel, as the next layer is sent it, that the filter in each slot feeds; -1 for slots of no filter."""
    assert true.restore is not None
    order = following.restore.order if following.restore is not None else None
    channel = np.arange(true.restore.slot.shape[1]) if order is None else np.argsort(order)
    owner = np.full(int(max(true.restore.slot.max(), slots.max(initial=0))) + 1, -1)
    lone = np.bincount(true.restore.slot[-1])  # alone behind its mask, a filter may be known by either slot
    for term in true.restore.slot[::-1]:
        owner[term] = np.where((term == true.restore.slot[0]) | (lone[true.restore.slot[-1]] == 1), channel, -1)
    return owner[slots]


def _assignment(stage: Stage) -> tuple[list[Part], int]:
    """A10, for layers that are sent their channels in a secret order."""
    view, rng, parts = stage.varied, stage.random(), []
    for layer in view.layers:
        restore = stage.truth[layer.index].restore
        known = (view.features or {}).get(layer.name)
        if restore is None or restore.order is None or known is None:
            continue
        found = alignment.hidden(view, layer, known)
        if found is not None:
            claims = found.order, rng.permutation(found.order), np.arange(len(restore.order))
            got, null, plain = (float((restore.order == order).mean()) for order in claims)
            parts.append(Part(layer.name, got, null, plain, f"{found.sure.mean():.0%} of the pairs beyond chance"))
    return parts, len(view.inputs) if view.inputs is not None else 0


# Masks


def _basis(stage: Stage) -> tuple[list[Part], int]:
    """A11, on one input over and over; the null are masks drawn anew, of the size of the layer's."""
    return _masks(stage, lambda view, layer: float(basis.static_basis(view, layer) is not None))


def _reuse(stage: Stage) -> tuple[list[Part], int]:
    """A12, on one input over and over: then all that differs between runs is the mask."""

    def share(view: AdversaryView, layer: PublicLayer) -> float:
        runs = len(view.crossings(layer))
        return len(basis.reused(view, layer)) / (runs * (runs - 1) / 2)

    return _masks(stage, share)


def _masks(stage: Stage, share: Callable[[AdversaryView, PublicLayer], float]) -> tuple[list[Part], int]:
    view, rng, parts = stage.repeated, stage.random(), []
    for layer in view.layers:
        if layer.masked:
            sent = [c.sent for c in view.crossings(layer)]
            size = max(float(np.std(sent, axis=0).max()), 1e-6)
            anew = tuple(Crossing(layer.name, x, x) for x in rng.normal(0, size, np.shape(sent)))
            drawn = replace(view, layers=(replace(layer, digits=1),), base=None, transcript=anew)
            parts.append(Part(layer.name, share(view, layer), share(drawn, drawn.layers[0])))
    return parts, len(view.inputs) if view.inputs is not None else 0


# Activations


def _average(stage: Stage) -> tuple[list[Part], int]:
    """A15."""
    view, parts = stage.repeated, []
    assert view.inputs is not None
    masked = [layer for layer in view.layers if layer.masked]
    for layer, (real, other) in zip(masked, stage.activations(masked, view.inputs[:1]), strict=True):
        average = next(iter(averaging.attack(view, layer)), None)
        own = np.array_equal(np.sort(real, None), np.sort(view.inputs[0], None))  # the first layer's is the attacker's
        if average is not None and real.size == average.value.size and not own:
            note = f"{average.repeats} repeats, error {average.relative:.0%} of the activations"
            parts.append(_share(stage, layer, average.value, real, other, note))
    return parts, len(view.inputs)


def _peel(stage: Stage) -> tuple[list[Part], int]:
    """A16, judged on inputs that it did not see."""
    view = stage.varied
    chain = peeling.chain(view, DEPTH)
    if len(chain) < 2 or view.inputs is None or not chain[1].masked:
        return [], 0
    held_out = stage.samples[-HELD_OUT:] if stage.samples is not None else view.inputs
    first = peeling.first_input(replace(view, inputs=held_out), chain[0])
    if first is None:
        return [], 0
    parts, x = [], first
    true = stage.activations(chain[1:], held_out)
    for peeled, layer, (real, other) in zip(peeling.attack(view, chain), chain[1:], true, strict=True):
        x = peeled(x)
        if real.size == x.size:
            parts.append(_share(stage, layer, x, real, other, f"{len(view.inputs)} runs"))
    return parts, len(view.inputs)


def _share(stage: Stage, layer: PublicLayer, found: Array, real: Array, other: Array | None, note: str) -> Part:
    null = explained(np.asarray(stage.random().normal(size=real.shape)), real)
    return Part(layer.name, explained(found, real), null, None if other is None else explained(other, real), note)


# A malicious accelerator


def _tamper(stage: Stage) -> tuple[list[Part], int]:
    """A14, from the second answer on (the only one, if there is one); the null is an answer that is no number."""
    assert stage.samples is not None
    trial = lab.tamperer(stage.bundle, stage.samples[:2], stage.key)
    layer = stage.view.layers[min(1, len(stage.view.layers) - 1)]
    tallies = tampering.attack(trial, [layer.index])
    accepted = [t for t in tallies if t.accepted]
    note = ", ".join(t.kind + ("" if t.changed else " (changed no result)") for t in accepted) or "none"
    null = float(trial("nan", layer.index).accepted)
    return [Part(layer.name, len(accepted) / len(tallies), null, note=note)], 2 * (len(tallies) + 1)


def _malleate(stage: Stage) -> tuple[list[Part], int]:
    """A18. Scored by direction: rows are integers, in no known order, over the rows found for the layer before."""
    size = sum(layer.filters * layer.depth for layer in stage.view.layers)
    if not malleation.applies(stage.view) or size > LARGEST:
        return [], 0
    with lab.obedient(stage.bundle, QUERIES * size, stage.key) as oracle:
        view = replace(stage.varied, knowledge=Knowledge.MALICIOUS, oracle=oracle)
        try:
            weights, note = [one.weights for one in malleation.attack(view, stage.seed)], "every layer"
        except IntegrityError:
            weights, note = [], f"ended by the check at query {oracle.used}"
        except InputError as error:
            weights, note = [], str(error)
    rng, parts, columns = stage.random(), [], None
    for k, true in enumerate(stage.truth):
        rows = weights[k].astype(np.float64) if weights else rng.normal(size=true.rows.shape[1:])
        wanted = true.rows if columns is None else true.rows[..., columns]
        found = Recovery(rows[None], scaled=False)
        score = in_its_units(score_layer(found, replace(true, rows=wanted.copy()), seed=stage.seed))
        got = score.rows.recovered if weights else 0.0
        parts.append(Part(true.name, got, score.null.recovered, note=note, score=score if weights else None))
        if weights:
            mine, real = assign(np.abs(cosines(rows, wanted[0])))
            columns = real[np.argsort(mine)]
    return parts, oracle.used


TAKING_PART: dict[str, Callable[[Stage], tuple[list[Part], int]]] = {
    "A5": _order, "A10": _assignment, "A11": _basis, "A12": _reuse, "A14": _tamper, "A15": _average, "A16": _peel,
    "A18": _malleate,
}  # fmt: skip
