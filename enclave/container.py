"""The plaintext of a sealed file: a JSON program and named arrays. Used by the converter and by the worker."""

from __future__ import annotations

import json
import math
import struct
from typing import Any

import numpy as np

from shadownet.wire.errors import BundleError
from shadownet.wire.tensors import DTYPES, parse_shape

Array = np.ndarray[Any, Any]
_ALIGN = 64


def pack(program: dict[str, Any], blobs: dict[str, Array]) -> bytearray:
    """Serialise; see FORMAT.md, "The plaintext"."""
    table: dict[str, Any] = {}
    size = 0
    for name, blob in blobs.items():
        table[name] = {"dtype": blob.dtype.name, "shape": list(blob.shape), "offset": size}
        size += _up(blob.nbytes)
    head = json.dumps({"program": program, "blobs": table}, separators=(",", ":")).encode()
    base = _up(4 + len(head))
    out = bytearray(base + size)
    struct.pack_into("<I", out, 0, len(head))
    out[4 : 4 + len(head)] = head
    for name, blob in blobs.items():
        start = base + table[name]["offset"]
        out[start : start + blob.nbytes] = np.ascontiguousarray(blob).reshape(-1).view(np.uint8).data
    return out


def unpack(data: bytearray) -> tuple[dict[str, Any], dict[str, Array]]:
    """Parse :func:`pack`'s bytes: (program, blobs as read-only views). Raises ``BundleError``."""
    try:
        length = struct.unpack_from("<I", data)[0]
        record = json.loads(bytes(data[4 : 4 + length]))
        base = _up(4 + length)
        blobs = {}
        for name, spec in record["blobs"].items():
            shape, dtype, offset = parse_shape(spec["shape"]), DTYPES[spec["dtype"]], int(spec["offset"])
            if offset < 0 or offset % _ALIGN:
                raise ValueError
            blob = np.frombuffer(data, dtype, math.prod(shape), base + offset).reshape(shape)
            blob.flags.writeable = False
            blobs[name] = blob
        if not isinstance(record["program"], dict):
            raise ValueError
        return record["program"], blobs
    except (struct.error, ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError):
        raise BundleError("the sealed half holds no program that can be read", "convert the model again") from None


def _up(size: int) -> int:
    return -(-size // _ALIGN) * _ALIGN
