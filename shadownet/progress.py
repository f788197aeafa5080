"""Progress on stderr for whatever takes more than two seconds, and only on a terminal."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, TypeVar

T = TypeVar("T")
_PATIENCE_S = 2.0


def track(items: Sequence[T] | Iterable[T], what: str, total: int | None = None) -> Iterator[T]:
    """Iterate over ``items``; draws a bar with an estimate once two seconds have passed."""
    count = total if total is not None else len(items) if isinstance(items, Sequence) else None
    start, bar = time.monotonic(), None
    try:
        for done, item in enumerate(items):
            yield item
            if bar is None and sys.stderr.isatty() and time.monotonic() - start > _PATIENCE_S:
                bar = _bar()
                bar.start()
                task = bar.add_task(what, total=count)
            if bar is not None:
                bar.update(task, completed=done + 1)
    finally:
        if bar is not None:
            bar.stop()


def _bar() -> Any:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    return Progress(*columns, console=Console(stderr=True), transient=True)


def note(message: str) -> None:
    """A line of log on stderr."""
    print(f"shadownet: {message}", file=sys.stderr, flush=True)
