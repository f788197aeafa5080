"""The registry of schemes."""

from __future__ import annotations

from enclave.schemes.base import LayerWeights, MaskRule, Obfuscated, Scheme
from enclave.schemes.shadownet import ARTIFACT, FAST, PAPER
from shadownet.wire.errors import InputError

SCHEMES: dict[str, Scheme] = {scheme.name: scheme for scheme in (PAPER, ARTIFACT, FAST)}
ALIASES = {"shadownet": PAPER.name}

__all__ = ["ALIASES", "SCHEMES", "LayerWeights", "MaskRule", "Obfuscated", "Scheme", "get"]


def get(name: str) -> Scheme:
    """Look a scheme up by ``NAME`` or ``NAME:VARIANT``. Raises ``InputError``."""
    full = ALIASES.get(name, name)
    if full not in SCHEMES:
        raise InputError(f"there is no scheme {name!r}", "shadownet schemes lists them")
    return SCHEMES[full]
