#!/usr/bin/env python3
"""Writes what the documentation takes from the code and from results: docs/api.md, docs/cli.md, the indices of
docs/attacks and docs/schemes, and the tables of measurements in their pages. A test says when one is out of date."""

from __future__ import annotations

import argparse
import importlib
import inspect
import os
import re
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

API = {  # module: the names that people use
    "shadownet": ["convert", "Interpreter"],
    "shadownet.interpreter": ["SignatureRunner"],
    "shadownet.session": ["Session"],
    "shadownet.wire.errors": [
        "Error", "ModelError", "InputError", "MismatchError", "BundleError", "IntegrityError", "WorkerError",
    ],
    "enclave.schemes": ["Scheme", "Plain", "LayerWeights", "Obfuscated", "MaskRule", "Claims", "Place", "get"],
    "enclave.restore": ["Restore"],
    "enclave.rng": ["Rng"],
    "accelerator.backends": ["Backend", "create"],
    "shadownet.attacks.view": ["AdversaryView", "PublicLayer"],
    "shadownet.attacks.recovery": ["Recovery"],
    "shadownet.attacks.registry": ["Attack", "select"],
}  # fmt: skip
GENERATED = "Made by `tools/write_docs.py`; not edited by hand."
LEAK = re.compile(r"<!-- leak -->\n.*?<!-- end -->", re.DOTALL)
BIG = ("resnet20_cifar10_float32", "minivgg_cifar10_float32")  # of the matrix; the others have filters of a few weights
MATRIX = re.compile(r"<!-- matrix -->\n.*?<!-- end -->", re.DOTALL)


def documents() -> dict[Path, str]:
    """Every document that is made or completed here, with what it should hold."""
    made = {ROOT / "docs" / "api.md": _api(), ROOT / "docs" / "cli.md": _cli()}
    cells = _cells((ROOT / "SECURITY_RESULTS.md").read_text())
    for kind, title, describe in (
        ("attacks", "Attacks", _attack_table), ("schemes", "Schemes", _scheme_table)
    ):  # fmt: skip
        folder = ROOT / "docs" / kind
        pages = sorted((p for p in folder.glob("*.md") if p.name != "README.md"), key=_natural)
        for page in pages:
            table = f"<!-- matrix -->\n{describe(page.stem, cells)}<!-- end -->"
            made[page] = MATRIX.sub(lambda _, table=table: table, page.read_text())
        made[folder / "README.md"] = _index(title, pages)
    readme = ROOT / "README.md"
    made[readme] = LEAK.sub(lambda _: f"<!-- leak -->\n{_leak_table(cells)}<!-- end -->", readme.read_text())
    return made


def _natural(path: Path) -> tuple[str, int]:
    number = re.search(r"\d+", path.stem)
    return (re.sub(r"\d+", "", path.stem), int(number.group()) if number else 0)


def _index(title: str, pages: list[Path]) -> str:
    lines = [f"# {title}", "", GENERATED, ""]
    for page in pages:
        heading, _, summary = page.read_text().split("\n", 3)[:3]
        name, _, what = heading.removeprefix("# ").partition(": ")
        lines.append(f"- [{name}]({page.name}), {what}. {summary}")
    return "\n".join(lines) + "\n"


# Measurements


def _cells(results: str) -> dict[tuple[str, str, str], str]:
    """(model, scheme, attack) -> share recovered, from the first table of SECURITY_RESULTS.md."""
    _, columns, *rows = _rows(results.split("## Weights", 1)[1])
    attacks = [c for c in columns if re.fullmatch(r"A\d+", c)]
    return {(r[0], r[1], attack): r[columns.index(attack)] for r in rows for attack in attacks}


def _rows(text: str) -> list[list[str]]:
    """The first Markdown table of ``text``: an empty row, the header, the rows."""
    lines = text[text.index("\n| ") + 1 :].split("\n\n", 1)[0].splitlines()
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    return [[], cells[0], *cells[2:]]


def _leak_table(cells: dict[tuple[str, str, str], str]) -> str:
    """By scheme: the best attack on weights with the public file alone, and the best of all."""
    from shadownet.attacks.registry import ATTACKS, Need

    lines = ["| scheme | with the public file alone | with a public relative too |", "|---|---|---|"]
    for scheme in dict.fromkeys(scheme for _, scheme, _ in cells):
        found = {
            (m, a): v for (m, s, a), v in cells.items() if s == scheme and m in BIG and v and ATTACKS[a].on_weights
        }
        alone = {key: value for key, value in found.items() if ATTACKS[key[1]].needs == (Need.FILES,)}
        best = [max(part.items(), key=lambda item: float(item[1].split("%")[0])) for part in (alone, found)]
        lines.append(f"| `{scheme}` | " + " | ".join(map(_best, best)) + " |")
    return "\n".join(lines) + "\n"


def _best(found: tuple[tuple[str, str], str]) -> str:
    (_, attack), value = found
    return value if value.startswith("0.0%") else f"{value} ({attack})"


def _attack_table(attack: str, cells: dict[tuple[str, str, str], str]) -> str:
    return _table(cells, lambda model, scheme, name: (scheme, model) if name == attack else None, "scheme")


def _scheme_table(scheme: str, cells: dict[tuple[str, str, str], str]) -> str:
    def place(model: str, name: str, attack: str) -> tuple[str, str] | None:
        return (f"{model}, `{name}`", attack) if re.split(r"[:+]", name)[0] == scheme else None

    return _table(cells, place, "model and scheme")


def _table(cells: dict[tuple[str, str, str], str], place: Any, corner: str) -> str:
    found: dict[str, dict[str, str]] = {}
    for key, value in cells.items():
        where = place(*key)
        if where and value:
            found.setdefault(where[0], {})[where[1]] = value
    if not found:
        return (
            "Not in the matrix of [SECURITY_RESULTS.md](../../SECURITY_RESULTS.md): no weights leave the enclave,\n"
            "or it is newer.\n"
        )
    columns = list(dict.fromkeys(c for row in found.values() for c in row))
    lines = [f"| {corner} | " + " | ".join(columns) + " |", "|---" * (len(columns) + 1) + "|"]
    lines += [f"| {name} | " + " | ".join(row.get(c, "") for c in columns) + " |" for name, row in found.items()]
    about = (
        "Share of the outsourced filters recovered within 5 % (under exact activations: up to a factor for each\n"
        "filter), mean and half width of the 95 % interval; empty where the attack does not apply. From\n"
        "[SECURITY_RESULTS.md](../../SECURITY_RESULTS.md), which has the controls."
    )
    return about + "\n\n" + "\n".join(lines) + "\n"


# The command line


def _cli() -> str:
    from unittest import mock

    from shadownet.cli import parser

    top = parser()
    (verbs,) = [a.choices for a in top._actions if isinstance(a, argparse._SubParsersAction)]
    with mock.patch.dict(os.environ, COLUMNS="100"):
        parts = ["# The command line", GENERATED, _help("", top)]
        parts += [part for name, verb in verbs.items() for part in (f"## {name}", _help(name, verb))]
    return "\n\n".join(parts) + "\n"


def _help(name: str, parser: argparse.ArgumentParser) -> str:
    command = " ".join(["shadownet", *name.split(), "-h"])
    return f"```\n$ {command}\n{parser.format_help().rstrip()}\n```"


# The API


def _api() -> str:
    parts = ["# API", GENERATED + " A name without a leading underscore that is missing here may change at any time."]
    for module, names in API.items():
        loaded = importlib.import_module(module)
        parts.append(f"## {module}")
        for name in names:
            parts += _describe(name, getattr(loaded, name))
    return "\n\n".join(parts) + "\n"


def _describe(name: str, value: Any) -> list[str]:
    if not inspect.isclass(value):
        return [f"### {name}", _signature(name, value), _prose(value)]
    parts = [f"### {name}"]
    if not issubclass(value, Exception) and not getattr(value, "_is_protocol", False):
        parts.append(_signature(name, value))
    parts.append(_prose(value))
    for member, own in vars(value).items():
        function = own.fget if isinstance(own, property) else getattr(own, "__func__", own)
        if not member.startswith("_") and inspect.isfunction(function):
            kind = "" if isinstance(own, property) else " ".join(_parameters(function).split())
            parts.append(f"**`{name}.{member}{kind}`**\n{_prose(function)}".rstrip())
    return [part for part in parts if part]


def _signature(name: str, value: Any) -> str:
    return f"```python\n{name}{_parameters(value)}\n```"


def _parameters(value: Any) -> str:
    """``(name: type = default, …) -> type`` as in the source; types are strings here."""
    signature = inspect.signature(value)
    parts, keyword_only = [], False
    for p in signature.parameters.values():
        if p.name in ("self", "cls"):
            continue
        if p.kind is p.KEYWORD_ONLY and not keyword_only:
            parts.append("*")
            keyword_only = True
        stars = {p.VAR_POSITIONAL: "*", p.VAR_KEYWORD: "**"}.get(p.kind, "")
        text = stars + p.name + ("" if p.annotation is p.empty else f": {p.annotation}")
        parts.append(text if p.default is p.empty else f"{text} = {p.default!r}")
    returns = (
        "" if signature.return_annotation in (signature.empty, "None", None) else f" -> {signature.return_annotation}"
    )
    flat = f"({', '.join(parts)}){returns}"
    return flat if len(flat) < 100 else "(\n    " + ",\n    ".join(parts) + f",\n){returns}"


def _prose(value: Any) -> str:
    text = inspect.getdoc(value) or ""
    text = re.sub(r":\w+:`~?([^`]*)`", r"`\1`", text)
    return text.replace("``", "`")


def main() -> int:
    stale = [path for path, text in documents().items() if not path.exists() or path.read_text() != text]
    for path, text in documents().items():
        path.write_text(text)
    print("\n".join(f"wrote {path.relative_to(ROOT)}" for path in stale) or "all up to date")
    return 0


if __name__ == "__main__":
    sys.exit(main())
