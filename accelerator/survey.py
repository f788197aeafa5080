"""What this machine has of the backends: ``python -m accelerator.survey BACKEND`` tries one and prints JSON."""

from __future__ import annotations

import base64
import importlib.metadata
import json
import os
import platform
import sys
import tempfile
import zlib
from typing import Any

import numpy as np

from accelerator.backends import NAMES, create
from shadownet.wire.arena import Arena

# A dense layer "dense" of two inputs and outputs whose weights are the identity.
_MODEL = (
    "eNptUbESwUAQfYkgyGRSZEwKhQ/Q0WuMSukDFMyoNArRKRRKte9Q+BrfoYu3d3txjM282bu9fbtvNwMAy/linGOIAQrkyJAwFiPi"
    "GYwBZ8WdeBCvAGjQ0zFbrGtYwunyJnzhTogmsd7s9hvNt7VtbsxzSET6dlQv92dVVS5ewprkjrQG0DI1WppvdZymqO00vbKGuwWq"
    "CUjrKYWfarwgVqKV2H6KfPFy0ydBz+PJOJmeI/NZjmhteDUopXLxQOPyfiFmOsPN6g1indHtJPRqAn2jHka/szajtlXi7Vn8QXmh"
    "x890g//4fu/yp7f734nZAYxqye1YbucNy6ggkw=="
)
_PACKAGES = {"tflite-runtime": "tflite-runtime", "numpy": "numpy"}  # of the others: ai-edge-litert


def survey(name: str) -> dict[str, Any]:
    """Run a small layer: {"ok", "found" (what runs it, or "does not run"), "hint" (what to do about it)}."""
    try:
        with tempfile.NamedTemporaryFile(suffix=".tflite") as file:
            file.write(zlib.decompress(base64.b64decode(_MODEL)))
            file.flush()
            arena = Arena.create(128, "survey")
            source, target = (arena.array(at, (1, 2), np.float32) for at in (0, 64))
            source[...] = (1, -2)
            backend = create(name, file.name, 1)
            notes = backend.open([("dense", source, target)])
            backend.run(0)
    except (RuntimeError, ValueError, ImportError, OSError) as error:
        return {"ok": False, "found": "does not run", "hint": (str(error).splitlines() or ["?"])[0]}
    if notes or not np.array_equal(source, target):
        return {"ok": False, "found": "computes wrongly", "hint": "use another backend, or another driver"}
    package = _PACKAGES.get(name, "ai-edge-litert")
    version = importlib.metadata.version(package)
    found = f"{backend.precision}, {package} {version}, Python {platform.python_version()}"
    return {"ok": True, "found": found, "hint": ""}


def main() -> int:
    chosen = sys.argv[1:] or NAMES
    answer = os.dup(1)
    os.dup2(2, 1)  # what libraries print is not for whoever reads the answer
    found = {name: survey(name) for name in chosen}
    os.write(answer, json.dumps(found).encode())
    return 0


if __name__ == "__main__":
    sys.exit(main())
