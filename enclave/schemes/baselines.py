"""Baselines and published splits that transform no weights: none, tee, darknetz, slalom, delta."""

from __future__ import annotations

from dataclasses import dataclass

from enclave.schemes.base import FLOAT_MASKS, PUBLIC, Claims, Place, Plain, is_count
from shadownet.wire.errors import InputError

NONE = Plain(
    "none",
    Claims("public", "public", "none: the floor of every comparison", "-"),
    ("weights and activations: in clear on the accelerator; this protects nothing", PUBLIC),
)


@dataclass(frozen=True)
class Tee(Plain):
    """Everything in the enclave."""

    def keeps(self, place: Place) -> str:
        return "the scheme keeps everything in the enclave"


TEE = Tee(
    "tee",
    Claims("hidden", "hidden", "all work in the enclave", "-"),
    ("architecture is not in the public half; what remains is what labels and timing tell (A13)",),
)

SLALOM = Plain(
    "slalom",
    Claims("public", "one-time pads mod p", "pads: one layer of enclave work each, beforehand", "Tramer & Boneh 2019"),
    ("weights: public by design", FLOAT_MASKS, PUBLIC),
    masks_input=True,
    activations="exact",
)

DELTA = Plain(
    "delta",
    Claims("the difference to the base hidden", "one-time pads mod p", "the difference computed in the enclave",
           "after AsymML, SLIP and TEESlice"),
    (
        "weights: as close to the public base as the base is (A1 to A10 score as the base alone)",
        "with float activations the claim is withdrawn: averaging (A15) and peeling (A16) bring the difference back",
        FLOAT_MASKS,
        PUBLIC,
    ),
    masks_input=True,
    activations="exact",
    needs_base=True,
)  # fmt: skip


@dataclass(frozen=True)
class DarkneTZ(Plain):
    """The ``count`` first or last linear layers in the enclave, the rest in clear (Mo et al., MobiSys 2020)."""

    side: str = "last"
    count: int = 3

    def keeps(self, place: Place) -> str:
        kept = place.position < self.count if self.side == "first" else place.position >= place.count - self.count
        return f"the scheme keeps the {self.side} {self.count} linear layers" if kept else ""


def darknetz(variant: str) -> DarkneTZ:
    """``lastK`` or ``firstK``. Raises ``InputError``."""
    side = next((s for s in ("last", "first") if variant.startswith(s)), "")
    number = variant.removeprefix(side)
    if not side or not is_count(number, 1, 10_000):
        raise InputError(f"darknetz takes lastK or firstK, not {variant!r}", "such as darknetz:last3")
    return DarkneTZ(
        f"darknetz:{side}{int(number)}",
        Claims(f"{side} {number} layers hidden, the rest public", "public between the rest", "those layers",
               "Mo et al. 2020"),
        (
            "weights: the layers outside are in clear; with a public relative or few labelled queries the rest is "
            "trained anew (TEESlice; A13)",
            "activations: in clear outside the enclave",
            PUBLIC,
        ),
        side=side, count=int(number),
    )  # fmt: skip
