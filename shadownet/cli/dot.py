"""Graphs for Graphviz (``dot -Tsvg``): what runs where, and what crosses between the enclave and the accelerator.

Text comes from models and manifests that may be hostile: it is escaped, and nothing but labels is made of it.
"""

from __future__ import annotations

import math
from typing import Any

from shadownet.cli.output import human

Record = dict[str, Any]

_HEAD = 'digraph shadownet {\n  rankdir=TB; node [shape=box, style=filled, fontname="sans-serif"];'
_LEGEND = "green: enclave. red: accelerator, which takes every input from the enclave and answers to it"
_COLOUR = {"enclave": "#cfe8cf", "accelerator": "#f6d5c9"}


def quoted(text: object) -> str:
    """A DOT string: quotes and backslashes escaped, other control characters replaced, newlines kept."""
    plain = "".join(c if c.isprintable() or c == "\n" else "?" for c in str(text))
    return '"' + plain.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n") + '"'


def of_model(record: Record) -> str:
    """Every op, coloured by the domain in which it would run."""
    lines = [_HEAD, f"  label={quoted(_LEGEND)};"]
    for entry in record["entries"]:
        for op in entry["ops"]:
            node = f"s{entry['subgraph']}_{op['id']}"
            label = quoted(f"{op['id']} {op['op']}\n{op['output']}")
            lines.append(f'  {node} [label={label}, fillcolor="{_COLOUR[op["where"]]}", tooltip={quoted(op["why"])}];')
            lines += [f"  s{entry['subgraph']}_{before} -> {node};" for before in op["after"]]
    return "\n".join([*lines, "}"])


def of_bundle(record: Record) -> str:
    """The enclave, every layer on the accelerator, and the bytes that cross. What lies between is sealed."""
    lines = [_HEAD, f'  enclave [label="enclave\\nenclave.sealed", fillcolor="{_COLOUR["enclave"]}"];']
    lines += ["  subgraph cluster_accelerator {", '    label="accelerator (untrusted)";']
    layers = [layer for layer in record["manifest"]["layers"] if isinstance(layer, dict)]
    for k, layer in enumerate(layers):
        label = quoted(f"{layer.get('signature')}\n{layer.get('filters')} true filters")
        lines.append(f'    layer{k} [label={label}, fillcolor="{_COLOUR["accelerator"]}"];')
    lines.append("  }")
    for k, layer in enumerate(layers):
        sent, answered = crossing_bytes(layer)
        kind = "masked" if layer.get("masked") else "not masked"
        lines.append(f"  enclave -> layer{k} [label={quoted(f'{human(sent)}B {kind}')}];")
        lines.append(f"  layer{k} -> enclave [label={quoted(f'{human(answered)}B')}];")
    return "\n".join([*lines, "}"])


def crossing_bytes(layer: Record) -> tuple[int, int]:
    """Bytes to the accelerator and back of a manifest's layer (float32); 0 where it does not say."""
    sent, answered = (_bytes(layer.get(side)) for side in ("input", "output"))
    return sent, answered


def _bytes(shape: object) -> int:
    known = isinstance(shape, list) and all(isinstance(d, int) and 0 <= d < 1 << 31 for d in shape)
    return 4 * math.prod(shape) if known and isinstance(shape, list) else 0
