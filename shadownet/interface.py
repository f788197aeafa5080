"""How inputs and outputs of a subgraph are described."""

from __future__ import annotations

from shadownet.partition import Partition
from shadownet.wire.tensors import TensorSpec


def interface_spec(part: Partition, tensor: int) -> TensorSpec:
    """Describe an input or output as ``get_input_details()`` would."""
    t = part.graph.tensors[tensor]
    q = t.quantization
    single = q is not None and q.scale.size == 1
    return TensorSpec(
        index=tensor,
        name=t.name,
        shape=part.shapes.shape[tensor],
        signature=t.signature,
        dtype=t.dtype,
        scale=float(q.scale[0]) if q is not None and single else 0.0,
        zero_point=int(q.zero_point[0]) if q is not None and single else 0,
        scales=tuple(float(s) for s in q.scale) if q is not None else (),
        zero_points=tuple(int(z) for z in q.zero_point) if q is not None else (),
        axis=q.axis if q is not None else 0,
        dynamic=not part.shapes.static[tensor],
    )
