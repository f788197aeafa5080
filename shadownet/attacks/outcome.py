"""What an attack got of a whole bundle: its layers' scores in one line. Belongs to the bench."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np

from shadownet.attacks.registry import Attack
from shadownet.attacks.score import LayerScore, RowScore
from shadownet.attacks.view import PublicLayer

FIXED = "fixed"  # numbers of float layers under exact activations


@dataclass(frozen=True)
class Part:
    """What an attack got of one layer: the share, beside a random claim's and the public model's own.

    ``score`` has the details where what it got are weights.
    """

    layer: str
    got: float
    null: float
    base: float | None = None
    note: str = ""
    score: LayerScore | None = None


@dataclass(frozen=True)
class Outcome:
    """One attack on all layers it applies to. ``recovered`` is the share of ``measure`` that it got.

    Attacks on weights measure the filters within 5 %, of all outsourced ones; the direction counts, up to a factor per
    filter, in fixed-point layers and where the attack does not claim to know factors. Others take the mean over the
    layers that they apply to. ``worst`` is the share in the layer where most is lost; ``null`` and ``base`` are the
    largest shares of random claims and of the public model. Scores are None without the truth; ``forms`` says per layer
    what the attack took the layer for. ``queries`` counts inferences that the attacker had run.
    """

    attack: str
    needs: str
    measure: str
    layers: int
    recovered: float | None
    worst: float | None
    worst_layer: str
    error: float | None
    pairs: float | None
    null: float | None
    base: float | None
    queries: int
    seconds: float
    forms: dict[str, str]
    scores: tuple[LayerScore, ...]

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def weighed(attack: Attack, done: list[tuple[PublicLayer, str, LayerScore | None, float]], total: int) -> Outcome:
    """Of an attack on weights: (layer, form, score, seconds) of each layer, and how many filters there are in all."""
    scores = tuple(score for _, _, score, _ in done if score is not None)
    worst = max(scores, key=lambda s: s.rows.recovered, default=None)
    pairs = [s.pairs for s in scores if s.pairs is not None]
    bases = [s.base.recovered for s in scores if s.base is not None]
    return Outcome(
        attack.name, ", ".join(attack.needs), attack.measure, len(done),
        recovered=sum(s.rows.recovered * s.filters for s in scores) / total if scores else None,
        worst=worst.rows.recovered if worst else None, worst_layer=worst.layer if worst else "",
        error=float(np.median([s.rows.error for s in scores])) if scores else None,
        pairs=float(np.mean(pairs)) if pairs else None,
        null=max((s.null.recovered for s in scores), default=None), base=max(bases, default=None),
        queries=0, seconds=sum(one[3] for one in done),
        forms={layer.name: form for layer, form, _, _ in done}, scores=scores,
    )  # fmt: skip


def summed(attack: Attack, parts: Sequence[Part], queries: int, seconds: float) -> Outcome:
    """Of an attack on a bundle at work, from at least one part."""
    worst = max(parts, key=lambda part: part.got)
    scores = tuple(part.score for part in parts if part.score is not None)
    return Outcome(
        attack.name, ", ".join(attack.needs), attack.measure, len(parts),
        recovered=float(np.mean([part.got for part in parts])), worst=worst.got, worst_layer=worst.layer,
        error=float(np.median([s.rows.error for s in scores])) if scores else None, pairs=None,
        null=max(part.null for part in parts), base=max((p.base for p in parts if p.base is not None), default=None),
        queries=queries, seconds=seconds, forms={part.layer: part.note for part in parts}, scores=scores,
    )  # fmt: skip


def in_its_units(score: LayerScore) -> LayerScore:
    """Weights in fixed point are multiples of a step that each filter has for itself, so a perfect copy is far from the
    float weights. What can be compared is the direction; the factor is one number a filter, and fitted with the bias.
    Without this, a scheme that publishes its weights as integers would look as if it hid them. The same goes for
    attacks that find filters up to a factor.
    """

    def turned(rows: RowScore) -> RowScore:
        return replace(rows, recovered=rows.aligned, error=rows.direction)

    return replace(
        score, rows=turned(score.rows), null=turned(score.null), deciles=(), adp=None,
        base=None if score.base is None else turned(score.base),
    )  # fmt: skip


def by_layer(outcomes: Sequence[Outcome]) -> list[tuple[str, LayerScore]]:
    """For each layer the attack that got most of its weights, and its score, in the bundle's order."""
    best: dict[str, tuple[str, LayerScore]] = {}
    for outcome in outcomes:
        for score in outcome.scores:
            known = best.get(score.layer)
            mine = score.rows.recovered, -score.rows.error
            if known is None or mine > (known[1].rows.recovered, -known[1].rows.error):
                best[score.layer] = outcome.attack, score
    return [best[name] for name in sorted(best)]


def lost(outcomes: Sequence[Outcome], total: int) -> float:
    """Share of the outsourced filters that the best attack on each layer recovers."""
    return sum(score.rows.recovered * score.filters for _, score in by_layer(outcomes)) / max(total, 1)
