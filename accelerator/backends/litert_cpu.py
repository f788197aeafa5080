"""LiteRT on the CPU (XNNPACK) through its C library, reading and writing the shared arena without a copy.

One compiled model holds a signature per layer, and some for bands of rows (:mod:`accelerator.bands`); its tensor
buffers are host-memory buffers over the arena. The Python interface cannot make such buffers with more than one
dimension, hence ctypes. The declarations follow ``litert/c/*.h`` of LiteRT 2.3; with other versions
:mod:`accelerator.backends.interpreter` takes over.
"""

from __future__ import annotations

import ctypes
import importlib.util
import math
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from accelerator import bands
from shadownet.wire.arena import ALL_ROWS

Array = np.ndarray[Any, Any]

SUPPORTED = ("2.3.",)  # versions of ai-edge-litert whose C interface was tried
_CPU = 1  # kLiteRtHwAcceleratorCpu
_FLOAT32 = 1  # kLiteRtElementTypeFloat32
_FORCE_FP16 = 4  # TFLITE_XNNPACK_DELEGATE_FLAG_FORCE_FP16
_ALIGNMENT = 64


class _RankedType(ctypes.Structure):
    """LiteRtRankedTensorType: element type, then a layout of rank (7 bits), a strides flag, dimensions, strides."""

    _fields_ = (
        ("element", ctypes.c_int32),
        ("rank", ctypes.c_uint32),
        ("dimensions", ctypes.c_int32 * 8),
        ("strides", ctypes.c_uint32 * 8),
    )


@dataclass(frozen=True)
class Part:
    """A signature with its tensor buffers, the rows (positions) of the input that must be there, from the first on,
    those of the answer that it gives, and the memory that it reads: address and bytes."""

    signature: ctypes.c_size_t
    source: Any
    target: Any
    needs: int
    rows: int
    reads: tuple[int, int]


class LiteRtCpu:
    """A backend; see :class:`accelerator.backends.Backend`."""

    def __init__(self, model: str, num_threads: int, fp16: bool = False) -> None:
        """``fp16`` has XNNPACK compute in half precision, emulated where the processor has none."""
        self.precision = "fp16" if fp16 else "float32"
        self.num_threads = num_threads
        self._library = _load()
        environment, options, loaded, compiled = (ctypes.c_void_p() for _ in range(4))
        self._call("LiteRtCreateEnvironment", 0, None, ctypes.byref(environment))
        # Where our threads take all cores, an enclave that works meanwhile would only be in their way.
        if num_threads < (os.cpu_count() or 1):
            self._content, self._bands = bands.split(model)
        else:
            self._content, self._bands = b"", {}
        if self._bands:
            size = ctypes.c_size_t(len(self._content))  # LiteRT reads it where it is
            self._call("LiteRtCreateModelFromBuffer", environment, self._content, size, ctypes.byref(loaded))
        else:
            self._call("LiteRtCreateModelFromFile", environment, model.encode(), ctypes.byref(loaded))
        self._call("LiteRtCreateOptions", ctypes.byref(options))
        self._call("LiteRtSetOptionsHardwareAccelerators", options, _CPU)
        self._keep = _payload(self, options, num_threads, _FORCE_FP16 if fp16 else 0)
        self._call("LiteRtCreateCompiledModel", environment, loaded, options, ctypes.byref(compiled))
        self._environment, self._model, self._compiled = environment, loaded, compiled
        self._index = self._read_signatures()
        self._layers: list[list[Part]] = []
        self._answers: list[tuple[int, int]] = []  # address and bytes
        self._run = self._library.LiteRtRunCompiledModel

    def _call(self, name: str, *arguments: Any) -> None:
        status = getattr(self._library, name)(*arguments)
        if status != 0:
            raise ValueError(f"LiteRT: {name} failed with status {status}")

    def _read_signatures(self) -> dict[str, int]:
        count = ctypes.c_size_t()
        self._call("LiteRtGetNumModelSignatures", self._model, ctypes.byref(count))
        index = {}
        for i in range(count.value):
            signature, key = ctypes.c_void_p(), ctypes.c_char_p()
            self._call("LiteRtGetModelSignature", self._model, ctypes.c_size_t(i), ctypes.byref(signature))
            self._call("LiteRtGetSignatureKey", signature, ctypes.byref(key))
            index[(key.value or b"").decode()] = i
        return index

    def open(self, layers: list[tuple[str, Array, Array]]) -> list[str]:
        self._close()
        self._layers = [self._parts(*layer) for layer in layers]
        self._answers = [(target.ctypes.data, target.nbytes) for _, _, target in layers]
        return []

    def _parts(self, signature: str, source: Array, target: Array) -> list[Part]:
        """A layer in bands, or whole where there are none or they were made for other shapes."""
        found = self._bands.get(signature, [])
        whole = (source.shape[2:], target.shape[2:], target.shape[1]) if source.ndim == target.ndim == 4 else ()
        if not found or whole != (found[0].source[2:], found[0].target[2:], found[-1].last) or source.shape[0] != 1:
            return [self._open(signature, source, target, ALL_ROWS)]
        parts = []
        for band in found:
            end = band.begin + band.source[1]
            views = source[:, band.begin : end], target[:, band.first : band.last]
            parts.append(self._open(band.signature, *views, end * source.shape[2]))
        return parts

    def _open(self, signature: str, source: Array, target: Array, needs: int) -> Part:
        if signature not in self._index:
            raise ValueError(f"the model has no signature {signature!r}")
        index = ctypes.c_size_t(self._index[signature])
        dims = (ctypes.c_int32 * source.ndim)(*source.shape)
        self._call(
            "LiteRtCompiledModelResizeInputTensorNonStrict", self._compiled, index, ctypes.c_size_t(0), dims,
            ctypes.c_size_t(source.ndim),
        )  # fmt: skip
        layout = (ctypes.c_uint8 * ctypes.sizeof(_RankedType))()
        self._call(
            "LiteRtGetCompiledModelOutputTensorLayouts", self._compiled, index, ctypes.c_size_t(1), layout,
            ctypes.c_bool(True),
        )  # fmt: skip
        rank = layout[0] & 0x7F
        shape = np.frombuffer(bytes(layout[4 : 4 + 4 * rank]), "<i4")
        if tuple(shape) != target.shape:
            raise ValueError(f"layer {signature!r} gives the shape {shape.tolist()}, not {list(target.shape)}")
        buffers = [(ctypes.c_void_p * 1)(self._buffer(array)) for array in (source, target)]
        reads = source.ctypes.data, source.nbytes
        return Part(index, buffers[0], buffers[1], min(needs, ALL_ROWS), math.prod(target.shape[:-1]), reads)

    def _buffer(self, array: Array) -> int | None:
        """A tensor buffer over ``array``'s own memory."""
        kind = _RankedType(_FLOAT32, array.ndim, (ctypes.c_int32 * 8)(*array.shape))
        made = ctypes.c_void_p()
        size = ctypes.c_size_t(-(-array.nbytes // _ALIGNMENT) * _ALIGNMENT)
        self._call(
            "LiteRtCreateTensorBufferFromHostMemory", ctypes.byref(kind), ctypes.c_void_p(array.ctypes.data), size,
            None, ctypes.byref(made),
        )  # fmt: skip
        return made.value

    def native(self) -> tuple[Any, int, list[tuple[list[tuple[int, ...]], int, int]]]:
        """LiteRT's run function, its model, and per layer: parts (signature, input buffers, output buffers, rows that
        it needs, rows that it gives, memory that it reads, its size), and what the next layer will answer into with its
        size, 0 where that is what this one answered into. All but numbers are addresses."""
        table: list[tuple[list[tuple[int, ...]], int, int]] = []
        places = [*self._answers[1:], (0, 0)]
        # Where the signatures begin again another lane does, whose answer may not have been read yet.
        signatures = [parts[0].signature.value for parts in self._layers]
        lasts = [following == signatures[0] for following in [*signatures[1:], *signatures[:1]]]
        for parts, (own, _), (at, size), last in zip(self._layers, self._answers, places, lasts, strict=True):
            found: list[tuple[int, ...]] = [
                (p.signature.value, ctypes.addressof(p.source), ctypes.addressof(p.target), p.needs, p.rows, *p.reads)
                for p in parts
            ]
            table.append((found, *((0, 0) if last or at == own else (at, size))))
        return self._run, self._compiled.value or 0, table

    def run(self, layer: int) -> None:
        one = ctypes.c_size_t(1)
        for part in self._layers[layer]:
            if self._run(self._compiled, part.signature, one, part.source, one, part.target) != 0:
                raise RuntimeError("LiteRT could not run the layer")

    def _close(self) -> None:
        for part in (part for parts in self._layers for part in parts):
            for buffer in (part.source[0], part.target[0]):
                self._library.LiteRtDestroyTensorBuffer(ctypes.c_void_p(buffer))
        self._layers = []


def _load() -> ctypes.CDLL:
    spec = importlib.util.find_spec("ai_edge_litert")
    path = Path(spec.origin or "").with_name("libLiteRt.so") if spec else Path()
    try:
        return ctypes.CDLL(str(path))
    except OSError:
        raise ValueError(f"LiteRT's C library is not at {path}") from None


def _payload(owner: LiteRtCpu, options: ctypes.c_void_p, num_threads: int, flags: int) -> Any:
    """Attach the CPU options: an opaque payload named "xnnpack" that says how many threads and which flags to use."""
    text = ctypes.create_string_buffer(f"num_threads = {num_threads}\n{f'flags = {flags}' if flags else ''}\n".encode())
    deleter = ctypes.CFUNCTYPE(None, ctypes.c_void_p)(lambda _: None)  # the buffer is Python's
    opaque = ctypes.c_void_p()
    owner._call("LiteRtCreateOpaqueOptions", b"xnnpack", text, deleter, ctypes.byref(opaque))
    owner._call("LiteRtAddOpaqueOptions", options, opaque)
    return text, deleter
