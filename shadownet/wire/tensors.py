"""Tensor specs: what two domains must agree on about a tensor before bytes cross."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from shadownet.wire.errors import BundleError

MAX_RANK = 8
MAX_BYTES = 1 << 31  # of one tensor; LiteRT's own file format stops there too

DTYPES: dict[str, np.dtype[Any]] = {
    name: np.dtype(name)
    for name in (
        "float32", "float16", "float64", "int8", "uint8", "int16", "uint16", "int32", "uint32",
        "int64", "uint64", "bool", "complex64", "complex128",
    )
}  # fmt: skip


@dataclass(frozen=True)
class TensorSpec:
    """One tensor of the model's interface. ``shape`` is concrete; ``signature`` has -1 where it may be resized.

    ``index`` is the tensor's index in the original model, so that ``get_input_details()`` agrees with LiteRT's.
    ``scale`` and ``zero_point`` are the per-tensor quantisation (0.0, 0 when there is none); ``scales``,
    ``zero_points`` and ``axis`` the full parameters.
    """

    index: int
    name: str
    shape: tuple[int, ...]
    signature: tuple[int, ...]
    dtype: str
    scale: float = 0.0
    zero_point: int = 0
    scales: tuple[float, ...] = ()
    zero_points: tuple[int, ...] = ()
    axis: int = 0
    dynamic: bool = field(default=False)  # the shape is known only after each run

    @property
    def nbytes(self) -> int:
        return nbytes(self.shape, self.dtype)

    def details(self) -> dict[str, Any]:
        """Return the dictionary that ``tf.lite.Interpreter.get_input_details()`` gives for such a tensor."""
        return {
            "name": self.name,
            "index": self.index,
            "shape": np.array(self.shape, np.int32),
            "shape_signature": np.array(self.signature, np.int32),
            "dtype": np.bytes_ if self.dtype == "string" else DTYPES[self.dtype].type,
            "quantization": (self.scale, self.zero_point),
            "quantization_parameters": {
                "scales": np.array(self.scales, np.float32),
                "zero_points": np.array(self.zero_points, np.int32),
                "quantized_dimension": self.axis,
            },
            "sparsity_parameters": {},
        }

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, record: Any) -> TensorSpec:
        """Parse a spec. Raises ``BundleError`` for anything that is not one."""
        try:
            spec = cls(
                index=int(record["index"]),
                name=str(record["name"])[:4096],
                shape=parse_shape(record["shape"]),
                signature=tuple(int(d) for d in record["signature"]),
                dtype=str(record["dtype"]),
                scale=float(record["scale"]),
                zero_point=int(record["zero_point"]),
                scales=tuple(float(s) for s in record["scales"]),
                zero_points=tuple(int(z) for z in record["zero_points"]),
                axis=int(record["axis"]),
                dynamic=bool(record["dynamic"]),
            )
        except (KeyError, TypeError, ValueError, OverflowError):
            raise BundleError("a tensor description in the bundle cannot be read") from None
        if spec.dtype not in DTYPES and spec.dtype != "string":
            raise BundleError(f"the bundle names an unknown tensor type {spec.dtype[:40]!r}")
        return spec


def parse_shape(value: Any) -> tuple[int, ...]:
    """Return ``value`` as a shape. Raises ``ValueError`` if it is none or would not fit a tensor."""
    try:
        shape = tuple(int(d) for d in value)
    except (TypeError, OverflowError):
        raise ValueError("not a tensor shape") from None
    if len(shape) > MAX_RANK or any(d < 0 or d > MAX_BYTES for d in shape) or math.prod(shape) > MAX_BYTES:
        raise ValueError("not a tensor shape")
    return shape


def nbytes(shape: tuple[int, ...], dtype: str) -> int:
    """Bytes of a dense tensor."""
    return math.prod(shape) * DTYPES[dtype].itemsize if dtype in DTYPES else 0
