"""Does a quantised layer, computed our way, give what LiteRT gives? Asked of every such layer at conversion."""

from __future__ import annotations

from typing import Any

import numpy as np

from enclave import formats, limbs
from shadownet.analysis import Reference
from shadownet.graph import Graph, ModelWriter
from shadownet.linear import LinearOp
from shadownet.partition import Partition
from shadownet.quantized import EIGHT_BITS, Numbers

Array = np.ndarray[Any, Any]

ENOUGH = 20_000  # output elements to compare, roughly
FLOAT_TOLERANCE = 1e-4  # of the largest output; hybrid layers differ from LiteRT's in the order of float sums only


def agrees(lin: LinearOp, part: Partition, graph: Graph, values: Numbers, reference: Reference, seed: int) -> bool:
    """Whether our format gives what LiteRT's default kernel gives, on random data: integers equal, floats nearly.

    LiteRT has several kernels for one op, which round differently; the formats follow XNNPACK's. Run once per
    layer at conversion; a layer for which it does not hold stays in the enclave.
    """
    # A rounding that differs in one element of two hundred shows only when many are looked at.
    samples = min(64, max(1, ENOUGH // max(1, lin.positions * lin.filters)))
    return all(_agrees_once(lin, part, graph, values, reference, seed + 1000 * k) for k in range(samples))


def _agrees_once(
    lin: LinearOp, part: Partition, graph: Graph, values: Numbers, reference: Reference, seed: int
) -> bool:
    rng = np.random.default_rng(seed)
    x = part.graph.tensors[lin.op_input]
    sample = (
        rng.normal(0, 1, lin.without_pad().input_shape).astype(np.float32)
        if x.dtype == "float32"
        else rng.integers(*EIGHT_BITS[x.dtype], lin.without_pad().input_shape, endpoint=True).astype(x.dtype)
    )
    expected = reference.probe(_original(lin, part, graph), sample)
    record = values.record | {name: name for name in ("scale", "bias") if name in values.blobs}
    record["first"] = lin.epilogue.first.to_json()
    format_ = formats.create(record, values.blobs)
    encoded, context = format_.encode(sample)
    try:
        rows, count, base = limbs.split(values.rows, values.largest)
    except ValueError:
        return False
    answer = reference.probe(_ours(lin, rows), np.ascontiguousarray(encoded, np.float32))
    if expected is None or answer is None:
        return False
    got = format_.decode(limbs.join(answer, rows.shape[0], count, base), context)
    if got.shape != expected.shape or got.dtype != expected.dtype:
        return False
    if got.dtype.kind in "iu":
        return bool(np.array_equal(got, expected))
    return bool(np.abs(got - expected).max() <= FLOAT_TOLERANCE * max(float(np.abs(expected).max()), 1e-6))


def _original(lin: LinearOp, part: Partition, graph: Graph) -> bytes:
    """A model of the op alone, as it stands in the user's model."""
    writer = ModelWriter("probe")
    target = writer.subgraph("original")
    mapping = {}
    for t in sorted({*lin.op.reads(), *lin.op.outputs}):
        mapping[t] = target.copy_tensor(part.graph, part.graph.tensors[t], part.shapes.shape[t])
    target.copy_op(graph, lin.op, mapping)
    target.interface([mapping[lin.op_input]], [mapping[lin.output]])
    return writer.finish()


def _ours(lin: LinearOp, rows: Array) -> bytes:
    writer = ModelWriter("probe")
    lin.without_pad().emit(writer.subgraph("ours"), lin.weights_from(rows))
    return writer.finish()
