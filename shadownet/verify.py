"""Does the bundle compute what the original model computes? Both run on the same inputs; outputs are compared.

Tolerances: float outputs within :func:`tolerance_for` of the output's largest magnitude; integer outputs differ in at
most 0.5 % of the elements and by at most 2 steps; the top class of a score vector agrees. LiteRT's kernel sets differ
from each other on quantised models, so agreeing with its default kernels or with its reference kernels is enough.
"""

from __future__ import annotations

import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from shadownet.analysis import Reference
from shadownet.graph import Subgraph
from shadownet.partition import Partition
from shadownet.progress import track
from shadownet.session import Session

Array = np.ndarray[Any, Any]

TOLERANCE = 1e-3  # float32 masks at 8 times the activations' rms cost up to a few 1e-4
INT_SHARE, INT_STEPS = 5e-3, 2

# Ops whose output jumps when an input moves a little: behind them, a difference says nothing.
JUMPS = {
    "ARG_MAX", "ARG_MIN", "TOPK_V2", "NON_MAX_SUPPRESSION_V4", "NON_MAX_SUPPRESSION_V5", "GREATER", "GREATER_EQUAL",
    "LESS", "LESS_EQUAL", "EQUAL", "NOT_EQUAL", "FLOOR", "CEIL", "ROUND", "SIGN", "FLOOR_DIV", "FLOOR_MOD", "CAST",
    "WHERE", "UNIQUE", "BUCKETIZE", "MULTINOMIAL",
}  # fmt: skip


def tolerance_for(options: dict[str, Any]) -> float:
    """What a bundle with these options may err, relative to an output's largest magnitude."""
    lost = 10 * float(options.get("delta_tolerance", 0.0))  # in each layer's weights, because the user wants it
    if not options.get("bits"):
        return max(TOLERANCE, lost)
    # Rounding to b bits errs by up to 2^-b of a tensor's largest value, and a network passes that on: outputs of the
    # worst of our test models were off by 400 times that at 12/12 as at 16/16. Five times as much is allowed: 0.03 at
    # 16 bits, 0.5 at 12, where of float outputs the top class is what counts.
    return max(TOLERANCE, lost, 2000 * 2.0 ** -min(int(bits) for bits in str(options["bits"]).split("/")))


@dataclass(frozen=True)
class Verdict:
    """``worst`` is the largest float difference relative to the output's largest magnitude, ``differing`` the
    largest share of integer elements that differ, ``top`` (agreeing, compared) top classes, ``why`` names the first
    failure, ``uncertain`` outputs behind ops that jump, which are reported and not judged."""

    ok: bool
    worst: float
    differing: float
    top: tuple[int, int]
    samples: int
    kernels: str
    why: str = ""
    uncertain: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def verify(
    bundle: str | os.PathLike[str], key: Path, reference: Reference, partitions: dict[int, Partition],
    samples: dict[int, list[list[Array]]], tolerance: float = TOLERANCE, **session: Any,
) -> Verdict:  # fmt: skip
    """Run ``samples`` (per entry) through the bundle and the original. Raises what running raises."""
    results: dict[str, list[Verdict]] = {"default": [], "reference": []}
    running = Session(bundle, key, **session)
    try:
        for entry, part in partitions.items():
            running.allocate(entry, [a.shape for a in samples[entry][0]])
            outputs = []
            for sample in track(samples[entry], "verifying"):
                running.reset()
                outputs.append(running.invoke(sample))
            jumps = _behind_jumps(part.graph)
            for kernels in results:
                expected = []
                for sample in track(samples[entry], "running the original"):
                    reference.reset()
                    expected.append(reference.run(entry, sample, kernels))
                if all(e is not None for e in expected):
                    results[kernels].append(judge(part.graph, expected, outputs, jumps, tolerance, kernels))
    finally:
        running.close()
    merged = [_merge(verdicts) for verdicts in results.values() if len(verdicts) == len(partitions)]
    return next((v for v in merged if v.ok), merged[0])


def judge(
    graph: Subgraph, expected: list[Any], got: list[list[Array]], jumps: set[int], tolerance: float, kernels: str
) -> Verdict:
    """Compare outputs sample by sample."""
    worst = differing = 0.0
    agree = compared = 0
    why, uncertain = "", []
    # An output's size is its largest value over all samples: a silent input may leave nothing but noise.
    sizes = [max(_largest(sample[i]) for sample in expected) for i in range(len(graph.outputs))]
    for want, have in zip(expected, got, strict=True):
        for tensor, size, a, b in zip(graph.outputs, sizes, want, have, strict=True):
            name = graph.tensors[tensor].name
            problem, error, share = compare(a, b, tolerance, size)
            if not problem and len(want) == 1 and a.ndim == 2 and a.shape[-1] > 1 and a.dtype.kind in "fiu":
                compared += 1
                agree += int(a[0].argmax() == b[0].argmax())
                problem = (
                    "" if a[0].argmax() == b[0].argmax() or _tie(a[0], b[0], tolerance) else "the top class differs"
                )
            if problem and tensor in jumps:
                uncertain.append(name)
                continue
            worst, differing = max(worst, error), max(differing, share)
            if problem and not why:
                why = f"output {name!r} {problem}"
    return Verdict(not why, worst, differing, (agree, compared), len(got), kernels, why, tuple(sorted(set(uncertain))))


def _largest(a: Array) -> float:
    """The largest finite magnitude of a float output."""
    return float(np.abs(a[np.isfinite(a)]).max(initial=0)) if a.dtype.kind in "fc" else 0.0


def compare(a: Array, b: Array, tolerance: float, size: float) -> tuple[str, float, float]:
    """(problem or "", float error relative to ``size``, share of differing integers) of one output."""
    if a.shape != b.shape or a.dtype.kind != b.dtype.kind:
        return f"has shape {list(b.shape)} {b.dtype.name}, expected {list(a.shape)} {a.dtype.name}", 0.0, 0.0
    if a.size == 0:
        return "", 0.0, 0.0
    if a.dtype.kind in "fc":
        if not np.array_equal(np.isfinite(a), np.isfinite(b)):
            return "is not finite in the same places", 0.0, 0.0
        finite = np.isfinite(a)
        error = float(np.abs(a[finite].astype(np.complex128) - b[finite]).max(initial=0)) / max(size, 1e-6)
        return (f"differs by {error:.1e} of its largest value" if error > tolerance else ""), error, 0.0
    if a.dtype.kind in "iu":
        steps = np.abs(a.astype(np.int64) - b.astype(np.int64))
        share = float((steps > 0).mean())
        bad = share > INT_SHARE or steps.max() > INT_STEPS
        return (f"differs in {share:.1%} of its values, by up to {steps.max()} steps" if bad else ""), 0.0, share
    same = np.array_equal(a, b)
    return ("" if same else "differs"), 0.0, float(not same)


def _tie(a: Array, b: Array, tolerance: float) -> bool:
    """Whether the two top classes are equally likely as far as the tolerance sees."""
    first, second = int(a.argmax()), int(b.argmax())
    gap = abs(float(a[first]) - float(a[second]))
    return gap <= (tolerance * float(np.abs(a).max()) if a.dtype.kind == "f" else INT_STEPS)


def _behind_jumps(graph: Subgraph) -> set[int]:
    """Outputs that depend on an op of ``JUMPS``, on a custom op or on control flow."""
    reached: set[int] = set()
    for op in graph.ops:
        if op.kind in JUMPS or op.kind.startswith("CUSTOM") or op.subgraphs() or reached.intersection(op.reads()):
            reached.update(op.outputs)
    return reached & set(graph.outputs)


def _merge(verdicts: list[Verdict]) -> Verdict:
    return Verdict(
        all(v.ok for v in verdicts), max(v.worst for v in verdicts), max(v.differing for v in verdicts),
        (sum(v.top[0] for v in verdicts), sum(v.top[1] for v in verdicts)), sum(v.samples for v in verdicts),
        verdicts[0].kernels, next((v.why for v in verdicts if v.why), ""),
        tuple(sorted({u for v in verdicts for u in v.uncertain})),
    )  # fmt: skip
