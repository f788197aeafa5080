"""Parse a ``.tflite`` file. Every byte may be hostile: counts are bounded before anything is unpacked, and every
index, shape and buffer is checked, so that what comes out is consistent or a ``ModelError`` is raised."""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from ai_edge_litert import schema_py_generated as schema

from shadownet.graph.ir import (
    OP_NAMES,
    TYPE_NAMES,
    Graph,
    Op,
    Quantization,
    Signature,
    Subgraph,
    Tensor,
    packed_bytes,
)
from shadownet.wire.errors import ModelError
from shadownet.wire.tensors import MAX_BYTES, MAX_RANK

MAX_FILE = (1 << 31) - 1
MAX_SUBGRAPHS = 10_000
MAX_OBJECTS = 60_000  # ops and tensors of all subgraphs
MAX_ITEMS = 8 << 20  # items of all lists and bytes of all names
COSTLY = 64  # what a table in a list counts, in such items

# What the flatbuffers library raises on offsets and lengths that leave the file.
_MALFORMED = (struct.error, ValueError, IndexError, TypeError, KeyError, AttributeError, OverflowError, UnicodeError,
              RecursionError)  # fmt: skip


def load(path: str | os.PathLike[str]) -> tuple[Graph, bytes]:
    """Read ``path``: (graph, the file's bytes). Raises ``ModelError``."""
    try:
        with open(path, "rb") as file:
            if os.fstat(file.fileno()).st_size > MAX_FILE:
                raise ModelError(f"{path} is larger than the 2 GiB that a .tflite file can be")
            content = file.read()
    except OSError as error:
        raise ModelError(f"cannot read {path}: {error.strerror}") from None
    return parse(content, Path(path).name), content


def parse(content: bytes, name: str = "the model") -> Graph:
    """Parse a model. Raises ``ModelError`` for whatever is not one; ``name`` is for the message."""
    if len(content) < 16 or content[4:8] != b"TFL3":
        raise ModelError(
            f"{name} is not a TensorFlow Lite model", "it should carry the identifier TFL3 in bytes 4 to 7"
        )
    try:
        _bound(content)
        raw = schema.ModelT.InitFromPackedBuf(content, 0)
        return _Reader(raw, content).graph()
    except ModelError as error:
        raise ModelError(f"{name} is damaged: {error}", error.hint) from None
    except (*_MALFORMED, MemoryError):
        raise ModelError(f"{name} is damaged: an offset or a length leaves the file") from None


def _bound(content: bytes) -> None:
    """Count before unpacking: in a small file millions of objects can be claimed that all lie in the same bytes."""
    model = schema.Model.GetRootAs(content, 0)
    if model.SubgraphsLength() > MAX_SUBGRAPHS:
        raise ModelError(f"it claims {model.SubgraphsLength()} subgraphs; the limit is {MAX_SUBGRAPHS}")
    objects = model.OperatorCodesLength() + model.BuffersLength() + model.SignatureDefsLength() + model.MetadataLength()
    graphs = [model.Subgraphs(i) for i in range(model.SubgraphsLength())]
    objects += sum(g.TensorsLength() + g.OperatorsLength() for g in graphs)
    if objects > MAX_OBJECTS:
        raise ModelError(f"it claims {objects} ops and tensors; the limit is {MAX_OBJECTS}")
    left = MAX_ITEMS
    for size in _sizes(model, graphs):
        left -= size
        if left < 0:
            raise ModelError("its lists and names are unreasonably long")


def _sizes(model: Any, graphs: list[Any]) -> Iterator[int]:
    """Lengths of everything that unpacking would copy: lists in items, strings in bytes."""
    yield model.MetadataBufferLength() + len(model.Description() or b"")
    for i in range(model.OperatorCodesLength()):
        yield len(model.OperatorCodes(i).CustomCode() or b"")
    for i in range(model.MetadataLength()):
        yield len(model.Metadata(i).Name() or b"")
    for i in range(model.SignatureDefsLength()):
        signature = model.SignatureDefs(i)
        yield COSTLY * (signature.InputsLength() + signature.OutputsLength()) + len(signature.SignatureKey() or b"")
        for maps, count in (
            (signature.Inputs, signature.InputsLength()),
            (signature.Outputs, signature.OutputsLength()),
        ):
            yield from (len(maps(k).Name() or b"") for k in range(count))
    for graph in graphs:
        yield graph.InputsLength() + graph.OutputsLength() + len(graph.Name() or b"")
        for i in range(graph.OperatorsLength()):
            op = graph.Operators(i)
            yield op.InputsLength() + op.OutputsLength() + op.IntermediatesLength() + op.MutatingVariableInputsLength()
        for i in range(graph.TensorsLength()):
            yield from _tensor_sizes(graph.Tensors(i))


def _tensor_sizes(tensor: Any) -> Iterator[int]:
    yield tensor.ShapeLength() + tensor.ShapeSignatureLength() + len(tensor.Name() or b"")
    yield COSTLY * tensor.VariantTensorsLength()
    for i in range(tensor.VariantTensorsLength()):
        yield tensor.VariantTensors(i).ShapeLength()
    sparsity = tensor.Sparsity()
    if sparsity is not None:
        yield sparsity.TraversalOrderLength() + sparsity.BlockMapLength() + sparsity.DimMetadataLength()


class _Reader:
    def __init__(self, raw: Any, content: bytes) -> None:
        self.raw, self.content = raw, content
        self.buffers = raw.buffers or []

    def graph(self) -> Graph:
        if not self.raw.subgraphs:
            raise ModelError("it has no subgraph")
        if self.raw.externalBuffers or self.raw.externalBufferGroups:
            raise ModelError("it keeps its weights in other files, which is not supported")
        subgraphs = [self._subgraph(i, g) for i, g in enumerate(self.raw.subgraphs)]
        for graph in subgraphs:
            for op in graph.ops:
                if any(not 0 <= k < len(subgraphs) for k in op.subgraphs()):
                    raise ModelError(f"op {op.id} ({op.kind}) runs a subgraph that does not exist")
        signatures = [self._signature(s, subgraphs) for s in self.raw.signatureDefs or []]
        metadata = {_text(m.name): self._buffer(m.buffer) for m in self.raw.metadata or []}
        return Graph(subgraphs, signatures, metadata, self.raw)

    def _subgraph(self, index: int, raw: Any) -> Subgraph:
        tensors = [self._tensor(i, t) for i, t in enumerate(_items(raw.tensors))]
        ops = [self._op(i, o, len(tensors)) for i, o in enumerate(_items(raw.operators))]
        graph = Subgraph(index, _text(raw.name), tensors, ops, _ids(raw.inputs), _ids(raw.outputs))
        self._check_order(graph)
        return graph

    def _check_order(self, graph: Subgraph) -> None:
        """Every tensor has one source, and ops stand in the order in which they can run."""
        for t in (*graph.inputs, *graph.outputs):
            if not 0 <= t < len(graph.tensors):
                raise ModelError(f"subgraph {graph.index} names tensor {t}, which does not exist")
        known = {t.id for t in graph.tensors if t.is_constant or t.is_variable} | set(graph.inputs)
        produced: set[int] = set()
        produced_later = {t for op in graph.ops for t in op.outputs}
        for op in graph.ops:
            for t in op.reads():
                if t not in known and t in produced_later:
                    raise ModelError(f"op {op.id} ({op.kind}) reads tensor {t} before it is computed")
            if produced.intersection(op.outputs) or set(op.outputs) & set(graph.inputs):
                raise ModelError(f"op {op.id} ({op.kind}) writes a tensor that has another source")
            produced.update(op.outputs)
            known.update(op.outputs)

    def _tensor(self, index: int, raw: Any) -> Tensor:
        name, dtype = _text(raw.name), TYPE_NAMES.get(raw.type, "")
        if not dtype:
            raise ModelError(f"tensor {index} has the unknown type {raw.type}")
        shape = _ids(raw.shape)
        if len(shape) > MAX_RANK or any(d < 0 for d in shape):
            raise ModelError(f"tensor {index} ({name}) has no possible shape: {list(shape)}")
        signature = _ids(raw.shapeSignature) or shape
        data = self._buffer(raw.buffer)
        size = packed_bytes(shape, dtype)
        if size is not None and size > MAX_BYTES:
            raise ModelError(f"tensor {index} ({name}) would take {size} bytes")
        constant = data if data.size else None
        if constant is None and size == 0 and raw.buffer and not raw.isVariable:
            constant = data  # an empty constant, such as the shape of a scalar
        if constant is not None and size is not None and raw.sparsity is None and constant.size != size:
            raise ModelError(f"tensor {index} ({name}) has {constant.size} bytes of data, its shape needs {size}")
        return Tensor(
            index, name, shape, signature, dtype, _quantization(raw.quantization), constant, bool(raw.isVariable), raw
        )

    def _buffer(self, index: int) -> np.ndarray:
        if not 0 <= index < len(self.buffers):
            raise ModelError(f"buffer {index} does not exist")
        raw = self.buffers[index]
        if raw.offset > 1:  # large models keep data behind the flatbuffer
            if raw.offset + raw.size > len(self.content):
                raise ModelError(f"buffer {index} leaves the file")
            return np.frombuffer(self.content, np.uint8, raw.size, raw.offset)
        data = raw.data
        return np.zeros(0, np.uint8) if data is None or len(data) == 0 else np.asarray(data, np.uint8)

    def _op(self, index: int, raw: Any, tensors: int) -> Op:
        codes = self.raw.operatorCodes or []
        if not 0 <= raw.opcodeIndex < len(codes):
            raise ModelError(f"op {index} has no operator code")
        code = codes[raw.opcodeIndex]
        number = max(code.builtinCode, code.deprecatedBuiltinCode)
        kind = OP_NAMES.get(number, f"UNKNOWN_{number}")
        if kind == "CUSTOM":
            kind = "CUSTOM:" + _text(code.customCode)
        op = Op(index, kind, int(code.version), _ids(raw.inputs), _ids(raw.outputs), raw)
        if any(not -1 <= t < tensors for t in op.inputs) or any(not 0 <= t < tensors for t in op.outputs):
            raise ModelError(f"op {index} ({kind}) names a tensor that does not exist")
        if raw.intermediates is not None and any(not -1 <= t < tensors for t in _ids(raw.intermediates)):
            raise ModelError(f"op {index} ({kind}) names a tensor that does not exist")
        return op

    @staticmethod
    def _signature(raw: Any, subgraphs: list[Subgraph]) -> Signature:
        if not 0 <= raw.subgraphIndex < len(subgraphs):
            raise ModelError(f"signature {_text(raw.signatureKey)!r} names a subgraph that does not exist")
        graph = subgraphs[raw.subgraphIndex]
        maps = [{_text(m.name): int(m.tensorIndex) for m in _items(part)} for part in (raw.inputs, raw.outputs)]
        if any(not 0 <= t < len(graph.tensors) for m in maps for t in m.values()):
            raise ModelError(f"signature {_text(raw.signatureKey)!r} names a tensor that does not exist")
        return Signature(_text(raw.signatureKey), int(raw.subgraphIndex), *maps)


def _quantization(raw: Any) -> Quantization | None:
    if raw is None or raw.scale is None or len(raw.scale) == 0:
        return None
    scale = np.asarray(raw.scale, np.float32)
    zero = np.zeros(scale.size, np.int64) if raw.zeroPoint is None else np.asarray(raw.zeroPoint, np.int64)
    if zero.size == 1:
        zero = np.broadcast_to(zero, scale.shape)
    if zero.size != scale.size:
        raise ModelError("a tensor has as many scales as zero points only by claim")
    return Quantization(scale, zero, int(raw.quantizedDimension))


def _items(vector: Any) -> list[Any]:
    return [] if vector is None else list(vector)


def _ids(vector: Any) -> tuple[int, ...]:
    return () if vector is None else tuple(int(v) for v in vector)


def _text(value: Any) -> str:
    if value is None:
        return ""
    return value.decode("utf-8", "replace") if isinstance(value, (bytes, bytearray)) else str(value)
