"""Runs a bundle's program within a budget: layers in bands, weights streamed, LiteRT loaded for each segment."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from enclave import sealing
from enclave.bounded.checks import StreamedChecker
from enclave.bounded.layer import LayerRun, pop_mask
from enclave.bounded.masks import Masks, MaskSet, push_rows
from enclave.bounded.meter import Meter
from enclave.bounded.plan import COMFORT, Known, Plan, know, trying
from enclave.bounded.probe import StreamedProbe
from enclave.bounded.storage import Blobs, PublicModel, Sealed
from enclave.container import read_head
from enclave.executor import accept
from enclave.hardening import limit_memory
from enclave.integrity import Policy
from enclave.link import Accelerator
from enclave.precision import judge, require
from enclave.program import Layer, Segment, parse_demands, parse_layer
from enclave.rng import Rng
from enclave.sealing import ACCELERATOR, Header
from enclave.trace import Trace
from enclave.trusted import TrustedModel
from shadownet.wire.arena import aligned
from shadownet.wire.errors import BundleError, InputError
from shadownet.wire.tensors import TensorSpec

Array = np.ndarray[Any, Any]
Shape = tuple[int, ...]

_RECORDS = 1 << 16  # call records and rounding of what is shared


class BoundedExecutor:
    """The methods of ``enclave.executor.Executor`` that the worker uses, within ``budget`` bytes."""

    lanes = 1

    def __init__(
        self, directory: Path, header: Header, sealed: Sealed, link: Accelerator | None, meter: Meter, budget: int,
        mask_memory: int, mask_input: bool, trace: Trace, baseline: int, limit: Callable[[int], None] = limit_memory,
    ) -> None:  # fmt: skip
        """``meter`` counted what opening took; ``baseline`` bytes were mapped before, and ``limit`` is told how many
        may be from now on: these, the budget and what is shared.

        Raises ``InputError``, which says the smallest budget, if the model needs more, and ``BundleError``.
        """
        self.meter, self.trace, self._link, self._sealed = meter, trace, link, sealed
        self._mask_memory, self._mask_input, self._rng = mask_memory, mask_input, Rng()
        record, places = read_head(lambda at, size: self._bytes(at, size), sealed.size)
        self.signatures = record["signatures"]
        self._blobs = Blobs(sealed, places)
        self._plan = self._read(record, directory, header)
        if self._plan.layers and link is None:
            raise BundleError("the bundle needs an accelerator and none was started")
        self._plan.require(budget)
        meter.budget = budget
        self._baseline = baseline
        limit(baseline + budget + self.shared)
        meter.charge(self._plan.static - meter.held)
        self.entries, self.stateful = self._plan.entries, self._plan.stateful
        self._policy = Policy(self._checked, self._rng)
        self._bands = {k.number: self._plan.bands(k, budget) for k in self._plan.layers}
        self._checkers = {k.number: self._checker(k) for k in self._plan.layers if k.checked}
        self._opening = sealed.bytes_read, sealed.seconds
        self._kept: TrustedModel | None = None  # of a program with state
        self._entry: int | None = None
        self.masks = self._new_masks(None)
        self.seconds = 0.0

    def _read(self, record: dict[str, Any], directory: Path, header: Header) -> Plan:
        """Parse the program into a plan. Raises ``BundleError``."""
        try:
            self._checked, self._precision = parse_demands(record)
            layers = []
            if record["layers"]:
                public = PublicModel(directory / ACCELERATOR, str(header.accelerator), self.meter)
                files = self._sealed, self._blobs.places["linear"].at, public
                demands = self._mask_input, self._checked > 0
                layers = [know(k, layer, self._blobs, *files, *demands) for k, layer in enumerate(record["layers"])]
            return Plan(record, self._blobs, layers, self.meter.held)
        except (KeyError, TypeError, ValueError, IndexError, InputError):
            raise BundleError("the sealed half holds no program that can be read", "convert the model again") from None

    def _bytes(self, at: int, size: int) -> bytes:
        out = np.empty(size, np.uint8)
        self._sealed.read_into(at, out)
        return out.tobytes()

    def _piece(self, known: Known) -> int:
        """Bytes of public weights to read at a time."""
        room = self.meter.budget - self.meter.held - trying(known, 0)
        return max(known.public.least, min(COMFORT // 8, room // 5))

    def _checker(self, known: Known) -> StreamedChecker:
        piece = self._piece(known)
        with self.meter.scratch(trying(known, piece)):
            return StreamedChecker(known.public, known.exact, self._rng, piece)

    def _try(self, link: Accelerator) -> None:
        """Have the accelerator's arithmetic tested, layer by layer. Raises ``WorkerError`` or ``IntegrityError``."""
        require(link.precision, self._precision, any(known.exact for known in self._plan.layers))
        for known in self._plan.layers:
            piece = self._piece(known)
            with self.meter.scratch(trying(known, piece)):
                images = known.stack * known.frame.source[0]
                probe = StreamedProbe(known.public, known.frame, images, known.exact, self._rng, piece)
                name = known.record["signature"]
                judge(probe.run(link, known.number, name), link.precision, name)

    @property
    def shared(self) -> int:
        """Bytes of shared memory, which is the normal world's: the accelerator's arena, and the app's twice, while one
        takes another's place."""
        columns = list(zip(*(known.crossing for known in self._plan.layers), strict=True))
        crossing = 2 * sum(aligned(4 * max(map(math.prod, column))) for column in columns)
        entries = self._plan.entries.values()
        app = max(
            sum(aligned(spec.nbytes) for spec in (*e.inputs, *e.outputs) if spec.dtype != "string") for e in entries
        )
        return crossing + 2 * app + _RECORDS

    # As of Executor

    def allocate(self, key: int, shapes: list[Shape], lanes: int = 1) -> tuple[list[TensorSpec], list[TensorSpec]]:
        """Select an entry; returns its interface. Raises ``InputError`` for other shapes than those of conversion."""
        entry = self.entries[key]
        if shapes != [spec.shape for spec in entry.inputs]:
            raise InputError("with limited enclave memory a model runs at the shapes that it was converted with",
                             "leave --enclave-memory out to resize inputs")  # fmt: skip
        if self._entry is None and self._link is not None:
            layers = [(k.record["signature"], *k.crossing) for k in self._plan.layers]
            crossing = [{"signature": name, "input": source, "output": target} for name, source, target in layers]
            self._link.open(crossing, buffers=False)
            self._try(self._link)
        if key != self._entry:
            self.masks = self._new_masks(key)
        self._entry = key
        return entry.inputs, entry.outputs

    def _new_masks(self, key: int | None) -> Masks:
        steps = [] if key is None else self.entries[key].steps
        layers = [self._plan.layers[step.number] for step in steps if not isinstance(step, Segment)]
        return Masks(layers, self._bands, self._make_pops, self._mask_memory)

    def invoke_many(self, requests: list[list[Array]]) -> list[list[Array]]:
        """Inferences one after the other; ``requests`` are emptied, so that inputs go when they have been used."""
        return [self._invoke(inputs) for inputs in requests]

    def _invoke(self, inputs: list[Array]) -> list[Array]:
        if self._entry is None:
            raise InputError("call allocate_tensors() first")
        start, entry = time.perf_counter(), self.entries[self._entry]
        tensors = accept(entry, [self.meter.adopt(value) for value in inputs])
        inputs.clear()
        masks = self.masks.take()
        count = len(self._checkers)
        chosen = dict(zip(self._checkers, self._policy.chosen(count), strict=True)) if count else {}
        for position, step in enumerate(entry.steps):
            began = time.perf_counter()
            if isinstance(step, Segment):
                self._segment(position, step, tensors)
                self.trace.work("trusted segment", began, {"subgraph": step.subgraph})
            else:
                known = self._plan.layers[step.number]
                tensors[known.output] = self._layer(known, tensors, masks, chosen.get(known.number, False))
                self.trace.work(known.record["signature"], began)
            for t in entry.dead_after[position]:
                tensors.pop(t, None)
        self.masks.recycle(masks)
        self.seconds += time.perf_counter() - start
        return [tensors[spec.index] for spec in entry.outputs]

    def reset(self) -> None:
        if self._kept is not None:
            self._kept.reset()

    @property
    def nbytes(self) -> int:
        return self.meter.held

    def memory(self) -> dict[str, Any]:
        """Of the statistics: the budget, the most that was held, the smallest budget, what is shared (bytes), and what
        was unsealed since opening, in how many seconds."""
        return {
            "memory_baseline": self._baseline,
            "memory_budget": self.meter.budget,
            "memory_peak": self.meter.peak,
            "memory_smallest": self._plan.smallest,
            "memory_shared": self.shared,
            "bytes_unsealed": self._sealed.bytes_read - self._opening[0],
            "unsealing_seconds": self._sealed.seconds - self._opening[1],
        }

    # Segments

    def _segment(self, position: int, segment: Segment, tensors: dict[int, Array]) -> None:
        assert self._entry is not None
        with self.meter.scratch(self._plan.segment(self._entry, position)):
            model = self._kept or self._load()
            if self.stateful:
                self._kept = model
            sides = ([local for _, local in side] for side in (segment.inputs, segment.outputs))
            inputs, outputs = sides
            results = model.run(segment.subgraph, inputs, [tensors[t] for t, _ in segment.inputs], outputs)
            for (t, _), result in zip(segment.outputs, results, strict=True):
                tensors[t] = self.meter.adopt(np.array(result))

    def _load(self) -> TrustedModel:
        place = self._plan.model
        return TrustedModel(self._bytes(place.at, place.nbytes), 1)

    # Layers

    def _layer(self, known: Known, tensors: dict[int, Array], masks: MaskSet, check: bool) -> Array:
        """Mask, dispatch, and then, band by band, check, restore, unmask and finish one linear layer."""
        assert self._link is not None
        number, name = known.number, known.record["signature"]
        with self.meter.scratch(known.loaded + self._bands[number].scratch):
            layer = self._load_layer(known)
            out = self.meter.empty(known.target, layer.format.dtype)
            residual = tensors.get(layer.format.residual)
            run = LayerRun(known, layer, self._bands[number], tensors[layer.input], residual, masks)
            run.send(self._link.input(number))
            began = time.perf_counter()
            self._link.call(number, name)
            if self.trace.enabled:
                self._link.crossed(number, began, (began, time.perf_counter() - began), self.trace)
            checker = self._checkers[number] if check else None
            run.finish(self._link.output(number), self.masks, checker, self._link, out)
        return out

    def _load_layer(self, known: Known) -> Layer:
        """A layer with its arrays, read from sealed storage."""
        return parse_layer(known.number, known.record, self._blobs, self._mask_input)

    def _make_pops(self, known: Known, seed: bytes) -> Iterator[Array]:
        """The pop masks of a layer for a seed, image by image and band by band."""
        bands = self._bands[known.number]
        with self.meter.scratch(known.loaded + bands.scratch):
            layer = self._load_layer(known)
            for image in range(known.frame.source[0]):
                push = push_rows(known, layer, image, seed)
                for first, end in known.frame.bands(bands.rows):
                    yield pop_mask(known, layer, push.window(*known.frame.reach(first, end)), first, end, bands.piece)


def load_libraries() -> None:
    """Use everything once, so that what libraries load and reserve late belongs to the baseline."""
    sealing.load_libraries()
    for dtype in (np.float32, np.float64):
        some = np.ones((256, 256), dtype)  # smaller products do without the buffers
        np.einsum("vm,hwdm->vhwd", some[:2], (some @ some)[None, None])
