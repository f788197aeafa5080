#!/usr/bin/env python3
"""Measure the paper's networks and write the tables of BENCHMARKS.md; compare with the last time.

    python tools/benchmarks.py [--models DIR] [--only NAME,NAME] [--threads 1,2]

Networks that are not in DIR are built there (which needs the extra "zoo"). Every run is appended to
tools/benchmarks.jsonl, and each ratio is printed beside the last one measured on a machine of the same name.
"""

from __future__ import annotations

import argparse
import datetime
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from shadownet.bench import Setting, bench

ROOT = Path(__file__).resolve().parent.parent
HISTORY = ROOT / "tools" / "benchmarks.jsonl"
TARGET = ROOT / "BENCHMARKS.md"
NETWORKS = ("mobilenet_v1", "resnet44", "resnet404", "minivgg", "yolov4_tiny")
SCHEMES = ["shadownet:fast", "shadownet:paper"]
MARK = "<!-- tables: tools/benchmarks.py -->"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", type=Path, default=ROOT / "build" / "zoo", metavar="DIR")
    parser.add_argument("--only", default=",".join(NETWORKS), metavar="NAMES")
    parser.add_argument("--threads", default="1,2", metavar="LIST")
    args = parser.parse_args()
    last = _last()
    tables = []
    for threads in (int(t) for t in args.threads.split(",")):
        results = []
        for name in args.only.split(","):
            results.append(bench(Setting(_model(args.models, name), SCHEMES, ["none", "full"], threads, 30)))
            _compare(results[-1], last)
        tables.append(_table(results))
        with open(HISTORY, "a") as file:
            for result in results:
                result["date"] = datetime.date.today().isoformat()
                file.write(json.dumps({k: v for k, v in result.items() if k != "layers"}) + "\n")
    _write("\n\n".join(tables))
    return 0


def _model(directory: Path, name: str) -> Path:
    path = directory / f"{name}.tflite"
    if not path.exists():
        directory.mkdir(parents=True, exist_ok=True)
        subprocess.run([sys.executable, "-m", "models", name, "-o", str(path)], cwd=ROOT, check=True)
    return path


def _last() -> dict[tuple[str, int, str, str], float]:
    """The newest ratio by (model, threads, contender, machine)."""
    lines = HISTORY.read_text().splitlines() if HISTORY.exists() else []
    found = {}
    for result in map(json.loads, lines):
        for row in result["rows"]:
            found[result["model"], result["threads"], row["name"], result["environment"]] = row["ratio"]
    return found


def _compare(result: dict[str, Any], last: dict[tuple[str, int, str, str], float]) -> None:
    for row in result["rows"][1:]:
        before = last.get((result["model"], result["threads"], row["name"], result["environment"]))
        change = "" if before is None else f" (last {before:.2f})"
        print(f"{result['model']}, {result['threads']} threads, {row['name']}: {row['ratio']:.2f}{change}", flush=True)


def _row_of(result: dict[str, Any], name: str, kind: str = "rows") -> dict[str, Any]:
    return next(row for row in result[kind] if row["name"] == name)


def _table(results: list[dict[str, Any]]) -> str:
    threads = results[0]["threads"]
    return "\n".join(
        [
            f"### {threads} thread{'s' * (threads > 1)} per process",
            "",
            f"{results[0]['environment']}; {datetime.date.today().isoformat()}. Ratio (middle half of 30 rounds).",
            "",
            *_ratios(results),
            "",
            "Where the time goes (ms; `shadownet:fast`, not checked and checked):",
            "",
            *_phases(results),
            "",
            "Rates (ms per inference, masks prepared), and what masks cost:",
            "",
            *_rates(results),
        ]
    )


def _ratios(results: list[dict[str, Any]]) -> list[str]:
    names = [row["name"] for row in results[0]["rows"][1:]]
    lines = [f"| network | unprotected | {' | '.join(names)} | floor |", "|---" * (len(names) + 3) + "|"]
    for result in results:
        base = _row_of(result, "unprotected")["median_ms"]
        cells = []
        for name in names:
            row = _row_of(result, name)
            cells.append("**{:.2f}** ({:.2f} to {:.2f})".format(row["ratio"], *row["pairwise_ratio"][::2]))
        floor = result["accelerator_alone_ms"]["shadownet:fast"] / base
        lines.append(f"| `{result['model']}` | {base:.2f} ms | {' | '.join(cells)} | {floor:.2f} |")
    means = [np.exp(np.mean([np.log(_row_of(result, name)["ratio"]) for result in results])) for name in names]
    return [*lines, f"| geometric mean | | {' | '.join(f'**{mean:.2f}**' for mean in means)} | |"]


def _phases(results: list[dict[str, Any]]) -> list[str]:
    heads = ("accelerator alone", "and waiting", "copy", "restore and kernels", "checks", "the rest")
    lines = [f"| network | {' | '.join(heads)} |", "|---" * 7 + "|"]
    for result in results:
        for name in ("shadownet:fast", "shadownet:fast, checked full"):
            row, alone = _row_of(result, name), result["accelerator_alone_ms"][name]
            phases = [row["phases"][k] for k in ("accelerator and waiting", "copy and check", "restore and kernels")]
            phases.append(row["phases"]["preparing checks"])
            cells = [alone, *phases, row["median_ms"] - sum(phases)]
            title = f"`{result['model']}`{', checked' * ('checked' in name)}"
            lines.append(f"| {title} | {' | '.join(f'{cell:.2f}' for cell in cells)} |")
    return lines


def _rates(results: list[dict[str, Any]]) -> list[str]:
    heads = ("one after the other", "two under way at a time", "making a set of masks", "crossed")
    lines = [f"| network | {' | '.join(heads)} |", "|---" * 5 + "|"]
    for result in results:
        rate = _row_of(result, "shadownet:fast", "rates")["ms_per_inference"]
        made = _row_of(result, "shadownet:fast", "sustained")["masks_ms"]
        phases = _row_of(result, "shadownet:fast")["phases"]
        crossed = f"{phases['bytes'] / 1e6:.1f} MB in {phases['crossings']} calls"
        both = f"{rate['one after the other']:.2f} | {rate['pipelined']:.2f}"
        lines.append(f"| `{result['model']}` | {both} | {made:.1f} ms | {crossed} |")
    return lines


def _write(tables: str) -> None:
    text = TARGET.read_text()
    head = text[: text.index(MARK) + len(MARK)]
    TARGET.write_text(f"{head}\n\n{tables}\n")


if __name__ == "__main__":
    sys.exit(main())
