"""Printing results: JSON for programs, tables for people."""

from __future__ import annotations

import json
from typing import Any

import numpy as np


def as_json(value: Any) -> None:
    """Print ``value`` as JSON on stdout."""
    print(json.dumps(value, indent=1, default=_plain))


def as_printed(value: Any) -> Any:
    """``value`` as whoever reads :func:`as_json`'s output gets it."""
    return json.loads(json.dumps(value, default=_plain))


def _plain(value: Any) -> Any:
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, np.ndarray):
        return value.tolist()
    return str(value)


def table(columns: list[str], rows: list[list[str]], title: str = "") -> None:
    """Print a table; plain text when piped, colours only on a terminal and without NO_COLOR."""
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = Console()
    if not console.is_terminal:
        console = Console(width=240)
    made = Table(title=Text(title) if title else None, title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)
    for name in columns:
        made.add_column(name, overflow="fold")
    for row in rows:
        made.add_row(*(Text(cell) for cell in row))  # Text: names come from models and must not be markup
    console.print(made)


def human(count: float) -> str:
    """1234567 -> "1.2 M"."""
    for unit in ("", " k", " M", " G"):
        if abs(count) < 1000 or unit == " G":
            return f"{count:.0f}{unit}" if unit == "" else f"{count:.1f}{unit}"
        count /= 1000
    raise AssertionError
