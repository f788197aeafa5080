"""LiteRT through its Python interpreter: one interpreter, a subgraph per layer; copies in and out."""

from __future__ import annotations

from typing import Any

import numpy as np
from ai_edge_litert.interpreter import Interpreter

Array = np.ndarray[Any, Any]


class LiteRtInterpreter:
    def __init__(self, model: str, num_threads: int) -> None:
        self._interpreter = Interpreter(model_path=model, num_threads=num_threads)
        self._raw = self._interpreter._interpreter  # its methods take a subgraph, the public ones do not
        self._signatures = self._interpreter._get_full_signature_list()
        self._layers: list[tuple[int, int, int, Array, Array]] = []

    def open(self, layers: list[tuple[str, Array, Array]]) -> None:
        self._layers = [self._open(*layer) for layer in layers]

    def _open(self, signature: str, source: Array, target: Array) -> tuple[int, int, int, Array, Array]:
        if signature not in self._signatures:
            raise ValueError(f"the model has no signature {signature!r}")
        tensors = self._signatures[signature]
        subgraph = self._raw.GetSubgraphIndexFromSignature(signature)
        inp, out = tensors["inputs"]["x"], tensors["outputs"]["y"]
        if tuple(self._raw.TensorSize(inp, subgraph)) != source.shape:
            self._raw.ResizeInputTensor(inp, np.array(source.shape, np.int32), False, subgraph)
        self._raw.AllocateTensors(subgraph)
        if tuple(self._raw.TensorSize(out, subgraph)) != target.shape:
            raise ValueError(f"layer {signature!r} does not give the shape {list(target.shape)}")
        return subgraph, inp, out, source, target

    def run(self, layer: int) -> None:
        subgraph, inp, out, source, target = self._layers[layer]
        self._raw.SetTensor(inp, source, subgraph)
        self._raw.Invoke(subgraph)
        np.copyto(target, self._raw.GetTensor(out, subgraph))
