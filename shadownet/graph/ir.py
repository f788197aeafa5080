"""The graph as the rest of the project sees it: plain records with stable ids over the file's own objects.

Ids are the indices of the file, so they agree with what LiteRT reports. Buffers are views of the file's bytes.
``raw`` keeps the schema object, so that what we do not interpret is copied unchanged.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from ai_edge_litert import schema_py_generated as schema

from shadownet.wire.errors import ModelError
from shadownet.wire.tensors import DTYPES


def _names(enum: type) -> dict[int, str]:
    return {value: name for name, value in vars(enum).items() if not name.startswith("_")}


OP_NAMES = _names(schema.BuiltinOperator)
TYPE_NAMES = {value: name.lower() for value, name in _names(schema.TensorType).items()}
TYPE_CODES = {name: value for value, name in TYPE_NAMES.items()}
BITS = {"int4": 4, "uint4": 4, "int2": 2}  # packed; the rest are whole bytes


@dataclass(frozen=True)
class Quantization:
    """Affine quantisation: real = scale[c] * (q - zero_point[c]), c along ``axis`` when there are several."""

    scale: np.ndarray  # float32 [1 or channels]
    zero_point: np.ndarray  # int64, same shape
    axis: int


@dataclass(frozen=True, eq=False)
class Tensor:
    """One tensor of a subgraph. ``data`` is a uint8 view of the file, or None when it is computed."""

    id: int
    name: str
    shape: tuple[int, ...]
    signature: tuple[int, ...]
    dtype: str
    quantization: Quantization | None
    data: np.ndarray | None
    is_variable: bool
    raw: Any

    @property
    def is_constant(self) -> bool:
        return self.data is not None

    def values(self) -> np.ndarray:
        """The constant's values. Raises ``ModelError`` if it has none that can be read as a dense array."""
        if self.data is None or self.dtype not in DTYPES or self.raw.sparsity is not None:
            raise ModelError(f"tensor {self.name!r} holds no dense constant")
        return self.data.view(DTYPES[self.dtype]).reshape(self.shape)


@dataclass(frozen=True, eq=False)
class Op:
    """One operator. ``kind`` is the builtin's name, or ``CUSTOM:name``; absent inputs are -1."""

    id: int
    kind: str
    version: int
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    raw: Any

    @property
    def options(self) -> Any:
        return self.raw.builtinOptions

    def input(self, position: int) -> int:
        """Tensor id of an input, -1 if the op does not have it."""
        return self.inputs[position] if position < len(self.inputs) else -1

    def reads(self) -> Iterator[int]:
        return (t for t in self.inputs if t >= 0)

    def subgraphs(self) -> list[int]:
        """Indices of the subgraphs that this op runs (control flow, reducers, composites)."""
        return [index for _, index in subgraph_fields(self.raw)]


@dataclass(frozen=True, eq=False)
class Subgraph:
    index: int
    name: str
    tensors: list[Tensor]
    ops: list[Op]
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]


@dataclass(frozen=True)
class Signature:
    key: str
    subgraph: int
    inputs: dict[str, int] = field(default_factory=dict)
    outputs: dict[str, int] = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class Graph:
    """A parsed model. ``entry_points`` are the subgraphs a user can run: the first and those with signatures."""

    subgraphs: list[Subgraph]
    signatures: list[Signature]
    metadata: dict[str, np.ndarray]  # uint8 views of the file
    raw: Any

    def entry_points(self) -> list[int]:
        return sorted({0, *(s.subgraph for s in self.signatures)})


def subgraph_fields(raw_op: Any) -> list[tuple[tuple[str, str, int], int]]:
    """List ((options attribute, field, position), subgraph index) for each subgraph reference of an op."""
    found: list[tuple[tuple[str, str, int], int]] = []
    for attribute in ("builtinOptions", "builtinOptions2"):
        options = getattr(raw_op, attribute)
        for name, value in vars(options).items() if options is not None else ():
            if (name.endswith("SubgraphIndex") or name == "subgraph") and isinstance(value, (int, np.integer)):
                found.append(((attribute, name, -1), int(value)))
            elif name == "branchSubgraphIndices" and value is not None:
                found += [((attribute, name, k), int(v)) for k, v in enumerate(value)]
    return found


def packed_bytes(shape: tuple[int, ...], dtype: str) -> int | None:
    """Bytes that a dense constant takes in the file; None where the type has no fixed size."""
    count = math.prod(shape)
    if dtype in DTYPES:
        return count * DTYPES[dtype].itemsize
    if dtype in BITS:
        return -(-count * BITS[dtype] // 8)
    if dtype == "bfloat16":
        return count * 2
    if dtype.startswith("float8"):
        return count
    return None
