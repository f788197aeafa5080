"""LiteRT on the CPU (XNNPACK) through its C library, reading and writing the shared arena without a copy.

A compiled model holds a signature per layer, and some for bands of rows (:mod:`accelerator.bands`); tensor buffers are
host-memory buffers over the arena. With several threads there are two: each call wakes the threads anew, so layers
that are done sooner than that pays have one. The Python interface cannot make such buffers with more than one
dimension, hence ctypes. The declarations follow ``litert/c/*.h`` of LiteRT 2.3; with other versions
:mod:`accelerator.backends.interpreter` takes over.
"""

from __future__ import annotations

import contextlib
import ctypes
import importlib.util
import math
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from accelerator import bands, public
from accelerator.bands import Band
from shadownet.wire.arena import ALL_ROWS

Array = np.ndarray[Any, Any]

SUPPORTED = ("2.3.",)  # versions of ai-edge-litert whose C interface was tried
_CPU = 1  # kLiteRtHwAcceleratorCpu
_FLOAT32 = 1  # kLiteRtElementTypeFloat32
_FORCE_FP16 = 4  # TFLITE_XNNPACK_DELEGATE_FLAG_FORCE_FP16
_ALIGNMENT = 64
MANY = 200_000_000  # multiply-adds of a layer for which it pays to wake threads


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
    """A compiled model's signature with its tensor buffers, the rows (positions) of the input that must be there, from
    the first on, those of the answer that it gives, and the memory that it reads: address and bytes."""

    model: ctypes.c_void_p
    signature: ctypes.c_size_t
    source: Any
    target: Any
    needs: int
    rows: int
    reads: tuple[int, int]

    def numbers(self) -> tuple[int, ...]:
        """All of it as addresses and numbers."""
        buffers = ctypes.addressof(self.source), ctypes.addressof(self.target)
        return (self.model.value or 0, self.signature.value, *buffers, self.needs, self.rows, *self.reads)


class LiteRtCpu:
    """A backend; see :class:`accelerator.backends.Backend`."""

    def __init__(self, model: str, num_threads: int, fp16: bool = False) -> None:
        """``fp16`` has XNNPACK compute in half precision, emulated where the processor has none."""
        self.precision = "fp16" if fp16 else "float32"
        self._flags = _FORCE_FP16 if fp16 else 0
        self._library = _load()
        self._environment = ctypes.c_void_p()
        self._call("LiteRtCreateEnvironment", 0, None, ctypes.byref(self._environment))
        self._bands: dict[str, list[Band]] = {}
        self._keep: list[Any] = []  # what LiteRT reads where it is
        self._signatures: dict[str, tuple[ctypes.c_void_p, int]] = {}  # compiled model, and index in it
        for content, threads in self._tailored(model, num_threads):
            self._compile(content, threads)
        self._layers: list[list[Part]] = []
        self._answers: list[tuple[int, int]] = []  # address and bytes
        self._run = self._library.LiteRtRunCompiledModel

    def _call(self, name: str, *arguments: Any) -> None:
        status = getattr(self._library, name)(*arguments)
        if status != 0:
            raise ValueError(f"LiteRT: {name} failed with status {status}")

    def _tailored(self, path: str, num_threads: int) -> list[tuple[bytes | str, int]]:
        """What to compile, and with how many threads: the file as it is where there is nothing to gain."""
        tree, made = public.read(path), list[tuple[bytes | str, int]]()
        with contextlib.suppress(*public.DAMAGE):
            for layers, threads in _shares(tree, num_threads) if tree is not None else []:
                part = public.only(tree, layers)
                # Where our threads take every core, an enclave that works meanwhile would only be in their way.
                if threads < (os.cpu_count() or 1):
                    self._bands |= bands.split(part)
                made.append((public.write(part), threads))
            if made and (num_threads > 1 or self._bands):
                return made
        self._bands = {}
        return [(path, num_threads)]

    def _compile(self, model: bytes | str, threads: int) -> None:
        """Compile a model, or a file, and take its signatures."""
        loaded, options, compiled = (ctypes.c_void_p() for _ in range(3))
        if isinstance(model, str):
            self._call("LiteRtCreateModelFromFile", self._environment, model.encode(), ctypes.byref(loaded))
        else:
            size = ctypes.c_size_t(len(model))
            self._call("LiteRtCreateModelFromBuffer", self._environment, model, size, ctypes.byref(loaded))
        self._call("LiteRtCreateOptions", ctypes.byref(options))
        self._call("LiteRtSetOptionsHardwareAccelerators", options, _CPU)
        self._keep += [model, _payload(self, options, threads, self._flags)]
        self._call("LiteRtCreateCompiledModel", self._environment, loaded, options, ctypes.byref(compiled))
        count = ctypes.c_size_t()
        self._call("LiteRtGetNumModelSignatures", loaded, ctypes.byref(count))
        for i in range(count.value):
            signature, key = ctypes.c_void_p(), ctypes.c_char_p()
            self._call("LiteRtGetModelSignature", loaded, ctypes.c_size_t(i), ctypes.byref(signature))
            self._call("LiteRtGetSignatureKey", signature, ctypes.byref(key))
            self._signatures[(key.value or b"").decode()] = compiled, i

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
        if signature not in self._signatures:
            raise ValueError(f"the model has no signature {signature!r}")
        model, number = self._signatures[signature]
        index = ctypes.c_size_t(number)
        dims = (ctypes.c_int32 * source.ndim)(*source.shape)
        self._call(
            "LiteRtCompiledModelResizeInputTensorNonStrict", model, index, ctypes.c_size_t(0), dims,
            ctypes.c_size_t(source.ndim),
        )  # fmt: skip
        layout = (ctypes.c_uint8 * ctypes.sizeof(_RankedType))()
        self._call(
            "LiteRtGetCompiledModelOutputTensorLayouts", model, index, ctypes.c_size_t(1), layout,
            ctypes.c_bool(True),
        )  # fmt: skip
        rank = layout[0] & 0x7F
        shape = np.frombuffer(bytes(layout[4 : 4 + 4 * rank]), "<i4")
        if tuple(shape) != target.shape:
            raise ValueError(f"layer {signature!r} gives the shape {shape.tolist()}, not {list(target.shape)}")
        buffers = [(ctypes.c_void_p * 1)(self._buffer(array)) for array in (source, target)]
        reads = source.ctypes.data, source.nbytes
        return Part(model, index, buffers[0], buffers[1], min(needs, ALL_ROWS), math.prod(target.shape[:-1]), reads)

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

    def native(self) -> tuple[Any, list[tuple[list[tuple[int, ...]], int, int]]]:
        """LiteRT's run function, and per layer: parts (model, signature, input buffers, output buffers, rows that it
        needs, rows that it gives, memory that it reads, its size), and what the next layer will answer into with its
        size, 0 where that is what this one answered into. All but numbers are addresses."""
        table: list[tuple[list[tuple[int, ...]], int, int]] = []
        places = [*self._answers[1:], (0, 0)]
        # Where the signatures begin again another lane does, whose answer may not have been read yet.
        signatures = [(parts[0].model.value, parts[0].signature.value) for parts in self._layers]
        lasts = [following == signatures[0] for following in [*signatures[1:], *signatures[:1]]]
        for parts, (own, _), (at, size), last in zip(self._layers, self._answers, places, lasts, strict=True):
            found = [p.numbers() for p in parts]
            table.append((found, *((0, 0) if last or at == own else (at, size))))
        return self._run, table

    def run(self, layer: int) -> None:
        one = ctypes.c_size_t(1)
        for part in self._layers[layer]:
            if self._run(part.model, part.signature, one, part.source, one, part.target) != 0:
                raise RuntimeError("LiteRT could not run the layer")

    def _close(self) -> None:
        for part in (part for parts in self._layers for part in parts):
            for buffer in (part.source[0], part.target[0]):
                self._library.LiteRtDestroyTensorBuffer(ctypes.c_void_p(buffer))
        self._layers = []


def _shares(tree: Any, num_threads: int) -> list[tuple[list[str], int]]:
    """Layers by the number of threads that they are worth."""
    size = {public.text(s.signatureKey): public.multiply_adds(tree, s) for s in tree.signatureDefs}
    large = [name for name, macs in size.items() if num_threads > 1 and macs >= MANY]
    small = [name for name in size if name not in large]
    return [(layers, threads) for layers, threads in ((small, 1), (large, num_threads)) if layers]


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
