"""Printing results: JSON for programs, tables for people."""

from __future__ import annotations

import json
import sys
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
    """Print a table: aligned plain text when piped; drawn on a terminal, without colours if NO_COLOR is set."""
    if not sys.stdout.isatty():
        _plain_table(columns, rows, title)
        return
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    made = Table(title=Text(title) if title else None, title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)
    for name in columns:
        made.add_column(name, overflow="fold")
    for row in rows:
        made.add_row(*(Text(cell) for cell in row))  # Text: names come from models and must not be markup
    Console().print(made)


def _plain_table(columns: list[str], rows: list[list[str]], title: str) -> None:
    cells = [["".join(c if c.isprintable() else "?" for c in cell) for cell in row] for row in (columns, *rows)]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in cells]
    lines.insert(1, "  ".join("-" * width for width in widths))
    print("\n".join([title, *lines] if title else lines))


def human(count: float) -> str:
    """1234567 -> "1.2 M"."""
    for unit in ("", " k", " M", " G"):
        if abs(count) < 1000 or unit == " G":
            return f"{count:.0f}{unit}" if unit == "" else f"{count:.1f}{unit}"
        count /= 1000
    raise AssertionError
