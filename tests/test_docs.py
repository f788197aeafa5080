"""Documents speak of things that exist: files, verbs, flags, make targets."""

from __future__ import annotations

import argparse
import importlib.util
import re
import sys
from pathlib import Path

import pytest

from enclave import schemes
from shadownet.attacks.registry import ATTACKS
from shadownet.cli import parser

ROOT = Path(__file__).resolve().parent.parent
DOCUMENTS = [*sorted(ROOT.glob("*.md")), *sorted(ROOT.glob("docs/**/*.md")), ROOT / "models" / "README.md"]


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


@pytest.mark.skipif(sys.version_info >= (3, 13), reason="argparse and annotations are printed otherwise since 3.13")
def test_what_is_made_from_code_and_results_is_current() -> None:
    """API reference, help of every verb, indices, and what the pages say was measured."""
    spec = importlib.util.spec_from_file_location("write_docs", ROOT / "tools" / "write_docs.py")
    assert spec is not None and spec.loader is not None
    tool = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(tool)
    for path, text in tool.documents().items():
        assert path.read_text() == text, f"{path.name} is out of date: python tools/write_docs.py"


def test_every_scheme_and_attack_has_a_page() -> None:
    pages = {path.stem for path in (ROOT / "docs" / "schemes").glob("*.md")} - {"README"}
    assert pages == {scheme.name.split(":")[0] for scheme in schemes.every()}
    pages = {path.stem for path in (ROOT / "docs" / "attacks").glob("*.md")} - {"README"}
    assert pages == set(ATTACKS)


@pytest.mark.parametrize("folder", ["schemes", "attacks"])
def test_pages_say_what_pages_must(folder: str) -> None:
    for path in (ROOT / "docs" / folder).glob("*[!E].md"):
        if path.stem != "README":
            text = path.read_text()
            wanted = ["```math", "**Source:**", "## Measured"]
            wanted += ["**Needs:**", "**What helps:**"] if folder == "attacks" else ["**Protects:**", "**Does not:**"]
            assert all(word in text for word in wanted), path.name
            assert len(text.split("## Measured")[1].split()) > 5, path.name


def test_every_verb_explains_its_flags() -> None:
    for verb, sub in verbs().items():
        for action in sub._actions:
            assert action.help or not action.option_strings, f"{verb} {action.option_strings}"


def test_the_readme_leaves_nothing_to_fill_in() -> None:
    assert not re.search(r"@[A-Z]+@|TODO|TBD", (ROOT / "README.md").read_text())
