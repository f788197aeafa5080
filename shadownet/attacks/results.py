"""Results as Markdown: the matrix of an arena, and SECURITY_RESULTS.md, own weaknesses first."""

from __future__ import annotations

import datetime
from collections.abc import Sequence
from typing import Any

import numpy as np

from enclave import schemes
from shadownet.attacks import arena, registry
from shadownet.attacks.bench import interval

Cell = dict[str, Any]


def document(cells: Sequence[Cell]) -> str:
    """SECURITY_RESULTS.md."""
    dates = sorted({cell["date"] for cell in cells})
    parts = [
        "# Security results",
        f"Made by `shadownet arena` on {datetime.datetime.now(datetime.UTC).date().isoformat()} from runs of "
        f"{dates[0]}{f' to {dates[-1]}' if dates[-1] != dates[0] else ''}; {arena.environment()}. Not edited by hand.",
        "## What breaks",
        _weaknesses(cells),
        "## Weights",
        "Share of a bundle's outsourced filters recovered within 5 % (under exact activations, and by A19 and A20: up "
        "to a factor per filter; by these two: with input channels as they are sent), mean over fresh secrets and half "
        "width of the 95 % interval. `random`: random rows of the same norms; `public`: the public model itself. "
        "Empty: the attack does not apply.",
        matrix(cells),
        "What is left of the error, for attackers with a public relative: distance of the recovered filters from the "
        "true ones, relative to the public model's own (median over layers; 100 %: nothing gained over the public "
        "model, 0 %: all of it).",
        distances(cells),
        "## Attacks that take part",
        "Share of what the attack measures, mean over fresh secrets and half width of the 95 % interval; `random`: "
        "the same claim at random, in the layer where chance was kindest (A14: an answer that is no number); `public`: "
        "the public model's own word. Runs: what the attacker had the bundle compute. `+unchecked`: converted with no "
        "integrity check. A14 at 12.5 %: a float check lets the smallest step of one value through, one kind of eight.",
        taking_part(cells),
        "## Whole models",
        "Accuracy and fidelity of the stolen model; in brackets normalised from 0, the same labels without the leak, "
        "to 1, the victim. FGSM, PGD: adversarial examples made on the stolen model that the victim gets wrong. AUC, "
        "TPR: membership inference by confidence on the stolen model, TPR at 1 % false positives; victim's: the same "
        "on the victim itself, where 50 % leaves nothing to infer; gradient: AUC by the norm of the loss's gradient.",
        thefts(cells),
        "## Attacks",
        "\n".join(
            f"- {a.name}: {a.what}; needs {', '.join(a.needs)}; measures {a.measure}" for a in registry.ATTACKS.values()
        ),
    ]
    failed = [f"- {c['model']}, {c['scheme']}, {c['attack']}: {c['problem']}" for c in cells if c["problem"]]
    if failed:
        parts += ["## Not measured", "\n".join(failed)]
    return "\n\n".join(parts) + "\n"


def matrix(cells: Sequence[Cell]) -> str:
    """Markdown: a row for each model and scheme, a column for each attack."""
    weights = _of(cells, on_weights=True)
    attacks = [name for name in registry.ATTACKS if any(c["attack"] == name for c in weights)]
    by = {(c["model"], c["scheme"], c["attack"]): c for c in weights}
    rows = []
    for model, scheme in sorted({(c["model"], c["scheme"]) for c in weights}):
        mine = [by.get((model, scheme, a)) for a in attacks]
        controls = [_largest([c for c in mine if c], name) for name in ("null", "base")]
        rows.append([model, scheme, *(_recovered(c) for c in mine), *controls])
    return _table(["model", "scheme", *attacks, "random", "public"], rows)


def taking_part(cells: Sequence[Cell]) -> str:
    """Markdown: a row for each model, scheme and attack on a bundle at work."""
    rows = []
    order = list(registry.ATTACKS)
    for cell in sorted(_of(cells, False), key=lambda c: (order.index(c["attack"]), c["model"], c["scheme"])):
        if _values(cell, "recovered"):
            controls = [_largest([cell], name) for name in ("null", "base")]
            runs = f"{np.mean(_values(cell, 'queries')):.0f}"
            rows.append([cell["attack"], cell["model"], cell["scheme"], _recovered(cell), *controls, runs])
    columns = ["attack", "model", "scheme", "share", "random", "public", "runs"]
    return _table(columns, rows) if rows else "None measured."


def _of(cells: Sequence[Cell], on_weights: bool) -> list[Cell]:
    """Cells of attacks on weights, or of those that take part, whole models apart."""
    return [c for c in cells if c["attack"] != arena.STEAL and registry.ATTACKS[c["attack"]].on_weights == on_weights]


def distances(cells: Sequence[Cell]) -> str:
    """Markdown: the median over layers of error / error of the public model, by model and scheme, for each attack."""
    weights = [c for c in _of(cells, on_weights=True) if c["base"]]
    attacks = [name for name in registry.ATTACKS if any(c["attack"] == name for c in weights)]
    by = {(c["model"], c["scheme"], c["attack"]): c for c in weights}
    rows = []
    for model, scheme in sorted({(c["model"], c["scheme"]) for c in weights}):
        rows.append([model, scheme, *(_left(by.get((model, scheme, a))) for a in attacks)])
    return _table(["model", "scheme", *attacks], rows) if rows else "None measured."


def _left(cell: Cell | None) -> str:
    """Of one cell: by direction, which is free of units."""
    scores = [s for run in cell["runs"] for s in run.get("scores", []) if s.get("base")] if cell else []
    ratios = [s["rows"]["direction"] / s["base"]["direction"] for s in scores if s["base"]["direction"] > 0]
    return f"{float(np.median(ratios)):.0%}" if ratios else ""


def thefts(cells: Sequence[Cell]) -> str:
    """Markdown: a row for each model, scheme, knowledge and budget of labels."""
    rows = []
    for cell in cells:
        if cell["attack"] != arena.STEAL:
            continue
        for knows, budget in dict.fromkeys((r["knows"], r["budget"]) for r in cell["runs"]):
            runs = [r for r in cell["runs"] if (r["knows"], r["budget"]) == (knows, budget)]
            rows.append([cell["model"], cell["scheme"], knows, budget, *_theft(runs)])
    columns = [
        "model", "scheme", "attacker has", "labels", "accuracy", "victim", "fidelity", "FGSM", "PGD", "AUC", "victim's",
        "TPR", "gradient",
    ]  # fmt: skip
    return _table(columns, rows) if rows else "None measured."


def _theft(runs: list[Cell]) -> list[str]:
    def mean(name: str) -> str:
        values = [r["stolen"][name] for r in runs if r["stolen"][name] is not None]
        return _share(*interval(values)) if values else ""

    def scaled(name: str) -> str:
        values = [r["normalised"][name] for r in runs if name in r["normalised"]]
        return f"{mean(name)} ({interval(values)[0]:.2f})" if values else ""

    def victims(name: str) -> str:
        values = [r["white_box"][name] for r in runs if r["white_box"][name] is not None]
        return f"{interval(values)[0]:.1%}" if values else ""

    return [
        scaled("accuracy"), victims("accuracy"), scaled("fidelity"), scaled("fgsm"), scaled("pgd"),
        scaled("member_auc"), victims("member_auc"), mean("member_tpr"), mean("gradient_auc"),
    ]  # fmt: skip


def _weaknesses(cells: Sequence[Cell]) -> str:
    """A line for each scheme, the most broken first."""
    lines = []
    for name in sorted({c["scheme"] for c in cells}):
        values = [
            (interval(found)[0], c["attack"], c["model"])
            for c in cells
            if c["scheme"] == name
            and registry.ATTACKS[c["attack"]].measure == "filters"
            and (found := _values(c, "recovered"))
        ]
        worst = max(values, default=(0.0, "no attack", "any model"))
        plain, *options = name.split("+")
        scheme = schemes.get(plain)
        activations = "exact" if "exact" in options else scheme.activations
        admitted = schemes.admitted(scheme, activations, "none" if "unchecked" in options else "full")
        text = f"- **{name}**: {worst[1]} recovers {worst[0]:.1%} of the outsourced filters of {worst[2]}."
        lines.append((worst[0], "\n".join([text, *(f"  - admitted: {leak}" for leak in admitted)])))
    return "\n".join(text for _, text in sorted(lines, key=lambda line: -line[0]))


def _values(cell: Cell, name: str) -> list[float]:
    if cell["attack"] == arena.STEAL:
        return []
    return [r[name] for r in cell["runs"] if r.get(name) is not None]


def _recovered(cell: Cell | None) -> str:
    found = _values(cell, "recovered") if cell else []
    return _share(*interval(found)) if found else ""


def _largest(cells: list[Cell], name: str) -> str:
    found = [v for c in cells for v in _values(c, name)]
    return f"{max(found):.1%}" if found else ""


def _share(mean: float, half: float) -> str:
    return f"{mean:.1%}" if half == float("inf") else f"{mean:.1%} ± {100 * half:.1f}"


def _table(columns: list[str], rows: list[list[str]]) -> str:
    lines = [columns, ["---"] * len(columns), *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)
