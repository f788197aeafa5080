"""The verbs simulate and calibrate."""

from __future__ import annotations

import argparse
from dataclasses import asdict
from pathlib import Path
from typing import Any

from shadownet.cli import size
from shadownet.cli.output import as_json, human, table
from shadownet.simulator.predict import TERMS
from shadownet.wire.paths import resolve_key


def simulate(args: argparse.Namespace) -> None:
    from enclave import schemes as registry
    from shadownet.simulator import profile, study
    from shadownet.simulator.subject import Choice, opened

    if args.list:
        _list(args, [profile.load(name) for name in profile.names()])
        return
    sweep = study.Sweep.parse(args.sweep, size) if args.sweep else None
    devices = study.devices(args.device or ["hikey960-optee"])
    schemes = args.schemes.split(",")
    choices = [
        Choice(name, args.ratio, args.integrity, args.activations, args.outsource,
               base=args.base if registry.get(name).needs_base else None)
        for name in schemes
    ]  # fmt: skip
    with opened(Path(args.path), resolve_key(args.key)) as subject:
        record = study.simulate(subject, devices, choices, sweep, args.ta_memory, args.layers)
    as_json(record) if args.json else _show(record)


def _list(args: argparse.Namespace, devices: list[Any]) -> None:
    if args.json:
        as_json([asdict(device) for device in devices])
    else:
        table(["device", "what it is"], [[d.name, d.description] for d in devices])


def _show(record: dict[str, Any]) -> None:
    for device in record["devices"]:
        rows = [row for row in record["rows"] if row["device"] == device["name"]]
        table(
            ["", "latency", "times unprotected", "times all inside", "energy", "secure memory", "most of it"],
            [_cells(row, record["sweep"]) for row in rows],
            f"{record['model']} on {device['name']} (predicted): {device['description']}",
        )
        for row in rows[2:3] if record["sweep"] is None else ():
            _breakdown(row)
    for line in record["notes"]:
        print(line)


def _cells(row: dict[str, Any], sweep: dict[str, Any] | None) -> list[str]:
    name, latency, energy, memory = row["contender"], row["latency_ms"], row["energy_mj"], row["memory"]
    if sweep is not None and row["ratio"] is not None:
        name += f", r = {row['ratio']:g}" if sweep["parameter"] == "ratio" else f", {human(row['ta_memory'])}B"
    return [
        {"tee": "all in the enclave"}.get(name, name),
        f"{latency['expected']:.3g} ms ({latency['low']:.3g} to {latency['high']:.3g})",
        f"{row['times_unprotected']:.2f}",
        f"{row['times_tee']:.2f}",
        f"{energy['expected']:.3g} mJ",
        f"{human(memory['needed'])}B of {human(memory['budget'])}B: {memory['verdict']}" if memory["needed"] else "",
        f"{row['dominant']['what']}, {row['dominant']['share']:.0%}",
    ]


def _breakdown(row: dict[str, Any]) -> None:
    rows = [
        [TERMS[term][0], f"{part['expected']:.3g} ms", f"{part['expected'] / row['latency_ms']['expected']:.0%}"]
        for term, part in sorted(row["terms"].items(), key=lambda item: -item[1]["expected"])
    ]
    table([f"{row['contender']}: where it goes", "time", "share"], rows)
    print(f"less of it: {row['dominant']['remedy']}")


def calibrate(args: argparse.Namespace) -> None:
    from shadownet.simulator import profile
    from shadownet.simulator.calibrate import calibrate as measure

    device = measure(max(1, args.num_threads), args.seconds)
    path = Path(args.output) if args.output else profile.own_directory() / f"{device.name}.toml"
    profile.write(device, path)
    if args.json:
        as_json({"device": device.name, "path": str(path)})
    else:
        print(f"wrote {path}: shadownet simulate MODEL.tflite --device {device.name if not args.output else path}")
