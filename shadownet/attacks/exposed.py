"""A0: read the public rows as they stand. What a scheme leaves in the clear needs no attack."""

from __future__ import annotations

from shadownet.attacks.recovery import Recovery
from shadownet.attacks.view import AdversaryView, PublicLayer


def attack(view: AdversaryView, layer: PublicLayer) -> Recovery:
    """The first n rows of each group; always applies."""
    return Recovery(layer.rows[:, : layer.per_group].copy(), ordered=layer.slots == layer.per_group, form="as it is")
