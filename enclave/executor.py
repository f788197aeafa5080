"""Runs a bundle's program: trusted segments here, linear layers there, nothing published before it is checked."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

import numpy as np

from enclave import formats, limbs, schemes
from enclave.formats import Format
from enclave.link import Accelerator
from enclave.masks import MaskPool, Pair
from enclave.rng import Rng
from enclave.trace import Trace
from enclave.trusted import TrustedModel
from shadownet.wire.errors import BundleError, InputError
from shadownet.wire.tensors import TensorSpec

Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class Segment:
    """A trusted segment: (tensor of the entry, tensor of the trusted subgraph) for inputs and outputs."""

    subgraph: int
    inputs: list[tuple[int, int]]
    outputs: list[tuple[int, int]]


@dataclass(frozen=True)
class Limbs:
    """How the answers of an exact layer are put together; see ``enclave.limbs``."""

    groups: int
    count: int
    base: int

    def join(self, y: Array) -> Array:
        return limbs.join(y, self.groups, self.count, self.base)


@dataclass(frozen=True)
class Layer:
    """An outsourced linear layer. ``pop`` is its subgraph in the trusted model (input tensor 0)."""

    number: int
    name: str
    input: int
    output: int
    slots: int
    limbs: Limbs
    sigma: float
    masked: bool
    pop: int
    pop_output: int
    pop_limbs: Limbs
    secrets: dict[str, Array]
    format: Format


@dataclass(frozen=True)
class Entry:
    """A runnable subgraph of the original model."""

    inputs: list[TensorSpec]
    outputs: list[TensorSpec]
    steps: list[Segment | Layer]
    constants: dict[int, Array]
    dead_after: list[list[int]]  # tensors that nobody needs after step i


class Executor:
    """Holds the opened program, the masks and the link to the accelerator (None if nothing is outsourced)."""

    def __init__(
        self, program: dict[str, Any], blobs: dict[str, Array], num_threads: int, link: Accelerator | None,
        mask_input: bool, mask_memory: int, trace: Trace,
    ) -> None:  # fmt: skip
        try:
            self._scheme = schemes.get(program["scheme"])
            self._layers = [_layer(k, record, blobs, mask_input) for k, record in enumerate(program["layers"])]
            self.entries = {int(key): _entry(record, blobs, self._layers) for key, record in program["entries"].items()}
            model = blobs["trusted"].tobytes()
        except (KeyError, TypeError, ValueError, IndexError, InputError):
            raise BundleError("the sealed half holds no program that can be read", "convert the model again") from None
        if self._layers and link is None:
            raise BundleError("the bundle needs an accelerator and none was started")
        self._trusted = TrustedModel(model, num_threads) if model else None
        self._link, self.trace = link, trace
        self._rng = Rng()
        self._shapes: list[tuple[tuple[int, ...], tuple[int, ...]]] = []
        masked = [layer.number for layer in self._layers if layer.masked]
        self.masks = MaskPool(masked, self._make_mask, mask_memory)
        self.seconds = 0.0

    def allocate(self, key: int, shapes: list[tuple[int, ...]]) -> tuple[list[TensorSpec], list[TensorSpec]]:
        """Propagate input shapes through an entry; returns its interface with concrete shapes.

        Raises ``InputError`` if LiteRT cannot run the model so.
        """
        entry = self.entries[key]
        known: dict[int, tuple[int, ...]] = {t: a.shape for t, a in entry.constants.items()}
        known |= {spec.index: shape for spec, shape in zip(entry.inputs, shapes, strict=True)}
        layers = dict(enumerate(self._shapes)) if self._shapes else {}
        for step in entry.steps:
            if isinstance(step, Segment):
                ids = [local for _, local in step.inputs]
                self._runtime().prepare(step.subgraph, ids, [known[t] for t, _ in step.inputs])
                for t, local in step.outputs:
                    known[t] = self._runtime().shape(step.subgraph, local)
            else:
                self._runtime().prepare(step.pop, [0], [known[step.input]])
                known[step.output] = self._output_shape(step)
                layers[step.number] = (known[step.input], known[step.output])
        self._open(layers)
        return (
            [_reshaped(spec, shape) for spec, shape in zip(entry.inputs, shapes, strict=True)],
            [_reshaped(spec, known[spec.index]) for spec in entry.outputs],
        )

    def _output_shape(self, layer: Layer) -> tuple[int, ...]:
        """Of a layer whose pop subgraph is prepared; that one has a channel for each limb."""
        *positions, channels = self._runtime().shape(layer.pop, layer.pop_output)
        return (*positions, channels // layer.pop_limbs.count)

    def _open(self, layers: dict[int, tuple[tuple[int, ...], tuple[int, ...]]]) -> None:
        """Tell the accelerator the shapes, if they are new. Masks of other shapes are useless: drop them."""
        missing = [layer for layer in self._layers if layer.number not in layers]
        for layer in missing:  # of entries that are not allocated: as converted
            layers[layer.number] = (self._runtime().shape(layer.pop, 0), self._output_shape(layer))
        wanted = [layers[k] for k in range(len(self._layers))]
        if not wanted or wanted == self._shapes:
            return
        assert self._link is not None
        self.masks.discard()
        self._link.open(
            [
                {"signature": layer.name, "input": inp, "output": (*out[:-1], layer.slots)}
                for layer, (inp, out) in zip(self._layers, wanted, strict=True)
            ]
        )
        self._shapes = wanted

    def invoke(self, key: int, inputs: list[Array]) -> list[Array]:
        """One inference. ``inputs`` are private copies in the entry's order; returns the outputs."""
        start = time.perf_counter()
        entry = self.entries[key]
        tensors = dict(entry.constants)
        for spec, value in zip(entry.inputs, inputs, strict=True):
            if value.dtype.kind in "fc" and not np.isfinite(value).all():
                raise InputError(f"input {spec.name!r} holds values that are not finite")
            tensors[spec.index] = value
        for step, dead in zip(entry.steps, entry.dead_after, strict=True):
            began = time.perf_counter()
            if isinstance(step, Segment):
                values = [tensors[t] for t, _ in step.inputs]
                results = self._runtime().run(
                    step.subgraph, [i for _, i in step.inputs], values, [i for _, i in step.outputs]
                )
                tensors.update(zip((t for t, _ in step.outputs), results, strict=True))
                self.trace.add(f"segment {step.subgraph}", "enclave", began)
            else:
                residual = tensors.get(step.format.residual)
                tensors[step.output] = self._linear(step, tensors[step.input], residual)
                self.trace.add(step.name, "enclave", began)
            for t in dead:
                del tensors[t]
        self.seconds += time.perf_counter() - start
        return [tensors[spec.index] for spec in entry.outputs]

    def _linear(self, layer: Layer, x: Array, residual: Array | None) -> Array:
        """Mask, dispatch, check, restore, unmask, finish one linear layer."""
        link, scheme = self._link, self._scheme
        assert link is not None
        sent, context = layer.format.encode(x)
        if layer.masked:
            push, pop = self.masks.take(layer.number)
            sent = sent + push
        np.copyto(link.input(layer.number), scheme.shuffle(layer.secrets, sent))
        began = time.perf_counter()
        link.call(layer.number, layer.name)
        self.trace.add(layer.name, "accelerator", began, bytes_in=4 * sent.size)
        answer = link.read(layer.number, layer.name)
        y = scheme.restore(layer.secrets, layer.limbs.join(answer) if layer.format.exact else answer)
        y = y - pop if layer.masked else np.array(y)
        return layer.format.decode(y, context, residual)

    def _make_mask(self, number: int) -> Pair:
        """Draw a push mask and compute its pop mask with the layer's true weights."""
        layer = self._layers[number]
        shape = self._shapes[number][0]
        if layer.format.exact:
            push = self._rng.integers(-formats.MASK_BOUND, formats.MASK_BOUND + 1, shape).astype(np.float32)
        else:
            push = self._rng.normal(layer.sigma, shape)
        (pop,) = self._runtime().run(layer.pop, [0], [push], [layer.pop_output])
        return push, layer.pop_limbs.join(pop) if layer.format.exact else pop

    def reset(self) -> None:
        if self._trusted is not None:
            self._trusted.reset()

    def _runtime(self) -> TrustedModel:
        assert self._trusted is not None
        return self._trusted


def _reshaped(spec: TensorSpec, shape: tuple[int, ...]) -> TensorSpec:
    return TensorSpec(**{**vars(spec), "shape": shape})


def _layer(number: int, record: dict[str, Any], blobs: dict[str, Array], mask_input: bool) -> Layer:
    return Layer(
        number=number,
        name=str(record["signature"]),
        input=int(record["input"]),
        output=int(record["output"]),
        slots=int(record["slots"]),
        limbs=Limbs(*(int(v) for v in record["limbs"])),
        sigma=float(record["sigma"]),
        masked=mask_input or not record["public_input"],
        pop=int(record["pop"]),
        pop_output=int(record["pop_output"]),
        pop_limbs=Limbs(*(int(v) for v in record["pop_limbs"])),
        secrets={name: blobs[blob] for name, blob in record["secrets"].items()},
        format=formats.create(record["format"], blobs),
    )


def _entry(record: dict[str, Any], blobs: dict[str, Array], layers: list[Layer]) -> Entry:
    steps: list[Segment | Layer] = []
    for step in record["steps"]:
        if "layer" in step:
            steps.append(layers[step["layer"]])
        else:
            pairs = [[(int(t), int(i)) for t, i in step[side]] for side in ("inputs", "outputs")]
            steps.append(Segment(int(step["subgraph"]), *pairs))
    inputs, outputs = ([TensorSpec.from_json(s) for s in record[side]] for side in ("inputs", "outputs"))
    constants = {int(t): blobs[blob] for t, blob in record["constants"].items()}
    return Entry(inputs, outputs, steps, constants, _dead_after(inputs, outputs, steps, set(constants)))


def _dead_after(
    inputs: list[TensorSpec], outputs: list[TensorSpec], steps: list[Segment | Layer], keep: set[int]
) -> list[list[int]]:
    """For each step the tensors whose last use it is, so that memory holds only what is still needed."""
    last: dict[int, int] = {}
    for i, step in enumerate(steps):
        if isinstance(step, Segment):
            touched = [t for t, _ in step.inputs] + [t for t, _ in step.outputs]
        else:
            touched = [step.input, step.output, *([step.format.residual] if step.format.residual >= 0 else [])]
        last.update(dict.fromkeys(touched, i))
    keep = keep | {spec.index for spec in outputs}
    dead: list[list[int]] = [[] for _ in steps]
    for t, i in last.items():
        if t not in keep:
            dead[i].append(t)
    return dead
