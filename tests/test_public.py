"""The public model cut into what is worth one thread and what is worth several: every layer computes the same."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from ai_edge_litert.interpreter import Interpreter
from layers import FORMS, public_model, signature

from accelerator import public
from accelerator.backends import litert_cpu

Array = np.ndarray[Any, Any]

MEMORY = 1 << 20  # floats for all inputs and outputs


@pytest.fixture(scope="module")
def forms(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("forms") / "forms.tflite"
    path.write_bytes(public_model(FORMS))
    return path


def truth(path: Path, inputs: dict[str, Array]) -> dict[str, Array]:
    interpreter = Interpreter(model_path=str(path), num_threads=1)
    return {name: interpreter.get_signature_runner(name)(x=x)["y"] for name, x in inputs.items()}


def answers(backend: litert_cpu.LiteRtCpu, inputs: dict[str, Array], shapes: dict[str, Any]) -> dict[str, Array]:
    memory, at = np.zeros(MEMORY + 16, np.float32), 0
    memory = memory[-memory.ctypes.data % 64 // 4 :]

    def place(shape: tuple[int, ...]) -> Array:
        nonlocal at
        begin, at = at, at + -(-int(np.prod(shape)) // 16) * 16
        return memory[begin : begin + int(np.prod(shape))].reshape(shape)

    layers = [(name, place(x.shape), place(shapes[name])) for name, x in inputs.items()]
    backend.open(layers)
    for number, (name, source, _) in enumerate(layers):
        source[...] = inputs[name]
        backend.run(number)
    return {name: target.copy() for name, _, target in layers}


@pytest.mark.parametrize("many", [0, 1 << 16, 1 << 60])
def test_every_layer_computes_the_same_with_any_share(many: int, forms: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(litert_cpu, "MANY", many)
    rng = np.random.default_rng(0)
    inputs = {signature(name): rng.normal(0, 1, form.shape).astype(np.float32) for name, form in FORMS.items()}
    want = truth(forms, inputs)
    got = answers(litert_cpu.LiteRtCpu(str(forms), 2), inputs, {name: y.shape for name, y in want.items()})
    for name, y in want.items():
        np.testing.assert_allclose(got[name], y, rtol=0, atol=1e-5 * np.abs(y).max(), err_msg=name)


def test_layers_are_shared_out_by_their_size(forms: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tree = public.read(str(forms))
    size = {public.text(s.signatureKey): public.multiply_adds(tree, s) for s in tree.signatureDefs}
    assert size["conv_3x3"] == 8 * 8 * 9 * 4 * 11 and size["depthwise"] == 8 * 8 * 9 * 6
    assert size["dense_of_a_batch"] == 5 * 24 * 12 and size["conv_wide"] == max(size.values())
    monkeypatch.setattr(litert_cpu, "MANY", size["conv_wide"])
    one, several = litert_cpu._shares(tree, 3)
    assert one[1] == 1 and several == (["conv_wide"], 3) and len(one[0]) == len(size) - 1
    assert litert_cpu._shares(tree, 1) == [(list(size), 1)]


def test_a_part_of_a_model_holds_nothing_of_the_others(forms: Path) -> None:
    tree = public.read(str(forms))
    before = public.write(tree)
    part = public.write(public.only(tree, ["dense", "depthwise"]))
    assert sorted(Interpreter(model_content=part).get_signature_list()) == ["dense", "depthwise"]
    assert len(part) < len(before) / 4
    assert public.write(tree) == before  # which is left as it was


@pytest.mark.parametrize("content", [b"", b"TFL3", bytes(64), b"\xff" * 999])
def test_what_is_no_model_is_left_to_litert(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "m.tflite").write_bytes(content)
    assert public.read(str(tmp_path / "m.tflite")) is None
    with pytest.raises(ValueError, match="LiteRT"):
        litert_cpu.LiteRtCpu(str(tmp_path / "m.tflite"), 2)
