"""What leaks, as heat maps: rows of models and schemes or of layers, columns of attacks, beside the controls."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from shadownet.report.documents import count, items, number, record, text

Json = dict[str, Any]

RANDOM = {"name": "random", "what": "control: random rows of the same norms", "control": True}
PUBLIC = {"name": "public", "what": "control: the public model itself, with nothing stolen", "control": True}
THIRD = "Third control: what is scored shares no memory with the victim; every run asserts it."
SHARE = "Share of outsourced filters recovered within 5 % of their size (fixed point: of their direction)."


def matrix(cells: Sequence[Any]) -> Json:
    """A heat map of the arena's cells: models and schemes by attacks."""
    found: dict[tuple[str, str], dict[str, Json]] = {}
    seen: list[str] = []
    for cell in cells:
        attack = text(cell["attack"])
        measures = {text(record(run).get("measure", "filters")) for run in items(cell["runs"])}
        if attack == "A13" or measures - {"filters"}:  # whole models and attacks that take part count something else
            continue
        seen += [] if attack in seen else [attack]
        found.setdefault((text(cell["model"]), text(cell["scheme"])), {})[attack] = _cell(record(cell))
    names = sorted(seen, key=_order)
    rows = []
    for (model, scheme), by in sorted(found.items()):
        controls = [_largest([c[key] for c in by.values()]) for key in ("random", "public")]
        rows.append({"label": scheme, "group": model, "cells": [by.get(name) for name in names] + controls})
    how = f"{SHARE} Mean over fresh secrets, ± half width of the 95 % interval (Student's t). {THIRD}"
    columns = [*map(_column, names), RANDOM, PUBLIC]
    return _without_empty({"title": "Models and schemes", "columns": columns, "rows": rows, "how": how})


def _cell(cell: Json) -> Json:
    runs = [record(r) for r in items(cell["runs"])]
    values = [v for v in (number(r.get("recovered")) for r in runs) if v is not None]
    controls = {
        key: _most([number(r.get(name)) for r in runs]) for key, name in (("random", "null"), ("public", "base"))
    }
    mean = sum(values) / len(values) if values else None
    note = text(cell.get("problem") or "") or (f"{len(values)} conversions with fresh secrets" if values else "")
    return {"value": mean, "half": _half(values), "note": note, **controls}


def _half(values: list[float]) -> float | None:
    """Half width of the 95 % confidence interval."""
    if len(values) < 2:
        return None
    try:
        from shadownet.attacks.bench import interval
    except ImportError:  # SciPy is an extra
        return None
    half = interval(values)[1]
    return half if math.isfinite(half) else None


def layers(value: Any) -> Json:
    """A heat map of ``attack --json``: layers by attacks."""
    outcomes = [record(o) for o in items(value["attacks"])]
    names: list[str] = []
    by: dict[str, dict[str, Json]] = {}
    for outcome in outcomes:
        attack = text(outcome["attack"])
        for score in items(outcome["scores"]):
            layer = text(score["layer"])
            names += [] if layer in by else [layer]
            by.setdefault(layer, {})[attack] = {
                "value": number(score["rows"]["recovered"]), "half": None,
                "note": f"median error {_percent(number(score['rows']['error']))}, "
                f"direction {_percent(number(score['rows']['aligned']))}",
                "random": number(score["null"]["recovered"]),
                "public": None if score["base"] is None else number(score["base"]["recovered"]),
            }  # fmt: skip
    attacks = [a for a in (text(o["attack"]) for o in outcomes) if any(a in row for row in by.values())]
    rows = []
    for name in names:
        controls = [_largest([c[key] for c in by[name].values()]) for key in ("random", "public")]
        rows.append({"label": name, "group": "", "cells": [by[name].get(a) for a in attacks] + controls})
    lost = number(value.get("lost"))
    overall = (
        "" if lost is None else f" The best attack on each layer takes {_percent(lost)} of {count(value['filters'])}."
    )
    columns = [*map(_column, attacks), RANDOM, PUBLIC]
    how = f"{SHARE} One bundle, {text(value['scheme'])}.{overall} {THIRD}"
    return _without_empty({"title": f"Layers of {text(value['bundle'])}", "columns": columns, "rows": rows, "how": how})


def predicted(value: Any) -> Json:
    """A heat map of the leak meter, ``attack MODEL.tflite --json``: layers by schemes."""
    readings = [record(r) for r in items(value["predicted"])]
    by: dict[str, dict[int, Json]] = {}
    for n, reading in enumerate(readings):
        for score in items(reading["layers"]):
            by.setdefault(text(score["layer"]), {})[n] = {
                "value": number(score["rows"]["recovered"]), "half": None, "note": f"by {text(score['attack'])}",
                "random": number(score["null"]["recovered"]), "public": None,
            }  # fmt: skip
    columns = [{"name": text(r["scheme"]), "what": "scheme", "control": False} for r in readings]
    lost = [{"value": number(r["lost"]), "half": None, "note": "best attack on each layer"} for r in readings]
    rows = [{"label": "of all that goes out", "group": "", "cells": [*lost, None]}]
    for name in sorted(by):
        cells = [by[name].get(n) for n in range(len(readings))]
        rows.append({"label": name, "group": "", "cells": [*cells, _largest([c["random"] for c in cells if c])]})
    how = f"{SHARE} Best attack on each layer. A prediction: the model was converted once under each scheme, with "
    how += f"secrets of its own. {THIRD}"
    return {"title": f"Predicted for {text(value['model'])}", "columns": [*columns, RANDOM], "rows": rows, "how": how}


def theft(value: Any) -> Json | None:
    """The stolen whole model of ``attack --data --json``, beside its bounds."""
    stolen = value.get("stolen")
    if stolen is None:
        return None
    names = {"stolen": "stolen model", "black_box": "same labels, no leak", "white_box": "the victim itself",
             "null": "random weights", "base": "public model alone"}  # fmt: skip
    rows = []
    for key, name in names.items():
        if stolen[key] is not None:
            cells = [number(stolen[key][k]) for k in ("accuracy", "fidelity", "fgsm", "pgd", "member_auc")]
            rows.append({"label": name, "cells": cells})
    return {"columns": ["accuracy", "fidelity", "FGSM carries", "PGD carries", "members AUC"], "rows": rows,
            "how": f"With {count(stolen['queries'])} labelled queries; held-out samples."}  # fmt: skip


def gates(value: Any) -> list[Json]:
    """The gates of ``check --json``."""
    return [
        {
            "gate": text(g["gate"]), "limit": number(g["limit"]), "found": number(g["found"]),
            "where": text(g["where"]), "passed": bool(g["passed"]),
        }
        for g in items(value["gates"])
    ]  # fmt: skip


def _without_empty(heat: Json) -> Json:
    """Leave out the column of the public model where none was at hand, and say so."""
    if heat["columns"][-1] is PUBLIC and all(row["cells"][-1] is None for row in heat["rows"]):
        rows = [row | {"cells": row["cells"][:-1]} for row in heat["rows"]]
        return heat | {
            "columns": heat["columns"][:-1],
            "rows": rows,
            "how": heat["how"] + " No public model was given.",
        }
    return heat


def _column(name: str) -> Json:
    try:
        from shadownet.attacks import registry
    except ImportError:  # SciPy is an extra
        return {"name": name, "what": "", "control": False}
    known = registry.ATTACKS.get(name)
    return {"name": name, "what": f"{known.what}; needs {', '.join(known.needs)}" if known else "", "control": False}


def _order(name: str) -> tuple[int, str]:
    return (int(name[1:]) if name[1:].isdecimal() else 10_000), name


def _most(values: Sequence[float | None]) -> float | None:
    return max((v for v in values if v is not None), default=None)


def _largest(values: Sequence[float | None]) -> Json | None:
    most = _most(values)
    return None if most is None else {"value": most, "half": None, "note": "largest over the row's attacks"}


def _percent(share: float | None) -> str:
    return "unknown" if share is None else f"{share:.1%}"
