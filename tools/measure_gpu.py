#!/usr/bin/env python3
"""Measure protection with this machine's GPU as the accelerator, beside three ways without protection or without GPU.

    python tools/measure_gpu.py MODEL.tflite… [--num_threads 1,8] [--batch 1,16] [--json FILE] [--suite]

In turn, in one run: the unprotected model on the CPU and, whole and in float32, on the GPU; everything in the enclave;
the protected model with its linear layers on the GPU, not checked and checked. Prints a table of medians; says what is
missing where LiteRT finds no GPU (exit code 2). --suite runs the conformance tests on the GPU first.
LiteRT logs a lot on stderr; lines of ours begin with "shadownet:".
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
from ctypes.util import find_library
from dataclasses import replace
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from shadownet import workers
from shadownet.bench import Setting, bench
from shadownet.wire.errors import Error, WorkerError

ROOT = Path(__file__).resolve().parent.parent
ICD_FOLDERS = ("/usr/share/vulkan/icd.d", "/etc/vulkan/icd.d", "/usr/local/nvidia/share/vulkan/icd.d")
TRIES = 3  # of a measurement into whose turns somebody's threads ran


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("models", nargs="*", type=Path, metavar="MODEL.tflite")
    parser.add_argument("--num_threads", default="1", metavar="LIST", help="per process (default: %(default)s)")
    parser.add_argument("--batch", default="1", metavar="LIST", help="inputs at a time (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=30, metavar="N")
    parser.add_argument("--json", type=Path, metavar="FILE", help="append every result to this file, a line each")
    parser.add_argument("--suite", action="store_true", help="run the conformance tests first")
    args = parser.parse_args()
    if not _gpu():
        return 2
    if args.suite:
        suite = [sys.executable, "-m", "pytest", "-k", "litert-gpu", "tests/test_backends.py"]
        subprocess.run(suite, cwd=ROOT, check=False)
    for model in args.models:
        for batch in map(int, args.batch.split(",")):
            for threads in map(int, args.num_threads.split(",")):
                setting = Setting(model, ["shadownet:fast"], ["none", "full"], threads, args.rounds, batch)
                _measure(setting, args.json)
    return 0


def _gpu() -> bool:
    """Whether litert-gpu runs here; says on which device, or what it lacks."""
    done = subprocess.run(
        [*workers.command("accelerator.survey"), "litert-gpu"], env=workers.environment(), capture_output=True,
        text=True, timeout=300,
    )  # fmt: skip
    for adapter in dict.fromkeys(re.findall(r"Selected adapter: .*", done.stderr)):
        print(adapter)
    try:
        answer = json.loads(done.stdout)["litert-gpu"]
    except ValueError:
        answer = {"ok": False, "found": f"its process ended with {done.returncode}", "hint": done.stderr[-2000:]}
    if answer["ok"]:
        return True
    print(f"litert-gpu: {answer['found']}: {answer['hint']}")
    for library in ("vulkan", "GLX_nvidia", "X11", "Xext"):  # the last two are what NVIDIA's driver needs
        print(f"  lib{library}: {find_library(library) or 'not found'}")
    drivers = [str(p) for folder in ICD_FOLDERS for p in Path(folder).glob("*.json")]
    print(f"  Vulkan drivers: {', '.join(drivers) or 'no file in ' + ', '.join(ICD_FOLDERS)}")
    for name in ("VK_DRIVER_FILES", "VK_ICD_FILENAMES", "LD_LIBRARY_PATH"):
        print(f"  ${name}: {os.environ.get(name, 'not set')}")
    return False


def _measure(setting: Setting, target: Path | None) -> None:
    title = f"{setting.model.stem}, batch {setting.batch}, {setting.num_threads} threads per process"
    for left in reversed(range(TRIES)):
        try:
            result = bench(replace(setting, accelerator="litert-gpu"))
            break
        except (Error, RuntimeError) as error:
            print(f"{title}: {error}", flush=True)
            if not left or not isinstance(error, WorkerError):
                return
    if target is not None:
        with open(target, "a") as file:
            file.write(json.dumps(result) + "\n")
    print(_table(title, result), flush=True)


def _table(title: str, result: dict[str, Any]) -> str:
    """Medians, and their ratios to the unprotected model on the CPU and on the GPU."""
    rows = result["rows"]
    gpu = next(row for row in rows if row["name"].startswith("unprotected, on the GPU"))
    lines = [f"\n{title}; {result['environment']}\n", "| | ms | of the CPU | of the GPU |", "|---|---|---|---|"]
    for row in rows:
        where = "" if row["name"].startswith(("unprotected", "tee")) else ", on the GPU"
        ratios = f"{row['ratio']:.2f} | {row['median_ms'] / gpu['median_ms']:.2f}"
        lines.append(f"| {row['name']}{where} | {row['median_ms']:.3f} | {ratios} |")
    for name, alone in result["accelerator_alone_ms"].items():
        lines.append(f"| the GPU's part of {name}, alone | {alone:.3f} | | |")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
