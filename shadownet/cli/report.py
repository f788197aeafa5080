"""The verb report."""

from __future__ import annotations

import argparse
import os
import secrets
from pathlib import Path

from shadownet.cli.output import as_json, as_printed
from shadownet.progress import note
from shadownet.report import documents
from shadownet.report.assemble import assemble
from shadownet.report.page import render
from shadownet.wire.errors import InputError


def report(args: argparse.Namespace) -> None:
    """Write one page from a bundle, from results, or from both."""
    paths = [Path(p) for p in args.what]
    bundles = [p for p in paths if p.is_dir()]
    target = Path(args.output)
    if len(bundles) > 1:
        raise InputError(
            "a report describes one bundle", "give results of the others as JSON: attack --json, bench --json"
        )
    if not target.parent.is_dir():
        raise InputError(f"{target.parent} is no directory")
    if target.exists() and not args.overwrite:
        raise InputError(f"{target} exists already", "replace it with --overwrite, or choose another name with -o")
    if (args.base or args.data or args.pictures) and not args.model:
        raise InputError("--base, --data and --pictures need --model, the original")
    if args.model and not (bundles or args.pictures):
        raise InputError("--model goes with a bundle or with --pictures")
    found = documents.read(p for p in paths if not p.is_dir())
    collected = _collected(args, bundles)
    for value in collected:
        found += documents.documents(as_printed(value), "measured for this report")
    page = render(assemble(found))
    _write(target, page)
    if args.pictures:
        note(f"{target} shows activations of your model: give it to nobody who may not see those")
    if args.json:
        as_json({"report": str(target), "bytes": len(page), "documents": [d.value for d in found]})
        return
    print(f"{target}: {len(page) / 1000:.0f} kB, from {', '.join(dict.fromkeys(d.kind for d in found))}")


def _collected(args: argparse.Namespace, bundles: list[Path]) -> list[object]:
    """What is measured now: of the bundle, and the pictures that were asked for."""
    if args.model:
        _needs_scipy()
    found: list[object] = []
    if args.pictures:  # first, since what is wrong with them shows at once
        from shadownet.report import pictures

        note("report: pictures of what the accelerator sees")
        schemes = args.schemes.split(",") if args.schemes else None
        found.append(pictures.take(args.model, Path(args.pictures), schemes, args.base))
    if bundles:
        from shadownet.report.collect import Request, collect

        found += collect(Request(bundles[0], args.model, args.base, args.data, args.key))
    return found


def _needs_scipy() -> None:
    from shadownet.cli.attack import _needs_scipy as check

    check()


def _write(target: Path, page: str) -> None:
    """Whole or not at all."""
    work = target.with_name(f".{target.name}.{secrets.token_hex(4)}.tmp")
    try:
        work.write_text(page, encoding="utf-8")
        os.replace(work, target)
    except OSError as error:
        work.unlink(missing_ok=True)
        raise InputError(f"cannot write {target}: {error.strerror}") from None
