"""The verb arena."""

from __future__ import annotations

import argparse
from pathlib import Path

from shadownet.cli.attack import _needs_scipy
from shadownet.cli.output import as_json
from shadownet.wire.errors import InputError


def arena(args: argparse.Namespace) -> None:
    _needs_scipy()
    from shadownet.attacks import arena as matches
    from shadownet.attacks import results

    new = 0
    if args.models:
        plan = matches.Plan(
            tuple(args.models), tuple(args.schemes.split(",")), matches.names(args.attacks, args.data is not None),
            Path(args.out), args.base, args.data, tuple(args.budgets.split(",")), args.seeds, args.runs,
        )  # fmt: skip
        new = matches.run(plan, args.jobs, args.backend)
    cells = matches.load(Path(args.out))
    text = results.document(cells)
    target = Path(args.report or Path(args.out) / "MATRIX.md")
    try:
        target.write_text(text)
    except OSError as error:
        raise InputError(f"cannot write {target}: {error.strerror}") from None
    if args.json:
        as_json({"cells": cells, "new": new, "report": str(target)})
        return
    print(f"{len(cells)} cells in {args.out}, {new} of them new; wrote {target}\n")
    print(results.matrix(cells))
    print("\n" + results.taking_part(cells))
    print("\n" + results.thefts(cells))
