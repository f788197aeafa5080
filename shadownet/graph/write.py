"""Write ``.tflite`` files: new ones op by op, and copies of parts of an existing graph."""

from __future__ import annotations

import copy
from typing import Any

import flatbuffers
import numpy as np
from ai_edge_litert import schema_py_generated as schema

from shadownet.graph.ir import TYPE_CODES, Graph, Op, Subgraph, Tensor, subgraph_fields
from shadownet.wire.errors import ModelError

_OPTIONS = {name: value for name, value in vars(schema.BuiltinOptions).items() if not name.startswith("_")}


class ModelWriter:
    """Collects subgraphs and signatures; equal buffers are stored once."""

    def __init__(self, description: str) -> None:
        self.model = schema.ModelT(version=3, description=description)
        self.model.operatorCodes, self.model.subgraphs = [], []
        self.model.buffers, self.model.signatureDefs, self.model.metadata = [schema.BufferT()], [], []
        self._codes: dict[tuple[Any, ...], int] = {}
        self._buffers: dict[tuple[int, int], int] = {}
        self._keep: list[np.ndarray] = []  # buffers are known by address: they must not be freed meanwhile
        self._copied: dict[int, int] = {}

    def subgraph(self, name: str) -> SubgraphWriter:
        raw = schema.SubGraphT(name=name)
        raw.tensors, raw.operators, raw.inputs, raw.outputs = [], [], [], []
        self.model.subgraphs.append(raw)
        return SubgraphWriter(self, raw, len(self.model.subgraphs) - 1)

    def signature(self, key: str, graph: SubgraphWriter, inputs: dict[str, int], outputs: dict[str, int]) -> None:
        """Name a subgraph's interface (name -> tensor index in that subgraph)."""
        maps = [
            [schema.TensorMapT(name=name, tensorIndex=index) for name, index in part.items()]
            for part in (inputs, outputs)
        ]
        self.model.signatureDefs.append(schema.SignatureDefT(maps[0], maps[1], key, graph.index))

    def buffer(self, data: np.ndarray | None) -> int:
        if data is None:
            return 0
        flat = np.ascontiguousarray(data).reshape(-1).view(np.uint8)
        key = (flat.__array_interface__["data"][0], flat.size)
        if key not in self._buffers or flat.size == 0:
            self._keep.append(flat)
            self.model.buffers.append(schema.BufferT(data=flat))
            self._buffers[key] = len(self.model.buffers) - 1
        return self._buffers[key]

    def opcode(self, builtin: int, custom: Any, version: int) -> int:
        key = (builtin, custom, version)
        if key not in self._codes:
            self._codes[key] = len(self.model.operatorCodes)
            self.model.operatorCodes.append(schema.OperatorCodeT(min(builtin, 127), custom, version, builtin))
        return self._codes[key]

    def copy_subgraph(self, graph: Graph, index: int) -> int:
        """Copy a whole subgraph with all that it refers to; returns its index here. Each is copied once."""
        if index not in self._copied:
            source = graph.subgraphs[index]
            target = self.subgraph(source.name)
            self._copied[index] = target.index  # before the body: subgraphs may be shared
            mapping = {t.id: target.copy_tensor(source, t) for t in source.tensors}
            for op in source.ops:
                target.copy_op(graph, op, mapping)
            target.interface([mapping[t] for t in source.inputs], [mapping[t] for t in source.outputs])
        return self._copied[index]

    def finish(self) -> bytes:
        """Serialise. Raises ``ModelError`` if the file would pass the 2 GiB of the format."""
        size = sum(b.size for b in self._keep)
        if size > (1 << 31) - (64 << 20):
            raise ModelError("the converted model would be larger than the 2 GiB that a .tflite file can be")
        builder = flatbuffers.Builder(size + (1 << 20))
        builder.Finish(self.model.Pack(builder), b"TFL3")
        return bytes(builder.Output())


class SubgraphWriter:
    """One subgraph under construction."""

    def __init__(self, model: ModelWriter, raw: Any, index: int) -> None:
        self.model, self.raw, self.index = model, raw, index

    def tensor(self, name: str, shape: tuple[int, ...], data: np.ndarray | None = None, dtype: str = "float32") -> int:
        """Add a tensor, a constant if ``data`` is given; returns its index."""
        raw = schema.TensorT(
            shape=np.array(shape, np.int32), type=TYPE_CODES[dtype], buffer=self.model.buffer(data), name=name,
            hasRank=True,
        )  # fmt: skip
        self.raw.tensors.append(raw)
        return len(self.raw.tensors) - 1

    def op(self, kind: str, inputs: list[int], outputs: list[int], options: Any = None, version: int = 1) -> None:
        """Add a builtin op; ``options`` is one of the schema's option objects."""
        raw = schema.OperatorT(
            self.model.opcode(getattr(schema.BuiltinOperator, kind), None, version),
            np.array(inputs, np.int32), np.array(outputs, np.int32),
        )  # fmt: skip
        if options is not None:
            raw.builtinOptionsType = _OPTIONS[type(options).__name__.removesuffix("T")]
            raw.builtinOptions = options
        self.raw.operators.append(raw)

    def interface(self, inputs: list[int], outputs: list[int]) -> None:
        self.raw.inputs, self.raw.outputs = np.array(inputs, np.int32), np.array(outputs, np.int32)

    def copy_tensor(self, source: Subgraph, tensor: Tensor, shape: tuple[int, ...] | None = None) -> int:
        """Copy a tensor with its quantisation and data; ``shape`` replaces the shape that the file claims."""
        raw = copy.copy(tensor.raw)
        raw.buffer = self.model.buffer(tensor.data)
        if shape is not None:
            raw.shape = np.array(shape, np.int32)
        details = raw.quantization.details if raw.quantization is not None else None
        if details is not None and hasattr(details, "scales"):  # blockwise: parameters are tensors themselves
            raw.quantization, details = copy.copy(raw.quantization), copy.copy(details)
            for name in ("scales", "zeroPoints"):
                index = int(getattr(details, name, -1))
                if 0 <= index < len(source.tensors) and index != tensor.id and (name == "scales" or index):
                    setattr(details, name, self.copy_tensor(source, source.tensors[index]))
            raw.quantization.details = details
        self.raw.tensors.append(raw)
        return len(self.raw.tensors) - 1

    def copy_op(self, graph: Graph, op: Op, mapping: dict[int, int]) -> None:
        """Copy an op whose tensors are already here; subgraphs that it runs come along."""
        raw = copy.copy(op.raw)
        code = graph.raw.operatorCodes[op.raw.opcodeIndex]
        raw.opcodeIndex = self.model.opcode(
            max(code.builtinCode, code.deprecatedBuiltinCode), code.customCode, code.version
        )
        raw.inputs = np.array([mapping[t] if t >= 0 else -1 for t in op.inputs], np.int32)
        raw.outputs = np.array([mapping[t] for t in op.outputs], np.int32)
        if raw.intermediates is not None:
            raw.intermediates = np.array([mapping.get(int(t), -1) for t in raw.intermediates], np.int32)
        for (attribute, field, position), index in subgraph_fields(raw):
            options = copy.copy(getattr(raw, attribute))
            target = self.model.copy_subgraph(graph, index)
            if position < 0:
                setattr(options, field, target)
            else:
                branches = list(getattr(options, field))
                branches[position] = target
                setattr(options, field, branches)
            setattr(raw, attribute, options)
        if raw.largeCustomOptionsOffset:
            raise ModelError(f"op {op.id} ({op.kind}) keeps its options outside the flatbuffer, which is not supported")
        self.raw.operators.append(raw)
