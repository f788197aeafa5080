"""A Python interpreter of TensorFlow Lite: LiteRT's, or that of the older ``tflite-runtime``, which many devices ship.

One interpreter, a subgraph per layer; copies in and out. Vendors' delegates may take the layers over.
"""

from __future__ import annotations

import importlib.metadata
from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]

TFLITE_RUNTIME = (
    "tflite-runtime is not in this Python; make an environment with Python 3.11, "
    "pip install 'tflite-runtime==2.14.0' 'numpy<2' there, and name its python in $SHADOWNET_TFLITE_PYTHON"
)


class Interpreted:
    """A backend; see :class:`accelerator.backends.Backend`. ``module`` has ``Interpreter`` and ``load_delegate``."""

    precision = "float32"  # what a delegate makes of it, the enclave's test will tell

    def __init__(self, module: Any, model: str, num_threads: int, delegate: str = "") -> None:
        """``delegate`` is LIB.so[:key=value,...], "" for none. Raises ``ValueError`` if it cannot be loaded."""
        self._delegates = [_load(module, delegate)] if delegate else []
        self._interpreter = module.Interpreter(
            model_path=model, num_threads=num_threads, experimental_delegates=self._delegates
        )
        self._raw = self._interpreter._interpreter  # its methods take a subgraph, the public ones do not
        self._signatures = self._interpreter._get_full_signature_list()
        self._layers: list[tuple[int, int, int, Array, Array]] = []

    def open(self, layers: list[tuple[str, Array, Array]]) -> list[str]:
        self._layers = [self._open(*layer) for layer in layers]
        return []

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


def litert(model: str, num_threads: int, delegate: str = "") -> Interpreted:
    from ai_edge_litert import interpreter

    return Interpreted(interpreter, model, num_threads, delegate)


def tflite_runtime(model: str, num_threads: int, delegate: str = "") -> Interpreted:
    """Raises ``ValueError`` with what to do where the package is missing or does not fit NumPy."""
    try:
        importlib.metadata.version("tflite-runtime")
    except importlib.metadata.PackageNotFoundError:
        raise ValueError(TFLITE_RUNTIME) from None
    if int(np.__version__.partition(".")[0]) >= 2:  # it would fail when it loads the model, and not say why
        raise ValueError(f"tflite-runtime does not run with NumPy {np.__version__}; pip install 'numpy<2' beside it")
    from tflite_runtime import interpreter

    return Interpreted(interpreter, model, num_threads, delegate)


def parse(delegate: str) -> tuple[str, dict[str, str]]:
    """LIB.so[:key=value,...] as path and options. Raises ``ValueError``."""
    path, _, text = delegate.partition(":")
    pairs = [pair.partition("=") for pair in text.split(",") if pair]
    if not path or any(not key or not equals for key, equals, _ in pairs):
        raise ValueError(f"{delegate!r} names no delegate; write LIB.so or LIB.so:key=value,key=value")
    return path, {key: value for key, _, value in pairs}


def _load(module: Any, delegate: str) -> Any:
    path, options = parse(delegate)
    try:
        return module.load_delegate(path, options)
    except (OSError, AttributeError, ValueError) as error:  # no such file, no such functions, refused
        raise ValueError(f"the delegate {path} cannot be loaded: {' '.join(str(error).split())}") from None
