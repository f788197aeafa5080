"""How child processes are started: isolated from the working directory and from the caller's environment."""

from __future__ import annotations

import os
import sys
from pathlib import Path

TFLITE_PYTHON = "SHADOWNET_TFLITE_PYTHON"  # names an interpreter that has tflite-runtime, which ours cannot have
_ROOT = str(Path(__file__).resolve().parent.parent)
# Another interpreter's own packages come first: where we are installed, ours lie beside a NumPy that is not its own.
_ELSEWHERE = (
    "import runpy, sys; package = sys.argv.pop(1); sys.path.append(sys.argv.pop(1)); "
    "runpy.run_module(package, run_name='__main__', alter_sys=True)"
)
_KEEP = ("LD_LIBRARY_PATH", "VK_ICD_FILENAMES", "VK_DRIVER_FILES", "LANG", "LC_ALL", "TMPDIR")


def environment() -> dict[str, str]:
    """The environment of a worker: nothing but what finding libraries needs, and where our packages lie."""
    kept = {name: os.environ[name] for name in _KEEP if name in os.environ}
    # One malloc arena: each further one reserves 64 MiB of address space, which the memory limit would count.
    return kept | {
        "PYTHONPATH": _ROOT,
        "PATH": "/usr/bin:/bin",
        "MALLOC_ARENA_MAX": "1",
        "PYTHONDONTWRITEBYTECODE": "1",
    }


def command(module: str, backend: str = "") -> list[str]:
    """How to start the worker ``module``, to which its arguments are appended.

    An accelerator with the backend tflite-runtime runs in the interpreter that ``$SHADOWNET_TFLITE_PYTHON`` names.
    """
    other = os.environ.get(TFLITE_PYTHON) if "tflite-runtime" in backend else None
    return [other, "-I", "-c", _ELSEWHERE, module, _ROOT] if other else [sys.executable, "-P", "-m", module]
