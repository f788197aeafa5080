"""Stretches: consecutive layers, float or 8-bit, that the C loop runs in one call, compiled once per shape.

Per layer the loop copies the answer into private memory, some rows at a time, checks these, and only then restores and
unmasks them, adds the bias, applies the epilogue and, where the next layer is the only reader, adds that layer's push
mask and writes its input. Other results go to private buffers, reused once their last reader is done.

8-bit tensors are floats in here, less their zero point; they are put into bytes for those who read them outside.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from enclave import native
from enclave.formats import ACTIVATIONS, Activation, Float, Hybrid, Integer
from enclave.gather import Window
from enclave.integrity import NativeCheck
from enclave.limbs import LIMIT
from enclave.link import Accelerator
from enclave.masks import Layout, MaskSet, Pair
from enclave.program import Layer, Segment
from shadownet.wire.errors import BundleError, InputError

Array = np.ndarray[Any, Any]
Shape = tuple[int, ...]


@dataclass
class Patch:
    """Offsets that the layout of the masks tells: ``steps[field][rows]`` are masks of ``layers``."""

    rows: list[int] = field(default_factory=list)
    layers: list[int] = field(default_factory=list)


class Stretch:
    """``layers`` in order; ``windows`` are the inputs that layers gather, by layer number, and ``shapes`` (input,
    output); ``later`` are the tensors that somebody reads afterwards, and ``places`` where some of them are wanted;
    ``checks`` by layer number, which may be empty."""

    def __init__(
        self, layers: list[Layer], windows: dict[int, Window], shapes: list[tuple[Shape, Shape]], later: set[int],
        places: dict[int, Array], link: Accelerator, checks: dict[int, NativeCheck], lane: int,
    ) -> None:  # fmt: skip
        self.layers, self.link, self._shapes, self._checks, self._lane = layers, link, shapes, checks, lane
        self._windows, self._places = windows, places
        self.pop_orders: dict[int, Array] = {}  # masks of these layers keep their pop half in the next one's order
        self.streamed_push: set[int] = set()  # and of these their push half in the C loop's; pop halves all are
        self._keep: list[Array] = []
        self._stored: dict[int, Array] = {}
        # Of tensors made elsewhere: where the address goes, tensor, size; first as (step, field, tensor, size).
        self._outside: list[tuple[Array, int, int]] = []
        self._referred: list[tuple[int, str, int, int]] = []
        self._masks = {name: Patch() for name in ("send_push", "push", "pop")}
        self._layout: Layout | None = None
        self._zeros, types = _zero_points(layers)
        self._exact = {layer.number for layer in layers if layer.format.exact}
        self._centred: dict[int, Array] = {}  # 8-bit tensors made elsewhere
        self._scales = {k.number: _scales(k.format, *shapes[k.number]) for k in layers if isinstance(k.format, Hybrid)}
        self._compile(later)
        self._outputs = {t: array for t, array in self._stored.items() if t in later}
        self._bytes = {t: self._as_bytes(t, types[t]) for t in self._outputs if t in types}
        self._plan = link.plan(self._steps)

    def _compile(self, later: set[int]) -> None:
        steps: list[dict[str, Any]] = []
        readers = self._readers()
        free: dict[int, list[Array]] = {}
        sent = False  # whether the layer at hand finds its input in place
        for position, layer in enumerate(self.layers):
            if not sent:
                self._send(steps, layer, position)
            following = self.layers[position + 1] if position + 1 < len(self.layers) else None
            chained = following is not None and following.input == layer.output
            if following is not None and following.number in self._scales:
                chained = False  # it is sent when all of it is there
            private = layer.output in later or readers.get(layer.output, []) != ([position + 1] if chained else [])
            order = following.restore.order if following is not None and chained else None
            if order is not None and (private or layer.format.residual >= 0):
                chained, private = False, True  # the next layer takes its channels from the stored result
            self._finish(steps, layer, position, following if chained else None, None if private else order)
            if private:
                self._store(steps, layer, free)
            sent = chained
            for t, where in readers.items():
                if where[-1] == position and t in self._stored and t not in later:
                    free.setdefault(self._stored[t].nbytes, []).append(self._stored[t])
        self._steps = np.zeros(len(steps), native.STEP)
        for field_ in self._masks:
            self._steps[field_] = -1
        for i, step in enumerate(steps):
            for name, value in step.items():
                self._steps[name][i] = value
        self._outside += [(self._steps[name][row : row + 1], t, size) for row, name, t, size in self._referred]

    def _readers(self) -> dict[int, list[int]]:
        """Tensor -> positions of the layers that read it, in order; a residual counts as a reading of its own."""
        found: dict[int, list[int]] = {}
        for position, layer in enumerate(self.layers):
            own = self._windows.get(layer.number)
            for t in own.gather.sources() if own else [layer.input]:
                found.setdefault(t, []).append(position)
            if layer.format.residual >= 0:
                found.setdefault(layer.format.residual, []).append(position)
        return found

    def _store(self, steps: list[dict[str, Any]], layer: Layer, free: dict[int, list[Array]]) -> None:
        shape = self._shapes[layer.number][1]
        size = 4 * int(np.prod(shape))
        array = self._places.get(layer.output) if layer.output not in self._zeros else None
        if array is None:
            array = free[size].pop().reshape(shape) if free.get(size) else native.empty(shape)
            self._keep.append(array)
        self._stored[layer.output] = array
        steps[-1]["result"] = native.address(array)

    def _send(self, steps: list[dict[str, Any]], layer: Layer, position: int) -> None:
        shape, own = self._shapes[layer.number][0], self._windows.get(layer.number)
        rows, n = (own.target, own.gather.channels) if own else (shape[:-1], shape[-1])
        step = {
            "kind": native.SEND,
            "send_rows": int(np.prod(rows)),
            "send_n": n,
            "order": self._pointer(layer.restore.order),
            "target": self._regions(layer)[0],
        }
        if layer.number in self._checks:
            step["send_keep"] = self._kept(position)
        if own:
            step["gather"] = self._gather(own)
        else:
            self._refer(step, len(steps), "source", layer.input, int(np.prod(shape)))
        if layer.number in self._scales:
            scales, scope, _ = self._scales[layer.number]
            step |= {"send_scales": native.address(scales), "send_scope": scope}
        if layer.masked:
            self._patch("send_push", len(steps), layer)
        steps.append(step)

    def _gather(self, own: Window) -> int:
        pieces = np.zeros(len(own.gather.pieces), native.PIECE)
        for k, ((tensor, first, count), width) in enumerate(zip(own.gather.pieces, own.widths, strict=True)):
            pieces["channels"][k], pieces["first"][k], pieces["count"][k] = width, first, count
            if tensor in self._stored:
                pieces["source"][k] = native.address(self._stored[tensor])
            else:
                self._outside.append((pieces["source"][k : k + 1], tensor, int(np.prod(own.source)) * width))
        record = np.zeros(1, native.GATHER)
        record["way"], record["count"], record["pieces"] = own.gather.way, len(pieces), native.address(pieces)
        names = ("height", "width", "out_height", "out_width", "size_height", "size_width", "down", "right")
        values = (*own.source[1:], *own.target[1:], *own.size, *own.gather.stride)
        for name, value in zip(names, values, strict=True):
            record[name] = value
        self._keep += [pieces, record]
        return native.address(record)

    def _kept(self, position: int) -> int:
        """Where the layer at this position finds what it was sent: not where the one before it does, whose answer is
        still being checked while it is written."""
        return native.address(self.link.kept[self._lane][position % 2])

    def _finish(
        self, steps: list[dict[str, Any]], layer: Layer, position: int, following: Layer | None, order: Array | None
    ) -> None:
        """One layer; ``order`` permutes its channels into those that ``following`` wants to be sent."""
        shape = self._shapes[layer.number][1]
        step: dict[str, Any] = {
            "kind": native.FINISH,
            "layer": self.link.of_lane(layer.number, self._lane),
            "rows": int(np.prod(shape[:-1])),
            "slots": layer.slots,
            "n": shape[-1],
            "answer": self._regions(layer)[1],
            "copy": native.address(self.link.private),
        }
        vectors, activations = _exact_epilogue(layer) if layer.number in self._exact else _epilogue(layer)
        slot = vectors["slot"]
        assert slot is not None
        step["terms"] = len(slot)
        for name, vector in vectors.items():
            step[name] = self._pointer(vector if order is None or vector is None else vector[..., order])
        step |= {name: _activation(activation) for name, activation in activations.items()}
        if layer.number in self._scales:
            scales, _, scope = self._scales[layer.number]
            step |= {"scales": native.address(scales), "scope": scope}
        if layer.number in self._checks:
            step["check"] = native.address(self._checks[layer.number].record)
        if layer.format.residual >= 0:
            self._refer(step, len(steps), "residual", layer.format.residual, int(np.prod(shape)))
        if layer.masked:
            self._patch("pop", len(steps), layer)
            if order is not None:
                self.pop_orders[layer.number] = order
        if following is not None:
            own, others = self._regions(layer), self._regions(following)
            step["send"], step["apart"] = others[0], int(own[0] != others[0] and own[1] != others[1])
            if following.number in self._checks:
                step["keep"] = self._kept(position + 1)
            if following.masked:
                self._patch("push", len(steps), following)
                self.streamed_push.add(following.number)
        steps.append(step)

    def _regions(self, layer: Layer) -> tuple[int, int]:
        """Where the accelerator finds a layer's input and leaves its answer."""
        views = self.link.input(layer.number, self._lane), self.link.output(layer.number, self._lane)
        return native.address(views[0]), native.address(views[1])

    def _refer(self, step: dict[str, Any], row: int, name: str, tensor: int, size: int) -> None:
        if tensor in self._stored:
            step[name] = native.address(self._stored[tensor])
        else:
            self._referred.append((row, name, tensor, size))

    def _patch(self, name: str, row: int, layer: Layer) -> None:
        self._masks[name].rows.append(row)
        self._masks[name].layers.append(layer.number)

    def _pointer(self, array: Array | None) -> int:
        if array is None:
            return 0
        held = np.ascontiguousarray(array)
        if held.dtype == np.float32:
            held = native.empty(held.shape)
            held[...] = array
        self._keep.append(held)
        return native.address(held)

    def arrange(self, number: int, push: Array, pop: Array) -> Pair:
        """Lay a fresh pair out as the C loop will read it."""
        if number in self._exact:
            pop = _wrapped(pop).view(np.float32)
        if number in self.pop_orders:
            pop = pop[..., self.pop_orders[number]]
        streamed = native.in_stream_order(push) if number in self.streamed_push else push
        return streamed, native.in_stream_order(np.ascontiguousarray(pop))

    @property
    def nbytes(self) -> int:
        """Bytes of steps, vectors and results."""
        held = [self._steps, *self._keep, *self._centred.values(), *self._bytes.values()]
        return sum(array.nbytes for array in held)

    def _place(self, layout: Layout) -> None:
        for name, patch in self._masks.items():
            self._steps[name][patch.rows] = (layout.pop_at if name == "pop" else layout.push_at)[patch.layers]
        self._layout = layout

    def begin(self, tensors: dict[int, Array], masks: MaskSet) -> None:
        """Let the link run all layers with these masks; :meth:`results` are there when it is through. ``tensors``
        are those made elsewhere, and must outlive the run. Raises ``InputError``."""
        for slot, tensor, size in self._outside:
            if tensors[tensor].size != size:
                raise InputError("a tensor has another size than when the shapes were fixed")
            slot[0] = native.address(self._floats(tensor, tensors))
        if self._layout is not masks.layout:
            self._place(masks.layout)
        self.link.begin(self._lane, self._plan, masks.address)

    def _floats(self, tensor: int, tensors: dict[int, Array]) -> Array:
        """A tensor made elsewhere as the C loop reads it."""
        if tensor not in self._zeros:
            made = tensors[tensor] = np.ascontiguousarray(tensors[tensor], np.float32)
            return made
        value = tensors[tensor]
        if tensor not in self._centred:
            self._centred[tensor] = native.empty(value.shape)
        target = self._centred[tensor].reshape(value.shape)
        return np.subtract(value, np.float32(self._zeros[tensor]), out=target)

    def results(self) -> dict[int, Array]:
        """What others read, when the link is through; valid until the next run."""
        for t, out in self._bytes.items():
            np.add(self._outputs[t], np.float32(self._zeros[t]), out=out, casting="unsafe")
        return self._outputs | self._bytes

    def _as_bytes(self, tensor: int, dtype: np.dtype[Any]) -> Array:
        """Where an 8-bit result goes."""
        place = self._places.get(tensor)
        return np.empty(self._outputs[tensor].shape, dtype) if place is None else place


def runnable(layer: Layer) -> bool:
    """Whether the C loop knows this layer's format, how to check its answer, and all of its weights are outside."""
    if layer.public.kind == "TRANSPOSE_CONV" or layer.private is not None:
        return False
    if not isinstance(layer.format, Integer | Hybrid):
        return isinstance(layer.format, Float)
    return layer.residues is None and _addressable(layer) and _small(layer)


def gathers(step: Segment | Layer) -> bool:
    """Whether the C loop can put together this layer's input itself: it takes floats, as they are."""
    return isinstance(step, Layer) and isinstance(step.format, Float)


def scales_fit(layer: Layer, source: Shape, target: Shape) -> bool:
    """Whether every scale of the input belongs to as many rows of the output, if it has scales."""
    if not isinstance(layer.format, Hybrid):
        return True
    count = math.prod(source[: len(source) - layer.format.inner])
    return count > 0 and math.prod(source[:-1]) % count == 0 and math.prod(target[:-1]) % count == 0


def _addressable(layer: Layer) -> bool:
    """Whether limbs can be looked up as terms of their own."""
    limbs = layer.limbs
    each, rest = divmod(layer.slots, limbs.groups * limbs.count)
    return rest == 0 and layer.restore.slot.max() < limbs.groups * each


def _small(layer: Layer) -> bool:
    """Whether the C loop's integers hold everything."""
    coefficient, public = layer.restore.coefficient, layer.public
    whole = (np.rint(coefficient) == coefficient).all() and np.abs(coefficient).max() < LIMIT
    terms = public.channels * public.kernel[0] * public.kernel[1]
    return bool(whole) and layer.slots <= native.MOST_SLOTS and terms <= native.MOST_TERMS


def _zero_points(layers: list[Layer]) -> tuple[dict[int, int], dict[int, np.dtype[Any]]]:
    """The zero point of every 8-bit tensor, and the type of those that are made here. Raises ``BundleError``."""
    zeros: dict[int, int] = {}
    types: dict[int, np.dtype[Any]] = {}
    for layer in layers:
        if isinstance(layer.format, Integer):
            types[layer.output] = layer.format.dtype
            for t, zero in ((layer.input, layer.format.zero_in), (layer.output, layer.format.zero_out)):
                if zeros.setdefault(t, zero) != zero:
                    raise BundleError("layers disagree on a tensor's zero point", "convert the model again")
    return zeros, types


def _epilogue(layer: Layer) -> tuple[dict[str, Array | None], dict[str, Activation]]:
    """The vectors and activations of a float layer, by the names of their fields."""
    format_, restore = layer.format, layer.restore
    assert isinstance(format_, Float)
    vectors = {"slot": restore.slot, "coefficient": restore.coefficient, "bias": format_.bias,
               "gain": format_.gain, "shift": format_.shift}  # fmt: skip
    return vectors, {"first": format_.first, "second": format_.second}


def _exact_epilogue(layer: Layer) -> tuple[dict[str, Array | None], dict[str, Activation]]:
    """The same of a layer with 8-bit weights. Limbs become terms of their own."""
    format_, limbs = layer.format, layer.limbs
    each = layer.slots // (limbs.groups * limbs.count)  # filters of a group
    group, filter_ = np.divmod(layer.restore.slot, each)
    terms = [(group * limbs.count + limb) * each + filter_ for limb in range(limbs.count)]
    coefficient = layer.restore.coefficient.astype(np.int64)
    vectors: dict[str, Array | None] = {
        "slot": np.concatenate(terms).astype(np.int32),
        "coefficient": _wrapped(np.concatenate([coefficient * limbs.base**limb for limb in range(limbs.count)])),
    }
    n, nothing = layer.restore.slot.shape[1], Activation("clamp", -np.inf, np.inf)
    if isinstance(format_, Hybrid):
        vectors["multiplier"] = np.broadcast_to(format_.scale, n).astype(np.float32)
        if format_.bias is not None:
            vectors |= {"gain": np.ones(n, np.float32), "shift": format_.bias.astype(np.float32)}
        return vectors, {"first": nothing, "second": format_.activation}
    assert isinstance(format_, Integer)
    vectors["multiplier"] = np.broadcast_to(format_.multiplier, n).astype(np.float32)
    vectors["bias"] = None if format_.bias is None else _wrapped(format_.bias)
    low, high = format_.low - format_.zero_out, format_.high - format_.zero_out
    return vectors, {"first": Activation("clamp", float(low), float(high)), "second": nothing}


def _scales(format_: Hybrid, source: Shape, target: Shape) -> tuple[Array, int, int]:
    """Room for the scales of a layer's input, and how many rows of its input and of its output share one."""
    count = math.prod(source[: len(source) - format_.inner])
    return np.zeros(count, native.SCALE), math.prod(source[:-1]) // count, math.prod(target[:-1]) // count


def _wrapped(values: Array) -> Array:
    """Integers modulo 2^32: int32."""
    return values.astype(np.int64).astype(np.int32)


def _activation(activation: Activation) -> Any:
    return (ACTIVATIONS.index(activation.kind), activation.low, activation.high)
