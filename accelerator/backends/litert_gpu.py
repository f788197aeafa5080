"""LiteRT on the GPU: its accelerator for WebGPU over Vulkan, through ``CompiledModel``, in float32 or fp16.

A layer that the GPU does not take whole runs on the CPU, and so does one that it gets wrong: with LiteRT 2.3 that
goes for convolutions in groups of other than a multiple of 4 channels, for transposed convolutions with SAME padding
and an odd kernel at stride 2, and for a dense layer that flattens a batch of images. So each layer is tried on random
numbers, on both, when it is opened. ``is_fully_accelerated`` says yes as well where the CPU takes the whole layer;
only a model compiled for the GPU alone, which fails if an op is not taken, tells.
"""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import flatbuffers
import numpy as np
from ai_edge_litert import schema_py_generated as schema
from ai_edge_litert.compiled_model import (
    CompiledModel,
    CpuOptions,
    Environment,
    GpuOptions,
    HardwareAccelerator,
    Options,
)

Array = np.ndarray[Any, Any]

NO_GPU = (
    "LiteRT finds no GPU: it needs libvulkan.so.1 (package libvulkan1) and a Vulkan driver. Without a GPU, the package "
    "chromium-common has one in software: set VK_ICD_FILENAMES=/usr/lib/chromium/vk_swiftshader_icd.json"
)
# Of the largest value: far above what float32 sums differ by and below what fp16 would; the same for fp16.
_TOLERANCE = {"float32": 1e-4, "fp16": 2e-2}


class LiteRtGpu:
    """A backend; see :class:`accelerator.backends.Backend`. ``num_threads`` are for layers left to the CPU."""

    def __init__(self, model: str, num_threads: int, fp16: bool = False) -> None:
        """``fp16`` allows half precision; a GPU without it computes in float32 all the same."""
        self.precision = "fp16" if fp16 else "float32"
        self._path, self._environment = model, Environment.create()
        self._for_cpu = Options(HardwareAccelerator.CPU, cpu_options=CpuOptions(num_threads=num_threads))
        options = Options(HardwareAccelerator.GPU, gpu_options=GpuOptions(enforce_f32=not fp16))
        self._refused: set[str] = set()  # signatures
        self._compiled: dict[str, CompiledModel] = {}
        try:
            whole = CompiledModel.from_file(model, environment=self._environment, options=options)
            self._compiled = dict.fromkeys(whole.get_signature_list(), whole)
        except RuntimeError as error:
            if "not accelerated" not in str(error):
                raise ValueError(NO_GPU) from None
            self._compile_each(options)
        self._layers: list[_Layer] = []

    def _compile_each(self, options: Options) -> None:
        """Layer by layer, to find those that the GPU does not take."""
        model = schema.ModelT.InitFromObj(schema.Model.GetRootAs(Path(self._path).read_bytes()))
        for signature in model.signatureDefs:
            key = signature.signatureKey.decode()
            try:
                alone = CompiledModel.from_buffer(_alone(model, signature), None, self._environment, options)
                self._compiled[key] = alone
            except RuntimeError:
                self._refused.add(key)

    def open(self, layers: list[tuple[str, Array, Array]]) -> list[str]:
        cpu = CompiledModel.from_file(self._path, environment=self._environment, options=self._for_cpu)
        self._layers, notes = [], []
        for signature, source, target in layers:
            other = _Layer(cpu, signature, source, target)
            if signature in self._refused:
                notes.append(f"the GPU does not take layer {signature}, which runs on the CPU")
                self._layers.append(other)
                continue
            own = _Layer(self._compiled[signature], signature, source, target)
            if _agree(own, other, _TOLERANCE[self.precision]):
                self._layers.append(own)
            else:
                notes.append(f"the GPU computes layer {signature} wrongly, which runs on the CPU")
                self._layers.append(other)
        return notes

    def run(self, layer: int) -> None:
        self._layers[layer].run()


class _Layer:
    """One layer of a compiled model with its shapes fixed and its buffers made."""

    def __init__(self, model: CompiledModel, signature: str, source: Array, target: Array) -> None:
        self._index = model.get_signature_index(signature)
        if self._index < 0:
            raise ValueError(f"the model has no signature {signature!r}")
        self._model, self._source, self._target, self.shape = model, source, target, source.shape
        if tuple(model.get_input_tensor_details(signature)["x"]["shape"]) != source.shape:
            model.resize_input_tensor(0, source.shape, self._index, strict=False)
        shape = model.get_output_tensor_details(signature)["y"]["shape"]
        if tuple(shape) != target.shape:
            raise ValueError(f"layer {signature!r} gives the shape {list(shape)}, not {list(target.shape)}")
        self._inputs, self._outputs = model.create_input_buffers(self._index), model.create_output_buffers(self._index)

    def compute(self, x: Array) -> Array:
        self._inputs[0].write(x.reshape(-1))
        self._model.run_by_index(self._index, self._inputs, self._outputs)
        found: Array = self._outputs[0].read(self._target.size, np.float32)
        return found.reshape(self._target.shape)

    def run(self) -> None:
        np.copyto(self._target, self.compute(self._source))


def _agree(own: _Layer, other: _Layer, tolerance: float) -> bool:
    """Whether both compute the same of random numbers, but for ``tolerance`` of the largest value."""
    x = np.asarray(np.random.default_rng(0).standard_normal(own.shape, np.float32))
    expected = other.compute(x)
    return bool(np.abs(own.compute(x) - expected).max() <= tolerance * np.abs(expected).max())


def _alone(model: Any, signature: Any) -> bytes:
    """A model of one layer."""
    graph, only = model.subgraphs[signature.subgraphIndex], copy.copy(signature)
    used = {tensor.buffer for tensor in graph.tensors}
    only.subgraphIndex = 0
    alone = copy.copy(model)
    alone.subgraphs, alone.signatureDefs = [graph], [only]
    alone.buffers = [b if k in used else schema.BufferT() for k, b in enumerate(model.buffers)]
    builder = flatbuffers.Builder(1 << 20)
    builder.Finish(alone.Pack(builder), b"TFL3")
    return bytes(builder.Output())
