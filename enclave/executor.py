"""Runs a bundle's program: trusted segments here, linear layers there, nothing published before it is checked."""

from __future__ import annotations

import time
from collections import Counter
from typing import Any

import numpy as np

from enclave import formats, native, stretch
from enclave.exact import Residues
from enclave.integrity import Checker, Geometry, NativeCheck, Policy
from enclave.link import Accelerator
from enclave.masks import MaskPool, MaskSet, Pair
from enclave.program import Entry, Layer, Program, Segment
from enclave.rng import Rng
from enclave.stretch import Stretch, runnable
from enclave.trace import Trace
from enclave.trusted import TrustedModel
from shadownet.wire.errors import BundleError, InputError, IntegrityError
from shadownet.wire.tensors import TensorSpec

Array = np.ndarray[Any, Any]
Shape = tuple[int, ...]
Action = Segment | Layer | list[Stretch]  # a stretch for each lane


class Executor:
    """Holds the opened program, the masks and the link to the accelerator (None if nothing is outsourced)."""

    def __init__(
        self, program: Program, public: bytes, num_threads: int, link: Accelerator | None, mask_memory: int,
        trace: Trace,
    ) -> None:  # fmt: skip
        """``public`` is the verified public model, from which checks of answers are made; b"" if there are none."""
        if program.layers and link is None:
            raise BundleError("the bundle needs an accelerator and none was started")
        self.program, self.trace = program, trace
        self._trusted, self._true = (
            TrustedModel(model, num_threads) if model else None for model in (program.model, program.linear)
        )
        self._link, self._rng, self._mask_memory = link, Rng(), mask_memory
        self._policy = Policy(program.checked, self._rng)
        self._checkers = {
            layer.number: Checker(layer.public, public, layer.format.exact, self._rng)
            for layer in (program.layers if program.checked else [])
        }
        self._geometries: dict[int, Geometry] = {}
        self._native_checks: dict[int, list[NativeCheck]] = {}  # by layer, one for each lane
        self._shapes: list[tuple[Shape, Shape]] = []  # of each layer's input and output
        self.lanes = 1
        self._entry: int | None = None
        self._inputs: list[Shape] = []
        self._actions: list[tuple[Action, list[int]]] = []
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
        lanes = lanes if native.load() is not None and not self.program.stateful else 1
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
        self._shapes = wanted

    def _compile(self, entry: Entry, known: dict[int, Shape]) -> None:
        """Gather consecutive layers that the C loop can run into stretches, and start a fresh pool of masks."""
        self._actions, self._stretches, self._geometries, self._native_checks = [], {}, {}, {}
        for number in self._checkers:
            layer, (source, target) = self.program.layers[number], self._shapes[number]
            crossing = _times(layer.stack, source), _times(layer.stack, (*target[:-1], layer.slots))
            self._geometries[number] = Geometry(layer.public, *crossing)
        steps = [step for step in entry.steps if isinstance(step, Layer)]
        native_run = native.load() is not None
        at = 0
        while at < len(entry.steps):
            end = at
            while end < len(entry.steps) and native_run and self._fits(entry.steps[end], known):
                end += 1
            if end == at:
                self._actions.append((entry.steps[at], entry.dead_after[at]))
                at += 1
                continue
            dead = [t for step in entry.dead_after[at:end] for t in step]
            self._actions.append(([self._stretch(entry, at, end, lane) for lane in range(self.lanes)], dead))
            at = end
        self.masks = MaskPool([s.number for s in steps if s.masked], self._make_mask, self._mask_memory)

    def _fits(self, step: Segment | Layer, known: dict[int, Shape]) -> bool:
        """Whether the C loop can run this step: a float layer whose residual, if any, has exactly its shape."""
        if not isinstance(step, Layer) or not runnable(step):
            return False
        return step.format.residual < 0 or known[step.format.residual] == self._shapes[step.number][1]

    def _stretch(self, entry: Entry, at: int, end: int, lane: int) -> Stretch:
        layers = [step for step in entry.steps[at:end] if isinstance(step, Layer)]
        later = {spec.index for spec in entry.outputs}
        for step in entry.steps[end:]:
            later.update(step.reads())
        assert self._link is not None
        checks = {
            layer.number: self._checkers[layer.number].native(self._geometries[layer.number], self._link.kept[lane])
            for layer in layers
            if layer.number in self._checkers
        }
        for number, check in checks.items():
            self._native_checks.setdefault(number, []).append(check)
        places = {} if lane else self._places(entry, layers)
        made = Stretch(layers, self._shapes, later, places, self._link, checks, lane)
        self._stretches |= dict.fromkeys((layer.number for layer in layers), made)
        return made

    def _places(self, entry: Entry, layers: list[Layer]) -> dict[int, Array]:
        """Results of ``layers`` that one segment alone reads, and where it reads them: there they can be stored."""
        found: dict[int, Array] = {}
        outputs = {layer.output for layer in layers} - {spec.index for spec in entry.outputs}
        readers = Counter(t for step in entry.steps for t in step.reads())
        fixed = {spec.index for spec in entry.inputs} | set(entry.constants)
        fixed |= {step.output for step in entry.steps if isinstance(step, Layer)}
        for step in entry.steps:
            if isinstance(step, Segment) and fixed.issuperset(step.reads()):  # others may have to be prepared again
                wanted = [(t, local) for t, local in step.inputs if t in outputs and readers[t] == 1]
                found |= {t: self._runtime().input(step.subgraph, local) for t, local in wanted}
        return found

    def invoke(self, inputs: list[Array]) -> list[Array]:
        """One inference of the allocated entry. ``inputs`` are private copies in its order; returns the outputs,
        which stay valid until the next call."""
        return self.invoke_many([inputs])[0]

    def invoke_many(self, requests: list[list[Array]]) -> list[list[Array]]:
        """As many inferences as there are lanes, or fewer: while the accelerator works on one, the enclave works on
        the other. Results are those of one after the other."""
        if self._entry is None:
            raise InputError("call allocate_tensors() first")
        start = time.perf_counter()
        entry = self.program.entries[self._entry]
        tensors = [accept(entry, inputs) for inputs in requests]
        masks = [self.masks.take() for _ in requests]
        self._choose()
        for action, dead in self._actions:
            self._act(action, tensors, masks)
            for found in tensors:
                for t in dead:
                    found.pop(t, None)
        for used in masks:
            self.masks.recycle(used)
        self.seconds += time.perf_counter() - start
        return [[found[spec.index] for spec in entry.outputs] for found in tensors]

    def _act(self, action: Action, tensors: list[dict[int, Array]], masks: list[MaskSet]) -> None:
        if isinstance(action, list):
            stretch.run(action[: len(tensors)], tensors, masks, self.trace)
            return
        for found, own in zip(tensors, masks, strict=True):
            began = time.perf_counter()
            if isinstance(action, Segment):
                self._segment(action, found, copied=len(tensors) > 1)
                self.trace.add(f"segment {action.subgraph}", "enclave", began)
            else:
                found[action.output] = self._linear(action, found, own)
                self.trace.add(action.name, "enclave", began)

    def _choose(self) -> None:
        """Choose the layer calls that are checked; inferences under way at the same time share the choice."""
        if self._checkers:
            self._chosen = dict(zip(self._checkers, self._policy.chosen(len(self._checkers)), strict=True))
        if self._policy.share < 1:
            for number, checks in self._native_checks.items():
                for check in checks:
                    check.record["active"] = self._chosen[number]

    def _check(self, layer: Layer, sent: Array, answer: Array) -> None:
        """Raises ``IntegrityError`` if the layer's turn is checked and the answer does not belong to what was sent."""
        if layer.number not in self._checkers or not self._chosen[layer.number]:
            return
        if not self._checkers[layer.number].holds(self._geometries[layer.number], sent, answer):
            assert self._link is not None
            self._link.refuse(layer.name)

    def _segment(self, segment: Segment, tensors: dict[int, Array], copied: bool) -> None:
        """``copied``: results must outlive the segment's next run."""
        inputs, outputs = ([local for _, local in side] for side in (segment.inputs, segment.outputs))
        results = self._runtime().run(segment.subgraph, inputs, [tensors[t] for t, _ in segment.inputs], outputs)
        if copied:
            results = [np.array(result) for result in results]
        tensors.update(zip((t for t, _ in segment.outputs), results, strict=True))

    def _linear(self, layer: Layer, tensors: dict[int, Array], masks: MaskSet) -> Array:
        """Mask, dispatch, check, restore, unmask, finish one linear layer, in NumPy."""
        link = self._link
        assert link is not None
        if layer.residues is not None:
            return self._exact(layer, layer.residues, tensors, masks)
        encoded, context = formats.encode(layer.format, tensors[layer.input])
        sent = layer.restore.shuffle(encoded)
        if layer.masked:
            sent = sent + masks.push(layer.number)
        np.copyto(link.input(layer.number), sent)
        began = time.perf_counter()
        link.call(layer.number, layer.name)
        self.trace.add(layer.name, "accelerator", began, bytes_sent=4 * sent.size)
        answer = link.read(layer.number, layer.name)
        self._check(layer, sent, answer)
        y = layer.restore.apply(layer.limbs.join(answer) if layer.format.exact else answer)
        if layer.masked:
            y -= masks.pop(layer.number)
        self._add_private(layer, encoded, y)
        return layer.format.decode(y, context, tensors.get(layer.format.residual))

    def _exact(self, layer: Layer, residues: Residues, tensors: dict[int, Array], masks: MaskSet) -> Array:
        """The same in Z_p: what crosses is uniform, what comes back is refused unless it may be right."""
        link, number = self._link, layer.number
        assert link is not None
        encoded, context = formats.encode(layer.format, tensors[layer.input])
        target = link.input(number)
        # What is checked is private, not read back from outside.
        sent = link.kept[0][: target.size].reshape(target.shape)
        residues.send(layer.restore.shuffle(encoded), masks.push(number) if layer.masked else None, sent)
        np.copyto(target, sent)
        began = time.perf_counter()
        link.call(number, layer.name)
        self.trace.add(layer.name, "accelerator", began, bytes_sent=target.nbytes)
        answer = link.read(number, layer.name)
        if not residues.possible(answer):
            raise IntegrityError(f"the accelerator's answer for layer {layer.name} is impossible")
        self._check(layer, sent, answer)
        y = residues.receive(answer, layer.restore, masks.pop(number) if layer.masked else None)
        self._add_private(layer, encoded, y)
        return layer.format.decode(y, context, tensors.get(layer.format.residual))

    def _add_private(self, layer: Layer, encoded: Array, y: Array) -> None:
        """Add what the enclave keeps of a layer's weights to itself, in place."""
        if layer.private is not None:
            own, output, limbs_ = layer.private
            (part,) = self._weights().run(own, [0], [encoded.astype(np.float32)], [output])
            y += limbs_.join(part) if layer.format.exact else part

    def _make_pad(self, layer: Layer, residues: Residues) -> Pair:
        """A one-time pad, as it will be added, and the layer's true linear image of it mod p."""
        order = layer.restore.order
        push = residues.pad(self._rng, self._shapes[layer.number][0])
        # Restored late, the pop mask is the public rows' image of the pad, which they take as it is sent.
        natural = push.copy() if order is None or residues.late else push[..., np.argsort(order)]
        digits = np.empty((residues.pop.digits.count, *push.shape), np.float32)
        residues.pop.digits.cut(natural, digits)
        # Copies: each run leaves its result where the last one was.
        parts = [np.array(self._weights().run(layer.pop, [0], [digit], [layer.pop_output])[0]) for digit in digits]
        return push, residues.image(parts)

    def _make_mask(self, number: int) -> Pair:
        """Draw a push mask, as it will be sent, and compute its pop mask with the layer's true weights."""
        layer = self.program.layers[number]
        if layer.residues is not None:
            return self._make_pad(layer, layer.residues)
        shape, order = self._shapes[number][0], layer.restore.order
        if layer.format.exact:
            push = self._rng.integers(-formats.MASK_BOUND, formats.MASK_BOUND + 1, shape).astype(np.float32)
        else:
            push = self._rng.normal(layer.sigma, shape)
        natural = push if order is None else push[..., np.argsort(order)]
        (pop,) = self._weights().run(layer.pop, [0], [natural], [layer.pop_output])
        if layer.format.exact:
            return push, layer.pop_limbs.join(pop)
        own = self._stretches.get(number)
        return own.arrange(number, push, pop) if own else (push, pop)

    @property
    def nbytes(self) -> int:
        """What the enclave holds of its own: weights and plan, masks, buffers; not LiteRT's, not Python's."""
        layers = self.program.layers
        own = (
            len(self.program.model)
            + len(self.program.linear)
            + self.masks.held
            + (self._link.nbytes if self._link else 0)
        )
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
        if value.dtype.kind in "fc" and not _finite(value):
            raise InputError(f"input {spec.name!r} holds values that are not finite")
        tensors[spec.index] = value
    return tensors


def _finite(value: Array) -> bool:
    """Whether all of it is; one sum tells in most cases, and only a sum that is not finite needs the longer look."""
    with np.errstate(over="ignore", invalid="ignore"):
        return bool(np.isfinite(value.sum()) or np.isfinite(value).all())


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
