"""Gates: what a bundle's owner is not willing to lose, as a small TOML file that a CI can hold a release to.

max_filters_recovered = 0.05     # share of all filters, best attack on each layer
attacks = ["A0", "A4"]           # default: all that apply
base = "public.tflite"           # a public relative that attackers have; paths are relative to this file
data = "samples.npz"             # for the gates on the stolen model
queries = 50                     # labels that an attacker may ask for
runs = 32                        # runs of its own that it may record; 0: public files only
bundle = "m.shadow"              # for the pytest plugin, which has no command line
model = "m.tflite"
"""

from __future__ import annotations

import os
import tomllib
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from shadownet.attacks import bench, lab, registry
from shadownet.attacks.view import AdversaryView, Knowledge
from shadownet.progress import working
from shadownet.wire.errors import InputError

WEIGHTS = ("max_filters_recovered", "max_layer_recovered", "max_pairs_recovered")
THEFT = ("max_stolen_accuracy", "max_stolen_fidelity", "max_normalised_accuracy", "max_transfer", "max_member_auc")
PATHS = ("base", "data", "bundle", "model")


@dataclass(frozen=True)
class Gates:
    """``limits`` by gate name; see the module."""

    limits: dict[str, float]
    attacks: str | None = None
    paths: dict[str, Path] = field(default_factory=dict)
    queries: int = 50
    runs: int = 32


@dataclass(frozen=True)
class Result:
    """One gate: what was ``found``, the ``limit``, and who or where it was."""

    gate: str
    limit: float
    found: float
    where: str

    @property
    def passed(self) -> bool:
        return self.found <= self.limit

    def to_json(self) -> dict[str, Any]:
        return vars(self) | {"passed": self.passed}


def read_gates(path: str | os.PathLike[str]) -> Gates:
    """Read a gates file. Raises ``InputError`` for anything that is not one."""
    file = Path(path)
    try:
        record = tomllib.loads(file.read_text())
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise InputError(f"{path} is not TOML: {error}") from None
    known = {*WEIGHTS, *THEFT, *PATHS, "attacks", "queries", "runs"}
    if record.keys() - known:
        raise InputError(f"{path}: unknown key {min(record.keys() - known)!r}", f"known: {', '.join(sorted(known))}")
    limits = {name: record[name] for name in (*WEIGHTS, *THEFT) if name in record}
    names = record.get("attacks")
    counts = {name: record[name] for name in ("queries", "runs") if name in record}
    sound = (
        all(isinstance(v, (int, float)) and not isinstance(v, bool) for v in limits.values())
        and (names is None or (isinstance(names, list) and all(isinstance(n, str) for n in names)))
        and all(isinstance(v, int) and not isinstance(v, bool) and v >= 0 for v in counts.values())
        and all(isinstance(record[name], str) for name in PATHS if name in record)
    )
    if not sound:
        raise InputError(f"{path}: limits are numbers, counts are whole, attacks a list of names, paths are text")
    if not limits:
        raise InputError(f"{path} has no gate", f"one of {', '.join((*WEIGHTS, *THEFT))}")
    attacks = None if names is None else ",".join(names)
    registry.select(attacks)
    paths = {name: file.parent / record[name] for name in PATHS if name in record}
    if limits.keys() & set(THEFT) and "data" not in paths:
        raise InputError(f"{path}: gates on the stolen model need data = an .npz file")
    return Gates({k: float(v) for k, v in limits.items()}, attacks, paths, **counts)


def judge(
    gates: Gates, bundle: str | os.PathLike[str], model: str | os.PathLike[str],
    key: str | os.PathLike[str] | None = None,
) -> list[Result]:  # fmt: skip
    """Attack and judge. Raises what reading, attacking and (for recorded runs) running raise."""
    base = gates.paths.get("base")
    view = bench.open_view(bundle, base)
    results: list[Result] = []
    if gates.limits.keys() & set(WEIGHTS):
        results += _weights(gates, view, bench.weigh(view, bench.open_truth(bundle, model, key), _attacks(gates)))
    if gates.limits.keys() & set(THEFT):
        results += _theft(gates, view, bundle, model, base, key)
    return results


def _attacks(gates: Gates) -> list[registry.Attack]:
    return registry.select(gates.attacks)


def _weights(gates: Gates, view: AdversaryView, outcomes: list[bench.Outcome]) -> list[Result]:
    layers = bench.by_layer(outcomes)
    worst = max(layers, key=lambda item: item[1].rows.recovered, default=None)
    pairs = max((o for o in outcomes if o.pairs is not None), key=lambda o: o.pairs or 0.0, default=None)
    names = ", ".join(sorted({attack for attack, _ in layers})) or "no attack applied"
    found = {
        WEIGHTS[0]: (bench.lost(outcomes, sum(layer.filters for layer in view.layers)), names),
        WEIGHTS[1]: (worst[1].rows.recovered, f"{worst[1].layer}, {worst[0]}") if worst else (0.0, names),
        WEIGHTS[2]: (pairs.pairs or 0.0, pairs.attack) if pairs else (0.0, "no attack named pairs"),
    }
    return [Result(name, gates.limits[name], *found[name]) for name in WEIGHTS if name in gates.limits]


def _theft(
    gates: Gates, view: AdversaryView, bundle: str | os.PathLike[str], model: str | os.PathLike[str],
    base: Path | None, key: str | os.PathLike[str] | None,
) -> list[Result]:  # fmt: skip
    data = bench.read_data(gates.paths["data"])
    if gates.runs:
        crossed = lab.record(bundle, data.queries[: gates.runs], key)
        view = replace(view, knowledge=Knowledge.TRANSCRIPT, transcript=crossed)
    with working("stealing the whole model"):
        got = bench.theft(view, model, data, gates.queries, base)
    where = f"{got.queries} labels, {gates.runs} runs"
    if "max_member_auc" in gates.limits and got.stolen.member_auc is None:
        raise InputError("max_member_auc needs data with x_owner and y_owner, the victim's training samples")
    found = {
        "max_stolen_accuracy": got.stolen.accuracy,
        "max_stolen_fidelity": got.stolen.fidelity,
        "max_normalised_accuracy": got.normalised["accuracy"],
        "max_transfer": max(got.stolen.fgsm, got.stolen.pgd),
        "max_member_auc": got.stolen.member_auc or 0.0,
    }
    return [Result(name, gates.limits[name], found[name], where) for name in THEFT if name in gates.limits]
