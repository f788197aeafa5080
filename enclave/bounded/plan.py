"""What each step of a bundle holds in memory, added up before anything large is allocated, and how wide bands may be.

The bounds are generous by design: they count NumPy's temporaries, all those of a phase at once. A test compares them
with what is really allocated.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from enclave.bounded.bands import Frame, Weights
from enclave.bounded.checks import StreamedChecker
from enclave.bounded.probe import StreamedProbe
from enclave.bounded.storage import Blobs, Paged
from enclave.integrity import Public
from enclave.program import Entry, Segment, parse_entry, parse_layer
from shadownet.wire.errors import InputError

Array = np.ndarray[Any, Any]
Shape = tuple[int, ...]

OVERHEAD = 2 << 20  # the worker's own objects, and what LiteRT needs before it has a model
PARSED = 12  # bytes of Python objects for each byte of JSON
LITERT_COPIES = 3  # a model's bytes, LiteRT's copies and packed weights
COMFORT = 4 << 20  # bands are not made larger than this, though memory may allow it: they should stay in cache
_BLOCK = 48 << 16  # temporaries of enclave.exact, which works in blocks of 2^16 numbers


@dataclass(frozen=True)
class Known:
    """What is kept of a layer between runs; the rest (``load``) is read when it runs."""

    number: int
    record: dict[str, Any]
    output: int
    reading: list[int]
    frame: Frame
    source: Shape
    target: Shape
    stack: int
    slots: int
    exact: bool
    masked: bool
    checked: bool
    late: bool
    pop_channels: int
    wide: bool  # its masks are float64
    digits: int  # of a pop mask
    itemsize: int  # of the result
    loaded: int  # bytes of the arrays that are read when it runs
    true: Weights
    public: Weights
    private: tuple[Weights, ...]

    def reads(self) -> list[int]:
        return self.reading

    def makes(self) -> list[int]:
        return [self.output]

    @property
    def crossing(self) -> tuple[Shape, Shape]:
        """Shapes of what is sent and answered."""
        source, target = self.source, (*self.target[:-1], self.slots)
        return (self.stack * source[0], *source[1:]), (self.stack * target[0], *target[1:])

    @property
    def nbytes(self) -> int:
        """Of the result."""
        return self.itemsize * math.prod(self.target)

    def pop_bytes(self, rows: int) -> int:
        """Of a band's pop mask."""
        wide = 8 if self.wide or self.exact else 4
        return wide * rows * self.frame.target[2] * self.pop_channels


def know(
    number: int, record: dict[str, Any], blobs: Blobs, true_file: Paged, linear_at: int, public: Paged,
    mask_input: bool, checked: bool,
) -> Known:  # fmt: skip
    """Parse a layer once, and keep what the plan needs. Raises ``KeyError``, ``ValueError`` and the like."""
    layer = parse_layer(number, record, blobs, mask_input)
    source, target = (tuple(int(d) for d in shape) for shape in record["shapes"])
    values = [*record["restore"].values(), *record["format"].values()]
    named = [blobs.places[name] for name in values if isinstance(name, str) and name in blobs.places]
    residues = layer.residues
    private = record["private"]["weights"] if record["private"] else []
    true = _weights(true_file, layer.public, record["weights"], linear_at)[0]
    return Known(
        number=number,
        record=record,
        output=layer.output,
        reading=layer.reads(),
        frame=Frame(layer.public, source, target),
        source=source,
        target=target,
        stack=layer.stack,
        slots=layer.slots,
        exact=layer.format.exact,
        masked=layer.masked,
        checked=checked,
        late=residues is not None and residues.late,
        pop_channels=true.filters // (residues.pop.weights if residues else layer.pop_limbs).count,
        wide=residues is not None,
        digits=residues.pop.digits.count if residues else 1,
        itemsize=layer.format.dtype.itemsize,
        loaded=3 * sum(place.nbytes for place in named),
        true=true,
        public=Weights(public, layer.public),
        private=tuple(_weights(true_file, layer.public, private, linear_at)),
    )


def _weights(file: Paged, public: Public, parts: list[Any], base: int) -> list[Weights]:
    """The weights of a linear subgraph: of the layer itself, or of a right factor and a dense left one."""
    found = []
    for k, (at, shape) in enumerate(parts):
        used = shape[-1] if public.kind == "DEPTHWISE_CONV_2D" else shape[0]
        kind = replace(public, parts=[(base + int(at), tuple(int(d) for d in shape), int(used))])
        found.append(Weights(file, kind if k == 0 else replace(kind, kind="FULLY_CONNECTED", kernel=(1, 1), groups=1)))
    return found


@dataclass(frozen=True)
class Bands:
    """How a layer runs: output rows of a band, bytes of weights at a time, and the scratch memory that both need."""

    rows: int
    piece: int
    scratch: int


def scratch(layer: Known, rows: int, piece: int) -> int:
    """Bytes that a band of ``rows`` output rows needs, with ``piece`` bytes of weights at a time."""
    columns, wide = layer.frame.target[2], 8 if layer.wide else 4
    width, channels = layer.frame.source[2:]
    taken = layer.frame.widest(rows) * width * channels
    positions = rows * columns
    answers, results = layer.stack * positions * layer.slots, positions * layer.target[-1]
    block = _BLOCK if layer.wide else 0
    held = 2 * wide * taken + 4 * layer.stack * taken + layer.pop_bytes(rows) + 4 * answers
    drawing = 48 * width * channels  # a row of the push mask
    encoding = 24 * taken + min(block, 48 * taken)
    popping = wide * taken + _linear(layer.true, layer.digits, taken, positions, channels, piece)
    sums = layer.digits * positions * layer.true.filters
    popping += 24 * sums + min(block, 48 * sums) if layer.exact else 0
    adding = sum(_linear(part, 1, taken, positions, channels, piece) for part in layer.private)
    checking = (32 if layer.exact else 16) * (layer.stack * taken + answers) + 16 * layer.stack * positions * channels
    restoring = 48 * results + (24 * answers if layer.exact else 0) + min(block, 48 * answers)
    return held + max(drawing, encoding, popping, adding + 8 * results, checking, restoring)


def _linear(weights: Weights, images: int, taken: int, positions: int, channels: int, piece: int) -> int:
    """Bytes of :func:`enclave.bounded.bands.linear`: its input in float32, patches, sums, the result, and weights;
    patches and weights once more, as the BLAS packs them into buffers of its own."""
    reading = max(piece, weights.least)
    return 4 * images * (taken + 2 * positions * channels + 2 * positions * weights.filters) + 3 * reading


def choose(layer: Known, room: int) -> Bands:
    """The widest bands that fit into ``room`` bytes and are comfortable; the narrowest if none fit."""
    everything = (layer.true, *layer.private)
    least = max(weights.least for weights in everything)
    piece = min(max(weights.nbytes for weights in everything), max(least, min(room, COMFORT) // 4))
    if scratch(layer, 1, piece) > room:
        piece = least
    target = max(min(room, COMFORT), scratch(layer, 1, piece))
    low, high = 1, max(layer.frame.target[1], 1)
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if scratch(layer, middle, piece) <= target else (low, middle - 1)
    return Bands(low, piece, scratch(layer, low, piece))


def trying(layer: Known, piece: int) -> int:
    """Bytes that the vectors and the test of a layer need at the start, with ``piece`` bytes of weights at a time."""
    probing = max(
        StreamedProbe.making(layer.public, piece), StreamedProbe.running(layer.public, layer.frame, layer.stack)
    )
    return max(probing, StreamedChecker.making(layer.public, piece) if layer.checked else 0)


@dataclass(frozen=True)
class SegmentSize:
    """Bytes of the tensors that a segment computes with, and of its outputs."""

    tensors: int
    outputs: list[int]


class Plan:
    """The memory of a whole program: ``smallest`` is the smallest budget that works."""

    def __init__(
        self, program: dict[str, Any], blobs: Blobs, layers: list[Known], files: int,
    ) -> None:  # fmt: skip
        """``files`` are bytes held to read files."""
        self.layers, self.stateful = layers, bool(program["stateful"])
        self.entries: dict[int, Entry] = {}
        self._sizes: dict[int, list[SegmentSize | None]] = {}
        for key, record in program["entries"].items():
            self.entries[int(key)] = parse_entry(record, blobs, layers)
            self._sizes[int(key)] = [_segment_size(step) for step in record["steps"]]
        self.model = blobs.places["trusted"]
        checks = sum(StreamedChecker.resident(layer.public, layer.exact) for layer in layers if layer.checked)
        constants = sum(a.nbytes for entry in self.entries.values() for a in entry.constants.values())
        head = min(place.at for place in blobs.places.values())  # bytes of JSON
        self.static = OVERHEAD + PARSED * head + files + checks + constants
        if self.stateful:  # LiteRT keeps everything
            self.static += self._litert(max((s.tensors for s in self._segments()), default=0))
        self._needs = {key: self._walk(key) for key in self.entries}
        self.smallest = self.static + max((need for needs in self._needs.values() for need in needs), default=0)

    def _segments(self) -> list[SegmentSize]:
        return [size for sizes in self._sizes.values() for size in sizes if size is not None]

    def _litert(self, tensors: int) -> int:
        return LITERT_COPIES * self.model.nbytes + tensors

    def segment(self, key: int, position: int) -> int:
        """Bytes that LiteRT needs to run a segment, beyond what it keeps."""
        size = self._sizes[key][position]
        assert size is not None
        return 0 if self.stateful else self._litert(size.tensors)

    def _walk(self, key: int) -> list[int]:
        """Bytes beyond the static ones at each step of an entry, with the narrowest bands."""
        entry, held, needs = self.entries[key], {}, []
        held = {spec.index: 0 if spec.dtype == "string" else spec.nbytes for spec in entry.inputs}
        for position, step in enumerate(entry.steps):
            live = sum(held.values())
            if isinstance(step, Segment):
                made = self._sizes[key][position]
                assert made is not None
                held |= {t: size for (t, _), size in zip(step.outputs, made.outputs, strict=True)}
                needs.append(live + sum(made.outputs) + self.segment(key, position))
            else:
                layer = self.layers[step.number]
                held[layer.output] = layer.nbytes
                needs.append(live + layer.nbytes + layer.loaded + self._least(layer))
            for t in entry.dead_after[position]:
                held.pop(t, None)
        return [*needs, sum(held.values())]

    @staticmethod
    def _least(layer: Known) -> int:
        return max(choose(layer, 0).scratch, trying(layer, 0))

    def bands(self, layer: Known, budget: int) -> Bands:
        """How a layer runs within ``budget``, which is not below ``smallest``."""
        room = math.inf
        for key, entry in self.entries.items():
            for step, need in zip(entry.steps, self._needs[key], strict=False):
                if not isinstance(step, Segment) and step.number == layer.number:
                    room = min(room, budget - self.static - need + self._least(layer))
        return choose(layer, 0 if room is math.inf else int(room))

    def require(self, budget: int) -> None:
        """Raises ``InputError``, which says the smallest budget, for one that is smaller."""
        if budget < self.smallest:
            raise too_small(self.smallest, budget)


def too_small(smallest: int, budget: int) -> InputError:
    """The error for a budget below the smallest one that works."""
    kilobytes = -(-smallest // 1024)
    return InputError(
        f"this model needs {smallest} bytes of enclave memory, and {budget} are allowed",
        f"--enclave-memory {kilobytes}K is the smallest budget that works",
    )


def _segment_size(step: dict[str, Any]) -> SegmentSize | None:
    if "layer" in step:
        return None
    return SegmentSize(int(step["tensors"]), [int(size) for size in step["sizes"]])
