"""How child processes are started: isolated from the working directory and from the caller's environment."""

from __future__ import annotations

import os
from pathlib import Path

_KEEP = ("LD_LIBRARY_PATH", "VK_ICD_FILENAMES", "VK_DRIVER_FILES", "LANG", "LC_ALL", "TMPDIR")


def environment() -> dict[str, str]:
    """The environment of a worker: nothing but what finding libraries needs, and where our packages lie."""
    kept = {name: os.environ[name] for name in _KEEP if name in os.environ}
    root = str(Path(__file__).resolve().parent.parent)
    # One malloc arena: each further one reserves 64 MiB of address space, which the memory limit would count.
    return kept | {"PYTHONPATH": root, "PATH": "/usr/bin:/bin", "MALLOC_ARENA_MAX": "1", "PYTHONDONTWRITEBYTECODE": "1"}
