"""The enclave's own LiteRT interpreter over the trusted model: segments, and linear layers for pop masks.

One model with many subgraphs in one interpreter, because variables and tables are shared between them.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from ai_edge_litert.interpreter import Interpreter

from shadownet.wire.errors import InputError

Array = np.ndarray[Any, Any]


_VIEWED = (np.float32, np.int8, np.uint8, np.int32)  # handed out without a copy


class TrustedModel:
    """Runs subgraphs of the trusted model by index."""

    def __init__(self, model: bytes, num_threads: int) -> None:
        try:
            self._interpreter = Interpreter(model_content=model, num_threads=num_threads)
        except (RuntimeError, ValueError) as error:
            raise InputError(f"LiteRT cannot load the trusted model: {first_line(error)}") from None
        self._raw = self._interpreter._interpreter  # its methods take a subgraph, the public ones do not
        self._ready: dict[int, list[tuple[int, ...]]] = {}
        self._types: dict[tuple[int, int], Any] = {}
        self._filled: dict[tuple[int, int], Array] = {}  # inputs that are filled in place

    def shape(self, subgraph: int, tensor: int) -> tuple[int, ...]:
        return tuple(int(d) for d in self._raw.TensorSize(tensor, subgraph))

    def prepare(self, subgraph: int, inputs: list[int], shapes: list[tuple[int, ...]]) -> None:
        """Give a subgraph's inputs these shapes and allocate it. Raises ``InputError`` if LiteRT refuses."""
        if self._ready.get(subgraph) == shapes:
            return
        self._ready.pop(subgraph, None)
        self._filled = {at: view for at, view in self._filled.items() if at[0] != subgraph}
        try:
            for tensor, shape in zip(inputs, shapes, strict=True):
                if self.shape(subgraph, tensor) != shape:
                    self._raw.ResizeInputTensor(tensor, np.array(shape, np.int32), False, subgraph)
            self._raw.AllocateTensors(subgraph)
        except (RuntimeError, ValueError) as error:
            raise InputError(f"LiteRT cannot run the model with these shapes: {first_line(error)}") from None
        self._ready[subgraph] = list(shapes)

    def input(self, subgraph: int, tensor: int) -> Array:
        """Where a prepared subgraph's float input lies: handed to :meth:`run`, it is not copied. It is valid until
        the subgraph is prepared for other shapes."""
        view = np.asarray(self._raw.tensor(self._raw, tensor, subgraph))
        self._filled[subgraph, tensor] = view
        return view

    def run(self, subgraph: int, inputs: list[int], values: list[Array], outputs: list[int]) -> list[Array]:
        """Run a subgraph; returns its outputs, which stay valid until the subgraph runs or is prepared again.

        Raises ``InputError`` if LiteRT fails on these values."""
        self.prepare(subgraph, inputs, [v.shape for v in values])
        for tensor, value in zip(inputs, values, strict=True):
            if value is not self._filled.get((subgraph, tensor)):
                self._raw.SetTensor(tensor, value, subgraph)
        try:
            self._raw.Invoke(subgraph)
        except (RuntimeError, ValueError) as error:
            raise InputError(f"LiteRT failed on this input: {first_line(error)}") from None
        return [self._value(subgraph, tensor) for tensor in outputs]

    def _value(self, subgraph: int, tensor: int) -> Array:
        kind = self._types.get((subgraph, tensor))
        if kind is None:
            kind = self._types[subgraph, tensor] = self._raw.TensorType(tensor, subgraph)
        try:
            if kind in _VIEWED:
                return np.asarray(self._raw.tensor(self._raw, tensor, subgraph))
            return np.asarray(self._raw.GetTensor(tensor, subgraph))
        except (RuntimeError, ValueError):
            shape = self.shape(subgraph, tensor)
            if 0 not in shape:  # LiteRT's interface refuses to hand out empty tensors
                raise
            return np.empty(shape, kind)

    def reset(self) -> None:
        """Set variable tensors to zero, as ``tf.lite.Interpreter.reset_all_variables`` does."""
        self._raw.ResetVariableTensors()


def first_line(error: BaseException) -> str:
    """An error of LiteRT's in one line."""
    return (str(error).strip().splitlines() or ["unknown error"])[0][:300]
