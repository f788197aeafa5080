"""Runs a bundle's program: trusted segments here, linear layers there, nothing published before it is checked."""

from __future__ import annotations

import time
from collections import Counter, deque
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from enclave import layerwise, native
from enclave.integrity import Checker, Geometry, NativeCheck, Policy
from enclave.link import Accelerator
from enclave.making import pair_of
from enclave.masks import MaskPool, MaskSet, Pair
from enclave.precision import Probe, judge, require
from enclave.program import Entry, Layer, Program, Segment
from enclave.rng import Rng
from enclave.schedule import Schedule, schedule
from enclave.stretch import Stretch, gathers, runnable, scales_fit
from enclave.trace import Trace
from enclave.trusted import TrustedModel
from shadownet.wire.errors import BundleError, InputError
from shadownet.wire.precision import PRECISIONS
from shadownet.wire.tensors import TensorSpec

Array = np.ndarray[Any, Any]
Shape = tuple[int, ...]
Action = Segment | Layer | list[Stretch]  # a stretch for each lane


@dataclass
class Passage:
    """One inference on its way in a lane. ``done`` counts actions, ``checked`` are the layer calls that are checked."""

    lane: int
    number: int
    tensors: dict[int, Array]
    masks: MaskSet
    checked: dict[int, bool]
    start: float
    done: int = 0

    def pass_by(self, dead: list[int]) -> None:
        """An action is done, after which nobody needs these tensors."""
        self.done += 1
        for t in dead:
            self.tensors.pop(t, None)


class Executor:
    """Holds the opened program, the masks and the link to the accelerator (None if nothing is outsourced)."""

    def __init__(
        self, program: Program, public: bytes, num_threads: int, link: Accelerator | None, mask_memory: int,
        trace: Trace,
    ) -> None:  # fmt: skip
        """``public`` is the verified public model, from which tests and checks of answers are made; b"" if none is."""
        if program.layers and link is None:
            raise BundleError("the bundle needs an accelerator and none was started")
        self.program, self.entries, self.trace = program, program.entries, trace
        self.stateful = program.stateful
        self._trusted, self._true = (
            TrustedModel(model, num_threads) if model else None for model in (program.model, program.linear)
        )
        self._link, self._rng, self._mask_memory = link, Rng(), mask_memory
        self._policy = Policy(program.checked, self._rng)
        self._checkers = {
            layer.number: Checker(layer.public, public, layer.format.exact, self._rng)
            for layer in (program.layers if program.checked else [])
        }
        self._all = dict.fromkeys(self._checkers, True)
        self._probes = [Probe(layer.public, public, layer.format.exact, self._rng) for layer in program.layers]
        self._geometries: list[Geometry] = []
        self._native_checks: dict[int, list[NativeCheck]] = {}  # by layer, one for each lane
        self._shapes: list[tuple[Shape, Shape]] = []  # of each layer's input and output
        self.lanes = 1
        self._entry: int | None = None
        self._inputs: list[Shape] = []
        self._actions: list[tuple[Action, list[int]]] = []
        self._overlap = False  # whether two inferences can be under way
        self._stretches: dict[int, Stretch] = {}  # by layer
        self.masks = MaskPool([], self._make_mask, mask_memory)
        self.seconds = 0.0

    def allocate(self, key: int, shapes: list[Shape], lanes: int = 1) -> tuple[list[TensorSpec], list[TensorSpec]]:
        """Propagate input shapes through an entry; returns its interface with concrete shapes.

        With two ``lanes``, two inferences at a time share the way (:meth:`invoke_many`) if nothing keeps state.
        Masks made for another entry or other shapes are discarded. Raises ``InputError`` if LiteRT cannot run the
        model so.
        """
        entry = self.program.entries[key]
        # Until all of it succeeds there is nothing to run: masks and pointers of other shapes would reach past what
        # belongs to them.
        self._entry, before = None, self._entry
        lanes = lanes if native.load() is not None and not self.stateful else 1
        if lanes != self.lanes:
            self.lanes, self._shapes, before = lanes, [], None
        known: dict[int, Shape] = {t: a.shape for t, a in entry.constants.items()}
        known |= {spec.index: shape for spec, shape in zip(entry.inputs, shapes, strict=True)}
        layers = dict(enumerate(self._shapes))
        for step in entry.steps:
            if isinstance(step, Segment):
                ids = [local for _, local in step.inputs]
                self._runtime().prepare(step.subgraph, ids, [known[t] for t, _ in step.inputs])
                for t, local in step.outputs:
                    known[t] = self._runtime().shape(step.subgraph, local)
            else:
                self._weights().prepare(step.pop, [0], [known[step.input]])
                own = self._output_shape(step)
                layers[step.number] = (known[step.input], own)
                known[step.output] = _broadcast(own, known.get(step.format.residual))
        if not self._is_open(layers) or key != before or shapes != self._inputs:
            self.masks = MaskPool([], self._make_mask, self._mask_memory)
            self._open(layers)
            self._compile(entry, known)
        self._entry, self._inputs = key, shapes
        return (
            [_reshaped(spec, shape) for spec, shape in zip(entry.inputs, shapes, strict=True)],
            [_reshaped(spec, known[spec.index]) for spec in entry.outputs],
        )

    def _output_shape(self, layer: Layer) -> Shape:
        """Of a layer whose pop subgraph is prepared; that one may have other channels."""
        positions = self._weights().shape(layer.pop, layer.pop_output)[:-1]
        return (*positions, layer.restore.slot.shape[1])

    def _is_open(self, layers: dict[int, tuple[Shape, Shape]]) -> bool:
        """Complete ``layers`` and tell whether the accelerator knows exactly these shapes."""
        for layer in self.program.layers:
            if layer.number not in layers:  # of entries that are not allocated: as converted
                layers[layer.number] = (self._weights().shape(layer.pop, 0), self._output_shape(layer))
        return [layers[k] for k in range(len(self.program.layers))] == self._shapes

    def _open(self, layers: dict[int, tuple[Shape, Shape]]) -> None:
        """Tell the accelerator the shapes, if they are new."""
        wanted = [layers[k] for k in range(len(self.program.layers))]
        if wanted == self._shapes:
            return
        assert self._link is not None
        self._link.open(
            [
                {
                    "signature": layer.name,
                    "input": _times(layer.stack, inp),
                    "output": _times(layer.stack, (*out[:-1], layer.slots)),
                }
                for layer, (inp, out) in zip(self.program.layers, wanted, strict=True)
            ],
            self.lanes,
        )
        self._geometries = [
            Geometry(layer.public, _times(layer.stack, inp), _times(layer.stack, (*out[:-1], layer.slots)))
            for layer, (inp, out) in zip(self.program.layers, wanted, strict=True)
        ]
        self._try()
        self._shapes = wanted

    def _try(self) -> None:
        """Have the accelerator's arithmetic tested, layer by layer. Raises ``WorkerError`` or ``IntegrityError``."""
        link, program = self._link, self.program
        assert link is not None
        require(link.precision, program.precision, any(layer.format.exact for layer in program.layers))
        for layer, probe, geometry in zip(program.layers, self._probes, self._geometries, strict=True):
            sent = probe.input(link.input(layer.number).shape)
            np.copyto(link.input(layer.number), sent)
            link.probe(layer.number, layer.name)
            excess = probe.excess(geometry, sent, link.output(layer.number), PRECISIONS[link.precision])
            judge(excess, link.precision, layer.name)

    def _compile(self, entry: Entry, known: dict[int, Shape]) -> None:
        """Gather consecutive layers that the C loop can run into stretches, and start a fresh pool of masks."""
        self._actions, self._stretches, self._native_checks = [], {}, {}
        steps = [step for step in entry.steps if isinstance(step, Layer)]
        plan = schedule(entry, known, lambda step: gathers(step) and self._fits(step, known))
        at = 0
        while at < len(plan.steps):
            end = at
            while end < len(plan.steps) and self._fits(plan.steps[end], known):
                end += 1
            if end == at:
                self._actions.append((plan.steps[at], plan.dead_after[at]))
                at += 1
                continue
            dead = [t for step in plan.dead_after[at:end] for t in step]
            self._actions.append(([self._stretch(entry, plan, at, end, lane) for lane in range(self.lanes)], dead))
            at = end
        # A layer in NumPy has the accelerator for itself.
        self._overlap = not any(isinstance(action, Layer) for action, _ in self._actions)
        self.masks = MaskPool([s.number for s in steps if s.masked], self._make_mask, self._mask_memory)

    def _fits(self, step: Segment | Layer, known: dict[int, Shape]) -> bool:
        """Whether there is a C loop that can run this step: a layer that gives something, and whose residual, if any,
        has exactly its shape."""
        if native.load() is None or not isinstance(step, Layer) or not runnable(step):
            return False
        if 0 in self._shapes[step.number][1] or not scales_fit(step, *self._shapes[step.number]):
            return False
        return step.format.residual < 0 or known[step.format.residual] == self._shapes[step.number][1]

    def _stretch(self, entry: Entry, plan: Schedule, at: int, end: int, lane: int) -> Stretch:
        layers = [step for step in plan.steps[at:end] if isinstance(step, Layer)]
        later = {spec.index for spec in entry.outputs}
        for step in plan.steps[end:]:
            later.update(plan.reads(step))
        assert self._link is not None
        checks = {
            layer.number: self._checkers[layer.number].native(
                self._geometries[layer.number], self._link.kept[lane][position % 2]
            )
            for position, layer in enumerate(layers)
            if layer.number in self._checkers
        }
        for number, check in checks.items():
            self._native_checks.setdefault(number, []).append(check)
        places = self._places(entry, plan, layers) if self.lanes == 1 else {}  # a segment's input is there once
        made = Stretch(layers, plan.windows, self._shapes, later, places, self._link, checks, lane)
        self._stretches |= dict.fromkeys((layer.number for layer in layers), made)
        return made

    def _places(self, entry: Entry, plan: Schedule, layers: list[Layer]) -> dict[int, Array]:
        """Results of ``layers`` that one segment alone reads, and where it reads them: there they can be stored."""
        found: dict[int, Array] = {}
        outputs = {layer.output for layer in layers} - {spec.index for spec in entry.outputs}
        readers = Counter(t for step in plan.steps for t in plan.reads(step))
        fixed = {spec.index for spec in entry.inputs} | set(entry.constants)
        fixed |= {step.output for step in plan.steps if isinstance(step, Layer)}
        for step in plan.steps:
            if isinstance(step, Segment) and fixed.issuperset(step.reads()):  # others may have to be prepared again
                wanted = [(t, local) for t, local in step.inputs if t in outputs and readers[t] == 1]
                found |= {t: self._runtime().input(step.subgraph, local) for t, local in wanted}
        return found

    def invoke(self, inputs: list[Array]) -> list[Array]:
        """One inference of the allocated entry. ``inputs`` are private copies in its order; returns the outputs,
        which stay valid until the next call."""
        return self.invoke_many([inputs])[0]

    def invoke_many(self, requests: list[list[Array]]) -> list[list[Array]]:
        """Many inferences. With two lanes two are under way at a time: while the accelerator works on one, the enclave
        works on the other. Results are those of one after the other; of several they are copies."""
        if self._entry is None:
            raise InputError("call allocate_tensors() first")
        start = time.perf_counter()
        waiting, free = deque(enumerate(requests)), list(range(self.lanes if self._overlap else 1))
        under_way: dict[int, Passage] = {}
        results: list[list[Array]] = [[] for _ in requests]
        try:
            while waiting or under_way:
                if waiting and free:
                    lane = free.pop()
                    passage = under_way[lane] = self._enter(lane, *waiting.popleft())
                else:
                    assert self._link is not None
                    lane = self._link.run(self.trace)
                    passage = under_way[lane]
                    self._collect(passage)
                if not self._advance(passage):
                    results[passage.number] = self._leave(passage, copied=len(requests) > 1)
                    del under_way[lane]
                    free.append(lane)
        except (InputError, MemoryError):  # others end the session
            if self._link is not None:
                self._link.settle()
            raise
        self.seconds += time.perf_counter() - start
        return results

    def _enter(self, lane: int, number: int, inputs: list[Array]) -> Passage:
        start = time.perf_counter()
        assert self._entry is not None
        tensors = accept(self.program.entries[self._entry], inputs)
        return Passage(lane, number, tensors, self._take_masks(), self._choose(lane), start)

    def _advance(self, passage: Passage) -> bool:
        """Run what needs no accelerator up to the next stretch and begin it; False if there is none."""
        for action, dead in self._actions[passage.done :]:
            if isinstance(action, list):
                action[passage.lane].begin(passage.tensors, passage.masks)
                return True
            began = time.perf_counter()
            if isinstance(action, Segment):
                self._segment(action, passage.tensors)
                name, which = "trusted segment", {"subgraph": action.subgraph}
            else:
                passage.tensors[action.output] = self._linear(action, passage)
                name, which = action.name, {}
            if self.trace.enabled:
                held = sum(value.nbytes for value in passage.tensors.values())
                self.trace.work(name, began, which | {"held": held})
            passage.pass_by(dead)
        return False

    def _collect(self, passage: Passage) -> None:
        """Take the results of the stretch that is through."""
        stretches, dead = self._actions[passage.done]
        assert isinstance(stretches, list)
        passage.tensors.update(stretches[passage.lane].results())
        passage.pass_by(dead)

    def _leave(self, passage: Passage, copied: bool) -> list[Array]:
        assert self._entry is not None
        self.masks.recycle(passage.masks)
        self.trace.work("inference", passage.start)
        outputs = [passage.tensors[spec.index] for spec in self.program.entries[self._entry].outputs]
        return [np.array(value) for value in outputs] if copied else outputs

    def _take_masks(self) -> MaskSet:
        start, made = time.perf_counter(), self.masks.made_inline
        taken = self.masks.take()
        if self.trace.enabled:
            sizes = {self.program.layers[number].name: size for number, size in taken.sizes().items()}
            self.trace.work("make masks" if self.masks.made_inline > made else "take masks", start, sizes)
        return taken

    def _choose(self, lane: int) -> dict[int, bool]:
        """Choose the layer calls of an inference that are checked."""
        if self._policy.share >= 1 or not self._checkers:
            return self._all
        chosen = dict(zip(self._checkers, self._policy.chosen(len(self._checkers)), strict=True))
        for number, checks in self._native_checks.items():
            checks[lane].record["active"] = chosen[number]
        return chosen

    def _segment(self, segment: Segment, tensors: dict[int, Array]) -> None:
        inputs, outputs = ([local for _, local in side] for side in (segment.inputs, segment.outputs))
        results = self._runtime().run(segment.subgraph, inputs, [tensors[t] for t, _ in segment.inputs], outputs)
        if self.lanes > 1:  # results must outlive the segment's next run
            results = [np.array(result) for result in results]
        tensors.update(zip((t for t, _ in segment.outputs), results, strict=True))

    def _linear(self, layer: Layer, passage: Passage) -> Array:
        """One linear layer in NumPy."""
        assert self._link is not None
        holds = None
        if layer.number in self._checkers and passage.checked[layer.number]:
            holds = partial(self._checkers[layer.number].holds, self._geometries[layer.number])
        return layerwise.run(layer, passage.tensors, passage.masks, self._link, self._weights(), holds, self.trace)

    def _make_mask(self, number: int) -> Pair:
        layer = self.program.layers[number]
        push, pop = pair_of(layer, self._shapes[number][0], self._weights(), self._rng)
        own = self._stretches.get(number)
        return own.arrange(number, push, pop) if own else (push, pop)

    @property
    def nbytes(self) -> int:
        """What the enclave holds of its own: weights and plan, masks, buffers; not LiteRT's, not Python's."""
        layers = self.program.layers
        own = len(self.program.model) + len(self.program.linear)
        own += self.masks.held + (self._link.nbytes if self._link else 0)
        own += sum(array.nbytes for layer in layers for array in layer.restore.to_blobs().values())
        stretches = {id(s): s for action, _ in self._actions if isinstance(action, list) for s in action}
        return own + sum(s.nbytes for s in stretches.values())

    def reset(self) -> None:
        if self._trusted is not None:
            self._trusted.reset()

    def _runtime(self) -> TrustedModel:
        assert self._trusted is not None
        return self._trusted

    def _weights(self) -> TrustedModel:
        assert self._true is not None
        return self._true


def accept(entry: Entry, inputs: list[Array]) -> dict[int, Array]:
    """What an inference begins with, by tensor. Raises ``InputError`` for inputs that are not finite."""
    tensors = dict(entry.constants)
    for spec, value in zip(entry.inputs, inputs, strict=True):
        if value.dtype.kind in "fc" and not native.finite(value):
            raise InputError(f"input {spec.name!r} holds values that are not finite")
        tensors[spec.index] = value
    return tensors


def _broadcast(shape: Shape, residual: Shape | None) -> Shape:
    """The shape of a sum; after resizing a residual may no longer have the layer's own."""
    try:
        return shape if residual is None else np.broadcast_shapes(shape, residual)
    except ValueError:
        raise InputError(f"these shapes lead to adding {list(residual or ())} to {list(shape)}") from None


def _times(count: int, shape: Shape) -> Shape:
    """The shape of ``count`` limbs along the first dimension."""
    return shape if count == 1 else (count * shape[0], *shape[1:])


def _reshaped(spec: TensorSpec, shape: tuple[int, ...]) -> TensorSpec:
    return TensorSpec(**{**vars(spec), "shape": shape})
