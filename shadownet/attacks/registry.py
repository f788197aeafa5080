"""Every attack by its name: what it needs, where it applies, and which of them an attacker would believe.

The choice is never made by the truth: an adaptive attacker is told the scheme, so it knows which attack fits; where it
does not know the scheme, the attack that contradicts the public model least is taken.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Any

import numpy as np

from shadownet.attacks import exposed
from shadownet.attacks.catalogue import WEIGHT_ATTACKS
from shadownet.attacks.recovery import Recovery
from shadownet.attacks.view import AdversaryView, PublicLayer
from shadownet.wire.errors import InputError

Array = np.ndarray[Any, Any]


class Need(StrEnum):
    """What of an adversary's view an attack cannot do without."""

    FILES = "public files"
    BASE = "a public model"
    TRANSCRIPT = "transcripts"
    INPUTS = "chosen inputs"
    LABELS = "labels"
    MALICIOUS = "a malicious accelerator"
    OTHER = "two bundles"


@dataclass(frozen=True)
class Attack:
    """``name`` as on the command line; ``what`` is for people; its score is a share of ``measure``."""

    name: str
    needs: tuple[Need, ...]
    what: str
    measure: str = "filters"

    @property
    def on_weights(self) -> bool:
        """Whether it is a strategy for one layer's weights at a time, which needs no bundle at work."""
        return self.name in WEIGHT_ATTACKS

    def run(self, view: AdversaryView, layer: PublicLayer) -> Recovery | None:
        """For attacks on weights; None where the attack does not apply, or the view lacks what it needs."""
        return WEIGHT_ATTACKS[self.name](view, layer)


SEEN = (Need.TRANSCRIPT, Need.INPUTS)
ATTACKS = {
    attack.name: attack
    for attack in (
        Attack("A0", (Need.FILES,), "reads rows as they stand"),
        Attack("A1", (Need.BASE,), "undoes secret scalars"),
        Attack("A2", (Need.BASE,), "undoes permutation and scalars"),
        Attack("A3", (Need.BASE,), "strips mask filters"),
        Attack("A4", (Need.FILES,), "strips mask filters with no prior"),
        Attack("A5", (Need.TRANSCRIPT,), "finds the order of channels by correlation", "channels in order"),
        Attack("A6", (Need.BASE,), "projects on the row space"),
        Attack("A7", (Need.BASE,), "undoes mixing of small groups"),
        Attack("A8", (Need.BASE,), "removes a low-rank disguise"),
        Attack("A9", (Need.BASE,), "undoes an orthogonal mixing"),
        Attack("A10", (*SEEN, Need.BASE), "finds a hidden assignment of channels", "channels in order"),
        Attack("A11", SEEN, "projects out masks from a static basis", "layers with such masks"),
        Attack("A12", SEEN, "subtracts runs that share a mask", "pairs of runs that do"),
        Attack("A13", (*SEEN, Need.LABELS), "steals the whole model: all of the others, then a surrogate", "accuracy"),
        Attack("A14", (Need.MALICIOUS,), "answers wrongly", "kinds of wrong answer accepted"),
        Attack("A15", SEEN, "averages masks out over repeated inputs", "variance of activations explained"),
        Attack("A16", SEEN, "peels layers by regression from the first input", "variance of activations explained"),
        Attack("A17", (Need.OTHER,), "intersects two obfuscations of one model"),
        Attack("A18", (Need.MALICIOUS, Need.LABELS), "extracts weights through labels by malleation"),
        Attack("A19", (Need.FILES,), "separates mixtures by independence"),
        Attack("A20", (Need.FILES,), "reduces the lattice of integer mixtures"),
    )
}
STEAL = ATTACKS["A13"].name
IN_CLEAR, MIXING = ("none", "slalom", "darknetz"), ("groupcover", "mix")  # families of schemes, by what they do
WITH_PRIOR = ("A1", "A2", "A9", "A7", "A8", "A6")  # the believable first where they tie


def select(names: str | None) -> list[Attack]:
    """Attacks of a comma-separated list, all if None. Raises ``InputError`` for a name that is none."""
    if names is None or names == "all":
        return list(ATTACKS.values())
    wanted = [name.strip().upper() for name in names.split(",") if name.strip()]
    unknown = [name for name in wanted if name not in ATTACKS]
    if unknown or not wanted:
        raise InputError(f"there is no attack {', '.join(unknown) or 'without a name'}", f"one of {', '.join(ATTACKS)}")
    return [ATTACKS[name] for name in wanted]


def believed(view: AdversaryView, layer: PublicLayer) -> tuple[str, Recovery]:
    """(name, what came out) of the attack that an attacker would trust for this layer; never looks at any truth."""
    prior, family = view.prior(layer), view.scheme.partition(":")[0]
    if family in IN_CLEAR:
        return "A0", exposed.attack(view, layer)
    if family in MIXING and prior is not None:
        found = ATTACKS["A7"].run(view, layer)
        if found is not None:
            return "A7", found
    if layer.slots > layer.per_group:
        for name in ("A3", "A4") if prior is not None else ("A4",):
            found = ATTACKS[name].run(view, layer)
            if found is not None:
                return name, found
    if family == "shadownet":
        if layer.depthwise and prior is not None:
            found = ATTACKS["A2"].run(view, layer)
            if found is not None:
                return "A2", found
        return "A0", exposed.attack(view, layer)
    if prior is not None:
        trials = [(name, ATTACKS[name].run(view, layer)) for name in ("A0", *WITH_PRIOR)]
        usable = [(name, found) for name, found in trials if found is not None and found.rows.shape == prior.shape]
        if usable:
            return min(usable, key=lambda trial: _apart(trial[1].rows, prior))
    return "A0", exposed.attack(view, layer)


def _apart(rows: Array, prior: Array) -> float:
    """Distance to the public model, rounded so that ties go to the attack with fewer unknowns."""
    return round(float(np.square(rows - prior).sum() / max(float(np.square(prior).sum()), 1e-300)), 2)
