"""Results as files: JSON that any verb printed with ``--json``, told apart by its keys, and read as if hostile.

A page is made of what is read here, so every value passes through :func:`text`, :func:`number`, :func:`count`,
:func:`items` or :func:`record`: names become printable and short, numbers finite, lists bounded.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from shadownet.wire.errors import InputError

T = TypeVar("T")

MAX_FILE = 64 << 20
MAX_FILES = 2000
MAX_ITEMS = 50_000
MAX_TEXT = 200

# What a document must have to be of a kind; the first that fits is taken.
KINDS: dict[str, set[str]] = {
    "documents": {"documents"},
    "trace": {"traceEvents"},
    "bundle": {"manifest", "sizes"},
    "inspect": {"model", "entries"},
    "meter": {"model", "predicted"},
    "attack": {"bundle", "attacks", "filters"},
    "check": {"bundle", "gates"},
    "arena": {"cells"},
    "cell": {"model", "scheme", "attack", "runs"},
    "simulate": {"devices", "rows", "notes"},
    "verify": {"worst", "differing", "top"},
    "accuracy": {"accuracy"},
    "rounding": {"rounding"},
    "pictures": {"pictures"},
    "run": {"median_ms", "crossings"},
    "bench": {"rows", "environment"},
}


@dataclass(frozen=True)
class Document:
    """One result: its ``kind``, the file or command it came from, and the JSON itself."""

    kind: str
    source: str
    value: Any


def read(paths: Iterable[Path]) -> list[Document]:
    """Read result files. Raises ``InputError`` for a file that is not one."""
    found: list[Document] = []
    for path in paths:
        found += documents(_load(path), path.name)
    return found


def documents(value: Any, source: str) -> list[Document]:
    """The documents in one JSON value: a verb's result, a list of them, or what ``report --json`` printed."""
    parts = value if isinstance(value, list) else [value]
    found = []
    for part in parts:
        kind = next((k for k, keys in KINDS.items() if isinstance(part, dict) and keys <= part.keys()), None)
        if kind is None:
            raise InputError(f"{source} is no result of shadownet", "give what a verb printed with --json")
        if kind == "documents":
            for inner in part["documents"] if isinstance(part["documents"], list) else ():
                if isinstance(inner, dict) and "documents" not in inner:  # one level is enough
                    found += documents(inner, source)
        else:
            found.append(Document(kind, text(source), part))
    if not found or len(found) > MAX_FILES:
        raise InputError(f"{source} holds {'too many' if found else 'no'} results")
    return found


def _load(path: Path) -> Any:
    try:
        with open(path, "rb") as file:
            body = file.read(MAX_FILE + 1)
        if len(body) > MAX_FILE:
            raise InputError(f"{path} is larger than {MAX_FILE >> 20} MiB")
        return json.loads(body)
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror}") from None
    except (ValueError, RecursionError):  # ValueError: no JSON, no UTF-8, or a number of a million digits
        raise InputError(f"{path} is no JSON", "give what a verb printed with --json") from None


def parsed(document: Document, parse: Callable[[Any], T]) -> T:
    """``parse`` the document's JSON. Raises ``InputError`` where it is not what its verb prints."""
    try:
        return parse(document.value)
    except (ValueError, TypeError, KeyError, IndexError, AttributeError, OverflowError, RecursionError):
        raise InputError(
            f"{document.source} is damaged: not what shadownet prints for {document.kind!r}", "make it anew"
        ) from None


def text(value: Any) -> str:
    """A short printable string: control and bidirectional characters of a hostile name are shown, not obeyed."""
    if not isinstance(value, (str, int, float)):
        raise ValueError(type(value).__name__)
    shown = "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in str(value)[: MAX_TEXT + 1])
    return shown if len(shown) <= MAX_TEXT else shown[: MAX_TEXT - 1] + "…"


def number(value: Any) -> float | None:
    """A finite number, or None for none and for what is not finite."""
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise ValueError(type(value).__name__)
    return float(value) if math.isfinite(float(value)) else None


def count(value: Any) -> int:
    """A whole number from 0 to 2^53, which every reader of JSON holds exactly."""
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= 1 << 53:
        raise ValueError("no count")
    return value


def items(value: Any) -> list[Any]:
    if not isinstance(value, list) or len(value) > MAX_ITEMS:
        raise ValueError("no list")
    return value


def record(value: Any) -> dict[str, Any]:
    if not isinstance(value, dict) or len(value) > MAX_ITEMS:
        raise ValueError("no record")
    return value


def shape(value: Any) -> list[int]:
    """A tensor's shape; -1 stands for what is not fixed."""
    found = items(value)
    if len(found) > 16:
        raise ValueError("no shape")
    return [-1 if d == -1 else count(d) for d in found]
