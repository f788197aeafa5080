"""Number formats of linear ops: what the quantisation parameters of a model mean for the enclave."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from enclave import exact, formats, limbs
from shadownet.graph import Subgraph
from shadownet.linear import LinearOp
from shadownet.wire.errors import InputError, ModelError

Array = np.ndarray[Any, Any]

EIGHT_BITS = {"int8": (-128, 127), "uint8": (0, 255)}


class Numbers:
    """One linear op's numbers: centred weights, the record of its format, and that record's blobs.

    ``rows`` are float32 [groups, n, d]; ``largest`` bounds the magnitude of an exact layer's encoded input.
    """

    def __init__(self, rows: Array, record: dict[str, Any], blobs: dict[str, Array], largest: float) -> None:
        self.rows, self.record, self.blobs, self.largest = rows, record, blobs, largest

    @property
    def exact(self) -> bool:
        return self.record["kind"] != "float"


@dataclass(frozen=True)
class Bits:
    """Of the fixed-point numbers in which exact activations compute float layers: of weights, and of activations."""

    weights: int
    activations: int

    @classmethod
    def parse(cls, text: str) -> Bits:
        """Parse W/X such as 12/12. Raises ``InputError``."""
        try:
            found = cls(*(int(part) for part in text.split("/")))
        except (TypeError, ValueError):
            raise InputError(f"{text!r} is no pair of bit widths", "write weights/activations, such as 12/12") from None
        if not all(2 <= bits <= 24 for bits in (found.weights, found.activations)):
            raise InputError(f"bit widths must be between 2 and 24, not {text}")
        return found

    def __str__(self) -> str:
        return f"{self.weights}/{self.activations}"


def numbers(lin: LinearOp, graph: Subgraph, constant: dict[int, Array], bits: Bits | None = None) -> Numbers:
    """Read a linear op's weights, bias and quantisation. ``constant`` gives the values of its constants.

    With ``bits`` float layers become fixed-point ones.
    """
    weight, x, y = (graph.tensors[t] for t in (lin.weight, lin.op_input, lin.output))
    blobs = {"bias": constant[lin.bias]} if lin.bias >= 0 else {}
    record: dict[str, Any] = {"kind": "float", "bias": "bias" if blobs else ""}
    if weight.dtype not in EIGHT_BITS:
        if blobs:
            blobs["bias"] = blobs["bias"].astype(np.float32)
        rows = lin.rows(constant[lin.weight].astype(np.float32))
        return fixed(rows, record, blobs, bits) if bits else Numbers(rows, record, blobs, 0.0)
    assert weight.quantization is not None
    centred = constant[lin.weight].astype(np.float32) - _along(weight.quantization.zero_point, lin)
    record["scale"] = "scale"
    scale = np.broadcast_to(weight.quantization.scale, lin.filters)
    if x.dtype == "float32":
        record |= {"kind": "hybrid", "inner": _inner(lin)}
        return Numbers(lin.rows(centred), record, blobs | {"scale": scale.astype(np.float32)}, 255.0)
    assert x.quantization is not None and y.quantization is not None
    sx, sy = x.quantization.scale[0], y.quantization.scale[0]
    zero_in, zero_out = int(x.quantization.zero_point[0]), int(y.quantization.zero_point[0])
    low, high = _clamp(lin.activation, sy, zero_out, *EIGHT_BITS[y.dtype])
    record |= {"kind": "integer", "zero_in": zero_in, "zero_out": zero_out, "low": low, "high": high, "dtype": y.dtype}
    blobs["scale"] = (sx * scale.astype(np.float32) / sy).astype(np.float32)
    if "bias" in blobs:
        blobs["bias"] = blobs["bias"].astype(np.float64)
    largest = max(abs(q - zero_in) for q in EIGHT_BITS[x.dtype])
    return Numbers(lin.rows(centred), record, blobs, float(largest))


def fixed(rows: Array, record: dict[str, Any], blobs: dict[str, Array], bits: Bits) -> Numbers:
    """Quantise a float layer's weights per filter, symmetrically; its inputs are quantised at run time."""
    levels = (1 << (bits.activations - 1)) - 1
    largest = np.abs(rows.astype(np.float64)).max(axis=-1, initial=0.0)
    scale = np.where(largest > 0, largest, 1.0) / ((1 << (bits.weights - 1)) - 1)
    steps = np.rint(rows / scale[..., None]).astype(np.float32)
    record = record | {"kind": "fixed", "scale": "scale", "levels": levels}
    return Numbers(steps, record, blobs | {"scale": scale.ravel()}, float(levels))


def unfit(lin: LinearOp, values: Numbers) -> str:
    """Why an exact layer cannot run in Z_p, or ""."""
    if len(lin.input_shape) < 2:
        return "its input has no dimension along which limbs could be stacked"
    try:
        exact.plan(values.rows, exact.prime_above(2 * exact.largest_sum(values.rows, values.largest)))
    except ValueError:
        return "its sums are too long to be kept exact"
    return ""


def _inner(lin: LinearOp) -> int:
    """How many trailing dimensions of the input share a scale. XNNPACK runs a plain 1x1 convolution as a dense layer,
    with a scale for each position; other convolutions have one for each image."""
    options = lin.op.options
    if lin.kind == "FULLY_CONNECTED":
        return 1
    plain = lin.kind == "CONV_2D" and lin.weight_shape[1:3] == (1, 1) and lin.groups == 1
    return 1 if plain and options.strideH == options.strideW == 1 else 3


def _along(zero: Array, lin: LinearOp) -> Array:
    """Zero points, one or one per output channel, in the shape in which they are subtracted from the weights."""
    if zero.size == 1 or lin.depthwise:
        return zero.astype(np.float32)
    return zero.astype(np.float32).reshape(-1, *(1,) * (len(lin.weight_shape) - 1))


def _clamp(activation: str, scale: np.float32, zero: int, low: int, high: int) -> tuple[int, int]:
    """The integer range of a fused activation, as LiteRT computes it."""

    def q(real: float) -> int:
        return zero + round(float(np.float32(real) / scale))

    if activation in ("RELU", "RELU6"):
        low = max(low, q(0.0))
    if activation == "RELU6":
        high = min(high, q(6.0))
    if activation == "RELU_N1_TO_1":
        low, high = max(low, q(-1.0)), min(high, q(1.0))
    return low, high


def obstacle(lin: LinearOp, graph: Subgraph) -> str:
    """Why this op's number format cannot go out, or ""."""
    weight, x, y = (graph.tensors[t] for t in (lin.weight, lin.op_input, lin.output))
    types = (x.dtype, weight.dtype, y.dtype)
    if types == ("float32",) * 3:
        return ""
    if lin.depth * (255 + formats.MASK_BOUND) >= limbs.LIMIT:
        return "its sums are too long to be kept exact"
    named = f"its number format ({', '.join(types)}) stays inside"
    if lin.kind == "BATCH_MATMUL" or weight.dtype not in EIGHT_BITS or weight.quantization is None:
        return named
    if weight.quantization.scale.size not in (1, lin.filters):
        return named
    if x.dtype == y.dtype == "float32":
        return "" if lin.kind != "TRANSPOSE_CONV" else named
    if x.dtype != y.dtype or x.dtype not in EIGHT_BITS or x.quantization is None or y.quantization is None:
        return named
    return "" if x.quantization.scale.size == y.quantization.scale.size == 1 else named


def constants(lin: LinearOp, graph: Subgraph, folded: dict[int, Array]) -> dict[int, Array]:
    """Values of an op's weights and bias, from the file or folded by LiteRT. Raises ``ModelError``."""
    found = {}
    for t in (lin.weight, lin.bias):
        if t >= 0:
            found[t] = folded[t] if t in folded else graph.tensors[t].values()
            if found[t].shape not in (graph.tensors[t].shape, lin.weight_shape):
                raise ModelError(f"constant {graph.tensors[t].name!r} has another shape than the file says")
    return found
