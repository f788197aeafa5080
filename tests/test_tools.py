"""tools/: the verbs' front ends work from a checkout that was never installed, and have the verbs' flags."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from boundary_helpers import DIGITS, Lab, digits, the_lab  # noqa: F401, the_lab is the fixture lab

ROOT = Path(__file__).resolve().parent.parent
TOOLS = {"convert_model.py": "convert", "run_on_device.py": "run", "check_security.py": "check"}
PACKAGES = str(Path(np.__file__).parent.parent)


def tool(name: str, *arguments: object, folder: Path, **env: str) -> subprocess.CompletedProcess[str]:
    """Run a tool elsewhere, in a Python that has the dependencies and not this project: -S ignores its .pth file."""
    command = [sys.executable, "-S", str(ROOT / "tools" / name), *map(str, arguments)]
    env = {"PATH": "/usr/bin:/bin", "PYTHONPATH": PACKAGES, "HOME": str(folder), "COLUMNS": "100", **env}
    return subprocess.run(command, capture_output=True, text=True, cwd=folder, env=env)


@pytest.mark.parametrize("name", TOOLS)
def test_the_same_flags_as_the_verb(name: str, tmp_path: Path) -> None:
    ours = tool(name, "-h", folder=tmp_path)
    env = os.environ | {"COLUMNS": "100"}
    verb = subprocess.run(
        [sys.executable, "-m", "shadownet", TOOLS[name], "-h"], capture_output=True, text=True, env=env
    )  # fmt: skip
    assert ours.returncode == 0 and ours.stdout == verb.stdout != "", ours.stderr


def test_without_installation(lab: Lab, tmp_path: Path) -> None:
    key = str(lab.key)
    model = DIGITS / "digits_mlp.tflite"
    made = tool("convert_model.py", model, "-o", "b.shadow", folder=tmp_path, SHADOWNET_KEY=key)
    assert made.returncode == 0, made.stderr
    np.save(tmp_path / "x.npy", digits()[:2])
    ran = tool("run_on_device.py", "b.shadow", "--input", "x.npy", folder=tmp_path, SHADOWNET_KEY=key)
    assert ran.returncode == 0 and "sample 1:" in ran.stdout, ran.stderr
    (tmp_path / "gates.toml").write_text("max_filters_recovered = 0.0\n")
    arguments = ("b.shadow", "--model", model, "--gates", "gates.toml")
    judged = tool("check_security.py", *arguments, folder=tmp_path, SHADOWNET_KEY=key)
    assert judged.returncode == 1 and "FAILED" in judged.stdout, judged.stderr
    assert sorted(os.listdir(tmp_path)) == ["b.shadow", "gates.toml", "x.npy"]


def test_the_project_is_not_found_by_accident(tmp_path: Path) -> None:
    env = {"PATH": "/usr/bin:/bin", "PYTHONPATH": PACKAGES}
    found = subprocess.run([sys.executable, "-S", "-c", "import shadownet"], cwd=tmp_path, env=env, capture_output=True)
    assert found.returncode != 0


@pytest.mark.slow
def test_measuring_a_gpu_says_what_is_missing(tmp_path: Path) -> None:
    none = str(tmp_path / "none.json")
    done = tool("measure_gpu.py", "m.tflite", folder=tmp_path, VK_ICD_FILENAMES=none, VK_DRIVER_FILES=none)
    assert done.returncode == 2, done.stderr
    for word in ("finds no GPU", "libvulkan1", "libGLX_nvidia", "Vulkan drivers", f"$VK_DRIVER_FILES: {none}"):
        assert word in done.stdout
