"""Exact counts of one inference: what each side computes, what crosses, what the enclave holds. No times, no machine.

They are read off what conversion makes, the public model and the sealed program, so they need no run. The enclave
counts the same things while it runs (:func:`counted`); a test holds both equal.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from enclave import container, keys, sealing
from enclave.integrity import VECTORS
from enclave.program import Entry, Layer, Program, Segment
from enclave.stretch import runnable
from shadownet.graph import Graph, parse
from shadownet.simulator.work import Work, peak, work_of
from shadownet.wire.tensors import nbytes

Array = np.ndarray[Any, Any]

MAIN = 0  # the entry that is counted


@dataclass(frozen=True)
class Step:
    """One outsourced layer, or one trusted segment (then nothing crosses).

    ``sent`` and ``received`` are elements that cross, float32 each; ``lookups`` terms added up to restore; ``check``
    multiply-adds of checking the answer. ``mask_bytes`` are streamed while it runs, and ``offline`` is the work of
    making them. ``held`` is bytes of the model's tensors that exist while the step runs, ``across`` of those that also
    exist before and after it; ``arena`` bytes that a segment needs for tensors of its own.
    """

    name: str
    accelerator: tuple[Work, ...] = ()
    enclave: tuple[Work, ...] = ()
    offline: tuple[Work, ...] = ()
    sent: int = 0
    received: int = 0
    lookups: int = 0
    check: int = 0
    mask_bytes: int = 0
    held: int = 0
    across: int = 0
    arena: int = 0

    @property
    def crosses(self) -> bool:
        return bool(self.accelerator)

    @property
    def bytes_out(self) -> int:
        return 4 * self.sent

    @property
    def bytes_in(self) -> int:
        return 4 * self.received

    def totals(self, checked: float) -> dict[str, float]:
        """One number for each thing counted, with this share of answers checked."""
        return {
            "bytes_out": self.bytes_out,
            "bytes_in": self.bytes_in,
            "accelerator_macs": sum(work.macs for work in self.accelerator),
            "accelerator_elements": sum(work.elements for work in self.accelerator),
            "enclave_macs": sum(work.macs for work in self.enclave) + checked * self.check,
            "enclave_elements": sum(w.elements for w in self.enclave) + self.sent + self.received + self.lookups,
            "mask_bytes": self.mask_bytes,
            "mask_macs": sum(work.macs for work in self.offline),
        }


@dataclass(frozen=True)
class Counts:
    """``checked`` is the share of answers that is checked. ``weights`` are bytes of the trusted model (true weights,
    from which masks are made), ``tables`` of everything else that is sealed; both are unsealed once, at the start.
    ``interface`` is bytes of the model's inputs and outputs."""

    steps: tuple[Step, ...]
    checked: float
    weights: int
    tables: int
    interface: int

    @property
    def crossings(self) -> int:
        return sum(step.crosses for step in self.steps)

    @property
    def mask_bytes(self) -> int:
        return sum(step.mask_bytes for step in self.steps)

    def totals(self) -> dict[str, float]:
        """One number for each thing counted."""
        steps = self.layers()
        added = {name: sum(step[name] for step in steps) for name in Step("").totals(0.0)}
        return {
            "crossings": self.crossings,
            **added,
            "sealed_bytes": self.weights + self.tables,
            "working_set": max((step.held for step in self.steps), default=0),
        }

    def layers(self) -> list[dict[str, Any]]:
        """The same for each step, in order: ``held`` over the steps is the working set over time."""
        return [{"name": s.name, **s.totals(self.checked), "held": s.held, "arena": s.arena} for s in self.steps]


def of_bundle(bundle: Path, key: Path) -> Counts:
    """Count a bundle's main entry. Opens the sealed half, so it is for the owner. Raises ``BundleError``."""
    header, plaintext = sealing.unseal(bundle, keys.load(key))
    program, blobs = container.unpack(plaintext)
    public = b"" if header.accelerator is None else sealing.public_half(bundle, header)
    return of_program(program, blobs, public)


def of_program(record: dict[str, Any], blobs: dict[str, Array], accelerator: bytes) -> Counts:
    """Count the main entry of a sealed program (``record`` and ``blobs``) and its public model, b"" for none."""
    program = Program.parse(record, blobs, mask_input=False)
    public = parse(accelerator) if accelerator else None
    trusted, linear = (parse(model) if model else None for model in (program.model, program.linear))
    entry = program.entries[MAIN]
    dtypes = [str(layer["format"].get("dtype", "float32")) for layer in record["layers"]]
    steps = _held(entry, _Counter(public, trusted, linear).steps(entry), trusted, dtypes)
    weights = len(program.model) + len(program.linear)
    tables = sum(blob.nbytes for blob in blobs.values()) - weights
    return Counts(steps, program.checked if program.layers else 0.0, weights, tables,
                  sum(spec.nbytes for spec in (*entry.inputs, *entry.outputs)))  # fmt: skip


class _Counter:
    def __init__(self, public: Graph | None, trusted: Graph | None, linear: Graph | None) -> None:
        self._public, self._trusted, self._linear = public, trusted, linear
        self._places = {s.key: s.subgraph for s in public.signatures} if public else {}

    def steps(self, entry: Entry) -> list[Step]:
        return [self._segment(s) if isinstance(s, Segment) else self._layer(s) for s in entry.steps]

    def _inside(self, subgraph: int) -> tuple[Work, ...]:
        assert self._linear is not None
        return work_of(self._linear.subgraphs[subgraph])

    def _segment(self, segment: Segment) -> Step:
        assert self._trusted is not None
        graph = self._trusted.subgraphs[segment.subgraph]
        return Step(f"segment {segment.subgraph}", enclave=work_of(graph), arena=peak(graph))

    def _layer(self, layer: Layer) -> Step:
        assert self._public is not None
        graph = self._public.subgraphs[self._places[layer.name]]
        (source,), (target,) = (([graph.tensors[t].shape for t in side]) for side in (graph.inputs, graph.outputs))
        sent, received = math.prod(source), math.prod(target)
        positions = received // (layer.stack * layer.slots)
        terms, n = layer.restore.slot.shape
        step = Step(
            layer.name, work_of(graph), sent=sent, received=received, lookups=positions * n * terms,
            check=checking(vars(layer.public), source, target),
            enclave=self._inside(layer.private[0]) if layer.private else (),
        )  # fmt: skip
        return self._masked(step, layer, sent // layer.stack, positions) if layer.masked else step

    def _masked(self, step: Step, layer: Layer, inputs: int, positions: int) -> Step:
        """Add a layer's mask pair. Numbers have 8 bytes in Z_p, as have sums of integers that NumPy restores."""
        assert self._linear is not None
        graph = self._linear.subgraphs[layer.pop]
        channels = graph.tensors[layer.pop_output].shape[-1]
        if layer.residues is not None:
            runs, push = layer.residues.pop.digits.count, 8 * inputs
            pop = 8 * positions * channels // layer.residues.pop.weights.count
        else:
            runs, push = 1, 4 * inputs
            wide = layer.format.exact and not runnable(layer)
            pop = (8 if wide else 4) * positions * channels // layer.pop_limbs.count
        made = (Work("MASK", 0, inputs), *(work.times(runs) for work in work_of(graph)))
        return replace(step, mask_bytes=push + pop, offline=made)


def checking(geometry: dict[str, Any], source: tuple[int, ...], target: tuple[int, ...]) -> int:
    """Multiply-adds of Freivalds' check (``enclave.integrity``): s Y, and (s W) x with one filter per vector.

    ``source`` and ``target`` are the shapes that cross; ``geometry`` as ``LinearOp.geometry`` gives it."""
    taps = math.prod(geometry["kernel"])
    if geometry["kind"] == "TRANSPOSE_CONV":
        right = math.prod(source) * taps
    elif geometry["kind"] in ("FULLY_CONNECTED", "BATCH_MATMUL"):
        right = math.prod(source)
    else:
        right = math.prod(target[:-1]) * taps * source[-1]
    return VECTORS * (right + math.prod(target))


def _held(entry: Entry, steps: list[Step], trusted: Graph | None, dtypes: list[str]) -> tuple[Step, ...]:
    """Fill in what is alive during each step: it is made when it is computed and goes after its last reader.

    ``dtypes`` are those of the layers' results."""
    alive = {t: array.nbytes for t, array in entry.constants.items()}
    alive |= {spec.index: spec.nbytes for spec in entry.inputs}
    done = []
    for plan, step, dead in zip(entry.steps, steps, entry.dead_after, strict=True):
        made = _made(plan, step, trusted, dtypes)
        after = {t for t in alive if t not in dead and t not in made}
        across = sum(alive[t] for t in after)
        alive |= made
        done.append(replace(step, held=sum(alive.values()), across=across))
        for t in dead:
            alive.pop(t, None)
    return tuple(done)


def _made(plan: Segment | Layer, step: Step, trusted: Graph | None, dtypes: list[str]) -> dict[int, int]:
    """Bytes of the tensors that a step makes."""
    if isinstance(plan, Segment):
        assert trusted is not None
        tensors = trusted.subgraphs[plan.subgraph].tensors
        return {t: nbytes(tensors[local].shape, tensors[local].dtype) for t, local in plan.outputs}
    positions, n = step.received // (plan.stack * plan.slots), plan.restore.slot.shape[1]
    return {plan.output: nbytes((positions, n), dtypes[plan.number])}


def counted(events: Iterable[dict[str, Any]]) -> dict[str, dict[str, int]]:
    """What the enclave counted in one traced inference, by step: ``sent``, ``received`` and ``masks`` in bytes, and,
    where a step is not part of a longer run of the C loop, ``held``.

    ``events`` are those of ``Session.events``; their times are left out.
    """
    found: dict[str, dict[str, int]] = defaultdict(dict)
    for event in events:
        counts = event.get("counts", {})
        if event["name"] in ("take masks", "make masks"):
            for name, size in counts.items():
                found[name]["masks"] = size
        elif event["kind"] == "wait":
            found[event["name"]] |= {"sent": event["sent"], "received": event["received"]}
        elif "held" in counts:
            name = f"segment {counts['subgraph']}" if "subgraph" in counts else event["name"]
            found[name]["held"] = counts["held"]
    return found
