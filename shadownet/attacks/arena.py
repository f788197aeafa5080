"""The arena: models x schemes x attacks, each cell a file, on all cores; and the documents made from the files.

A cell is ``MODEL.SCHEME.ATTACK.json`` in the output folder, written whole or not at all; what is there is not computed
again. Every cell repeats the conversion with fresh secrets, so that figures come with an interval.
"""

from __future__ import annotations

import datetime
import importlib.metadata
import json
import os
import platform
import tempfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from enclave import keys, schemes
from shadownet import __version__
from shadownet.attacks import bench, registry
from shadownet.attacks.view import Knowledge
from shadownet.progress import track
from shadownet.wire.errors import Error, InputError

STEAL = "STEAL"  # the pseudo-attack that goes for the whole model
BUDGETS = ("0", "50", "500", "1%", "10%")


@dataclass(frozen=True)
class Plan:
    """What to run. ``base``: "auto" takes FAMILY_base.tflite beside FAMILY_other.tflite, "none", or a path."""

    models: tuple[str, ...]
    schemes: tuple[str, ...]
    attacks: tuple[str, ...]
    out: Path
    base: str = "auto"
    data: str | None = None
    budgets: tuple[str, ...] = BUDGETS
    seeds: int = 3
    ratio: float = 1.2

    def cell(self, model: str, scheme: str, attack: str) -> Path:
        return self.out / f"{Path(model).stem}.{scheme.replace(':', '-')}.{attack}.json"


def run(plan: Plan, jobs: int = -1, backend: str = "loky") -> int:
    """Compute what is missing; returns the number of new cells. Raises ``InputError``; a cell that fails says why."""
    try:
        import joblib
    except ModuleNotFoundError:
        raise InputError("the arena needs joblib", "pip install 'shadownet[attacks]'") from None
    if plan.seeds < 1:
        raise InputError("--seeds must be at least 1")
    full = tuple(schemes.get(name).name for name in plan.schemes)
    plan = replace(plan, schemes=full)
    for model in plan.models:
        if not Path(model).is_file():
            raise InputError(f"cannot read {model}")
    plan.out.mkdir(parents=True, exist_ok=True)
    todo = []
    for model in plan.models:
        for scheme in plan.schemes:
            missing = tuple(a for a in plan.attacks if not plan.cell(model, scheme, a).exists())
            if missing:
                todo.append((model, scheme, missing))
    # One thread of BLAS for each of many processes: else they fight for the cores.
    parallel = joblib.Parallel(n_jobs=jobs, backend=backend, return_as="generator_unordered")
    done = parallel(joblib.delayed(pair)(plan, *job) for job in todo)
    return sum(track(done, "arena", total=len(todo)))


def pair(plan: Plan, model: str, scheme: str, attacks: tuple[str, ...]) -> int:
    """All missing cells of one model under one scheme."""
    base = _base(plan, model)
    found: dict[str, list[dict[str, Any]]] = {attack: [] for attack in attacks}
    try:
        for seed in range(plan.seeds):
            with tempfile.TemporaryDirectory() as folder:
                for attack, record in _once(plan, model, scheme, attacks, base, seed, Path(folder)):
                    found[attack].append(record)
        problem = ""
    except Error as error:
        problem = str(error)
    for attack in attacks:
        record = {
            "model": Path(model).stem, "scheme": scheme, "attack": attack, "base": Path(base).stem if base else None,
            "runs": [] if problem else found[attack], "problem": problem, "version": __version__,
            "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        }  # fmt: skip
        _write(plan.cell(model, scheme, attack), json.dumps(record, indent=1, default=_plain) + "\n")
    return len(attacks)


def _once(
    plan: Plan, model: str, scheme: str, attacks: Sequence[str], base: str | None, seed: int, folder: Path
) -> Iterable[tuple[str, dict[str, Any]]]:
    from shadownet.converter import convert

    key, bundle = folder / "device.key", folder / "m.shadow"
    keys.create(key)
    data = bench.read_data(plan.data) if plan.data else None
    samples = None if data is None else [data.queries[:16].astype(np.float32)]
    convert(model, bundle, scheme=scheme, ratio=plan.ratio, key=key, calibration=samples)
    view = bench.open_view(bundle, base)
    truth = bench.open_truth(bundle, model, key)
    for attack in attacks:
        if attack != STEAL:
            outcomes = bench.weigh(view, truth, registry.select(attack), seed)
            yield attack, (outcomes[0].to_json() if outcomes else {"recovered": None})
        elif data is not None:
            crossed = replace(view, knowledge=Knowledge.TRANSCRIPT, transcript=bench.record(bundle, data.queries, key))
            for name, sees, public in (("files", view, None), ("files and public model", view, base),
                                       ("files and transcript", crossed, None)):  # fmt: skip
                if name == "files and public model" and base is None:
                    continue
                sees = sees if public else replace(sees, base=None)
                for budget in plan.budgets:
                    got = bench.theft(sees, model, data, _budget(budget, data), public, seed)
                    yield attack, {"knows": name, "budget": budget, "seed": seed} | got.to_json()


def _budget(text: str, data: bench.Data) -> int:
    """Labels in numbers: "50", or a percentage of the victim's training set (of the attacker's, if that is unknown)."""
    size = len(data.members[0]) if data.members is not None else len(data.queries)
    try:
        return int(float(text[:-1]) * size / 100) if text.endswith("%") else int(text)
    except ValueError:
        raise InputError(f"{text!r} is no budget", "write 50 or 10%") from None


def _base(plan: Plan, model: str) -> str | None:
    if plan.base == "none":
        return None
    if plan.base != "auto":
        return plan.base
    path = Path(model)
    family, _, kind = path.stem.partition("_")
    beside = path.with_name(f"{family}_base.tflite")
    return str(beside) if kind and kind != "base" and beside.exists() else None


def _write(path: Path, text: str) -> None:
    with tempfile.NamedTemporaryFile("w", dir=path.parent, prefix=f".{path.name}.", delete=False) as file:
        file.write(text)
    os.chmod(file.name, 0o644)
    os.replace(file.name, path)


def _plain(value: Any) -> Any:
    return value.item() if isinstance(value, np.generic) else str(value)


def load(out: Path) -> list[dict[str, Any]]:
    """All cells of a folder. Raises ``InputError`` where there is none."""
    try:
        cells = [json.loads(path.read_text()) for path in sorted(out.glob("[!.]*.json"))]
    except (OSError, ValueError) as error:
        raise InputError(f"{out} holds a file that is no cell: {error}") from None
    if not cells:
        raise InputError(f"{out} holds no results", "shadownet arena --models … makes some")
    return cells


def environment() -> str:
    packages = ", ".join(f"{name} {importlib.metadata.version(name)}" for name in ("ai-edge-litert", "numpy", "scipy"))
    return f"shadownet {__version__}, Python {platform.python_version()}, {packages}, Linux {platform.machine()}"
