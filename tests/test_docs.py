"""Documents speak of things that exist: files, verbs, flags, make targets."""

from __future__ import annotations

import argparse
import re
from pathlib import Path

import pytest

from shadownet.cli import parser

ROOT = Path(__file__).resolve().parent.parent
DOCUMENTS = [*sorted(ROOT.glob("*.md")), *sorted(ROOT.glob("docs/*.md")), ROOT / "models" / "README.md"]


def verbs() -> dict[str, argparse.ArgumentParser]:
    (choices,) = [a.choices for a in parser()._actions if isinstance(a, argparse._SubParsersAction)]
    return choices


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda d: d.name)
def test_links_lead_somewhere(document: Path) -> None:
    for target in re.findall(r"\]\(([^)#]+)\)", document.read_text()):
        if "://" not in target:
            assert (document.parent / target).exists(), target


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda d: d.name)
def test_commands_exist_with_their_flags(document: Path) -> None:
    for line in re.findall(r"^\$ (?:\.venv/bin/)?shadownet (.+)$", document.read_text(), re.MULTILINE):
        verb, *words = line.split()
        if verb == "-h":
            continue
        known = {flag for action in verbs()[verb]._actions for flag in action.option_strings}
        assert {word for word in words if word.startswith("-")} <= known, line


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda d: d.name)
def test_make_targets_exist(document: Path) -> None:
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    for target in re.findall(r"^\$? ?make (\w+)", document.read_text(), re.MULTILINE):
        assert target in targets, target


def test_every_verb_explains_its_flags() -> None:
    for verb, sub in verbs().items():
        for action in sub._actions:
            assert action.help or not action.option_strings, f"{verb} {action.option_strings}"


def test_the_readme_leaves_nothing_to_fill_in() -> None:
    assert not re.search(r"@[A-Z]+@|TODO|TBD", (ROOT / "README.md").read_text())
