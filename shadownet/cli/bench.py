"""The verb bench."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import numpy as np

from shadownet.cli.output import as_json, human, table
from shadownet.wire.errors import InputError
from shadownet.wire.paths import resolve_key


def bench(args: argparse.Namespace) -> None:
    from shadownet.bench import Setting
    from shadownet.bench import bench as measure
    from shadownet.simulator import study

    devices = study.devices(args.device or [])
    if args.rounds < 30:
        raise InputError("--rounds must be at least 30: fewer say little")
    schemes, integrity = args.schemes.split(","), args.integrity.split(",")
    threads, batch = max(1, args.num_threads), max(1, args.batch)
    results = [
        measure(
            Setting(
                Path(model), schemes, integrity, threads, args.rounds, batch, args.key, accelerator=args.accelerator
            )
        )
        for model in args.models
    ]
    for model, result in zip(args.models, results, strict=True) if devices else ():
        simulated = study.beside(Path(model), resolve_key(args.key), result["rows"], devices)
        for row, times in zip(result["rows"], simulated, strict=True):
            row["simulated"] = times
    if args.json:
        as_json(results)
        return
    for result in results:
        _show(result)
    if len(results) > 1:
        for name in [row["name"] for row in results[0]["rows"][1:]]:
            ratios = [row["ratio"] for result in results for row in result["rows"] if row["name"] == name]
            print(f"geometric mean, {name}: {np.exp(np.mean(np.log(ratios))):.2f}")
    print(results[0]["environment"])


def _show(result: dict[str, Any]) -> None:
    rows = [
        [
            row["name"], f"{row['median_ms']:.3f}", f"{row['ratio']:.2f}",
            "{} to {}".format(row["pairwise_ratio"][0], row["pairwise_ratio"][2]),
            *(f"{times['ms']:.3g} ms, {times['ratio']:.2f}" for times in row.get("simulated", {}).values()),
            f"{row['scheme']}, masks {row['masks']}, integrity {row['integrity']}",
        ]
        for row in result["rows"]
    ]  # fmt: skip
    simulated = [f"predicted on {name}" for name in result["rows"][0].get("simulated", {})]
    title = f"{result['model']}, batch {result['batch']}, {result['threads']} threads per process"
    title += f", {result['accelerator']}, {result['rounds']} rounds in turn"
    table(["contender", "median ms", "ratio", "middle half", *simulated, "protection"], rows, title)
    for row in result["rows"]:
        phases = dict(row.get("phases", {}))
        if phases.get("crossings"):
            crossed = f"{human(phases.pop('bytes'))}B in {phases.pop('crossings')} crossings"
            print(f"{row['name']}: " + ", ".join(f"{name} {ms:.2f} ms" for name, ms in phases.items()) + f"; {crossed}")
    for row in result["sustained"]:
        print(
            f"{row['name']}: a set of masks takes {row['masks_ms']:.2f} ms; "
            f"an inference that makes its own {row['inference_with_masks_ms']:.2f} ms"
        )
    for name, alone in result["accelerator_alone_ms"].items():
        print(f"{name}: the accelerator's part alone takes {alone:.2f} ms")
    for row in result["rates"]:
        one, two = row["ms_per_inference"].values()
        print(f"{row['name']}: in a row {one:.2f} ms each, two under way at a time {two:.2f} ms each")
    for row in result["rows"]:
        if "enclave_bytes" in row:
            tracked, resident = (human(row["enclave_bytes"][name]) for name in ("tracked", "resident"))
            print(f"{row['name']}: the enclave holds {tracked}B of its own; its process {resident}B, Python included")
