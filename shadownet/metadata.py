"""The normalisation that a model's TFLite metadata states, if it has any.

Only that one fact is read, by field number, from the flatbuffer ``TFLITE_METADATA``: ModelMetadata.subgraph_metadata
(2) -> SubGraphMetadata.input_tensor_metadata (2) -> TensorMetadata.process_units (4) -> ProcessUnit (0 kind,
1 NormalizationOptions with 0 mean, 1 std), as the metadata schema of the TFLite Support library defines them.
"""

from __future__ import annotations

import struct
from typing import Any

import numpy as np
from flatbuffers import number_types as types
from flatbuffers.table import Table

_NORMALIZATION = 1


def normalization(metadata: dict[str, np.ndarray[Any, Any]]) -> dict[str, float] | None:
    """{"mean", "std"} of the first input, or None if it is absent, per channel with different values, or damaged."""
    data = metadata["TFLITE_METADATA"].tobytes() if "TFLITE_METADATA" in metadata else b""
    try:
        root = Table(data, struct.unpack_from("<I", data)[0])
        for graph in _tables(root, 2)[:1]:
            for tensor in _tables(graph, 2)[:1]:
                for unit in _tables(tensor, 4)[:16]:
                    found = _options(unit)
                    if found:
                        return found
    except (struct.error, ValueError, IndexError, TypeError, OverflowError):
        pass  # metadata is a convenience; a damaged one is as good as none
    return None


def _options(unit: Table) -> dict[str, float] | None:
    kind = unit.Offset(4)
    if not kind or unit.Get(types.Uint8Flags, unit.Pos + kind) != _NORMALIZATION:
        return None
    field = unit.Offset(6)
    if not field:
        return None
    options = Table(unit.Bytes, 0)
    unit.Union(options, field)
    mean, std = _floats(options, 0), _floats(options, 1)
    if len(set(mean)) != 1 or len(set(std)) != 1 or std[0] == 0:
        return None
    return {"mean": mean[0], "std": std[0]}


def _tables(table: Table, field: int) -> list[Table]:
    offset = table.Offset(4 + 2 * field)
    if not offset:
        return []
    start, count = table.Vector(offset), min(table.VectorLen(offset), 1024)
    return [Table(table.Bytes, table.Indirect(start + 4 * i)) for i in range(count)]


def _floats(table: Table, field: int) -> list[float]:
    offset = table.Offset(4 + 2 * field)
    if not offset:
        return []
    start, count = table.Vector(offset), min(table.VectorLen(offset), 64)
    values: list[Any] = [table.Get(types.Float32Flags, start + 4 * i) for i in range(count)]
    return [float(v) for v in values]
