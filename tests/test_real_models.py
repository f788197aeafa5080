"""Real trained models, where they are at hand: protected equals unprotected, integers element for element."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from ai_edge_litert.interpreter import Interpreter

import shadownet

ROOT = Path(os.environ.get("REAL_MODELS_ROOT", Path(__file__).resolve().parent.parent.parent / "shared"))
LISTED = ROOT / "models" / "models.json"
NAMES = sorted(json.loads(LISTED.read_text())) if LISTED.exists() else []


pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not NAMES, reason="there are no real models beside this checkout"),
]


def outputs(interpreter: Any, x: np.ndarray) -> list[np.ndarray]:
    detail = interpreter.get_input_details()[0]
    interpreter.reset_all_variables()
    interpreter.set_tensor(detail["index"], x.reshape(detail["shape"]))
    interpreter.invoke()
    return [np.array(interpreter.get_tensor(d["index"])) for d in interpreter.get_output_details()]


@pytest.mark.parametrize("scheme", ["shadownet:paper", "shadownet:artifact"])
@pytest.mark.parametrize("name", NAMES)
def test_a_real_model_computes_what_it_did(name: str, scheme: str, tmp_path: Path, device_key: Path) -> None:
    sys.path.insert(0, str(ROOT / "acceptance"))
    import real_inputs

    path = ROOT / "models" / f"{name}.tflite"
    plain = Interpreter(model_path=str(path), num_threads=1)
    plain.allocate_tensors()
    samples, _ = real_inputs.load(str(ROOT), name, plain.get_input_details()[0], 4)
    shadownet.convert(path, tmp_path / "m.shadow", scheme=scheme)
    with shadownet.Interpreter(tmp_path / "m.shadow") as protected:
        protected.allocate_tensors()
        for x in samples:
            for want, have in zip(outputs(plain, x), outputs(protected, x), strict=True):
                if want.dtype.kind == "f":  # float32 rounding at the masks' size; 1e-3 is what convert promises
                    assert np.abs(want - have).max() <= 1e-3 * max(np.abs(want).max(), 1e-6)
                else:
                    np.testing.assert_array_equal(want, have)


@pytest.mark.parametrize("name", [n for n in NAMES if "lstm" not in n])
def test_nearly_all_linear_work_of_a_real_model_goes_out(name: str, tmp_path: Path, device_key: Path) -> None:
    """The converter keeps imprecise layers inside without failing: so what goes out is checked by itself."""
    path = ROOT / "models" / f"{name}.tflite"
    every = shadownet.convert(path, tmp_path / "m.shadow")
    front_end = sum(line.count("LOG") for line in every["kept_inside"])
    assert len(every["kept_inside"]) == front_end, every["kept_inside"]
    assert every["layers_outsourced"] > 0
