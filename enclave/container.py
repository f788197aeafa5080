"""The plaintext of a sealed file: a JSON program and named arrays. Used by the converter and by the worker."""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Callable
from dataclasses import dataclass
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


@dataclass(frozen=True)
class Place:
    """Where a blob lies in the plaintext: ``at`` in bytes."""

    at: int
    dtype: np.dtype[Any]
    shape: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        return self.dtype.itemsize * math.prod(self.shape)


def read_head(read: Callable[[int, int], bytes], size: int) -> tuple[dict[str, Any], dict[str, Place]]:
    """Parse the head of :func:`pack`'s ``size`` bytes: (program, places of the blobs). ``read`` takes offset and size.

    Raises ``BundleError``.
    """
    try:
        length = struct.unpack("<I", read(0, 4))[0]
        record = json.loads(read(4, min(length, size)))
        base = _up(4 + length)
        places = {}
        for name, spec in record["blobs"].items():
            offset = int(spec["offset"])
            places[name] = place = Place(base + offset, DTYPES[spec["dtype"]], parse_shape(spec["shape"]))
            if offset < 0 or offset % _ALIGN or place.at + place.nbytes > size:
                raise ValueError
        if not isinstance(record["program"], dict):
            raise ValueError
        return record["program"], places
    except (struct.error, ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError):
        raise BundleError("the sealed half holds no program that can be read", "convert the model again") from None


def unpack(data: bytearray) -> tuple[dict[str, Any], dict[str, Array]]:
    """Parse :func:`pack`'s bytes: (program, blobs as read-only views). Raises ``BundleError``."""
    program, places = read_head(lambda at, size: bytes(data[at : at + size]), len(data))
    blobs = {}
    for name, place in places.items():
        # Not frombuffer: an empty blob may begin where the data ends.
        blobs[name] = np.ndarray(place.shape, place.dtype, data, place.at if place.nbytes else 0)
        blobs[name].flags.writeable = False
    return program, blobs


def _up(size: int) -> int:
    return -(-size // _ALIGN) * _ALIGN
