"""The attacks on weights by their names in the bench: each takes a view and one of its layers."""

from __future__ import annotations

from collections.abc import Callable

from shadownet.attacks import (
    exposed,
    group,
    intersection,
    lattice,
    lowrank,
    mask_blind,
    mask_prior,
    permutation,
    procrustes,
    rowspace,
    scale,
    unmix,
)
from shadownet.attacks.recovery import Recovery
from shadownet.attacks.view import AdversaryView, PublicLayer

Attack = Callable[[AdversaryView, PublicLayer], Recovery | None]

WEIGHT_ATTACKS: dict[str, Attack] = {
    "A0": exposed.attack,
    "A1": scale.attack,
    "A2": permutation.attack,
    "A3": mask_prior.attack,
    "A4": mask_blind.attack,
    "A6": rowspace.attack,
    "A7": group.attack,
    "A8": lowrank.attack,
    "A9": procrustes.attack,
    "A17": intersection.attack,
    "A19": unmix.attack,
    "A20": lattice.attack,
}
