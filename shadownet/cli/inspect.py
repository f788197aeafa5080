"""The verb inspect: what runs where and why, before and after conversion; as a table, JSON or a graph for Graphviz."""

from __future__ import annotations

import argparse
import collections
from pathlib import Path
from typing import Any

from shadownet.cli import dot
from shadownet.cli.output import as_json, human, table

Record = dict[str, Any]


def inspect(args: argparse.Namespace) -> None:
    path = Path(args.path)
    form = "json" if args.json else args.format
    if path.is_dir():
        record = _bundle(path)
        show, draw = _show_bundle, dot.of_bundle
    else:
        record = _model(path)
        show, draw = _show_model, dot.of_model
    if form == "json":
        as_json(record)
    elif form == "dot":
        print(draw(record))
    else:
        show(record)


def _model(path: Path) -> Record:
    from shadownet.analysis import Reference
    from shadownet.graph import load
    from shadownet.outline import outline
    from shadownet.partition import partition

    graph, _ = load(path)
    entries: list[Record] = []
    with Reference(str(path), graph) as reference:
        for entry in graph.entry_points():
            part = partition(graph, entry, reference.shapes(entry), "all")
            linear = {lin.op.id: lin for lin in part.linear}
            makers = {t: op.id for op in part.graph.ops for t in op.outputs}
            ops = [
                {
                    "id": op.id,
                    "op": op.kind,
                    "output": list(part.shapes.shape[op.outputs[0]]) if op.outputs else [],
                    "after": sorted({makers[t] for t in op.reads() if t in makers}),
                    "where": "enclave" if part.reasons[op.id] else "accelerator",
                    "why": part.reasons[op.id] or _why_out(linear.get(op.id)),
                    "macs": linear[op.id].macs if op.id in linear else 0,
                    "auto": _auto(linear.get(op.id)),
                }
                for op in part.graph.ops
            ]
            segments = sum(step.linear is None for step in part.steps)
            entries.append({"subgraph": entry, "ops": ops, "segments": segments, "steps": outline(part)})
    return {"model": str(path), "entries": entries}


def _show_model(record: Record) -> None:
    name = Path(record["model"]).name
    for entry in record["entries"]:
        ops = entry["ops"]
        rows = [
            [
                str(o["id"]), o["op"], str(o["output"]), o["where"], o["why"], human(o["macs"]) if o["macs"] else "",
                o["auto"],
            ]
            for o in ops
        ]  # fmt: skip
        columns = ["id", "op", "output", "where", "why", "multiply-adds", "with --outsource auto"]
        table(columns, rows, f"{name}, subgraph {entry['subgraph']}")
        out = [o for o in ops if o["where"] == "accelerator"]
        print(
            f"{len(out)} of {len(rows)} ops to the accelerator ({human(sum(o['macs'] for o in out))} multiply-adds), "
            f"{entry['segments']} trusted segments"
        )
        kept = collections.Counter(o["op"] for o in ops if o["where"] == "enclave")
        print("in the enclave: " + (", ".join(f"{kind} {n}" for kind, n in kept.most_common()) or "nothing"))


def _auto(lin: Any) -> str:
    """What the cost rule says about a layer at the default obfuscation ratio."""
    from shadownet.cost import verdict

    return "" if lin is None else verdict(lin, 1.2) or "worth it"


def _why_out(lin: Any) -> str:
    if lin is None:
        return "zero padding of the next layer's input"
    return "constant weights; its input is the app's own, not masked" if lin.public_input else "constant weights"


def _bundle(path: Path) -> Record:
    from shadownet.wire.manifest import read_manifest

    manifest = read_manifest(path)
    return {
        "bundle": str(path), "manifest": manifest,
        "sizes": {f.name: f.stat().st_size for f in sorted(path.iterdir())},
    }  # fmt: skip


def _show_bundle(record: Record) -> None:
    manifest, sizes = record["manifest"], record["sizes"]
    options = ", ".join(f"{name} {value}" for name, value in manifest["options"].items() if value)
    print(f"{record['bundle']}: {manifest.get('scheme')}, {options}")
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
