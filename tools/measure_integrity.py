#!/usr/bin/env python3
"""How large a wrong answer passes the check of float layers, and how near honest answers come: prints two tables.

No processes: a layer's public weights run under LiteRT as in a bundle. Usage: measure_integrity.py [SEEDS]
"""

from __future__ import annotations

import math
import sys
from typing import Any

import numpy as np
from ai_edge_litert.interpreter import Interpreter

from enclave.integrity import Checker, Geometry, Public
from enclave.rng import Rng
from shadownet.graph import ModelWriter
from shadownet.lower import weight_parts

Array = np.ndarray[Any, Any]

LAYERS = {  # height, width, channels, kernel, slots
    "3x3, 16 to 20, 32 x 32": (32, 32, 16, 3, 20),
    "3x3, 64 to 77, 8 x 8": (8, 8, 64, 3, 77),
    "1x1, 512 to 624, 14 x 14": (14, 14, 512, 1, 624),
    "dense, 1024 to 1200": (1, 1, 1024, 1, 1200),
}
INPUTS = ("masked", "like-signed", "one loud position")
SIZES = (0.5, 1, 2, 4, 8, 16, 32, 64, 128)


class Layer:
    """A convolution at stride 1 and LiteRT's answer to one input."""

    def __init__(self, shape: tuple[int, ...], kind: str, seed: int) -> None:
        height, width, channels, kernel, slots = shape
        rng = np.random.default_rng(seed)
        weights = rng.normal(0, 0.05, (slots, kernel, kernel, channels)).astype(np.float32)
        x = rng.normal(0, 1, (1, height, width, channels))
        if kind == "like-signed":
            weights, x = np.abs(weights), np.abs(x)
        if kind == "one loud position":
            x[0, 0, 0] *= 1000
        self.x = x.astype(np.float32)
        content = _model(weights, self.x.shape)
        ((part,),) = weight_parts(content)
        pairs = {name: [1, 1] for name in ("stride", "dilation")} | {"kernel": [kernel, kernel]}
        record = {"kind": "CONV_2D", "groups": 1, "same": True, "paddings": [[0, 0], [0, 0]], "parts": [[*part, slots]]}
        self.public, self.content = Public.parse(record | pairs), content
        interpreter = Interpreter(model_content=content, num_threads=1)
        interpreter.allocate_tensors()
        interpreter.set_tensor(interpreter.get_input_details()[0]["index"], self.x)
        interpreter.invoke()
        self.answer = interpreter.get_tensor(interpreter.get_output_details()[0]["index"])
        self.geometry = Geometry(self.public, self.x.shape, self.answer.shape)

    def checker(self) -> Checker:
        return Checker(self.public, self.content, False, Rng())

    def tolerance(self, checker: Checker) -> float:
        """By how much one value may be off if |s| is 1: what sizes are given in."""
        return checker.allowed(self.x) * 2.0 ** math.ceil(math.log2(checker.vectors.shape[1]))

    def used(self, checker: Checker) -> float:
        """The share of the tolerance that the honest answer needs."""
        left = checker.vectors.astype(np.float64) @ self.answer.reshape(-1, self.answer.shape[-1]).T
        right = self.geometry.apply(self.x.astype(np.float64), checker.filters)
        return float(np.abs(left - right).max() / checker.allowed(self.x))

    def passes(self, checker: Checker, size: float, pair: bool, rng: np.random.Generator) -> bool:
        """Whether an answer passes whose one value, or two that cancel, are off by ``size`` tolerances."""
        wrong = self.answer.reshape(-1, self.answer.shape[-1]).astype(np.float64)
        slots = rng.choice(wrong.shape[1], 2, False)
        amount = size * self.tolerance(checker)
        wrong[rng.integers(len(wrong)), slots[: 2 if pair else 1]] += [amount, -amount] if pair else [amount]
        return checker.holds(self.geometry, self.x, wrong)


def _model(weights: Array, shape: tuple[int, ...]) -> bytes:
    from ai_edge_litert import schema_py_generated as schema

    writer = ModelWriter("one layer")
    graph = writer.subgraph("layer")
    x, y = graph.tensor("x", shape), graph.tensor("y", (*shape[:-1], len(weights)))
    constants = [graph.tensor(n, w.shape, w) for n, w in (("w", weights), ("b", np.zeros(len(weights), np.float32)))]
    graph.op("CONV_2D", [x, *constants], [y], schema.Conv2DOptionsT(0, 1, 1, 0, 1, 1), version=2)
    graph.interface([x], [y])
    return writer.finish()


def honest(seeds: int) -> None:
    print("| layer | input | t, of the answer's rms | largest share used by honest answers |\n|---|---|---|---|")
    for name, shape in LAYERS.items():
        for kind in INPUTS:
            found = []
            for seed in range(seeds):
                layer = Layer(shape, kind, seed)
                checker = layer.checker()
                rms = float(np.sqrt(np.mean(np.square(layer.answer))))
                found.append((layer.tolerance(checker) / rms, layer.used(checker)))
            relative, used = np.array(found).T
            print(f"| {name} | {kind} | {np.median(relative):.1e} | {used.max():.3f} |")


def tampered(seeds: int) -> None:
    layer, rng = Layer(LAYERS["3x3, 64 to 77, 8 x 8"], "masked", 0), np.random.default_rng(0)
    print("| off by (times t) | one value passes | a cancelling pair passes | bound (2 t / e)^2 |\n|---|---|---|---|")
    for size in SIZES:
        checkers = [layer.checker() for _ in range(seeds)]
        shares = [sum(layer.passes(c, size, pair, rng) for c in checkers) / seeds for pair in (False, True)]
        print(f"| {size:g} | {shares[0]:.4f} | {shares[1]:.4f} | {min(1.0, (2 / size) ** 2):.4f} |")


if __name__ == "__main__":
    count = int(sys.argv[1]) if len(sys.argv) > 1 else 1000
    honest(max(3, count // 50))
    print()
    tampered(count)
