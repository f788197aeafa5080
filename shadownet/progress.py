"""Progress on stderr for whatever takes more than two seconds, and only on a terminal."""

from __future__ import annotations

import contextlib
import os
import sys
import threading
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, TypeVar

T = TypeVar("T")
_PATIENCE_S = 2.0
_drawing = threading.Lock()  # one bar at a time: what runs inside something with a bar draws none


def track(items: Sequence[T] | Iterable[T], what: str, total: int | None = None) -> Iterator[T]:
    """Iterate over ``items``; after two seconds a bar shows how many are done and estimates the time left."""
    count = total if total is not None else len(items) if isinstance(items, Sequence) else None
    with _Bar(what, count) as bar:
        for item in items:
            yield item
            bar.advance()


def working(what: str) -> contextlib.AbstractContextManager[object]:
    """For one long step that cannot be divided: after two seconds a line shows what runs and for how long."""
    return _Bar(what, None)


class _Bar:
    """Draws itself when two seconds have passed, from a thread, since the first item may take longer than that."""

    def __init__(self, what: str, total: int | None) -> None:
        self._what, self._total, self._done = what, total, 0
        self._lock = threading.Lock()
        self._progress: Any = None
        self._timer: threading.Timer | None = None

    def __enter__(self) -> _Bar:
        if sys.stderr.isatty() and _drawing.acquire(blocking=False):
            self._timer = threading.Timer(_PATIENCE_S, self._start)
            self._timer.daemon = True
            self._timer.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._timer is None:
            return
        with self._lock:
            self._timer.cancel()
            self._timer = None
            if self._progress is not None:
                self._progress.stop()
        _drawing.release()

    def advance(self) -> None:
        self._done += 1
        if self._progress is not None:
            self._progress.update(self._task, completed=self._done)

    def _start(self) -> None:
        with self._lock:
            if self._timer is not None:  # else it ended at this very moment
                progress = _columns()
                self._task = progress.add_task(self._what, total=self._total, completed=self._done)
                progress.start()
                self._progress = progress


def _columns() -> Any:
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), "left:",
               TimeRemainingColumn())  # fmt: skip
    return Progress(*columns, console=Console(stderr=True), transient=True)


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Silence what native libraries write to stderr while they start: LiteRT reports each driver that is not there."""
    sys.stderr.flush()
    with contextlib.ExitStack() as restoring:
        kept = os.dup(2)
        restoring.callback(os.close, kept)
        restoring.callback(os.dup2, kept, 2)
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, 2)
        os.close(null)
        yield


def note(message: str) -> None:
    """A line of log on stderr."""
    print(f"shadownet: {message}", file=sys.stderr, flush=True)
