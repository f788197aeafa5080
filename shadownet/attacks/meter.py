"""The leak meter: what each scheme would leave to take of a user's own model, predicted by doing it.

The model is converted under every scheme into a folder that goes away, under a key that goes away, and attacked. The
secrets drawn for the real bundle will be others, so figures are predictions.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from enclave import keys, schemes
from shadownet.attacks import bench, registry
from shadownet.converter import convert
from shadownet.progress import note, track
from shadownet.wire.manifest import read_manifest


@dataclass(frozen=True)
class Reading:
    """One scheme: share of filters ``lost`` to the best attack on each layer, and (attack, score) for each layer."""

    scheme: str
    lost: float
    layers: tuple[tuple[str, Any], ...]

    def to_json(self) -> dict[str, Any]:
        layers = [{"attack": attack} | score.to_json() for attack, score in self.layers]
        return {"scheme": self.scheme, "lost": self.lost, "layers": layers}


def read(
    model: str | os.PathLike[str], base: str | os.PathLike[str] | None, names: Sequence[str] | None,
    attacks: Sequence[registry.Attack], ratio: float = 1.2,
) -> list[Reading]:  # fmt: skip
    """Read the meter for ``names`` (default: every scheme). Raises what converting raises."""
    found: list[Reading] = []
    for name in track(list(names or [scheme.name for scheme in schemes.every()]), "trying schemes"):
        scheme = schemes.get(name)
        if scheme.needs_base and base is None:
            note(f"{scheme.name} needs a public model: not tried without --base")
            continue
        with tempfile.TemporaryDirectory() as folder:
            key = Path(folder) / "device.key"
            keys.create(key)
            bundle = Path(folder) / "m.shadow"
            convert(model, bundle, scheme=name, ratio=ratio, key=key, base=base if scheme.needs_base else None)
            if not read_manifest(bundle)["layers"]:  # nothing goes out, so nothing is lost
                found.append(Reading(scheme.name, 0.0, ()))
                continue
            view = bench.open_view(bundle, base)
            outcomes = bench.weigh(view, bench.open_truth(bundle, model, key), attacks)
            total = sum(layer.filters for layer in view.layers)
        found.append(Reading(view.scheme, bench.lost(outcomes, total), tuple(bench.by_layer(outcomes))))
    return found
