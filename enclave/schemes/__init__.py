"""The registry of schemes."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable
from pathlib import Path

from enclave.schemes.base import Claims, LayerWeights, MaskRule, Obfuscated, Place, Plain, Scheme
from enclave.schemes.baselines import DELTA, NONE, SLALOM, TEE, darknetz
from enclave.schemes.mixing import groupcover, mix
from enclave.schemes.shadownet import ARTIFACT, FAST, PAPER
from shadownet.wire.errors import InputError

SCHEMES: dict[str, Scheme] = {s.name: s for s in (PAPER, ARTIFACT, FAST, NONE, TEE, SLALOM, DELTA)}
FAMILIES: dict[str, tuple[Callable[[str], Scheme], str]] = {  # NAME:VARIANT, and the variant that NAME alone means
    "darknetz": (darknetz, "last3"),
    "groupcover": (groupcover, "4"),
    "mix": (mix, "8"),
}
ALIASES = {"shadownet": PAPER.name}

_HINT = "it should set SCHEME; see docs/adding_a_scheme.md"

__all__ = [
    "ALIASES", "FAMILIES", "SCHEMES", "Claims", "LayerWeights", "MaskRule", "Obfuscated", "Place", "Plain", "Scheme",
    "admitted", "every", "get",
]  # fmt: skip


def get(name: str) -> Scheme:
    """Look a scheme up by ``NAME`` or ``NAME:VARIANT``, or load it from a Python file that defines ``SCHEME``.

    A file runs with the owner's rights. Raises ``InputError``.
    """
    if name.endswith(".py"):
        return _from_file(Path(name))
    full = ALIASES.get(name, name)
    if full in SCHEMES:
        return SCHEMES[full]
    family, _, variant = full.partition(":")
    if family not in FAMILIES:
        raise InputError(f"there is no scheme {name!r}", "shadownet schemes lists them")
    make, usual = FAMILIES[family]
    return make(variant or usual)


def every() -> list[Scheme]:
    """All schemes, families in their usual variant."""
    return [*SCHEMES.values(), *(make(usual) for make, usual in FAMILIES.values())]


def _from_file(path: Path) -> Scheme:
    spec = importlib.util.spec_from_file_location(f"scheme file {path.resolve()}", path)
    if spec is None or spec.loader is None or not path.is_file():
        raise InputError(f"there is no scheme file {path}", "shadownet schemes lists those that need none")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # data classes look for theirs there
    try:
        spec.loader.exec_module(module)
        scheme = module.SCHEME
    except Exception as error:
        raise InputError(f"{path} defines no scheme: {error}", _HINT) from error
    if not isinstance(scheme, Scheme):
        raise InputError(f"{path} defines no scheme: SCHEME lacks members of one", _HINT)
    return scheme


def admitted(scheme: Scheme, activations: str, integrity: str) -> tuple[str, ...]:
    """What a bundle with these options does not protect."""
    # What is known against activations is known against float masks.
    leaks = tuple(leak for leak in scheme.leaks if activations == "float" or not leak.startswith("activations:"))
    if integrity == "none":
        return (*leaks, "results: nothing checks answers beyond being finite (A14); labels then leak weights (A18)")
    if integrity.startswith("spot"):
        return (*leaks, "results: an answer that is not checked may be wrong (A14)")
    return leaks
