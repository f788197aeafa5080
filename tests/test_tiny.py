"""The smallest test of everything: a real network, two processes, five digits. If this fails, all else will."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from build import litert

import shadownet


def test_five_digits_are_recognised_as_litert_does(tmp_path: Path, models: Path, device_key: Path) -> None:
    model = models / "digits_cnn.tflite"
    digits = np.load(models / "digits_test.npz")
    summary = shadownet.convert(model, tmp_path / "digits.shadow")
    assert summary["layers_outsourced"] > 1
    with shadownet.Interpreter(tmp_path / "digits.shadow") as interpreter:
        interpreter.allocate_tensors()
        source = interpreter.get_input_details()[0]["index"]
        target = interpreter.get_output_details()[0]["index"]
        # Not from the first: image 3 is one of the 1 % that this network itself gets wrong.
        for image, label in zip(digits["x"][4:9, None], digits["y"][4:9], strict=True):
            interpreter.set_tensor(source, image)
            interpreter.invoke()
            scores = interpreter.get_tensor(target)
            (expected,) = litert(model.read_bytes(), [image])
            np.testing.assert_allclose(scores, expected, atol=1e-3)
            assert scores.argmax() == label
        stats = interpreter.session.stats()
    # The accelerator really took part: every layer crossed for every image.
    assert stats["crossings"] == 5 * summary["layers_outsourced"]
