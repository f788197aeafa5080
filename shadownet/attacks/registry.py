"""Every attack by its name: what it needs, where it applies, and which of them an attacker would believe.

The choice is never made by the truth: an adaptive attacker is told the scheme, so it knows which attack fits; where it
does not know the scheme, the attack that contradicts the public model least is taken.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from shadownet.attacks.catalogue import WEIGHT_ATTACKS
from shadownet.attacks.recovery import Recovery
from shadownet.attacks.view import AdversaryView, PublicLayer
from shadownet.wire.errors import InputError

Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class Attack:
    """``name`` as on the command line and in the catalogue; ``needs`` and ``what`` are for people."""

    name: str
    needs: str
    what: str

    def run(self, view: AdversaryView, layer: PublicLayer) -> Recovery | None:
        return WEIGHT_ATTACKS[self.name](view, layer)


ATTACKS = {
    attack.name: attack
    for attack in (
        Attack("A0", "public files", "reads rows as they stand"),
        Attack("A1", "a public model", "undoes secret scalars"),
        Attack("A2", "a public model", "undoes permutation and scalars"),
        Attack("A3", "a public model", "strips mask filters"),
        Attack("A4", "public files", "strips mask filters with no prior"),
        Attack("A6", "a public model", "projects on the row space"),
        Attack("A7", "a public model", "undoes mixing of small groups"),
        Attack("A8", "a public model", "removes a low-rank disguise"),
        Attack("A9", "a public model", "undoes an orthogonal mixing"),
        Attack("A19", "public files", "separates mixtures by independence"),
    )
}
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
    prior = view.prior(layer)
    if layer.slots > layer.per_group:
        for name in ("A3", "A4") if prior is not None else ("A4",):
            found = ATTACKS[name].run(view, layer)
            if found is not None:
                return name, found
    if view.scheme.startswith("shadownet:"):
        if layer.depthwise and prior is not None:
            found = ATTACKS["A2"].run(view, layer)
            if found is not None:
                return "A2", found
        exposed = ATTACKS["A0"].run(view, layer)
        assert exposed is not None
        return "A0", exposed
    if prior is not None:
        trials = [(name, ATTACKS[name].run(view, layer)) for name in ("A0", *WITH_PRIOR)]
        usable = [(name, found) for name, found in trials if found is not None and found.rows.shape == prior.shape]
        if usable:
            return min(usable, key=lambda trial: _apart(trial[1].rows, prior))
    exposed = ATTACKS["A0"].run(view, layer)
    assert exposed is not None
    return "A0", exposed


def _apart(rows: Array, prior: Array) -> float:
    """Distance to the public model, rounded so that ties go to the attack with fewer unknowns."""
    return round(float(np.square(rows - prior).sum() / max(float(np.square(prior).sum()), 1e-300)), 2)
