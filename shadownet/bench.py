"""What protection costs: contenders in turn, in one run, with nothing of ours running in another's turn.

Contenders: the unprotected model in LiteRT, everything inside the enclave, and the protected model for each scheme.
Masks are prepared before the turns that use them; making them is a row of its own. Between turns everybody's worker
processes fall asleep, and their CPU time during others' turns is measured and reported.
"""

from __future__ import annotations

import os
import platform
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from shadownet.converter import convert
from shadownet.inputs import random_inputs
from shadownet.progress import track
from shadownet.session import Session
from shadownet.wire.errors import WorkerError
from shadownet.wire.paths import resolve_key

Array = np.ndarray[Any, Any]

WARM_UP = 3
SETTLE_S = 0.004  # workers poll for up to 2 ms after a run before they sleep
BATCH = 10  # sets of masks made at a time
INTRUSION = 0.02  # share of a turn that others' workers may take at most


@dataclass
class Contender:
    """``run`` is one inference; ``prepare`` gets masks ready for some; ``pids`` its worker processes."""

    name: str
    facts: dict[str, Any]
    run: Callable[[], object]
    prepare: Callable[[int], object] = lambda n: None
    session: Session | None = None
    seconds: list[float] = field(default_factory=list)

    @property
    def pids(self) -> list[int]:
        return self.session.pids if self.session else []


def bench(model: Path, schemes: list[str], num_threads: int, rounds: int, key: str | None = None) -> dict[str, Any]:
    """Measure one model. Raises ``WorkerError`` if worker processes ran in others' turns: then figures mean nothing."""
    with tempfile.TemporaryDirectory() as directory:
        contenders = [_plain(model, num_threads)]
        try:
            for name in ["enclave only", *schemes]:
                contenders.append(_protected(model, name, num_threads, Path(directory), key))
            intruded = _race(contenders, rounds)
            rows = [_row(c, contenders[0]) for c in contenders]
            sustained = [_sustained(c) for c in contenders if c.session and c.facts["masks"] == "prepared one-time"]
        finally:
            for contender in contenders:
                if contender.session:
                    contender.session.close()
    return {
        "model": model.stem,
        "threads": num_threads,
        "rounds": rounds,
        "rows": rows,
        "sustained": sustained,
        "intruded": intruded,
        "environment": environment(),
    }


def _plain(model: Path, num_threads: int) -> Contender:
    from ai_edge_litert.interpreter import Interpreter

    interpreter = Interpreter(model_path=str(model), num_threads=num_threads)
    interpreter.allocate_tensors()
    return Contender("unprotected", {"scheme": "none", "masks": "none", "integrity": "none"}, interpreter.invoke)


def _protected(model: Path, name: str, num_threads: int, directory: Path, key: str | None) -> Contender:
    bundle = directory / name.replace(" ", "_").replace(":", "_")
    inside = name == "enclave only"
    convert(model, bundle, scheme="shadownet" if inside else name, outsource="none" if inside else "all", key=key)
    session = Session(bundle, resolve_key(key), num_threads)
    specs = session.entries[0][0]
    session.allocate(0, [spec.shape for spec in specs])
    inputs = random_inputs(specs, 0)
    options = session.manifest["options"]
    facts = {
        "scheme": "none" if inside else session.manifest["scheme"],
        "masks": "none" if inside or not session.manifest["layers"] else "prepared one-time",
        "activations": options["activations"],
        "integrity": options["integrity"],
        "obfuscation_ratio": options["ratio"],
    }
    return Contender(name, facts, lambda: session.invoke(inputs), session.prepare, session)


def _race(contenders: list[Contender], rounds: int) -> float:
    """Run everybody in turn; returns the largest share of a turn that somebody else's workers were running."""
    for contender in contenders:
        contender.prepare(WARM_UP)
        for _ in range(WARM_UP):
            contender.run()
    before = {c.name: c.session.stats() for c in contenders if c.session}
    intruded = 0.0
    for done in track(range(rounds), "measuring"):
        if done % BATCH == 0:
            for contender in contenders:
                contender.prepare(min(BATCH, rounds - done))
        for contender in contenders:
            time.sleep(SETTLE_S)
            others = [pid for c in contenders if c is not contender for pid in c.pids]
            busy = _cpu_seconds(others)
            start = time.perf_counter()
            contender.run()
            contender.seconds.append(time.perf_counter() - start)
            intruded = max(intruded, (_cpu_seconds(others) - busy) / contender.seconds[-1])
    for contender in contenders:
        if contender.session:
            contender.facts["phases"] = _phases(before[contender.name], contender.session.stats(), rounds)
    if intruded > INTRUSION:
        raise WorkerError(
            f"worker processes ran during {intruded:.0%} of another contender's turn; these figures mean nothing",
            "run it again on a machine with nothing else running",
        )
    return intruded


def _cpu_seconds(pids: list[int]) -> float:
    """CPU time of processes so far, threads included."""
    total = 0
    for pid in pids:
        for task in Path(f"/proc/{pid}/task").iterdir():
            total += int((task / "schedstat").read_text().split()[0])
    return total * 1e-9


def _phases(before: dict[str, Any], after: dict[str, Any], rounds: int) -> dict[str, float]:
    """Mean milliseconds per inference and phase, as the enclave saw it, and what crossed."""
    spent = {name: (after[name] - before[name]) / rounds for name in after if isinstance(after[name], (int, float))}
    total = spent["total_seconds"]
    known = {
        "accelerator and waiting": spent["accelerator_seconds"],
        "copy and check": spent["reading_seconds"],
        "restore and kernels": spent["finishing_seconds"],
        "mask and send": spent["sending_seconds"],
    }
    phases = {name: round(seconds * 1e3, 4) for name, seconds in known.items()}
    phases["segments and the rest"] = round((total - sum(known.values())) * 1e3, 4)
    crossed = spent["bytes_to_accelerator"] + spent["bytes_from_accelerator"]
    return phases | {"bytes": round(crossed), "crossings": round(spent["crossings"])}


def _row(contender: Contender, reference: Contender) -> dict[str, Any]:
    ratios = np.array(contender.seconds) / np.array(reference.seconds)
    low, middle, high = np.percentile(ratios, (25, 50, 75))
    return {
        "name": contender.name,
        "median_ms": float(np.median(contender.seconds)) * 1e3,
        "ratio": float(np.median(contender.seconds) / np.median(reference.seconds)),
        "pairwise_ratio": [round(float(v), 3) for v in (low, middle, high)],
        **contender.facts,
    }


def _sustained(contender: Contender) -> dict[str, Any]:
    """Making a set of masks and using it, again and again."""
    seconds = []
    for _ in range(5):
        start = time.perf_counter()
        contender.prepare(1)
        made = time.perf_counter()
        contender.run()
        seconds.append((made - start, time.perf_counter() - start))
    masks, both = np.median(np.array(seconds), axis=0) * 1e3
    return {"name": contender.name, "masks_ms": float(masks), "inference_with_masks_ms": float(both)}


def environment() -> str:
    """One line on where this was measured."""
    import importlib.metadata

    model = next(
        (line.split(":")[1].strip() for line in Path("/proc/cpuinfo").read_text().splitlines() if "model name" in line),
        platform.machine(),
    )
    return (
        f"{model}, {os.cpu_count()} cores, Linux {platform.release()}, Python {platform.python_version()}, "
        f"ai-edge-litert {importlib.metadata.version('ai-edge-litert')}, numpy {np.__version__}"
    )
