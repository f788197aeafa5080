"""The owner's verbs: keygen, convert, seal, schemes."""

from __future__ import annotations

import argparse
from pathlib import Path

from enclave.schemes import admitted
from shadownet.cli.output import as_json, human, table
from shadownet.wire.paths import resolve_key
from shadownet.wire.precision import mask_share


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
        overwrite=args.overwrite, bits=args.bits, base=args.base, delta_tolerance=args.delta_tolerance,
        device=args.device, precision=args.precision,
    )  # fmt: skip
    scheme = schemes.get(args.scheme)
    leaks = admitted(scheme, args.activations or scheme.activations, args.integrity)
    smaller = 1 / mask_share(args.precision)
    if smaller > 1 and scheme.mask:
        leaks += (
            f"activations: for {args.precision} masks are {smaller:.0f} times smaller, and averaged out with "
            f"{smaller**2:.0f} times fewer repetitions",
        )
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

    found = registry.every()
    if args.json:
        as_json(
            [{"name": s.name, **vars(s.claims), "default_activations": s.activations, "leaks": s.leaks} for s in found]
        )
        return
    rows = [
        [s.name, s.claims.weights, s.claims.activations, "checked by default", s.claims.cost, s.claims.source]
        for s in found
    ]
    table(["scheme", "weights", "activations", "results", "cost", "source"], rows)
    print("\nWhat is known against each:")
    for s in found:
        print(f"{s.name}")
        for leak in s.leaks:
            print(f"  - {leak}")
    print(
        "\nVariants: darknetz:firstK, darknetz:lastK, groupcover:G, mix:G. Every scheme but none and tee runs with\n"
        "float or exact activations. No static scheme hides weights from someone who has a public relative of it."
    )
