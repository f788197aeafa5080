"""The public model as something that can be changed before LiteRT gets it: read, cut down to some layers, written."""

from __future__ import annotations

import contextlib
import copy
import os
import struct
from collections.abc import Collection
from pathlib import Path
from typing import Any

import flatbuffers
import numpy as np
from ai_edge_litert import schema_py_generated as schema

MAX_FILE = 1 << 28  # larger models run as they are: copies are made here
CONVOLUTIONS = (schema.BuiltinOperator.CONV_2D, schema.BuiltinOperator.DEPTHWISE_CONV_2D)
LINEAR = (*CONVOLUTIONS, schema.BuiltinOperator.FULLY_CONNECTED)

# What reading a file that is no model, or not one of ours, may raise.
DAMAGE = (ValueError, IndexError, KeyError, TypeError, AttributeError, struct.error)


def read(path: str) -> Any | None:
    """The model, or None if it is too large to be changed or no model: LiteRT will say so. Raises ``OSError``."""
    if os.stat(path).st_size > MAX_FILE:
        return None
    with contextlib.suppress(*DAMAGE):
        model = schema.ModelT.InitFromPackedBuf(bytearray(Path(path).read_bytes()), 0)
        if model.signatureDefs and model.subgraphs and model.buffers and model.operatorCodes:
            return model
    return None


def write(model: Any) -> bytes:
    """Raises ``ValueError`` and the like for a model that was damaged."""
    size = sum(len(buffer.data) for buffer in model.buffers if buffer.data is not None)
    builder = flatbuffers.Builder(size + (1 << 20))
    builder.Finish(model.Pack(builder), b"TFL3")
    return bytes(builder.Output())


def only(model: Any, layers: Collection[str]) -> Any:
    """The model with these layers alone, and nothing that the others need."""
    made = copy.copy(model)
    made.signatureDefs = [copy.copy(s) for s in model.signatureDefs if text(s.signatureKey) in layers]
    made.subgraphs = [model.subgraphs[signature.subgraphIndex] for signature in made.signatureDefs]
    for index, signature in enumerate(made.signatureDefs):
        signature.subgraphIndex = index
    used = {int(tensor.buffer) for graph in made.subgraphs for tensor in graph.tensors}
    made.buffers = [buffer if k in used else schema.BufferT() for k, buffer in enumerate(model.buffers)]
    made.operatorCodes = list(model.operatorCodes)
    return made


def multiply_adds(model: Any, signature: Any) -> int:
    """Of a layer for one inference, as far as its ops are ``LINEAR``."""
    graph, total = model.subgraphs[signature.subgraphIndex], 0
    for op in graph.operators:
        if kind(model, op) in LINEAR:
            weights, answer = (graph.tensors[int(t)].shape for t in (op.inputs[1], op.outputs[0]))
            total += int(np.prod(weights, dtype=np.int64)) * int(np.prod(answer[:-1], dtype=np.int64))
    return total


def kind(model: Any, op: Any) -> int:
    """An op's builtin code."""
    code = model.operatorCodes[op.opcodeIndex]
    return int(max(code.builtinCode, code.deprecatedBuiltinCode))


def text(key: Any) -> str:
    return key.decode() if isinstance(key, bytes) else str(key)
