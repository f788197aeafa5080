"""A partition as plain data, for people: which steps there are, where each runs, and which steps it reads."""

from __future__ import annotations

from typing import Any

from shadownet.partition import Partition, Step

INPUT = -1  # among the steps that a step reads: the model's own input


def outline(part: Partition) -> list[dict[str, Any]]:
    """The steps of one entry in the order in which they run.

    A step that goes out is one linear layer: ``kind`` is its op; ``id`` its op id; ``after`` are the ops that the
    enclave fuses behind it; ``input``, ``output`` are shapes, ``filters`` and ``macs`` counts. Any other step is a
    trusted segment with the kinds of its ops in ``after``. ``reads`` are positions of earlier steps, or ``INPUT``, and
    ``sends`` the one of them whose result a layer sends out; ``gives`` says whether it yields an output of the model.
    """
    source: dict[int, int] = dict.fromkeys(part.graph.inputs, INPUT)
    steps = []
    for number, step in enumerate(part.steps):
        reads = sorted({source[t] for t in step.inputs if t in source})
        gives = not set(part.graph.outputs).isdisjoint(step.outputs)
        steps.append({**_work(part, step), "reads": reads, "gives": gives})
        if step.linear is not None:
            steps[-1]["sends"] = source.get(step.linear.input, INPUT)
        source |= dict.fromkeys(step.outputs, number)
    return steps


def _work(part: Partition, step: Step) -> dict[str, Any]:
    lin = step.linear
    if lin is None:
        last = part.shapes.shape[step.outputs[-1]] if step.outputs else ()
        return {"kind": "", "after": [op.kind for op in step.ops], "output": list(last)}
    bias = ["BIAS"] if lin.bias >= 0 else []
    activation = [] if lin.activation == "NONE" else [lin.activation]
    return {
        "kind": lin.kind, "id": lin.op.id, "after": [*bias, *activation, *(op.kind for op in lin.epilogue.ops)],
        "input": list(lin.input_shape), "output": list(lin.output_shape), "filters": lin.filters, "macs": lin.macs,
    }  # fmt: skip
