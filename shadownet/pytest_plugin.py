"""pytest plugin: a test for each gates file, so that a bundle that leaks too much fails the build.

    # pytest.ini
    [pytest]
    shadownet_gates = security/model.toml

Each file names its bundle and model (see :mod:`shadownet.attacks.gates`). ``--shadownet-gates FILE`` adds more. The
fixture ``shadownet_check(bundle, model, gates)`` does the same inside a test. Nothing heavy is imported until it runs.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest


class GatesFailed(Exception):
    """Some gates failed; the message is the table."""


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addini("shadownet_gates", "gates files of shadownet bundles to check", type="paths", default=[])
    group = parser.getgroup("shadownet")
    group.addoption("--shadownet-gates", action="append", default=[], metavar="FILE", help="check this gates file too")


def pytest_collection_modifyitems(session: pytest.Session, config: pytest.Config, items: list[pytest.Item]) -> None:
    """Add an item for each gates file after the collected tests."""
    named = [Path(p) for p in config.getini("shadownet_gates")]
    named += [config.invocation_params.dir / p for p in config.getoption("--shadownet-gates")]
    items.extend(GatesItem.from_parent(session, name=f"gates: {path.name}", file=path) for path in named)


class GatesItem(pytest.Item):
    """Checks one gates file."""

    def __init__(self, *, file: Path, **more: Any) -> None:
        super().__init__(**more)
        self.file = file

    def runtest(self) -> None:
        from shadownet.attacks.gates import read_gates
        from shadownet.wire.errors import InputError

        gates = read_gates(self.file)
        if not {"bundle", "model"} <= gates.paths.keys():
            raise InputError(f"{self.file} does not say which bundle and model = it is about")
        _check(gates.paths["bundle"], gates.paths["model"], gates)

    def repr_failure(self, excinfo: pytest.ExceptionInfo[BaseException], style: Any = None) -> Any:
        from shadownet.wire.errors import Error

        if isinstance(excinfo.value, (GatesFailed, Error)):
            return str(excinfo.value)
        return super().repr_failure(excinfo, style)

    def reportinfo(self) -> tuple[Path, int | None, str]:
        return self.file, None, self.name


@pytest.fixture
def shadownet_check() -> Callable[..., None]:
    """``check(bundle, model, gates_file)`` fails the test if a gate fails."""

    def check(bundle: str, model: str, gates_file: str) -> None:
        from shadownet.attacks.gates import read_gates

        _check(bundle, model, read_gates(gates_file))

    return check


def _check(bundle: Any, model: Any, gates: Any) -> None:
    from shadownet.attacks.gates import judge

    failed = [r for r in judge(gates, bundle, model) if not r.passed]
    if failed:
        lines = [f"{r.gate}: {r.found:.3f} is above {r.limit:.3f} ({r.where})" for r in failed]
        raise GatesFailed("\n".join([f"{bundle} leaks too much:", *lines]))
