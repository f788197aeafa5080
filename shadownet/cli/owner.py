"""The owner's verbs: keygen, convert, seal, schemes."""

from __future__ import annotations

import argparse
from pathlib import Path

from shadownet.cli.output import as_json, human, table
from shadownet.wire.paths import resolve_key


def keygen(args: argparse.Namespace) -> None:
    from enclave import keys

    path = resolve_key(args.output)
    keys.create(path)
    as_json({"key": str(path)}) if args.json else print(f"wrote {path}: keep it on the device, and nowhere else")


def convert(args: argparse.Namespace) -> None:
    from enclave import schemes
    from shadownet.converter import convert as run

    summary = run(
        args.model, args.output, scheme=args.scheme, ratio=args.ratio, activations=args.activations,
        integrity=args.integrity, outsource=args.outsource, calibration=args.calibration, key=args.key,
        overwrite=args.overwrite, bits=args.bits,
    )  # fmt: skip
    leaks = schemes.get(args.scheme).leaks
    if args.activations == "exact":  # what is known against activations is known against float masks
        leaks = tuple(leak for leak in leaks if not leak.startswith("activations:"))
    if args.json:
        as_json(summary | {"leaks": leaks})
        return
    verdict = summary["verdict"]
    print(
        f"{summary['bundle']}: {summary['layers_outsourced']} of {summary['ops']} ops outsourced "
        f"({human(summary['linear_macs_outsourced'])} multiply-adds), {human(summary['bytes'])}B, "
        f"{summary['seconds']:.1f} s"
    )
    print(f"verified against the original on {verdict['samples']} inputs: largest difference {verdict['worst']:.1e}")
    for line in summary["kept_inside"]:
        print(f"kept in the enclave: {line}")
    for name in verdict["uncertain"]:
        print(f"output {name!r} jumps when its input moves a little: not judged")
    if summary["layers_outsourced"]:
        print(f"what {summary['scheme']} does not protect:")
        for leak in leaks:
            print(f"  - {leak}")


def seal(args: argparse.Namespace) -> None:
    from shadownet import bundle

    bundle.reseal(args.bundle, args.output, resolve_key(args.key), Path(args.for_key), args.overwrite)
    as_json({"bundle": args.output}) if args.json else print(f"{args.output}: sealed for {args.for_key}")


def schemes(args: argparse.Namespace) -> None:
    from enclave import schemes as registry

    if args.json:
        as_json([{"name": s.name, "protects": s.protects, "leaks": s.leaks} for s in registry.SCHEMES.values()])
        return
    rows = [[s.name, "\n".join(s.protects), "\n".join(s.leaks)] for s in registry.SCHEMES.values()]
    table(["scheme", "protects", "leaks, and what breaks it"], rows)
