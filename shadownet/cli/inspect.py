"""The verb inspect: what runs where and why, before and after conversion."""

from __future__ import annotations

import argparse
import collections
from pathlib import Path
from typing import Any

from shadownet.cli.output import as_json, human, table


def inspect(args: argparse.Namespace) -> None:
    path = Path(args.path)
    if path.is_dir():
        _bundle(args, path)
    else:
        _model(args, path)


def _model(args: argparse.Namespace, path: Path) -> None:
    from shadownet.analysis import Reference
    from shadownet.graph import load
    from shadownet.outline import outline
    from shadownet.partition import partition

    graph, _ = load(path)
    entries: list[dict[str, Any]] = []
    with Reference(str(path), graph) as reference:
        for entry in graph.entry_points():
            part = partition(graph, entry, reference.shapes(entry), "all")
            linear = {lin.op.id: lin for lin in part.linear}
            ops = [
                {
                    "id": op.id,
                    "op": op.kind,
                    "output": list(part.shapes.shape[op.outputs[0]]) if op.outputs else [],
                    "where": "enclave" if part.reasons[op.id] else "accelerator",
                    "why": part.reasons[op.id] or _why_out(linear.get(op.id)),
                    "macs": linear[op.id].macs if op.id in linear else 0,
                    "auto": _auto(linear.get(op.id)),
                }
                for op in part.graph.ops
            ]
            segments = sum(step.linear is None for step in part.steps)
            entries.append({"subgraph": entry, "ops": ops, "segments": segments, "steps": outline(part)})
    if args.json:
        as_json({"model": str(path), "entries": entries})
        return
    for record in entries:
        rows = [
            [
                str(o["id"]),
                o["op"],
                str(o["output"]),
                o["where"],
                o["why"],
                human(o["macs"]) if o["macs"] else "",
                o["auto"],
            ]
            for o in record["ops"]
        ]
        table(
            ["id", "op", "output", "where", "why", "multiply-adds", "with --outsource auto"],
            rows,
            f"{path.name}, subgraph {record['subgraph']}",
        )
        out = [o for o in record["ops"] if o["where"] == "accelerator"]
        print(
            f"{len(out)} of {len(rows)} ops to the accelerator ({human(sum(o['macs'] for o in out))} multiply-adds), "
            f"{record['segments']} trusted segments"
        )
        kept = collections.Counter(o["op"] for o in record["ops"] if o["where"] == "enclave")
        print("in the enclave: " + (", ".join(f"{kind} {n}" for kind, n in kept.most_common()) or "nothing"))


def _auto(lin: Any) -> str:
    """What the cost rule says about a layer at the default obfuscation ratio."""
    from shadownet.cost import verdict

    return "" if lin is None else verdict(lin, 1.2) or "worth it"


def _why_out(lin: Any) -> str:
    if lin is None:
        return "zero padding of the next layer's input"
    return "constant weights; its input is the app's own, not masked" if lin.public_input else "constant weights"


def _bundle(args: argparse.Namespace, path: Path) -> None:
    from shadownet.wire.manifest import read_manifest

    manifest = read_manifest(path)
    sizes = {f.name: f.stat().st_size for f in sorted(path.iterdir())}
    if args.json:
        as_json({"manifest": manifest, "sizes": sizes})
        return
    print(f"{path}: {manifest.get('scheme')}, options {manifest['options']}")
    rows = [
        [
            str(layer.get("signature")), str(layer.get("op")), str(layer.get("input")), str(layer.get("output")),
            str(layer.get("filters")), "masked" if layer.get("masked") else "the app's own input",
            human(float(layer.get("macs") or 0)),
        ]
        for layer in manifest["layers"] if isinstance(layer, dict)
    ]  # fmt: skip
    table(
        ["layer", "op", "accelerator gets", "accelerator answers", "true filters", "activations", "multiply-adds"], rows
    )
    print("the accelerator sees: " + ", ".join(f"{n} ({human(s)}B)" for n, s in sizes.items() if n != "enclave.sealed"))
    print(f"only the enclave opens: enclave.sealed ({human(sizes.get('enclave.sealed', 0))}B)")
