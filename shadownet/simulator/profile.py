"""Device profiles: TOML files in which every number has a source and a confidence. Read as hostile input."""

from __future__ import annotations

import math
import os
import re
import tomllib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from shadownet.graph.ir import OP_NAMES
from shadownet.wire.errors import InputError
from shadownet.wire.paths import resolve_key

PACKAGED = Path(__file__).resolve().parent.parent / "devices"
MINE = "this-machine"

MAX_FILE = 1 << 16
MAX_TEXT = 400
CONFIDENCE = {
    "P": "read in the primary source",
    "S": "a secondary source",
    "D": "derived here from published measurements",
    "M": "measured by shadownet calibrate",
    "U": "assumed: nothing readable was found",
}

# Section -> parameter -> (least, most). docs/simulator.md says what each means.
PARAMETERS: dict[str, dict[str, tuple[float, float]]] = {
    "accelerator": {"op_us": (0, 1e6), "gmac_s": (1e-4, 1e7), "gelem_s": (1e-4, 1e6), "weights_gb_s": (1e-4, 1e6)},
    "enclave": {
        "op_us": (0, 1e6), "gmac_s": (1e-4, 1e7), "gelem_s": (1e-4, 1e6), "weights_gb_s": (1e-4, 1e6),
        "unseal_gb_s": (1e-4, 1e5), "memory_mib": (0.01, 1e9), "base_mib": (0, 1e6), "swap_us": (0, 1e6),
    },
    "crossing": {
        "app_us": (0, 1e6), "switch_us": (0, 1e6), "map_us_per_mib": (0, 1e6), "page_us": (0, 1e4), "gb_s": (1e-4, 1e6),
    },
    "power": {"accelerator_w": (0, 1e5), "enclave_w": (0, 1e5)},
}  # fmt: skip
# The same for parameters that need not be there, with what is meant then.
OPTIONAL: dict[str, dict[str, tuple[float, float, float]]] = {
    "accelerator": {"small_mmac": (0, 1e6, 0), "small_factor": (1, 1e3, 1)}
}
FLAGS = {"enclave": ("overlaps",)}
# What a kind of op may have of its own, on either side. In the enclave CHECK is checking answers, PASS is masking,
# copying and restoring, MASK is drawing random values.
RATES = {"gmac_s", "gelem_s", "weights_gb_s"}
KINDS = {*OP_NAMES.values(), "CHECK", "PASS", "MASK"}
SIDES = ("accelerator", "enclave")


@dataclass(frozen=True)
class Number:
    """A parameter: the true value is taken to lie between ``value / within`` and ``value * within``."""

    value: float
    within: float
    confidence: str
    source: str


@dataclass(frozen=True)
class Device:
    """A parsed profile. ``numbers`` by section and parameter; ``kinds`` are rates by side and kind of op.

    ``overlaps``: the enclave computes while the accelerator does. ``path`` is where the profile was read.
    """

    name: str
    description: str
    numbers: dict[str, dict[str, Number]]
    kinds: dict[str, dict[str, dict[str, Number]]] = field(default_factory=dict)
    overlaps: bool = False
    path: Path = Path()

    def get(self, section: str, name: str) -> Number:
        found = self.numbers[section].get(name)
        return found or Number(OPTIONAL[section][name][2], 1.0, "U", "not given")

    def rate(self, side: str, name: str, kind: str) -> Number:
        """A rate for one kind of op."""
        return self.kinds.get(side, {}).get(kind, {}).get(name) or self.numbers[side][name]


def own_directory() -> Path:
    """Where the user's own profiles are: beside the device key."""
    return resolve_key(None).parent / "devices"


def names() -> list[str]:
    """Profiles that :func:`load` finds by name."""
    return sorted(
        {path.stem for folder in (PACKAGED, own_directory()) for path in folder.glob("*.toml")} - {"template"}
    )


def load(name: str) -> Device:
    """A profile by name (the user's own first), or by the path of a .toml file. Raises ``InputError``."""
    if name.endswith(".toml"):
        return _read(Path(name))
    if re.fullmatch(r"[a-z0-9][a-z0-9-]{0,60}", name):
        for folder in (own_directory(), PACKAGED):
            if (folder / f"{name}.toml").is_file():
                return _read(folder / f"{name}.toml")
    if name == MINE:
        raise InputError("this machine has not been measured", "shadownet calibrate")
    raise InputError(f"there is no device {name[:60]!r}", f"known: {', '.join(names())}; or name a .toml file")


def _read(path: Path) -> Device:
    try:
        with open(path, "rb") as file:
            body = file.read(MAX_FILE + 1)
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror}") from None
    try:
        if len(body) > MAX_FILE:
            raise ValueError(f"it is larger than {MAX_FILE} bytes")
        return parse(tomllib.loads(body.decode()), path)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path} is no device profile: {str(error)[:MAX_TEXT]}", "see docs/simulator.md") from None


def parse(record: dict[str, Any], path: Path = Path()) -> Device:
    """Check a profile's parsed TOML. Raises ``ValueError`` for whatever is missing, unknown or out of bounds."""
    _only(record, {"name", "description", *PARAMETERS}, "the file")
    numbers: dict[str, dict[str, Number]] = {}
    kinds: dict[str, dict[str, dict[str, Number]]] = {}
    overlaps = False
    for section, parameters in PARAMETERS.items():
        table, optional = _table(record.get(section), section), OPTIONAL.get(section, {})
        known = {*parameters, *optional, *FLAGS.get(section, ()), *(("kinds",) if section in SIDES else ())}
        _only(table, known, section)
        numbers[section] = {name: _number(table.get(name), name, bounds) for name, bounds in parameters.items()}
        given = {name: bounds[:2] for name, bounds in optional.items() if name in table}
        numbers[section] |= {name: _number(table[name], name, bounds) for name, bounds in given.items()}
        overlaps = overlaps or _flag(table.get("overlaps", False))
        kinds[section] = _kinds(_table(table.get("kinds", {}), "kinds"), parameters)
    return Device(_text(record, "name"), _text(record, "description"), numbers, kinds, overlaps, path)


def _kinds(table: dict[str, Any], bounds: dict[str, tuple[float, float]]) -> dict[str, dict[str, Number]]:
    found = {}
    for kind, own in table.items():
        if kind not in KINDS:
            raise ValueError(f"there is no op {kind[:40]!r}")
        _only(_table(own, kind), RATES, kind)
        found[kind] = {name: _number(value, name, bounds[name]) for name, value in own.items()}
    return found


def _only(table: dict[str, Any], known: set[str], where: str) -> None:
    if unknown := sorted(set(table) - known):
        raise ValueError(f"{where} has an unknown entry {unknown[0][:40]!r}")


def _table(value: Any, name: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise ValueError(f"{name} is no table")
    return value


def _flag(value: Any) -> bool:
    if not isinstance(value, bool):
        raise ValueError("overlaps is true or false")
    return value


def _text(table: dict[str, Any], name: str) -> str:
    value = table.get(name)
    if not isinstance(value, str) or not 0 < len(value) <= MAX_TEXT or not value.isprintable():
        raise ValueError(f"{name} is no line of text of at most {MAX_TEXT} characters")
    return value


def _number(value: Any, name: str, bounds: tuple[float, float]) -> Number:
    table = _table(value, name)
    _only(table, {"value", "within", "confidence", "source"}, name)
    amount, within = (_real(table.get(key), f"{name}.{key}") for key in ("value", "within"))
    if not bounds[0] <= amount <= bounds[1]:
        raise ValueError(f"{name} is not between {bounds[0]:g} and {bounds[1]:g}")
    if not 1 <= within <= 100:
        raise ValueError(f"{name}.within is a factor between 1 and 100")
    confidence = table.get("confidence")
    if not isinstance(confidence, str) or confidence not in CONFIDENCE:
        raise ValueError(f"{name}.confidence is one of {', '.join(CONFIDENCE)}")
    return Number(amount, within, confidence, _text(table, "source"))


def _real(value: Any, name: str) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or abs(value) > 1e12 or not math.isfinite(value):
        raise ValueError(f"{name} is no finite number")
    return float(value)


def write(device: Device, path: Path) -> None:
    """Write a profile that :func:`load` reads, whole or not at all. Raises ``InputError``."""
    lines = [f"name = {_quoted(device.name)}", f"description = {_quoted(device.description)}"]
    for section, numbers in device.numbers.items():
        lines += ["", f"[{section}]"]
        lines += [f"overlaps = {str(device.overlaps).lower()}"] if section in FLAGS else []
        lines += [f"{name} = {_inline(number)}" for name, number in numbers.items()]
        for kind, own in device.kinds.get(section, {}).items():
            lines += [f"kinds.{kind}.{name} = {_inline(number)}" for name, number in own.items()]
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        work = path.with_name(f".{path.name}.{os.getpid()}.tmp")
        try:
            work.write_text("\n".join(lines) + "\n")
            os.replace(work, path)
        finally:
            work.unlink(missing_ok=True)
    except OSError as error:
        raise InputError(f"cannot write {path}: {error.strerror}") from None


def _inline(number: Number) -> str:
    return (
        f"{{ value = {number.value!r}, within = {number.within!r}, confidence = {_quoted(number.confidence)}, "
        f"source = {_quoted(number.source)} }}"
    )


def _quoted(text: str) -> str:
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'
