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
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from enclave import keys, schemes
from shadownet import __version__
from shadownet.attacks import bench, live, registry
from shadownet.attacks.view import AdversaryView
from shadownet.progress import track
from shadownet.wire.errors import Error, InputError

STEAL = registry.STEAL
UNCHECKED = "unchecked"  # of a scheme's name: no integrity check
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
    runs: int = 256
    ratio: float = 1.2

    def cell(self, model: str, scheme: str, attack: str) -> Path:
        return self.out / f"{Path(model).stem}.{scheme.replace(':', '-')}.{attack}.json"


def names(attacks: str, data: bool) -> tuple[str, ...]:
    """Names of a list; of "all" those that do without the attacker's own samples, unless there is ``data``.

    Raises ``InputError`` for names that are none, and for attacks by name that lack the data.
    """
    chosen = registry.select(attacks)
    found = [
        a
        for a in chosen
        if data or not {registry.Need.INPUTS, registry.Need.TRANSCRIPT, registry.Need.MALICIOUS} & {*a.needs}
    ]
    if attacks != "all" and len(found) < len(chosen):
        raise InputError("attacks that take part need --data", "an .npz with samples and labels")
    return tuple(attack.name for attack in found)


def run(plan: Plan, jobs: int = -1, backend: str = "loky") -> int:
    """Compute what is missing; returns the number of new cells. Raises ``InputError``; a cell that fails says why."""
    try:
        import joblib
    except ModuleNotFoundError:
        raise InputError("the arena needs joblib", "pip install scipy joblib") from None
    if plan.seeds < 1:
        raise InputError("--seeds must be at least 1")
    plan = replace(plan, schemes=tuple(_full(name) for name in plan.schemes))
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


def _full(scheme: str) -> str:
    """NAME[:VARIANT][+exact|+float][+unchecked] with the variant spelled out. Raises ``InputError``."""
    name, *options = scheme.split("+")
    if {*options} - {"float", "exact", UNCHECKED}:
        raise InputError(f"there is no way of running a scheme like {scheme!r}", "write NAME:VARIANT+exact+unchecked")
    return "+".join([schemes.get(name).name, *options])


def pair(plan: Plan, model: str, scheme: str, attacks: tuple[str, ...]) -> int:
    """All missing cells of one model under one scheme."""
    base = _base(plan, model)
    found: dict[str, list[dict[str, Any]]] = {attack: [] for attack in attacks}
    problems = dict.fromkeys(attacks, "")
    try:
        for seed in range(plan.seeds):
            with tempfile.TemporaryDirectory() as folder:
                for attack, problem, record in _once(plan, model, scheme, attacks, base, seed, Path(folder)):
                    problems[attack] = problems[attack] or problem
                    found[attack] += [] if problem else [record]
    except Error as error:  # this model does not convert under this scheme
        problems = dict.fromkeys(attacks, str(error))
    for attack in attacks:
        record = {
            "model": Path(model).stem, "scheme": scheme, "attack": attack, "base": Path(base).stem if base else None,
            "runs": [] if problems[attack] else found[attack], "problem": problems[attack], "version": __version__,
            "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        }  # fmt: skip
        _write(plan.cell(model, scheme, attack), json.dumps(record, indent=1, default=_plain) + "\n")
    return len(attacks)


def _once(
    plan: Plan, model: str, scheme: str, attacks: Sequence[str], base: str | None, seed: int, folder: Path
) -> Iterator[tuple[str, str, dict[str, Any]]]:
    """Convert once and attack: (attack, problem or "", record)."""
    from shadownet.converter import convert

    key, bundle, other = folder / "device.key", folder / "m.shadow", folder / "other.shadow"
    keys.create(key)
    data = bench.read_data(plan.data) if plan.data else None
    samples = None if data is None else [data.queries[:16].astype(np.float32)]
    name, *options = scheme.split("+")
    for target in (bundle, other) if "A17" in attacks else (bundle,):
        convert(
            model, target, scheme=name, ratio=plan.ratio, key=key, calibration=samples,
            activations=next((option for option in options if option != UNCHECKED), None),
            integrity="none" if UNCHECKED in options else "full",
            base=base if schemes.get(name).needs_base else None,
        )  # fmt: skip
    view = bench.open_view(bundle, base, other=other if "A17" in attacks else None)
    truth = bench.open_truth(bundle, model, key)
    own = None if data is None else data.queries
    stage = live.Stage(view, bundle, model, truth, key, own, base, plan.runs, True, seed)
    for attack in attacks:
        if attack != STEAL:
            chosen = registry.select(attack)
            outcomes = bench.weigh(view, truth, chosen, seed) + live.weigh(stage, chosen)
            yield attack, "", outcomes[0].to_json() if outcomes else {"recovered": None}
        elif data is not None:
            try:
                yield from ((attack, "", record) for record in _thefts(plan, model, stage, data, base, seed))
            except Error as error:
                yield attack, str(error), {}


def _thefts(
    plan: Plan, model: str, stage: live.Stage, data: bench.Data, base: str | None, seed: int
) -> Iterator[dict[str, Any]]:
    """Whole models: by what the attacker has and by the labels it may ask for."""
    alone = replace(stage.view, base=None)
    seeing = replace(stage.varied, base=None)
    has: list[tuple[str, AdversaryView, str | None]] = [("files", alone, None), ("files and transcript", seeing, None)]
    if base is not None:
        has.append(("files and public model", stage.view, base))
    for name, sees, public in has:
        for budget in plan.budgets:
            got = bench.theft(sees, model, data, _budget(budget, data), public, seed)
            yield {"knows": name, "budget": budget, "seed": seed} | got.to_json()


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
