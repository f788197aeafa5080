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
# Of a hybrid layer, relative to its largest output. Typically it differs from LiteRT's in the order of float sums only;
# now and then an input falls on the border between two codes and is rounded the other way, a step of 1/255 in one
# place. A wrong way of quantising shows everywhere: 1e-3 typically.
TYPICAL, WORST = 1e-5, 2e-2


def agrees(lin: LinearOp, part: Partition, graph: Graph, values: Numbers, reference: Reference, seed: int) -> bool:
    """Whether our format gives what LiteRT's default kernel gives, on random data: integers equal, floats nearly.

    LiteRT has several kernels for one op, which round differently; the formats follow XNNPACK's. Run once per
    layer at conversion; a layer for which it does not hold stays in the enclave.
    """
    # A rounding that differs in one element of two hundred shows only when many are looked at.
    samples = min(64, max(1, ENOUGH // max(1, lin.positions * lin.filters)))
    try:
        limbed = limbs.split(values.rows, values.largest)
    except ValueError:
        return False
    models = _original(lin, part, graph), _ours(lin, limbed[0])
    errors = []
    for k in range(samples):
        errors.append(_error(lin, part, values, limbed, models, reference, seed + 1000 * k))
        if errors[-1][1] > WORST:
            return False
    return float(np.median([typical for typical, _ in errors])) <= TYPICAL


def _error(
    lin: LinearOp,
    part: Partition,
    values: Numbers,
    limbed: tuple[Array, int, int],
    models: tuple[bytes, bytes],
    reference: Reference,
    seed: int,
) -> tuple[float, float]:
    """(median, largest) difference on one random input, relative to the largest output; infinite for integers that
    differ at all, and where LiteRT does not take a model."""
    rng = np.random.default_rng(seed)
    dtype, shape = part.graph.tensors[lin.op_input].dtype, lin.without_pad().input_shape
    sample = (
        rng.normal(0, 1, shape).astype(np.float32)
        if dtype == "float32"
        else rng.integers(*EIGHT_BITS[dtype], shape, endpoint=True).astype(dtype)
    )
    record = values.record | {name: name for name in ("scale", "bias") if name in values.blobs}
    format_ = formats.create(record | {"first": lin.epilogue.first.to_json()}, values.blobs)
    encoded, context = formats.encode(format_, sample)
    expected = reference.probe(models[0], sample)
    answer = reference.probe(models[1], np.ascontiguousarray(encoded, np.float32))
    if expected is None or answer is None:
        return np.inf, np.inf
    got = format_.decode(limbs.join(answer, limbed[0].shape[0], *limbed[1:]), context)
    if got.shape != expected.shape or got.dtype != expected.dtype:
        return np.inf, np.inf
    if got.dtype.kind in "iu":
        return (0.0, 0.0) if np.array_equal(got, expected) else (np.inf, np.inf)
    difference = np.abs(got - expected) / max(float(np.abs(expected).max()), 1e-6)
    return float(np.median(difference)), float(difference.max())


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
