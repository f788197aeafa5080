"""What a terminal shows: bars for what takes long, tables, nothing of either in a pipe, and nothing left behind."""

from __future__ import annotations

import contextlib
import io
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from shadownet import progress
from shadownet.cli.output import table

ROOT = Path(__file__).resolve().parent.parent
ROWS = [["a", "1"], ["longer", "22"]]


class Terminal(io.StringIO):
    """A screen; within ``with`` it is where stdout and stderr go."""

    def isatty(self) -> bool:
        return True

    def __enter__(self) -> Terminal:
        self._redirected = contextlib.ExitStack()
        self._redirected.enter_context(contextlib.redirect_stdout(self))
        self._redirected.enter_context(contextlib.redirect_stderr(self))
        return self

    def __exit__(self, *_: object) -> None:
        self._redirected.close()


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch) -> Terminal:
    """A terminal of known size, on which bars come at once."""
    for name, value in {"TERM": "xterm-256color", "COLUMNS": "100", "LINES": "30"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setattr(progress, "_PATIENCE_S", 0.0)
    return Terminal()


def slowly(screen: Terminal, what: str) -> Iterator[int]:
    """Three items, the second not before the bar is on the screen."""
    yield 0
    deadline = time.monotonic() + 5
    while what not in screen.getvalue() and time.monotonic() < deadline:
        time.sleep(0.01)
    yield 1
    yield 2


def test_a_bar_with_an_estimate_comes_and_goes(terminal: Terminal) -> None:
    with terminal:
        assert list(progress.track(slowly(terminal, "counting"), "counting", 3)) == [0, 1, 2]
    text = terminal.getvalue()
    assert "counting" in text and "/3" in text and "left:" in text
    assert text.endswith("\x1b[2K")  # it is wiped, not left standing
    assert not any(isinstance(t, threading.Timer) for t in threading.enumerate())


def test_the_first_item_may_take_long(terminal: Terminal) -> None:
    with terminal, progress.working("thinking"):
        next(items := slowly(terminal, "thinking"))
        next(items)
    assert "thinking" in terminal.getvalue()


def test_inner_bars_stay_silent_and_the_next_one_draws(terminal: Terminal) -> None:
    with terminal:
        for _ in progress.track(range(1), "outer"):
            list(progress.track(slowly(terminal, "outer"), "inner", 3))
        list(progress.track(slowly(terminal, "second"), "second", 3))
    assert "outer" in terminal.getvalue() and "inner" not in terminal.getvalue()
    assert "second" in terminal.getvalue()


def test_a_bar_ends_with_an_exception_and_with_control_c(terminal: Terminal) -> None:
    for error in (ValueError, KeyboardInterrupt):
        with pytest.raises(error), terminal, progress.working("failing"):
            raise error
    with terminal:
        list(progress.track(slowly(terminal, "after"), "after", 3))
    assert "after" in terminal.getvalue()


def test_no_bar_in_a_pipe(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(progress, "_PATIENCE_S", 0.0)
    for _ in progress.track(range(3), "counting"):
        time.sleep(0.05)
    assert capsys.readouterr() == ("", "")


def test_tables_in_a_pipe_are_plain_text(capsys: pytest.CaptureFixture[str]) -> None:
    table(["name", "n"], [*ROWS, ["\x1b[31m", "3"]], "title")
    assert capsys.readouterr().out.splitlines() == [
        "title", "name    n", "------  --", "a       1", "longer  22", "?[31m   3",
    ]  # fmt: skip


def test_tables_on_a_terminal_and_no_color(terminal: Terminal, monkeypatch: pytest.MonkeyPatch) -> None:
    with terminal:
        table(["name", "n"], ROWS, "title")
    assert all(word in terminal.getvalue() for word in ("title", "longer", "22"))
    monkeypatch.setenv("NO_COLOR", "1")
    start = len(terminal.getvalue())
    with terminal:
        list(progress.track(slowly(terminal, "colourless"), "colourless", 3))
        table(["name", "n"], ROWS)
    shown = terminal.getvalue()[start:]
    assert "\x1b[3" not in shown and "\x1b[4m" not in shown and "38;5" not in shown


def test_a_terminal_that_lacks_characters() -> None:
    """Output holds characters beyond ASCII; a stream that has none of them shows something else, and no traceback."""
    done = subprocess.run(
        [sys.executable, "-P", "-m", "shadownet", "convert", "-h"], capture_output=True, cwd=ROOT,
        env={"PYTHONIOENCODING": "ascii", "PYTHONPATH": str(ROOT), "PATH": "/usr/bin:/bin"},
    )  # fmt: skip
    assert done.returncode == 0 and b"usage: shadownet convert" in done.stdout, done.stderr


def test_importing_costs_little() -> None:
    """No library but the standard one's: import shadownet stays below what anybody would notice."""
    code = "import sys, shadownet; print(sorted(m for m in sys.modules if m.split('.')[0] in sys.argv[1:]))"
    heavy = ["numpy", "rich", "ai_edge_litert", "scipy", "PIL", "Crypto", "tensorflow", "flatbuffers"]
    done = subprocess.run([sys.executable, "-c", code, *heavy], capture_output=True, text=True, check=True, cwd=ROOT)
    assert done.stdout.strip() == "[]"
