"""What the scorer alone knows: the victim's true rows, and the restoring maps of the sealed half.

No attack imports this (see setup.cfg); nothing here is handed to one.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from enclave import container, keys, sealing
from enclave.restore import Restore
from shadownet.attacks.base import model_layers
from shadownet.wire.errors import BundleError, InputError
from shadownet.wire.manifest import read_manifest
from shadownet.wire.paths import resolve_key

Array = np.ndarray[Any, Any]


@dataclass(frozen=True, eq=False)
class TrueLayer:
    """One outsourced layer of the victim: ``rows`` float64 [groups, n, d], and its map if the key was at hand.

    Rows of quantised layers are centred integers, as the public rows are. ``restore`` speaks of slots over all groups.
    """

    name: str
    rows: Array
    depthwise: bool
    restore: Restore | None = None

    def sent(self) -> Array:
        """``rows`` with input channels in the order in which they are sent; natural where that is not known."""
        order = None if self.restore is None or self.depthwise else self.restore.order
        if order is None or self.rows.shape[2] % len(order):
            return self.rows
        return self.rows.reshape(*self.rows.shape[:2], -1, len(order))[..., order].reshape(self.rows.shape)

    def pairs(self) -> Array | None:
        """(filter slot, mask slot) of each filter, int64 [n over all groups, 2]; None where no pair exists."""
        if self.restore is None or len(self.restore.slot) != 2:
            return None
        return self.restore.slot.T.astype(np.int64)


def read_truth(
    bundle: str | os.PathLike[str],
    model: str | os.PathLike[str],
    key: str | os.PathLike[str] | None = None,
    sealed: bool = True,
) -> tuple[TrueLayer, ...]:
    """The truth of each layer of ``bundle``, by op id from the original ``model``.

    ``sealed`` also opens the sealed half, which needs the device key. Raises ``BundleError``, ``ModelError``, and
    ``InputError`` if the bundle was not made from this model.
    """
    directory = Path(bundle)
    described = read_manifest(directory)["layers"]
    maps: list[Restore | None] = list(_maps(directory, key)) if sealed else [None] * len(described)
    if len(maps) != len(described):
        raise BundleError("the two halves of the bundle describe different layers")
    left = model_layers(model)
    found = []
    for record, restore in zip(described, maps, strict=True):
        match = next((m for m in left if (m.op_id, m.kind) == (record["id"], record["op"])), None)
        if match is None or match.rows.shape[0] * match.rows.shape[1] != record["filters"]:
            raise InputError(f"the bundle was not made from {model}: layer {record['signature']} is not in it")
        left.remove(match)  # entries come in order: where ids collide, the first left is the right one
        found.append(TrueLayer(str(record["signature"]), match.rows, match.depthwise, restore))
    return tuple(found)


def _maps(directory: Path, key: str | os.PathLike[str] | None) -> list[Restore]:
    _, plaintext = sealing.unseal(directory, keys.load(resolve_key(key)))
    program, blobs = container.unpack(plaintext)
    return [
        Restore.from_blobs({name: blobs[blob] for name, blob in layer["restore"].items()})
        for layer in program["layers"]
    ]
