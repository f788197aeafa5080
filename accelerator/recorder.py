"""The adversary's transcript: every tensor that crosses, in order, in one ``.npz`` file that NumPy reads."""

from __future__ import annotations

import zipfile
from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]


class Recorder:
    """Appends ``NNNNNN.SIGNATURE.x`` (what the enclave sent) and ``.y`` (what it got) per call."""

    def __init__(self, path: str) -> None:
        self._zip = zipfile.ZipFile(path, "x", zipfile.ZIP_STORED)
        self._calls = 0

    def record(self, signature: str, x: Array, y: Array) -> None:
        for side, array in (("x", x), ("y", y)):
            with self._zip.open(f"{self._calls:06d}.{signature}.{side}.npy", "w", force_zip64=True) as file:
                np.lib.format.write_array(file, np.array(array), allow_pickle=False)
        self._calls += 1

    def close(self) -> None:
        self._zip.close()
