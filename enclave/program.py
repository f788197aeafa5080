"""The sealed program: what runs in which order, parsed once when a bundle is opened."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from enclave import formats, limbs
from enclave.exact import Residues
from enclave.formats import Format
from enclave.gather import Gather
from enclave.integrity import Public
from enclave.restore import Restore
from shadownet.wire.errors import BundleError, InputError
from shadownet.wire.precision import PRECISIONS
from shadownet.wire.tensors import TensorSpec

Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class Segment:
    """A trusted segment: (tensor of the entry, tensor of the trusted subgraph) for inputs and outputs. ``gathers`` says
    how else outputs can be had."""

    subgraph: int
    inputs: list[tuple[int, int]]
    outputs: list[tuple[int, int]]
    gathers: dict[int, Gather] = field(default_factory=dict)

    def reads(self) -> list[int]:
        return [t for t, _ in self.inputs]

    def makes(self) -> list[int]:
        return [t for t, _ in self.outputs]


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
    """An outsourced linear layer. ``pop`` is its subgraph among the true weights (input tensor 0).

    ``residues`` says how it runs in Z_p, for exact activations; then ``limbs``, ``pop_limbs`` and ``sigma`` are unused.
    """

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
    restore: Restore
    format: Format
    public: Public
    residues: Residues | None = None
    private: tuple[int, int, Limbs] | None = None  # subgraph, its output, limbs: weights that never leave

    @property
    def stack(self) -> int:
        """How often its input crosses, in limbs along the first dimension."""
        return self.residues.public.digits.count if self.residues else 1

    def reads(self) -> list[int]:
        return [self.input, *([self.format.residual] if self.format.residual >= 0 else [])]

    def makes(self) -> list[int]:
        return [self.output]


@dataclass(frozen=True)
class Entry:
    """A runnable subgraph of the original model."""

    inputs: list[TensorSpec]
    outputs: list[TensorSpec]
    steps: list[Segment | Layer]
    constants: dict[int, Array]
    dead_after: list[list[int]]  # tensors that nobody needs after step i


@dataclass(frozen=True)
class Program:
    """Everything in a sealed half. ``model`` has the trusted segments, ``linear`` the true weights of layers that are
    outside: two models, b"" where there is none.

    ``checked`` is the share of layer calls whose answers are checked, 0 to 1; ``stateful`` programs remember something
    from one inference to the next; ``precision`` is the coarsest in which the accelerator may compute.
    """

    layers: list[Layer]
    entries: dict[int, Entry]
    model: bytes
    linear: bytes
    checked: float
    stateful: bool
    precision: str

    @classmethod
    def parse(cls, record: dict[str, Any], blobs: dict[str, Array], mask_input: bool) -> Program:
        """Raises ``BundleError`` for what is no program."""
        try:
            layers = [parse_layer(k, layer, blobs, mask_input) for k, layer in enumerate(record["layers"])]
            entries = {int(key): parse_entry(entry, blobs, layers) for key, entry in record["entries"].items()}
            checked, precision = parse_demands(record)
            models = blobs["trusted"].tobytes(), blobs["linear"].tobytes()
            return cls(layers, entries, *models, checked, bool(record["stateful"]), precision)
        except (KeyError, TypeError, ValueError, IndexError, InputError):
            raise BundleError("the sealed half holds no program that can be read", "convert the model again") from None


def parse_demands(record: dict[str, Any]) -> tuple[float, str]:
    """What a program asks of the accelerator: (share of answers that is checked, coarsest precision).

    Raises ``KeyError`` or ``ValueError``."""
    checked, precision = float(record["checked"]), str(record.get("precision", "float32"))
    if not 0 <= checked <= 1 or precision not in PRECISIONS:
        raise ValueError("no share of layer calls, or no precision")
    return checked, precision


def parse_layer(number: int, record: dict[str, Any], blobs: Mapping[str, Array], mask_input: bool) -> Layer:
    restore = Restore.from_blobs({name: blobs[blob] for name, blob in record["restore"].items()})
    if restore.slot.max() >= int(record["slots"]):
        raise ValueError("a lookup outside the answer")
    residues = Residues.from_json(record["residues"]) if record["residues"] else None
    if residues is not None and not residues.restorable(restore):
        raise ValueError("no restoring map of integers")
    return Layer(
        number=number,
        name=str(record["signature"]),
        input=int(record["input"]),
        output=int(record["output"]),
        slots=int(record["slots"]),
        limbs=Limbs(*(int(v) for v in record["limbs"])),
        sigma=float(record["sigma"]),
        masked=bool(record["maskable"]) and (mask_input or not record["public_input"]),
        pop=int(record["pop"]),
        pop_output=int(record["pop_output"]),
        pop_limbs=Limbs(*(int(v) for v in record["pop_limbs"])),
        restore=restore,
        format=formats.create(record["format"], blobs),
        public=Public.parse(record["public"]),
        residues=residues,
        private=_private(record["private"]),
    )


def _private(record: dict[str, Any] | None) -> tuple[int, int, Limbs] | None:
    if record is None:
        return None
    return int(record["subgraph"]), int(record["output"]), Limbs(*(int(v) for v in record["limbs"]))


def parse_entry(record: dict[str, Any], blobs: Mapping[str, Array], layers: Sequence[Any]) -> Entry:
    steps: list[Segment | Layer] = []
    for step in record["steps"]:
        if "layer" in step:
            steps.append(layers[step["layer"]])
        else:
            inner, outer = ([(int(t), int(i)) for t, i in step[side]] for side in ("inputs", "outputs"))
            gathers = {int(t): Gather.parse(gather) for t, gather in step.get("gathers", {}).items()}
            steps.append(Segment(int(step["subgraph"]), inner, outer, gathers))
    inputs, outputs = ([TensorSpec.from_json(s) for s in record[side]] for side in ("inputs", "outputs"))
    constants = {int(t): blobs[blob] for t, blob in record["constants"].items()}
    return Entry(inputs, outputs, steps, constants, _dead_after(inputs, outputs, steps, set(constants)))


def _dead_after(
    inputs: list[TensorSpec], outputs: list[TensorSpec], steps: list[Segment | Layer], keep: set[int]
) -> list[list[int]]:
    """For each step the tensors whose last use it is, so that memory holds only what is still needed."""
    last: dict[int, int] = {}
    for i, step in enumerate(steps):
        last.update(dict.fromkeys([*step.reads(), *step.makes()], i))
    keep = keep | {spec.index for spec in outputs}
    dead: list[list[int]] = [[] for _ in steps]
    for t, i in last.items():
        if t not in keep:
            dead[i].append(t)
    return dead
