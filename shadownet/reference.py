"""``python -m shadownet.reference FD MODEL THREADS``: serves the unmodified model to :mod:`shadownet.analysis`."""

from __future__ import annotations

import sys
from typing import Any

import numpy as np
from ai_edge_litert.interpreter import Interpreter, OpResolverType

from shadownet.wire import errors
from shadownet.wire.channel import Channel, Closed
from shadownet.wire.errors import ModelError

Array = np.ndarray[Any, Any]

_KERNELS = {
    "default": {},
    "reference": {"experimental_op_resolver_type": OpResolverType.BUILTIN_REF},
    "observed": {
        "experimental_op_resolver_type": OpResolverType.BUILTIN_WITHOUT_DEFAULT_DELEGATES,
        "experimental_preserve_all_tensors": True,
    },
}


class Model:
    """The unmodified model under LiteRT's kernel sets, each loaded when first asked for."""

    def __init__(self, path: str, num_threads: int) -> None:
        self._path, self._num_threads = path, num_threads
        self._loaded: dict[str, Interpreter] = {}

    def _raw(self, kernels: str) -> Any:
        if kernels not in self._loaded:
            self._loaded[kernels] = self._load(kernels)
        return self._loaded[kernels]._interpreter

    def _load(self, kernels: str) -> Interpreter:
        try:
            return Interpreter(model_path=self._path, num_threads=self._num_threads, **_KERNELS[kernels])
        except (RuntimeError, ValueError) as error:
            raise ModelError(f"LiteRT cannot load this model: {_line(error)}") from None

    def shapes(self, request: dict[str, Any]) -> dict[str, Any]:
        entry = int(request["entry"])
        try:
            raw = self._raw("observed")
            self._allocate(raw, entry)
        except ModelError:  # LiteRT's plain kernels are stricter than its default ones: nothing can be observed then
            self._loaded["observed"] = self._loaded.get("default") or self._load("default")
            raw = self._raw("observed")
            self._allocate(raw, entry)
        tensors = range(int(request["tensors"]))  # behind them LiteRT keeps temporaries of its own
        return {
            "shape": [self._shape(raw, t, entry) for t in tensors],
            "static": [self._has_memory(raw, t, entry) for t in tensors],
        }

    @staticmethod
    def _shape(raw: Any, tensor: int, entry: int) -> list[int]:
        try:
            return [int(d) for d in raw.TensorSize(tensor, entry)]
        except ValueError:  # LiteRT's word for a tensor that nothing has given a shape
            return []

    @staticmethod
    def _has_memory(raw: Any, tensor: int, entry: int) -> bool:
        """Tensors whose shape is known only at run time have no memory before the first run.

        Strings count among them: LiteRT crashes when asked for one that nothing has filled.
        """
        if np.dtype(raw.TensorType(tensor, entry)).kind in "SO":
            return False
        try:
            raw.GetTensor(tensor, entry)
        except (ValueError, RuntimeError, TypeError):
            return False
        return True

    @staticmethod
    def _allocate(raw: Any, entry: int) -> None:
        try:
            raw.AllocateTensors(entry)
        except (RuntimeError, ValueError) as error:
            raise ModelError(f"LiteRT cannot run this model: {_line(error)}") from None

    def _invoke(self, raw: Any, entry: int, ids: list[int], inputs: list[Array]) -> None:
        try:
            for tensor, value in zip(ids, inputs, strict=True):
                if tuple(int(d) for d in raw.TensorSize(tensor, entry)) != value.shape:
                    raw.ResizeInputTensor(tensor, np.array(value.shape, np.int32), False, entry)
            raw.AllocateTensors(entry)
            for tensor, value in zip(ids, inputs, strict=True):
                raw.SetTensor(tensor, value, entry)
            raw.Invoke(entry)
        except (RuntimeError, ValueError) as error:
            raise ModelError(f"LiteRT cannot run this model: {_line(error)}") from None

    def observe(self, request: dict[str, Any], inputs: list[Array]) -> dict[str, Any]:
        raw, entry = self._raw("observed"), int(request["entry"])
        self._invoke(raw, entry, request["inputs"], inputs)
        rms = []
        for tensor in request["tensors"]:
            value = raw.GetTensor(tensor, entry).astype(np.float64)
            rms.append(float(np.sqrt(np.mean(value**2))) if value.size else 0.0)
        return {"rms": rms}

    def values(self, request: dict[str, Any]) -> list[Array]:
        raw, entry = self._raw("observed"), int(request["entry"])
        return [_value(raw, tensor, entry) for tensor in request["tensors"]]

    def run(self, request: dict[str, Any], inputs: list[Array]) -> tuple[dict[str, Any], list[Array]]:
        entry, kernels = int(request["entry"]), str(request["kernels"])
        try:
            raw = self._raw(kernels)
            self._invoke(raw, entry, request["inputs"], inputs)
        except ModelError:
            if kernels == "default":
                raise
            return {"ran": False}, []
        return {"ran": True}, [_value(raw, tensor, entry) for tensor in request["outputs"]]

    @staticmethod
    def probe(model: Array, value: Array) -> tuple[dict[str, Any], list[Array]]:
        try:
            interpreter = Interpreter(model_content=model.tobytes(), num_threads=1)
            interpreter.allocate_tensors()
            interpreter.set_tensor(interpreter.get_input_details()[0]["index"], value)
            interpreter.invoke()
            return {"ran": True}, [interpreter.get_tensor(interpreter.get_output_details()[0]["index"])]
        except (RuntimeError, ValueError):
            return {"ran": False}, []

    def reset(self) -> dict[str, Any]:
        for interpreter in self._loaded.values():
            interpreter.reset_all_variables()
        return {}


def _value(raw: Any, tensor: int, entry: int) -> Array:
    """A tensor's value; LiteRT's interface refuses to hand out empty ones."""
    shape = tuple(int(d) for d in raw.TensorSize(tensor, entry))
    if 0 in shape:
        return np.empty(shape, raw.TensorType(tensor, entry))
    return np.asarray(raw.GetTensor(tensor, entry))


def _line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or ["unknown error"])[0][:300]


def main(argv: list[str]) -> int:
    channel = Channel.from_fd(int(argv[1]), "converter")
    model = Model(argv[2], int(argv[3]))
    while True:
        try:
            request, tensors, _ = channel.receive(None)
        except Closed:
            return 0
        verb = request["do"]
        values: list[Array] = []
        try:
            if verb == "run":
                reply, values = model.run(request, tensors)
            elif verb == "observe":
                reply = model.observe(request, tensors)
            elif verb == "probe":
                reply, values = model.probe(*tensors)
            elif verb == "values":
                reply, values = {}, model.values(request)
            elif verb == "shapes":
                reply = model.shapes(request)
            else:
                reply = model.reset()
        except ModelError as error:
            reply = {"error": errors.pack(error)}
        channel.send(reply, values)


if __name__ == "__main__":
    sys.exit(main(sys.argv))
