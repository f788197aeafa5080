"""Every command of the documents runs as written, and prints what the document says, numbers aside.

A document's fenced blocks run in order in one folder. Lines that begin with ``$ `` are commands for bash, and must
succeed; what follows them is their output, of which … may leave out lines, or the end of one. ``python`` blocks run,
other languages are text. A comment before a block says more: ``<!-- file: NAME -->`` writes it, ``<!-- slow -->``
leaves it to the slow tests, ``<!-- setup -->`` to the test of a fresh clone. Not run: ``make test`` and ``make slow``,
which run this, ``make bench``, which wants a quiet hour, and training with TensorFlow (models/README.md).
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from boundary_helpers import ROOT
from PIL import Image

from enclave import keys

VICTIMS = ROOT / "models" / "victims"
FENCE = re.compile(r"(?:<!-- ([a-z]+)(?:: (\S+))? -->\n)?^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
PAGES = [*sorted((ROOT / "docs" / "schemes").glob("*.md")), *sorted((ROOT / "docs" / "attacks").glob("*.md"))]
GUIDES = [
    ROOT / "docs" / name
    for name in ("adding_a_scheme.md", "adding_an_attack.md", "adding_a_backend.md", "report.md", "simulator.md")
]
GATES = 'max_filters_recovered = 0.05\nbase = "public.tflite"\n'


@dataclass(frozen=True)
class Block:
    mark: str
    name: str
    language: str
    text: str

    def commands(self) -> Iterator[tuple[str, list[str]]]:
        """(command, lines of output that the document shows)."""
        command, shown = "", []
        for line in self.text.splitlines():
            if line.startswith("$ "):
                if command:
                    yield command, shown
                command, shown = line[2:], []
            else:
                shown.append(line)
        if command:
            yield command, shown


def blocks(document: Path) -> list[Block]:
    return [Block(*(part or "" for part in found)) for found in FENCE.findall(document.read_text())]


class Reader:
    """Somebody who types a document's commands, in a folder that has what it says there is."""

    def __init__(self, home: Path) -> None:
        self.folder, self._where = home / "checkout", home / "where"
        self.folder.mkdir()
        for name in ("models", "tools"):
            (self.folder / name).symlink_to(ROOT / name)
        environment = {k: v for k, v in os.environ.items() if k not in ("SHADOWNET_KEY", "XDG_CONFIG_HOME")}
        self.env = environment | {
            "HOME": str(home), "COLUMNS": "100", "PYTHONPATH": str(ROOT),
            "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        }  # fmt: skip

    def has_a_model(self) -> Reader:
        """The files that documents call model.tflite, x.npy and so on."""
        for name, source in {"model": "cnn_tuned_3", "public": "cnn_base"}.items():
            shutil.copy(VICTIMS / f"{source}.tflite", self.folder / f"{name}.tflite")
        shutil.copy(VICTIMS / "data.npz", self.folder / "samples.npz")
        with np.load(VICTIMS / "data.npz") as data:
            np.save(self.folder / "x.npy", data["x_test"][:8])
        Image.new("L", (30, 20), 90).save(self.folder / "photo.jpg")
        (self.folder / "gates.toml").write_text(GATES)
        shutil.copy(ROOT / "shadownet" / "devices" / "rpi4.toml", self.folder / "my-board.toml")
        return self

    def reads(self, document: Path, slow: bool) -> int:
        """Run a document's blocks; those marked slow only if ``slow``. Returns how many commands ran."""
        count = 0
        for block in blocks(document):
            if block.mark == "file":
                (self.folder / block.name).write_text(block.text)
            elif block.mark == "setup" or (block.mark == "slow" and not slow):
                continue
            elif block.language == "python":
                self.types(f"{sys.executable} - <<'PYTHON'\n{block.text}\nPYTHON")
                count += 1
            elif not block.language:
                for command, shown in block.commands():
                    compare(shown, self.types(command), command)
                    count += 1
        return count

    def types(self, command: str) -> str:
        """Run it with bash, which must succeed; the next command starts where this one ends."""
        done = subprocess.run(
            ["bash", "-e", "-o", "pipefail", "-c", f"{command}\npwd > {self._where}"],
            cwd=self.folder, env=self.env, text=True, stdin=subprocess.DEVNULL, capture_output=True,
        )  # fmt: skip
        assert done.returncode == 0, f"{command}\n{done.stdout}{done.stderr}"
        self.folder = Path(self._where.read_text().strip())
        return done.stdout


def compare(shown: list[str], got: str, command: str) -> None:
    """Each line that is shown comes in this order; numbers and column widths may differ."""
    lines = iter([general(line) for line in got.splitlines()])
    for line in shown:
        if line.strip() in ("", "…"):
            continue
        start, cut, _ = general(line).partition("…")
        start = start.rstrip()
        found = any(known.startswith(start) if cut else known == start for known in lines)
        assert found, f"{command} does not print: {line}\n\n{got}"


def general(line: str) -> str:
    line = re.sub(r"-{2,}", "--", " ".join(line.split()))
    return re.sub(r"\d[\d.,]*(?:e[-+]?\d+)?(?: ?[kMG](?=B?\b))?", "#", line)


@pytest.fixture
def reader(tmp_path: Path) -> Reader:
    key = tmp_path / ".config" / "shadownet" / "device.key"
    keys.create(key)
    return Reader(tmp_path)


def test_the_readme(reader: Reader) -> None:
    assert reader.has_a_model().reads(ROOT / "README.md", slow=False) > 8


def test_the_tutorial(reader: Reader) -> None:
    assert reader.reads(ROOT / "docs" / "tutorial.md", slow=False) > 12


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_all_of_the_readme(reader: Reader) -> None:
    reader.has_a_model().reads(ROOT / "README.md", slow=True)


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_all_of_the_tutorial(reader: Reader) -> None:
    reader.reads(ROOT / "docs" / "tutorial.md", slow=True)
    assert (reader.folder / "report.html").stat().st_size > 10_000 and (reader.folder / "stolen.tflite").exists()
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider"], cwd=reader.folder, env=reader.env,
        capture_output=True, text=True,
    )  # fmt: skip
    assert "1 passed" in done.stdout, done.stdout + done.stderr  # the line in pytest.ini that the tutorial ends with


@pytest.mark.slow
@pytest.mark.parametrize("document", [*GUIDES, *PAGES], ids=lambda d: d.stem)
def test_guides_and_pages(reader: Reader, document: Path) -> None:
    reader.has_a_model()
    if document.parent.name == "attacks" or document in GUIDES:
        reader.types("shadownet convert model.tflite -o model.shadow --calibration x.npy")
    reader.reads(document, slow=True)


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_from_a_fresh_clone_to_a_report(tmp_path: Path) -> None:
    """What the README asks of somebody who has nothing but git, Python and a model."""
    clone = tmp_path / "clone"
    subprocess.run(["git", "clone", "-q", str(ROOT), str(clone)], check=True)
    made = subprocess.run(
        ["make", "demo", f"PYTHON={sys.executable}"], cwd=clone, capture_output=True, text=True,
        env={k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "VIRTUAL_ENV")} | {"HOME": str(tmp_path)},
    )  # fmt: skip
    if made.returncode and "pip install" in made.stderr + made.stdout and "shadownet" not in made.stderr:
        pytest.skip("no package index to install from")
    assert made.returncode == 0, made.stderr
    (shown,) = [s for b in blocks(clone / "README.md") for c, s in b.commands() if c == "make demo" and s]
    compare(shown, made.stdout, "make demo")
    shutil.copy(VICTIMS / "mlp_tuned_3.tflite", clone / "model.tflite")
    env = {"PATH": f"{clone / '.venv' / 'bin'}:/usr/bin:/bin", "HOME": str(tmp_path)}
    for command in (
        "shadownet convert model.tflite -o model.shadow",
        "shadownet report model.shadow --model model.tflite -o report.html",
    ):
        assert f"$ {command}\n" in (clone / "README.md").read_text()
        done = subprocess.run(["bash", "-c", command], cwd=clone, env=env, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
    assert "<html" in (clone / "report.html").read_text()
