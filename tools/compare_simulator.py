#!/usr/bin/env python3
"""Compare what the simulator predicts for this machine with real runs of real networks.

    shadownet calibrate [--num_threads 2]
    python tools/compare_simulator.py MODEL.tflite… [--num_threads 2]

Both sides are the least of many runs, in turn. Networks take no part in calibration. Wants a quiet machine: on a
busy one both sides are wrong, and not by the same factor.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from shadownet.bench import TRIES  # noqa: E402
from shadownet.converter import convert  # noqa: E402
from shadownet.inputs import random_inputs  # noqa: E402
from shadownet.session import Session  # noqa: E402
from shadownet.simulator import predict, profile  # noqa: E402
from shadownet.simulator.calibrate import SCHEME, least, least_protected  # noqa: E402
from shadownet.simulator.profile import MINE  # noqa: E402
from shadownet.simulator.subject import Choice, opened  # noqa: E402
from shadownet.wire.paths import resolve_key  # noqa: E402

HEAD = "| network | contender | predicted | measured | error |\n|---|---|---|---|---|"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("models", nargs="+", type=Path, metavar="MODEL.tflite")
    parser.add_argument("--num_threads", type=int, default=1, metavar="N")
    parser.add_argument("--seconds", type=float, default=2.0, metavar="S", help="for each contender")
    args = parser.parse_args()
    device = profile.load(MINE if args.num_threads == 1 else f"{MINE}-{args.num_threads}")
    print(HEAD)
    errors = []
    for model in args.models:
        with opened(model, resolve_key(None)) as subject:
            predicted = {
                "unprotected": predict.unprotected(subject.works(), device).latency_ms.expected,
                SCHEME: predict.protected(subject.counts(Choice(SCHEME)), device).latency_ms.expected,
            }
        measured = {
            "unprotected": unprotected(model, args.num_threads, args.seconds),
            SCHEME: protected(model, args.num_threads, args.seconds),
        }
        for name, ms in measured.items():
            errors.append(predicted[name] / ms - 1)
            print(
                f"| `{model.stem}` | {name} | {predicted[name]:.3f} ms | {ms:.3f} ms | {errors[-1]:+.0%} |", flush=True
            )
    print(
        f"\nmedian error {np.median(np.abs(errors)):.0%}, worst {max(errors, key=abs):+.0%}, {args.num_threads} threads"
    )
    return 0


def unprotected(model: Path, num_threads: int, seconds: float) -> float:
    from ai_edge_litert.interpreter import Interpreter

    interpreter = Interpreter(model_path=str(model), num_threads=num_threads)
    interpreter.allocate_tensors()
    for detail in interpreter.get_input_details():
        interpreter.set_tensor(detail["index"], np.zeros(detail["shape"], detail["dtype"]))
    return least(interpreter.invoke, seconds)


def protected(model: Path, num_threads: int, seconds: float) -> float:
    with tempfile.TemporaryDirectory() as directory:
        bundle, key = Path(directory, "bundle"), resolve_key(None)
        for _ in range(TRIES):  # what a trial run finds imprecise stays inside, and is then nothing to compare
            if convert(model, bundle, scheme=SCHEME, key=key, overwrite=True)["layers_outsourced"]:
                break
        session = Session(bundle, key, num_threads)
        try:
            specs = session.entries[0][0]
            session.allocate(0, [spec.shape for spec in specs])
            return least_protected(session, random_inputs(specs, 0), seconds)[0]
        finally:
            session.close()


if __name__ == "__main__":
    sys.exit(main())
